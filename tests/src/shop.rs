//! A repository with backups of a small pgbench database `shop`, for tests that are about something else.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use common::messages::SessionDetail;
use tempfile::TempDir;

use crate::postgres::{self, BackupOptions, TestPostgres};
use crate::system::TestSystem;

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

/// pgbench's transactions on a published shop, for so many seconds.
pub fn pgbench(detail: &SessionDetail, seconds: &str) -> Result<Command> {
    let published = detail.published.as_ref().context("not published")?;
    let mut command = Command::new("/usr/lib/postgresql/15/bin/pgbench");
    command
        .args(["-n", "-c", "4", "-j", "1", "-T", seconds, "-U", "postgres"])
        .arg("-h")
        .arg(&published.socket_directory)
        .args(["-p", &published.port.to_string(), "shop"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// Fails unless the sums of accounts, tellers, branches and history are one.
pub async fn balances_agree(system: &TestSystem, detail: &SessionDetail) -> Result<()> {
    let sql = "WITH sums AS (SELECT (SELECT sum(abalance) FROM pgbench_accounts) a, \
         (SELECT sum(tbalance) FROM pgbench_tellers) t, (SELECT sum(bbalance) FROM pgbench_branches) b, \
         (SELECT coalesce(sum(delta), 0) FROM pgbench_history) h) SELECT a = h AND t = h AND b = h FROM sums";
    let agree = system.sql(detail, "shop", sql).await?;
    ensure!(agree == "t", "the balances do not agree");
    Ok(())
}

/// Fails unless amcheck finds every heap and every B-tree of the shop sound, each index against its whole heap, which reads
/// every page with its checksum.
pub async fn is_sound(system: &TestSystem, detail: &SessionDetail) -> Result<()> {
    let sql = "CREATE EXTENSION IF NOT EXISTS amcheck; \
         SELECT count(bt_index_check(c.oid, true)) > 100 FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid \
         JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid; \
         SELECT count(*) FROM pg_class c CROSS JOIN LATERAL verify_heapam(c.oid) \
         WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'";
    let found = system.sql(detail, "shop", sql).await?;
    ensure!(found == "t\n0", "amcheck: {found}");
    Ok(())
}
