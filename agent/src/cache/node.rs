//! One node that was touched: its attributes, what of it is in the cache, and who has it open.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::disk::DiskFile;
use super::presence::Presence;
use super::record::{Attributes, BasePart, Nanoseconds, NodeKind};
use super::{GRANULE_BYTES, Ino};

/// Somebody else holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WouldWait;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: NodeKind,
    state: Mutex<NodeState>,
    // Held while flushing: an fsync must not return while another one still flushes what it promises.
    flush: Mutex<()>,
}

/// What changes about a node.
#[derive(Debug)]
pub struct NodeState {
    /// Attributes that are not the data file's.
    pub attributes: Attributes,
    /// Number of names.
    pub links: u32,
    /// What the backup has of it; `None` when the data file is the whole truth.
    pub base: Option<BasePart>,
    /// Size, where there is a base part.
    pub size: u64,
    /// Size that a power cut leaves.
    pub size_in_catalog: u64,
    /// Smallest size since the data file was last synced: the data file is cut to it before it is used again.
    pub cut: Option<u64>,
    /// Granules that are in the data file.
    pub present: Presence,
    /// Those of them that the catalog does not have yet.
    pub uncommitted: Presence,
    /// Those that are being flushed at this moment.
    pub committing: Presence,
    /// Whether the data file may hold what is not durable.
    pub dirty: bool,
    /// Last change of a data file that is the whole truth, as of its last flush; `None` where the clock is too coarse to tell.
    pub flushed_as_of: Option<Nanoseconds>,
    /// Whether PostgreSQL throws it away at its next start, so that nothing needs it to be durable.
    pub temporary: bool,
    /// A flush failed: content is not trusted to become durable any more.
    pub failed: bool,
    /// Whether the data file's name may not be durable yet.
    pub unnamed: bool,
    /// Whether the data file was made to agree with the catalog since the mount.
    pub settled: bool,
    /// Catalog position at which everything said about this node is durable.
    pub position: u64,
    /// The data file, while in use.
    pub file: Option<Arc<dyn DiskFile>>,
    /// Descriptors.
    pub opens: Opens,
    /// Whether the kernel has served it since the mount, so that its page cache may be stale.
    pub was_passthrough: bool,
}

/// Open descriptors of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opens {
    /// Served by the worker.
    pub cached: u32,
    /// Served by the kernel.
    pub passthrough: u32,
    /// The kernel's number of the backing file.
    pub backing: Option<u32>,
}

impl Opens {
    /// Whether nobody has it open.
    pub fn is_empty(&self) -> bool {
        self.cached == 0 && self.passthrough == 0
    }
}

impl Node {
    /// A node with the given beginnings.
    pub fn new(ino: Ino, kind: NodeKind, attributes: Attributes) -> Self {
        Self {
            ino,
            kind,
            state: Mutex::new(NodeState {
                attributes,
                links: 1,
                base: None,
                size: 0,
                size_in_catalog: 0,
                cut: None,
                present: Presence::default(),
                uncommitted: Presence::default(),
                committing: Presence::default(),
                dirty: false,
                flushed_as_of: None,
                temporary: false,
                failed: false,
                unnamed: false,
                settled: false,
                position: 0,
                file: None,
                opens: Opens::default(),
                was_passthrough: false,
            }),
            flush: Mutex::default(),
        }
    }

    /// Its state, for as long as the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to flush it, for as long as the guard lives; taken before the state.
    pub fn lock_flush(&self) -> MutexGuard<'_, ()> {
        self.flush.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::lock_flush`], if nobody flushes it.
    pub fn try_lock_flush(&self) -> Result<MutexGuard<'_, ()>, WouldWait> {
        match self.flush.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(WouldWait),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }
}

impl NodeState {
    /// Number of granules that the backup has a part in.
    pub fn base_granules(&self) -> u64 {
        self.base
            .map_or(0, |base| base.length.div_ceil(GRANULE_BYTES))
    }

    /// Whether the bytes of this granule are in the data file.
    pub fn is_here(&self, granule: u64) -> bool {
        granule >= self.base_granules() || self.present.contains(granule)
    }

    /// Notes granules as written into the data file.
    pub fn mark_present(&mut self, first: u64, count: u64) {
        for granule in first..(first + count).min(self.base_granules()) {
            if self.present.insert(granule) {
                self.uncommitted.insert(granule);
            }
        }
    }

    /// Cuts or lengthens what the maps say; the data file follows.
    pub fn resize(&mut self, size: u64) {
        if let Some(base) = &mut self.base {
            base.length = base.length.min(size);
        }
        let granules = self.base_granules();
        self.present.remove_from(granules);
        self.uncommitted.remove_from(granules);
        self.committing.remove_from(granules);
        // Also where it grows: on the disk there may be a lost write's bytes behind the old end.
        self.cut = Some(self.cut.unwrap_or(self.size_in_catalog).min(size));
        self.size = size;
        self.size_in_catalog = size;
    }

    /// Granules that a power cut leaves.
    pub fn durable(&self) -> Presence {
        let mut durable = self.present.clone();
        durable.remove_all(&self.uncommitted);
        durable.remove_all(&self.committing);
        durable
    }

    /// The data file becomes the whole truth.
    pub fn forget_base(&mut self) {
        self.base = None;
        self.cut = None;
        self.present.clear();
        self.uncommitted.clear();
        self.committing.clear();
    }

    /// Whether the kernel writes to the data file without being seen.
    pub fn is_served_by_kernel(&self) -> bool {
        self.opens.passthrough > 0 && self.base.is_none()
    }

    /// Whether the whole of the backup's part is here.
    pub fn is_whole(&self) -> bool {
        self.base.is_some() && self.present.count() >= self.base_granules()
    }

    /// Whether nothing about it differs from the backup.
    pub fn is_pristine(&self, as_in_tree: &Attributes, size: u64) -> bool {
        self.opens.is_empty()
            && self.links == 1
            && self.attributes == *as_in_tree
            && self.present.is_empty()
            && self.base.is_some_and(|base| base.length == size)
            && self.size == size
            && self.cut.is_none()
            && !self.failed
            && !self.was_passthrough
    }
}
