//! Reads a file ahead that the kernel begins to serve: its copies were written past the page cache, and whoever uses the file would
//! wait for the disk page by page.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use rustix::fs::{Advice, fadvise};

use crate::hand::host::memory_free_bytes;

/// Bytes asked for at a time.
const STEP_BYTES: u64 = 8 << 20;
/// Free memory that is left alone.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Fills the page cache with the file as long as a good part of memory is used by nothing at all: what others keep in the page cache is
/// worth more than what may not be asked for.
pub(super) fn read_ahead(file: OwnedFd) {
    let file = File::from(file);
    let size_bytes = file.metadata().map_or(0, |facts| facts.len());
    for offset in (0..size_bytes).step_by(usize::try_from(STEP_BYTES).unwrap_or(usize::MAX)) {
        if memory_free_bytes() < FREE_BYTES_MIN {
            return;
        }
        if let Err(error) = fadvise(&file, offset, NonZeroU64::new(STEP_BYTES), Advice::WillNeed) {
            tracing::debug!(%error, "read a file ahead");
            return;
        }
    }
}
