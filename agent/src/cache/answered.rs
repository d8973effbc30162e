//! Requests that were carried out, by the kernel's number: what is not idempotent must not happen twice when
//! the kernel sends a request again to a killed worker's successor.

use std::collections::{HashMap, VecDeque};

use super::Ino;

/// Most requests that are remembered: more than the kernel has in flight.
const ANSWERED_MAX: usize = 4096;

/// The latest requests and the nodes that they made, 0 for none.
#[derive(Debug, Default)]
pub struct Answered {
    nodes: HashMap<u64, Ino>,
    order: VecDeque<u64>,
}

impl Answered {
    /// Remembers a request; number 0 is none.
    pub fn remember(&mut self, unique: u64, ino: Ino) {
        if unique == 0 {
            return;
        }
        if self.order.len() >= ANSWERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.nodes.remove(&oldest);
        }
        if self.nodes.insert(unique, ino).is_none() {
            self.order.push_back(unique);
        }
    }

    /// The node that a request made.
    pub fn get(&self, unique: u64) -> Option<Ino> {
        self.nodes.get(&unique).copied()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// All, oldest first.
    pub fn all(&self) -> impl Iterator<Item = (u64, Ino)> {
        self.order
            .iter()
            .filter_map(|unique| Some((*unique, self.get(*unique)?)))
    }
}
