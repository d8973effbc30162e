//! What the tasks of a bus know about its connections, put together for `/readyz` and the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bus::{BusError, BusHealth};

/// One of the two connections of a bus. They are apart because a broker that blocks a publisher stops reading its
/// connection, acknowledgements included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Publishing,
    Consuming,
}

impl Purpose {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Purpose::Publishing => "publisher",
            Purpose::Consuming => "consumer",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    publishing: bool,
    consuming: bool,
    blocked: bool,
    reconnects: u64,
    last_error: Option<BusError>,
    // Consumers that are wanted: whether each is attached to its queue now.
    consumers: BTreeMap<u64, bool>,
    consumers_ever: u64,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    state: Mutex<State>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connection_up(&self, purpose: Purpose, generation: u64) {
        let mut state = self.lock();
        match purpose {
            Purpose::Publishing => state.publishing = true,
            Purpose::Consuming => state.consuming = true,
        }
        if generation > 1 {
            state.reconnects += 1;
        }
    }

    pub(super) fn connection_down(&self, purpose: Purpose, error: BusError) {
        let mut state = self.lock();
        match purpose {
            Purpose::Publishing => {
                state.publishing = false;
                state.blocked = false;
            }
            Purpose::Consuming => state.consuming = false,
        }
        state.last_error = Some(error);
    }

    pub(super) fn blocked(&self, blocked: bool) {
        self.lock().blocked = blocked;
    }

    pub(super) fn add_consumer(&self) -> u64 {
        let mut state = self.lock();
        state.consumers_ever += 1;
        let id = state.consumers_ever;
        state.consumers.insert(id, false);
        id
    }

    pub(super) fn consumer_attached(&self, id: u64) {
        self.lock().consumers.insert(id, true);
    }

    pub(super) fn consumer_detached(&self, id: u64, error: BusError) {
        let mut state = self.lock();
        state.consumers.insert(id, false);
        state.last_error = Some(error);
    }

    pub(super) fn remove_consumer(&self, id: u64) {
        self.lock().consumers.remove(&id);
    }

    pub(super) fn error(&self, error: BusError) {
        self.lock().last_error = Some(error);
    }

    pub(super) fn last_error(&self) -> Option<BusError> {
        self.lock().last_error.clone()
    }

    pub(super) fn view(&self) -> BusHealth {
        let state = self.lock();
        BusHealth {
            connected: state.publishing
                && state.consuming
                && state.consumers.values().all(|attached| *attached),
            blocked: state.blocked,
            reconnects: state.reconnects,
            last_error: state.last_error.as_ref().map(BusError::to_string),
        }
    }
}
