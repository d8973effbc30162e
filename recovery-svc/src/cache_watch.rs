//! What is told of the write caches: the latest figures for who asks, metrics, and an event now and then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use common::ids::SessionId;
use common::messages::CacheStatistics;
use jiff::{SignedDuration, Timestamp};

use crate::metrics::Metrics;

/// The latest figures, by session.
#[derive(Debug, Default)]
pub(crate) struct CacheWatch {
    latest: Mutex<HashMap<SessionId, CacheStatistics>>,
}

impl CacheWatch {
    /// Takes note of what was seen.
    pub(crate) fn saw(
        &self,
        metrics: &Metrics,
        session_id: SessionId,
        statistics: &CacheStatistics,
    ) {
        metrics.cache(session_id, statistics);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(session_id, statistics.clone());
    }

    /// Nobody looks at it any more.
    pub(crate) fn forget(&self, metrics: &Metrics, session_id: SessionId) {
        metrics.forget_cache(session_id);
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.remove(&session_id);
    }

    /// The latest figures of a session that is looked at.
    pub(crate) fn latest(&self, session_id: SessionId) -> Option<CacheStatistics> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(&session_id).cloned()
    }
}

/// When the next event is told.
#[derive(Debug)]
pub(crate) struct Cadence {
    every: SignedDuration,
    told: Option<(Timestamp, CacheStatistics)>,
}

impl Cadence {
    /// At most one event in so much time.
    pub(crate) fn new(every: SignedDuration) -> Self {
        Self { every, told: None }
    }

    /// Whether these figures are to be told now: they have changed, and the last were told long enough ago.
    pub(crate) fn is_due(&mut self, now: Timestamp, statistics: &CacheStatistics) -> bool {
        let is_due = match &self.told {
            None => *statistics != CacheStatistics::default(),
            Some((at, told)) => told != statistics && now.duration_since(*at) >= self.every,
        };
        if is_due {
            self.told = Some((now, statistics.clone()));
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_when_they_have_changed_and_not_too_often() {
        let mut cadence = Cadence::new(SignedDuration::from_secs(60));
        let at = |s: i64| Timestamp::from_second(1_000_000 + s).unwrap();
        let figures = |read_hits| CacheStatistics {
            read_hits,
            ..CacheStatistics::default()
        };
        for (second, hits, expected) in [
            (0, 0, false),
            (5, 1, true),
            (10, 2, false),
            (65, 2, true),
            (600, 2, false),
            (601, 3, true),
            (602, 4, false),
        ] {
            let told = cadence.is_due(at(second), &figures(hits));
            assert_eq!(told, expected, "{second}");
        }
    }
}
