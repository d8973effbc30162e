//! The file system as the kernel asks for it: a thin adapter between FUSE requests and the cache.
//!
//! What must stay true: nothing here waits for the backup on a thread that reads requests; that is the pool's work.

mod attributes;
mod blocks;
mod control_file;
mod directory;
mod filesystem;
mod hydrator;
mod mount_fs;
mod pool;
mod read_ahead;
mod room;
mod statistics;
mod streams;
mod transfer;

pub use control_file::control_file;
pub use hydrator::{Hydrator, HydratorOptions};
pub(crate) use mount_fs::WRITE_BYTES_MAX;
pub use mount_fs::{MountFs, MountFsParts, Passthrough};
pub use pool::Pool;
pub use room::{Limits, Room};
pub use statistics::{Histogram, Statistics};
pub use transfer::Transfer;
