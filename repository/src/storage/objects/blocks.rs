//! Pieces of objects in memory: a bounded number of bytes, fetched once for all who wait for them.
//!
//! An object is divided into blocks. Who needs a block that is not there claims a run of them and has it fetched with one request; who
//! needs one that is being fetched waits for it. How long a run is depends on what is there already: a lone page costs one
//! block, and a reader that goes on and on has ever more fetched before it asks.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::failure::ObjectFailure;

/// Bytes of a block, of which the last of an object may have fewer.
pub(super) const BLOCK_BYTES: u64 = 128 << 10;
/// Most blocks that are fetched with one request: 4 MiB.
const RUN_BLOCKS_MAX: u64 = 32;
/// Most blocks that are fetched at once for a reader that has not read on and on yet, however many it says it will want: 1 MiB.
const FIRST_RUN_BLOCKS_MAX: u64 = 8;

/// A read, in blocks of its object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The first block.
    pub(super) block: u64,
    /// The blocks of the read, at least one.
    pub(super) count: u64,
    /// How many blocks its reader will want from here on, if it knows.
    pub(super) left_count: Option<u64>,
    /// Blocks of the object.
    pub(super) end: u64,
}

/// The blocks to fetch now, perhaps none, given which are there or on their way.
fn plan(wanted: Wanted, is_there: &dyn Fn(u64) -> bool) -> Range<u64> {
    let Wanted { block, end, .. } = wanted;
    let before = (1..=RUN_BLOCKS_MAX)
        .take_while(|back| block.checked_sub(*back).is_some_and(is_there))
        .last()
        .unwrap_or(0);
    let told = wanted.left_count.unwrap_or(wanted.count).max(1);
    let window = before.max(told.min(FIRST_RUN_BLOCKS_MAX));
    let window = window.min(wanted.left_count.unwrap_or(window)).max(1);
    let run = |from: u64| {
        let to = (from + window).min(end);
        from..(from..to).find(|block| is_there(*block)).unwrap_or(to)
    };
    if !is_there(block) {
        return run(block);
    }
    // Somebody who goes on has the next run fetched when half of what is ahead of it has been used.
    let ahead = block + 1..(block + 1 + window / 2).min(end);
    match { ahead }.find(|block| !is_there(*block)) {
        Some(next) if before > 0 => run(next),
        _ => 0..0,
    }
}

/// Blocks of all objects.
#[derive(Debug)]
pub(super) struct BlockCache {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Held>,
    bytes: usize,
    pending_bytes: usize,
    clock: u64,
}

/// The number of an opened object, and the block in it.
type Key = (u64, u64);

#[derive(Debug)]
struct Held {
    slot: Arc<Slot>,
    bytes: usize,
    used_at: u64,
    is_pending: bool,
}

/// One block, there or awaited.
#[derive(Debug, Default)]
pub(super) struct Slot {
    content: Mutex<Content>,
    filled: Condvar,
}

#[derive(Debug, Default)]
enum Content {
    #[default]
    Pending,
    Ready(Arc<Vec<u8>>),
    Failed(ObjectFailure),
}

impl Slot {
    /// The block's bytes, when they are there. Whoever fetches them sees to it that this ends.
    pub(super) fn wait(&self) -> Result<Arc<Vec<u8>>, ObjectFailure> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*content {
                Content::Ready(bytes) => return Ok(Arc::clone(bytes)),
                Content::Failed(failure) => return Err(failure.clone()),
                Content::Pending => {
                    let waited = self.filled.wait(content);
                    content = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn set(&self, found: Content) {
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = found;
        self.filled.notify_all();
    }
}

impl BlockCache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first block that is wanted, and what the caller has to have fetched now.
    pub(super) fn claim(
        self: &Arc<Self>,
        object: u64,
        wanted: Wanted,
        bytes_of: &dyn Fn(u64) -> usize,
    ) -> (Arc<Slot>, Option<Run>) {
        let mut state = self.lock();
        state.clock += 1;
        let used_at = state.clock;
        let mut blocks = plan(wanted, &|block| state.slots.contains_key(&(object, block)));
        let is_needed = blocks.start == wanted.block && !blocks.is_empty();
        let bytes: usize = blocks.clone().map(bytes_of).sum();
        // What is on its way takes half of the room at most, but for what somebody waits for.
        if state.pending_bytes.saturating_add(bytes) > self.bytes_max / 2 {
            blocks.end = blocks.start + u64::from(is_needed);
        }
        let mut run = Run {
            cache: Arc::clone(self),
            object,
            first: blocks.start,
            left: VecDeque::new(),
            next: blocks.start,
        };
        for block in blocks {
            let (slot, bytes) = (Arc::<Slot>::default(), bytes_of(block));
            run.left.push_back((Arc::clone(&slot), bytes));
            let held = Held {
                slot,
                bytes,
                used_at,
                is_pending: true,
            };
            state.slots.insert((object, block), held);
            state.bytes = state.bytes.saturating_add(bytes);
            state.pending_bytes = state.pending_bytes.saturating_add(bytes);
        }
        let slot = match state.slots.get_mut(&(object, wanted.block)) {
            Some(held) => {
                held.used_at = used_at;
                Arc::clone(&held.slot)
            }
            // Either it was there or it has been claimed just now.
            None => Arc::new(Slot::failed(ObjectFailure::given_up(
                "a block of an object",
            ))),
        };
        let evicted = state.make_room(self.bytes_max);
        drop(state);
        drop(evicted);
        let run = (!run.left.is_empty()).then_some(run);
        (slot, run)
    }

    /// Bytes that are kept or awaited.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

impl Slot {
    fn failed(failure: ObjectFailure) -> Self {
        Self {
            content: Mutex::new(Content::Failed(failure)),
            filled: Condvar::new(),
        }
    }
}

impl State {
    fn remove(&mut self, key: &Key) -> Option<Held> {
        let held = self.slots.remove(key)?;
        self.bytes = self.bytes.saturating_sub(held.bytes);
        if held.is_pending {
            self.pending_bytes = self.pending_bytes.saturating_sub(held.bytes);
        }
        Some(held)
    }

    /// Takes out what was not used for the longest time; it is to be freed without the lock.
    fn make_room(&mut self, bytes_max: usize) -> Vec<Held> {
        let mut evicted = Vec::new();
        while self.bytes > bytes_max {
            let there = self.slots.iter().filter(|(_, held)| !held.is_pending);
            let oldest = there.min_by_key(|(_, held)| held.used_at);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            evicted.extend(self.remove(&oldest));
        }
        evicted
    }
}

/// Blocks that somebody has undertaken to fetch, in order. Those that it does not fill have failed when it is dropped.
#[derive(Debug)]
pub(super) struct Run {
    cache: Arc<BlockCache>,
    object: u64,
    first: u64,
    left: VecDeque<(Arc<Slot>, usize)>,
    next: u64,
}

impl Run {
    /// The bytes of the object to fetch.
    pub(super) fn bytes(&self) -> Range<u64> {
        let start = self.first * BLOCK_BYTES;
        let size: usize = self.left.iter().map(|(_, bytes)| bytes).sum();
        start..start + size as u64
    }

    /// Size of the next block; none when all have been filled.
    pub(super) fn next_bytes(&self) -> Option<usize> {
        self.left.front().map(|(_, bytes)| *bytes)
    }

    /// Gives the next block its bytes.
    pub(super) fn fill(&mut self, bytes: Vec<u8>) {
        let Some((slot, _)) = self.left.pop_front() else {
            return;
        };
        slot.set(Content::Ready(Arc::new(bytes)));
        let key = (self.object, self.next);
        self.next += 1;
        let mut state = self.cache.lock();
        let mut filled_bytes = 0;
        if let Some(held) = state.slots.get_mut(&key) {
            held.is_pending = false;
            filled_bytes = held.bytes;
        }
        state.pending_bytes = state.pending_bytes.saturating_sub(filled_bytes);
        let evicted = state.make_room(self.cache.bytes_max);
        drop(state);
        drop(evicted);
    }

    /// Says why the rest is not filled.
    pub(super) fn fail(&mut self, failure: &ObjectFailure) {
        while let Some((slot, _)) = self.left.pop_front() {
            self.cache.lock().remove(&(self.object, self.next));
            self.next += 1;
            slot.set(Content::Failed(failure.clone()));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.fail(&ObjectFailure::given_up("a block of an object"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 1000;

    fn wanted(block: u64) -> Wanted {
        Wanted {
            block,
            count: 1,
            left_count: None,
            end: END,
        }
    }

    #[test]
    fn a_lone_page_costs_one_block_and_who_goes_on_has_ever_more_fetched_ahead() {
        let table: [(Range<u64>, u64, Range<u64>); 8] = [
            (0..0, 500, 500..501),     // nothing there: one
            (0..0, 0, 0..1),           // at the beginning as well
            (499..500, 500, 500..501), // behind one block
            (499..501, 500, 0..0),     // there, and too little before it to fetch ahead of
            (498..501, 500, 501..503), // two before it: two ahead
            (440..501, 500, 501..533), // many before it: as many as there may be
            (440..520, 500, 0..0),     // enough ahead
            (900..1000, 999, 0..0),    // at the end
        ];
        for (there, block, fetched) in table {
            let found = plan(wanted(block), &|block| there.contains(&block));
            assert_eq!(found, fetched, "{there:?} {block}");
        }
    }

    #[test]
    fn who_says_how_much_it_wants_gets_no_more_and_at_first_a_bounded_run() {
        let told = |block, left| Wanted {
            left_count: Some(left),
            ..wanted(block)
        };
        let none = |_: u64| false;
        assert_eq!(plan(told(10, 3), &none), 10..13);
        assert_eq!(plan(told(10, 900), &none), 10..18);
        assert_eq!(plan(told(998, 3), &none), 998..1000);
        // Behind many blocks, but at the end of what is wanted.
        assert_eq!(plan(told(10, 2), &|block| block < 10), 10..12);
        assert_eq!(plan(told(10, 1), &|block| block < 11), 0..0);
        // What is there already is not fetched again.
        assert_eq!(plan(told(10, 8), &|block| block == 12), 10..12);
    }

    fn bytes_of(_: u64) -> usize {
        100
    }

    fn fetch(cache: &Arc<BlockCache>, block: u64) -> bool {
        let (slot, run) = cache.claim(1, wanted(block), &bytes_of);
        let is_fetched = run.is_some();
        if let Some(mut run) = run {
            while let Some(bytes) = run.next_bytes() {
                run.fill(vec![7; bytes]);
            }
        }
        assert_eq!(*slot.wait().unwrap(), vec![7; 100]);
        is_fetched
    }

    #[test]
    fn what_was_not_used_for_the_longest_time_makes_room() {
        let cache = Arc::new(BlockCache::new(300));
        for block in [10, 20, 30] {
            assert!(fetch(&cache, block));
        }
        assert!(!fetch(&cache, 10));
        assert!(fetch(&cache, 40));
        assert!(!fetch(&cache, 10) && !fetch(&cache, 30) && !fetch(&cache, 40));
        assert!(fetch(&cache, 20));
        assert_eq!(cache.bytes(), 300);
    }

    #[test]
    fn what_two_want_is_fetched_once_and_what_failed_is_fetched_again() {
        let cache = Arc::new(BlockCache::new(1000));
        let (first, run) = cache.claim(1, wanted(5), &bytes_of);
        let (second, none) = cache.claim(1, wanted(5), &bytes_of);
        assert!(none.is_none());
        drop(run);
        assert!(first.wait().is_err() && second.wait().is_err());
        assert_eq!(cache.bytes(), 0);
        assert!(fetch(&cache, 5));
    }

    #[test]
    fn what_is_on_its_way_is_bounded_but_for_what_is_waited_for() {
        let cache = Arc::new(BlockCache::new(400));
        let told = |block| Wanted {
            left_count: Some(8),
            ..wanted(block)
        };
        let (_, run) = cache.claim(1, told(0), &bytes_of);
        assert_eq!(run.as_ref().map(|run| run.left.len()), Some(1));
        let (_, other) = cache.claim(1, told(100), &bytes_of);
        assert_eq!(other.as_ref().map(|run| run.left.len()), Some(1));
    }
}
