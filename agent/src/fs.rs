//! The file system as the kernel asks for it: a thin adapter between FUSE requests and the cache.
//!
//! What must stay true: nothing here waits for the backup on a thread that reads requests; that is the pool's work.

mod attributes;
mod control_file;
mod directory;
mod filesystem;
mod mount_fs;
mod pool;
mod transfer;

pub use mount_fs::{MountFs, MountFsParts, Passthrough};
pub use pool::Pool;
pub use transfer::Transfer;
