//! The checks of a published instance.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::messages::{Published, SessionDetail};
use tests::postgres::{Installation, OS_USER, as_postgres, run};
use tests::system::TestSystem;

use super::original::{DATABASE, LARGE_TABLE_HASH, Original, SMALL_TABLE_COUNT, dump_hash};

/// A published instance.
#[derive(Debug)]
pub(crate) struct Instance<'a> {
    system: &'a TestSystem,
    bin: PathBuf,
    detail: &'a SessionDetail,
    published: &'a Published,
}

impl<'a> Instance<'a> {
    /// The instance of a session.
    pub(crate) fn new(
        system: &'a TestSystem,
        installation: &Installation,
        detail: &'a SessionDetail,
    ) -> Result<Self> {
        Ok(Self {
            system,
            bin: installation.bin.clone(),
            detail,
            published: detail.published.as_ref().context("where it is published")?,
        })
    }

    async fn sql(&self, sql: &str) -> Result<String> {
        self.system.sql(self.detail, DATABASE, sql).await
    }

    async fn expect(&self, sql: &str, expected: &str) -> Result<()> {
        let found = self.sql(sql).await?;
        ensure!(found == expected, "{sql}: {found} instead of {expected}");
        Ok(())
    }

    fn client(&self, name: &str) -> Command {
        let mut command = as_postgres(&self.bin.join(name));
        command
            .arg("-h")
            .arg(&self.published.socket_directory)
            .args(["-p", &self.published.port.to_string(), "-U", OS_USER]);
        command
    }

    /// Checksums are on, and the relations are those of the original.
    pub(crate) async fn checks_pages_and_has_every_relation(&self) -> Result<()> {
        self.expect("SHOW data_checksums", "on").await?;
        self.expect(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'many'::regnamespace",
            &(2 * SMALL_TABLE_COUNT).to_string(),
        )
        .await?;
        self.expect("SELECT pg_relation_size('large') > 1024 * 1024 * 1024", "t")
            .await?;
        self.expect(
            "SELECT count(*) FROM pg_tablespace WHERE spcname IN ('first', 'second')",
            "2",
        )
        .await
    }

    /// Reads every row of the table of more than 1 GiB twice, from the backup first, then from what was kept, and says how fast.
    pub(crate) async fn large_table_agrees(&self, original: &Original) -> Result<()> {
        for what in ["first", "second"] {
            let began = Instant::now();
            let sql = format!("SET max_parallel_workers_per_gather = 0; {LARGE_TABLE_HASH}");
            self.expect(&sql, &original.large_table_hash).await?;
            let mib_per_s = 1032.0 / began.elapsed().as_secs_f64();
            println!("  {what} sequential scan: {mib_per_s:.0} MiB/s");
        }
        Ok(())
    }

    /// The hash of a dump, made as the original's was.
    pub(crate) fn dump(&self) -> Result<String> {
        dump_hash(self.client("pg_dump"))
    }

    /// Unlogged tables come back empty, and their indexes take rows.
    pub(crate) async fn unlogged_tables_are_empty_and_usable(&self) -> Result<()> {
        for table in ["counters", "visits"] {
            self.expect(&format!("SELECT count(*) FROM {table}"), "0")
                .await?;
            self.sql(&format!(
                "INSERT INTO {table} SELECT number, 'new ' || number FROM generate_series(1, 3000) number"
            ))
            .await?;
            self.expect(
                &format!("SET enable_seqscan = off; SELECT note FROM {table} WHERE id = 2999"),
                "new 2999",
            )
            .await?;
        }
        Ok(())
    }

    /// pgbench's invariant: whatever moment the backup froze, every transaction is there whole or not at all.
    pub(crate) async fn balances_agree(&self) -> Result<()> {
        self.expect(
            "WITH sums AS (SELECT (SELECT sum(abalance) FROM pgbench_accounts) a, (SELECT sum(tbalance) FROM pgbench_tellers) t, \
             (SELECT sum(bbalance) FROM pgbench_branches) b, (SELECT sum(delta) FROM pgbench_history) h) \
             SELECT a = h AND t = h AND b = h AND (SELECT count(*) FROM pgbench_history) > 0 FROM sums",
            "t",
        )
        .await
    }

    /// amcheck over every heap and every B-tree, each index against its whole heap.
    pub(crate) fn check_heaps_and_b_trees(&self) -> Result<()> {
        let mut program = self.client("pg_amcheck");
        run(program.args(["--heapallindexed", "-j", "2", "-d", DATABASE])).map(drop)
    }

    /// Load that changes every kind of file: rows, new and dropped databases, vacuumed and truncated tables.
    pub(crate) async fn load_heavily(&self) -> Result<()> {
        let arguments = ["-n", "-c", "4", "-j", "2", "-T", "12", DATABASE];
        let mut pgbench = self.client("pgbench");
        let load = std::thread::spawn(move || run(pgbench.args(arguments)));
        while !load.is_finished() {
            for statement in [
                "CREATE DATABASE passing TEMPLATE template1",
                "VACUUM pgbench_accounts",
                "VACUUM FULL pgbench_tellers",
                "UPDATE large SET filler = md5(filler) WHERE id % 100 = 7",
                "CHECKPOINT",
                "DROP DATABASE passing",
            ] {
                self.sql(statement).await?;
            }
        }
        let output = load.join().ok().context("join pgbench's thread")??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.starts_with("tps"))
            .context("pgbench's tps")?;
        println!("  pgbench: {line}");
        Ok(())
    }

    /// Stops it, behind the session's back.
    pub(crate) fn stop(&self) -> Result<()> {
        let mut program = as_postgres(&self.bin.join("pg_ctl"));
        run(program
            .args(["stop", "-w", "-m", "fast", "-D"])
            .arg(&self.published.data_directory))
        .map(drop)
    }

    /// Every page that the mount shows has the checksum that it says; the instance must be stopped.
    pub(crate) fn check_page_checksums(&self) -> Result<()> {
        let mut program = as_postgres(&self.bin.join("pg_checksums"));
        let output = run(program
            .args(["--check", "-D"])
            .arg(&self.published.data_directory))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("Bad checksums:  0"), "{text}");
        let blocks: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Blocks scanned:"))
            .and_then(|count| count.trim().parse().ok())
            .context("the number of blocks")?;
        ensure!(blocks > 131_072, "{blocks} blocks only");
        Ok(())
    }
}
