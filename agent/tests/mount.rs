//! The mount behaves as a native directory, whatever happens to its worker and its mount server.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod mount_support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::agent::hand::{Hydrate, MountOptions};
use common::messages::CacheStatistics;
use mount_support::{Fixture, program, wait_for};
use rustix::fs::FallocateFlags;

/// A small generator with a seed that failures print.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| (self.next() >> 32) as u8 | 1).collect()
    }
}

const SIZES: [u64; 9] = [0, 1, 4096, 8191, 8192, 8193, 100_000, 262_144, 1_500_001];

fn make_files(directory: &Path) {
    let mut random = Random(77);
    fs::create_dir(directory.join("d")).unwrap();
    for (number, size) in SIZES.into_iter().enumerate() {
        fs::write(directory.join(format!("f{number}")), random.bytes(size)).unwrap();
        fs::write(
            directory.join("d").join(format!("g{number}")),
            random.bytes(size / 2),
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("f3", directory.join("link")).unwrap();
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path).unwrap(), target).unwrap();
        } else if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

fn contents(directory: &Path) -> BTreeMap<PathBuf, (u64, String)> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<PathBuf, (u64, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let what = if stat.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if stat.is_dir() {
                walk(root, &path, found);
                "directory".to_owned()
            } else {
                let bytes = fs::read(&path).unwrap();
                assert_eq!(bytes.len() as u64, stat.len(), "{}", path.display());
                format!("{} bytes {:08x}", bytes.len(), crc32c::crc32c(&bytes))
            };
            found.insert(name, (links, what));
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, directory, &mut found);
    found
}

/// What came of one operation, in a form that both sides can be compared in.
fn told<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("error {:?}", error.raw_os_error()),
    }
}

fn names(random: &mut Random) -> String {
    match random.below(3) {
        0 => format!("f{}", random.below(12)),
        1 => format!("d/g{}", random.below(12)),
        _ => format!("n{}", random.below(4)),
    }
}

/// Does one random operation below a directory and says what came of it.
fn operate(root: &Path, seed: u64) -> String {
    let random = &mut Random(seed | 1);
    random.next();
    let what = random.below(20);
    let name = names(random);
    let path = root.join(&name);
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let scale = random.below(21);
    let offset = random.below(1 << scale);
    let scale = random.below(18);
    let length = 1 + random.below(1 << scale);
    let result = match what {
        0..=4 => {
            let bytes = random.bytes(length);
            told(open().and_then(|file| file.write_all_at(&bytes, offset)))
        }
        5..=8 => told(open().and_then(|file| {
            let mut bytes = vec![0; length as usize];
            let count = file.read_at(&mut bytes, offset)?;
            Ok((count, crc32c::crc32c(&bytes[..count])))
        })),
        9 => told(open().and_then(|file| file.set_len(offset))),
        10 => {
            let modes = [
                FallocateFlags::empty(),
                FallocateFlags::KEEP_SIZE,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                FallocateFlags::ZERO_RANGE,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            ];
            let mode = modes[random.below(5) as usize];
            told(open().and_then(|f| Ok(rustix::fs::fallocate(f, mode, offset, length)?)))
        }
        11 => told(open().and_then(|file| file.sync_data())),
        12 => told(File::create_new(&path).and_then(|mut file| file.write_all(b"new"))),
        13 => told(fs::remove_file(&path)),
        14 => told(fs::rename(&path, root.join(names(random)))),
        15 => told(fs::hard_link(&path, root.join(names(random)))),
        16 => told(fs::create_dir(&path)),
        17 => told(fs::remove_dir(&path)),
        18 => {
            let from = root.join(names(random));
            let copy = || {
                let (source, target) = (File::open(&from)?, open()?);
                if source.metadata()?.is_dir() {
                    return Ok(0);
                }
                let (mut source_at, mut target_at) = (offset / 2, offset);
                let mut done = 0;
                while done < length as usize {
                    let left = length as usize - done;
                    let (a, b) = (Some(&mut source_at), Some(&mut target_at));
                    match rustix::fs::copy_file_range(&source, a, &target, b, left)? {
                        0 => break,
                        count => done += count,
                    }
                }
                Ok(done)
            };
            told(copy())
        }
        _ => told(
            fs::metadata(&path)
                .map(|stat| (stat.is_dir(), if stat.is_dir() { 0 } else { stat.len() })),
        ),
    };
    format!("{what} {name} {offset} {length}: {result}")
}

fn compare_with_native(options: MountOptions, seed: u64, rounds: u64) -> Vec<CacheStatistics> {
    let mut fixture = Fixture::new("root", make_files);
    let native = fixture.directory.path().join("native");
    copy_tree(&fixture.backup().join("data"), &native);
    let untouched = contents(&fixture.backup());
    fixture.serve();
    fixture.mount(&options).unwrap();
    let mut random = Random(seed);
    let mut statistics = Vec::new();
    if options.hydrate == Hydrate::All {
        // The comparison is over in a second or two: it begins when copying has begun.
        mount_support::wait_for("something is copied", Duration::from_secs(60), || {
            fixture.status().statistics.hydrated_bytes > 0
        });
        statistics.push(fixture.status().statistics);
    }
    for round in 0..rounds {
        for step in 0..120 {
            let choice = random.next();
            let (wanted, got) = (operate(&native, choice), operate(&fixture.data(), choice));
            assert_eq!(got, wanted, "seed {seed}, round {round}, step {step}");
        }
        assert_eq!(
            contents(&fixture.data()),
            contents(&native),
            "seed {seed}, round {round}"
        );
        statistics.push(fixture.status().statistics);
        match random.below(4) {
            0 => fixture.kill_worker(),
            1 => {
                fixture.unmount();
                fixture.mount(&options).unwrap();
            }
            _ => {}
        }
        assert_eq!(
            contents(&fixture.data()),
            contents(&native),
            "seed {seed}, round {round}, after"
        );
    }
    assert_eq!(
        contents(&fixture.backup()),
        untouched,
        "the backup is never modified"
    );
    statistics
}

#[test]
fn random_operations_do_what_a_native_directory_does() {
    compare_with_native(MountOptions::default(), 1001, 25);
}

#[test]
fn random_operations_do_so_on_files_that_stay_partly_in_the_backup() {
    let options = MountOptions {
        hydrate: Hydrate::None,
        ..MountOptions::default()
    };
    compare_with_native(options, 1002, 25);
}

#[test]
fn random_operations_do_so_without_passthrough() {
    let options = MountOptions {
        passthrough: false,
        small_file_bytes: 50_000,
        ..MountOptions::default()
    };
    compare_with_native(options, 1003, 25);
}

#[test]
fn random_operations_do_so_while_files_are_copied_and_given_back_all_the_time() {
    let options = MountOptions {
        small_file_bytes: 0,
        hydrate: Hydrate::All,
        // So little that copies come and go.
        cache_bytes_max: Some(700_000),
        ..MountOptions::default()
    };
    let statistics = compare_with_native(options, 1004, 25);
    let sum = |count: fn(&CacheStatistics) -> u64| statistics.iter().map(count).sum::<u64>();
    let (copied, given_back) = (sum(|s| s.hydrated_bytes), sum(|s| s.given_back_bytes));
    println!("{copied} bytes were copied in the background, {given_back} given back");
    assert!(copied > 0);
}

#[test]
fn a_request_that_is_sent_again_to_a_new_worker_is_carried_out_once() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (data, stop) = (fixture.data(), stop.clone());
            std::thread::spawn(move || {
                let mut rounds = 0u64;
                let at = |what: &str| data.join(format!("{what}{number}"));
                while !stop.load(Ordering::Relaxed) {
                    fs::create_dir(at("dir")).unwrap();
                    let mut file = File::create_new(at("dir").join("x")).unwrap();
                    file.write_all(b"abc").unwrap();
                    file.sync_all().unwrap();
                    fs::rename(at("dir").join("x"), at("y")).unwrap();
                    fs::hard_link(at("y"), at("z")).unwrap();
                    std::os::unix::fs::symlink("y", at("s")).unwrap();
                    fs::remove_file(at("y")).unwrap();
                    assert_eq!(fs::read(at("z")).unwrap(), b"abc");
                    for name in ["z", "s"] {
                        fs::remove_file(at(name)).unwrap();
                    }
                    fs::remove_dir(at("dir")).unwrap();
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        std::thread::sleep(Duration::from_millis(100));
        fixture.kill_worker();
    }
    stop.store(true, Ordering::Relaxed);
    let rounds: Vec<u64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    println!(
        "{rounds:?} rounds, {} workers",
        fixture.status().worker_starts
    );
    assert!(rounds.iter().all(|count| *count > 0));
    assert!(fixture.status().worker_starts > 10);
}

#[test]
fn a_second_supervisor_on_one_cache_is_refused() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    let status = fixture.mount(&MountOptions::default()).unwrap();
    let spec = serde_json::json!({"place": fixture.place, "options": MountOptions::default()});
    let second = std::process::Command::new(mount_support::program())
        .args(["supervise", "--spec", &spec.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(said.contains("cache_in_use"), "{said}");
    assert_eq!(fixture.status().supervisor_pid, status.supervisor_pid);
    // Starting again finds it running.
    assert_eq!(
        fixture
            .mount(&MountOptions::default())
            .unwrap()
            .supervisor_pid,
        status.supervisor_pid
    );
}

#[test]
fn reads_wait_for_the_mount_server_and_what_is_cached_goes_on() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    let cached = fs::read(fixture.data().join("f3")).unwrap();
    fixture.stop_serving();
    wait_for("detached", Duration::from_secs(5), || {
        !fixture.status().base_attached
    });
    let path = fixture.data().join("f8");
    let reader = std::thread::spawn(move || fs::read(path).unwrap());
    wait_for("a read waits", Duration::from_secs(5), || {
        fixture.status().base_waiting_s.is_some()
    });
    assert_eq!(fs::read(fixture.data().join("f3")).unwrap(), cached);
    fs::write(fixture.data().join("new"), b"local").unwrap();
    File::open(fixture.data().join("new"))
        .unwrap()
        .sync_all()
        .unwrap();
    fs::metadata(fixture.data().join("f7")).unwrap();
    assert!(!reader.is_finished());
    fixture.serve();
    let read = reader.join().unwrap();
    assert_eq!(read, fs::read(fixture.backup().join("data/f8")).unwrap());
}

#[test]
fn a_read_fails_when_nobody_answers_for_too_long() {
    let fixture = Fixture::new("root", make_files);
    let options = MountOptions {
        base_wait_s: 1,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let error = fs::read(fixture.data().join("f8")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
}

#[test]
fn what_was_written_and_not_flushed_is_there_after_unmounting() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    let partly = File::options()
        .write(true)
        .open(fixture.data().join("f8"))
        .unwrap();
    partly.write_all_at(b"changed", 700_000).unwrap();
    drop(partly);
    fs::write(fixture.data().join("conf"), b"a = b").unwrap();
    fixture.unmount();
    assert!(!fixture.data().exists());
    fixture.stop_serving();
    fixture.mount(&MountOptions::default()).unwrap();
    let mut seen = [0; 7];
    let file = File::open(fixture.data().join("f8")).unwrap();
    file.read_exact_at(&mut seen, 700_000).unwrap();
    assert_eq!(&seen, b"changed");
    assert_eq!(fs::read(fixture.data().join("conf")).unwrap(), b"a = b");
}

#[test]
fn no_write_fails_although_workers_are_killed_as_soon_as_they_serve() {
    const WRITTEN_BYTES: usize = 256 << 10;
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    let options = MountOptions {
        passthrough: false,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6u8)
            .map(|number| {
                let path = fixture.data().join(format!("written{number}"));
                let ended = &ended;
                scope.spawn(move || {
                    let file = File::create_new(path)?;
                    while !ended.load(Ordering::Relaxed) {
                        file.write_all_at(&vec![number; WRITTEN_BYTES], 0)?;
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        // Also when something below fails.
        let _end = Ended(&ended);
        for age_ms in [0, 1050, 1, 1050, 2, 1050, 3, 1050, 4, 1050, 5] {
            let starts = fixture.status().worker_starts;
            // One that has lived for a second is replaced at once.
            std::thread::sleep(Duration::from_millis(age_ms));
            fixture.kill_worker();
            wait_for("a new worker", Duration::from_secs(20), || {
                agent::worker::client::status(&fixture.place)
                    .is_ok_and(|s| s.is_some_and(|s| s.worker_starts > starts))
            });
            wait_for("its buffers are in memory", Duration::from_secs(20), || {
                let pid = fixture.worker_pid();
                pid.is_some_and(|pid| present_in_large_mappings(pid) >= 2 << 20)
            });
        }
        ended.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap().unwrap();
        }
    });
    for number in 0..6u8 {
        let found = fs::read(fixture.data().join(format!("written{number}"))).unwrap();
        assert!(found == [number; WRITTEN_BYTES], "{number}");
    }
    fixture.unmount();
}

/// Tells others to end when it is dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that are in memory of a process's mappings that are large enough for a buffer of requests.
fn present_in_large_mappings(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut large, mut present) = (false, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let value = |word: Option<&str>| word.unwrap().parse::<u64>().unwrap() << 10;
        match words.next() {
            Some("Size:") => large = value(words.next()) >= 16 << 20,
            Some("Rss:") if large => present += value(words.next()),
            _ => {}
        }
    }
    present
}

#[test]
fn a_worker_is_replaced_although_its_program_was_replaced_or_removed() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    let (installed, new) = (
        fixture.directory.path().join("agent"),
        fixture.directory.path().join("agent.new"),
    );
    fs::copy(program(), &installed).unwrap();
    agent::supervisor::start_program(&installed, &fixture.place, &MountOptions::default()).unwrap();
    let worker_runs = || {
        let pid = fixture.worker_pid().unwrap();
        fs::read_link(format!("/proc/{pid}/exe")).unwrap()
    };
    let own = File::create_new(fixture.data().join("own")).unwrap();
    let is_replaced = |written: &[u8]| {
        let starts = fixture.status().worker_starts;
        fixture.kill_worker();
        own.write_all_at(written, 0).unwrap();
        own.sync_all().unwrap();
        wait_for("a new worker", Duration::from_secs(5), || {
            agent::worker::client::status(&fixture.place)
                .is_ok_and(|s| s.is_some_and(|s| s.worker_starts > starts))
        });
        assert_eq!(fs::read(fixture.data().join("own")).unwrap(), written);
    };
    // As packages do it: the new one takes over at the next start.
    fs::copy(program(), &new).unwrap();
    fs::rename(&new, &installed).unwrap();
    is_replaced(b"upgraded");
    assert_eq!(worker_runs(), installed);
    fs::remove_file(&installed).unwrap();
    is_replaced(b"removed!");
    assert!(worker_runs().to_string_lossy().ends_with(" (deleted)"));
    drop(own);
    fixture.unmount();
}

#[test]
fn a_file_that_is_open_lives_on_without_a_name_over_a_workers_death() {
    let mut fixture = Fixture::new("root", make_files);
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    let own = File::create_new(fixture.data().join("own")).unwrap();
    let theirs = File::options()
        .read(true)
        .write(true)
        .open(fixture.data().join("f7"))
        .unwrap();
    own.write_all_at(b"own", 0).unwrap();
    theirs.write_all_at(b"theirs", 8190).unwrap();
    for name in ["own", "f7"] {
        fs::remove_file(fixture.data().join(name)).unwrap();
    }
    for _ in 0..3 {
        let starts = fixture.status().worker_starts;
        fixture.kill_worker();
        wait_for("a new worker", Duration::from_secs(5), || {
            agent::worker::client::status(&fixture.place)
                .is_ok_and(|s| s.is_some_and(|s| s.worker_starts > starts))
        });
        let mut seen = [0; 6];
        theirs.read_exact_at(&mut seen, 8190).unwrap();
        assert_eq!(&seen, b"theirs");
        own.sync_all().unwrap();
        theirs.sync_all().unwrap();
        assert_eq!(own.metadata().unwrap().nlink(), 0);
    }
    drop((own, theirs));
    let data = fixture.place.cache_directory().join("data");
    let unnamed = || fs::read_dir(&data).unwrap().count();
    wait_for("the space is freed", Duration::from_secs(5), || {
        unnamed() == 0
    });
}

#[test]
fn a_directory_can_be_emptied_while_it_is_listed() {
    let mut fixture = Fixture::new("root", |directory| {
        for number in 0..3000 {
            fs::write(directory.join(format!("base{number}")), b"").unwrap();
        }
    });
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    for number in 0..3000 {
        fs::write(fixture.data().join(format!("own{number}")), b"").unwrap();
    }
    for (number, entry) in fs::read_dir(fixture.data()).unwrap().enumerate() {
        if number % 1500 == 700 {
            fixture.kill_worker();
        }
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(fs::read_dir(fixture.data()).unwrap().count(), 0);
    fs::remove_dir(fixture.data()).unwrap();
}
