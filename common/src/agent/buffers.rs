//! Buffers that are used again: to get fresh memory from the operating system for a megabyte costs more than to fill it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Smaller ones are not worth keeping, in bytes.
const KEPT_BYTES_MIN: usize = 128 * 1024;

/// Buffers that nobody uses at the moment.
#[derive(Debug)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
    kept_max: usize,
}

impl Buffers {
    /// A place for at most so many buffers that nobody uses.
    pub fn new(kept_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::default(),
            kept_max,
        })
    }

    /// A buffer of this length; what is in it is of no meaning.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        if length < KEPT_BYTES_MIN {
            return Buffer::from(vec![0; length]);
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = free.pop().unwrap_or_default();
        drop(free);
        if bytes.len() < length {
            bytes.resize(length, 0);
        }
        Buffer {
            bytes,
            length,
            home: Arc::downgrade(self),
        }
    }

    fn put_back(&self, bytes: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.kept_max {
            free.push(bytes);
        }
    }
}

/// Bytes that go back to where they were taken from.
pub struct Buffer {
    // Longer than what is used of it, perhaps.
    bytes: Vec<u8>,
    length: usize,
    home: Weak<Buffers>,
}

impl Buffer {
    /// Leaves only the first bytes.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            home.put_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            length: bytes.len(),
            bytes,
            home: Weak::new(),
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        Self::from(self.to_vec())
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_never_longer_than_asked_for() {
        let buffers = Buffers::new(1);
        let mut first = buffers.take(KEPT_BYTES_MIN * 2);
        let place = first.as_ptr();
        first.fill(7);
        first.truncate(3);
        assert_eq!(&*first, &[7, 7, 7]);
        drop(first);
        let again = buffers.take(KEPT_BYTES_MIN);
        assert_eq!((again.len(), again.as_ptr()), (KEPT_BYTES_MIN, place));
        let other = buffers.take(KEPT_BYTES_MIN);
        assert_ne!(other.as_ptr(), place);
        drop((again, other));
        assert_eq!(buffers.free.lock().unwrap().len(), 1, "no more are kept");
        assert_eq!(&*buffers.take(5), &[0; 5]);
    }
}
