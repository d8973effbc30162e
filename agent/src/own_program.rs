//! Which program to start when the agent starts itself.

use std::path::{Path, PathBuf};

/// What Linux says of a running program whose file was replaced or removed (`proc_pid_exe(5)`).
const DELETED: &str = " (deleted)";

/// The program that is at our place now, which an upgrade may have put there; our own where there is none any more.
pub(crate) fn path() -> PathBuf {
    let own = Path::new("/proc/self/exe");
    let place = std::fs::read_link(own).unwrap_or_default();
    let place = match place.to_str().and_then(|text| text.strip_suffix(DELETED)) {
        Some(before) => PathBuf::from(before),
        None => place,
    };
    match place.exists() {
        true => place,
        false => own.to_owned(),
    }
}
