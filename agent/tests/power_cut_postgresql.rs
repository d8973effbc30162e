//! Power cuts under a published PostgreSQL: its write cache lies on an ext4 of a disk that loses what was not flushed, and
//! whatever is found there after a cut, mounted and started again, holds every acknowledged commit.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod chance;
mod commits;
mod loop_disk;
mod mount_support;
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chance::{Random, only_seed, power_cuts};
use commits::{Acknowledged, Commits};
use common::agent::hand::{CacheAfterwards, Hydrate, MountOptions, Request};
use loop_disk::{CrashImages, Entry, Flushes, Image, Log, LoopDisk, Survivors, Volume};
use mount_support::{Fixture, wait_for};
use support::{Published, account, as_postgres, postgresql};

const VOLUME_BYTES: u64 = 1 << 30;
/// Cuts of each version of PostgreSQL when nobody asks for more.
const CUTS: u64 = 6;
/// Cuts of one run, and how long each of its two loads takes, in seconds.
const CUTS_OF_A_RUN: u64 = 100;
const LOAD_S: u64 = 3;
const LIMIT: Duration = Duration::from_secs(60);
/// Of so many images one is looked at in all its indexes, heaps and checksums, and on one the power is cut again.
const THOROUGH_EVERY: u64 = 4;
const BALANCES: &str = "WITH sums AS (SELECT (SELECT sum(abalance) FROM pgbench_accounts) a, \
     (SELECT sum(tbalance) FROM pgbench_tellers) t, (SELECT sum(bbalance) FROM pgbench_branches) b, \
     (SELECT coalesce(sum(delta), 0) FROM pgbench_history) h, (SELECT count(*) FROM pgbench_accounts) n) \
     SELECT a = h AND t = h AND b = h AND n = 200000 FROM sums";
const INDEXES: &str = "SELECT count(bt_index_check(c.oid, true)) > 100 FROM pg_class c \
     JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam \
     WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid";
const HEAPS: &str = "SELECT count(*) FROM pg_class c CROSS JOIN LATERAL verify_heapam(c.oid) \
     WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'";

/// A backup of a cluster with checksums, pgbench's tables and those of the clients.
fn make_backup(programs: &Path, to: &Path) {
    let root = support::directory();
    let owner = account();
    let data = root.path().join("data");
    for directory in [root.path(), to] {
        std::os::unix::fs::chown(directory, Some(owner.uid), Some(owner.gid)).unwrap();
    }
    let (data, socket) = (data.to_str().unwrap(), root.path().to_str().unwrap());
    let run = |program: &str, arguments: &[&str]| as_postgres(&programs.join(program), arguments);
    run(
        "initdb",
        &[
            "-k",
            "-N",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--locale=C.UTF-8",
            "--wal-segsize=1",
            "-D",
            data,
        ],
    );
    let options = format!("-c listen_addresses= -c unix_socket_directories={socket} -c fsync=off");
    let log = format!("{socket}/log");
    run(
        "pg_ctl",
        &["-w", "-D", data, "-l", &log, "-o", &options, "start"],
    );
    let _stopped = StopAtEnd { programs, data };
    run(
        "pgbench",
        &[
            "-i", "-q", "-s", "2", "-h", socket, "-U", "postgres", "postgres",
        ],
    );
    let tables = format!("CREATE EXTENSION amcheck; {}", commits::TABLES);
    run("psql", &["-Xqh", socket, "-U", "postgres", "-c", &tables]);
    let to = to.to_str().unwrap();
    run(
        "pg_basebackup",
        &[
            "-h", socket, "-U", "postgres", "-X", "stream", "-c", "fast", "-D", to,
        ],
    );
}

struct StopAtEnd<'a> {
    programs: &'a Path,
    data: &'a str,
}

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        let arguments = ["-w", "-m", "immediate", "-D", self.data, "stop"];
        as_postgres(&self.programs.join("pg_ctl"), &arguments);
    }
}

/// A published instance; dropped, it and its mount are killed.
struct Instance<'a> {
    fixture: &'a Fixture,
    published: Published,
}

impl<'a> Instance<'a> {
    /// Takes the same steps as a session that is published or tried again.
    fn start(fixture: &'a Fixture, programs: &Path, options: &MountOptions) -> Self {
        let mut published = Published::at(programs, fixture.place.clone());
        published.options.shared_buffers_bytes = Some(8 << 20);
        // Checkpoints and new files of the log come often.
        let settings = [
            ("max_wal_size", "12MB"),
            ("min_wal_size", "4MB"),
            ("autovacuum_naptime", "1s"),
        ];
        published.options.settings =
            BTreeMap::from(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let place = fixture.place.clone();
        published.answer(Request::CreateSession { place }).unwrap();
        let instance = Self { fixture, published };
        fixture.hand_over_the_tree();
        fixture.mount(options).unwrap();
        instance.published.prepare();
        instance.published.start();
        instance.published.wait_until_ready();
        instance
    }

    fn socket(&self) -> PathBuf {
        self.fixture.place.socket_directory()
    }

    fn ask(&self, sql: &str) -> String {
        let (socket, port) = (self.socket(), self.published.options.port.to_string());
        let arguments = ["-h", socket.to_str().unwrap(), "-p", &port, "-XAtqc", sql];
        let psql = self.published.options.program_directory.join("psql");
        as_postgres(&psql, &arguments).trim().to_owned()
    }

    fn pgbench(&self, seconds: u64) -> Command {
        let mut pgbench = Command::new(self.published.options.program_directory.join("pgbench"));
        pgbench
            .args(["-n", "-c", "3", "-j", "1", "-U", "postgres"])
            .args(["-T", &seconds.to_string()])
            .arg("-h")
            .arg(self.socket())
            .args(["-p", &self.published.options.port.to_string(), "postgres"])
            .stdout(Stdio::null());
        pgbench
    }
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        self.published.kill_all();
        mount_support::end(&self.fixture.place, CacheAfterwards::Discarded);
    }
}

/// How much of an image is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The commits and the balances.
    Commits,
    /// Every index, heap and page as well.
    Everything,
}

/// What a published instance did with a disk.
struct Run {
    programs: PathBuf,
    options: MountOptions,
    fixture: Fixture,
    acknowledged: Acknowledged,
    log: Arc<Log>,
    formatted: File,
    /// Where the load began and ended in the log.
    load: (usize, usize),
    directory: tempfile::TempDir,
}

fn live(programs: &Path, options: MountOptions) -> Run {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let formatted = loop_disk::formatted(directory.path(), VOLUME_BYTES).unwrap();
    let image = Image::over(formatted.try_clone().unwrap(), directory.path()).unwrap();
    let log = Log::in_directory(directory.path()).unwrap();
    let disk = LoopDisk::attach(image, Some(log)).unwrap();
    let mut volume = None;
    let mut fixture = Fixture::with_cache_on(
        "postgres",
        |data| make_backup(programs, data),
        |root| volume = Some(Volume::mount(&disk, root).unwrap()),
    );
    fixture.serve();
    let position = disk.position();
    let instance = Instance::start(&fixture, programs, &options);
    let began = position.now();
    let load = |before| {
        let (socket, port) = (instance.socket(), instance.published.options.port);
        let clients = Commits::begin((&socket, port), &position, before);
        let mut pgbench = instance.pgbench(LOAD_S).spawn().unwrap();
        // In the middle of the work; its successor goes on.
        let wanted = position.now() + 1000;
        wait_for("the disk is at work", LIMIT, || position.now() > wanted);
        fixture.kill_worker();
        let status = pgbench.wait().unwrap();
        assert!(status.success(), "pgbench fails on a disk that works");
        clients.end()
    };
    let acknowledged = load(Acknowledged::default());
    // What it wrote and did not flush it will not flush either: it starts without a flush of its files.
    instance.published.kill_all();
    instance.published.start();
    instance.published.wait_until_ready();
    let acknowledged = load(acknowledged);
    let ended = position.now();
    drop(instance);
    volume.unwrap().unmount().unwrap();
    Run {
        programs: programs.to_owned(),
        options,
        acknowledged,
        log: Arc::new(disk.end().unwrap()),
        formatted,
        load: (began, ended),
        fixture,
        directory,
    }
}

impl Run {
    fn images(&self) -> CrashImages {
        let directory = self.directory.path();
        let formatted = loop_disk::copy_of(&self.formatted, directory).unwrap();
        CrashImages::new(self.log.clone(), formatted, directory)
    }

    /// Starts the instance again from the image of a cut, and fails unless all is there.
    fn check(&self, (image, log): (Image, Option<Log>), cut: usize, depth: Depth) -> Option<Log> {
        let disk = LoopDisk::attach(image, log).unwrap();
        let volume = Volume::mount(&disk, &self.fixture.place.cache_root).unwrap();
        let instance = Instance::start(&self.fixture, &self.programs, &self.options);
        let kept = self.acknowledged.check(cut, |sql| instance.ask(sql));
        assert_eq!(kept, Ok(()));
        assert_eq!(instance.ask(BALANCES), "t", "the balances do not agree");
        if depth == Depth::Everything {
            assert_eq!(instance.ask(INDEXES), "t");
            assert_eq!(instance.ask(HEAPS), "0");
            instance.published.stop();
            let data = self.fixture.data();
            let arguments = ["--check", "-D", data.to_str().unwrap()];
            as_postgres(&self.programs.join("pg_checksums"), &arguments);
        }
        drop(instance);
        volume.unmount().unwrap();
        disk.end()
    }

    /// The same, then cuts the power a second time, somewhere in what was done on the image, and looks again.
    fn check_twice(&self, image: &Image, cut: usize, random: &mut Random) {
        let directory = self.directory.path();
        let file = image.to_file(directory).unwrap();
        let first = Image::over(file.try_clone().unwrap(), directory).unwrap();
        let log = Log::in_directory(directory).unwrap();
        let log = self.check((first, Some(log)), cut, Depth::Commits).unwrap();
        let second_cut = random.below(log.entries().len() as u64) as usize;
        println!("  and again before {second_cut} of {}", log.entries().len());
        let mut images = CrashImages::new(Arc::new(log), file, directory);
        let disk_is = (Flushes::Kept, Survivors::Some);
        let second = images.cut(second_cut, disk_is, random).unwrap();
        self.check((second, None), cut, Depth::Everything);
    }

    /// The same check must complain of a disk that ignored its flushes: it holds what it held long before.
    fn check_would_notice(&self) {
        let (began, ended) = self.load;
        let disk_is = (
            Flushes::IgnoredSince((ended - began) / 2),
            Survivors::Nothing,
        );
        let image = self.images().cut(ended, disk_is, &mut Random(1)).unwrap();
        let check = AssertUnwindSafe(|| self.check((image, None), ended, Depth::Commits));
        let complaint = std::panic::catch_unwind(check).err().unwrap();
        let complaint = complaint.downcast_ref::<String>().unwrap();
        println!("of a disk that ignores flushes: {complaint}");
        assert!(
            complaint.contains("acknowledged and not there"),
            "{complaint}"
        );
    }

    fn cut_at_any_moment(&self, seed: u64, count: u64) {
        let mut random = Random(seed * 2 + 1);
        let (began, ended) = self.load;
        // Most under load; some before, while it is published.
        let mut cuts: Vec<usize> = (0..count)
            .map(|number| match number % 8 {
                7 => random.below(began as u64) as usize,
                _ => began + random.below((ended - began) as u64) as usize,
            })
            .collect();
        cuts.sort_unstable();
        let mut images = self.images();
        for (number, cut) in (1..).zip(cuts) {
            let survivors = match random.below(6) {
                0 => Survivors::Nothing,
                1 => Survivors::Everything,
                _ => Survivors::Some,
            };
            let began_at = Instant::now();
            let disk_is = (Flushes::Kept, survivors);
            let image = images.cut(cut, disk_is, &mut random).unwrap();
            println!("SEED={seed}: cut {number} of {count} before {cut}, {survivors:?} survive(s)");
            match number % THOROUGH_EVERY {
                0 => drop(self.check((image, None), cut, Depth::Everything)),
                2 => self.check_twice(&image, cut, &mut random),
                _ => drop(self.check((image, None), cut, Depth::Commits)),
            }
            println!(
                "  {} acknowledged commits are there, {} ms",
                self.acknowledged.count(cut),
                began_at.elapsed().as_millis()
            );
        }
    }
}

/// One run of a version of PostgreSQL, and so many cuts of it.
fn run_and_cut(programs: &Path, seed: u64, count: u64) {
    let began_at = Instant::now();
    let (hydrate, passthrough) = match seed % 4 {
        1 => (Hydrate::Touched, true),
        2 => (Hydrate::All, false),
        3 => (Hydrate::All, true),
        _ => (Hydrate::Touched, false),
    };
    let run = live(
        programs,
        MountOptions {
            hydrate,
            passthrough,
            ..MountOptions::default()
        },
    );
    let entries = run.log.entries();
    let flushes = entries.iter().filter(|entry| **entry == Entry::Flush);
    println!(
        "SEED={seed} {}, hydration of {hydrate:?}, passthrough {passthrough}: {} acknowledged commits, {} writes and flushes ({} flushes), {} s",
        programs.display(),
        run.acknowledged.count(entries.len()),
        entries.len(),
        flushes.count(),
        began_at.elapsed().as_secs()
    );
    run.check_would_notice();
    run.cut_at_any_moment(seed, count);
    println!("{} s in all", began_at.elapsed().as_secs());
}

#[test]
fn no_acknowledged_commit_is_lost_wherever_the_power_is_cut_under_load() {
    let first = only_seed().unwrap_or(1);
    let (all, count) = (postgresql(), power_cuts(CUTS));
    let runs = (0..count).step_by(CUTS_OF_A_RUN as usize);
    for (seed, done) in (first..).step_by(all.len()).zip(runs) {
        let cuts = CUTS_OF_A_RUN.min(count - done);
        for (seed, programs) in (seed..).zip(&all) {
            run_and_cut(programs, seed, cuts);
        }
    }
}
