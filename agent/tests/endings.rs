//! How mounts end, and what is left of them.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic")]

mod mount_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::supervisor;
use agent::worker::client;
use common::agent::hand::{CacheAfterwards, MountOptions};
use common::problem::ErrorCode;
use mount_support::{Fixture, wait_for};

const LARGE_BYTES: usize = 1 << 20;

fn make_files(directory: &Path) {
    fs::write(directory.join("large"), vec![7; LARGE_BYTES]).unwrap();
    fs::create_dir(directory.join("global")).unwrap();
    fs::write(directory.join("global/pg_control"), vec![1; 8192]).unwrap();
}

fn write_at(fixture: &Fixture, name: &str, bytes: &[u8], offset: u64) {
    let file = File::options().write(true).open(fixture.data().join(name));
    file.unwrap().write_all_at(bytes, offset).unwrap();
}

fn read_at<const N: usize>(fixture: &Fixture, name: &str, offset: u64) -> [u8; N] {
    let mut found = [0; N];
    let file = File::open(fixture.data().join(name)).unwrap();
    file.read_exact_at(&mut found, offset).unwrap();
    found
}

/// Files stay partly in the backup.
fn options() -> MountOptions {
    MountOptions {
        small_file_bytes: 0,
        ..MountOptions::default()
    }
}

/// What is read at the place of an unflushed write after the mount has ended and was made again.
fn found_after(cache: CacheAfterwards) -> [u8; 3] {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&options()).unwrap();
    write_at(&fixture, "large", b"new", 500_000);
    client::stop(&fixture.place, cache).unwrap();
    assert!(!fixture.data().exists());
    fixture.mount(&options()).unwrap();
    read_at(&fixture, "large", 500_000)
}

#[test]
fn a_cache_that_is_kept_is_made_durable_and_one_that_is_discarded_is_not() {
    assert_eq!(&found_after(CacheAfterwards::Kept), b"new");
    assert_eq!(found_after(CacheAfterwards::Discarded), [7; 3]);
}

#[test]
fn a_write_of_pg_control_makes_everything_else_durable_before_it() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&options()).unwrap();
    write_at(&fixture, "large", b"one", 500_000);
    write_at(&fixture, "global/pg_control", b"I", 0);
    write_at(&fixture, "large", b"lost", 600_000);
    fixture.kill_mount();
    fixture.mount(&options()).unwrap();
    assert_eq!(&read_at(&fixture, "large", 500_000), b"one");
    // Without such a write it is as after a power cut.
    assert_eq!(read_at(&fixture, "large", 600_000), [7; 4]);

    // The same when another file has taken its name.
    let control = fixture.data().join("global/pg_control");
    fs::write(control.with_extension("new"), vec![2; 8192]).unwrap();
    write_at(&fixture, "large", b"two", 700_000);
    fs::rename(control.with_extension("new"), &control).unwrap();
    write_at(&fixture, "large", b"three", 800_000);
    write_at(&fixture, "global/pg_control", b"II", 0);
    fixture.kill_mount();
    fixture.mount(&options()).unwrap();
    assert_eq!(&read_at(&fixture, "large", 700_000), b"two");
    assert_eq!(&read_at(&fixture, "large", 800_000), b"three");
    assert!(fs::read(&control).unwrap().starts_with(b"II\x02"));
}

/// A process that has a file open for writing until it is ended.
fn hold_open(path: &Path) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", "exec 3<>\"$1\"; echo open; exec cat", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(&said, b"open\n");
    child
}

#[test]
fn a_cache_is_not_mounted_again_while_a_process_can_write_into_it_through_the_dead_mount() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&options()).unwrap();
    let own = fixture.data().join("own");
    fs::write(&own, b"before").unwrap();
    let mut zombie = hold_open(&own);
    fixture.kill_mount();

    let refused = fixture.mount(&options()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::CacheInUse);
    assert!(!refused.code.is_permanent());
    let named = format!("{} (cat)", zombie.id());
    assert!(refused.message.contains(&named), "{refused}");
    assert!(!supervisor::is_supervised(&fixture.place));

    drop(zombie.stdin.take());
    zombie.wait().unwrap();
    fixture.mount(&options()).unwrap();
    assert_eq!(fs::read(&own).unwrap(), b"before");
}

#[test]
fn a_mount_whose_requests_cannot_be_sent_again_ends_with_its_worker_and_nobody_waits() {
    let mut fixture = Fixture::new("root", make_files);
    let without = MountOptions {
        replace_workers: false,
        ..options()
    };
    fixture.mount(&without).unwrap();
    let own = File::create_new(fixture.data().join("own")).unwrap();
    own.write_all_at(b"kept", 0).unwrap();
    own.sync_all().unwrap();
    drop(own);
    // Nobody serves the backup: this read is under way when the worker dies.
    let path = fixture.data().join("large");
    let reader = std::thread::spawn(move || fs::read(path));
    wait_for("a read waits", Duration::from_secs(10), || {
        fixture.status().base_waiting_s.is_some()
    });
    fixture.kill_worker();
    assert!(reader.join().unwrap().is_err());
    wait_for("the mount ends", Duration::from_secs(10), || {
        !supervisor::is_supervised(&fixture.place) && !supervisor::is_mounted(&fixture.place)
    });
    fixture.serve();
    fixture.mount(&without).unwrap();
    assert_eq!(fs::read(fixture.data().join("own")).unwrap(), b"kept");
    assert_eq!(&read_at(&fixture, "large", 5), &[7; 3]);
}

/// A stopped process, which goes on at the end at the latest.
struct Stopped(rustix::process::Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // Gone already is as good.
        rustix::process::kill_process(self.0, rustix::process::Signal::CONT).ok();
    }
}

#[test]
fn a_cache_is_not_mounted_again_while_the_worker_of_a_killed_supervisor_lives() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    let status = fixture.mount(&options()).unwrap();
    write_at(&fixture, "large", b"new", 500_000);
    let worker = Pid::from_raw(fixture.worker_pid().unwrap()).unwrap();
    let supervisor = i32::try_from(status.supervisor_pid).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let stopped = Stopped(worker);
    kill_process(Pid::from_raw(supervisor).unwrap(), Signal::KILL).unwrap();
    wait_for("nobody supervises", Duration::from_secs(10), || {
        !supervisor::is_supervised(&fixture.place)
    });
    // The worker that lives on would answer.
    fs::remove_file(fixture.place.agent_socket()).unwrap();

    let refused = fixture.mount(&options()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::CacheInUse);
    let named = format!("{} (pginstant-agent", worker.as_raw_nonzero());
    assert!(refused.message.contains(&named), "{refused}");

    drop(stopped);
    fixture.mount(&options()).unwrap();
    // It has made durable what it had.
    assert_eq!(&read_at(&fixture, "large", 500_000), b"new");
}
