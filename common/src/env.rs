//! The world's inputs that tests must own: time, randomness and ids.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use crate::ids::{CommandId, EventId};

/// Where a part gets time and ids from. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    source: Arc<dyn EnvSource>,
}

/// The implementation behind an [`Env`].
pub trait EnvSource: Send + Sync {
    /// The present instant.
    fn now(&self) -> Timestamp;
    /// A new UUID of version 7.
    fn uuid_v7(&self) -> Uuid;
    /// Uniform random bits, for jitter.
    fn random(&self) -> u64;
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}

impl Env {
    /// The real clock and the system's randomness.
    pub fn system() -> Self {
        Self::new(SystemEnv)
    }

    /// An environment of one's own, for tests.
    pub fn new(source: impl EnvSource + 'static) -> Self {
        Self {
            source: Arc::new(source),
        }
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        self.source.now()
    }

    /// A new command id.
    pub fn command_id(&self) -> CommandId {
        CommandId::new(self.source.uuid_v7()).expect("the source makes version 7")
    }

    /// A new event id.
    pub fn event_id(&self) -> EventId {
        EventId::new(self.source.uuid_v7()).expect("the source makes version 7")
    }

    /// Uniform random bits, for jitter.
    pub fn random(&self) -> u64 {
        self.source.random()
    }
}

struct SystemEnv;

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that asks the system"
)]
impl EnvSource for SystemEnv {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uuid_v7(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}
