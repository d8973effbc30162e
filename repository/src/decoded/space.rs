//! The bytes on disk that decoded files may take, and what each has taken of them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is left of the bytes on disk.
#[derive(Debug)]
pub(super) struct SpaceLeft {
    bytes: Mutex<u64>,
    freed: Condvar,
}

impl SpaceLeft {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            freed: Condvar::new(),
        }
    }

    /// A number is never left half changed, so a lock poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes are left.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        *self.lock()
    }
}

/// What one file has taken of them; given back when it goes.
#[derive(Debug)]
pub(super) struct Space {
    left: Arc<SpaceLeft>,
    taken_bytes: u64,
}

impl Space {
    pub(super) fn new(left: &Arc<SpaceLeft>) -> Self {
        Self {
            left: Arc::clone(left),
            taken_bytes: 0,
        }
    }

    pub(super) fn take(&mut self, bytes: u64) -> bool {
        let mut left = self.left.lock();
        match left.checked_sub(bytes) {
            Some(rest) => {
                *left = rest;
                self.taken_bytes += bytes;
                true
            }
            None => false,
        }
    }

    /// Waits for somebody to give bytes back; false when it is too late.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let left = self.left.lock();
        let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
            return false;
        };
        // Short, because an entry also becomes free when its reader ends, which is not told.
        let rest = rest.min(Duration::from_millis(50));
        drop(self.left.freed.wait_timeout(left, rest));
        true
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        *self.left.lock() += self.taken_bytes;
        self.left.freed.notify_all();
    }
}
