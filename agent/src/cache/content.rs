//! What is in files: reads and writes over the backup, truncation, allocation, flushes.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use common::agent::buffers::Buffer;
use rustix::io::Errno;

use super::disk::{DiskFile, DiskName};
use super::node::{Node, NodeState, Opens};
use super::record::{Record, RuntimeRecord};
use super::store::{Store, errno::error, now};
use super::{GRANULE_BYTES, Ino};

/// Bytes that the backup must provide before an operation can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Number of the file in the page channel.
    pub file: u32,
    /// First byte, at the beginning of a granule.
    pub offset: u64,
    /// How many; to the end of a granule or of the backup's part.
    pub length: u64,
}

/// Bytes of the backup, zeros beyond its part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// First byte, at the beginning of a granule.
    pub offset: u64,
    /// The bytes.
    pub bytes: Buffer,
}

impl Fetched {
    fn granule(&self, granule: u64, length: u64) -> Option<&[u8]> {
        let start = (granule * GRANULE_BYTES).checked_sub(self.offset)?;
        let start = usize::try_from(start).ok()?;
        self.bytes.get(start..start + usize::try_from(length).ok()?)
    }
}

/// The bytes of a granule, from whichever piece has them.
pub(crate) fn granule_in(pieces: &[Arc<Fetched>], granule: u64, length: u64) -> Option<&[u8]> {
    pieces
        .iter()
        .find_map(|piece| piece.granule(granule, length))
}

/// What came of an operation that may need the backup.
#[derive(Debug)]
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// It has not begun: fetch these and ask again.
    Needs(Need),
}

/// How many granules are copied before others get the node.
const FILL_GRANULES: u64 = 32;
/// Copies of files up to this size stay in memory, in bytes.
const SMALL_BYTES_MAX: u64 = 1024 * 1024;
const SEEK_DATA: i32 = 3;
/// Longest copy in one request, so that other requests do not wait.
const COPY_BYTES_MAX: u64 = 64 * 1024 * 1024;
// The bytes at this length: cut, or with zeros behind.
fn padded(bytes: &[u8], length: u64) -> Cow<'_, [u8]> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match bytes.get(..length) {
        Some(bytes) => Cow::Borrowed(bytes),
        None => {
            let mut bytes = bytes.to_vec();
            bytes.resize(length, 0);
            Cow::Owned(bytes)
        }
    }
}

// A write that fails midway leaves the file's size as it was.
fn or_leave(file: &dyn DiskFile, size: u64, written: io::Result<()>) -> io::Result<()> {
    written.inspect_err(|_| {
        file.set_size(size).ok();
    })
}

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

impl Store {
    /// The node's data file, made to agree with the catalog at its first use.
    pub(crate) fn data_file(
        &self,
        node: &Node,
        state: &mut NodeState,
    ) -> io::Result<Arc<dyn DiskFile>> {
        self.account.note(node.ino, state);
        if let Some(file) = &state.file {
            return Ok(file.clone());
        }
        let name = DiskName::Data(node.ino);
        let file = match self.disk.open(name, false)? {
            Some(file) => file,
            None => {
                state.unnamed = true;
                self.disk.open(name, true)?.ok_or(io::ErrorKind::NotFound)?
            }
        };
        if state.base.is_some() {
            // After a power cut the data file may be longer or shorter than what was promised.
            if !state.settled {
                if let Some(cut) = state.cut {
                    file.set_size(cut)?;
                }
                file.set_size(state.size)?;
            } else if file.stat()?.size != state.size {
                file.set_size(state.size)?;
            }
        }
        state.settled = true;
        if !state.opens.is_empty() {
            state.file = Some(file.clone());
        }
        Ok(file)
    }

    pub(super) fn need(&self, state: &NodeState, first: u64, last: u64) -> Option<Need> {
        let base = state.base?;
        let mut missing = (first..=last).filter(|granule| !state.is_here(*granule));
        let from = missing.next()?;
        let to = missing.next_back().unwrap_or(from);
        let offset = from * GRANULE_BYTES;
        Some(Need {
            file: base.file,
            offset,
            length: ((to + 1) * GRANULE_BYTES).min(base.length) - offset,
        })
    }

    /// Keeps bytes of the backup: only where nothing was written meanwhile.
    pub fn fill(&self, node: &Node, fetched: &Fetched) -> io::Result<()> {
        let first = fetched.offset / GRANULE_BYTES;
        let last = (fetched.offset + fetched.bytes.len() as u64).div_ceil(GRANULE_BYTES);
        let mut from = first;
        while from < last {
            // In parts, so that nobody waits long for the node.
            let to = (from + FILL_GRANULES).min(last);
            self.fill_part(node, fetched, from..to)?;
            from = to;
        }
        Ok(())
    }

    fn fill_part(&self, node: &Node, fetched: &Fetched, part: Range<u64>) -> io::Result<()> {
        let mut state = node.lock();
        let Some(base) = state.base.filter(|_| !state.is_gone()) else {
            return Ok(());
        };
        let end = (fetched.offset + fetched.bytes.len() as u64).min(base.length);
        let end = end.min(part.end * GRANULE_BYTES);
        let mut granule = part.start;
        while granule * GRANULE_BYTES < end {
            let from = granule;
            while granule * GRANULE_BYTES < end && !state.is_here(granule) {
                granule += 1;
            }
            if granule == from {
                granule += 1;
                continue;
            }
            let run_end = (granule * GRANULE_BYTES).min(base.length);
            // A part of a granule is no granule.
            if run_end > end {
                break;
            }
            let Some(bytes) = fetched.granule(from, run_end - from * GRANULE_BYTES) else {
                break;
            };
            // Whole granules: behind the backup's part a lost write may have left something on the disk.
            let padded_end = (granule * GRANULE_BYTES).min(state.size);
            let bytes = padded(bytes, padded_end - from * GRANULE_BYTES);
            let file = self.data_file(node, &mut state)?;
            let at = from * GRANULE_BYTES;
            // A small file is opened again by every backend, and the kernel serves it then.
            let written = match base.length <= SMALL_BYTES_MAX {
                true => file.write_at(&bytes, at),
                false => file.write_copy_at(&bytes, at),
            };
            or_leave(file.as_ref(), state.size, written)?;
            self.note_present(node.ino, &mut state, from..granule, 0)?;
            self.account.grow(node.ino, bytes.len() as u64);
        }
        Ok(())
    }

    fn note_present(
        &self,
        ino: Ino,
        state: &mut NodeState,
        granules: Range<u64>,
        modified_at: i64,
    ) -> io::Result<()> {
        self.runtime.append(&RuntimeRecord::Present {
            ino,
            first: granules.start,
            count: granules.end - granules.start,
            size: state.size,
            modified_at,
        })?;
        let count = granules.end - granules.start;
        match modified_at {
            0 => state.mark_copied(granules.start, count),
            _ => state.mark_written(granules.start, count),
        }
        Ok(())
    }

    /// Writes; `pieces` complete granules that are written in part.
    pub fn write(
        &self,
        node: &Node,
        offset: u64,
        bytes: &[u8],
        pieces: &[Arc<Fetched>],
    ) -> io::Result<Outcome<()>> {
        if bytes.is_empty() {
            return Ok(Outcome::Done(()));
        }
        let mut state = node.lock();
        let end = offset + bytes.len() as u64;
        if state.base.is_none() {
            let file = self.data_file(node, &mut state)?;
            let size = file.stat()?.size;
            or_leave(file.as_ref(), size, file.write_at(bytes, offset))?;
            self.mark_dirty(node.ino, &mut state);
            return Ok(Outcome::Done(()));
        }
        let mut image = Cow::Borrowed(bytes);
        let mut image_offset = offset;
        for edge in self.edges(&state, offset, end) {
            let base_length = state.base.map_or(0, |base| base.length);
            let at = edge * GRANULE_BYTES;
            let length = GRANULE_BYTES.min(base_length - at);
            let Some(content) = granule_in(pieces, edge, length) else {
                let edges = self.edges(&state, offset, end);
                let (first, last) = (edges.first().copied(), edges.last().copied());
                let need = self.need(&state, first.unwrap_or(edge), last.unwrap_or(edge));
                return need.map(Outcome::Needs).ok_or_else(|| error(Errno::IO));
            };
            let image = image.to_mut();
            let length = GRANULE_BYTES.min(state.size - at);
            let content = padded(content, length);
            if at < offset && edge == offset / GRANULE_BYTES {
                let mut joined = padded(&content, offset - at).into_owned();
                joined.extend_from_slice(image);
                *image = joined;
                image_offset = at;
            }
            if end < at + length {
                let tail = usize::try_from(end - at).map_err(io::Error::other)?;
                image.extend_from_slice(content.get(tail..).unwrap_or_default());
            }
        }
        let file = self.data_file(node, &mut state)?;
        self.note_rewriting(node, &mut state, offset, end)?;
        let written = file.write_at(&image, image_offset);
        or_leave(file.as_ref(), state.size, written)?;
        state.size = state.size.max(end);
        state.attributes.modified_at = now();
        state.attributes.changed_at = state.attributes.modified_at;
        self.mark_dirty(node.ino, &mut state);
        let granules = offset / GRANULE_BYTES..end.div_ceil(GRANULE_BYTES);
        let modified_at = state.attributes.modified_at;
        self.note_present(node.ino, &mut state, granules, modified_at)?;
        Ok(Outcome::Done(()))
    }

    // Granules of the backup's part that the range covers only in part and that are not here.
    fn edges(&self, state: &NodeState, offset: u64, end: u64) -> Vec<u64> {
        if state.base.is_none() {
            return Vec::new();
        }
        let (first, last) = (offset / GRANULE_BYTES, (end - 1) / GRANULE_BYTES);
        let mut edges = Vec::new();
        let partly = |granule: u64| {
            let from = granule * GRANULE_BYTES;
            let to = (from + GRANULE_BYTES).min(state.size);
            !state.is_here(granule) && (offset > from || end < to)
        };
        if partly(first) {
            edges.push(first);
        }
        if last != first && partly(last) {
            edges.push(last);
        }
        edges
    }

    /// Cuts or lengthens a file.
    pub fn truncate(&self, node: &Node, size: u64) -> io::Result<()> {
        let mut state = node.lock();
        if state.base.is_none() {
            let file = self.data_file(node, &mut state)?;
            file.set_size(size)?;
            self.mark_dirty(node.ino, &mut state);
            return Ok(());
        }
        let file = self.data_file(node, &mut state)?;
        if size == state.size {
            state.attributes.modified_at = now();
            state.attributes.changed_at = state.attributes.modified_at;
            return Ok(());
        }
        // The map first: a granule that comes back after a cut would be the backup's old content.
        let record = Record::Truncate {
            ino: node.ino,
            size,
        };
        let position = self.append(&[record])?;
        self.catalog.sync(position)?;
        state.resize(size);
        state.position = position;
        self.mark_dirty(node.ino, &mut state);
        state.attributes.modified_at = now();
        state.attributes.changed_at = state.attributes.modified_at;
        file.set_size(size)?;
        self.runtime.append(&RuntimeRecord::Cut {
            ino: node.ino,
            size,
        })
    }

    /// `fallocate`.
    pub fn allocate(
        &self,
        node: &Node,
        mode: u32,
        offset: u64,
        length: u64,
        pieces: &[Arc<Fetched>],
    ) -> io::Result<Outcome<()>> {
        let known = [
            0,
            KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
        ];
        if !known.contains(&mode) {
            return Err(error(Errno::OPNOTSUPP));
        }
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| error(Errno::FBIG))?;
        let mut state = node.lock();
        if state.base.is_none() {
            let file = self.data_file(node, &mut state)?;
            file.allocate(mode, offset, length)?;
            self.mark_dirty(node.ino, &mut state);
            return Ok(Outcome::Done(()));
        }
        let clears = mode & (PUNCH_HOLE | ZERO_RANGE) != 0;
        if clears && let Some(&edge) = self.edges(&state, offset, end).first() {
            let last = self.edges(&state, offset, end).last().copied();
            if !pieces.is_empty() {
                drop(state);
                for piece in pieces {
                    self.fill(node, piece)?;
                }
                return self.allocate(node, mode, offset, length, &[]);
            }
            let need = self.need(&state, edge, last.unwrap_or(edge));
            return need.map(Outcome::Needs).ok_or_else(|| error(Errno::IO));
        }
        let file = self.data_file(node, &mut state)?;
        if clears {
            self.note_rewriting(node, &mut state, offset, end)?;
            file.allocate(mode, offset, length)?;
        } else {
            // Below the backup's part space is found when granules come; it must not be touched here.
            let from = offset.max(state.base_granules() * GRANULE_BYTES);
            if end > from {
                file.allocate(mode, from, end - from)?;
            }
        }
        if mode & KEEP_SIZE == 0 && end > state.size {
            state.size = end;
            file.set_size(end)?;
        }
        self.mark_dirty(node.ino, &mut state);
        state.attributes.modified_at = now();
        state.attributes.changed_at = state.attributes.modified_at;
        let modified_at = state.attributes.modified_at;
        let granules = match clears {
            true => offset / GRANULE_BYTES..end.div_ceil(GRANULE_BYTES),
            false => 0..0,
        };
        self.note_present(node.ino, &mut state, granules, modified_at)?;
        Ok(Outcome::Done(()))
    }

    /// `lseek` to data or a hole.
    pub fn seek(&self, node: &Node, offset: i64, whence: i32) -> io::Result<i64> {
        let from = u64::try_from(offset).map_err(|_| error(Errno::NXIO))?;
        let mut state = node.lock();
        if state.base.is_none() {
            let file = self.data_file(node, &mut state)?;
            let descriptor = file.descriptor().ok_or_else(|| error(Errno::OPNOTSUPP))?;
            let target = match whence {
                SEEK_DATA => rustix::fs::SeekFrom::Data(from),
                _ => rustix::fs::SeekFrom::Hole(from),
            };
            let found = rustix::fs::seek(descriptor, target)?;
            return i64::try_from(found).map_err(io::Error::other);
        }
        // What the backup has of holes is not known: all is data.
        if from >= state.size {
            return Err(error(Errno::NXIO));
        }
        let found = if whence == SEEK_DATA {
            from
        } else {
            state.size
        };
        i64::try_from(found).map_err(io::Error::other)
    }

    /// Copies within the cache; refuses where the backup has a part, so that the kernel copies by reading and writing.
    pub fn copy_range(
        &self,
        (from, mut from_offset): (&Node, u64),
        (to, mut to_offset): (&Node, u64),
        length: u64,
    ) -> io::Result<usize> {
        let open = |node: &Node| {
            let mut state = node.lock();
            if state.base.is_some() {
                return Err(error(Errno::OPNOTSUPP));
            }
            self.data_file(node, &mut state)
        };
        let (source, target) = (open(from)?, open(to)?);
        let both = source.descriptor().zip(target.descriptor());
        let (source, target) = both.ok_or_else(|| error(Errno::OPNOTSUPP))?;
        let length = usize::try_from(length.min(COPY_BYTES_MAX)).map_err(io::Error::other)?;
        let copied = rustix::fs::copy_file_range(
            source,
            Some(&mut from_offset),
            target,
            Some(&mut to_offset),
            length,
        );
        // Behind it: a flush that began before has not seen it.
        self.mark_dirty(to.ino, &mut to.lock());
        Ok(copied?)
    }

    /// Notes a file of which everything is here: the next sweep makes it complete.
    pub fn note_whole(&self, node: &Arc<Node>) {
        if node.lock().is_whole() {
            let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.push(node.clone());
        }
    }

    /// Makes data files of which everything is here the whole truth: flushes them all, then tells the catalog once.
    pub fn complete_whole(&self) -> io::Result<()> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = std::mem::take(&mut *whole);
        drop(whole);
        if nodes.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for node in &nodes {
            // One that cannot be flushed does not keep the others.
            if let Err(failure) = self.complete(node) {
                result = Err(failure);
            }
        }
        self.sync_names()?;
        result
    }

    fn complete(&self, node: &Node) -> io::Result<()> {
        let _flush = node.lock_flush();
        {
            let mut state = node.lock();
            if state.is_gone() {
                return Ok(());
            }
            // What was only copied from the backup counts too now.
            if state.is_whole() {
                self.mark_dirty(node.ino, &mut state);
            }
        }
        self.flush(node)?;
        let mut state = node.lock();
        // What was written meanwhile changed granules that were durable already: it may be lost like any unflushed write.
        let is_settled = state.uncommitted.is_empty() && state.cut.is_none();
        if !is_settled || !state.is_whole() || state.failed {
            return Ok(());
        }
        let file = self.data_file(node, &mut state)?;
        let attributes = state.attributes;
        file.set_times(attributes.accessed_at, attributes.modified_at)?;
        state.position = self.append(&[Record::Complete { ino: node.ino }])?;
        state.forget_base();
        Ok(())
    }

    /// Whether the kernel may serve the file by itself: what it is is durable, and nobody reads it through the worker.
    pub fn may_pass_through(&self, state: &NodeState) -> bool {
        state.base.is_none()
            && state.opens.cached == 0
            && !state.failed
            && (state.links > 0 || state.opens.passthrough > 0)
    }

    /// Notes one more descriptor.
    pub fn opened(
        &self,
        node: &Node,
        state: &mut NodeState,
        backing: Option<u32>,
        unique: u64,
    ) -> io::Result<()> {
        let mut opens = state.opens;
        match backing {
            Some(_) => {
                opens.passthrough += 1;
                opens.backing = backing;
                state.was_passthrough = true;
                self.mark_dirty(node.ino, state);
            }
            None => opens.cached += 1,
        }
        self.set_opens(node.ino, state, opens, unique)
    }

    /// Notes one descriptor less; returns the backing file that is to be given back.
    pub fn released(
        &self,
        node: &Arc<Node>,
        passthrough: bool,
        unique: u64,
    ) -> io::Result<Option<u32>> {
        let mut state = node.lock();
        let mut opens = state.opens;
        let mut backing = None;
        if passthrough {
            // The kernel may have written since the last flush.
            self.mark_dirty(node.ino, &mut state);
            opens.passthrough = opens.passthrough.saturating_sub(1);
            if opens.passthrough == 0 {
                backing = opens.backing.take();
            }
        } else {
            opens.cached = opens.cached.saturating_sub(1);
        }
        self.set_opens(node.ino, &mut state, opens, unique)?;
        let last = opens == Opens::default();
        drop(state);
        if last {
            self.closed(node);
        }
        Ok(backing)
    }
}
