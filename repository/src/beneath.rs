//! Opening files below a directory without ever following a link: each part of the path is opened by
//! itself with `O_NOFOLLOW`, so no rename or link made meanwhile leads elsewhere.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Opens a directory that the configuration (not a backup) names; links in its path are followed.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a directory below `root`; an empty path is `root` itself.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = openat(root, ".", flags, Mode::empty())?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        refuse_dots(part)?;
        directory = openat(&directory, part, flags, Mode::empty())?;
    }
    Ok(directory)
}

/// Opens a regular file below `root` for reading.
pub(crate) fn open_file(root: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    refuse_dots(name)?;
    let directory = match directory {
        "" => None,
        path => Some(open_directory(root, path)?),
    };
    // O_NONBLOCK: a named pipe put there meanwhile must not hold us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let at = directory.as_ref().map_or(root, AsFd::as_fd);
    let file = File::from(openat(at, name, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

fn refuse_dots(part: &str) -> io::Result<()> {
    match part {
        "" | "." | ".." => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        _ => Ok(()),
    }
}

/// `RWF_DONTCACHE` of Linux 6.14 (`linux/fs.h`), for which rustix has no name yet.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Reads once, and leaves behind in the page cache only what was there before: whoever asks keeps what it got, and a second copy
/// here would cost fresh memory for every page. Where that cannot be had it is an ordinary read.
fn read_once_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    match preadv2(file, &mut [IoSliceMut::new(buffer)], offset, DONT_CACHE) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => file.read_at(buffer, offset),
        result => Ok(result?),
    }
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_full_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    fill(offset, buffer, |offset, rest| file.read_at(rest, offset))
}

/// As [`read_full_at`], for pages that are handed on.
pub(crate) fn read_pages_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    fill(offset, buffer, |offset, rest| {
        read_once_at(file, offset, rest)
    })
}

/// Reads until the buffer is full or nothing comes any more.
pub(crate) fn fill(
    offset: u64,
    buffer: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(offset + done as u64, rest) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
