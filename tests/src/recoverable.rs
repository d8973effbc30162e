//! What tests of instant recoveries share: an original with a backup, a system that recovers it, and what must be true afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::SessionDetail;

use tempfile::TempDir;

use crate::postgres::{
    BackupOptions, Installation, TestPostgres, give_to_postgres, installations, run, wait_until,
};
use crate::system::{FAST, SystemOptions, TestSystem};
use crate::{ledger, wait};

/// The database that clients work in.
pub const DATABASE: &str = "shop";

/// What a test wants otherwise than usual.
#[derive(Debug, Clone, Default)]
pub struct WorldOptions {
    /// Whether recovery-svc reaches the agent through a gate.
    pub gate: bool,
    /// More lines of the target's section.
    pub target_lines: String,
    /// Where the original's directory is made.
    pub original_in: Option<PathBuf>,
    /// A tablespace of this name holds the clients' ledger.
    pub tablespace: Option<&'static str>,
}

/// An original that has a backup, and a system that can recover it.
#[derive(Debug)]
pub struct World {
    /// The system.
    pub system: TestSystem,
    /// The original, and, after a recovery, the instance in its place.
    pub original: TestPostgres,
    /// Its programs.
    pub installation: Installation,
    // Where its WAL is archived to.
    archive: TempDir,
    repository: TempDir,
}

impl World {
    /// Makes both, with PostgreSQL of a major version.
    pub async fn new(major: u32) -> Result<Self> {
        Self::with(major, WorldOptions::default()).await
    }

    /// The same, otherwise than usual.
    pub async fn with(major: u32, options: WorldOptions) -> Result<Self> {
        let installation = installations()
            .into_iter()
            .find(|installation| installation.major == major)
            .with_context(|| format!("PostgreSQL {major} is not installed; ./test installs it"))?;
        let archive = private("pginstant-archive-")?;
        let repository = private("pginstant-repository-")?;
        let original = original(&installation, archive.path(), &options)?;
        original.backup(&repository.path().join("monday"), &BackupOptions::default())?;
        let system = SystemOptions {
            target_lines: format!(
                "program_directories = [\"{}\"]\nhba_lines = [\"host all all 127.0.0.1/32 trust\"]\n{}",
                installation.bin.display(),
                options.target_lines
            ),
            recovery_lines: format!(
                "{FAST}switchover_wait_s = 5\n[retry.recover]\nautomatic_max = 10\n"
            ),
            gate: options.gate,
            ..SystemOptions::default()
        };
        Ok(Self {
            system: TestSystem::start_with(repository.path(), system).await?,
            original,
            installation,
            archive,
            repository,
        })
    }

    /// Another original on the same server, with its archive and a backup in the same repository.
    pub fn another(&self, label: &str) -> Result<(TestPostgres, TempDir)> {
        let archive = private("pginstant-archive-")?;
        let another = original(&self.installation, archive.path(), &WorldOptions::default())?;
        another.backup(&self.repository().join(label), &BackupOptions::default())?;
        Ok((another, archive))
    }

    /// The repository `main`.
    pub fn repository(&self) -> &Path {
        self.repository.path()
    }

    /// Begins a recovery to where the original is.
    pub async fn recover(&self, switchover: &str) -> Result<String> {
        self.recover_in_place(&self.original, "monday", switchover)
            .await
    }

    /// Begins a recovery of a backup to where its original is.
    pub async fn recover_in_place(
        &self,
        original: &TestPostgres,
        backup: &str,
        switchover: &str,
    ) -> Result<String> {
        let data_directory = original.data_directory();
        let port = original.port().to_string();
        self.recover_to(&[
            "--backup",
            backup,
            "--data-directory",
            data_directory.to_str().context("a path in UTF-8")?,
            "--port",
            &port,
            "--replace",
            "--switchover",
            switchover,
        ])
        .await
    }

    /// Begins a recovery that these arguments describe.
    pub async fn recover_to(&self, arguments: &[&str]) -> Result<String> {
        let begin = ["recover", "--repository", "main", "--target", "here"];
        let all: Vec<&str> = begin
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(["--no-wait"])
            .collect();
        let lines = self.system.explorer_json(&all).await?;
        lines
            .iter()
            .find_map(|line| line.get("session_id").and_then(|id| id.as_str()))
            .map(str::to_owned)
            .with_context(|| format!("no session id in {lines:?}"))
    }

    /// Waits until users can work in the published instance.
    pub async fn is_online(&self, id: &str) -> Result<SessionDetail> {
        let what = format!("session {id} is online");
        wait::find(&what, Duration::from_secs(60), async || {
            let detail = self.system.session(id).await?;
            Ok(detail.filter(|detail| detail.published.is_some()))
        })
        .await
    }

    /// Where a recovery keeps what was in the original's place.
    pub fn moved_aside(&self, id: &str) -> PathBuf {
        let data = self.original.data_directory();
        PathBuf::from(format!("{}.before-{id}", data.display()))
    }

    /// The instance in the original's place has its ways; see [`is_the_original_again`].
    pub fn is_the_original_again(&self, timeline: u32) -> Result<()> {
        is_the_original_again(&self.original, self.archive.path(), timeline)
    }
}

/// A directory for the OS user.
pub fn private(prefix: &str) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in("/var/tmp")?;
    give_to_postgres(directory.path())?;
    Ok(directory)
}

/// An instance that archives, with the clients' tables.
fn original(
    installation: &Installation,
    archive: &Path,
    options: &WorldOptions,
) -> Result<TestPostgres> {
    let mut original = match &options.original_in {
        Some(parent) => TestPostgres::start_new_in(installation, parent)?,
        None => TestPostgres::start_new(installation)?,
    };
    // A server that dies while it archives does so again: the same file is fine, another of that name never.
    let command = format!(
        "cmp -s %p {0}/%f || (test ! -f {0}/%f && cp %p {0}/%f.new && mv {0}/%f.new {0}/%f)",
        archive.display()
    );
    for setting in [
        "archive_mode = on",
        &format!("archive_command = '{command}'"),
        "work_mem = '5MB'",
        "fsync = on",
    ] {
        original.psql("postgres", &format!("ALTER SYSTEM SET {setting}"))?;
    }
    original.stop("fast")?;
    original.start()?;
    original.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
    original.pgbench(DATABASE, &["-i", "-q", "-s", "2"])?;
    original.psql(DATABASE, "CREATE EXTENSION amcheck")?;
    original.psql(DATABASE, ledger::TABLES)?;
    if let Some(name) = options.tablespace {
        original.create_tablespace(name)?;
        original.psql(
            DATABASE,
            &format!("ALTER TABLE ledger SET TABLESPACE {name}"),
        )?;
    }
    Ok(original)
}

/// The instance in its final place has the original's ways, a timeline of its own that it archives, and sound pages and indexes.
/// Stops it.
pub fn is_the_original_again(original: &TestPostgres, archive: &Path, timeline: u32) -> Result<()> {
    let is = |sql: &str, expected: &str| -> Result<()> {
        let found = original.psql(DATABASE, sql)?;
        ensure!(found == expected, "{sql}: {found} instead of {expected}");
        Ok(())
    };
    is("SHOW archive_mode", "on")?;
    is("SHOW work_mem", "5MB")?;
    is("SHOW restore_command", "")?;
    is("SHOW primary_conninfo", "")?;
    is("SHOW default_transaction_read_only", "off")?;
    is("SELECT pg_is_in_recovery()", "f")?;
    is("SELECT count(*) FROM pg_replication_slots", "0")?;
    ensure!(timeline >= 3, "timeline {timeline} is the published one's");
    // What it writes to; pg_control tells that after the next checkpoint only.
    is(
        "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)",
        &format!("{timeline:08X}"),
    )?;
    archives(original, archive, timeline)?;
    run(original
        .client("pg_amcheck")
        .args(["--heapallindexed", "-d", DATABASE]))?;
    original.stop("fast")?;
    run(original
        .program("pg_checksums")
        .args(["--check", "-D"])
        .arg(original.data_directory()))?;
    Ok(())
}

/// The archive takes the timeline's history and a segment of it: nothing else has their names.
fn archives(original: &TestPostgres, archive: &Path, timeline: u32) -> Result<()> {
    let name = format!("{timeline:08X}.history");
    let mine = original.data_directory().join("pg_wal").join(&name);
    let segment = original.psql(
        DATABASE,
        "SELECT pg_walfile_name(pg_current_wal_insert_lsn())",
    )?;
    original.psql(DATABASE, "SELECT pg_switch_wal()")?;
    wait_until(&format!("{name} and {segment} are archived"), || {
        archive.join(&name).exists() && archive.join(&segment).exists()
    })?;
    ensure!(
        std::fs::read(archive.join(&name))? == std::fs::read(mine)?,
        "the archive has another {name}"
    );
    Ok(())
}
