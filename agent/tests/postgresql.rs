//! PostgreSQL 15 runs from the mount.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod mount_support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::agent::hand::MountOptions;
use common::env::Env;
use mount_support::{Fixture, wait_for};

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

fn postgres(program: &str) -> Command {
    let mut command = Command::new("runuser");
    command
        .args(["-u", "postgres", "--"])
        .arg(format!("{PROGRAMS}/{program}"))
        .current_dir("/tmp");
    command
}

fn succeed(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let out = String::from_utf8_lossy(&stdout).into_owned();
    let err = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}\n{out}\n{err}");
    out
}

fn make_cluster(data: &Path) {
    succeed(Command::new("chown").arg("postgres:").arg(data));
    succeed(
        postgres("initdb")
            .args(["-k", "-N", "-A", "trust", "-D"])
            .arg(data),
    );
    let mut source = Instance::start(data);
    succeed(
        postgres("pgbench")
            .args(["-i", "-q", "-s", "5"])
            .args(source.address()),
    );
    source.stop("fast");
}

/// A running PostgreSQL, ended when dropped.
struct Instance {
    data: std::path::PathBuf,
    sockets: tempfile::TempDir,
    running: bool,
}

impl Instance {
    fn start(data: &Path) -> Self {
        let sockets = tempfile::tempdir().unwrap();
        succeed(Command::new("chown").arg("postgres:").arg(sockets.path()));
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c wal_sync_method=open_datasync \
             -c shared_buffers=16MB -c max_wal_size=64MB",
            sockets.path().display()
        );
        let log = sockets.path().join("log");
        let mut command = postgres("pg_ctl");
        command
            .args(["start", "-w", "-t", "60", "-o", &options, "-D"])
            .arg(data)
            .arg("-l")
            .arg(&log);
        // Not through pipes: the postmaster would keep them.
        let ended = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(ended.success(), "{said}");
        Self {
            data: data.to_path_buf(),
            sockets,
            running: true,
        }
    }

    fn address(&self) -> Vec<String> {
        vec!["-h".to_owned(), self.sockets.path().display().to_string()]
    }

    fn query(&self, sql: &str) -> String {
        let out = succeed(postgres("psql").args(self.address()).args(["-AtXc", sql]));
        out.trim().to_owned()
    }

    fn stop(&mut self, mode: &str) {
        self.running = false;
        succeed(
            postgres("pg_ctl")
                .args(["stop", "-w", "-m", mode, "-D"])
                .arg(&self.data),
        );
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.running {
            let mut stop = postgres("pg_ctl");
            stop.args(["stop", "-m", "immediate", "-D"]).arg(&self.data);
            stop.status().ok();
            let log = std::fs::read_to_string(self.sockets.path().join("log"));
            println!("{}", log.unwrap_or_default());
        }
    }
}

fn assert_balanced(instance: &Instance) {
    let sums = instance.query(
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
         (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)",
    );
    assert_eq!(sums, "t|t");
}

/// Kills of the worker when nobody asks for more; `PGINSTANT_TEST_WORKER_KILLS=150 ./test no_transaction_fails` is five minutes.
const KILLS: u64 = 5;
const KILL_EVERY: Duration = Duration::from_secs(2);

fn now_us() -> i64 {
    Env::system().now().as_microsecond()
}

/// The longest transactions, in microseconds, by pgbench's log: of all, and of those under way at a kill.
fn longest(log_directory: &Path, killed_at: &[i64]) -> (i64, i64) {
    let (mut of_all, mut at_kills) = (0, 0);
    for entry in std::fs::read_dir(log_directory).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().contains("transactions.") {
            continue;
        }
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let words: Vec<i64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            let (took, ended) = (words[2], words[4] * 1_000_000 + words[5]);
            of_all = of_all.max(took);
            if killed_at
                .iter()
                .any(|at| (ended - took..=ended).contains(at))
            {
                at_kills = at_kills.max(took);
            }
        }
    }
    (of_all, at_kills)
}

fn run_with_worker_kills(passthrough: bool) {
    let mut fixture = Fixture::new("postgres", make_cluster);
    fixture.serve();
    let options = MountOptions {
        passthrough,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let mut instance = Instance::start(&fixture.data());
    let kills = std::env::var("PGINSTANT_TEST_WORKER_KILLS").map_or(KILLS, |n| n.parse().unwrap());
    let seconds = KILL_EVERY.as_secs() * (kills + 1);
    let log_directory = instance.sockets.path().to_path_buf();
    let mut bench = postgres("pgbench")
        .args(["-T", &seconds.to_string(), "-c", "4", "-j", "2", "-n", "-l"])
        .arg("--log-prefix")
        .arg(log_directory.join("transactions"))
        .args(instance.address())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut killed_at = Vec::new();
    for _ in 0..kills {
        std::thread::sleep(KILL_EVERY);
        killed_at.push(now_us());
        fixture.kill_worker();
    }
    wait_for("pgbench ends", Duration::from_secs(60), || {
        bench.try_wait().unwrap().is_some()
    });
    let output = bench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    let (of_all, at_kills) = longest(&log_directory, &killed_at);
    println!(
        "{kills} kills; the longest transaction at a kill took {} ms, of all {} ms",
        at_kills / 1000,
        of_all / 1000
    );
    assert!(at_kills > 0, "nothing was under way at any kill");
    assert!(output.status.success());
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    assert!(u64::from(fixture.status().worker_starts) > kills);
    assert_balanced(&instance);
    instance.stop("immediate");
    let mut instance = Instance::start(&fixture.data());
    assert_balanced(&instance);
    instance.stop("fast");
    succeed(
        postgres("pg_checksums")
            .args(["--check", "-D"])
            .arg(fixture.data()),
    );
    // And once more over the same cache, from the catalog alone.
    fixture.unmount();
    fixture.mount(&options).unwrap();
    succeed(
        postgres("pg_checksums")
            .args(["--check", "-D"])
            .arg(fixture.data()),
    );
    let mut instance = Instance::start(&fixture.data());
    assert_balanced(&instance);
    instance.stop("fast");
}

#[test]
fn no_transaction_fails_while_the_worker_is_killed_again_and_again() {
    run_with_worker_kills(true);
}

#[test]
fn no_transaction_fails_while_the_worker_is_killed_and_the_kernel_serves_nothing() {
    run_with_worker_kills(false);
}
