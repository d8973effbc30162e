//! Chains of `pg_basebackup --incremental` (PostgreSQL 17 and later) against the real `pg_combinebackup`: whatever it writes, we
//! read, without it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::{
    Backup, BackupChoice, BackupKind, OpenOptions, RepositoryErrorKind, Standing, Verification,
    open_repository,
};
use tempfile::TempDir;
use tests::postgres::{
    BackupOptions, Installation, TestPostgres, give_to_postgres, installations, run,
};
use tests::same_files;

fn postgresql_18() -> Installation {
    let found = installations().into_iter().find(|found| found.major == 18);
    found.expect("PostgreSQL 18 is not installed; ./test installs it")
}

fn random() -> StdRng {
    let seed = std::env::var("PGINSTANT_TEST_SEED").ok();
    let seed = seed.map_or_else(|| rand::rng().random(), |text| text.parse().unwrap());
    println!("again with: PGINSTANT_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A cluster that summarizes its WAL, and a repository of its backups.
struct Stage {
    cluster: TestPostgres,
    repository: TempDir,
}

impl Stage {
    fn new() -> Self {
        let mut cluster = TestPostgres::start_new(&postgresql_18()).unwrap();
        cluster
            .psql("postgres", "ALTER SYSTEM SET summarize_wal = on")
            .unwrap();
        cluster.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        cluster.create_tablespace("one").unwrap();
        let repository = tempfile::Builder::new()
            .prefix("pginstant-incremental-")
            .tempdir_in("/var/tmp")
            .unwrap();
        give_to_postgres(repository.path()).unwrap();
        Self {
            cluster,
            repository,
        }
    }

    fn path(&self, label: &str) -> PathBuf {
        self.repository.path().join(label)
    }

    fn sql(&self, statements: &str) {
        for statement in statements.split("; ") {
            self.cluster.psql("postgres", statement).unwrap();
        }
    }

    fn backup(&self, label: &str, parent: Option<&str>, tar: bool) {
        let manifest = |parent| self.path(parent).join("backup_manifest");
        let parent = parent.map(|parent| format!("--incremental={}", manifest(parent).display()));
        let options = BackupOptions {
            tar,
            arguments: parent.into_iter().collect(),
        };
        self.cluster.backup(&self.path(label), &options).unwrap();
    }

    /// What `pg_combinebackup` makes of plain backups, oldest first, into a directory that goes away.
    fn combine(&self, labels: &[&str]) -> TempDir {
        let to = tempfile::Builder::new()
            .prefix("combined-")
            .tempdir_in("/var/tmp")
            .unwrap();
        give_to_postgres(to.path()).unwrap();
        let newest = labels.last().unwrap();
        let tablespace = format!("{}.tablespace_one", self.path(newest).display());
        let mapping = format!("{tablespace}={}", to.path().join("one").display());
        let mut program = self.cluster.program("pg_combinebackup");
        program
            .arg("-T")
            .arg(mapping)
            .arg("-o")
            .arg(to.path().join("data"));
        run(program.args(labels.iter().map(|label| self.path(label)))).unwrap();
        to
    }

    fn open(&self, label: &str) -> Arc<dyn Backup> {
        let repository = open_repository(self.repository.path(), OpenOptions::default()).unwrap();
        repository.open(BackupChoice::Label(label)).unwrap()
    }
}

/// Every file is there and as `pg_combinebackup` has it; none is there that it does not have.
fn compare(backup: &dyn Backup, combined: &Path, random: &mut StdRng) {
    let data = combined.join("data");
    let found = same_files::compare(backup, random, |path| Some(data.join(path))).unwrap();
    let mut wanted = same_files::files_of(&data).unwrap();
    assert!(wanted.remove("backup_manifest"));
    assert_eq!(found, wanted);
    assert!(backup.corrupt_files().is_empty());
}

fn check_restore_point(backup: &dyn Backup, references: &[&str]) {
    let point = backup.restore_point();
    assert_eq!(point.kind, BackupKind::Incremental);
    assert_eq!(point.references, references);
    assert_eq!(
        (point.postgresql_major, point.verification),
        (18, Verification::Checksums)
    );
    assert_eq!(point.tablespaces.len(), 1);
    assert_eq!(
        (point.size_bytes, point.file_count),
        (backup.tree().size_bytes(), backup.tree().file_count())
    );
    let report = backup
        .verify_all(&mut |_| ControlFlow::Continue(()))
        .unwrap();
    // What has no checksum is WAL, the label that is changed, and what settings of recovery change.
    assert!(
        report.corrupt.is_empty() && report.verified_count > 900,
        "{report:?}"
    );
    assert!(report.unverified_count < 25, "{report:?}");
}

#[test]
fn a_chain_of_incremental_backups_reads_as_pg_combinebackup_writes_it() {
    let mut random = random();
    let stage = Stage::new();
    let load = |label: &str, parent: Option<&str>| {
        let _load = stage
            .cluster
            .pgbench_in_background("postgres", &["-c", "2", "-T", "60", "-R", "100"])
            .unwrap();
        stage.backup(label, parent, false);
    };
    stage
        .cluster
        .pgbench(
            "postgres",
            &["-i", "-q", "-s", "3", "--index-tablespace=one"],
        )
        .unwrap();
    stage.sql(
        "CREATE TABLE shrinks TABLESPACE one AS SELECT g, repeat('x', 200) AS text FROM generate_series(1, 20000) g; \
         CREATE TABLE grows AS SELECT g FROM generate_series(1, 1000) g; \
         CREATE TABLE goes AS SELECT g FROM generate_series(1, 9000) g; \
         CREATE TABLE emptied AS SELECT g FROM generate_series(1, 9000) g; \
         CREATE UNLOGGED TABLE scratch AS SELECT g FROM generate_series(1, 9000) g; \
         CREATE DATABASE old; CREATE DATABASE other",
    );
    load("full", None);
    stage.cluster.pgbench("postgres", &["-t", "300"]).unwrap();
    stage.sql(
        "DELETE FROM shrinks WHERE g > 3000; VACUUM (TRUNCATE) shrinks; DROP TABLE goes; DROP DATABASE old; \
         INSERT INTO grows SELECT g FROM generate_series(1, 50000) g; TRUNCATE emptied; \
         CREATE TABLE new AS SELECT g FROM generate_series(1, 9000) g; CHECKPOINT",
    );
    load("one", Some("full"));
    stage.sql(
        "INSERT INTO shrinks SELECT g, 'again' FROM generate_series(1, 9000) g; VACUUM pgbench_accounts; \
         DELETE FROM grows WHERE g > 2000; VACUUM (TRUNCATE) grows; VACUUM FULL pgbench_tellers; \
         UPDATE new SET g = g + 1 WHERE g % 500 = 0; CREATE DATABASE newer; CHECKPOINT",
    );
    load("two", Some("one"));
    stage.sql("INSERT INTO emptied SELECT 1; REINDEX TABLE pgbench_accounts; CREATE INDEX ON new (g); CHECKPOINT");
    load("three", Some("two"));

    for (labels, references) in [
        (&["full", "one"][..], &["full"][..]),
        (&["full", "one", "two"], &["full", "one"]),
        (&["full", "one", "two", "three"], &["full", "one", "two"]),
    ] {
        let backup = stage.open(labels.last().unwrap());
        let combined = stage.combine(labels);
        compare(&*backup, combined.path(), &mut random);
        check_restore_point(&*backup, references);
    }
    let listed = open_repository(stage.repository.path(), OpenOptions::default()).unwrap();
    let newest = listed.open(BackupChoice::Newest).unwrap();
    assert_eq!(newest.restore_point().label, "three");
    let listed = listed.restore_points().unwrap();
    let labels: Vec<_> = listed
        .restore_points
        .iter()
        .map(|point| point.label.as_str())
        .collect();
    assert_eq!(labels, ["three", "two", "one", "full"]);
    assert!(listed.problems.is_empty());
    // Listed together, as each is when it is opened by itself.
    for point in &listed.restore_points {
        assert_eq!(*point, *stage.open(&point.label).restore_point());
    }

    damage_is_found(&stage);
    what_is_missing_is_said(&stage);
}

/// Flips bits in stored files, one at a time: never is wrong data read where a checksum could tell.
fn damage_is_found(stage: &Stage) {
    let path = stage
        .cluster
        .psql(
            "postgres",
            "SELECT pg_relation_filepath('pgbench_accounts')",
        )
        .unwrap();
    let increment = path.replacen("/5/", "/5/INCREMENTAL.", 1);
    // The head, a block number, a block; and a block of the full file.
    for (label, stored, at) in [
        ("three", &increment, 9),
        ("two", &increment, 13),
        ("one", &increment, 8192 + 100),
        ("full", &path, 8192 * 3 + 17),
    ] {
        let stored = stage.path(label).join(stored);
        flip(&stored, at);
        let repository = open_repository(stage.repository.path(), OpenOptions::default()).unwrap();
        match repository.open(BackupChoice::Label("three")) {
            Err(error) => assert_eq!(error.kind(), RepositoryErrorKind::Corrupt, "{error}"),
            Ok(backup) => {
                let (file, _) = backup.tree().find_file(&path).unwrap();
                let read = backup.read_at(file, 0, &mut [0; 8192]);
                // Larger ones only when they have been read whole.
                let is_checked_first = stored.metadata().unwrap().len() <= 16 << 20;
                if label != "full" && is_checked_first {
                    let error = read.unwrap_err();
                    assert_eq!((error.file(), error.is_permanent()), (path.as_str(), true));
                    assert!(
                        error.to_string().contains(&format!("backup {label}")),
                        "{error}"
                    );
                }
                let report = backup
                    .verify_all(&mut |_| ControlFlow::Continue(()))
                    .unwrap();
                assert_eq!(report.corrupt, [file], "{label}");
                assert_eq!(backup.standing(file), Standing::Corrupt);
                assert_eq!(backup.corrupt_files()[0].file, file);
            }
        }
        flip(&stored, at);
    }
}

fn what_is_missing_is_said(stage: &Stage) {
    let why_not = || {
        let repository = open_repository(stage.repository.path(), OpenOptions::default()).unwrap();
        let error = repository
            .open(BackupChoice::Label("three"))
            .map(drop)
            .unwrap_err();
        assert!(error.is_permanent(), "{error}");
        error.to_string()
    };
    let hidden = stage.path(".one");
    std::fs::rename(stage.path("one"), &hidden).unwrap();
    let text = why_not();
    assert!(
        text.contains("backup two says") && text.contains("no backup beside it did"),
        "{text}"
    );
    std::fs::rename(&hidden, stage.path("one")).unwrap();
    // A backup of another cluster that begins where the parent does.
    let control = stage.path("one/global/pg_control");
    flip(&control, 3);
    let text = why_not();
    assert!(text.contains("is of cluster"), "{text}");
    flip(&control, 3);
    // Page checksums that were switched on in between.
    let control = stage.path("full/global/pg_control");
    flip(&control, 252);
    let text = why_not();
    assert!(text.contains("page checksums"), "{text}");
    flip(&control, 252);
    stage.open("three");
}

#[test]
fn increments_in_archives_are_read_as_those_in_directories() {
    let mut random = random();
    let stage = Stage::new();
    stage
        .cluster
        .pgbench("postgres", &["-i", "-q", "-s", "1", "--tablespace=one"])
        .unwrap();
    stage.backup("full", None, false);
    stage.cluster.pgbench("postgres", &["-t", "200"]).unwrap();
    // Nothing is written between the two that are compared.
    stage.sql("CHECKPOINT");
    stage.backup("archived", Some("full"), true);
    stage.backup("plain", Some("archived"), false);
    let backup = stage.open("plain");
    check_restore_point(&*backup, &["full", "archived"]);
    let unpacked = stage.path("unpacked");
    unpack(&stage.path("archived"), &unpacked);
    let combined = stage.combine(&["full", "unpacked", "plain"]);
    compare(&*backup, combined.path(), &mut random);
}

/// Unpacks archives into a plain backup. The tablespace's files are not looked for by its link, but in the backup.
fn unpack(archives: &Path, to: &Path) {
    let oid = archives.read_dir().unwrap().flatten().find_map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let oid = name.strip_suffix(".tar")?.parse::<u32>().ok()?;
        Some(oid.to_string())
    });
    let oid = oid.unwrap();
    for (archive, below) in [
        ("base.tar", String::new()),
        ("pg_wal.tar", "pg_wal".to_owned()),
        (&format!("{oid}.tar"), format!("pg_tblspc/{oid}")),
    ] {
        let to = to.join(below);
        if to.is_symlink() {
            std::fs::remove_file(&to).unwrap();
        }
        std::fs::create_dir_all(&to).unwrap();
        run(Command::new("tar")
            .arg("-xf")
            .arg(archives.join(archive))
            .arg("-C")
            .arg(to))
        .unwrap();
    }
    std::fs::copy(archives.join("backup_manifest"), to.join("backup_manifest")).unwrap();
    run(Command::new("chown").args(["-R", "postgres"]).arg(to)).unwrap();
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}
