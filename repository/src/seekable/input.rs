//! Compressed bytes, read forwards from any place, with the place known.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use crate::storage::StorageFile;

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 1 << 17;

/// Where compressed bytes are.
pub(crate) trait Stored: Send + Sync {
    /// Reads bytes, none only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Stored for StorageFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_forwards_at(offset, buffer, None)
    }
}

impl Stored for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|from| self.get(from..));
        rest.unwrap_or_default().read(buffer)
    }
}

/// A position in compressed bytes that moves forwards.
pub(super) struct Input {
    stored: Arc<dyn Stored>,
    buffer: Vec<u8>,
    /// What of the buffer has not been taken yet.
    start: usize,
    end: usize,
    /// Of the buffer's end.
    position: u64,
}

impl Input {
    pub(super) fn new(stored: Arc<dyn Stored>, offset: u64) -> Self {
        Self {
            stored,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            position: offset,
        }
    }

    /// Where the next byte is.
    pub(super) fn position(&self) -> u64 {
        self.position - (self.end - self.start) as u64
    }

    /// The next bytes, as many as wanted.
    pub(super) fn array<const COUNT: usize>(&mut self) -> io::Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes over so many bytes.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.take(count), &mut io::sink())?;
        match skipped == count {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.start == self.end {
            match self.stored.read_at(self.position, &mut self.buffer) {
                Ok(0) => break,
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}
