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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::super::Framing;
    use super::super::compression::Compression;
    use super::*;
    use crate::decoded::{DecodedLimits, DecodedRead, DecodedStore};
    use crate::storage::StorageFile;

    const COMPRESSIONS: [Compression; 4] = [
        Compression::Gz,
        Compression::Lz4,
        Compression::Zst,
        Compression::Bz2,
    ];

    fn content() -> Vec<u8> {
        let numbers = (0..400_000_u32).map(|number| number.wrapping_mul(2_654_435_761) >> 12);
        numbers.flat_map(u32::to_le_bytes).collect()
    }

    fn stored(compression: Compression, content: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gz => {
                let level = flate2::Compression::fast();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Lz4 => {
                let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
                let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zst => zstd::encode_all(content, 3).unwrap(),
            Compression::Bz2 => {
                let level = bzip2::Compression::fast();
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            }
            Compression::None | Compression::Xz => content.to_vec(),
        }
    }

    /// Reads a file forwards to its end.
    fn scan(
        compression: Compression,
        stored: &[u8],
        (size_bytes, sha1): (u64, [u8; 20]),
    ) -> Result<Vec<u8>, RepositoryError> {
        let directory = tempfile::tempdir().unwrap();
        let store = DecodedStore::new(DecodedLimits {
            directory: directory.path().to_owned(),
            ..DecodedLimits::default()
        });
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(stored).unwrap();
        let file = Arc::new(StorageFile::Local(file));
        let mut content = Vec::new();
        let mut buffer = vec![0; 200_000];
        loop {
            let read = DecodedRead {
                owner: 1,
                file: 1,
                path: "f",
                size_bytes,
                offset: content.len() as u64,
            };
            let count = store.read_at(read, &mut buffer, &|_| {
                let whole = WholeFile {
                    path: "f".to_owned(),
                    place: "place".to_owned(),
                    size_bytes,
                    sha1: Some(sha1),
                };
                let range = StoredRange::new(Arc::clone(&file), 0, stored.len() as u64);
                let decoding = Decoding {
                    compression,
                    framing: Framing::Standard,
                    passphrase: None,
                };
                Ok(Box::new(WholeFileReader::new(whole, range, decoding)?))
            })?;
            if count == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&buffer[..count]);
        }
    }

    #[test]
    fn a_file_that_is_read_forwards_is_what_its_checksum_says_or_an_error() {
        let content = content();
        let sha1: [u8; 20] = Sha1::digest(&content).into();
        let told = (content.len() as u64, sha1);
        for compression in COMPRESSIONS {
            let stored = stored(compression, &content);
            assert!(scan(compression, &stored, told).unwrap() == content);
            let other = scan(compression, &stored, (told.0, [7; 20])).unwrap_err();
            assert!(
                other.is_permanent() && other.to_string().contains("checksum"),
                "{other}"
            );
            for (size_bytes, words) in [(told.0 - 1, "longer"), (told.0 + 1, "ends at byte")] {
                let error = scan(compression, &stored, (size_bytes, sha1)).unwrap_err();
                assert!(error.to_string().contains(words), "{error}");
            }
            for at in (0..stored.len()).step_by(stored.len() / 30) {
                let cut = scan(compression, &stored[..at], told).unwrap_err();
                assert!(cut.is_permanent(), "{compression:?} {at}: {cut}");
                let mut damaged = stored.clone();
                damaged[at] ^= 16;
                match scan(compression, &damaged, told) {
                    Ok(found) => assert!(found == content, "{compression:?} {at}"),
                    Err(error) => assert!(error.is_permanent(), "{error}"),
                }
            }
        }
    }
}
