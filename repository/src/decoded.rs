//! Files of a repository that can only be read from their beginning (compressed, encrypted) are decoded once, in one pass,
//! into a bounded place, and read from there at random.
//!
//! Whoever needs bytes that are not decoded yet decodes up to them; there is no thread of its own, and nobody waits for
//! bytes behind his own. Decoded bytes lie in files without a name, so that nothing is left behind however the process ends.
//! Who reads a file forwards is served from memory, while it is decoded ([`pass::Pass`]).

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::RepositoryError;
use crate::beneath::read_full_at;
use crate::bounded_cache::BoundedCache;

mod pass;
mod passes;
mod pieces;
mod shared;
mod space;
mod spill;
mod window;

pub(crate) use shared::{Identity, SharedBackups};
pub(crate) use spill::{Spill, SpillPlace};

use passes::Passes;
use space::{Space, SpaceLeft};

/// Where decoded bytes may lie, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedLimits {
    /// Directory for files without a name: on a disk, not in memory.
    pub directory: PathBuf,
    /// Most bytes there.
    pub disk_bytes_max: u64,
    /// Most bytes in memory: small files, decoded pieces, maps, and what is read forwards.
    pub memory_bytes_max: usize,
}

impl Default for DecodedLimits {
    fn default() -> Self {
        Self {
            directory: "/var/tmp".into(),
            disk_bytes_max: 16 << 30,
            memory_bytes_max: 256 << 20,
        }
    }
}

/// The place for decoded bytes, shared by all that is opened.
#[derive(Debug)]
pub struct DecodedStore {
    limits: DecodedLimits,
    memory: BoundedCache,
    /// Where decoding can begin in files that had to make room, counted by what is kept on disk for it.
    indexes: BoundedCache,
    entries: Mutex<Entries>,
    passes: Passes,
    space: Arc<SpaceLeft>,
    next_owner: AtomicU64,
    decoded_bytes: AtomicU64,
    /// Whether files have had to make room.
    has_evicted: AtomicBool,
    shared: SharedBackups,
}

/// A file in decoding, from its beginning on.
pub(crate) trait ByteSource: Send {
    /// The next bytes; an error ends it. The read that completes the file has checked it.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError>;
}

/// What a file in decoding is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// To be kept on disk.
    Kept,
    /// To be read forwards, once.
    Passing,
}

/// Begins a file.
pub(crate) type Open<'a> = &'a dyn Fn(Decoded) -> Result<Box<dyn ByteSource>, RepositoryError>;

/// Names a decoded file and says where in it to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodedRead<'a> {
    /// The opened backup.
    pub(crate) owner: u64,
    /// Its file.
    pub(crate) file: u32,
    /// The file's path, for errors.
    pub(crate) path: &'a str,
    /// Its decoded size.
    pub(crate) size_bytes: u64,
    /// Where to read.
    pub(crate) offset: u64,
}

impl DecodedRead<'_> {
    fn key(&self) -> (u64, u32) {
        (self.owner, self.file)
    }
}

#[derive(Debug, Default)]
struct Entries {
    files: HashMap<(u64, u32), Arc<Entry>>,
    clock: u64,
}

struct Entry {
    used_at: AtomicU64,
    content: File,
    available_bytes: AtomicU64,
    decoding: Mutex<Decoding>,
}

struct Decoding {
    source: Source,
    space: Space,
}

enum Source {
    Running(Box<dyn ByteSource>),
    Done,
    Failed,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let available = self.available_bytes.load(Ordering::Relaxed);
        write!(f, "Entry({available} bytes)")
    }
}

/// Most files at a time, each with an open descriptor and perhaps a decoder's window.
const ENTRY_COUNT_MAX: usize = 256;
/// Which part of the bytes on disk indexes may take.
const INDEXES_PART: u64 = 4;
/// Which part of the bytes in memory what is read forwards may take.
const PASSES_PART: usize = 4;
/// How long to wait for space that others are using.
const SPACE_WAIT: Duration = Duration::from_secs(30);
/// How often a read begins anew whose file failed in somebody else's hands.
const TRIES_MAX: usize = 8;

impl DecodedStore {
    /// A place; nothing is made before it is needed.
    pub fn new(limits: DecodedLimits) -> Self {
        let of_passes = limits.memory_bytes_max / PASSES_PART;
        Self {
            memory: BoundedCache::new(limits.memory_bytes_max - of_passes),
            passes: Passes::new(of_passes),
            indexes: BoundedCache::new(
                usize::try_from(limits.disk_bytes_max / INDEXES_PART).unwrap_or(usize::MAX),
            ),
            entries: Mutex::default(),
            space: Arc::new(SpaceLeft::new(limits.disk_bytes_max)),
            next_owner: AtomicU64::new(0),
            decoded_bytes: AtomicU64::new(0),
            has_evicted: AtomicBool::new(false),
            shared: SharedBackups::default(),
            limits,
        }
    }

    /// The number of a backup that is being opened.
    pub(crate) fn new_owner(&self) -> u64 {
        self.next_owner.fetch_add(1, Ordering::Relaxed)
    }

    /// How many bytes reads have had decoded of compressed archives: more than they read, for decoding begins before them.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded_bytes.load(Ordering::Relaxed)
    }

    /// Most bytes on disk.
    pub(crate) fn disk_bytes_max(&self) -> u64 {
        self.limits.disk_bytes_max
    }

    /// Whether decoded files have had to make room for others, which may be wanted again.
    pub(crate) fn has_evicted(&self) -> bool {
        self.has_evicted.load(Ordering::Relaxed)
    }

    /// Whether so many bytes are decoded, or their file is being decoded there, and they need not be decoded for this read alone.
    pub(crate) fn has(&self, read: DecodedRead<'_>, wanted_bytes: usize) -> bool {
        self.keeps(read, wanted_bytes) || self.passes.find(read).is_some()
    }

    /// Whether so many bytes are on disk.
    fn keeps(&self, read: DecodedRead<'_>, wanted_bytes: usize) -> bool {
        let end = read.offset + wanted_bytes as u64;
        let entries = self.lock();
        let entry = entries.files.get(&read.key());
        entry.is_some_and(|entry| entry.available_bytes.load(Ordering::Acquire) >= end)
    }

    /// Counts bytes that a read had decoded.
    pub(crate) fn count_decoded(&self, bytes: u64) {
        self.decoded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Backups that are open.
    pub(crate) fn shared(&self) -> &SharedBackups {
        &self.shared
    }

    /// What is kept in memory.
    pub(crate) fn memory(&self) -> &BoundedCache {
        &self.memory
    }

    /// The indexes of files, of all backups together.
    pub(crate) fn indexes(&self) -> &BoundedCache {
        &self.indexes
    }

    /// Forgets everything of one opened backup.
    pub(crate) fn forget(&self, owner: u64) {
        self.forget_files(owner);
        // Last, for a file that goes leaves its index.
        self.indexes.forget(owner);
    }

    fn forget_files(&self, owner: u64) {
        self.memory.forget(owner);
        self.passes.forget(|(of, _)| *of == owner);
        let mut forgotten = Vec::new();
        self.lock().files.retain(|(of, _), entry| {
            let keep = *of != owner;
            if !keep {
                forgotten.push(Arc::clone(entry));
            }
            keep
        });
    }

    /// Forgets one file that nobody will want again; who is reading it goes on.
    pub(crate) fn forget_file(&self, owner: u64, file: u32) {
        self.passes.forget(|key| *key == (owner, file));
        let forgotten = self.lock().files.remove(&(owner, file));
        drop(forgotten);
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads decoded bytes, decoding up to them first if need be; `open` begins a file. Fills the buffer but at the file's end.
    pub(crate) fn read_at(
        &self,
        read: DecodedRead<'_>,
        buffer: &mut [u8],
        open: Open<'_>,
    ) -> Result<usize, RepositoryError> {
        let left = read.size_bytes.saturating_sub(read.offset);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        if buffer.is_empty() {
            return Ok(0);
        }
        if read.size_bytes > self.limits.disk_bytes_max {
            let (size, max) = (read.size_bytes, self.limits.disk_bytes_max);
            return Err(RepositoryError::unsupported(
                read.path,
                format!("has {size} bytes when decoded, and the place for decoded files {max}"),
                "allow more bytes for decoded files",
            ));
        }
        let end = read.offset + wanted as u64;
        self.passes.count_read();
        for _ in 0..TRIES_MAX {
            if !self.keeps(read, wanted)
                && let Some(pass) = self.pass(read, open)?
            {
                self.passes.count_read_of(&pass);
                match pass.read(read, buffer) {
                    Ok(true) => return Ok(wanted),
                    // Others have taken it on meanwhile.
                    Ok(false) => {}
                    Err(error) => {
                        self.passes.end(read, &pass);
                        return Err(error);
                    }
                }
            }
            let entry = self.entry(read, open)?;
            let decoded = match entry.available_bytes.load(Ordering::Acquire) >= end {
                true => Ok(true),
                false => self.decode_to(&entry, read, end),
            };
            match decoded {
                Ok(true) => {
                    let count = read_full_at(&entry.content, read.offset, buffer);
                    let count = count.map_err(|error| self.unusable("read", error))?;
                    return Ok(count);
                }
                Ok(false) => self.remove(read, &entry),
                Err(error) => {
                    self.remove(read, &entry);
                    return Err(error);
                }
            }
        }
        let error = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        Err(RepositoryError::unreadable(read.path, "decode", error))
    }

    fn unusable(&self, doing: &'static str, error: std::io::Error) -> RepositoryError {
        let place = format!("decoded files in {}", self.limits.directory.display());
        RepositoryError::unreadable(place, doing, error)
    }

    /// The pass that a read goes along with.
    fn pass(
        &self,
        read: DecodedRead<'_>,
        open: Open<'_>,
    ) -> Result<Option<Arc<pass::Pass>>, RepositoryError> {
        if let Some(pass) = self.passes.find(read) {
            return Ok(Some(pass));
        }
        if self.lock().files.contains_key(&read.key()) {
            return Ok(None);
        }
        self.passes.begin(read, || open(Decoded::Passing))
    }

    fn entry(&self, read: DecodedRead<'_>, open: Open<'_>) -> Result<Arc<Entry>, RepositoryError> {
        let key = read.key();
        let mut entries = self.lock();
        entries.clock += 1;
        let used_at = entries.clock;
        if let Some(entry) = entries.files.get(&key) {
            entry.used_at.store(used_at, Ordering::Relaxed);
            return Ok(Arc::clone(entry));
        }
        drop(entries);
        let source = Source::Running(open(Decoded::Kept)?);
        let content = tempfile::tempfile_in(&self.limits.directory);
        let entry = Arc::new(Entry {
            used_at: AtomicU64::new(used_at),
            content: content.map_err(|error| self.unusable("make", error))?,
            available_bytes: AtomicU64::new(0),
            decoding: Mutex::new(Decoding {
                source,
                space: Space::new(&self.space),
            }),
        });
        let mut entries = self.lock();
        let evicted = match entries.files.len() >= ENTRY_COUNT_MAX {
            true => entries.take_oldest_unused(),
            false => None,
        };
        self.note_evicted(evicted.is_some());
        // Another may have begun it meanwhile: his is as good.
        let kept = Arc::clone(entries.files.entry(key).or_insert(entry));
        drop(entries);
        drop(evicted);
        Ok(kept)
    }

    fn remove(&self, read: DecodedRead<'_>, entry: &Arc<Entry>) {
        let key = read.key();
        let mut entries = self.lock();
        let same = |held: &Arc<Entry>| Arc::ptr_eq(held, entry);
        if entries.files.get(&key).is_some_and(same) {
            entries.files.remove(&key);
        }
    }

    /// Decodes until `end` is there; false if it had failed before.
    fn decode_to(
        &self,
        entry: &Entry,
        read: DecodedRead<'_>,
        end: u64,
    ) -> Result<bool, RepositoryError> {
        let decoding = entry.decoding.lock();
        // A decoder that panicked is in no state to go on.
        let Ok(mut decoding) = decoding else {
            return Ok(false);
        };
        let mut available = entry.available_bytes.load(Ordering::Acquire);
        let mut piece = self.passes.pieces().take();
        while available < end {
            let Source::Running(source) = &mut decoding.source else {
                return Ok(false);
            };
            let step = piece.rest(u64::MAX);
            let read_bytes = match source.read(step) {
                Ok(count) => count as u64,
                Err(error) => {
                    decoding.source = Source::Failed;
                    return Err(error);
                }
            };
            if let Err(error) = self.keep(entry, &mut decoding.space, step, read_bytes) {
                decoding.source = Source::Failed;
                return Err(error);
            }
            available += read_bytes;
            if read_bytes == 0 {
                decoding.source = Source::Failed;
                return Err(RepositoryError::corrupt(read.path, "ends too early"));
            }
            entry.available_bytes.store(available, Ordering::Release);
            if available >= read.size_bytes {
                decoding.source = Source::Done;
            }
        }
        Ok(true)
    }

    /// Takes bytes of the place, from files that nobody reads if need be; false if there are too few for this long.
    fn make_room(&self, space: &mut Space, bytes: u64, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        while !space.take(bytes) {
            let evicted = self.lock().take_oldest_unused();
            self.note_evicted(evicted.is_some());
            if evicted.is_none() && !space.wait(deadline) {
                return false;
            }
        }
        true
    }

    fn note_evicted(&self, is_evicted: bool) {
        self.has_evicted.fetch_or(is_evicted, Ordering::Relaxed);
    }

    fn keep(
        &self,
        entry: &Entry,
        space: &mut Space,
        step: &[u8],
        count: u64,
    ) -> Result<(), RepositoryError> {
        let at = entry.available_bytes.load(Ordering::Relaxed);
        if !self.make_room(space, count, SPACE_WAIT) {
            let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(self.unusable("make room for", error));
        }
        let bytes = usize::try_from(count).ok().and_then(|n| step.get(..n));
        let written = entry.content.write_all_at(bytes.unwrap_or_default(), at);
        written.map_err(|error| self.unusable("write", error))
    }
}

impl Entries {
    /// The one not used for the longest time that nobody is reading.
    fn take_oldest_unused(&mut self) -> Option<Arc<Entry>> {
        let unused = self
            .files
            .iter()
            .filter(|(_, entry)| Arc::strong_count(entry) == 1);
        let oldest = unused.min_by_key(|(_, entry)| entry.used_at.load(Ordering::Relaxed));
        let key = *oldest?.0;
        self.files.remove(&key)
    }
}

#[cfg(test)]
#[path = "decoded/tests.rs"]
mod tests;
