//! Two suites that others wrote for file systems, on the mount: `fsx` in each way that files are served, with the worker killed
//! again and again, and `pjdfstest`, compared with what it says of the disk below.
//!
//! `./test` installs both and names their directory. More operations of fsx than usual, with another seed:
//! `PGINSTANT_TEST_FSX_OPERATIONS=1000000 PGINSTANT_TEST_FSX_SEED=7 ./test fsx_`.

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
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::agent::hand::MountOptions;
use mount_support::{Fixture, wait_for};

/// Names the directory of the suites' programs.
const TOOLS_VARIABLE: &str = "PGINSTANT_TEST_TOOLS";
/// Operations of one run of fsx, and for each way of serving when nobody asks for more.
const OPERATIONS: u64 = 30_000;
/// What fsx works on: whole pages of memory, but not whole granules of the cache.
const WORKED_BYTES: u64 = 73 * 4096;
const LARGE_BYTES: usize = 40 * 1024 * 1024;
/// A worker lives that long at least: one that dies younger is started again after a pause.
const LIFE: Duration = Duration::from_millis(1050);

fn tool(name: &str) -> PathBuf {
    let directory = std::env::var_os(TOOLS_VARIABLE);
    let directory = directory.map_or_else(
        || "/var/cache/pginstant-test/tools/bin".into(),
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is missing; ./test installs it",
        path.display()
    );
    path
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

fn content(length: usize) -> Vec<u8> {
    let bytes = (0u32..).map(|at| (at / 8192 + at % 251 + 1).to_le_bytes()[0] | 1);
    bytes.take(length).collect()
}

/// A file that fsx works on.
struct Way {
    /// Name in the mount.
    name: &'static str,
    /// Bytes that the backup has of it; `None`: it is not in the backup.
    base_bytes: Option<usize>,
    /// Whether fsx leaves the file's size and what lies behind its part alone.
    within: bool,
    options: MountOptions,
}

fn configuration(within: bool) -> String {
    // fsx calls it block mode when it may not change the size.
    let resizing = if within { 0 } else { 3 };
    format!(
        "flen = {WORKED_BYTES}\nblockmode = {within}\nnosizechecks = {within}\n[opsize]\nmax = 65536\nmin = 0\nalign = 1\n\
         [weights]\nclose_open = {resizing}\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
         truncate = {resizing}\nfsync = 1\nfdatasync = 1\nposix_fallocate = {resizing}\npunch_hole = 2\nsendfile = 2\n\
         posix_fadvise = 2\ncopy_file_range = 2\n"
    )
}

/// Runs fsx in one way, kills workers meanwhile, and reads what it leaves alone. One run has [`OPERATIONS`] at most, for fsx keeps
/// each mapping that it makes and comes to the end of those that a process may have; each run has a file of its own.
fn exercise(way: &Way) {
    let operations = number("PGINSTANT_TEST_FSX_OPERATIONS", OPERATIONS);
    let seed = number("PGINSTANT_TEST_FSX_SEED", 20_261_121);
    let names: Vec<String> = (0..operations.div_ceil(OPERATIONS))
        .map(|run| format!("{}-{run}", way.name))
        .collect();
    let mut fixture = Fixture::new("root", |directory| {
        for name in &names {
            match way.base_bytes {
                Some(bytes) if *name == names[0] => {
                    fs::write(directory.join(name), content(bytes)).unwrap();
                }
                Some(_) => fs::hard_link(directory.join(&names[0]), directory.join(name)).unwrap(),
                None => {}
            }
        }
    });
    fixture.serve();
    fixture.mount(&way.options).unwrap();
    let configuration_file = fixture.directory.path().join("fsx.toml");
    fs::write(&configuration_file, configuration(way.within)).unwrap();
    let kills = AtomicU32::new(0);
    for (run, name) in (0..).zip(&names) {
        let of_run = OPERATIONS.min(operations - run * OPERATIONS);
        run_fsx(&fixture, way, name, (of_run, seed + run), &kills);
    }
    let killed = kills.load(Ordering::Relaxed);
    println!("{operations} operations with seeds from {seed}, {killed} workers killed");
    assert!(killed > 0, "no worker was killed");
    // What the mount shows is what a new mount of the same cache shows.
    let contents = |fixture: &Fixture| -> Vec<Vec<u8>> {
        let paths = names.iter().map(|name| fixture.data().join(name));
        paths.map(|path| fs::read(path).unwrap()).collect()
    };
    let before = contents(&fixture);
    fixture.unmount();
    fixture.mount(&way.options).unwrap();
    assert!(contents(&fixture) == before, "changed over a mount");
}

fn run_fsx(
    fixture: &Fixture,
    way: &Way,
    name: &str,
    (operations, seed): (u64, u64),
    kills: &AtomicU32,
) {
    let path = fixture.data().join(name);
    let mut command = Command::new(tool("fsx"));
    command
        .args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-f"])
        .arg(fixture.directory.path().join("fsx.toml"))
        .arg("-P")
        .arg(fixture.directory.path())
        .arg(&path)
        .stdin(Stdio::null());
    let ended = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| kill_workers(fixture, &ended, kills));
        if way.within {
            scope.spawn(|| read_behind(&path, &ended));
        }
        let output = command.output();
        ended.store(true, Ordering::Relaxed);
        output.unwrap()
    });
    assert!(
        output.status.success(),
        "PGINSTANT_TEST_FSX_OPERATIONS={operations} PGINSTANT_TEST_FSX_SEED={seed}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if way.within {
        check_behind(&path);
    }
}

fn kill_workers(fixture: &Fixture, ended: &AtomicBool, kills: &AtomicU32) {
    while !ended.load(Ordering::Relaxed) {
        let starts = fixture.status().worker_starts;
        std::thread::sleep(LIFE);
        fixture.kill_worker();
        kills.fetch_add(1, Ordering::Relaxed);
        wait_for("a new worker", Duration::from_secs(10), || {
            agent::worker::client::status(&fixture.place)
                .is_ok_and(|status| status.is_some_and(|s| s.worker_starts > starts))
        });
    }
}

/// Has the rest of the file fetched, a little at a time, while fsx works on its beginning.
fn read_behind(path: &Path, ended: &AtomicBool) {
    let file = File::open(path).unwrap();
    let wanted = content(LARGE_BYTES);
    let mut bytes = vec![0; 24_000];
    let mut at = WORKED_BYTES;
    while !ended.load(Ordering::Relaxed) {
        file.read_exact_at(&mut bytes, at).unwrap();
        let from = usize::try_from(at).unwrap();
        assert!(bytes == wanted[from..from + bytes.len()], "changed at {at}");
        // Never to the end, so that the file stays partly in the backup.
        at += 32_768;
        if at > (LARGE_BYTES as u64) - (8 << 20) {
            at = WORKED_BYTES;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check_behind(path: &Path) {
    let from = usize::try_from(WORKED_BYTES).unwrap();
    let bytes = fs::read(path).unwrap();
    assert!(bytes[from..] == content(LARGE_BYTES)[from..]);
}

#[test]
fn fsx_finds_nothing_wrong_with_files_made_in_the_mount() {
    exercise(&Way {
        name: "new",
        base_bytes: None,
        within: false,
        options: MountOptions::default(),
    });
}

#[test]
fn fsx_finds_nothing_wrong_with_files_that_are_wholly_in_the_cache() {
    exercise(&Way {
        name: "small",
        base_bytes: Some(200_000),
        within: false,
        options: MountOptions::default(),
    });
}

#[test]
fn fsx_finds_nothing_wrong_with_files_that_stay_partly_in_the_backup() {
    exercise(&Way {
        name: "large",
        base_bytes: Some(LARGE_BYTES),
        within: true,
        options: MountOptions {
            small_file_bytes: 0,
            ..MountOptions::default()
        },
    });
}

#[test]
fn fsx_finds_nothing_wrong_with_files_of_the_backup_that_are_cut_and_grow_again() {
    exercise(&Way {
        name: "cut",
        base_bytes: Some(250_000),
        within: false,
        options: MountOptions {
            small_file_bytes: 0,
            passthrough: false,
            ..MountOptions::default()
        },
    });
}

/// Tests of pjdfstest that pass on ext4 and not here, each with its reason.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "link::link_count_max",
    "skipped by itself: the C library knows no limit of links on FUSE",
)];

/// The outcome of every test of pjdfstest, by name.
fn pjdfstest(
    directory: &Path,
    other: &Path,
    configuration: &Path,
) -> (BTreeMap<String, String>, String) {
    let output = Command::new(tool("pjdfstest"))
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(directory)
        .arg("-s")
        .arg(other)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut outcomes = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with(char::is_whitespace))
    {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(outcome), None) = (words.next(), words.next(), words.next()) {
            outcomes.insert(name.to_owned(), outcome.to_owned());
        }
    }
    (outcomes, text)
}

#[test]
fn what_pjdfstest_finds_right_on_the_disk_it_finds_right_on_the_mount() {
    let mut fixture = Fixture::new("root", |_| {});
    fixture.serve();
    fixture.mount(&MountOptions::default()).unwrap();
    let configuration = fixture.directory.path().join("pjdfstest.toml");
    let text = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n";
    fs::write(&configuration, text).unwrap();
    let on_disk = fixture.directory.path().join("disk");
    let other = fixture.directory.path().join("other");
    let on_mount = fixture.data().join("suite");
    for directory in [&on_disk, &other, &on_mount] {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // The suite changes into users who may not enter a session's directories as they are.
    for directory in [fixture.place.mount_point(), fixture.data()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // By a short way: sockets have short paths.
    let short = fixture.directory.path().join("m");
    std::os::unix::fs::symlink(&on_mount, &short).unwrap();
    // Each uses the other as the file system that names cannot be moved to.
    let (native, text) = pjdfstest(&on_disk, &short, &configuration);
    let passed = native.values().filter(|outcome| *outcome == "ok").count();
    assert!(passed > 350, "{passed} tests pass on the disk: {text}");
    let (ours, text) = pjdfstest(&short, &other, &configuration);
    let mut wrong = Vec::new();
    for (name, outcome) in &native {
        let here = ours.get(name).map_or("missing", String::as_str);
        let is_exception = EXCEPTIONS.iter().any(|(exception, _)| exception == name);
        if outcome == "ok" && (here != "ok") != is_exception {
            wrong.push(format!("{name}: {here}"));
        }
    }
    println!(
        "{passed} tests pass on the disk; exceptions: {}",
        EXCEPTIONS.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}\n{text}");
}
