//! The original: a database with everything that could go wrong, and two backups of it taken under load.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tests::postgres::{BackupOptions, Installation, TestPostgres, give_to_postgres, wait_until};
use tests::tree_hash;

/// The database.
pub(crate) const DATABASE: &str = "shop";
/// Tables of the schema `many`; each has a primary key, which makes twice as many relations.
pub(crate) const SMALL_TABLE_COUNT: u32 = 5_000;
/// A page each: more than the 131,072 pages of one segment.
const LARGE_ROW_COUNT: u32 = 132_000;

/// Every row of the large table in one line. Its rows are not dumped: that would cost minutes and show no more.
pub(crate) const LARGE_TABLE_HASH: &str =
    "SELECT count(*) || ' ' || sum(hashtextextended(filler, id)) FROM large";

/// A stopped original and its backups.
#[derive(Debug)]
pub(crate) struct Original {
    postgres: TestPostgres,
    repository: TempDir,
    tablespaces: Vec<PathBuf>,
    /// Hash of the dump of everything that the load did not change, without the large table's rows.
    pub(crate) dump: String,
    /// What [`LARGE_TABLE_HASH`] says.
    pub(crate) large_table_hash: String,
}

impl Original {
    /// Makes the original, backs it up twice under load, and stops it.
    pub(crate) fn make(installation: &Installation) -> Result<Self> {
        let mut postgres = TestPostgres::start_new(installation)?;
        // pg_dump locks every table in one transaction.
        for setting in [
            "max_locks_per_transaction = 256",
            "autovacuum_naptime = '5s'",
        ] {
            postgres.psql("postgres", &format!("ALTER SYSTEM SET {setting}"))?;
        }
        postgres.stop("fast")?;
        postgres.start()?;
        let tablespaces = vec![
            postgres.create_tablespace("first")?,
            postgres.create_tablespace("second")?,
        ];
        postgres.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        fill(&postgres)?;
        let dump = dump_hash(postgres.client("pg_dump"))?;
        let large_table_hash = postgres.psql(DATABASE, LARGE_TABLE_HASH)?;
        let repository = tempfile::Builder::new()
            .prefix("pginstant-repository-")
            .tempdir_in("/var/tmp")?;
        give_to_postgres(repository.path())?;
        back_up(&postgres, repository.path())?;
        postgres.stop("fast")?;
        Ok(Self {
            postgres,
            repository,
            tablespaces,
            dump,
            large_table_hash,
        })
    }

    /// The repository with the backups `directory` and `tar`.
    pub(crate) fn repository(&self) -> &Path {
        self.repository.path()
    }

    /// Hashes of the original's data directory and tablespaces.
    pub(crate) fn hash(&self) -> Result<Vec<String>> {
        let data = self.postgres.data_directory();
        [&data]
            .into_iter()
            .chain(&self.tablespaces)
            .map(|path| tree_hash::of(path))
            .collect()
    }

    /// Hash of both backups.
    pub(crate) fn backups_hash(&self) -> Result<String> {
        tree_hash::of(self.repository.path())
    }
}

fn fill(postgres: &TestPostgres) -> Result<()> {
    let places = ["--tablespace=first", "--index-tablespace=second"];
    postgres.pgbench(DATABASE, &["-i", "-q", "-s", "4", places[0], places[1]])?;
    let small_tables = format!(
        "DO $$ BEGIN FOR number IN 1..{SMALL_TABLE_COUNT} LOOP \
           EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY, value int) %s', number, \
             CASE WHEN number % 7 = 0 THEN 'TABLESPACE second' ELSE '' END); \
           EXECUTE format('INSERT INTO many.t%s VALUES (%s, 1), (-%s, 2)', number, number, number); \
           IF number % 250 = 0 THEN COMMIT; END IF; \
         END LOOP; END $$"
    );
    let large_rows = format!(
        "INSERT INTO large SELECT number, repeat(md5(number::text), 250) FROM generate_series(1, {LARGE_ROW_COUNT}) number"
    );
    for statement in [
        "CREATE EXTENSION amcheck",
        "CREATE UNLOGGED TABLE counters (id int PRIMARY KEY, note text)",
        "CREATE UNLOGGED TABLE visits (id int PRIMARY KEY USING INDEX TABLESPACE first, note text) TABLESPACE second",
        "CREATE INDEX visits_note ON visits (note)",
        "INSERT INTO counters SELECT number, 'note ' || number FROM generate_series(1, 20000) number",
        "INSERT INTO visits SELECT number, 'note ' || number FROM generate_series(1, 20000) number",
        "CREATE TABLE large (id int, filler text)",
        "ALTER TABLE large ALTER COLUMN filler SET STORAGE PLAIN",
        &large_rows,
        "CREATE UNIQUE INDEX large_id ON large (id)",
        "CREATE SCHEMA many",
        &small_tables,
        "VACUUM ANALYZE large",
        "CHECKPOINT",
    ] {
        postgres.psql(DATABASE, statement)?;
    }
    let bytes: u64 = postgres
        .psql(DATABASE, "SELECT pg_relation_size('large')")?
        .parse()?;
    ensure!(bytes > 1 << 30, "the large table has {bytes} bytes only");
    Ok(())
}

/// Takes both backups while pgbench changes balances, and new files appear and go.
fn back_up(postgres: &TestPostgres, repository: &Path) -> Result<()> {
    for (name, tar) in [("directory", false), ("tar", true)] {
        let load =
            postgres.pgbench_in_background(DATABASE, &["-c", "2", "-j", "1", "-T", "600", "-n"])?;
        let rows = || postgres.psql(DATABASE, "SELECT count(*) FROM pgbench_history");
        let before = rows()?;
        wait_until("the load has begun", || {
            rows().is_ok_and(|now| now != before)
        })?;
        let options = BackupOptions {
            tar,
            ..BackupOptions::default()
        };
        postgres.backup(&repository.join(name), &options)?;
        drop(load);
    }
    Ok(())
}

/// The hash of a dump of everything that the load does not change. `program` is pg_dump, told where to connect.
pub(crate) fn dump_hash(mut program: Command) -> Result<String> {
    let mut dump = program
        .args([
            "--exclude-table-data=pgbench_*",
            "--exclude-table-data=large",
            "--no-unlogged-table-data",
            "-d",
            DATABASE,
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    // Every dump names a random token in two lines.
    let mut filter = Command::new("grep")
        .args(["-avE", r"^\\(un)?restrict "])
        .stdin(dump.stdout.take().context("pg_dump's output")?)
        .stdout(Stdio::piped())
        .spawn()?;
    let hash = Command::new("sha256sum")
        .stdin(filter.stdout.take().context("grep's output")?)
        .output()?;
    ensure!(dump.wait()?.success(), "pg_dump failed");
    ensure!(filter.wait()?.success(), "the dump is empty");
    Ok(String::from_utf8(hash.stdout)?)
}
