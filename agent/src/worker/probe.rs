//! Whether the kernel will serve files of this cache by itself: asked before the first file is opened.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use fuser::BackingId;
use rustix::io::Errno;

use crate::fs::Passthrough;
use crate::sys;

/// Registers a file of the cache as a backing file and gives it back; the reason when the kernel refuses.
pub(super) fn probe(device: BorrowedFd<'_>, cache: &Path) -> Passthrough {
    let register = || -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(cache.join("catalog"))?;
        let id = BackingId::create_raw(device, &file)?;
        sys::close_backing(device, id)
    };
    register().map_err(|error| reason(&error, cache))
}

fn reason(error: &io::Error, cache: &Path) -> String {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    if is(Errno::LOOP) {
        format!(
            "{} lies on a stacked file system such as overlayfs, whose files the kernel does not serve by itself",
            cache.display()
        )
    } else if is(Errno::PERM) {
        "the agent lacks CAP_SYS_ADMIN in the host's user namespace".to_owned()
    } else {
        format!("the kernel refuses files of {}: {error}", cache.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_is_explained() {
        let cache = Path::new("/var/tmp/cache");
        for (errno, part) in [
            (Errno::LOOP, "overlayfs"),
            (Errno::PERM, "CAP_SYS_ADMIN"),
            (Errno::INVAL, "/var/tmp/cache"),
        ] {
            let text = reason(&errno.into(), cache);
            assert!(text.contains(part), "{text}");
        }
    }
}
