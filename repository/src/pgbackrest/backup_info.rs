//! `backup.info`: which backups a stanza has, and of which clusters. The authority on what is a backup.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;

use super::archive::read_archive_info;
use super::info_file::read_info;
use super::label::{label_kind, may_stand_on};
use super::passphrase::Passphrase;
use crate::{BackupKind, RepositoryError};

/// What `backup.info` says.
#[derive(Debug, Default)]
pub(crate) struct BackupInfo {
    /// The backups, oldest first.
    pub(crate) backups: BTreeMap<String, ListedBackup>,
    /// The clusters that there were, by the number that backups name.
    pub(crate) clusters: BTreeMap<u32, Cluster>,
    /// Opens the manifests.
    pub(crate) passphrase: Option<Passphrase>,
}

/// A cluster, before or after an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Cluster {
    /// Its system identifier.
    pub(crate) db_system_id: u64,
    /// PostgreSQL's version: `15`, `9.6`.
    pub(crate) db_version: String,
}

/// A backup, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ListedBackup {
    /// The pgBackRest that made it.
    pub(crate) backrest_version: String,
    /// The cluster that it is of.
    pub(crate) db_id: u32,
    /// The backup that it was compared with.
    pub(crate) backup_prior: Option<String>,
    /// The backups that it needs.
    pub(crate) backup_reference: Option<Vec<String>>,
}

impl ListedBackup {
    /// Major and minor version of the pgBackRest that made it: `2.45.1` is (2, 45).
    pub(crate) fn tool_version(&self) -> (u32, u32) {
        let mut parts = self.backrest_version.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        (next(), next())
    }
}

/// Reads `backup.info`; `file` is its name for errors.
pub(crate) fn read_backup_info(
    source: impl Read,
    file: &str,
) -> Result<BackupInfo, RepositoryError> {
    let mut info = BackupInfo::default();
    read_info(source, file, &mut |line| {
        match (line.section, line.key) {
            ("backup:current", label) => {
                if label_kind(label).is_none() {
                    let reason = format!("lists {label:?}, which is no label of a backup");
                    return Err(RepositoryError::corrupt(file, reason));
                }
                info.backups.insert(label.to_owned(), line.parse(file)?);
            }
            ("db:history", number) => {
                let number = number.parse().map_err(|_| {
                    RepositoryError::corrupt(file, format!("has a cluster number {number:?}"))
                })?;
                info.clusters.insert(number, line.parse(file)?);
            }
            ("cipher", "cipher-pass") => {
                info.passphrase = Some(Passphrase::new(line.parse::<String>(file)?));
            }
            _ => {}
        }
        Ok(())
    })?;
    for (label, backup) in &info.backups {
        check_references(&info, label, backup, file)?;
    }
    Ok(info)
}

/// Whether bytes are a `backup.info` and an `archive.info`; for fuzzing.
pub fn info_files_are_sound(bytes: &[u8]) -> bool {
    let archive = read_archive_info(
        Box::new(std::io::Cursor::new(bytes.to_vec())),
        "archive.info",
    );
    read_backup_info(bytes, "backup.info").is_ok() && archive.is_ok()
}

/// A backup stands on older ones of its set: each of them has to be there.
fn check_references(
    info: &BackupInfo,
    label: &str,
    backup: &ListedBackup,
    file: &str,
) -> Result<(), RepositoryError> {
    if !info.clusters.contains_key(&backup.db_id) {
        let reason = format!(
            "backup {label} is of cluster {}, which it does not have",
            backup.db_id
        );
        return Err(RepositoryError::corrupt(file, reason));
    }
    let is_full = label_kind(label) == Some(BackupKind::Full);
    if is_full == backup.backup_prior.is_some() {
        let reason = match is_full {
            true => format!("full backup {label} has a prior backup"),
            false => format!("backup {label} has no prior backup"),
        };
        return Err(RepositoryError::corrupt(file, reason));
    }
    let references = backup.backup_reference.iter().flatten();
    for other in references.chain(&backup.backup_prior) {
        if !may_stand_on(label, other) {
            let reason = format!("backup {label} cannot stand on {other:?}, as is said of it");
            return Err(RepositoryError::corrupt(file, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::info_file::tests::sealed;
    use super::*;

    const FULL: &str = "20261121-124036F";
    const DIFF: &str = "20261121-124036F_20261121-124041D";

    fn read(lines: &[(&str, &str, &str)]) -> Result<BackupInfo, RepositoryError> {
        let cluster = r#"{"db-system-id":7710603752845360434,"db-version":"15"}"#;
        let mut all = lines.to_vec();
        all.push(("db:history", "1", cluster));
        read_backup_info(sealed(&all).as_bytes(), "backup.info")
    }

    fn backup(more: &str) -> String {
        format!(r#"{{"backrest-version":"2.45","db-id":1,"other":[1]{more}}}"#)
    }

    #[test]
    fn backups_and_clusters_are_read() {
        let diff = backup(&format!(
            r#","backup-prior":"{FULL}","backup-reference":["{FULL}"]"#
        ));
        let current = "backup:current";
        let info = read(&[
            (current, FULL, &backup("")),
            (current, DIFF, &diff),
            ("cipher", "cipher-pass", "\"x\""),
        ])
        .unwrap();
        assert_eq!(info.backups.len(), 2);
        assert_eq!(info.clusters[&1].db_version, "15");
        assert_eq!(info.backups[FULL].tool_version(), (2, 45));
        assert_eq!(info.passphrase, Some(Passphrase::new("x")));
    }

    #[test]
    fn labels_and_references_that_cannot_be_are_refused() {
        let prior = |other: &str| backup(&format!(r#","backup-prior":"{other}""#));
        let table = [
            ("../../etc/x", backup("")),
            (DIFF, prior(DIFF)),
            (DIFF, prior("../../etc")),
            (DIFF, prior("20260101-000000F")),
            (DIFF, backup("")),
            (FULL, prior(FULL)),
            (FULL, backup("").replace("\"db-id\":1", "\"db-id\":2")),
            (FULL, "{}".to_owned()),
        ];
        for (label, value) in &table {
            assert!(
                read(&[("backup:current", label, value)]).is_err(),
                "{label} {value}"
            );
        }
    }
}
