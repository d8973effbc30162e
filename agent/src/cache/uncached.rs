//! Writes that leave nothing behind in the page cache (`RWF_DONTCACHE` of `pwritev2(2)`).
//!
//! A copy of the backup is in the page cache of the mount already. For a second one the kernel would take fresh memory for every page
//! and give it up later, which costs several times as much as the write.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use rustix::io::{Errno, ReadWriteFlags, pwritev2};

/// Linux 6.14 (`linux/fs.h`); rustix has no name for it yet.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// From this version on the kernel does not give up a page that was written again while it went to the disk.
const SOUND_SINCE: (u32, u32) = (6, 17);

static IS_SOUND: LazyLock<bool> = LazyLock::new(|| {
    let release = rustix::system::uname();
    version(&release.release().to_string_lossy()).is_some_and(|version| version >= SOUND_SINCE)
});

/// Writes all or fails; an ordinary write where the kernel or the file system cannot do better.
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (mut rest, mut at) = (bytes, offset);
    while *IS_SOUND && !rest.is_empty() {
        match pwritev2(file, &[IoSlice::new(rest)], at, DONT_CACHE) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                rest = rest.get(count..).unwrap_or_default();
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    file.write_all_at(rest, at)
}

// The first two numbers of a release like "6.18.5-cloud".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (release, wanted) in [
            ("6.18.5-cloud", Some((6, 18))),
            ("6.9", Some((6, 9))),
            ("10.0-rc1", Some((10, 0))),
            ("six", None),
            ("6", None),
        ] {
            assert_eq!(version(release), wanted, "{release}");
        }
        assert!(version("6.9.1") < Some(SOUND_SINCE) && version("7.0") > Some(SOUND_SINCE));
    }

    #[test]
    fn what_was_written_is_there_on_any_file_system() {
        for directory in ["/dev/shm", "/var/tmp"] {
            let file = tempfile::tempfile_in(directory).unwrap();
            write_all_at(&file, &[7; 20_000], 8192).unwrap();
            write_all_at(&file, &[], 0).unwrap();
            let mut found = vec![1; 20_002];
            file.read_exact_at(&mut found[..20_001], 8191).unwrap();
            assert_eq!((found[0], found[1], found[20_000]), (0, 7, 7));
            assert_eq!(file.metadata().unwrap().len(), 8192 + 20_000);
        }
    }
}
