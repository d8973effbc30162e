//! The file system's parts, and what its requests have in common.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry, Request,
};

use common::agent::hand::Hydrate;

use super::attributes::file_attributes;
use super::directory::{Listing, Listings};
use super::hydrator::Hydrator;
use super::pool::Pool;
use super::read_ahead::read_ahead;
use super::statistics::Statistics;
use super::transfer::Transfer;
use crate::cache::Ino;
use crate::cache::namespace::Owner;
use crate::cache::node::Node;
use crate::cache::record::NodeKind;
use crate::cache::store::{Facts, NewNode, Store};

/// Attributes and names change through this process only, so that the kernel may remember them.
pub(super) const TTL: Duration = Duration::from_secs(3600);
/// Largest write that the kernel sends.
pub(crate) const WRITE_BYTES_MAX: u32 = 1024 * 1024;
/// Set in the number of a request that is sent again.
const RESENT: u64 = 1 << 63;
/// Set in the number under which the opening of a file is remembered.
const OPEN_KEY: u64 = 1 << 62;
/// Set in the handle of a file that the kernel serves.
pub(super) const PASSTHROUGH_HANDLE: u64 = 1 << 62;
pub(super) const GENERATION: Generation = Generation(0);
const NAME_BYTES_MAX: usize = 255;
const O_DSYNC: i32 = 0o10000;
pub(super) const SEEK_DATA: i32 = 3;
pub(super) const SEEK_HOLE: i32 = 4;

/// Whether the kernel serves files by itself; the reason when not.
pub type Passthrough = Result<(), String>;

/// What the file system is made of.
#[derive(Debug)]
pub struct MountFsParts {
    /// The cache.
    pub store: Arc<Store>,
    /// Between cache and backup.
    pub transfer: Arc<Transfer>,
    /// What is counted.
    pub statistics: Arc<Statistics>,
    /// Copies in the background what is in use.
    pub hydrator: Arc<Hydrator>,
    /// The FUSE device, for giving back backing files.
    pub device: OwnedFd,
    /// Who owns the files.
    pub owner: Owner,
    /// Whether passthrough may be used.
    pub passthrough: bool,
    /// Files up to this size are fetched whole at their first use.
    pub small_file_bytes: u64,
    /// Directory of the cache, for the volume's numbers.
    pub cache_directory: OwnedFd,
    /// Where the outcome of passthrough's negotiation is put.
    pub passthrough_outcome: Arc<Mutex<Passthrough>>,
}

/// The file system.
#[derive(Debug)]
pub struct MountFs {
    pub(super) parts: MountFsParts,
    pub(super) pool: Pool,
    pub(super) background: Pool,
    pub(super) flushes: Pool,
    pub(super) listings: Listings,
    pub(super) next_handle: AtomicU64,
}

const POOL_THREADS: usize = 16;
const POOL_QUEUE: usize = 4096;
const FLUSH_THREADS: usize = 8;
const BACKGROUND_THREADS: usize = 2;
const BACKGROUND_QUEUE: usize = 1024;

/// What a caller is answered. PostgreSQL tells its users no more than the number, so what we do not expect is in our log.
pub(super) fn errno(error: io::Error) -> Errno {
    let said = error.to_string();
    let errno = Errno::from(error);
    if errno.code() == Errno::EIO.code() {
        tracing::error!(error = said, "a request fails with an I/O error");
    }
    errno
}

pub(super) fn text(name: &OsStr) -> Result<&str, Errno> {
    // The kernel lets longer ones through, and to look for them is an error, not a name that does not exist.
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    name.to_str().ok_or(Errno::EILSEQ)
}

pub(super) fn unique(request: &Request) -> u64 {
    u64::from(request.unique()) & !RESENT
}

pub(super) fn is_resent(request: &Request) -> bool {
    u64::from(request.unique()) & RESENT != 0
}

impl MountFs {
    /// The file system over a cache.
    pub fn new(parts: MountFsParts) -> io::Result<Self> {
        Ok(Self {
            parts,
            pool: Pool::start("pages", POOL_THREADS, POOL_QUEUE)?,
            background: Pool::start("complete", BACKGROUND_THREADS, BACKGROUND_QUEUE)?,
            flushes: Pool::start("flush", FLUSH_THREADS, POOL_QUEUE)?,
            listings: Listings::default(),
            next_handle: AtomicU64::new(1),
        })
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.parts.store
    }

    // Root acts for the session's user: what it makes must be usable by PostgreSQL.
    pub(super) fn maker(&self, request: &Request) -> Owner {
        match request.uid() {
            0 => self.parts.owner,
            user => Owner {
                user,
                group: request.gid(),
            },
        }
    }

    // The answer of a request that was carried out before the worker was killed.
    pub(super) fn carried_out(&self, request: &Request) -> Option<Ino> {
        if !is_resent(request) {
            return None;
        }
        self.store().answered(unique(request))
    }

    pub(super) fn make(
        &self,
        request: &Request,
        place: (INodeNo, &OsStr),
        mode: u32,
        kind: NodeKind,
    ) -> Result<Facts, Errno> {
        if let Some(ino) = self.carried_out(request) {
            return self.store().facts(ino).map_err(errno);
        }
        let new = NewNode {
            parent: place.0.0,
            name: text(place.1)?,
            mode: u16::try_from(mode & 0o7777).unwrap_or(0o600),
            owner: self.maker(request),
            unique: unique(request),
        };
        self.store().create(new, kind).map_err(errno)
    }

    pub(super) fn entry(reply: ReplyEntry, result: Result<Facts, Errno>) {
        match result {
            Ok(facts) => reply.entry(&TTL, &file_attributes(&facts), GENERATION),
            Err(error) => reply.error(error),
        }
    }

    pub(super) fn empty(reply: ReplyEmpty, result: io::Result<()>) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(super) fn is_small(&self, node: &Node) -> bool {
        let state = node.lock();
        let is_wal = self.parts.store.tree.is_wal(node.ino);
        state.size <= self.parts.small_file_bytes && state.base.is_some() && !is_wal
    }

    // Fetches a small file whole, beside the request that showed that it is in use.
    pub(super) fn complete_small(&self, node: &Arc<Node>) {
        if self.parts.hydrator.policy() == Hydrate::None || !self.is_small(node) {
            return;
        }
        let (node, transfer) = (node.clone(), self.parts.transfer.clone());
        self.background.try_run(move || {
            if let Err(error) = transfer.complete(&node) {
                tracing::debug!(%error, ino = node.ino, "complete a small file");
            }
        });
    }

    fn read_ahead(&self, file: Option<BorrowedFd<'_>>) {
        if let Some(Ok(file)) = file.map(|fd| fd.try_clone_to_owned()) {
            self.background.try_run(move || read_ahead(file));
        }
    }

    pub(super) fn opened_flags(was_passthrough: bool) -> FopenFlags {
        let keep = match was_passthrough {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_KEEP_CACHE,
        };
        keep | FopenFlags::FOPEN_NOFLUSH
    }

    // As negotiated with the kernel and probed with a file of the cache.
    fn may_pass(&self) -> bool {
        let outcome = self.parts.passthrough_outcome.lock();
        outcome.unwrap_or_else(PoisonError::into_inner).is_ok()
    }

    // Decides the class of an open and notes it. The closures speak to the kernel's reply object.
    pub(super) fn decide(
        &self,
        request: &Request,
        node: &Node,
        flags: i32,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Decision, Errno> {
        if flags & O_DSYNC != 0 && !node.is_directory() {
            // The kernel flushes the data by itself, but not the name under which it will be found.
            let position = node.lock().position;
            self.store().catalog.sync(position).map_err(errno)?;
        }
        // A resent create may have been carried out as far as the making, but not the opening: its own key.
        let open_key = unique(request) | OPEN_KEY;
        let known = is_resent(request) && self.store().is_answered_open(open_key);
        let may_pass = self.may_pass() && !self.is_control_file(node.ino);
        let mut state = node.lock();
        if may_pass && self.store().may_pass_through(&state) {
            let position = state.position;
            let is_own = node.ino >= crate::cache::namespace::FIRST_OWN_INO;
            if is_own || self.store().catalog.is_synced(position) {
                let backing = match state.opens.backing {
                    Some(id) => Some(id),
                    None => {
                        let file = self.store().data_file(node, &mut state).map_err(errno)?;
                        let descriptor = file.descriptor();
                        let id = descriptor.and_then(|fd| register(fd).ok());
                        if id.is_some() && !is_own {
                            self.read_ahead(descriptor);
                        }
                        id.map(BackingId::into_raw)
                    }
                };
                if let Some(id) = backing {
                    if !known {
                        self.store()
                            .opened(node, &mut state, Some(id), open_key)
                            .map_err(errno)?;
                    }
                    return Ok(Decision::Passthrough(id));
                }
            }
            if state.opens.passthrough > 0 {
                tracing::error!(
                    ino = node.ino,
                    "an open fails: its file is served by the kernel, which takes no other way"
                );
                return Err(Errno::EIO);
            }
        }
        if !known {
            self.store()
                .opened(node, &mut state, None, open_key)
                .map_err(errno)?;
        }
        Ok(Decision::Cached {
            was_passthrough: state.was_passthrough,
        })
    }

    pub(super) fn listing(&self, ino: INodeNo, fh: FileHandle) -> Arc<Listing> {
        match self.listings.get(fh.0) {
            Some(listing) => listing,
            None => self.listings.put(fh.0, self.store().list(ino.0)),
        }
    }
}

pub(super) enum Decision {
    Passthrough(u32),
    Cached { was_passthrough: bool },
}
