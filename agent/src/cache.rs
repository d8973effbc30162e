//! The write cache: everything about the mount's content that does not need the kernel.
//!
//! What must stay true: an effect is acknowledged only after it is written where a killed worker's
//! successor finds it, and an `fsync` only after it is written where a power cut leaves it: data first,
//! then the map that says that the data is here.

pub mod account;
pub mod answered;
pub mod barrier;
pub mod catalog;
pub mod census;
pub mod content;
pub mod disk;
pub mod eviction;
pub mod flush;
pub mod names;
pub mod namespace;
pub mod node;
pub mod presence;
pub mod reading;
pub mod record;
mod replay;
pub mod runtime;
pub mod store;
pub mod tree;
mod uncached;
pub mod upkeep;
pub mod writeback;

/// Grain of the presence map, in bytes: a PostgreSQL page.
pub const GRANULE_BYTES: u64 = 8192;

/// Number of an inode, stable over restarts of the worker and over remounts.
pub type Ino = u64;

/// The root's number, given by the kernel.
pub const ROOT: Ino = 1;
