//! `backup.info`: what Barman says of one backup. Lines `key=value`, some of the values as Python writes them.

use jiff::Timestamp;

use super::python_literal::{Literal, parse_literal};
use crate::restore_point::Tablespace;
use crate::{Lsn, RepositoryError};

/// Largest `backup.info` that is read, in bytes; most have one or two thousand.
pub(super) const INFO_BYTES_MAX: u64 = 4 << 20;

/// What is known of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupInfo {
    /// Where it begins.
    pub begin_lsn: Lsn,
    /// Where it ends at the latest.
    pub end_lsn: Lsn,
    /// The timeline on which it was begun.
    pub timeline: u32,
    /// Size of a WAL segment, in bytes.
    pub segment_bytes: u64,
    /// The cluster; absent in backups of old Barmans.
    pub system_identifier: Option<u64>,
    /// PostgreSQL's major version.
    pub postgresql_major: Option<u32>,
    /// Size of the cluster, in bytes.
    pub cluster_bytes: Option<u64>,
    /// When it was begun.
    pub started_at: Option<Timestamp>,
    /// When it was finished.
    pub stopped_at: Option<Timestamp>,
    /// Where its tablespaces were on the original.
    pub tablespaces: Vec<Tablespace>,
}

/// How a backup stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It can be used.
    Usable(BackupInfo),
    /// It cannot, and why.
    Unusable {
        /// What it is.
        reason: String,
        /// What to do instead.
        remedy: &'static str,
    },
}

/// Reads the content of a `backup.info`; `file` is its name, for errors.
pub fn parse_backup_info(content: &[u8], file: &str) -> Result<Status, RepositoryError> {
    let corrupt = |reason: String| RepositoryError::corrupt(file, reason);
    let text = std::str::from_utf8(content).map_err(|_| corrupt("is not UTF-8".into()))?;
    let lines = Lines { text, file };
    let status = lines.needed("status")?;
    if let Some(unusable) = unusable(&lines, status) {
        return Ok(unusable);
    }
    let segment_bytes = lines.number("xlog_segment_size")?;
    if !segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment_bytes) {
        return Err(corrupt(format!(
            "says that WAL segments have {segment_bytes} bytes"
        )));
    }
    let timeline = lines.number("timeline")?;
    let timeline = u32::try_from(timeline)
        .ok()
        .filter(|timeline| *timeline > 0);
    let (begin_lsn, end_lsn) = (lines.lsn("begin_xlog")?, lines.lsn("end_xlog")?);
    if end_lsn <= begin_lsn {
        return Err(corrupt(format!(
            "says that it ends at {end_lsn}, and begins at {begin_lsn}"
        )));
    }
    let identifier = lines.value("systemid");
    let identifier = identifier.map(|_| lines.number("systemid")).transpose()?;
    let parsed = |key| lines.value(key)?.parse::<u64>().ok();
    Ok(Status::Usable(BackupInfo {
        begin_lsn,
        end_lsn,
        timeline: timeline.ok_or_else(|| corrupt("names a timeline that cannot be".into()))?,
        segment_bytes,
        system_identifier: identifier,
        // 150018 is 15.18.
        postgresql_major: parsed("version")
            .and_then(|version| u32::try_from(version / 10_000).ok()),
        cluster_bytes: parsed("cluster_size"),
        started_at: lines.value("begin_time").and_then(|time| time.parse().ok()),
        stopped_at: lines.value("end_time").and_then(|time| time.parse().ok()),
        tablespaces: lines.tablespaces()?,
    }))
}

/// Why a backup cannot be used, if so.
fn unusable(lines: &Lines<'_>, status: &str) -> Option<Status> {
    let mode = lines.value("mode").unwrap_or("rsync");
    let (reason, remedy) = if !matches!(status, "DONE" | "WAITING_FOR_WALS") {
        let error = lines.value("error").map(|error| format!(" ({error})"));
        let error = error.unwrap_or_default();
        (
            format!("says that the backup has status {status}{error}, and is not finished"),
            "use one with status DONE or WAITING_FOR_WALS",
        )
    } else if mode.starts_with("snapshot") {
        (
            "is that of a snapshot backup, whose data is in snapshots of a cloud's disks and not with Barman".to_owned(),
            "use one made with backup_method = rsync or postgres",
        )
    } else if let Some(encryption) = lines.value("encryption") {
        (
            format!("is that of a backup encrypted by {encryption}, which cannot be read"),
            "use one made without encryption",
        )
    } else {
        return None;
    };
    Some(Status::Unusable { reason, remedy })
}

struct Lines<'a> {
    text: &'a str,
    file: &'a str,
}

impl<'a> Lines<'a> {
    /// The value of a key, unless it is `None`.
    fn value(&self, key: &str) -> Option<&'a str> {
        let mut lines = self.text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim()).filter(|value| !matches!(*value, "None" | ""))
    }

    fn needed(&self, key: &str) -> Result<&'a str, RepositoryError> {
        let value = self.value(key);
        value.ok_or_else(|| RepositoryError::corrupt(self.file, format!("has no {key}")))
    }

    fn unreadable(&self, key: &str, value: &str) -> RepositoryError {
        RepositoryError::corrupt(self.file, format!("cannot be read: {key}={value}"))
    }

    fn number(&self, key: &str) -> Result<u64, RepositoryError> {
        let value = self.needed(key)?;
        value.parse().map_err(|_| self.unreadable(key, value))
    }

    fn lsn(&self, key: &str) -> Result<Lsn, RepositoryError> {
        let value = self.needed(key)?;
        value.parse().map_err(|_| self.unreadable(key, value))
    }

    /// `[('name', 16384, '/where/it/was')]`
    fn tablespaces(&self) -> Result<Vec<Tablespace>, RepositoryError> {
        let Some(value) = self.value("tablespaces") else {
            return Ok(Vec::new());
        };
        let wrong = || self.unreadable("tablespaces", value);
        let Some(Literal::List(listed)) = parse_literal(value) else {
            return Err(wrong());
        };
        let mut tablespaces = Vec::new();
        for tablespace in listed {
            let parsed = match &tablespace {
                Literal::List(parts) => match parts.as_slice() {
                    [_, Literal::Number(oid), Literal::Text(location)] => Some((oid, location)),
                    _ => None,
                },
                _ => None,
            };
            let (oid, location) = parsed.ok_or_else(wrong)?;
            let oid = u32::try_from(*oid).ok().filter(|oid| *oid > 0);
            tablespaces.push(Tablespace {
                oid: oid.ok_or_else(wrong)?,
                location: location.clone(),
            });
        }
        Ok(tablespaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "backup_label='START WAL LOCATION: 0/5000028\\n'\nbegin_time=2026-11-21 16:47:23.358071+00:00\n\
        begin_wal=000000010000000000000005\nbegin_xlog=0/5000028\nencryption=None\nend_time=2026-11-21 16:47:25.137947+00:00\n\
        end_xlog=0/5000100\nerror=None\nmode=rsync-concurrent\nstatus=DONE\nsystemid=7710667161573575295\n\
        tablespaces=[('one', 16384, '/srv/ts')]\ntimeline=1\nversion=150018\nxlog_segment_size=16777216\n";

    fn parse(text: &str) -> Result<Status, RepositoryError> {
        parse_backup_info(text.as_bytes(), "backup.info")
    }

    #[test]
    fn a_finished_backup_says_where_its_wal_and_its_tablespaces_are() {
        let Ok(Status::Usable(info)) = parse(INFO) else {
            panic!("{:?}", parse(INFO));
        };
        assert_eq!(
            (info.begin_lsn, info.end_lsn),
            (Lsn(0x500_0028), Lsn(0x500_0100))
        );
        assert_eq!((info.timeline, info.segment_bytes), (1, 16 << 20));
        assert_eq!(info.system_identifier, Some(7_710_667_161_573_575_295));
        assert_eq!(info.started_at, "2026-11-21T16:47:23.358071Z".parse().ok());
        assert!(info.stopped_at.is_some());
        assert_eq!(
            (
                info.tablespaces[0].oid,
                info.tablespaces[0].location.as_str()
            ),
            (16384, "/srv/ts")
        );
        let waiting = INFO.replace("DONE", "WAITING_FOR_WALS");
        assert!(matches!(parse(&waiting), Ok(Status::Usable(_))));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (from, to, wanted) in [
            ("status=DONE", "status=FAILED", "status FAILED"),
            ("status=DONE", "status=EMPTY", "status EMPTY"),
            ("mode=rsync-concurrent", "mode=snapshot", "snapshot backup"),
            ("encryption=None", "encryption=gpg", "encrypted by gpg"),
        ] {
            let text = INFO.replace(from, to);
            let Ok(Status::Unusable { reason, .. }) = parse(&text) else {
                panic!("{to}: {:?}", parse(&text));
            };
            assert!(reason.contains(wanted), "{reason}");
        }
        let failed = INFO
            .replace("status=DONE", "status=FAILED")
            .replace("error=None", "error=disk full");
        assert!(
            matches!(parse(&failed), Ok(Status::Unusable { reason, .. }) if reason.contains("(disk full)"))
        );
    }

    #[test]
    fn what_is_no_backup_info_is_refused() {
        assert!(parse_backup_info(b"\xff", "backup.info").is_err());
        for (from, to) in [
            ("status=DONE", ""),
            ("xlog_segment_size=16777216", "xlog_segment_size=3"),
            ("timeline=1", "timeline=0"),
            ("begin_xlog=0/5000028", "begin_xlog=x"),
            ("end_xlog=0/5000100", "end_xlog=0/5000000"),
            ("systemid=7710667161573575295", "systemid=-1"),
            ("16384", "0"),
            ("16384", "99999999999"),
            ("[('one', 16384, '/srv/ts')]", "[('one', 16384)]"),
            ("[('one', 16384, '/srv/ts')]", "__import__('os')"),
        ] {
            let error = parse(&INFO.replace(from, to)).unwrap_err();
            assert_eq!(
                (error.file(), error.is_permanent()),
                ("backup.info", true),
                "{to}"
            );
        }
    }
}
