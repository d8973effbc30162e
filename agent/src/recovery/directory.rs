//! One directory of the final place: what is in it, moving it aside, and bringing it back.
//!
//! The OS user does the work wherever it may. Only where the parent is not its own do we act with our own credentials, and then only
//! on an entry of that parent, which the OS user cannot exchange.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::problem::{ErrorCode, Problem};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::io_failed;
use crate::hand::os_user::Account;
use crate::hand::session::{DEPTH_MAX, mounted, remove_tree};

/// What was in a directory's place before us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Before {
    /// Nothing.
    Missing,
    /// A directory without entries.
    Empty {
        /// The directory itself, where `path` is a link to it.
        real: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory that was, or is about to be, renamed.
    Aside {
        /// The directory itself, where `path` is a link to it.
        real: PathBuf,
        /// Its name now.
        to: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// What is in a directory's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    Empty {
        /// The directory itself, where the path is a link to it.
        real: PathBuf,
        mode: u32,
    },
    Occupied {
        /// The directory itself, where the path is a link to it.
        real: PathBuf,
        mode: u32,
    },
}

/// Looks in the name of the OS user; what is no directory of that user is refused.
pub(super) fn look(path: &Path, account: &Account) -> Result<Found, Problem> {
    let looked = account.act(|| -> std::io::Result<_> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let real = std::fs::canonicalize(path)?;
        let facts = std::fs::metadata(&real)?;
        let entries = match facts.is_dir() && facts.uid() == account.uid {
            true => std::fs::read_dir(&real)?.next().is_some(),
            false => true,
        };
        Ok(Some((real, facts, entries)))
    })?;
    let looked = looked.map_err(|e| io_failed(format!("look at {}", path.display()), e))?;
    let Some((real, facts, occupied)) = looked else {
        return Ok(Found::Missing);
    };
    if !facts.is_dir() {
        return Err(Problem::new(
            ErrorCode::DirectoryNotEmpty,
            format!("{} is no directory", path.display()),
            "name another directory",
        ));
    }
    if facts.uid() != account.uid {
        return Err(Problem::new(
            ErrorCode::PermissionDenied,
            format!("{} does not belong to {}", path.display(), account.name),
            format!(
                "name a directory of {}, or one that is not there yet",
                account.name
            ),
        ));
    }
    let mode = facts.mode() & 0o7777;
    Ok(match occupied {
        true => Found::Occupied { real, mode },
        false => Found::Empty { real, mode },
    })
}

/// The name under which a directory is set aside.
pub(super) fn aside_name(real: &Path, session: &str) -> PathBuf {
    let mut name = real.file_name().unwrap_or_default().to_owned();
    name.push(format!(".before-{session}"));
    real.with_file_name(name)
}

/// Refuses a directory that cannot be renamed.
pub(super) fn check_movable(real: &Path, to: &Path) -> Result<(), Problem> {
    if mounted(real)? {
        return Err(Problem::new(
            ErrorCode::DirectoryNotEmpty,
            format!(
                "{} is a mount point and cannot be moved aside",
                real.display()
            ),
            "name a directory below it, or move its contents away yourself",
        ));
    }
    if to.symlink_metadata().is_ok() {
        return Err(Problem::new(
            ErrorCode::DirectoryNotEmpty,
            format!("{} is in the way", to.display()),
            "move it away: this session did not make it",
        ));
    }
    Ok(())
}

/// Renames a directory within its parent; done already is fine.
pub(super) fn move_aside(real: &Path, to: &Path, account: &Account) -> Result<(), Problem> {
    if to.symlink_metadata().is_ok() {
        return Ok(());
    }
    rename(real, to, RenameFlags::NOREPLACE, account)
}

/// Brings a directory back over the empty one that we made in its place; done already is fine.
pub(super) fn move_back(real: &Path, to: &Path, account: &Account) -> Result<(), Problem> {
    if to.symlink_metadata().is_err() {
        return Ok(());
    }
    // Renaming over a directory replaces it only if it is empty, in one step.
    rename(to, real, RenameFlags::empty(), account)
}

fn rename(from: &Path, to: &Path, flags: RenameFlags, account: &Account) -> Result<(), Problem> {
    let to_name = to.file_name().unwrap_or_default();
    let work = |parent: BorrowedFd<'_>, name: &OsStr| -> Result<(), Errno> {
        match rustix::fs::renameat_with(parent, name, parent, to_name, flags) {
            // A file system that does not know the flag; we have looked before.
            Err(Errno::INVAL) => rustix::fs::renameat(parent, name, parent, to_name),
            other => other,
        }
    };
    let doing = || format!("rename {} to {}", from.display(), to.display());
    in_parent(from, account, work, doing)
}

/// Makes the directory, the OS user's own; there already is fine.
pub(super) fn make(path: &Path, mode: u32, account: &Account) -> Result<(), Problem> {
    let work = |parent: BorrowedFd<'_>, name: &OsStr| -> Result<(), Errno> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let owner = rustix::fs::fstat(&made)?.st_uid;
        if owner != account.uid && owner == rustix::process::geteuid().as_raw() {
            let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
            rustix::fs::fchown(&made, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))
    };
    in_parent(path, account, work, || format!("make {}", path.display()))
}

/// Removes an empty directory that we made; gone already is fine.
pub(super) fn remove_empty(path: &Path, account: &Account) -> Result<(), Problem> {
    let work = |parent: BorrowedFd<'_>, name: &OsStr| -> Result<(), Errno> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    };
    in_parent(path, account, work, || format!("remove {}", path.display()))
}

/// Removes everything in a directory, following nothing and staying on its device.
pub(super) fn clear(path: &Path, account: &Account) -> Result<(), Problem> {
    let cleared = account.act(|| -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        let device = rustix::fs::fstat(&directory)?.st_dev;
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let facts = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if rustix::fs::FileType::from_raw_mode(facts.st_mode) == rustix::fs::FileType::Directory
            {
                let name = name.to_str().map_err(|_| Errno::ILSEQ)?;
                remove_tree(directory.as_fd(), name, device, DEPTH_MAX)?;
            } else {
                rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
            }
        }
        rustix::fs::fsync(&directory)
    })?;
    cleared.map_err(|e| io_failed(format!("empty {}", path.display()), e.into()))
}

/// Works on an entry of its parent, as the OS user if that is allowed to, and makes it durable.
fn in_parent(
    path: &Path,
    account: &Account,
    work: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<(), Errno> + Sync,
    doing: impl Fn() -> String,
) -> Result<(), Problem> {
    let fail = |error: std::io::Error| io_failed(doing(), error);
    let parent = File::open(path.parent().unwrap_or(Path::new("/"))).map_err(fail)?;
    let name = path.file_name().unwrap_or_default();
    let done = match account.act(|| work(parent.as_fd(), name))? {
        Err(Errno::ACCESS | Errno::PERM)
            if parent.metadata().map_err(fail)?.uid() != account.uid =>
        {
            work(parent.as_fd(), name)
        }
        other => other,
    };
    match done {
        Ok(()) => parent.sync_all().map_err(fail),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(Problem::new(
            ErrorCode::DirectoryNotEmpty,
            format!("{}: something is there", doing()),
            "find out who put it there, and move it away",
        )),
        Err(error) => Err(fail(error.into())),
    }
}
