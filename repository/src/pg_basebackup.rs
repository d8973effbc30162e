//! Backups as `pg_basebackup` leaves them: a plain directory, or tar archives, in a directory or an object store; of PostgreSQL 17 and later
//! also incremental ones, which are shown together with those that they stand on.

mod backup_label;
mod chain;
mod combined;
mod control;
mod increment;
mod last_chain;
mod layout;
mod manifest;
mod opened;
mod place;
mod plain;
mod plain_objects;
mod siblings;
mod tablespace_map;
mod tar;
mod tar_index;

pub use crate::checksums::{Algorithm, Checksum};
pub use backup_label::{BackupLabel, SMALL_FILE_BYTES_MAX, parse_backup_label};
pub use increment::{INCREMENT_HEAD_BYTES, Increment, IncrementHead, parse_increment_head};
pub use manifest::{MANIFEST, Manifest, ManifestFile, OnFile, WalRange, read_manifest};
pub use tablespace_map::parse_tablespace_map;
pub use tar_index::{Member, MemberKind, ReadAt, read_tar_index};

pub(crate) use layout::slow_layout;
pub(crate) use opened::{Wal, open_backup, outline_of, segment_name};
pub(crate) use place::{Place, TablespaceDirectory};
pub(crate) use siblings::{Siblings, began};
