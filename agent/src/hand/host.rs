//! Facts about the host: kernel, FUSE, memory, volumes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::agent::hand::{HostFacts, VolumeFacts};
use common::problem::{ErrorCode, Problem};

use super::failure;

const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
const CAP_SYS_ADMIN: u32 = 21;

/// Looks at the host and at the volumes of these directories, which need not exist yet.
pub fn facts(paths: &[PathBuf]) -> Result<HostFacts, Problem> {
    let system = rustix::system::uname();
    let kernel = system.release().to_string_lossy().into_owned();
    let memory = std::fs::read_to_string("/proc/meminfo")
        .map_err(|e| failure(ErrorCode::IoFailed, "read /proc/meminfo", e))?;
    let mut volumes = BTreeMap::new();
    let mut overlay = None;
    for path in paths {
        let existing = nearest_existing(path);
        volumes.insert(path.clone(), volume(&existing)?);
        let kind = rustix::fs::statfs(&existing).map(|facts| magic(facts.f_type));
        if kind.is_ok_and(|magic| magic == Some(OVERLAYFS_MAGIC)) {
            overlay = Some(existing);
        }
    }
    let privileged = has_sys_admin();
    Ok(HostFacts {
        host_name: system.nodename().to_string_lossy().into_owned(),
        fuse: fuse(privileged),
        passthrough: passthrough(&kernel, privileged, overlay.as_deref()),
        memory_available_bytes: memory_bytes(&memory, "MemAvailable:"),
        memory_total_bytes: memory_bytes(&memory, "MemTotal:"),
        volumes,
        kernel,
    })
}

/// Memory that is available now, in bytes.
pub fn memory_available_bytes() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_bytes(&memory, "MemAvailable:")
}

/// Memory that is used for nothing, not even to keep files, in bytes.
pub fn memory_free_bytes() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_bytes(&memory, "MemFree:")
}

/// The path itself, or the nearest directory above it that exists.
pub fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|candidate| candidate.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn volume(path: &Path) -> Result<VolumeFacts, Problem> {
    let facts = rustix::fs::statvfs(path).map_err(|error| {
        failure(
            ErrorCode::IoFailed,
            format!("look at the volume of {}", path.display()),
            error.into(),
        )
    })?;
    Ok(VolumeFacts {
        total_bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
        free_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
    })
}

/// A file system's magic number, whose type differs between architectures.
fn magic(raw: impl TryInto<u64>) -> Option<u64> {
    raw.try_into().ok()
}

fn memory_bytes(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

fn has_sys_admin() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|capabilities| capabilities & (1 << CAP_SYS_ADMIN) != 0)
}

fn fuse(privileged: bool) -> Result<(), Problem> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = opened {
        let remedy = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "load the kernel module (modprobe fuse), or give the container the device /dev/fuse"
            }
            _ => {
                "run the agent as root, and give a container the device /dev/fuse and CAP_SYS_ADMIN"
            }
        };
        return Err(Problem::new(
            ErrorCode::FuseUnavailable,
            format!("/dev/fuse cannot be opened: {error}"),
            remedy,
        ));
    }
    if !privileged {
        return Err(Problem::new(
            ErrorCode::FuseUnavailable,
            "the agent lacks CAP_SYS_ADMIN and cannot mount",
            "run the agent as root; in a container add the capability SYS_ADMIN",
        ));
    }
    Ok(())
}

fn passthrough(kernel: &str, privileged: bool, overlay: Option<&Path>) -> Result<(), String> {
    if kernel_version(kernel) < (6, 9) {
        return Err(format!(
            "kernel {kernel} is older than 6.9, and cannot go on with a mount whose worker died either"
        ));
    }
    if !privileged {
        return Err("the agent lacks CAP_SYS_ADMIN".into());
    }
    match overlay {
        Some(path) => Err(format!("{} lies on overlayfs", path.display())),
        None => Ok(()),
    }
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passthrough_says_why_it_is_not_possible() {
        let overlay = Path::new("/var/tmp");
        for (kernel, privileged, overlay, expected) in [
            ("6.18.44-fc-v595", true, None, None),
            ("6.9.0", true, None, None),
            ("6.8.12-generic", true, None, Some("older than 6.9")),
            ("5.14.0-427.el9", true, None, Some("older than 6.9")),
            ("10.0", true, None, None),
            ("6.12.1", false, None, Some("CAP_SYS_ADMIN")),
            ("6.12.1", true, Some(overlay), Some("overlayfs")),
            ("garbage", true, None, Some("older")),
        ] {
            match (passthrough(kernel, privileged, overlay), expected) {
                (Ok(()), None) => {}
                (Err(reason), Some(part)) => assert!(reason.contains(part), "{reason}"),
                (got, _) => panic!("{kernel}: {got:?}"),
            }
        }
    }

    #[test]
    fn volumes_of_directories_that_do_not_exist_yet_are_known() {
        let path = PathBuf::from("/var/tmp/not-there/at/all");
        let facts = facts(std::slice::from_ref(&path)).unwrap();
        assert!(facts.volumes[&path].total_bytes > 0);
        assert!(facts.memory_available_bytes > 0);
        assert!(!facts.kernel.is_empty());
    }
}
