//! A repository with backups of a small cluster, for tests that are about what surrounds the backup.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::postgres::{BackupOptions, TestPostgres, give_to_postgres, installations};

/// A directory of backups that goes away with the test; each backup has table `goods` with 3 rows in database `postgres`.
#[derive(Debug)]
pub struct SmallRepository {
    directory: TempDir,
    original: TestPostgres,
}

impl SmallRepository {
    /// Makes the cluster (PostgreSQL 15) and backup `monday`.
    pub fn new() -> anyhow::Result<Self> {
        let installation = installations()
            .into_iter()
            .find(|installation| installation.major == 15)
            .context("PostgreSQL 15 is not installed; ./test installs it")?;
        let original = TestPostgres::start_new(&installation)?;
        original.psql(
            "postgres",
            "CREATE TABLE goods AS SELECT g FROM generate_series(1, 3) g",
        )?;
        let directory = tempfile::Builder::new()
            .prefix("pginstant-repository-")
            .tempdir_in("/var/tmp")?;
        give_to_postgres(directory.path())?;
        let repository = Self {
            directory,
            original,
        };
        repository.add("monday", &BackupOptions::default())?;
        Ok(repository)
    }

    /// Takes another backup.
    pub fn add(&self, label: &str, options: &BackupOptions) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(label);
        self.original.backup(&path, options)?;
        Ok(path)
    }

    /// Copies backup `monday` under another label, to be damaged.
    pub fn copy(&self, label: &str) -> anyhow::Result<PathBuf> {
        let to = self.directory.path().join(label);
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(self.directory.path().join("monday"))
            .arg(&to)
            .status()?;
        anyhow::ensure!(status.success(), "copy the backup to {}", to.display());
        Ok(to)
    }

    /// The original cluster.
    pub fn original(&self) -> &TestPostgres {
        &self.original
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}
