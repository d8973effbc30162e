//! Counts of the worker, cheap enough for every request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::messages::Latency;

const BUCKETS: usize = 40;

/// What is counted.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Reads answered from cache or memory.
    pub read_hits: AtomicU64,
    /// Reads that failed.
    pub read_errors: AtomicU64,
    /// Bytes of copies given back.
    pub given_back_bytes: AtomicU64,
    /// Reads that waited for the backup.
    pub read_misses: Histogram,
    /// Flushes.
    pub fsyncs: Histogram,
}

impl Statistics {
    /// Counts one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long something took: bucket n counts what took less than 2^n microseconds.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    max_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            max_us: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts what began then and ends now.
    pub fn end(&self, began_at: Instant) {
        self.add(began_at.elapsed());
    }

    fn add(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bits = u64::BITS - took_us.leading_zeros();
        let bucket = usize::try_from(bits).unwrap_or(BUCKETS).min(BUCKETS - 1);
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.max_us.fetch_max(took_us, Ordering::Relaxed);
    }

    /// The figures.
    pub fn latency(&self) -> Latency {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let max_us = self.max_us.load(Ordering::Relaxed);
        let at = |percent: u64| {
            let wanted = (count * percent).div_ceil(100);
            let mut seen = 0;
            let bucket = counts.iter().position(|in_bucket| {
                seen += in_bucket;
                count > 0 && seen >= wanted
            });
            bucket.map_or(0, |bucket| (1u64 << bucket).min(max_us))
        };
        Latency {
            count,
            p50_us: at(50),
            p99_us: at(99),
            max_us,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_a_factor_of_two() {
        let histogram = Histogram::default();
        assert_eq!(histogram.latency(), Latency::default());
        for took_us in 1..=1000 {
            histogram.add(Duration::from_micros(took_us));
        }
        let latency = histogram.latency();
        assert_eq!((latency.count, latency.max_us), (1000, 1000));
        assert!((500..=1000).contains(&latency.p50_us), "{latency:?}");
        assert!((990..=1000).contains(&latency.p99_us), "{latency:?}");
    }
}
