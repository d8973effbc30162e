//! The effects of the cache on its directory, behind traits, so that a crash harness can stand in for the disk.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Timespec, Timestamps};

use super::record::Nanoseconds;
use super::{Ino, uncached};

/// A file of the cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DiskName {
    /// Content of a node.
    Data(Ino),
    /// The catalog.
    Catalog,
    /// The catalog's successor while it is written.
    CatalogNew,
}

/// What a data file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskStat {
    /// Size, in bytes.
    pub size: u64,
    /// Occupied blocks of 512 bytes.
    pub blocks: u64,
    /// Last change of the content.
    pub modified_at: Nanoseconds,
    /// Last change of anything.
    pub changed_at: Nanoseconds,
    /// Last read.
    pub accessed_at: Nanoseconds,
}

/// Space of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSpace {
    /// Size, in bytes.
    pub total_bytes: u64,
    /// What is free for us, in bytes.
    pub free_bytes: u64,
}

impl VolumeSpace {
    // What copies leave free to writers.
    fn kept_free(&self) -> u64 {
        (self.total_bytes / 20).max(COPIES_LEAVE_BYTES.min(self.total_bytes / 10))
    }

    /// Whether there is room for what need not be kept: the rest is left to writers.
    pub fn has_room_for_copies(&self) -> bool {
        // A little above what is given back for, so that copies do not come and go.
        let kept_free = self.kept_free();
        self.free_bytes > kept_free + kept_free / 8
    }

    /// How much less is free than is kept free, in bytes.
    pub fn shortage(&self) -> u64 {
        self.kept_free().saturating_sub(self.free_bytes)
    }
}

/// What copies of the backup leave free on a large volume, in bytes; on a small one a tenth.
const COPIES_LEAVE_BYTES: u64 = 1024 * 1024 * 1024;

/// A directory for the cache's files.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file for reading and writing; makes it if wanted.
    fn open(&self, name: DiskName, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>>;
    /// Removes a file; found gone is fine.
    fn remove(&self, name: DiskName) -> io::Result<()>;
    /// Moves a file over another.
    fn rename(&self, from: DiskName, to: DiskName) -> io::Result<()>;
    /// Makes the names of the data files durable.
    fn sync_data_names(&self) -> io::Result<()>;
    /// Makes the catalog's name durable.
    fn sync_catalog_name(&self) -> io::Result<()>;
    /// Makes everything durable.
    fn sync_all(&self) -> io::Result<()>;
    /// Blocks of 512 bytes that a node's data file occupies; none if it is not there.
    fn data_blocks(&self, ino: Ino) -> io::Result<u64>;
    /// The volume's size and what of it is free, in bytes.
    fn volume(&self) -> io::Result<VolumeSpace>;
    /// Numbers of all data files.
    fn data_files(&self) -> io::Result<Vec<Ino>>;
}

/// One open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads until the buffer is full or the file ends; says how many bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all or fails.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// As [`DiskFile::write_at`], for bytes that somebody else has in memory: they need not stay there a second time.
    fn write_copy_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)
    }
    /// Makes the content durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Begins to write a range to the disk, to the end where the length is 0; promises nothing.
    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Cuts or lengthens.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Attributes.
    fn stat(&self) -> io::Result<DiskStat>;
    /// `fallocate` with the kernel's mode bits.
    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()>;
    /// Sets access and modification time.
    fn set_times(&self, accessed_at: Nanoseconds, modified_at: Nanoseconds) -> io::Result<()>;
    /// The descriptor, where there is a real one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// A real directory.
#[derive(Debug)]
pub struct RealDisk {
    directory: PathBuf,
    data: File,
    own: File,
}

impl RealDisk {
    /// Opens the cache directory, making it and its `data` if they are not there.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let data = directory.join("data");
        std::fs::create_dir_all(&data)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            data: File::open(data)?,
            own: File::open(directory)?,
        })
    }

    fn path(&self, name: DiskName) -> PathBuf {
        match name {
            DiskName::Data(ino) => self.directory.join("data").join(ino.to_string()),
            DiskName::Catalog => self.directory.join("catalog"),
            DiskName::CatalogNew => self.directory.join("catalog.new"),
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, name: DiskName, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .mode(0o600)
            .open(self.path(name));
        match opened {
            Ok(file) => Ok(Some(Arc::new(RealFile(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: DiskName) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: DiskName, to: DiskName) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn sync_data_names(&self) -> io::Result<()> {
        self.data.sync_all()
    }

    fn sync_catalog_name(&self) -> io::Result<()> {
        self.own.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.own)?)
    }

    fn data_blocks(&self, ino: Ino) -> io::Result<u64> {
        match std::fs::metadata(self.path(DiskName::Data(ino))) {
            Ok(data) => Ok(data.blocks()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn volume(&self) -> io::Result<VolumeSpace> {
        let volume = rustix::fs::fstatvfs(&self.own)?;
        Ok(VolumeSpace {
            total_bytes: volume.f_blocks.saturating_mul(volume.f_frsize),
            free_bytes: volume.f_bavail.saturating_mul(volume.f_frsize),
        })
    }

    fn data_files(&self) -> io::Result<Vec<Ino>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(self.directory.join("data"))? {
            if let Some(number) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn write_copy_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        uncached::write_all_at(&self.0, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()> {
        crate::sys::start_writeback(self.0.as_fd(), offset, length)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn stat(&self) -> io::Result<DiskStat> {
        let stat = self.0.metadata()?;
        Ok(DiskStat {
            size: stat.size(),
            blocks: stat.blocks(),
            modified_at: stat.mtime() * 1_000_000_000 + stat.mtime_nsec(),
            changed_at: stat.ctime() * 1_000_000_000 + stat.ctime_nsec(),
            accessed_at: stat.atime() * 1_000_000_000 + stat.atime_nsec(),
        })
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(&self.0, mode, offset, length)?)
    }

    fn set_times(&self, accessed_at: Nanoseconds, modified_at: Nanoseconds) -> io::Result<()> {
        let time = |at: Nanoseconds| Timespec {
            tv_sec: at.div_euclid(1_000_000_000),
            tv_nsec: at.rem_euclid(1_000_000_000) as _,
        };
        let times = Timestamps {
            last_access: time(accessed_at),
            last_modification: time(modified_at),
        };
        Ok(rustix::fs::futimens(&self.0, &times)?)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}
