//! The first page of a segment: of which cluster it is, and how large segments are.

use std::io::Read;

use crate::RepositoryError;
use crate::pgbackrest::{Decoding, StoredRange};

/// XLogLongPageHeaderData: the system identifier after the 24 bytes of a page's short header, then the segment's size.
const HEAD_BYTES: usize = 36;

/// What the first page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalHead {
    pub(crate) system_identifier: u64,
    pub(crate) segment_bytes: u64,
}

impl WalHead {
    /// Reads it; its numbers are in the byte order of the machine that wrote it. `path` is the segment's, for errors.
    pub(crate) fn read(
        path: &str,
        stored: StoredRange,
        decoding: Decoding<'_>,
    ) -> Result<Self, RepositoryError> {
        let failure = stored.failure();
        let mut head = [0; HEAD_BYTES];
        let read = decoding.decoder(stored);
        let read = read.and_then(|mut decoder| decoder.read_exact(&mut head));
        read.map_err(|error| failure.explain(path, "its first page", &error))?;
        parse(&head).map_err(|reason| RepositoryError::corrupt(path, reason))
    }

    /// Refuses what is not of the backup's cluster, as far as that is known.
    pub(crate) fn check(
        &self,
        path: &str,
        system_identifier: Option<u64>,
        segment_bytes: Option<u64>,
    ) -> Result<(), RepositoryError> {
        let corrupt = |reason: String| Err(RepositoryError::corrupt(path, reason));
        match (system_identifier, segment_bytes) {
            (Some(wanted), _) if wanted != self.system_identifier => corrupt(format!(
                "is WAL of cluster {}, and the backup of {wanted}",
                self.system_identifier
            )),
            (_, Some(wanted)) if wanted != self.segment_bytes => corrupt(format!(
                "is of segments of {} bytes, and the backup of {wanted}",
                self.segment_bytes
            )),
            _ => Ok(()),
        }
    }
}

fn parse(head: &[u8; HEAD_BYTES]) -> Result<WalHead, String> {
    let (_, fields) = head.split_at(24);
    let system_identifier = u64::from_ne_bytes(fields.first_chunk().copied().unwrap_or_default());
    let size = u32::from_ne_bytes(fields.last_chunk().copied().unwrap_or_default());
    let segment_bytes = u64::from(size);
    // XLOG_PAGE_MAGIC has been 0xD0xx and 0xD1xx.
    let magic = u16::from_ne_bytes(head.first_chunk().copied().unwrap_or_default());
    if !matches!(magic >> 8, 0xD0 | 0xD1) {
        return Err("does not begin as WAL does".to_owned());
    }
    match segment_bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&segment_bytes) {
        true => Ok(WalHead {
            system_identifier,
            segment_bytes,
        }),
        false => Err(format!("says that segments have {segment_bytes} bytes")),
    }
}

/// Whether bytes begin as a segment does, also one that is compressed; for fuzzing.
pub fn wal_head_is_sound(bytes: &[u8]) -> bool {
    let head = bytes.first_chunk().map(parse);
    super::compression_of(bytes).is_ok() && head.is_some_and(|head| head.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_page_tells_cluster_and_size_and_nonsense_is_refused() {
        let head = |magic: u16, size: u32| {
            let mut head = [0; HEAD_BYTES];
            head[..2].copy_from_slice(&magic.to_ne_bytes());
            head[24..32].copy_from_slice(&7_u64.to_ne_bytes());
            head[32..].copy_from_slice(&size.to_ne_bytes());
            head
        };
        let found = parse(&head(0xD110, 16 << 20)).unwrap();
        assert_eq!(
            (found.system_identifier, found.segment_bytes),
            (7, 16 << 20)
        );
        for (magic, size) in [
            (0, 16 << 20),
            (0xD110, 0),
            (0xD110, 3 << 20),
            (0xD110, 1 << 31),
        ] {
            assert!(parse(&head(magic, size)).is_err(), "{magic:x} {size}");
        }
    }
}
