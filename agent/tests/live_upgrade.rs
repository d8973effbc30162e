//! Files of the backup that PostgreSQL holds open become complete and are then served by the kernel, while it runs.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    reason = "a test may panic, and its numbers are its own"
)]

mod mount_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::agent::hand::{Hydrate, MountOptions};
use mount_support::{Fixture, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// The programs of every PostgreSQL from 15 on that there is to test with.
fn programs() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/usr/lib/postgresql/15/bin")];
    found.extend(std::env::var_os("PGINSTANT_TEST_PG18").map(PathBuf::from));
    found.retain(|directory| directory.join("postgres").exists());
    assert!(!found.is_empty(), "no PostgreSQL; ./test installs it");
    found
}

/// A PostgreSQL of some version, ended when dropped.
struct Server<'a> {
    programs: &'a Path,
    data: PathBuf,
    sockets: tempfile::TempDir,
}

fn run(programs: &Path, program: &str) -> Command {
    let mut command = Command::new("runuser");
    command
        .args(["-u", "postgres", "--"])
        .arg(programs.join(program))
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

impl<'a> Server<'a> {
    fn start(programs: &'a Path, data: &Path) -> Self {
        let sockets = tempfile::tempdir().unwrap();
        succeed(Command::new("chown").arg("postgres:").arg(sockets.path()));
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c shared_buffers=16MB",
            sockets.path().display()
        );
        let log = sockets.path().join("log");
        let mut start = run(programs, "pg_ctl");
        start
            .args(["start", "-w", "-t", "60", "-o", &options, "-D"])
            .arg(data)
            .arg("-l")
            .arg(&log);
        // Not through pipes: the postmaster would keep them.
        let ended = start.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(ended.unwrap().success(), "{said}");
        Self {
            programs,
            data: data.to_path_buf(),
            sockets,
        }
    }

    fn client(&self, program: &str) -> Command {
        let mut command = run(self.programs, program);
        command.arg("-h").arg(self.sockets.path());
        command.args(["-U", "postgres"]);
        command
    }

    fn query(&self, sql: &str) -> String {
        let out = succeed(self.client("psql").args(["-AtXc", sql, "postgres"]));
        out.trim().to_owned()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let mut stop = run(self.programs, "pg_ctl");
        stop.args(["stop", "-w", "-m", "fast", "-D"])
            .arg(&self.data);
        stop.stdout(Stdio::null()).status().ok();
    }
}

fn make_cluster(programs: &Path, data: &Path) {
    succeed(Command::new("chown").arg("postgres:").arg(data));
    succeed(
        run(programs, "initdb")
            .args(["-k", "-N", "-A", "trust", "-U", "postgres", "-D"])
            .arg(data),
    );
    let source = Server::start(programs, data);
    succeed(
        source
            .client("pgbench")
            .args(["-i", "-q", "-s", "8", "postgres"]),
    );
}

fn upgrade(programs: &Path) {
    let mut fixture = Fixture::new("postgres", |data| make_cluster(programs, data));
    fixture.serve();
    let options = MountOptions {
        hydrate: Hydrate::Touched,
        small_file_bytes: 0,
        // Slow enough that everybody opens the files before they are complete.
        hydrate_bytes_per_s: 24 * 1024 * 1024,
        ..MountOptions::default()
    };
    fixture.mount(&options).unwrap();
    let server = Server::start(programs, &fixture.data());
    let mut bench = server
        .client("pgbench")
        .args(["-T", "30", "-c", "4", "-j", "2", "-n", "postgres"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("files that are open become complete", LIMIT, || {
        let statistics = fixture.status().statistics;
        assert!(bench.try_wait().unwrap().is_none(), "pgbench has ended");
        statistics.files_partial == 0 && statistics.open_upgradable > 0
    });
    let before = fixture.status().statistics;
    // What recovery-svc does.
    server.query("CREATE DATABASE throw_away TEMPLATE template0");
    server.query("DROP DATABASE throw_away");
    wait_for("the kernel serves them", LIMIT, || {
        let statistics = fixture.status().statistics;
        statistics.open_upgradable < before.open_upgradable
            && statistics.open_passthrough > before.open_passthrough
    });
    let after = fixture.status().statistics;
    println!("{}: {before:?}\n{after:?}", programs.display());
    assert!(bench.try_wait().unwrap().is_none(), "pgbench has ended");
    let output = bench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(said.contains("number of failed transactions: 0 "), "{said}");
    assert_eq!(
        server.query(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"
        ),
        "t"
    );
    drop(server);
    succeed(
        run(programs, "pg_checksums")
            .args(["--check", "-D"])
            .arg(fixture.data()),
    );
}

#[test]
fn files_that_have_become_complete_are_served_by_the_kernel_while_postgresql_runs() {
    for programs in programs() {
        upgrade(&programs);
    }
}
