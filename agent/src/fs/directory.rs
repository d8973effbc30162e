//! Listings: a snapshot taken at `opendir`, in the order of cookies that are hashes of the names, so that a
//! successor of a killed worker goes on where the listing was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::Ino;

/// One name of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Where a listing goes on after it.
    pub(super) cookie: u64,
    /// Name.
    pub(super) name: String,
    /// What it led to when the listing was taken.
    pub(super) ino: Ino,
}

/// Listings by file handle.
#[derive(Debug, Default)]
pub(super) struct Listings {
    open: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
}

impl Listings {
    /// Keeps a listing under a handle.
    pub(super) fn put(&self, handle: u64, names: Vec<(String, Ino)>) -> Arc<Vec<Listed>> {
        let mut listing: Vec<Listed> = names
            .into_iter()
            .map(|(name, ino)| Listed {
                cookie: cookie(&name),
                name,
                ino,
            })
            .collect();
        listing.sort_unstable_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
        let listing = Arc::new(listing);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, listing.clone());
        listing
    }

    /// The listing of a handle; `None` after a restart of the worker.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<Vec<Listed>>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle).cloned()
    }

    /// Forgets a listing.
    pub(super) fn remove(&self, handle: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&handle);
    }
}

// FNV-1a, kept positive because the kernel's offsets are signed; 0 to 2 are `.`, `..` and the beginning.
fn cookie(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 1).max(3)
}
