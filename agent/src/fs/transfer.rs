//! Operations that may need the backup: fetches what is missing, answers, and keeps it afterwards.
//!
//! What must stay true: nobody who reads waits for a copy to be kept, and what is kept never replaces what was written meanwhile
//! ([`Store::fill`] looks again under the node's lock).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::blocks::{Arrived, Blocks, PIECE_BYTES_MAX, Span, Who};
use super::pool::Pool;
use super::room::Room;
use super::streams::Streams;
use crate::base::{Base, BaseError};
use crate::cache::GRANULE_BYTES;
use crate::cache::content::{Fetched, Need, Outcome};
use crate::cache::node::Node;
use crate::cache::reading::Content;
use crate::cache::store::{Store, errno::error};

/// Smallest fetch from the backup.
const UNIT_BYTES: u64 = 64 * 1024;
/// Copies that wait to be kept; more are not kept, for the next reader brings them again.
const KEEP_QUEUE: usize = 24;
const KEEP_THREADS: usize = 1;
/// So long after the last question ahead of a reader it is still taken to read on.
const RUNS_FOR: Duration = Duration::from_millis(200);

/// Moves bytes between readers and writers, the cache and the backup.
#[derive(Debug)]
pub struct Transfer {
    store: Arc<Store>,
    base: Arc<Base>,
    room: Arc<Room>,
    keeps_streams: bool,
    blocks: Arc<Blocks>,
    keeper: Arc<Pool>,
    streams: Streams,
    // Readers and writers who wait for the backup at this moment.
    foreground: AtomicUsize,
    began_at: Instant,
    // When somebody last read on and on, in milliseconds since the beginning.
    last_run_ahead_ms: AtomicU64,
}

impl Transfer {
    /// Between this cache and this backup. What somebody reads on and on is kept at once only if `keeps_streams`; else it is left to
    /// the hydrator, so that the reader does not share disk and memory with copies of what it reads.
    pub fn start(
        store: Arc<Store>,
        base: Arc<Base>,
        room: Arc<Room>,
        keeps_streams: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            store,
            base: base.clone(),
            room,
            keeps_streams,
            blocks: Arc::new(Blocks::new(base)),
            keeper: Arc::new(Pool::start_behind("keep", KEEP_THREADS, KEEP_QUEUE)?),
            streams: Streams::default(),
            foreground: AtomicUsize::new(0),
            began_at: Instant::now(),
            last_run_ahead_ms: AtomicU64::new(0),
        })
    }

    /// Since when the oldest reader waits for the backup.
    pub fn waiting_for(&self) -> Option<std::time::Duration> {
        self.blocks.waiting_for()
    }

    /// Reads from what is here or in memory, without waiting for the backup.
    pub fn read_now(&self, node: &Node, offset: u64, length: u32) -> io::Result<Outcome<Content>> {
        match self.store.read(node, offset, length, &[])? {
            Outcome::Needs(need) => match self.blocks.find(span(need)) {
                Some(pieces) => {
                    let outcome = self.store.read(node, offset, length, &pieces)?;
                    if let Outcome::Done(_) = outcome {
                        self.blocks
                            .note_served(read_span(need.file, offset, length));
                    }
                    Ok(outcome)
                }
                None => Ok(Outcome::Needs(need)),
            },
            done => Ok(done),
        }
    }

    /// Reads, waiting for the backup where needed.
    pub fn read(&self, node: &Arc<Node>, offset: u64, length: u32) -> io::Result<Content> {
        let content =
            self.carry_out(node, |pieces| self.store.read(node, offset, length, pieces))?;
        if let Some(base) = node.lock().base {
            self.blocks
                .note_served(read_span(base.file, offset, length));
        }
        Ok(content)
    }

    /// Writes, waiting for the backup where needed.
    pub fn write(&self, node: &Arc<Node>, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_room(|| {
            self.carry_out(node, |pieces| self.store.write(node, offset, bytes, pieces))
        })
    }

    /// Allocates, waiting for the backup where needed.
    pub fn allocate(
        &self,
        node: &Arc<Node>,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.with_room(|| {
            self.carry_out(node, |pieces| {
                self.store.allocate(node, mode, offset, length, pieces)
            })
        })
    }

    fn carry_out<T>(
        &self,
        node: &Arc<Node>,
        operation: impl Fn(&[Arc<Fetched>]) -> io::Result<Outcome<T>>,
    ) -> io::Result<T> {
        let mut pieces = Vec::new();
        loop {
            match operation(&pieces)? {
                Outcome::Done(done) => return Ok(done),
                Outcome::Needs(need) => pieces = self.fetch(node, need)?,
            }
        }
    }

    /// Notes a read of a file that the backup has a part in; gives back what is to be asked for ahead of the reader.
    pub fn note_read(&self, node: &Node, offset: u64, length: u32) -> Option<(u64, u64)> {
        let (start, end) = self.streams.note(node.ino, offset, length.into())?;
        let base = node.lock().base?;
        let end = end.min(base.length);
        (start < end).then_some((start, end))
    }

    /// Asks for what a reader will want next; does not wait for it.
    pub fn run_ahead(&self, node: &Arc<Node>, (start, end): (u64, u64)) {
        let Some(base) = node.lock().base else {
            return;
        };
        let arrived = match self.keeps_streams {
            true => self.keeping(node, base.file),
            false => Arc::new(|_| {}),
        };
        let now_ms = self.began_at.elapsed().as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        self.last_run_ahead_ms.store(now_ms, Ordering::Relaxed);
        let end = end.min(base.length);
        let mut from = start / PIECE_BYTES_MAX * PIECE_BYTES_MAX;
        while from < end {
            let to = (from + PIECE_BYTES_MAX).min(base.length);
            let first = from.max(start) / GRANULE_BYTES;
            let count = to.div_ceil(GRANULE_BYTES).saturating_sub(first);
            if let Some((missing, _)) = self.store.next_missing(node, first, count)
                && missing < first + count
            {
                let span = Span {
                    file: base.file,
                    start: missing * GRANULE_BYTES / UNIT_BYTES * UNIT_BYTES,
                    end: to,
                };
                self.blocks.want(span, &arrived);
            }
            from = to;
        }
    }

    // Keeps a piece when it has come, if it is not too much at once. Of WAL nothing is kept: what comes next takes its place.
    fn keeping(&self, node: &Arc<Node>, file: u32) -> Arrived {
        if self.store.tree.is_wal(node.ino) {
            return Arc::new(|_| {});
        }
        let (store, blocks, node) = (self.store.clone(), self.blocks.clone(), node.clone());
        let room = self.room.clone();
        let keeper = Arc::downgrade(&self.keeper);
        Arc::new(move |piece: Arc<Fetched>| {
            let Some(keeper) = keeper.upgrade() else {
                return;
            };
            let (store, blocks, node) = (store.clone(), blocks.clone(), node.clone());
            let room = room.clone();
            keeper.try_run(move || {
                if !room.has_room_for_copies() {
                    return;
                }
                match store.fill(&node, &piece) {
                    Ok(()) => blocks.forget(file, &piece),
                    // Readers are served from what was fetched; a full volume stops writers only.
                    Err(failure) => {
                        tracing::debug!(error = %failure, ino = node.ino, "keep fetched bytes");
                    }
                }
            });
        })
    }

    /// Fetches the whole of a file.
    pub fn complete(&self, node: &Arc<Node>) -> io::Result<()> {
        let mut next = 0;
        while self.room.has_room_for_copies() {
            match self.copy_next(node, next)? {
                Some((end, _)) => next = end,
                None => {
                    self.store.note_whole(node);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Copies what is missing next from this granule on; says up to which granule all is here then, and how many bytes came.
    pub fn copy_next(&self, node: &Arc<Node>, from: u64) -> io::Result<Option<(u64, u64)>> {
        let most = PIECE_BYTES_MAX / GRANULE_BYTES;
        let missing = self.store.next_missing(node, from, most);
        let (Some((first, count)), Some(base)) = (missing, node.lock().base) else {
            return Ok(None);
        };
        let start = first * GRANULE_BYTES;
        let wanted = Span {
            file: base.file,
            start,
            end: (start + count * GRANULE_BYTES).min(base.length).max(start),
        };
        let nothing: Arrived = Arc::new(|_| {});
        for piece in self.read_base(wanted, wanted, &nothing, Who::Hydrator)? {
            self.store.fill(node, &piece)?;
            self.blocks.forget(base.file, &piece);
        }
        Ok(Some((first + count, wanted.end - wanted.start)))
    }

    /// Compares what an earlier mount had copied with the backup; says whether the backup could be asked.
    pub fn prove(&self, node: &Arc<Node>, granules: (u64, u64)) -> io::Result<bool> {
        let Some(base) = node.lock().base.filter(|_| self.is_attached()) else {
            return Ok(false);
        };
        let start = granules.0 * GRANULE_BYTES;
        let wanted = Span {
            file: base.file,
            start,
            end: (start + granules.1 * GRANULE_BYTES)
                .min(base.length)
                .max(start),
        };
        let nothing: Arrived = Arc::new(|_| {});
        let pieces = self.read_base(wanted, wanted, &nothing, Who::Hydrator)?;
        self.store.prove(node, granules, &pieces)?;
        for piece in pieces {
            self.blocks.forget(base.file, &piece);
        }
        Ok(true)
    }

    /// Whether the backup can be asked.
    pub fn is_attached(&self) -> bool {
        self.base.status().attached
    }

    /// Whether somebody waits for the backup, or is reading on and on.
    pub fn is_waited_for(&self) -> bool {
        let last = Duration::from_millis(self.last_run_ahead_ms.load(Ordering::Relaxed));
        let runs = !last.is_zero() && self.began_at.elapsed().saturating_sub(last) < RUNS_FOR;
        runs || self.foreground.load(Ordering::Relaxed) > 0
    }

    // A full volume: gives copies back and tries again, as long as there are some.
    fn with_room<T>(&self, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match operation() {
                Err(full) if is_full(&full) => match self.room.make(self, 1) {
                    Ok(freed) if freed > 0 => {}
                    _ => return Err(full),
                },
                result => return result,
            }
        }
    }

    // Fetches what is needed and a little around it.
    fn fetch(&self, node: &Arc<Node>, need: Need) -> io::Result<Vec<Arc<Fetched>>> {
        let Some(base) = node.lock().base else {
            return Ok(Vec::new());
        };
        let around = Span {
            file: need.file,
            start: need.offset / UNIT_BYTES * UNIT_BYTES,
            end: (need.offset + need.length)
                .next_multiple_of(UNIT_BYTES)
                .min(base.length)
                .max(need.offset + need.length),
        };
        self.foreground.fetch_add(1, Ordering::Relaxed);
        let arrived = self.keeping(node, need.file);
        let result = self.read_base(span(need), around, &arrived, Who::Reader);
        self.foreground.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn read_base(
        &self,
        span: Span,
        around: Span,
        arrived: &Arrived,
        who: Who,
    ) -> io::Result<Vec<Arc<Fetched>>> {
        self.blocks.get(span, around, arrived, who).map_err(|why| {
            let (file, offset) = (span.file, span.start);
            match &why {
                BaseError::Permanent(_) => {
                    tracing::error!(error = %why, file, offset, "read the backup");
                }
                BaseError::TimedOut(_) => {
                    tracing::warn!(error = %why, file, offset, "read the backup");
                }
            }
            error(Errno::IO)
        })
    }
}

/// Whether an operation failed for want of space.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

fn read_span(file: u32, offset: u64, length: u32) -> Span {
    Span {
        file,
        start: offset,
        end: offset + u64::from(length),
    }
}

fn span(need: Need) -> Span {
    Span {
        file: need.file,
        start: need.offset,
        end: need.offset + need.length,
    }
}
