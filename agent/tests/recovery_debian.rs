//! An instant recovery in place of a cluster that Debian's tools know.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod recovery_support;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::agent::hand::{RecoveryAction, RecoveryResponse};
use recovery_support::{Load, Walk, psql, tree};
use support::{Published, as_postgres, directory, free_port};

const VERSION: &str = "15";
const SOCKET: &str = "/var/run/postgresql";

/// A cluster made by `pg_createcluster`; dropped at the end.
struct DebianCluster {
    name: String,
    port: u16,
    data: PathBuf,
    programs: PathBuf,
    root: tempfile::TempDir,
}

fn tool(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

impl DebianCluster {
    fn start() -> Self {
        let root = directory();
        let cluster = Self {
            name: format!("pginstant{}", std::process::id()),
            port: free_port(),
            data: root.path().join("main"),
            programs: Path::new("/usr/lib/postgresql").join(VERSION).join("bin"),
            root,
        };
        let port = cluster.port.to_string();
        let (made, said) = tool(
            "pg_createcluster",
            &[
                "-p",
                &port,
                "-d",
                cluster.data.to_str().unwrap(),
                "--locale",
                "C.UTF-8",
                VERSION,
                &cluster.name,
            ],
        );
        assert!(made, "{said}");
        let (started, said) = cluster.control("start");
        assert!(started, "{said}");
        cluster
    }

    fn control(&self, action: &str) -> (bool, String) {
        tool("pg_ctlcluster", &[VERSION, &self.name, action])
    }

    fn value(&self, sql: &str) -> String {
        psql(&self.programs, Path::new(SOCKET), self.port, sql)
    }

    fn back_up(&self) -> PathBuf {
        let backup = self.root.path().join("backup");
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&backup)
            .unwrap();
        let owner = support::account();
        std::os::unix::fs::chown(&backup, Some(owner.uid), Some(owner.gid)).unwrap();
        as_postgres(
            &self.programs.join("pg_basebackup"),
            &[
                "-h",
                SOCKET,
                "-p",
                &self.port.to_string(),
                "-D",
                backup.to_str().unwrap(),
                "-c",
                "fast",
            ],
        );
        backup
    }

    fn configuration(&self) -> PathBuf {
        Path::new("/etc/postgresql").join(VERSION).join(&self.name)
    }
}

impl Drop for DebianCluster {
    fn drop(&mut self) {
        tool("pg_dropcluster", &["--stop", VERSION, &self.name]);
    }
}

#[test]
fn a_debian_cluster_is_recovered_in_its_place_and_started_by_debians_tools() {
    let cluster = DebianCluster::start();
    cluster.value("CREATE TABLE kept AS SELECT 42 AS x");
    cluster.value("ALTER SYSTEM SET archive_mode = on");
    cluster.value("ALTER SYSTEM SET archive_command = 'true'");
    let configured = tree(&cluster.configuration());
    let mut published = Published::from_backup(&cluster.programs, &cluster.back_up());
    // At its final port from the first second.
    published.options.port = cluster.port;
    let walk = Walk::begin(published, &cluster.data, &[]);
    let RecoveryResponse::SetAside(moved) = walk.twice(RecoveryAction::SetAside) else {
        unreachable!()
    };
    assert!(moved.was_running);
    let command = format!("pg_ctlcluster {VERSION} {} start", cluster.name);
    assert_eq!(moved.manager.as_deref(), Some(command.as_str()));
    walk.start_published();
    let load = walk.load();
    walk.replicate();
    // Whoever starts the host's cluster now must not get the copy.
    let (started, said) = cluster.control("start");
    assert!(!started, "{said}");
    walk.start_standby();
    let switched = walk.switch_over();
    let acknowledged = load.acknowledged();
    assert_eq!(switched.manager, command);
    let rows: u64 = cluster
        .value("SELECT count(*) FROM pgbench_history")
        .parse()
        .unwrap();
    assert!(
        (acknowledged..=acknowledged + Load::CLIENTS).contains(&rows),
        "{acknowledged} {rows}"
    );
    assert_eq!(cluster.value("SELECT x FROM kept"), "42");
    assert_eq!(cluster.value("SHOW archive_mode"), "on");
    assert_eq!(
        cluster.value("SHOW config_file"),
        cluster
            .configuration()
            .join("postgresql.conf")
            .to_str()
            .unwrap()
    );
    assert_eq!(tree(&cluster.configuration()), configured);
    let (_, online) = cluster.control("status");
    assert!(online.contains("server is running"), "{online}");
    let (restarted, said) = cluster.control("restart");
    assert!(restarted, "{said}");
    assert_eq!(cluster.value("SELECT x FROM kept"), "42");
    assert!(moved.moved[0].1.join("PG_VERSION").exists());
}

#[test]
fn a_debian_cluster_that_was_set_aside_runs_again_when_it_is_put_back() {
    let cluster = DebianCluster::start();
    cluster.value("CREATE TABLE kept AS SELECT 42 AS x");
    let backup = cluster.back_up();
    let walk = Walk::begin(
        Published::from_backup(&cluster.programs, &backup),
        &cluster.data,
        &[],
    );
    walk.twice(RecoveryAction::SetAside);
    assert!(!cluster.control("status").0);
    walk.twice(RecoveryAction::PutBack);
    assert!(cluster.control("status").0);
    assert_eq!(cluster.value("SELECT x FROM kept"), "42");
}

#[test]
fn a_backup_without_configuration_is_recovered_to_another_place_and_trusts_nobody() {
    let cluster = DebianCluster::start();
    cluster.value("CREATE TABLE kept AS SELECT 42 AS x");
    let mut published = Published::from_backup(&cluster.programs, &cluster.back_up());
    // More than the final instance has: recovery must end nevertheless.
    let settings = &mut published.options.settings;
    settings.insert("max_connections".into(), "150".into());
    let root = directory();
    let data = root.path().join("data");
    let walk = Walk::begin(published, &data, &[]);
    walk.start_published();
    walk.twice(RecoveryAction::SetAside);
    walk.replicate();
    walk.start_standby();
    let switched = walk.switch_over();
    assert!(
        switched
            .remarks
            .iter()
            .any(|r| r.contains("no postgresql.conf"))
    );
    let socket = Path::new(SOCKET);
    assert_eq!(walk.final_value(socket, "SELECT x FROM kept"), "42");
    assert_eq!(walk.final_value(socket, "SHOW max_connections"), "100");
    assert_eq!(
        walk.final_value(socket, "SHOW listen_addresses"),
        "127.0.0.1"
    );
    let trusts = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'trust'";
    assert_eq!(walk.final_value(socket, trusts), "0");
    let automatic = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(
        !automatic.contains("/bin/false") && !automatic.contains("hot_standby"),
        "{automatic}"
    );
}
