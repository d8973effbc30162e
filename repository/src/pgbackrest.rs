//! Repositories of pgBackRest, read in place (format 5: pgBackRest 2.36 and later, as far as tests go).
//!
//! A backup's manifest says where the bytes of each file are: in a file of their own, in a bundle of many, or block by
//! block in superblocks of several backups; compressed, encrypted, or both.

mod archive;
mod backup_info;
mod block_map;
mod blocks;
mod check;
mod cipher;
mod compression;
mod content;
mod encrypted;
mod indexes;
mod info_file;
mod label;
mod layout;
mod manifest;
mod opened;
mod passphrase;
mod repository;
mod stanza;
mod stored;
mod wal_storage;
mod whole_file;

pub use backup_info::info_files_are_sound;
pub use block_map::{Block, BlockLayout, BlockMap, Superblock, parse_block_map};
pub use info_file::{InfoLine, OnLine, read_info, sealed_again};
pub use manifest::manifest_is_sound;
pub use passphrase::Passphrase;
pub use repository::{PgBackRestOptions, open_pgbackrest, open_pgbackrest_in};

// What files of other tools are decoded with as well.
pub(crate) use compression::Compression;
pub(crate) use stored::{Decoding, ReadFailure, StoredRange};
pub(crate) use whole_file::{WholeFile, WholeFileReader};

/// How bytes are wrapped: bundles and blocks leave out what the manifest says anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// As the programs `gzip` and `openssl` write it.
    Standard,
    /// zlib instead of gzip, and encryption without `Salted__`.
    Raw,
}
