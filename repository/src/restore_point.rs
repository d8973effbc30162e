//! What a backup is a backup of, and what it can be recovered to.

use std::fmt;

use jiff::Timestamp;

use crate::{BackupKind, Codec, Lsn, RepositoryError};

/// One backup, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// Its label, unique in the repository.
    pub label: String,
    /// What it was made by.
    pub format: BackupFormat,
    /// What kind of backup it is.
    pub kind: BackupKind,
    /// Labels of the other backups that it stands on, oldest first.
    pub references: Vec<String>,
    /// PostgreSQL's major version, from `PG_VERSION`.
    pub postgresql_major: u32,
    /// When it was begun; absent where only a local time of an unknown zone is known.
    pub started_at: Option<Timestamp>,
    /// When it was finished, where the format tells it.
    pub stopped_at: Option<Timestamp>,
    /// Size of its files, in bytes.
    pub size_bytes: u64,
    /// How many files it has; 0 in a list where only opening it tells.
    pub file_count: u64,
    /// Its tablespaces beside `pg_default` and `pg_global`, by oid.
    pub tablespaces: Vec<Tablespace>,
    /// What it can be recovered to.
    pub recoverable: RecoverableInterval,
    /// The cluster's identity, where the format tells it (`backup_manifest` since PostgreSQL 17).
    pub system_identifier: Option<u64>,
    /// Whether its contents are checked while they are read.
    pub verification: Verification,
    /// Why its pages are slow to read at random; absent where they are not.
    pub slow_layout: Option<SlowLayout>,
}

/// Why the pages of a backup are slow to read at random, as its files are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowLayout {
    /// What is slow: a clause.
    pub reason: String,
    /// The setting of the backup's tool with which later backups are fast.
    pub remedy: &'static str,
}

impl fmt::Display for SlowLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

/// What made a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackupFormat {
    /// `pg_basebackup -Fp`: the data directory as it is.
    PgBasebackupPlain,
    /// `pg_basebackup -Ft`, not compressed.
    PgBasebackupTar,
    /// `pg_basebackup -Ft`, its `base.tar` compressed so.
    PgBasebackupCompressedTar(Codec),
    /// A backup in a repository of pgBackRest.
    PgBackRest,
    /// A backup of Barman.
    Barman,
}

impl fmt::Display for BackupFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PgBasebackupPlain => f.write_str("pg_basebackup plain"),
            Self::PgBasebackupTar => f.write_str("pg_basebackup tar"),
            Self::PgBasebackupCompressedTar(codec) => write!(f, "pg_basebackup tar, {codec}"),
            Self::PgBackRest => f.write_str("pgBackRest"),
            Self::Barman => f.write_str("Barman"),
        }
    }
}

/// A tablespace beside `pg_default` and `pg_global`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its oid: its files are below `pg_tblspc/<oid>/`.
    pub oid: u32,
    /// Where it was on the original (from `tablespace_map`), else where the backup's link leads.
    pub location: String,
}

/// The WAL that a backup brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoverableInterval {
    /// Where recovery begins: `START WAL LOCATION` of `backup_label`.
    pub from_lsn: Lsn,
    /// Where the backup is consistent and can be opened, at the earliest: the end of the manifest's WAL ranges. Absent without a manifest.
    pub to_lsn: Option<Lsn>,
    /// The timeline on which the backup was begun.
    pub timeline: u32,
}

/// Whether a backup's contents can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verification {
    /// Its manifest has a checksum for every file; each is checked when the file has been read whole.
    Checksums,
    /// Its manifest has names and sizes, but not a checksum for every file (`--manifest-checksums=NONE`).
    SizesOnly,
    /// It has no manifest: older than PostgreSQL 13, or made with `--no-manifest`.
    Unverified,
}

/// The backups of a repository, newest first.
#[derive(Debug, Default)]
pub struct RestorePoints {
    /// Those that can be opened. Of tar backups that are compressed or in an object store only the beginning has been looked at, and the
    /// manifest, which does not have the WAL among the files; of those of `barman-cloud-backup` only what it says of them.
    pub restore_points: Vec<RestorePoint>,
    /// Why others cannot: the label of each and the reason.
    pub problems: Vec<(String, RepositoryError)>,
    /// Whether there are more directories than [`crate::Limits::backup_count`], so that some were not looked at.
    pub truncated: bool,
}
