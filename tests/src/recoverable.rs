//! What tests of instant recoveries share: an original with a backup, a system that recovers it, and what must be true afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::SessionDetail;

use crate::postgres::{
    BackupOptions, Installation, TestPostgres, as_postgres, give_to_postgres, installations, run,
};
use crate::system::{FAST, SystemOptions, TestSystem};
use crate::{ledger, wait};

/// The database that clients work in.
pub const DATABASE: &str = "shop";

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
    archive: tempfile::TempDir,
    repository: tempfile::TempDir,
}

impl World {
    /// Makes both, with PostgreSQL of a major version.
    pub async fn new(major: u32) -> Result<Self> {
        let installation = installations()
            .into_iter()
            .find(|installation| installation.major == major)
            .with_context(|| format!("PostgreSQL {major} is not installed; ./test installs it"))?;
        let mut original = TestPostgres::start_new(&installation)?;
        let private = |prefix: &str| -> Result<tempfile::TempDir> {
            let directory = tempfile::Builder::new()
                .prefix(prefix)
                .tempdir_in("/var/tmp")?;
            give_to_postgres(directory.path())?;
            Ok(directory)
        };
        let archive = private("pginstant-archive-")?;
        let command = format!("test ! -f {0}/%f && cp %p {0}/%f", archive.path().display());
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
        let repository = private("pginstant-repository-")?;
        original.backup(&repository.path().join("monday"), &BackupOptions::default())?;
        let options = SystemOptions {
            target_lines: format!(
                "program_directories = [\"{}\"]\nhba_lines = [\"host all all 127.0.0.1/32 trust\"]\n",
                installation.bin.display()
            ),
            recovery_lines: format!(
                "{FAST}switchover_wait_s = 5\n[retry.recover]\nautomatic_max = 10\nevery_s = 1\n"
            ),
            ..SystemOptions::default()
        };
        Ok(Self {
            system: TestSystem::start_with(repository.path(), options).await?,
            original,
            installation,
            archive,
            repository,
        })
    }

    /// The repository `main`.
    pub fn repository(&self) -> &Path {
        self.repository.path()
    }

    /// Begins a recovery to where the original is.
    pub async fn recover(&self, switchover: &str) -> Result<String> {
        let data_directory = self.original.data_directory();
        let lines = self
            .system
            .explorer_json(&[
                "recover",
                "--repository",
                "main",
                "--target",
                "here",
                "--data-directory",
                data_directory.to_str().context("a path in UTF-8")?,
                "--port",
                &self.original.port().to_string(),
                "--replace",
                "--switchover",
                switchover,
                "--no-wait",
            ])
            .await?;
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

    /// The instance in its final place has the original's ways, a timeline of its own, and sound pages and indexes.
    pub fn is_the_original_again(&self, timeline: u32) -> Result<()> {
        let is = |sql: &str, expected: &str| -> Result<()> {
            let found = self.original.psql(DATABASE, sql)?;
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
        is(
            "SELECT timeline_id FROM pg_control_checkpoint()",
            &timeline.to_string(),
        )?;
        ensure!(timeline >= 3, "timeline {timeline} is the published one's");
        let history = self.archive.path().join(format!("{timeline:08X}.history"));
        crate::postgres::wait_until("the new timeline's history is archived", || {
            history.exists()
        })?;
        run(self
            .original
            .client("pg_amcheck")
            .args(["--heapallindexed", "-d", DATABASE]))?;
        self.original.stop("fast")?;
        run(as_postgres(&self.installation.bin.join("pg_checksums"))
            .args(["--check", "-D"])
            .arg(self.original.data_directory()))?;
        Ok(())
    }
}
