//! Finding and ending what a test left behind: processes that name its directory in their command line, and mounts below it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Processes whose command line or working directory names the directory, without ourselves.
pub fn processes(directory: &Path) -> Vec<(u32, String)> {
    let needle = directory.to_string_lossy().into_owned();
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let works_there = std::fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|path| path.to_string_lossy().starts_with(&needle));
            (line.contains(&needle) || works_there).then_some((pid, line))
        })
        .collect()
}

/// Mounts below the directory, innermost last.
pub fn mounts(directory: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory))
        .collect()
}

/// Kills and unmounts everything below the directory; for tests that failed half way.
pub fn clear(directory: &Path) {
    let began = Instant::now();
    loop {
        let running = processes(directory);
        let mounted = mounts(directory);
        if (running.is_empty() && mounted.is_empty()) || began.elapsed() > Duration::from_secs(20) {
            return;
        }
        for (pid, _) in &running {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                // It may have ended since we looked.
                kill_process(pid, Signal::KILL).ok();
            }
        }
        for mount in mounted.iter().rev() {
            unmount(mount, UnmountFlags::DETACH).ok();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
