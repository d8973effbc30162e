//! A disk in memory whose power can be cut.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests"
)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agent::cache::Ino;
use agent::cache::disk::{Disk, DiskFile, DiskName, DiskStat, VolumeSpace};
use agent::cache::record::Nanoseconds;

use crate::chance::Random;

/// One effect on a file that is not durable yet.
#[derive(Debug, Clone)]
pub(crate) enum Effect {
    Write(u64, Vec<u8>),
    Size(u64),
    Zero(u64, u64),
}

#[derive(Debug, Default, Clone)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<Effect>,
    // Stands in for the time of the last change.
    changes: i64,
    // Ranges whose writing was begun.
    written_back: Vec<(u64, u64)>,
}

impl Content {
    fn change(&mut self, effect: Effect) {
        self.changes += 1;
        self.pending.push(effect);
    }
}

pub(crate) fn apply(bytes: &mut Vec<u8>, effect: &Effect) {
    match effect {
        Effect::Write(offset, written) => {
            let (from, to) = (*offset as usize, *offset as usize + written.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(written);
        }
        Effect::Size(size) => bytes.resize(*size as usize, 0),
        Effect::Zero(offset, length) => {
            let to = ((offset + length) as usize).min(bytes.len());
            let from = (*offset as usize).min(to);
            bytes[from..to].fill(0);
        }
    }
}

impl Content {
    fn now(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.pending
            .iter()
            .for_each(|effect| apply(&mut bytes, effect));
        bytes
    }
}

/// A disk in memory whose power can be cut.
#[derive(Debug, Default)]
pub(crate) struct VolatileDisk {
    names: Mutex<BTreeMap<DiskName, Arc<Mutex<Content>>>>,
    durable_names: Mutex<BTreeMap<DiskName, Arc<Mutex<Content>>>>,
    /// How often everything on it was flushed at once.
    pub(crate) whole_flushes: AtomicUsize,
}

impl VolatileDisk {
    /// The disk after a power cut: of what was not flushed any part may be there or not.
    pub(crate) fn cut(&self, random: &mut Random) -> Self {
        let after = Self::default();
        let (names, durable) = (
            self.names.lock().unwrap(),
            self.durable_names.lock().unwrap(),
        );
        let all: std::collections::BTreeSet<_> = names.keys().chain(durable.keys()).collect();
        for name in all {
            // A name that changed since it was flushed is as it was or as it is.
            let survives = if random.below(2) == 0 {
                names.get(name)
            } else {
                durable.get(name)
            };
            if let Some(content) = survives {
                let content = content.lock().unwrap();
                let mut bytes = content.durable.clone();
                for effect in &content.pending {
                    match effect {
                        Effect::Write(offset, written) if random.below(4) == 0 => {
                            // Torn at a sector.
                            let kept = random.below(written.len() as u64 + 1) as usize / 512 * 512;
                            apply(
                                &mut bytes,
                                &Effect::Write(*offset, written[..kept].to_vec()),
                            );
                        }
                        _ if random.below(2) == 0 => apply(&mut bytes, effect),
                        _ => {}
                    }
                }
                let content = Arc::new(Mutex::new(Content {
                    durable: bytes,
                    ..Content::default()
                }));
                after.names.lock().unwrap().insert(*name, content.clone());
                after.durable_names.lock().unwrap().insert(*name, content);
            }
        }
        after
    }

    /// Takes what of a node's data file was begun to be written.
    pub(crate) fn take_written_back(&self, ino: Ino) -> Vec<(u64, u64)> {
        let names = self.names.lock().unwrap();
        let content = names.get(&DiskName::Data(ino)).cloned();
        content.map_or_else(Vec::new, |content| {
            std::mem::take(&mut content.lock().unwrap().written_back)
        })
    }

    fn keep_names(&self, which: impl Fn(&DiskName) -> bool) {
        let names = self.names.lock().unwrap();
        let mut durable = self.durable_names.lock().unwrap();
        durable.retain(|name, _| !which(name));
        for (name, content) in names.iter().filter(|(name, _)| which(name)) {
            durable.insert(*name, content.clone());
        }
    }
}

impl Disk for VolatileDisk {
    fn open(&self, name: DiskName, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let mut names = self.names.lock().unwrap();
        if !create && !names.contains_key(&name) {
            return Ok(None);
        }
        Ok(Some(Arc::new(VolatileFile(
            names.entry(name).or_default().clone(),
        ))))
    }

    fn remove(&self, name: DiskName) -> io::Result<()> {
        self.names.lock().unwrap().remove(&name);
        Ok(())
    }

    fn rename(&self, from: DiskName, to: DiskName) -> io::Result<()> {
        let mut names = self.names.lock().unwrap();
        let content = names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to, content);
        Ok(())
    }

    fn sync_data_names(&self) -> io::Result<()> {
        self.keep_names(|name| matches!(name, DiskName::Data(_)));
        Ok(())
    }

    fn sync_catalog_name(&self) -> io::Result<()> {
        self.keep_names(|name| !matches!(name, DiskName::Data(_)));
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.whole_flushes.fetch_add(1, Ordering::Relaxed);
        self.keep_names(|_| true);
        for content in self.names.lock().unwrap().values() {
            VolatileFile(content.clone()).sync_data()?;
        }
        Ok(())
    }

    fn data_blocks(&self, ino: Ino) -> io::Result<u64> {
        let names = self.names.lock().unwrap();
        let content = names.get(&DiskName::Data(ino));
        Ok(content.map_or(0, |content| {
            content.lock().unwrap().now().len() as u64 / 512
        }))
    }

    fn volume(&self) -> io::Result<VolumeSpace> {
        Ok(VolumeSpace {
            total_bytes: 2,
            free_bytes: 2,
        })
    }

    fn data_files(&self) -> io::Result<Vec<Ino>> {
        let names = self.names.lock().unwrap();
        let number = |name: &DiskName| match name {
            DiskName::Data(ino) => Some(*ino),
            _ => None,
        };
        Ok(names.keys().filter_map(number).collect())
    }
}

#[derive(Debug)]
struct VolatileFile(Arc<Mutex<Content>>);

impl DiskFile for VolatileFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().unwrap().now();
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let effect = Effect::Write(offset, bytes.to_vec());
        self.0.lock().unwrap().change(effect);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.durable = content.now();
        content.pending.clear();
        Ok(())
    }

    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().written_back.push((offset, length));
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.lock().unwrap().change(Effect::Size(size));
        Ok(())
    }

    fn stat(&self) -> io::Result<DiskStat> {
        let content = self.0.lock().unwrap();
        Ok(DiskStat {
            size: content.now().len() as u64,
            blocks: 0,
            modified_at: 0,
            changed_at: content.changes,
            accessed_at: 0,
        })
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        let size = self.stat()?.size;
        let mut content = self.0.lock().unwrap();
        if mode & (2 | 16) != 0 {
            content.change(Effect::Zero(offset, length));
        }
        if mode & 1 == 0 && offset + length > size {
            content.change(Effect::Size(offset + length));
        }
        Ok(())
    }

    fn set_times(&self, _accessed_at: Nanoseconds, _modified_at: Nanoseconds) -> io::Result<()> {
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
