//! A cache in memory that is bounded in bytes: what was not used for the longest time makes room. What two ask for at the
//! same time is made once.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::RepositoryError;

/// Counted for each thing beside its own bytes, so that many small ones are bounded too.
const OVERHEAD_BYTES: usize = 4096;

/// What is kept.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// Names a thing in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    /// The opened backup.
    pub(crate) owner: u64,
    /// Its file.
    pub(crate) file: u32,
    /// The part of the file, as its reader numbers them.
    pub(crate) part: [u64; 3],
}

pub(crate) struct BoundedCache {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<CacheKey, Held>,
    bytes: usize,
    clock: u64,
}

struct Held {
    slot: Arc<Slot>,
    bytes: usize,
    used_at: u64,
}

/// Empty while what it is for is being made, by the one who holds the lock.
#[derive(Default)]
struct Slot {
    kept: Mutex<Option<Kept>>,
}

impl std::fmt::Debug for BoundedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BoundedCache({} bytes)", self.lock().bytes)
    }
}

impl BoundedCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thing of this key, made now if need be; `make` says also how many bytes it takes.
    pub(crate) fn get<T: Any + Send + Sync>(
        &self,
        key: CacheKey,
        make: impl FnOnce() -> Result<(T, usize), RepositoryError>,
    ) -> Result<Arc<T>, RepositoryError> {
        let slot = {
            let mut state = self.lock();
            state.clock += 1;
            let used_at = state.clock;
            let held = state.slots.entry(key).or_insert_with(|| Held {
                slot: Arc::default(),
                bytes: 0,
                used_at,
            });
            held.used_at = used_at;
            Arc::clone(&held.slot)
        };
        let mut kept = slot.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = &*kept
            && let Ok(found) = Arc::clone(kept).downcast::<T>()
        {
            return Ok(found);
        }
        match make() {
            Ok((made, bytes)) => {
                let made = Arc::new(made);
                *kept = Some(Arc::clone(&made) as Kept);
                drop(kept);
                self.count(key, &slot, bytes.saturating_add(OVERHEAD_BYTES));
                Ok(made)
            }
            Err(error) => {
                let mut state = self.lock();
                let is_mine = |held: &Held| Arc::ptr_eq(&held.slot, &slot);
                if state.slots.get(&key).is_some_and(is_mine) {
                    state.remove(&key);
                }
                Err(error)
            }
        }
    }

    /// The thing of this key, if it is there.
    pub(crate) fn find<T: Any + Send + Sync>(&self, key: CacheKey) -> Option<Arc<T>> {
        let slot = {
            let mut state = self.lock();
            state.clock += 1;
            let used_at = state.clock;
            let held = state.slots.get_mut(&key)?;
            held.used_at = used_at;
            Arc::clone(&held.slot)
        };
        let kept = slot.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(kept.as_ref()?).downcast().ok()
    }

    /// Puts a thing of so many bytes in the place of what was there.
    pub(crate) fn put<T: Any + Send + Sync>(&self, key: CacheKey, thing: T, bytes: usize) {
        let replaced = self.lock().remove(&key);
        drop(replaced);
        // Another may have put his there meanwhile: it is as good.
        self.get(key, || Ok((thing, bytes))).ok();
    }

    /// Most bytes of all things.
    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let forgotten = std::mem::take(&mut *state);
        drop(state);
        drop(forgotten);
    }

    fn count(&self, key: CacheKey, slot: &Arc<Slot>, bytes: usize) {
        let mut evicted = Vec::new();
        let mut state = self.lock();
        if let Some(held) = state.slots.get_mut(&key)
            && Arc::ptr_eq(&held.slot, slot)
        {
            held.bytes = bytes;
            state.bytes = state.bytes.saturating_add(bytes);
        }
        while state.bytes > self.bytes_max {
            let counted = state.slots.iter().filter(|(_, held)| held.bytes > 0);
            let oldest = counted.min_by_key(|(_, held)| held.used_at);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            evicted.extend(state.remove(&oldest));
        }
        // Freed without the lock.
        drop(state);
        drop(evicted);
    }

    /// Forgets everything of one opened backup.
    pub(crate) fn forget(&self, owner: u64) {
        let mut state = self.lock();
        let keys = state.slots.keys().filter(|key| key.owner == owner);
        let keys: Vec<_> = keys.copied().collect();
        let forgotten: Vec<_> = keys.iter().filter_map(|key| state.remove(key)).collect();
        drop(state);
        drop(forgotten);
    }
}

impl State {
    fn remove(&mut self, key: &CacheKey) -> Option<Held> {
        let held = self.slots.remove(key)?;
        self.bytes = self.bytes.saturating_sub(held.bytes);
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(owner: u64, file: u32) -> CacheKey {
        CacheKey {
            owner,
            file,
            part: [0; 3],
        }
    }

    fn put(cache: &BoundedCache, owner: u64, file: u32) -> bool {
        let mut made = false;
        let found = cache.get(key(owner, file), || {
            made = true;
            Ok((u64::from(file), 6000))
        });
        assert_eq!(*found.unwrap(), u64::from(file));
        made
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let cache = BoundedCache::new(3 * (6000 + OVERHEAD_BYTES));
        for file in 1..=3 {
            assert!(put(&cache, 1, file));
        }
        assert!(!put(&cache, 1, 1));
        assert!(put(&cache, 1, 4));
        assert!(!put(&cache, 1, 1) && !put(&cache, 1, 3) && !put(&cache, 1, 4));
        assert!(put(&cache, 1, 2));
        assert_eq!(cache.lock().bytes, 3 * (6000 + OVERHEAD_BYTES));
    }

    #[test]
    fn what_two_ask_for_at_once_is_made_once() {
        let cache = BoundedCache::new(1 << 20);
        let count = std::sync::atomic::AtomicUsize::new(0);
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let found = cache.get(key(1, 1), || {
                        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok((5_u8, 1))
                    });
                    assert_eq!(*found.unwrap(), 5);
                });
            }
        });
        assert_eq!(count.into_inner(), 1);
    }

    #[test]
    fn what_is_put_takes_the_place_of_what_was_there() {
        let cache = BoundedCache::new(1 << 20);
        assert_eq!(cache.find::<u64>(key(1, 1)), None);
        cache.put(key(1, 1), 5_u64, 100);
        cache.put(key(1, 1), 6_u64, 200);
        assert_eq!(cache.find(key(1, 1)), Some(Arc::new(6_u64)));
        assert_eq!(cache.lock().bytes, 200 + OVERHEAD_BYTES);
    }

    #[test]
    fn what_could_not_be_made_is_tried_again_and_what_is_forgotten_is_gone() {
        let cache = BoundedCache::new(1 << 20);
        let failed = cache.get::<u8>(key(1, 1), || Err(RepositoryError::corrupt("f", "r")));
        assert!(failed.is_err());
        assert!(put(&cache, 1, 1) && put(&cache, 2, 1));
        cache.forget(1);
        assert!(put(&cache, 1, 1) && !put(&cache, 2, 1));
        cache.forget(1);
        cache.forget(2);
        assert_eq!(cache.lock().bytes, 0);
    }
}
