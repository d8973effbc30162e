//! Open files, a bounded number of them: the one not used for the longest time makes room.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::RepositoryError;
use crate::storage::StorageFile;

/// Open files by what their reader numbers them with.
#[derive(Debug)]
pub(crate) struct Handles<K> {
    open: Mutex<Open<K>>,
    count_max: AtomicUsize,
}

#[derive(Debug)]
struct Open<K> {
    files: HashMap<K, (u64, Arc<StorageFile>)>,
    /// What the files were that were opened once, where that shows: one that is opened again must be the same.
    identities: HashMap<K, u64>,
    clock: u64,
}

impl<K: Copy + Eq + Hash> Handles<K> {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            open: Mutex::new(Open {
                files: HashMap::new(),
                identities: HashMap::new(),
                clock: 0,
            }),
            count_max: AtomicUsize::new(count_max.max(1)),
        }
    }

    /// Keeps so many open from now on; what is open already is closed as it makes room.
    pub(crate) fn keep_at_most(&self, count_max: usize) {
        self.count_max.store(count_max.max(1), Ordering::Relaxed);
    }

    /// The open file of this number, opened now if need be; `path` is what is read, for errors.
    pub(crate) fn get(
        &self,
        number: K,
        path: &str,
        open: impl FnOnce() -> Result<StorageFile, RepositoryError>,
    ) -> Result<Arc<StorageFile>, RepositoryError> {
        // What is under the lock cannot be left half done, so one poisoned elsewhere is as good.
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut held = lock();
            held.clock += 1;
            let clock = held.clock;
            if let Some((used_at, file)) = held.files.get_mut(&number) {
                *used_at = clock;
                return Ok(Arc::clone(file));
            }
        }
        let file = Arc::new(open()?);
        let identity = file.identity().map(hash);
        let mut held = lock();
        if let Some(identity) = identity
            && *held.identities.entry(number).or_insert(identity) != identity
        {
            return Err(RepositoryError::unreadable(path, "open", file.changed()));
        }
        let count_max = self.count_max.load(Ordering::Relaxed);
        while held.files.len() >= count_max {
            let oldest = held.files.iter().min_by_key(|(_, (used_at, _))| *used_at);
            let Some(oldest) = oldest.map(|(number, _)| *number) else {
                break;
            };
            held.files.remove(&oldest);
        }
        let clock = held.clock;
        held.files.insert(number, (clock, Arc::clone(&file)));
        Ok(file)
    }
}

fn hash(identity: String) -> u64 {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    hasher.finish()
}
