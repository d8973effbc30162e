//! Reading files that are stored block by block. Maps are read when their file is, superblocks are decoded when one of
//! their blocks is; both are kept while there is room. Every block is compared with its checksum before it is handed on.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use twox_hash::XxHash3_128;

use super::Framing;
use super::block_map::{Block, BlockLayout, BlockMap, Superblock, parse_block_map};
use super::compression::Compression;
use super::content::{Content, StoredKey};
use super::manifest::StoredFile;
use super::stored::{Decoding, StoredRange};
use crate::bounded_cache::CacheKey;
use crate::{FileIndex, RepositoryError};

/// A file in blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockFile<'a> {
    pub(super) content: &'a Content,
    pub(super) file: FileIndex,
    pub(super) path: &'a str,
    pub(super) size_bytes: u64,
    pub(super) stored: &'a StoredFile,
}

/// A decoded superblock.
struct DecodedSuperblock {
    bytes: Vec<u8>,
    /// A bit for each block whose checksum has been compared.
    checked: Vec<AtomicU64>,
}

impl BlockFile<'_> {
    /// Fills the buffer, which does not reach over the file's end.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepositoryError> {
        let map = self.content.memory().get(self.key([1, 0, 0]), || {
            let map = self.load_map()?;
            let bytes = map.memory_bytes();
            Ok((map, bytes))
        })?;
        let block_bytes = u64::from(self.stored.block_bytes);
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let (number, inside) = (at / block_bytes, at % block_bytes);
            let block = map
                .block(number)
                .ok_or_else(|| self.corrupt(at, "is behind the end of the block map"))?;
            let superblock = self.superblock(at, &block.superblock)?;
            let bytes = self.block(number, &block, &superblock)?;
            let inside = usize::try_from(inside).unwrap_or(usize::MAX);
            let mut from = bytes.get(inside..).unwrap_or_default();
            let count = from.read(rest).unwrap_or(0);
            if count == 0 {
                return Err(self.corrupt(at, "has a block that is too short"));
            }
            done += count;
        }
        Ok(done)
    }

    fn key(&self, part: [u64; 3]) -> CacheKey {
        self.content.cache_key(self.file, part)
    }

    fn corrupt(&self, at: u64, reason: &str) -> RepositoryError {
        let label = &self.content.head().label;
        RepositoryError::corrupt(
            self.path,
            format!("byte {at} of it in backup {label} {reason}"),
        )
    }

    fn load_map(&self) -> Result<BlockMap, RepositoryError> {
        let stored = self.stored;
        let layout = BlockLayout {
            size_bytes: self.size_bytes,
            block_bytes: stored.block_bytes,
            checksum_bytes: stored.block_checksum_bytes,
            reference_count: u16::try_from(self.content.head().references.len())
                .unwrap_or(u16::MAX),
        };
        let key = self.content.key_of(self.file, stored);
        let (handle, place) = self.content.open_stored(key, self.path)?;
        let map_bytes = u64::from(stored.map_bytes);
        let offset = stored.offset + stored.stored_bytes - map_bytes;
        let range = StoredRange::new(handle, offset, map_bytes);
        let place = format!("the block map at byte {offset} of {place}");
        // A map is encrypted, and never compressed.
        let decoding = self.content.decoding(Compression::None, Framing::Raw);
        // A block takes some bytes of the map, so what is longer than its stored bytes is none.
        let bytes = self.decode(range, decoding, map_bytes, &place)?;
        parse_block_map(&bytes, layout)
            .map_err(|reason| RepositoryError::corrupt(self.path, format!("{place}: {reason}")))
    }

    fn superblock(
        &self,
        at: u64,
        superblock: &Superblock,
    ) -> Result<std::sync::Arc<DecodedSuperblock>, RepositoryError> {
        let reference = u64::from(superblock.reference);
        let bundle = u64::from(superblock.bundle);
        let key = self.key([2 | reference << 8, bundle, superblock.offset]);
        self.content.memory().get(key, || {
            let key = match superblock.bundle {
                0 => StoredKey::Blocks {
                    reference: superblock.reference,
                    file: self.file,
                },
                bundle => StoredKey::Bundle {
                    reference: superblock.reference,
                    bundle,
                },
            };
            let (handle, place) = self.content.open_stored(key, self.path)?;
            let (offset, length) = (superblock.offset, u64::from(superblock.stored_bytes));
            let range = StoredRange::new(handle, offset, length);
            let place = format!("byte {at}, in the superblock at byte {offset} of {place},");
            let compression = self.content.head().compression;
            let decoding = self.content.decoding(compression, Framing::Raw);
            let wanted = u64::from(superblock.decoded_bytes);
            let bytes = self.decode(range, decoding, wanted, &place)?;
            if bytes.len() as u64 != wanted {
                let found = bytes.len();
                let reason = format!("{place} has {found} bytes instead of {wanted}");
                return Err(RepositoryError::corrupt(self.path, reason));
            }
            let block_count = wanted.div_ceil(u64::from(self.stored.block_bytes).max(1));
            let words = usize::try_from(block_count.div_ceil(64)).unwrap_or(0);
            let made = DecodedSuperblock {
                bytes,
                checked: (0..words).map(|_| AtomicU64::new(0)).collect(),
            };
            let bytes = made.bytes.capacity() + words * 8;
            Ok((made, bytes))
        })
    }

    /// Decodes to the end, which comes after at most `bytes_max` bytes.
    fn decode(
        &self,
        range: StoredRange,
        decoding: Decoding<'_>,
        bytes_max: u64,
        place: &str,
    ) -> Result<Vec<u8>, RepositoryError> {
        let failure = range.failure();
        let capacity = usize::try_from(bytes_max).unwrap_or(0);
        let mut bytes = Vec::with_capacity(capacity);
        let read = decoding.decoder(range).and_then(|decoder| {
            // One more shows that there is too much, and lets decoders come to their own checksum.
            decoder.take(bytes_max + 1).read_to_end(&mut bytes)
        });
        read.map_err(|error| failure.explain(self.path, place, &error))?;
        if bytes.len() as u64 > bytes_max {
            let reason = format!("{place} has more than {bytes_max} bytes");
            return Err(RepositoryError::corrupt(self.path, reason));
        }
        Ok(bytes)
    }

    /// The bytes of a block, compared with its checksum.
    fn block<'a>(
        &self,
        number: u64,
        block: &Block<'_>,
        superblock: &'a DecodedSuperblock,
    ) -> Result<&'a [u8], RepositoryError> {
        let width = self.stored.block_bytes as usize;
        let begins_at = number * u64::from(self.stored.block_bytes);
        let left = usize::try_from(self.size_bytes - begins_at).unwrap_or(usize::MAX);
        let from = (block.number as usize).saturating_mul(width);
        let bytes = superblock
            .bytes
            .get(from..)
            .and_then(|rest| rest.get(..width.min(left)))
            .ok_or_else(|| {
                self.corrupt(begins_at, "is not in the superblock that the map names")
            })?;
        let word = superblock.checked.get(block.number as usize / 64);
        let bit = 1_u64 << (block.number % 64);
        if word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0) {
            return Ok(bytes);
        }
        let found = XxHash3_128::oneshot(bytes).to_be_bytes();
        if !found.starts_with(block.checksum) {
            let place = self
                .content
                .place_of(block.superblock.reference, block.superblock.bundle);
            let reason = format!(
                "does not have the checksum of its block (superblock at byte {} of {place})",
                block.superblock.offset
            );
            return Err(self.corrupt(begins_at, &reason));
        }
        if let Some(word) = word {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(bytes)
    }
}
