//! Where decoding can begin in files that were decoded before: when their decoded bytes have made room for others, they are read
//! at random from there instead of being decoded once more from their beginning.
//!
//! What must stay true: there are few of them, and they take a part only of the place for decoded bytes.

use std::sync::Arc;

use crate::bounded_cache::{BoundedCache, CacheKey};
use crate::decoded::DecodedStore;
use crate::seekable::Seekable;
use crate::tree::FileIndex;

/// Most of them, each with an open file.
const COUNT_MAX: usize = 128;
/// Which part of the place they may take.
const PART: u64 = 4;

/// The indexes of one backup's files.
#[derive(Debug)]
pub(super) struct Indexes {
    kept: BoundedCache,
    bytes_max: usize,
}

/// Forgets what was decoded with it when it goes.
#[derive(Debug)]
pub(super) struct Index(Seekable);

impl Drop for Index {
    fn drop(&mut self) {
        self.0.forget_decoded();
    }
}

impl Index {
    pub(super) fn seekable(&self) -> &Seekable {
        &self.0
    }

    /// Who has decoded as much as the whole file by it had better decode the whole file, and have it for good.
    fn is_worth_it(&self) -> bool {
        self.0.decoded_again_bytes() < self.0.size_bytes()
    }
}

impl Indexes {
    pub(super) fn new(store: &DecodedStore) -> Self {
        let bytes_max = usize::try_from(store.disk_bytes_max() / PART).unwrap_or(usize::MAX);
        Self {
            kept: BoundedCache::new(bytes_max),
            bytes_max,
        }
    }

    /// The index of a file, if it reaches so far and is better than decoding the file whole.
    pub(super) fn find(&self, file: FileIndex, end: u64) -> Option<Arc<Index>> {
        let index: Arc<Index> = self.kept.find(key(file))?;
        (index.0.size_bytes() >= end && index.is_worth_it()).then_some(index)
    }

    /// Keeps what the decoding of a file has seen, unless more is known of it.
    pub(super) fn keep(&self, file: FileIndex, seen: Seekable) {
        if seen.size_bytes() == 0 {
            return;
        }
        let known: Option<Arc<Index>> = self.kept.find(key(file));
        if let Some(known) = known.filter(|known| known.0.size_bytes() > seen.size_bytes()) {
            known.0.count_again_anew();
            return;
        }
        let bytes = usize::try_from(seen.kept_bytes()).unwrap_or(usize::MAX);
        let bytes = bytes.max(self.bytes_max / COUNT_MAX);
        self.kept.put(key(file), Index(seen), bytes);
    }
}

fn key(file: FileIndex) -> CacheKey {
    CacheKey {
        owner: 0,
        file: file.0,
        part: [0; 3],
    }
}
