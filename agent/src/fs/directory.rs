//! Listings: a snapshot taken at `opendir`, in the order of cookies that are hashes of the names, so that a
//! successor of a killed worker goes on where the listing was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::Ino;
use crate::cache::names::Names;

/// One name of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed<'a> {
    /// Where a listing goes on after it.
    pub(super) cookie: u64,
    /// Name.
    pub(super) name: &'a str,
    /// What it led to when the listing was taken.
    pub(super) ino: Ino,
}

/// A directory's names as they were once.
#[derive(Debug)]
pub(super) struct Listing {
    names: Names,
    // Cookie and place of each, in the order of the listing.
    order: Vec<(u64, u32)>,
}

impl Listing {
    fn new(names: Names) -> Self {
        let cookies = (0..).zip(names.iter());
        let mut order: Vec<(u64, u32)> = cookies
            .map(|(place, (name, _))| (cookie(name), place))
            .collect();
        let name = |place: u32| names.get(place as usize);
        order.sort_unstable_by(|a, b| (a.0, name(a.1)).cmp(&(b.0, name(b.1))));
        Self { names, order }
    }

    /// The names behind an offset of the kernel's.
    pub(super) fn after(&self, offset: u64) -> impl Iterator<Item = Listed<'_>> {
        let begin = self
            .order
            .partition_point(|(cookie, _)| *cookie <= offset.max(2));
        let order = self.order.iter().skip(begin);
        order.filter_map(|&(cookie, place)| {
            let (name, ino) = self.names.get(place as usize)?;
            Some(Listed { cookie, name, ino })
        })
    }
}

/// Listings by file handle.
#[derive(Debug, Default)]
pub(super) struct Listings {
    open: Mutex<HashMap<u64, Arc<Listing>>>,
}

impl Listings {
    /// Keeps a listing under a handle.
    pub(super) fn put(&self, handle: u64, names: Names) -> Arc<Listing> {
        let listing = Arc::new(Listing::new(names));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, listing.clone());
        listing
    }

    /// The listing of a handle; `None` after a restart of the worker.
    pub(super) fn get(&self, handle: u64) -> Option<Arc<Listing>> {
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
