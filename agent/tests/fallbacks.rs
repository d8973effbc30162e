//! Where the kernel does not serve files by itself the mount works all the same, and says why it does so.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic")]

mod mount_support;

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::hand::host;
use common::agent::hand::MountOptions;
use mount_support::{Fixture, wait_for};
use rustix::mount::{MountFlags, UnmountFlags};

/// An overlayfs over a directory; goes when dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(at: &Path, room: &Path) -> Self {
        let directory = |name: &str| {
            let path = room.join(name);
            fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            directory("lower"),
            directory("upper"),
            directory("work")
        );
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str()).unwrap();
        Self(at.to_path_buf())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

fn make_files(directory: &Path) {
    fs::write(directory.join("small"), vec![7; 20_000]).unwrap();
    fs::write(directory.join("large"), vec![8; 2 << 20]).unwrap();
}

#[test]
fn a_cache_on_overlayfs_works_without_passthrough_and_the_reason_is_told() {
    let mut fixture = Fixture::new("root", make_files);
    let cache = fixture.place.cache_directory();
    let overlay = Overlay::mount(&cache, &fixture.directory.path().join("room"));
    let facts = host::facts(std::slice::from_ref(&cache)).unwrap();
    assert!(facts.passthrough.unwrap_err().contains("overlayfs"));

    fixture.serve();
    let options = MountOptions::default();
    let status = fixture.mount(&options).unwrap();
    let reason = status.passthrough.unwrap_err();
    assert!(reason.contains("overlayfs"), "{reason}");

    let data = fixture.data();
    let own = File::create_new(data.join("own")).unwrap();
    let large = File::options().write(true).open(data.join("large"));
    let large = large.unwrap();
    assert_eq!(fs::read(data.join("small")).unwrap(), vec![7; 20_000]);
    let starts = fixture.status().worker_starts;
    for round in 0..3u8 {
        own.write_all_at(&[round; 100], 0).unwrap();
        large.write_all_at(&[round; 100], 1_000_000).unwrap();
        own.sync_all().unwrap();
        large.sync_all().unwrap();
        fixture.kill_worker();
        fs::metadata(&data).unwrap();
    }
    wait_for("a new worker", Duration::from_secs(10), || {
        agent::worker::client::status(&fixture.place)
            .is_ok_and(|status| status.is_some_and(|status| status.worker_starts >= starts + 3))
    });
    let check = || {
        assert_eq!(fs::read(data.join("own")).unwrap(), vec![2; 100]);
        let mut wanted = vec![8; 2 << 20];
        wanted
            .get_mut(1_000_000..1_000_100)
            .unwrap()
            .copy_from_slice(&[2; 100]);
        assert!(fs::read(data.join("large")).unwrap() == wanted);
    };
    check();
    drop((own, large));
    fixture.unmount();
    fixture.mount(&options).unwrap();
    check();
    fixture.unmount();
    drop(overlay);
}
