//! How WAL is compressed, where names do not tell: in archives of Barman, and in plain directories.

use super::storage::StoredWal;
use crate::RepositoryError;
use crate::pgbackrest::Compression;

/// What is looked at of a file's beginning.
pub(crate) const MAGIC_BYTES: u64 = 6;

impl StoredWal {
    /// Finds out how it is compressed: a segment, which begins as WAL or as something compressed, or a history, which is text.
    pub(crate) fn recognise(&mut self, is_segment: bool) -> Result<(), RepositoryError> {
        let beginning = self.file.read_beginning(MAGIC_BYTES);
        let beginning =
            beginning.map_err(|error| RepositoryError::unreadable(&self.path, "read", error))?;
        match compression_of(&beginning) {
            Ok(compression) => self.compression = compression,
            Err(_) if !is_segment || self.is_partial => {}
            Err(what) => {
                return Err(RepositoryError::unsupported(
                    &self.path,
                    what,
                    "keep WAL with compression gzip, bzip2, xz, zstd, lz4 or none, and without encryption",
                ));
            }
        }
        Ok(())
    }
}

/// How a segment is compressed. What it is, else.
pub(crate) fn compression_of(beginning: &[u8]) -> Result<Compression, &'static str> {
    const KNOWN: [(&[u8], Compression); 5] = [
        (b"\x1f\x8b\x08", Compression::Gz),
        (b"BZh", Compression::Bz2),
        (b"\x28\xb5\x2f\xfd", Compression::Zst),
        (b"\x04\x22\x4d\x18", Compression::Lz4),
        (b"\xfd7zXZ\0", Compression::Xz),
    ];
    let known = KNOWN.iter().find(|(magic, _)| beginning.starts_with(magic));
    if let Some((_, compression)) = known {
        return Ok(*compression);
    }
    // XLOG_PAGE_MAGIC has been 0xD0xx and 0xD1xx, in the machine's byte order.
    match beginning {
        [_, 0xD0 | 0xD1, ..] => Ok(Compression::None),
        [0xFF, 0x06, 0, 0, b's', b'N'] => Err("is compressed by snappy, which cannot be read"),
        _ => Err(
            "is no WAL and no WAL compressed in a way that is known: encrypted, or by a filter of its own",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_segment_tells_its_compression() {
        for (beginning, wanted) in [
            (&b"\x10\xd1\x07\0\x01\0"[..], Some(Compression::None)),
            (b"\x1f\x8b\x08\0\0\0", Some(Compression::Gz)),
            (b"BZh91A", Some(Compression::Bz2)),
            (b"\x28\xb5\x2f\xfd\0\0", Some(Compression::Zst)),
            (b"\x04\x22\x4d\x18\0\0", Some(Compression::Lz4)),
            (b"\xfd7zXZ\0", Some(Compression::Xz)),
            (b"\xff\x06\0\0sN", None),
            (b"\0\0\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(compression_of(beginning).ok(), wanted, "{beginning:?}");
        }
    }
}
