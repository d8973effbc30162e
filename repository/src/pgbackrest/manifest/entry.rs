//! One file of a manifest.

use serde::Deserialize;

use crate::RepositoryError;

/// The number of the backup's own label where the number of another stands.
pub(crate) const NO_REFERENCE: u16 = u16::MAX;

/// Unit of block sizes, in bytes.
const BLOCK_UNIT_BYTES: u64 = 8192;
/// Largest block, in bytes; pgBackRest uses up to 88 KiB times 4.
const BLOCK_BYTES_MAX: u64 = 16 << 20;
/// Checksum bytes of a block where the manifest does not say.
const BLOCK_CHECKSUM_BYTES: u8 = 6;

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredFile {
    /// Where it begins in its bundle, else 0.
    pub(crate) offset: u64,
    /// How many bytes are stored, the block map among them.
    pub(crate) stored_bytes: u64,
    /// The bundle that it is in; 0: it has a file of its own.
    pub(crate) bundle: u32,
    /// How many of the stored bytes, at their end, are the block map; 0: it is stored whole.
    pub(crate) map_bytes: u32,
    /// Size of its blocks, in bytes; 0 where it is stored whole.
    pub(crate) block_bytes: u32,
    /// Which backup holds it, by its place in the manifest's list; [`NO_REFERENCE`]: this one.
    pub(crate) reference: u16,
    /// How many bytes of each block's checksum the map has.
    pub(crate) block_checksum_bytes: u8,
    /// SHA-1 of the content; zeros where there is none.
    pub(crate) sha1: [u8; 20],
}

impl StoredFile {
    pub(crate) fn has_checksum(&self) -> bool {
        self.sha1 != [0; 20]
    }

    pub(crate) fn checksum(&self) -> Option<[u8; 20]> {
        self.has_checksum().then_some(self.sha1)
    }

    pub(crate) fn is_in_blocks(&self) -> bool {
        self.map_bytes > 0
    }
}

/// A file's line.
#[derive(Debug, Deserialize)]
pub(super) struct RawFile<'a> {
    pub(super) size: u64,
    pub(super) timestamp: i64,
    #[serde(borrow)]
    pub(super) mode: Option<&'a str>,
    pub(super) reference: Option<&'a str>,
    checksum: Option<&'a str>,
    #[serde(rename = "repo-size")]
    repo_size: Option<u64>,
    bni: Option<u64>,
    bno: Option<u64>,
    bi: Option<u64>,
    bic: Option<u8>,
    bim: Option<u64>,
}

/// A directory's line.
#[derive(Debug, Deserialize)]
pub(super) struct RawDirectory<'a> {
    #[serde(borrow)]
    pub(super) mode: Option<&'a str>,
}

impl RawFile<'_> {
    pub(super) fn checked(
        &self,
        path: &str,
        reference: u16,
    ) -> Result<StoredFile, RepositoryError> {
        let wrong =
            |what: &str| RepositoryError::corrupt(path, format!("has {what} in its manifest"));
        let number = |value: Option<u64>, what: &str| {
            u32::try_from(value.unwrap_or(0)).map_err(|_| wrong(what))
        };
        let stored_bytes = self.repo_size.unwrap_or(self.size);
        let offset = self.bno.unwrap_or(0);
        let map_bytes = number(self.bim, "a block map that is too large")?;
        if u64::from(map_bytes) > stored_bytes || offset.checked_add(stored_bytes).is_none() {
            return Err(wrong("stored bytes that cannot be"));
        }
        let block_bytes = match map_bytes {
            0 => 0,
            _ => self
                .bi
                .and_then(|units| units.checked_mul(BLOCK_UNIT_BYTES))
                .filter(|bytes| (BLOCK_UNIT_BYTES..=BLOCK_BYTES_MAX).contains(bytes))
                .ok_or_else(|| wrong("a block size that cannot be"))?,
        };
        let block_checksum_bytes = self.bic.unwrap_or(BLOCK_CHECKSUM_BYTES);
        if !(1..=16).contains(&block_checksum_bytes) {
            return Err(wrong("a size of block checksums that cannot be"));
        }
        let sha1 = match self.checksum {
            None => [0; 20],
            Some(text) => parse_sha1(text).ok_or_else(|| wrong("a checksum that is no SHA-1"))?,
        };
        Ok(StoredFile {
            offset,
            stored_bytes,
            bundle: number(self.bni, "a bundle number that is too large")?,
            map_bytes,
            block_bytes: u32::try_from(block_bytes).unwrap_or(0),
            reference,
            block_checksum_bytes,
            sha1,
        })
    }
}

/// A SHA-1 of 40 hexadecimal digits.
pub(crate) fn parse_sha1(text: &str) -> Option<[u8; 20]> {
    let mut bytes = [0; 20];
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !odd.is_empty() {
        return None;
    }
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Permission bits: octal digits.
pub(super) fn parse_mode(text: &str, file: &str) -> Result<u32, RepositoryError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| RepositoryError::corrupt(file, format!("has mode {text:?}")))
}
