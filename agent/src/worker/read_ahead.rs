//! How far the kernel reads ahead of who reads files of the mount.
//!
//! The kernel offers 128 KiB, and the answer to its first request can only lower what is set: so it is set after that answer.

use std::io;
use std::path::Path;

/// What the kernel reads ahead at most: several of its largest requests, so that the backup always has a question to answer.
const READ_AHEAD_KIB: u32 = 4096;

/// Raises the read-ahead of the mount.
pub(super) fn raise(point: &Path) -> io::Result<()> {
    // Not by stat: nobody answers yet.
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = point.to_string_lossy();
    let device = table.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        let device = words.nth(2)?;
        (words.nth(1)? == wanted).then_some(device)
    });
    let device = device.ok_or(io::ErrorKind::NotFound)?;
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    std::fs::write(path, READ_AHEAD_KIB.to_string())
}
