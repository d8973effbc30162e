//! Where decoding can begin in files that were decoded before: when their decoded bytes have made room for others, they are read
//! at random from there instead of being decoded once more from their beginning.
//!
//! What must stay true: there are few of them, and they take a part only of the place for decoded bytes.

use std::sync::Arc;

use crate::bounded_cache::CacheKey;
use crate::decoded::DecodedStore;
use crate::seekable::Seekable;
use crate::tree::FileIndex;

/// Most of them, each with an open file.
const COUNT_MAX: usize = 128;

/// The indexes of one backup's files.
#[derive(Debug)]
pub(super) struct Indexes {
    store: Arc<DecodedStore>,
    /// The opened backup.
    owner: u64,
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
    pub(super) fn new(store: &Arc<DecodedStore>, owner: u64) -> Self {
        let store = Arc::clone(store);
        Self { store, owner }
    }

    /// The index of a file, if it reaches so far and is better than decoding the file whole.
    pub(super) fn find(&self, file: FileIndex, end: u64) -> Option<Arc<Index>> {
        let index: Arc<Index> = self.store.indexes().find(self.key(file))?;
        (index.0.size_bytes() >= end && index.is_worth_it()).then_some(index)
    }

    /// Keeps what the decoding of a file has seen, unless more is known of it.
    pub(super) fn keep(&self, file: FileIndex, seen: Seekable) {
        if seen.size_bytes() == 0 {
            return;
        }
        let known: Option<Arc<Index>> = self.store.indexes().find(self.key(file));
        if let Some(known) = known.filter(|known| known.0.size_bytes() > seen.size_bytes()) {
            known.0.count_again_anew();
            return;
        }
        let bytes = usize::try_from(seen.kept_bytes()).unwrap_or(usize::MAX);
        let bytes = bytes.max(self.store.indexes().bytes_max() / COUNT_MAX);
        let indexes = self.store.indexes();
        indexes.put(self.key(file), Index(seen), bytes);
    }

    fn key(&self, file: FileIndex) -> CacheKey {
        CacheKey {
            owner: self.owner,
            file: file.0,
            part: [0; 3],
        }
    }
}
