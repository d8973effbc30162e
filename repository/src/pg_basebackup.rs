//! Backups as `pg_basebackup` leaves them: a plain directory, or uncompressed tar archives.

mod backup_label;
mod manifest;
mod opened;
mod plain;
mod tablespace_map;
mod tar;
mod tar_index;

pub use crate::checksums::{Algorithm, Checksum};
pub use backup_label::{BackupLabel, SMALL_FILE_BYTES_MAX, parse_backup_label};
pub use manifest::{MANIFEST, Manifest, ManifestFile, OnFile, WalRange, read_manifest};
pub use tablespace_map::parse_tablespace_map;
pub use tar_index::{Member, MemberKind, ReadAt, read_tar_index};

pub(crate) use opened::{Place, describe_backup, looks_like_a_backup, open_backup, started_at};
