//! Opens PostgreSQL backups, as they lie in the repositories of other tools, as read-only trees
//! with random access, and says which states they can be recovered to.
//!
//! What must stay true: nothing here writes to a repository; nothing that a repository says is
//! believed where it can be checked; every refusal names the file; memory grows with the list of
//! files and with nothing else.
//!
//! Everything here blocks: call it from threads that may block, never from an async runtime's.

mod backup;
pub mod barman;
mod beneath;
mod bounded_cache;
mod checksums;
mod decoded;
mod directory;
mod error;
mod handles;
mod lsn;
mod name;
mod options;
pub mod pg_basebackup;
pub mod pgbackrest;
mod restore_point;
mod seekable;
mod storage;
mod tree;
mod wal_archive;
mod with_wal;

pub use backup::{
    Backup, BackupChoice, BackupKind, CorruptFile, Repository, VerifyProgress, VerifyReport,
    WalArchives,
};
pub use checksums::Standing;
pub use decoded::{DecodedLimits, DecodedStore};
pub use directory::{open_repository, open_repository_in};
pub use error::{RepositoryError, RepositoryErrorKind};
pub use lsn::{InvalidLsn, Lsn};
pub use options::{Limits, OpenOptions, OpenProgress, WalPlace};
pub use restore_point::{
    BackupFormat, RecoverableInterval, RestorePoint, RestorePoints, SlowLayout, Tablespace,
    Verification,
};
pub use seekable::Codec;
#[doc(hidden)]
pub use seekable::places_that_agree;
pub use storage::{
    InvalidObjectLocation, ObjectAccess, ObjectLimits, ObjectLocation, ObjectOptions,
    ObjectStoreKind, Storage,
};
pub use tree::{Entries, Entry, EntryKind, FileIndex, Tree};
pub use wal_archive::{SegmentRun, ShownHistory, ShownWal, WalArchive, WalFiles, WalGap};
#[doc(hidden)]
pub use wal_archive::{archive_is_consistent, wal_head_is_sound};
