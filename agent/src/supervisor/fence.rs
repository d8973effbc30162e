//! The fence before a cache is used again: no process may still write into it through a mount that is dead.
//!
//! A file that the kernel serves by itself stays writable for whoever has it open, also when supervisor and worker are
//! gone and the mount point is. A lease on the data file tells: it is refused while anybody has the file open for writing.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::agent::hand::SessionPlace;
use common::problem::{ErrorCode, Problem};
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::io_problem;
use crate::sys::{self, Lease};

/// How long processes of the former mount get to end.
const LIMIT: Duration = Duration::from_secs(10);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Most processes that a problem names.
const NAMED_MAX: usize = 5;

/// A device's number, major and minor.
type Device = (u32, u32);

/// The mount that used the cache last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    /// Since when the machine runs: what was open before a restart is open no more.
    boot: String,
    /// The mount's own device.
    device: Device,
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn path(place: &SessionPlace) -> PathBuf {
    place.cache_directory().join("mounted")
}

/// Notes which mount uses the cache from now on.
pub(super) fn raise(place: &SessionPlace, device: Device) -> Result<(), Problem> {
    let mount = Former {
        boot: boot(),
        device,
    };
    let path = path(place);
    let write = || std::fs::write(&path, serde_json::to_vec(&mount)?);
    write().map_err(io_problem(format!("write {}", path.display())))
}

/// Waits until nobody can write into the cache through a former mount.
pub(super) fn wait(place: &SessionPlace) -> Result<(), Problem> {
    let text = std::fs::read(path(place)).unwrap_or_default();
    let Ok(former) = serde_json::from_slice::<Former>(&text) else {
        return Ok(());
    };
    if former.boot != boot() {
        return Ok(());
    }
    let data = place.cache_directory().join("data");
    let failed = || io_problem(format!("look at the files of {}", data.display()));
    let began_at = Instant::now();
    let mut open = data_files(&data).map_err(failed())?;
    loop {
        open = still_written(open, former.device).map_err(failed())?;
        if open.is_empty() {
            return Ok(());
        }
        if began_at.elapsed() > LIMIT {
            return Err(refusal(place, &holders(former.device, &open)));
        }
        std::thread::sleep(POLL_EVERY);
    }
}

fn data_files(data: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn still_written(files: Vec<PathBuf>, device: Device) -> io::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for file in files {
        match has_writers(&file) {
            Ok(true) => written.push(file),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // No leases on this file system: then whoever has anything of the mount open counts.
            Err(error) => {
                tracing::info!(%error, "the file system of the cache knows no leases");
                let held = !holders(device, &[]).is_empty();
                return Ok(if held { vec![file] } else { Vec::new() });
            }
        }
    }
    Ok(written)
}

fn has_writers(path: &Path) -> io::Result<bool> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(flags.bits()).map_err(io::Error::other)?)
        .open(path)?;
    match sys::set_lease(file.as_fd(), Lease::NoWriters) {
        Ok(()) => {
            sys::set_lease(file.as_fd(), Lease::Released)?;
            Ok(false)
        }
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Ok(true),
        Err(error) => Err(error),
    }
}

/// A process that has something of the former mount open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
}

// Processes with something of the device, or one of the files, open, mapped or as their directory.
fn holders(device: Device, files: &[PathBuf]) -> Vec<Holder> {
    let numbers: Vec<(u64, u64)> = files
        .iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|facts| (facts.dev(), facts.ino()))
        .collect();
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own && holds(*pid, device, &numbers))
        .map(|pid| Holder {
            pid,
            name: std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
        })
        .collect()
}

fn holds(pid: u32, device: Device, files: &[(u64, u64)]) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let places = descriptors.chain([process.join("cwd"), process.join("root")]);
    for place in places {
        // From what the kernel remembers: the mount answers nothing any more.
        let known = rustix::fs::statx(
            CWD,
            &place,
            AtFlags::STATX_DONT_SYNC,
            StatxFlags::INO | StatxFlags::TYPE,
        );
        let Ok(known) = known else { continue };
        let at = (known.stx_dev_major, known.stx_dev_minor);
        let number = (rustix::fs::makedev(at.0, at.1), known.stx_ino);
        if at == device || files.contains(&number) {
            return true;
        }
    }
    let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = format!("{:02x}:{:02x}", device.0, device.1);
    maps.lines()
        .any(|line| line.split_whitespace().nth(3) == Some(mapped.as_str()))
}

fn refusal(place: &SessionPlace, holders: &[Holder]) -> Problem {
    let cache = place.cache_directory();
    let named: Vec<String> = holders
        .iter()
        .take(NAMED_MAX)
        .map(|holder| format!("{} ({})", holder.pid, holder.name))
        .collect();
    let who = match (named.is_empty(), holders.len() > NAMED_MAX) {
        (true, _) => "a process that cannot be seen from here".to_owned(),
        (false, false) => format!("process {}", named.join(", ")),
        (false, true) => format!("process {} and others", named.join(", ")),
    };
    Problem::new(
        ErrorCode::CacheInUse,
        format!(
            "{who} has files of an earlier mount open and could still write into the write cache {}",
            cache.display()
        ),
        "end it, then retry",
    )
}

/// The device of what is mounted there.
pub(super) fn device_of(point: &Path) -> Option<Device> {
    // Not by stat: nobody answers yet.
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = point.to_string_lossy();
    let mut devices = table.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let device = words.nth(2)?;
        (words.nth(1)? == wanted).then_some(device)?.split_once(':')
    });
    // The last one lies on top.
    let (major, minor) = devices.next_back()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_file_that_somebody_has_open_for_writing_is_told_from_one_that_is_only_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7");
        let writer = File::create(&path).unwrap();
        assert!(has_writers(&path).unwrap());
        drop(writer);
        let reader = File::open(&path).unwrap();
        assert!(!has_writers(&path).unwrap());
        drop(reader);
    }
}
