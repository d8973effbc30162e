//! A file decoded from beginning to end, and compared with what its manifest says of it.

use std::io::Read;

use sha1::{Digest, Sha1};

use super::stored::{Decoding, ReadFailure, StoredRange};
use crate::RepositoryError;
use crate::decoded::ByteSource;
use crate::pg_basebackup::ReadAt;
use crate::seekable::{FirstPass, Seekable};

/// What is known of a file.
#[derive(Debug, Clone)]
pub(crate) struct WholeFile {
    /// Its path, for errors.
    pub(crate) path: String,
    /// Where it is stored, for errors.
    pub(crate) place: String,
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its SHA-1, if known.
    pub(crate) sha1: Option<[u8; 20]>,
}

/// Decodes a file; the read that completes it fails if its size or checksum is another.
pub(crate) struct WholeFileReader {
    file: WholeFile,
    source: Source,
    hasher: Sha1,
    left: u64,
    is_failed: bool,
}

/// Takes what was seen of a file when its decoding ends, at its end or before, unless it failed.
pub(crate) type Keep = Box<dyn FnMut(Seekable) + Send>;

enum Source {
    Forward {
        decoder: Box<dyn Read + Send>,
        failure: ReadFailure,
    },
    Kept {
        pass: Option<Box<FirstPass>>,
        keep: Keep,
    },
}

impl WholeFileReader {
    pub(crate) fn new(
        file: WholeFile,
        range: StoredRange,
        decoding: Decoding<'_>,
    ) -> Result<Self, RepositoryError> {
        let failure = range.failure();
        let decoder = decoding
            .decoder(range)
            .map_err(|error| failure.explain(&file.path, &file.place, &error))?;
        Ok(Self::begin(file, Source::Forward { decoder, failure }))
    }

    /// The same of a file that is to be read at random later.
    pub(crate) fn kept(file: WholeFile, pass: FirstPass, keep: Keep) -> Self {
        let pass = Some(Box::new(pass));
        Self::begin(file, Source::Kept { pass, keep })
    }

    fn begin(file: WholeFile, source: Source) -> Self {
        Self {
            left: file.size_bytes,
            file,
            source,
            hasher: Sha1::new(),
            is_failed: false,
        }
    }

    /// The whole content, for files that are small.
    pub(crate) fn read_all(mut self) -> Result<Vec<u8>, RepositoryError> {
        let size = usize::try_from(self.left).unwrap_or(usize::MAX);
        let mut content = vec![0; size];
        let mut done = 0;
        while let Some(rest) = content.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += self.read(rest)?;
        }
        Ok(content)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let at = self.file.size_bytes - self.left;
        match &mut self.source {
            Source::Kept { pass, .. } => match pass {
                Some(pass) => {
                    let read = pass.read_at(at, buffer);
                    read.map_err(|error| error.within(&self.file.path))
                }
                None => Ok(0),
            },
            Source::Forward { decoder, failure } => loop {
                match decoder.read(buffer) {
                    Ok(count) => return Ok(count),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let place = format!("byte {at} in {}", self.file.place);
                        return Err(failure.explain(&self.file.path, &place, &error));
                    }
                }
            },
        }
    }

    fn read_on(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let count = self.fill(buffer)?;
        if count == 0 {
            let at = self.file.size_bytes - self.left;
            return Err(self.corrupt(&format!(
                "ends at byte {at}, and has {} bytes in the manifest",
                self.file.size_bytes
            )));
        }
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.left -= count as u64;
        if self.left == 0 {
            // To the end, where the compression's own checksum is.
            if self.fill(&mut [0; 1])? > 0 {
                return Err(self.corrupt("is longer than in the manifest"));
            }
            let found = std::mem::take(&mut self.hasher).finalize();
            if self.file.sha1.is_some_and(|wanted| found[..] != wanted) {
                return Err(self.corrupt("does not have the checksum that the manifest has for it"));
            }
        }
        Ok(count)
    }

    fn corrupt(&self, reason: &str) -> RepositoryError {
        let place = &self.file.place;
        RepositoryError::corrupt(&self.file.path, format!("{reason} (stored in {place})"))
    }
}

impl ByteSource for WholeFileReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let read = self.read_on(buffer);
        self.is_failed |= read.is_err();
        read
    }
}

impl Drop for WholeFileReader {
    fn drop(&mut self) {
        if let Source::Kept { pass, keep } = &mut self.source
            && let Some(pass) = pass.take().filter(|_| !self.is_failed)
        {
            match pass.so_far() {
                Ok(seen) => keep(seen),
                Err(error) => tracing::debug!(%error, "keep what was seen of a file"),
            }
        }
    }
}
