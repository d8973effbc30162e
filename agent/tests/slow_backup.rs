//! A backup that answers slowly, or not for now, delays those only who read what is not cached.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic"
)]

mod mount_support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use common::agent::hand::MountOptions;
use mount_support::{Fixture, Gate, wait_for};
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags};

/// More than the worker has threads of any kind.
const WAITING: usize = 40;
const SMALL_BYTES: usize = 300_000;
const LARGE_BYTES: usize = 8 << 20;

fn content(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 8192 + number) as u8).collect()
}

fn make_files(directory: &Path) {
    for number in 0..WAITING {
        let path = directory.join(format!("s{number}"));
        fs::write(path, content(number, SMALL_BYTES)).unwrap();
    }
    for name in ["large", "written"] {
        fs::write(directory.join(name), content(99, LARGE_BYTES)).unwrap();
    }
}

// Past the kernel's memory: the worker is asked each time.
fn direct(path: &Path) -> File {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(flags);
    options.open(path).unwrap()
}

fn ask_for_attributes(path: &Path) {
    rustix::fs::statx(
        CWD,
        path,
        AtFlags::STATX_FORCE_SYNC,
        StatxFlags::BASIC_STATS,
    )
    .unwrap();
}

/// What needs nothing of the backup.
fn go_on(data: &Path) {
    let large = direct(&data.join("large"));
    let mut page = vec![0; 8192];
    for round in 0..20u8 {
        large.read_exact_at(&mut page, 0).unwrap();
        assert_eq!(page, vec![99; 8192]);
        large.write_all_at(&[round; 8192], 65_536).unwrap();
        large.sync_all().unwrap();
        for number in 0..WAITING {
            ask_for_attributes(&data.join(format!("s{number}")));
        }
        ask_for_attributes(&data.join("large"));
        // A file that others wait for.
        File::open(data.join("s3")).unwrap().sync_all().unwrap();
        let new = File::create_new(data.join("new")).unwrap();
        new.write_all_at(b"local", 0).unwrap();
        new.sync_all().unwrap();
        fs::rename(data.join("new"), data.join("renamed")).unwrap();
        File::open(data).unwrap().sync_all().unwrap();
        assert_eq!(fs::read(data.join("renamed")).unwrap(), b"local");
        fs::remove_file(data.join("renamed")).unwrap();
        assert!(fs::read_dir(data).unwrap().count() > WAITING);
    }
}

fn readers(data: &Path) -> Vec<JoinHandle<()>> {
    let small = (0..WAITING).map(|number| {
        let path = data.join(format!("s{number}"));
        std::thread::spawn(move || {
            assert!(fs::read(path).unwrap() == content(number, SMALL_BYTES));
        })
    });
    let path = data.join("large");
    let large = std::thread::spawn(move || {
        let mut found = vec![0; 8192];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut found, 7 << 20).unwrap();
        assert_eq!(found[0], content(99, LARGE_BYTES)[7 << 20]);
    });
    let path = data.join("written");
    let writer = std::thread::spawn(move || {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"a part of a page", 5_000_000).unwrap();
    });
    small.chain([large, writer]).collect()
}

#[test]
fn a_slow_backup_delays_neither_flushes_nor_attributes_nor_cached_reads() {
    let gate = Gate::default();
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve_through(&gate);
    let options = MountOptions {
        small_file_bytes: 1 << 20,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let data = fixture.data();
    let mut page = vec![0; 8192];
    direct(&data.join("large"))
        .read_exact_at(&mut page, 0)
        .unwrap();

    gate.close();
    let before = gate.asked();
    let readers = readers(&data);
    wait_for("the backup is asked", Duration::from_secs(20), || {
        gate.asked() >= before + 16
    });
    let others = std::thread::spawn({
        let data = data.clone();
        move || go_on(&data)
    });
    wait_for(
        "all else goes on while readers wait",
        Duration::from_secs(60),
        || others.is_finished(),
    );
    others.join().unwrap();
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    gate.open();
    for reader in readers {
        reader.join().unwrap();
    }
}
