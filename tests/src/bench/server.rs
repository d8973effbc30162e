//! A PostgreSQL that is measured: published from a backup, or restored from it natively.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::Published as WherePublished;
use serde_json::Value;
use tempfile::TempDir;

use crate::postgres::{OS_USER, as_postgres, free_port, run};
use crate::programs::program;
use crate::system::{TestSystem, json_lines};
use crate::wait;

/// The database.
pub(super) const DATABASE: &str = "shop";
/// Settings that both sides have, beside `shared_buffers`. Without autovacuum no round has more to do than another.
const SETTINGS: [(&str, &str); 5] = [
    ("fsync", "on"),
    ("autovacuum", "off"),
    ("max_wal_size", "2GB"),
    ("checkpoint_timeout", "30min"),
    ("max_parallel_workers_per_gather", "0"),
];
/// The longest that explorer may take to publish.
const PUBLISH_LIMIT: Duration = Duration::from_secs(900);
/// The longest that copying in the background may take.
const HYDRATION_LIMIT: Duration = Duration::from_secs(300);

/// Lines of the target's section that give published instances the settings.
pub(super) fn target_lines(installation_bin: &Path, shared_buffers_mib: u64) -> String {
    let settings: Vec<String> = SETTINGS
        .iter()
        .map(|(name, value)| format!("{name} = \"{value}\""))
        .collect();
    format!(
        "program_directories = [\"{}\"]\nhba_lines = [\"host all all 127.0.0.1/32 trust\"]\n\
         shared_buffers_bytes = {}\nsettings = {{ {} }}",
        installation_bin.display(),
        shared_buffers_mib << 20,
        settings.join(", ")
    )
}

/// How to reach a server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    bin: PathBuf,
    socket_directory: PathBuf,
    port: u16,
}

impl Server {
    /// A client program, told how to reach it.
    pub(super) fn client(&self, name: &str) -> Command {
        let mut command = as_postgres(&self.bin.join(name));
        command.arg("-h").arg(&self.socket_directory).args([
            "-p",
            &self.port.to_string(),
            "-U",
            OS_USER,
        ]);
        command
    }

    /// Runs SQL.
    pub(super) fn sql(&self, sql: &str) -> Result<String> {
        let arguments = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", sql];
        let output = run(self.client("psql").args(arguments))?;
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// The query that a user would try first.
    pub(super) fn first_query(&self) -> Result<()> {
        let found = self.sql("SELECT abalance FROM pgbench_accounts WHERE aid = 4242")?;
        ensure!(found == "0", "the first query found {found:?}");
        Ok(())
    }

    /// Transactions per second of a load that nothing failed in.
    pub(super) fn pgbench(&self, load: &[&str], seconds: u64) -> Result<f64> {
        let seconds = seconds.to_string();
        let mut program = self.client("pgbench");
        program.args(["-n", "-c", "4", "-j", "2", "-T", &seconds]);
        let output = run(program.args(load).arg(DATABASE))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = text.contains("failed transactions") && !text.contains("transactions: 0 (");
        ensure!(!failed, "transactions failed: {text}");
        text.lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
            .with_context(|| format!("pgbench tells no tps: {text}"))
    }
}

/// Which backup is published.
#[derive(Debug, Clone, Copy)]
pub(super) struct WhichBackup<'a> {
    /// The repository, as the system's configuration names it.
    pub(super) repository: &'a str,
    /// The backup in it.
    pub(super) label: &'a str,
}

/// A published instance.
#[derive(Debug)]
pub(super) struct Published<'a> {
    system: &'a TestSystem,
    /// Its session.
    pub(super) id: String,
    /// Its data directory in the mount.
    pub(super) data_directory: PathBuf,
    /// How to reach it.
    pub(super) server: Server,
}

impl<'a> Published<'a> {
    /// Publishes a backup by `explorer publish`, which ends when it is published.
    pub(super) async fn new(
        system: &'a TestSystem,
        bin: &Path,
        which: WhichBackup<'_>,
    ) -> Result<Self> {
        let WhichBackup { repository, label } = which;
        let port = free_port()?;
        let port_text = port.to_string();
        let output = tokio::process::Command::new(program("explorer")?)
            .arg("--config")
            .arg(system.path("explorer.toml"))
            .args(["--output", "json", "publish", "--repository", repository])
            .args(["--target", "here", "--backup", label, "--port", &port_text])
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PUBLISH_LIMIT, output)
            .await
            .context("explorer takes too long")??;
        ensure!(
            output.status.success(),
            "publish {label}: {output:?}\n{}",
            system.log("recovery-svc")
        );
        let lines = json_lines(&output)?;
        let id = lines
            .iter()
            .find_map(|line| line.get("session_id").and_then(Value::as_str))
            .with_context(|| format!("no session id in {lines:?}"))?
            .to_owned();
        let place = lines.iter().find_map(|line| line.get("published"));
        let published: WherePublished =
            serde_json::from_value(place.context("where it is published")?.clone())?;
        let server = Server {
            bin: bin.to_owned(),
            socket_directory: published.socket_directory,
            port: published.port,
        };
        Ok(Self {
            system,
            id,
            data_directory: published.data_directory,
            server,
        })
    }

    /// Waits until every file that was touched is wholly here: copied in the background after it was read.
    pub(super) async fn is_hydrated(&self) -> Result<()> {
        let found = wait::find("every file is copied", HYDRATION_LIMIT, async || {
            let session = self.system.session(&self.id).await?;
            let cache = session.and_then(|session| session.cache);
            Ok(cache.filter(|cache| cache.files_partial == 0 && cache.files_complete > 0))
        });
        found.await.map(drop)
    }

    /// Unpublishes.
    pub(super) async fn end(self) -> Result<()> {
        let output = self.system.explorer(&["unpublish", &self.id]).await?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }
}

/// A backup restored and started as anybody would without us.
#[derive(Debug)]
pub(super) struct Native {
    directory: PathBuf,
    shared_buffers_mib: u64,
    /// How to reach it.
    pub(super) server: Server,
}

impl Native {
    /// Copies or extracts a backup below `parent`; not started.
    pub(super) fn restore(
        parent: &Path,
        backup: &Path,
        bin: &Path,
        shared_buffers_mib: u64,
    ) -> Result<Self> {
        let directory = parent.join("native");
        run(Command::new("install")
            .args(["-d", "-o", OS_USER])
            .arg(&directory))?;
        let native = Self {
            shared_buffers_mib,
            server: Server {
                bin: bin.to_owned(),
                socket_directory: directory.clone(),
                port: free_port()?,
            },
            directory,
        };
        let data = native.data_directory();
        if backup.join("base.tar").exists() {
            let made = ["-d", "-m", "700", "-o", OS_USER];
            run(Command::new("install").args(made).arg(&data))?;
            for (archive, to) in [
                ("base.tar", data.clone()),
                ("pg_wal.tar", data.join("pg_wal")),
            ] {
                let archive = backup.join(archive);
                run(Command::new("tar")
                    .arg("-xf")
                    .arg(archive)
                    .arg("-C")
                    .arg(to))?;
            }
        } else {
            run(Command::new("cp").arg("-a").arg(backup).arg(&data))?;
        }
        Ok(native)
    }

    /// What another tool has restored, as `data` in a directory that goes away with this; not started.
    pub(super) fn restored(
        directory: TempDir,
        bin: &Path,
        shared_buffers_mib: u64,
    ) -> Result<Self> {
        let directory = directory.keep();
        Ok(Self {
            shared_buffers_mib,
            server: Server {
                bin: bin.to_owned(),
                socket_directory: directory.clone(),
                port: free_port()?,
            },
            directory,
        })
    }

    /// Its data directory.
    pub(super) fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts it; ends when it accepts connections.
    pub(super) fn start(&self) -> Result<()> {
        // What is restored from a repository must not archive into it.
        let mut options = format!(
            "-p {} -c listen_addresses='' -c unix_socket_directories={} -c shared_buffers={}MB -c archive_mode=off",
            self.server.port,
            self.directory.display(),
            self.shared_buffers_mib
        );
        for (name, value) in SETTINGS {
            options += &format!(" -c {name}={value}");
        }
        let mut program = as_postgres(&self.server.bin.join("pg_ctl"));
        program.args(["start", "-s", "-w", "-t", "900", "-o", &options, "-D"]);
        program.arg(self.data_directory()).arg("-l");
        run(program.arg(self.directory.join("log"))).map(drop)
    }

    /// Stops it.
    pub(super) fn stop(&self, mode: &str) -> Result<()> {
        let mut program = as_postgres(&self.server.bin.join("pg_ctl"));
        program.args(["stop", "-s", "-w", "-t", "120", "-m", mode, "-D"]);
        run(program.arg(self.data_directory())).map(drop)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if self.data_directory().join("postmaster.pid").exists() {
            // What is still there, ./bench ends and removes.
            self.stop("immediate").ok();
        }
        std::fs::remove_dir_all(&self.directory).ok();
    }
}
