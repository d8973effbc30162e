//! How a mount's write cache is doing: counted by the worker, told by events, queries and metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the write cache of a session is doing: counts since its worker's start, and how things stand. Told when something has
/// changed, at most once a minute.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(default)]
pub struct CacheStatistics {
    /// Bytes that the write cache occupies.
    pub cache_bytes: u64,
    /// Of files that the backup has a part in: bytes that are only a copy of the backup and can be given back.
    pub copied_bytes: u64,
    /// Of the same files: bytes that were written.
    pub written_bytes: u64,
    /// Bytes copied in the background.
    pub hydrated_bytes: u64,
    /// Bytes of copies given back for want of space.
    pub given_back_bytes: u64,
    /// Of files in use that are not complete: how much of their part of the backup is here, in bytes.
    pub hydration_done_bytes: u64,
    /// Of the same files: the whole of their part of the backup, in bytes.
    pub hydration_total_bytes: u64,
    /// Reads that were answered from cache or memory.
    pub read_hits: u64,
    /// Reads that waited for the backup.
    pub read_misses: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Answers of the mount server.
    pub base_reads: u64,
    /// Bytes in them.
    pub base_bytes: u64,
    /// Files that were made on the mount.
    pub files_local: u64,
    /// Files of the backup that are wholly in the cache.
    pub files_complete: u64,
    /// Files of the backup that are partly in the cache.
    pub files_partial: u64,
    /// Open files that the kernel serves by itself.
    pub open_passthrough: u64,
    /// Open files that the worker serves.
    pub open_cached: u64,
    /// Of them: files that the kernel could serve once everybody has closed them.
    pub open_upgradable: u64,
    /// How long reads waited for the backup.
    pub read_miss: Latency,
    /// How long flushes took.
    pub fsync: Latency,
}

/// How long something took, in microseconds; each figure is exact within a factor of two.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(default)]
pub struct Latency {
    /// How often it happened.
    pub count: u64,
    /// Half of them took at most so long.
    pub p50_us: u64,
    /// 99 of 100 took at most so long.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}
