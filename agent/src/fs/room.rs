//! Space for copies of the backup: how much there may be, and giving some back when it gets short.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::statistics::Statistics;
use super::transfer::Transfer;
use crate::cache::GRANULE_BYTES;
use crate::cache::node::Node;
use crate::cache::store::Store;

/// What is given back at once at least: each time costs a flush of the catalog.
const GIVE_BACK_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// How many granules are compared with the backup at once.
const PROVE_GRANULES: u64 = 128;

/// The limits of the cache's space.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Most bytes that the cache may occupy while there are copies to be given back.
    pub cache_bytes_max: Option<u64>,
}

/// Watches over the space.
#[derive(Debug)]
pub struct Room {
    store: Arc<Store>,
    limits: Limits,
    statistics: Arc<Statistics>,
    // Held by whoever gives copies back.
    giving_back: Mutex<()>,
}

impl Room {
    /// Over this cache.
    pub fn new(store: Arc<Store>, limits: Limits, statistics: Arc<Statistics>) -> Self {
        Self {
            store,
            limits,
            statistics,
            giving_back: Mutex::default(),
        }
    }

    /// Whether more may be copied from the backup: not to the last byte, so that copies do not come and go.
    pub fn has_room_for_copies(&self) -> bool {
        let within = |limit: u64| self.store.cache_bytes() < limit - limit / 16;
        self.store.has_room_for_copies() && self.limits.cache_bytes_max.is_none_or(within)
    }

    /// How many bytes are to be given back.
    pub fn shortage(&self) -> u64 {
        let over = self
            .limits
            .cache_bytes_max
            .map_or(0, |limit| self.store.cache_bytes().saturating_sub(limit));
        over.max(self.store.volume_shortage())
    }

    /// Gives copies back, those first that were not used for the longest time; says how many bytes may be free then.
    pub fn make(&self, transfer: &Transfer, bytes: u64) -> io::Result<u64> {
        let _alone = self
            .giving_back
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = bytes.max(GIVE_BACK_BYTES_MIN);
        let nodes = self.store.with_copies();
        let freed = self.give_back(&nodes, wanted)?;
        if freed >= bytes {
            return Ok(freed);
        }
        for node in &nodes {
            while let Some(granules) = self.store.unproven(node, PROVE_GRANULES) {
                if !transfer.prove(node, granules)? {
                    return Ok(freed);
                }
                let proven = std::slice::from_ref(node);
                let more = self.give_back(proven, PROVE_GRANULES * GRANULE_BYTES)?;
                if freed + more >= bytes {
                    return Ok(freed + more);
                }
            }
        }
        // What was proven beyond is given back with the rest.
        Ok(freed + self.give_back(&nodes, wanted)?)
    }

    fn give_back(&self, nodes: &[Arc<Node>], bytes: u64) -> io::Result<u64> {
        let (mut given_back, mut found) = (Vec::new(), 0);
        for node in nodes {
            if found >= bytes {
                break;
            }
            if let Some(some) = self.store.give_back(node, bytes - found)? {
                found += some.bytes();
                given_back.push(some);
            }
        }
        if given_back.is_empty() {
            return Ok(0);
        }
        let freed = self.store.free(&given_back)?;
        let counter = &self.statistics.given_back_bytes;
        counter.fetch_add(freed, Ordering::Relaxed);
        Ok(freed)
    }
}
