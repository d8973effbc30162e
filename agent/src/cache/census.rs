//! How many files there are of each class, and how much of them is a copy of the backup.

use common::messages::CacheStatistics;

use super::namespace::FIRST_OWN_INO;
use super::record::NodeKind;
use super::store::Store;
use super::{GRANULE_BYTES, Ino};

impl Store {
    /// Looks at every touched file; `pinned` is one that the worker serves whatever its class.
    pub fn census(&self, pinned: Option<Ino>) -> CacheStatistics {
        let mut found = CacheStatistics {
            cache_bytes: self.cache_bytes(),
            ..CacheStatistics::default()
        };
        for node in self.all_touched() {
            if node.kind != NodeKind::File {
                continue;
            }
            let state = node.lock();
            if state.links == 0 && state.opens.is_empty() {
                continue;
            }
            found.open_passthrough += u64::from(state.opens.passthrough > 0);
            found.open_cached += u64::from(state.opens.cached > 0);
            let Some(base) = state.base else {
                match node.ino >= FIRST_OWN_INO {
                    true => found.files_local += 1,
                    false => found.files_complete += 1,
                }
                let upgradable = state.opens.cached > 0 && pinned != Some(node.ino);
                found.open_upgradable += u64::from(upgradable);
                continue;
            };
            if state.present.is_empty() {
                continue;
            }
            found.files_partial += 1;
            let copied = state.copied.count() + state.perhaps_copied.count();
            let here = state.present.count() * GRANULE_BYTES;
            found.copied_bytes += copied * GRANULE_BYTES;
            found.written_bytes += state.present.count().saturating_sub(copied) * GRANULE_BYTES;
            found.hydration_done_bytes += here.min(base.length);
            found.hydration_total_bytes += base.length;
        }
        found
    }
}
