//! Gentle writing to the disk between flushes, so that the flushes of a checkpoint find little to do.
//!
//! The kernel's own hints do not reach the data files: `sync_file_range` on the mount finds nothing to write.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Ino;
use super::node::Node;
use super::store::Store;

const ROUND_EVERY: Duration = Duration::from_secs(1);
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of files that a round goes through; what of them is clean costs nothing.
const ROUND_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most files that a round looks at.
const ROUND_FILES_MAX: usize = 2_000;

/// Where a round goes on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    ino: Ino,
    offset: u64,
}

impl Store {
    /// Begins to write the next bytes that may not be on the disk yet; says where to go on.
    pub fn write_back(&self, from: Cursor) -> io::Result<Cursor> {
        let all = self.suspects.all();
        // Round in a circle, from where the last round ended.
        let inos: BTreeSet<Ino> = all
            .range(from.ino..)
            .take(ROUND_FILES_MAX)
            .copied()
            .collect();
        let mut left = ROUND_BYTES_MAX;
        for node in self.suspected(&inos) {
            let begin = if node.ino == from.ino { from.offset } else { 0 };
            if let Some(offset) = self.write_back_file(&node, begin, &mut left)? {
                return Ok(Cursor {
                    ino: node.ino,
                    offset,
                });
            }
        }
        let next = inos.last().map_or(0, |last| last + 1);
        let is_end = all.range(next..).next().is_none();
        Ok(Cursor {
            ino: if is_end { 0 } else { next },
            offset: 0,
        })
    }

    // Where to go on in it; `None` when its end is reached.
    fn write_back_file(
        &self,
        node: &Arc<Node>,
        mut offset: u64,
        left: &mut u64,
    ) -> io::Result<Option<u64>> {
        let file = {
            let mut state = node.lock();
            if state.failed {
                return Ok(None);
            }
            self.data_file(node, &mut state)?
        };
        let size = file.stat()?.size;
        while offset < size {
            let length = WINDOW_BYTES.min(size - offset);
            if *left < length {
                return Ok(Some(offset));
            }
            *left -= length;
            file.start_writeback(offset, length)?;
            offset += length;
        }
        Ok(None)
    }
}

/// The thread that writes back, for as long as this lives.
#[derive(Debug)]
pub struct Writeback {
    stopped: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Writeback {
    /// Starts the thread.
    pub fn start(store: Arc<Store>) -> io::Result<Self> {
        let stopped = Arc::new((Mutex::new(false), Condvar::new()));
        let told = stopped.clone();
        let thread = std::thread::Builder::new()
            .name("write back".to_owned())
            .spawn(move || run(&store, &told))?;
        Ok(Self {
            stopped,
            thread: Some(thread),
        })
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        let (stopped, changed) = &*self.stopped;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn run(store: &Store, (stopped, changed): &(Mutex<bool>, Condvar)) {
    let mut cursor = Cursor::default();
    loop {
        let waiting = stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(waiting, ROUND_EVERY, |stopped| !*stopped);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        cursor = match store.write_back(cursor) {
            Ok(next) => next,
            Err(error) => {
                // The flush that follows tells whom it concerns.
                tracing::debug!(%error, "write back");
                Cursor::default()
            }
        };
    }
}
