//! The content of a disk: a file below, and over it what was written since; the file below is left as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The smallest piece that a disk writes whole or not at all.
pub(crate) const SECTOR_BYTES: u64 = 512;

pub(crate) struct Image {
    below: File,
    over: File,
    // One bit for each sector: whether it was written.
    written: Vec<u64>,
    size_bytes: u64,
}

impl Image {
    /// What `below` holds; what is written goes to a file without a name in the directory.
    pub(crate) fn over(below: File, directory: &Path) -> io::Result<Self> {
        let size_bytes = below.metadata()?.len();
        let words = size_bytes.div_ceil(SECTOR_BYTES * 64);
        Ok(Self {
            below,
            over: tempfile::tempfile_in(directory)?,
            written: vec![0; words as usize],
            size_bytes,
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_written(&self, sector: u64) -> bool {
        self.written[(sector / 64) as usize] >> (sector % 64) & 1 == 1
    }

    /// Whole sectors only, as block devices are read.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let end = (offset + length).min(self.size_bytes);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let (first, last) = (offset / SECTOR_BYTES, end / SECTOR_BYTES);
        let mut sector = first;
        while sector < last {
            let is_written = self.is_written(sector);
            let from = sector;
            while sector < last && self.is_written(sector) == is_written {
                sector += 1;
            }
            let file = if is_written { &self.over } else { &self.below };
            let at = |sector: u64| ((sector - first) * SECTOR_BYTES) as usize;
            file.read_exact_at(&mut bytes[at(from)..at(sector)], from * SECTOR_BYTES)?;
        }
        Ok(bytes)
    }

    /// Whole sectors only.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        let fits = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        if !fits || offset + length > self.size_bytes {
            return Err(io::Error::other(format!(
                "{length} bytes at {offset} are no sectors of this disk"
            )));
        }
        self.over.write_all_at(bytes, offset)?;
        for sector in offset / SECTOR_BYTES..(offset + length) / SECTOR_BYTES {
            self.written[(sector / 64) as usize] |= 1 << (sector % 64);
        }
        Ok(())
    }

    /// All of it in one file, without a name.
    pub(crate) fn to_file(&self, directory: &Path) -> io::Result<File> {
        let file = super::copy_of(&self.below, directory)?;
        let end = self.size_bytes / SECTOR_BYTES;
        let mut sector = 0;
        while sector < end {
            let from = sector;
            while sector < end && self.is_written(sector) {
                sector += 1;
            }
            let (offset, length) = (from * SECTOR_BYTES, (sector - from) * SECTOR_BYTES);
            file.write_all_at(&self.read(offset, length)?, offset)?;
            sector += u64::from(from == sector);
        }
        Ok(file)
    }
}
