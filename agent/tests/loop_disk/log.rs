//! What was asked of a disk, in its order, and what a power cut may leave of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::{Image, SECTOR_BYTES};
use crate::chance::Random;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Bytes for this offset of the disk; they lie at `at` of the log's own file.
    Write { offset: u64, length: u64, at: u64 },
    /// Everything that was written before is on the disk when this is answered; also what was written just before, whose
    /// answer may not have come to the device yet.
    Flush,
}

pub(crate) struct Log {
    bytes: File,
    length: u64,
    entries: Vec<Entry>,
}

impl Log {
    pub(crate) fn in_directory(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            bytes: tempfile::tempfile_in(directory)?,
            length: 0,
            entries: Vec::new(),
        })
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes.write_all_at(bytes, self.length)?;
        let (length, at) = (bytes.len() as u64, self.length);
        self.length += length;
        let entry = Entry::Write { offset, length, at };
        self.entries.push(entry);
        Ok(())
    }

    pub(crate) fn flush(&mut self) {
        self.entries.push(Entry::Flush);
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn bytes(&self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.bytes.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// What of the writes since the last flush is there after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survivors {
    Nothing,
    Everything,
    /// Any of them, some of them torn between sectors.
    Some,
}

/// Whether the disk does what a flush asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flushes {
    Kept,
    /// It has ignored the flushes among so many last entries.
    IgnoredSince(usize),
}

/// Disks after power cuts, one after the other, each later than the one before.
pub(crate) struct CrashImages {
    log: Arc<Log>,
    // As the disk is when all entries before `applied` are on it.
    durable: File,
    applied: usize,
    directory: PathBuf,
}

impl CrashImages {
    /// Of a disk that held `durable` when the log began; the file is changed.
    pub(crate) fn new(log: Arc<Log>, durable: File, directory: &Path) -> Self {
        Self {
            log,
            durable,
            applied: 0,
            directory: directory.to_owned(),
        }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The disk when the power was cut before the entry `cut`: all that had been flushed, and of the rest what survives.
    pub(crate) fn cut(
        &mut self,
        cut: usize,
        (flushes, survivors): (Flushes, Survivors),
        random: &mut Random,
    ) -> io::Result<Image> {
        let honest = match flushes {
            Flushes::Kept => cut,
            Flushes::IgnoredSince(count) => cut.saturating_sub(count),
        };
        let flushed = self.log.entries[..honest]
            .iter()
            .rposition(|entry| *entry == Entry::Flush)
            .unwrap_or(0);
        assert!(self.applied <= flushed, "cuts go forward");
        for entry in &self.log.entries[self.applied..flushed] {
            if let Entry::Write { offset, length, at } = *entry {
                let bytes = self.log.bytes(at, length)?;
                self.durable.write_all_at(&bytes, offset)?;
            }
        }
        self.applied = flushed;
        let mut image = Image::over(self.durable.try_clone()?, &self.directory)?;
        // How much of what was not flushed survives differs from cut to cut.
        let kept_of_8 = random.below(9);
        for entry in &self.log.entries[flushed..cut] {
            let Entry::Write { offset, length, at } = *entry else {
                continue;
            };
            let kept = match survivors {
                Survivors::Nothing => continue,
                Survivors::Everything => (0, length),
                Survivors::Some if random.below(8) < kept_of_8 => (0, length),
                Survivors::Some if random.below(4) == 0 => torn(length, random),
                Survivors::Some => continue,
            };
            let bytes = self.log.bytes(at + kept.0, kept.1 - kept.0)?;
            image.write(offset + kept.0, &bytes)?;
        }
        Ok(image)
    }
}

/// Some sectors of a write, from which to which byte: anywhere, or only where pages of the file system begin.
fn torn(length: u64, random: &mut Random) -> (u64, u64) {
    let unit = [SECTOR_BYTES, 4096][random.below(2) as usize];
    let mut edge = || random.below(length / SECTOR_BYTES + 1) * SECTOR_BYTES / unit * unit;
    let (one, other) = (edge(), edge());
    (one.min(other), one.max(other))
}
