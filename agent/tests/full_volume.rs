//! A volume of the cache that is full stops writers only, and nothing is lost.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic"
)]

mod mount_support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::agent::hand::{Hydrate, MountOptions};
use mount_support::{Fixture, wait_for};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

const VOLUME_BYTES: u64 = 48 * 1024 * 1024;
const LARGE_BYTES: usize = 32 * 1024 * 1024;

/// A small volume in the place of the cache; goes when dropped.
struct Volume(PathBuf);

impl Volume {
    fn mount(at: &Path) -> Self {
        let options = std::ffi::CString::new(format!("size={VOLUME_BYTES},mode=755")).unwrap();
        let flags = MountFlags::NOSUID;
        rustix::mount::mount("small", at, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(at.to_path_buf())
    }

    /// Takes all that is free, to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }

    /// What the files of the cache occupy: room is free some time after its copies have gone.
    fn cached_bytes(&self) -> u64 {
        let entries = fs::read_dir(self.0.join("data")).unwrap();
        let blocks =
            entries.map(|entry| entry.unwrap().metadata().map_or(0, |found| found.blocks()));
        blocks.sum::<u64>() * 512
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

fn content(number: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 8192 + at % 251 + number) as u8)
        .collect()
}

fn is_full<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

fn small_volume(passthrough: bool) {
    let mut fixture = Fixture::new("root", |directory| {
        fs::write(directory.join("large"), content(1, LARGE_BYTES)).unwrap();
        fs::write(directory.join("other"), content(2, LARGE_BYTES)).unwrap();
        for number in 0..50 {
            fs::write(
                directory.join(format!("s{number}")),
                content(number, 20_000),
            )
            .unwrap();
        }
    });
    let volume = Volume::mount(&fixture.place.cache_directory());
    fixture.serve();
    let options = MountOptions {
        passthrough,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let data = fixture.data();
    let open = |name: &str| {
        File::options()
            .read(true)
            .write(true)
            .open(data.join(name))
            .unwrap()
    };

    // Copies of the backup stop before the volume is full.
    assert!(fs::read(data.join("large")).unwrap() == content(1, LARGE_BYTES));
    assert!(fs::read(data.join("other")).unwrap() == content(2, LARGE_BYTES));
    let free = fixture.status().cache_volume.free_bytes;
    assert!(
        free > VOLUME_BYTES / 20,
        "{free} bytes are left for writers"
    );

    let own = File::create_new(data.join("own")).unwrap();
    own.write_all_at(b"before", 0).unwrap();
    let (large, other) = (open("large"), open("other"));
    large.write_all_at(b"changed", 100).unwrap();
    // All that is only a copy is given back to whoever needs the room; then there is none.
    wait_for("no copies are left", Duration::from_secs(20), || {
        volume.fill();
        fixture.status().statistics.copied_bytes == 0 && volume.cached_bytes() < 1 << 20
    });
    let ballast = volume.fill();

    // Writers are told, and nothing has changed.
    assert!(is_full(own.write_all_at(&vec![7; 4 << 20], 6)));
    let former = content(2, LARGE_BYTES);
    let mut failed = 0;
    for granule in 0..LARGE_BYTES / 8192 {
        let at = granule as u64 * 8192 + 11;
        match other.write_all_at(b"late", at) {
            Ok(()) => other.write_all_at(&former[at as usize..][..4], at).unwrap(),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
                failed += 1;
                if failed > 3 {
                    break;
                }
            }
        }
    }
    assert!(failed > 3, "the volume is full");
    // Readers are served.
    assert!(fs::read(data.join("other")).unwrap() == content(2, LARGE_BYTES));
    for number in 0..50 {
        assert!(fs::read(data.join(format!("s{number}"))).unwrap() == content(number, 20_000));
    }
    // What was written before can be made durable, over and over, and cut and removed.
    large.sync_all().unwrap();
    for round in 0u64..2000 {
        large.write_all_at(&round.to_le_bytes(), 200).unwrap();
        large.sync_all().unwrap();
    }
    large.set_len(20 << 20).unwrap();
    fs::remove_file(data.join("s7")).unwrap();
    fs::rename(data.join("s8"), data.join("s9")).unwrap();
    large.sync_all().unwrap();

    // A new worker, and a new mount, open the full cache and find everything.
    let check = || {
        let mut wanted = content(1, LARGE_BYTES);
        wanted.truncate(20 << 20);
        wanted[100..107].copy_from_slice(b"changed");
        wanted[200..208].copy_from_slice(&1999u64.to_le_bytes());
        assert!(fs::read(data.join("large")).unwrap() == wanted);
        assert!(fs::read(data.join("own")).unwrap().starts_with(b"before"));
        assert!(!data.join("s7").exists() && !data.join("s8").exists());
        assert!(fs::read(data.join("s9")).unwrap() == content(8, 20_000));
    };
    check();
    fixture.kill_worker();
    check();
    drop((own, large, other));
    fixture.unmount();
    fixture.mount(&options).unwrap();
    check();

    // With room again everything goes on.
    fs::remove_file(ballast).unwrap();
    let other = open("other");
    other.write_all_at(b"late", 11).unwrap();
    other.sync_all().unwrap();
    fs::write(data.join("new"), vec![9; 1 << 20]).unwrap();
    assert_eq!(fs::metadata(data.join("new")).unwrap().len(), 1 << 20);
    let mut wanted = content(2, LARGE_BYTES);
    wanted[11..15].copy_from_slice(b"late");
    assert!(fs::read(data.join("other")).unwrap() == wanted);
    drop(other);
    fixture.unmount();
}

#[test]
fn copies_of_the_backup_make_room_for_writers_and_nothing_that_was_written_is_given_back() {
    for hydrate in [Hydrate::None, Hydrate::Touched] {
        let mut fixture = Fixture::new("root", |directory| {
            fs::write(directory.join("large"), content(1, 2 * LARGE_BYTES)).unwrap();
        });
        let volume = Volume::mount(&fixture.place.cache_directory());
        fixture.serve();
        let options = MountOptions {
            hydrate,
            passthrough: false,
            ..MountOptions::default()
        };
        fixture.mount(&options).unwrap();
        let path = fixture.data().join("large");
        let large = File::options().read(true).write(true).open(&path).unwrap();
        // It is larger than the volume, so that it stays partly in the backup.
        large.write_all_at(b"early", 8192 * 7 + 1).unwrap();
        let mut seen = vec![0; LARGE_BYTES];
        large.read_exact_at(&mut seen, 0).unwrap();
        wait_for("the reads are kept", Duration::from_secs(20), || {
            fixture.status().statistics.copied_bytes > (LARGE_BYTES / 4) as u64
        });
        large.write_all_at(b"late", 8192 * 900 + 1).unwrap();
        let mut wanted = content(1, 2 * LARGE_BYTES);
        wanted[8192 * 7 + 1..][..5].copy_from_slice(b"early");
        wanted[8192 * 900 + 1..][..4].copy_from_slice(b"late");

        // More than is free beside the copies.
        let own = File::create_new(fixture.data().join("own")).unwrap();
        let bytes = vec![7; 40 << 20];
        own.write_all_at(&bytes, 0).unwrap();
        let after = fixture.status().statistics;
        assert!(after.given_back_bytes > 0, "{after:?}");
        assert!(after.written_bytes >= 2 * 8192, "{after:?}");
        drop(large);
        let check = || {
            assert!(fs::read(&path).unwrap() == wanted);
            assert!(fs::read(fixture.data().join("own")).unwrap() == bytes);
        };
        check();
        fixture.kill_worker();
        check();
        drop(own);
        fixture.unmount();
        fixture.mount(&options).unwrap();
        check();
        fixture.unmount();
        drop(volume);
    }
}

#[test]
fn a_cache_keeps_within_its_limit_while_copies_can_be_given_back() {
    const LIMIT: u64 = 12 * 1024 * 1024;
    let mut fixture = Fixture::new("root", |directory| {
        fs::write(directory.join("large"), content(1, LARGE_BYTES)).unwrap();
    });
    fixture.serve();
    let options = MountOptions {
        hydrate: Hydrate::All,
        cache_bytes_max: Some(LIMIT),
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    wait_for("copies fill what they may", Duration::from_secs(20), || {
        fixture.status().statistics.copied_bytes > LIMIT / 2
    });
    let own = File::create_new(fixture.data().join("own")).unwrap();
    own.write_all_at(&vec![7; 10 << 20], 0).unwrap();
    wait_for("copies make room", Duration::from_secs(20), || {
        let statistics = fixture.status().statistics;
        statistics.given_back_bytes > 0 && statistics.cache_bytes <= LIMIT
    });
    // A new mount compares what it finds with the backup before it gives it back.
    drop(own);
    fixture.unmount();
    fixture.mount(&options).unwrap();
    let more = File::create_new(fixture.data().join("more")).unwrap();
    more.write_all_at(&vec![8; 3 << 20], 0).unwrap();
    wait_for("copies make room again", Duration::from_secs(20), || {
        let statistics = fixture.status().statistics;
        statistics.copied_bytes == 0 || statistics.cache_bytes <= LIMIT
    });
    assert!(fs::read(fixture.data().join("large")).unwrap() == content(1, LARGE_BYTES));
    fixture.unmount();
}

#[test]
fn a_full_cache_volume_stops_writers_only_and_loses_nothing() {
    small_volume(true);
}

#[test]
fn a_full_cache_volume_does_so_without_passthrough() {
    small_volume(false);
}
