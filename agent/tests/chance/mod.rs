//! Random numbers that a seed brings back, and how many power cuts are wanted.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "helpers of tests, each of which uses some"
)]

/// A generator (xorshift); its seed must not be 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// How many power cuts: `usual`, or as many as `PGINSTANT_TEST_POWER_CUTS` says.
pub(crate) fn power_cuts(usual: u64) -> u64 {
    match std::env::var("PGINSTANT_TEST_POWER_CUTS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => usual,
    }
}

/// The seed of `SEED`, if one is to be replayed.
pub(crate) fn only_seed() -> Option<u64> {
    std::env::var("SEED").ok()?.parse().ok()
}
