//! A disk whose power can be cut, as a real block device: a loop device over a file of a FUSE file system of this process, which
//! writes down every write and every flush that the device asks for.
//!
//! The file is opened past the page cache, so a write that the device has answered is in the log, and nothing is in it
//! that a flush would still have to bring.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests"
)]

mod image;
mod log;

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::fs::SeekFrom;
use rustix::io::Errno as SystemErrno;
use rustix::mount::{MountFlags, UnmountFlags};

pub(crate) use image::Image;
pub(crate) use log::{CrashImages, Entry, Flushes, Log, Survivors};

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// How long processes that have been killed may keep files of a volume open.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(3600);

/// What the disk holds, and what was asked of it.
pub(crate) struct Content {
    pub(crate) image: Image,
    /// None for a disk of which nobody will ask.
    pub(crate) log: Option<Log>,
}

type Shared = Arc<Mutex<Content>>;

fn lock(content: &Shared) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

struct DiskFiles(Shared);

impl DiskFiles {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            FILE => {
                let size = lock(&self.0).image.size_bytes();
                (FileType::RegularFile, 0o600, size)
            }
            _ => (FileType::Directory, 0o700, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for DiskFiles {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_write(WRITE_BYTES_MAX).ok();
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).image.read(offset, size.into()) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut content = lock(&self.0);
        let mut written = content.image.write(offset, data);
        if let (Ok(()), Some(log)) = (&written, &mut content.log) {
            written = log.write(offset, data);
        }
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // A close, which asks nothing of a disk.
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(log) = &mut lock(&self.0).log {
            log.flush();
        }
        reply.ok();
    }
}

/// The block device; gone when dropped.
pub(crate) struct LoopDisk {
    content: Shared,
    session: Option<BackgroundSession>,
    directory: tempfile::TempDir,
    device: PathBuf,
}

fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(io::Error::other(format!("{command:?}: {said}"))),
    }
}

impl LoopDisk {
    pub(crate) fn attach(image: Image, log: Option<Log>) -> io::Result<Self> {
        let content = Arc::new(Mutex::new(Content { image, log }));
        let directory = tempfile::Builder::new().prefix("loop-disk-").tempdir()?;
        let mut config = Config::default();
        config
            .mount_options
            .push(MountOption::FSName("loop-disk".to_owned()));
        // One thread, so that the log has one order.
        let files = DiskFiles(content.clone());
        let session = fuser::spawn_mount(files, directory.path(), &config)?;
        let mut disk = Self {
            content,
            session: Some(session),
            directory,
            device: PathBuf::new(),
        };
        let file = disk.directory.path().join(NAME);
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file))?;
        disk.device = PathBuf::from(device);
        Ok(disk)
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// How many writes and flushes the disk was asked for so far.
    pub(crate) fn position(&self) -> Position {
        Position(self.content.clone())
    }

    /// Detaches the device and gives what was written down.
    pub(crate) fn end(self) -> Option<Log> {
        let content = self.content.clone();
        drop(self);
        lock(&content).log.take()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if !self.device.as_os_str().is_empty() {
            run(Command::new("losetup").arg("--detach").arg(&self.device)).ok();
        }
        if let Some(session) = self.session.take() {
            // The device may be used still, after a failure: then it has errors from now on.
            rustix::mount::unmount(self.directory.path(), UnmountFlags::DETACH).ok();
            drop(session);
        }
    }
}

/// Says at any time how far the log is.
#[derive(Clone)]
pub(crate) struct Position(Shared);

impl Position {
    pub(crate) fn now(&self) -> usize {
        let content = lock(&self.0);
        content.log.as_ref().map_or(0, |log| log.entries().len())
    }
}

/// A disk with a new, empty ext4 file system on it, as a file.
pub(crate) fn formatted(directory: &Path, size_bytes: u64) -> io::Result<File> {
    let path = directory.join("formatted");
    File::create_new(&path)?.set_len(size_bytes)?;
    // Nothing is left to be initialised later, which would be much of the log.
    run(Command::new("mkfs.ext4")
        .args(["-q", "-m", "0", "-N", "16384", "-J", "size=16"])
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg(&path))?;
    let file = File::options().read(true).write(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// A copy of a disk's file, without a name.
pub(crate) fn copy_of(file: &File, directory: &Path) -> io::Result<File> {
    let copy = tempfile::tempfile_in(directory)?;
    copy.set_len(file.metadata()?.len())?;
    let mut at = 0;
    while let Ok(from) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, SeekFrom::Hole(from))?;
        let mut bytes = vec![0; (at - from) as usize];
        file.read_exact_at(&mut bytes, from)?;
        copy.write_all_at(&bytes, from)?;
    }
    Ok(copy)
}

/// A mounted ext4; unmounted when dropped.
pub(crate) struct Volume(PathBuf);

impl Volume {
    pub(crate) fn mount(disk: &LoopDisk, at: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(at)?;
        let flags = MountFlags::empty();
        rustix::mount::mount(disk.device(), at, "ext4", flags, None::<&CStr>)?;
        Ok(Self(at.to_owned()))
    }

    /// Unmounts, once nobody uses it any more.
    pub(crate) fn unmount(self) -> io::Result<()> {
        let began_at = Instant::now();
        while let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::empty()) {
            if error != SystemErrno::BUSY || began_at.elapsed() > IDLE_LIMIT {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever uses it still, after a failure, goes on without it being seen.
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}
