//! A repository with backups of a small pgbench database `shop`, for tests that are about something else.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::postgres::{self, BackupOptions, TestPostgres};

/// Rows of `pgbench_accounts`.
pub const ACCOUNTS: &str = "200000";

/// The repository; gone when dropped.
#[derive(Debug)]
pub struct Shop {
    directory: TempDir,
}

impl Shop {
    /// Makes the backups, one after the other, by PostgreSQL 15. The table `marks` of each holds the labels of all up to it.
    pub fn open(labels: &[&str]) -> Result<Self> {
        let installation = postgres::installations()
            .into_iter()
            .find(|installation| installation.major == 15)
            .context("PostgreSQL 15 is not installed; ./test installs it")?;
        let original = TestPostgres::start_new(&installation)?;
        original.psql("postgres", "CREATE DATABASE shop")?;
        original.pgbench("shop", &["-i", "-q", "-s", "2"])?;
        original.psql("shop", "CREATE TABLE marks (mark text)")?;
        let directory = tempfile::Builder::new()
            .prefix("pginstant-repository-")
            .tempdir_in("/var/tmp")?;
        postgres::give_to_postgres(directory.path())?;
        for label in labels {
            let mark = format!("INSERT INTO marks VALUES ('{label}')");
            original.psql("shop", &mark)?;
            original.backup(&directory.path().join(label), &BackupOptions::default())?;
        }
        Ok(Self { directory })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}
