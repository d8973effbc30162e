//! The one pass from beginning to end that a compressed stream needs before it can be read at random.
//!
//! It hands out what it decodes, forwards, and keeps meanwhile what reading at random takes: places, or where the codec has none
//! a copy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::codec::{Decoder, Resume, Step};
use super::input::Stored;
use super::{From, Seekable, Stream, Stretch, explain};
use crate::RepositoryError;
use crate::decoded::{Spill, SpillPlace};
use crate::pg_basebackup::ReadAt;

/// Bytes decoded at a time.
const CHUNK_BYTES: usize = 1 << 18;
/// No stretch is shorter, but the last.
const STRETCH_BYTES_MIN: u64 = 1 << 20;
/// From here on a stretch ends at the next place, however little is stored of it.
const STRETCH_BYTES_WANTED: u64 = 16 << 20;
/// No stretch is longer: what is read of it is decoded whole, in memory.
const STRETCH_BYTES_MAX: u64 = 64 << 20;
/// About how many stretches there are of a stream whose content compresses evenly.
const STRETCH_COUNT: u64 = 1 << 16;
/// The most that any codec looks back.
const WINDOW_BYTES_MAX: usize = 64 << 10;

/// A first pass.
pub(crate) struct FirstPass {
    stream: Stream,
    decoder: Box<dyn Decoder>,
    chunk: Vec<u8>,
    chunk_bytes: usize,
    /// Decoded bytes before the chunk.
    chunk_at: u64,
    ended: bool,
    keeper: Keeper,
    /// Whether it may go on where nothing more can be kept.
    is_optional: bool,
    /// Where nothing more could be kept, decoded bytes from the beginning.
    kept_until: Option<u64>,
}

impl FirstPass {
    /// Begins with a stream that is stored in so many bytes.
    pub(crate) fn new(
        stream: Stream,
        stored: Arc<dyn Stored>,
        stored_bytes: u64,
    ) -> Result<Self, RepositoryError> {
        let decoder = stream.codec.decoder(stored, Resume::BEGINNING, &[]);
        let decoder = decoder.map_err(|error| explain(&stream.name, 0, &error))?;
        Ok(Self {
            decoder,
            chunk: vec![0; CHUNK_BYTES],
            chunk_bytes: 0,
            chunk_at: 0,
            ended: false,
            keeper: Keeper::new(&stream, stored_bytes),
            is_optional: false,
            kept_until: None,
            stream,
        })
    }

    /// The same for a reader who goes on where there is no room to keep what reading at random takes.
    pub(crate) fn optional(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    fn decoded_bytes(&self) -> u64 {
        self.chunk_at + self.chunk_bytes as u64
    }

    /// Goes on to the next chunk; false at the end.
    fn next_chunk(&mut self) -> Result<bool, RepositoryError> {
        while !self.ended {
            let step = self.decoder.step(&mut self.chunk);
            let step =
                step.map_err(|error| explain(&self.stream.name, self.decoded_bytes(), &error))?;
            match step {
                Step::Bytes(count) => {
                    self.chunk_at += self.chunk_bytes as u64;
                    self.chunk_bytes = count;
                    if self.kept_until.is_none() {
                        let bytes = self.chunk.get(..count).unwrap_or_default();
                        let kept = self.keeper.bytes(&self.stream, bytes);
                        self.see(kept)?;
                    }
                    return Ok(true);
                }
                Step::Place(resume) if self.kept_until.is_none() => {
                    let kept = self.keeper.place(resume);
                    self.see(kept)?;
                }
                Step::Place(_) => {}
                Step::End => self.ended = true,
            }
        }
        Ok(false)
    }

    fn see(&mut self, kept: Result<(), RepositoryError>) -> Result<(), RepositoryError> {
        match kept {
            Err(error) if self.is_optional => {
                tracing::debug!(%error, "keep what reading at random takes");
                self.kept_until = Some(self.keeper.forget_open());
                Ok(())
            }
            kept => kept,
        }
    }

    /// What has been seen so far, to be read at random.
    pub(crate) fn so_far(self) -> Result<Seekable, RepositoryError> {
        let size_bytes = self.kept_until.unwrap_or_else(|| self.decoded_bytes());
        self.keeper.finish(self.stream, size_bytes)
    }

    /// Goes on to the end. What is damaged from here on is told beside what can be read.
    pub(crate) fn finish(mut self) -> Result<(Seekable, Option<String>), RepositoryError> {
        let damage = loop {
            match self.next_chunk() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(RepositoryError::Corrupt { reason, .. }) => break Some(reason),
                Err(error) => return Err(error),
            }
        };
        let size_bytes = self.decoded_bytes();
        Ok((self.keeper.finish(self.stream, size_bytes)?, damage))
    }
}

impl ReadAt for FirstPass {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = (offset + done as u64).checked_sub(self.chunk_at);
            let at = at.ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::NotSeekable);
                RepositoryError::unreadable(&self.stream.name, "go back in", error)
            })?;
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let chunk = self.chunk.get(..self.chunk_bytes).unwrap_or_default();
            let here = chunk.get(at..).unwrap_or_default();
            let count = here.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..count), here.get(..count)) {
                to.copy_from_slice(from);
            }
            done += count;
            if count == 0 && !self.next_chunk()? {
                break;
            }
        }
        Ok(done)
    }

    fn reaches(&mut self, end: u64) -> Result<bool, RepositoryError> {
        while self.decoded_bytes() < end {
            if !self.next_chunk()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Collects the stretches.
struct Keeper {
    spill: Spill,
    stretches: Vec<Stretch>,
    open: Open,
    kind: Kind,
}

/// The stretch that has begun.
struct Open {
    start: u64,
    bytes: u64,
    crc32c: u32,
    place: Resume,
    window: Option<SpillPlace>,
}

enum Kind {
    Places {
        /// What was decoded last.
        tail: Vec<u8>,
        /// How far apart places are in the stored stream, if not much is stored.
        stored_step_bytes: u64,
    },
    Copies {
        /// Of the open stretch.
        pending: Vec<u8>,
    },
}

impl Keeper {
    fn new(stream: &Stream, stored_bytes: u64) -> Self {
        Self {
            spill: Spill::new(&stream.store, &stream.name),
            stretches: Vec::new(),
            open: Open {
                start: 0,
                bytes: 0,
                crc32c: 0,
                place: Resume::BEGINNING,
                window: None,
            },
            kind: match stream.codec.has_places() {
                true => Kind::Places {
                    tail: Vec::new(),
                    stored_step_bytes: stored_bytes / STRETCH_COUNT,
                },
                false => Kind::Copies {
                    pending: Vec::new(),
                },
            },
        }
    }

    fn bytes(&mut self, stream: &Stream, mut bytes: &[u8]) -> Result<(), RepositoryError> {
        if let Kind::Places { tail, .. } = &mut self.kind {
            remember(tail, bytes);
            self.open.count(bytes);
            return match self.open.bytes <= STRETCH_BYTES_MAX {
                true => Ok(()),
                false => Err(in_one_piece(stream)),
            };
        }
        while !bytes.is_empty() {
            let left = STRETCH_BYTES_MIN.saturating_sub(self.open.bytes);
            let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (now, later) = bytes.split_at(count);
            self.open.count(now);
            if let Kind::Copies { pending } = &mut self.kind {
                pending.extend_from_slice(now);
            }
            if self.open.bytes >= STRETCH_BYTES_MIN {
                self.close_copy()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn place(&mut self, place: Resume) -> Result<(), RepositoryError> {
        let Kind::Places {
            tail,
            stored_step_bytes,
        } = &self.kind
        else {
            return Ok(());
        };
        let stored_bytes = place.encoded_at.saturating_sub(self.open.place.encoded_at);
        let is_far = stored_bytes >= *stored_step_bytes || self.open.bytes >= STRETCH_BYTES_WANTED;
        if self.open.bytes < STRETCH_BYTES_MIN || !is_far {
            return Ok(());
        }
        let surplus = tail.len().saturating_sub(place.window_bytes());
        let window = tail.get(surplus..).unwrap_or_default();
        let window = match window.is_empty() {
            true => None,
            false => Some(self.spill.put(window)?),
        };
        self.close(place, window);
        Ok(())
    }

    /// Forgets the stretch that has begun, and says where it did.
    fn forget_open(&mut self) -> u64 {
        self.open.bytes = 0;
        self.open.start
    }

    /// Ends the open stretch and begins the next.
    fn close(&mut self, place: Resume, window: Option<SpillPlace>) {
        let next = Open {
            start: self.open.start + self.open.bytes,
            bytes: 0,
            crc32c: 0,
            place,
            window,
        };
        let ended = std::mem::replace(&mut self.open, next);
        self.stretches.push(Stretch {
            start: ended.start,
            crc32c: ended.crc32c,
            from: From::Place {
                place: ended.place,
                window: ended.window,
            },
        });
    }

    fn close_copy(&mut self) -> Result<(), RepositoryError> {
        let Kind::Copies { pending } = &mut self.kind else {
            return Ok(());
        };
        let kept = self.spill.put(pending)?;
        pending.clear();
        self.close(Resume::BEGINNING, None);
        if let Some(stretch) = self.stretches.last_mut() {
            stretch.from = From::Copy(kept);
        }
        Ok(())
    }

    fn finish(mut self, stream: Stream, size_bytes: u64) -> Result<Seekable, RepositoryError> {
        if self.open.bytes > 0 {
            match self.kind {
                Kind::Places { .. } => self.close(Resume::BEGINNING, None),
                Kind::Copies { .. } => self.close_copy()?,
            }
        }
        self.stretches.shrink_to_fit();
        Ok(Seekable {
            stream,
            stretches: self.stretches,
            size_bytes,
            spill: self.spill,
            again_bytes: AtomicU64::new(0),
        })
    }
}

impl Open {
    fn count(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }
}

/// Keeps at least the last bytes that a codec may look back on, and not many more.
fn remember(tail: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() >= WINDOW_BYTES_MAX {
        tail.clear();
    } else if tail.len() > 4 * WINDOW_BYTES_MAX {
        tail.drain(..tail.len() - WINDOW_BYTES_MAX);
    }
    let surplus = bytes.len().saturating_sub(WINDOW_BYTES_MAX);
    tail.extend_from_slice(bytes.get(surplus..).unwrap_or_default());
}

fn in_one_piece(stream: &Stream) -> RepositoryError {
    RepositoryError::unsupported(
        &stream.name,
        format!(
            "has a block of more than {STRETCH_BYTES_MAX} bytes, and would be decoded whole for each page"
        ),
        "decompress it and compress it again with gzip",
    )
}
