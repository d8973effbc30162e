//! What a manifest says of the backup as a whole.

use jiff::Timestamp;
use serde::Deserialize;

use super::*;

/// What a manifest says of the backup as a whole.
#[derive(Debug)]
pub(crate) struct ManifestHead {
    pub(crate) label: String,
    pub(crate) kind: BackupKind,
    /// Labels by the numbers that files and block maps have for them; the backup's own is the last.
    pub(crate) references: Vec<String>,
    pub(crate) wal: BackupWal,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) stopped_at: Option<Timestamp>,
    pub(crate) compression: Compression,
    /// Whether members of bundles are in raw framing.
    pub(crate) is_raw: bool,
    pub(crate) system_identifier: u64,
    pub(crate) cluster: u32,
    /// PostgreSQL's version: `15`, `9.6`.
    pub(crate) postgresql_version: String,
    pub(crate) tablespaces: Vec<Tablespace>,
    /// Opens the files.
    pub(crate) passphrase: Option<Passphrase>,
}

/// The WAL that recovery needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupWal {
    pub(crate) first_segment: String,
    pub(crate) start_lsn: Lsn,
    pub(crate) stop_lsn: Lsn,
}

impl BackupWal {
    /// The timeline on which the backup was begun.
    pub(crate) fn timeline(&self) -> u32 {
        let digits = self.first_segment.get(..8);
        digits
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .unwrap_or(0)
    }
}

/// The lines that matter, as they come.
#[derive(Debug, Default)]
pub(super) struct HeadLines {
    label: Option<String>,
    references: Option<Vec<String>>,
    references_taken: bool,
    first_segment: Option<String>,
    start_lsn: Option<String>,
    stop_lsn: Option<String>,
    started_at_s: Option<i64>,
    stopped_at_s: Option<i64>,
    is_raw: bool,
    is_compressed: bool,
    compression: Option<String>,
    is_offline: bool,
    system_identifier: Option<u64>,
    cluster: Option<u32>,
    postgresql_version: Option<String>,
    tablespaces: Vec<Tablespace>,
    passphrase: Option<Passphrase>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawTarget {
    path: String,
    tablespace_id: Option<String>,
}

impl HeadLines {
    pub(super) fn take(&mut self, line: InfoLine<'_>, file: &str) -> Result<(), RepositoryError> {
        match (line.section, line.key) {
            ("backup", "backup-label") => self.label = Some(line.parse(file)?),
            ("backup", "backup-reference") => {
                let list: String = line.parse(file)?;
                let labels: Vec<String> = list.split(',').map(str::to_owned).collect();
                if labels.iter().any(|label| label_kind(label).is_none()) {
                    let reason =
                        format!("backup-reference is {list:?}, which is no list of labels");
                    return Err(RepositoryError::corrupt(file, reason));
                }
                self.references = Some(labels);
            }
            ("backup", "backup-archive-start") => self.first_segment = Some(line.parse(file)?),
            ("backup", "backup-lsn-start") => self.start_lsn = Some(line.parse(file)?),
            ("backup", "backup-lsn-stop") => self.stop_lsn = Some(line.parse(file)?),
            ("backup", "backup-timestamp-start") => self.started_at_s = Some(line.parse(file)?),
            ("backup", "backup-timestamp-stop") => self.stopped_at_s = Some(line.parse(file)?),
            ("backup", "backup-bundle-raw") => self.is_raw = line.parse(file)?,
            ("backup:option", "option-compress") => self.is_compressed = line.parse(file)?,
            ("backup:option", "option-compress-type") => self.compression = Some(line.parse(file)?),
            ("backup:option", "option-online") => self.is_offline = !line.parse::<bool>(file)?,
            ("backup:db", "db-id") => self.cluster = Some(line.parse(file)?),
            ("backup:db", "db-system-id") => self.system_identifier = Some(line.parse(file)?),
            ("backup:db", "db-version") => self.postgresql_version = Some(line.parse(file)?),
            ("backup:target", name) => self.target(name, &line, file)?,
            ("cipher", "cipher-pass") => {
                self.passphrase = Some(Passphrase::new(line.parse::<String>(file)?));
            }
            _ => {}
        }
        Ok(())
    }

    fn target(
        &mut self,
        name: &str,
        line: &InfoLine<'_>,
        file: &str,
    ) -> Result<(), RepositoryError> {
        let target: RawTarget = line.parse(file)?;
        let Some(oid) = target.tablespace_id else {
            return Ok(());
        };
        let parsed = crate::name::parse_oid(&oid).filter(|_| name == format!("pg_tblspc/{oid}"));
        let oid = parsed.ok_or_else(|| {
            RepositoryError::corrupt(file, format!("has a tablespace {name:?} with id {oid:?}"))
        })?;
        self.tablespaces.push(Tablespace {
            oid,
            location: target.path,
        });
        Ok(())
    }

    /// Whether the manifest has a list of the backups that it stands on.
    pub(super) fn has_references(&self) -> bool {
        self.references.is_some()
    }

    /// The list, the first time that it is asked for.
    pub(super) fn take_references(&mut self) -> Option<Vec<String>> {
        let first = !std::mem::replace(&mut self.references_taken, true);
        first.then(|| self.references.clone()).flatten()
    }

    /// Puts together what must be there. `appeared`: other labels as files named them.
    pub(super) fn finish(
        mut self,
        appeared: Vec<String>,
        version: String,
        file: &str,
    ) -> Result<ManifestHead, RepositoryError> {
        let corrupt = |reason: String| RepositoryError::corrupt(file, reason);
        let missing = |key: &str| {
            corrupt(format!(
                "{key} is missing (written by pgBackRest {version})"
            ))
        };
        let label = self.label.take().ok_or_else(|| missing("backup-label"))?;
        let kind = label_kind(&label).ok_or_else(|| corrupt(format!("has label {label:?}")))?;
        if self.is_offline {
            return Err(RepositoryError::unsupported(
                file,
                "is of a backup of a stopped cluster (--no-online), which has no backup_label",
                "use a backup that was taken while the cluster ran",
            ));
        }
        let references = match self.references.take() {
            Some(listed) if listed.last() == Some(&label) => listed,
            Some(listed) => {
                let list = listed.join(", ");
                return Err(corrupt(format!(
                    "backup-reference {list} does not end with {label}"
                )));
            }
            None => appeared.into_iter().chain([label.clone()]).collect(),
        };
        let compression = match self.compression.as_deref() {
            None if self.is_compressed => Compression::Gz,
            None => Compression::None,
            Some(name) => Compression::from_name(name).ok_or_else(|| {
                RepositoryError::unsupported(
                    file,
                    format!("says that files are compressed with {name:?}"),
                    "use a newer pginstant",
                )
            })?,
        };
        let wal = self.wal(file)?;
        let moment = |seconds: Option<i64>| Timestamp::from_second(seconds?).ok();
        self.tablespaces.sort_by_key(|tablespace| tablespace.oid);
        Ok(ManifestHead {
            label,
            kind,
            references,
            wal,
            started_at: moment(self.started_at_s),
            stopped_at: moment(self.stopped_at_s),
            compression,
            is_raw: self.is_raw,
            system_identifier: self
                .system_identifier
                .ok_or_else(|| missing("db-system-id"))?,
            cluster: self.cluster.ok_or_else(|| missing("db-id"))?,
            postgresql_version: self
                .postgresql_version
                .ok_or_else(|| missing("db-version"))?,
            tablespaces: self.tablespaces,
            passphrase: self.passphrase,
        })
    }

    fn wal(&self, file: &str) -> Result<BackupWal, RepositoryError> {
        let corrupt =
            |key: &str| RepositoryError::corrupt(file, format!("{key} is missing or is none"));
        let lsn = |text: &Option<String>| text.as_deref().and_then(|text| text.parse().ok());
        let is_segment = |name: &&String| {
            let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
            name.len() == 24 && name.bytes().all(is_digit) && !name.starts_with("00000000")
        };
        let first_segment = self.first_segment.as_ref().filter(is_segment);
        Ok(BackupWal {
            first_segment: first_segment
                .ok_or_else(|| corrupt("backup-archive-start"))?
                .clone(),
            start_lsn: lsn(&self.start_lsn).ok_or_else(|| corrupt("backup-lsn-start"))?,
            stop_lsn: lsn(&self.stop_lsn).ok_or_else(|| corrupt("backup-lsn-stop"))?,
        })
    }
}
