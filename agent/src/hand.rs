//! The hand: answers typed requests, one JSON line each, about the host, the mount and PostgreSQL.
//!
//! A bad line, a failed request or a panic in one is answered with a [`Problem`] and ends nothing else.

pub mod command;
mod dispatch;
pub mod fuse_mounts;
pub mod host;
pub mod listen;
pub mod mounts;
pub mod os_user;
pub mod port;
pub mod serve;
pub mod session;
mod turn;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use common::problem::{ErrorCode, Problem};

pub use dispatch::Hand;

/// A failed system call as a problem: what was being done, why it failed, and what usually helps.
pub fn failure(code: ErrorCode, doing: impl AsRef<str>, error: io::Error) -> Problem {
    let (code, remedy) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
            ErrorCode::NotEnoughSpace,
            "make room on that volume and retry",
        ),
        io::ErrorKind::PermissionDenied => (
            ErrorCode::PermissionDenied,
            "run the agent as root, and check the permissions on the path",
        ),
        io::ErrorKind::NotConnected => (
            ErrorCode::MountFailed,
            "the mount is dead: mount the session again",
        ),
        _ => (code, "look at the message, mend the cause and retry"),
    };
    Problem::new(code, format!("{}: {error}", doing.as_ref()), remedy)
}

/// Writes a file so that after a power cut either the old or the new text is there.
pub fn write_durably(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
