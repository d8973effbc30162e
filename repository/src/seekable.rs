//! Compressed streams that are read at random, although their codecs only go forwards.
//!
//! One pass from beginning to end ([`FirstPass`]) divides a stream into stretches. Where the codec permits, a stretch is a place
//! in the compressed stream from which decoding can begin, with the bytes that its decoder looks back on; where it does not
//! (Zstandard), a copy of the decoded bytes is kept, compressed anew in small pieces. A read decodes the stretches that it
//! touches, into a bounded cache.
//!
//! What must stay true: memory grows with the number of stretches only, which is bounded; what is kept on disk is counted in the place for
//! decoded bytes; each stretch decoded again is compared with what the first pass saw.

mod agreement;
mod bzip2;
mod codec;
mod first_pass;
mod gzip;
mod input;
mod lz4;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[doc(hidden)]
pub use agreement::places_that_agree;
pub use codec::Codec;
pub(crate) use first_pass::FirstPass;
pub(crate) use input::Stored;

use crate::RepositoryError;
use crate::bounded_cache::CacheKey;
use crate::decoded::{DecodedStore, Spill, SpillPlace};
use crate::storage::{is_of_storage, same_error};
use codec::{Resume, Step};

/// What a stream is, and where what is decoded of it is kept.
#[derive(Debug)]
pub(crate) struct Stream {
    /// For errors.
    pub(crate) name: String,
    pub(crate) codec: Codec,
    pub(crate) store: Arc<DecodedStore>,
    /// The opened backup.
    pub(crate) owner: u64,
    /// The stream in it.
    pub(crate) number: u32,
}

/// A stream that the first pass has gone through.
#[derive(Debug)]
pub(crate) struct Seekable {
    stream: Stream,
    /// In order; each ends where the next begins.
    stretches: Vec<Stretch>,
    size_bytes: u64,
    spill: Spill,
    /// How much reads have had decoded again.
    again_bytes: AtomicU64,
}

#[derive(Debug)]
struct Stretch {
    start: u64,
    crc32c: u32,
    from: From,
}

/// What a stretch is decoded from.
#[derive(Debug, Clone, Copy)]
enum From {
    Place {
        place: Resume,
        window: Option<SpillPlace>,
    },
    Copy(SpillPlace),
}

impl Seekable {
    /// How many bytes can be read: all that there are, if the first pass went to the end.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many bytes are kept on disk for it.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.spill.kept_bytes()
    }

    /// How many bytes reads have had decoded again: more than they read, for decoding begins before them.
    pub(crate) fn decoded_again_bytes(&self) -> u64 {
        self.again_bytes.load(Ordering::Relaxed)
    }

    /// Counts them from here on.
    pub(crate) fn count_again_anew(&self) {
        self.again_bytes.store(0, Ordering::Relaxed);
    }

    /// Forgets what of it is decoded in memory.
    pub(crate) fn forget_decoded(&self) {
        self.stream.store.memory().forget(self.stream.owner);
    }

    /// Reads decoded bytes: fills the buffer but at the end. `stored` is the stream, `path` what the read is of.
    pub(crate) fn read_at(
        &self,
        stored: &Arc<dyn Stored>,
        path: &str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            if at >= self.size_bytes {
                break;
            }
            let number = self
                .stretches
                .partition_point(|stretch| stretch.start <= at);
            let number = number.saturating_sub(1);
            let key = CacheKey {
                owner: self.stream.owner,
                file: self.stream.number,
                part: [number as u64, 0, 0],
            };
            let bytes: Arc<Vec<u8>> = self.stream.store.memory().get(key, || {
                let bytes = self.decode(Arc::clone(stored), path, number)?;
                let size = bytes.len();
                Ok((bytes, size))
            })?;
            let start = self
                .stretches
                .get(number)
                .map_or(0, |stretch| stretch.start);
            let here = usize::try_from(at - start)
                .ok()
                .and_then(|from| bytes.get(from..));
            let here = here.unwrap_or_default();
            let count = here.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..count), here.get(..count)) {
                to.copy_from_slice(from);
            }
            if count == 0 {
                break;
            }
            done += count;
        }
        Ok(done)
    }

    /// Decodes a stretch, and compares it with what the first pass saw.
    fn decode(
        &self,
        stored: Arc<dyn Stored>,
        path: &str,
        number: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        let name = self.stream.name.as_str();
        let stretch = self.stretches.get(number);
        let stretch = stretch.ok_or_else(|| RepositoryError::corrupt(name, "has no such part"))?;
        let end = self.stretches.get(number + 1);
        let end = end.map_or(self.size_bytes, |next| next.start);
        // First passes bound what lies between two places.
        let size = usize::try_from(end.saturating_sub(stretch.start)).unwrap_or(0);
        self.stream.store.count_decoded(size as u64);
        self.again_bytes.fetch_add(size as u64, Ordering::Relaxed);
        let bytes = match stretch.from {
            From::Copy(kept) => self.spill.get(kept, size)?,
            From::Place { place, window } => {
                let window = match window {
                    Some(kept) => self.spill.get(kept, place.window_bytes())?,
                    None => Vec::new(),
                };
                let decoded = decode_from(self.stream.codec, stored, place, &window, size);
                decoded.map_err(|error| explain(name, stretch.start, &error).within(path))?
            }
        };
        match bytes.len() == size && crc32c::crc32c(&bytes) == stretch.crc32c {
            true => Ok(bytes),
            false => {
                let reason = "has changed since the backup was opened";
                Err(RepositoryError::corrupt(name, reason).within(path))
            }
        }
    }
}

/// The first bytes of a stream, as many as wanted if it has them.
pub(crate) fn decode_beginning(
    name: &str,
    codec: Codec,
    stored: Arc<dyn Stored>,
    size: usize,
) -> Result<Vec<u8>, RepositoryError> {
    let decoded = decode_from(codec, stored, Resume::BEGINNING, &[], size);
    decoded.map_err(|error| explain(name, 0, &error))
}

/// Decodes so many bytes from a place on, fewer at the stream's end.
fn decode_from(
    codec: Codec,
    stored: Arc<dyn Stored>,
    place: Resume,
    window: &[u8],
    size: usize,
) -> io::Result<Vec<u8>> {
    let mut decoder = codec.decoder(stored, place, window)?;
    let mut bytes = vec![0; size];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match decoder.step(rest)? {
            Step::Bytes(count) => done += count,
            Step::Place(_) => {}
            Step::End => break,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// What a decoder's error says about the stream.
fn explain(name: &str, decoded_bytes: u64, error: &io::Error) -> RepositoryError {
    if is_of_storage(error) {
        return RepositoryError::unreadable(name, "read", same_error(error));
    }
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => format!(
            "ends in the middle of its compressed stream, after {decoded_bytes} bytes of content: it is truncated"
        ),
        _ => format!("cannot be decoded behind byte {decoded_bytes} of its content: {error}"),
    };
    RepositoryError::corrupt(name, reason)
}

#[cfg(test)]
mod tests;
