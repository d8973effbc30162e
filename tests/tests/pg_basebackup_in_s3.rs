//! Backups of `pg_basebackup` in a real S3 server: what is read there is what is read of the same backups in a directory.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests fail by panic, and print what was tried"
)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::messages::SessionStatus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use repository::{
    Backup, BackupChoice, BackupFormat, Codec, EntryKind, FileIndex, ObjectAccess, OpenOptions,
    Repository, RepositoryErrorKind, open_repository, open_repository_in,
};
use tempfile::TempDir;
use tests::postgres::{
    BackupOptions, Installation, TestPostgres, give_to_postgres, installations, run, wait_until,
};
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::same_backups::{compare_bytes, entries, entries_with_modes, files};
use tests::system::{SystemOptions, TestSystem};
use tests::tree_hash;

/// For what must not be waited for.
const AT_ONCE: Duration = Duration::from_millis(100);

fn installation(major: u32) -> Installation {
    let found = installations()
        .into_iter()
        .find(|found| found.major == major);
    found.unwrap_or_else(|| panic!("PostgreSQL {major} is not installed; ./test installs it"))
}

fn random() -> StdRng {
    let seed = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn directory() -> TempDir {
    let builder = &mut tempfile::Builder::new();
    let made = builder.prefix("pginstant-backups-").tempdir_in("/var/tmp");
    made.unwrap()
}

/// A cluster that summarizes its WAL, with a tablespace, and a directory for its backups.
struct Stage {
    cluster: TestPostgres,
    backups: TempDir,
}

impl Stage {
    fn new() -> Self {
        let mut cluster = TestPostgres::start_new(&installation(18)).unwrap();
        cluster
            .psql("postgres", "ALTER SYSTEM SET summarize_wal = on")
            .unwrap();
        cluster.psql("postgres", "SELECT pg_reload_conf()").unwrap();
        cluster.create_tablespace("one").unwrap();
        let fill = ["-i", "-q", "-s", "2", "--tablespace=one"];
        cluster.pgbench("postgres", &fill).unwrap();
        Self {
            cluster,
            backups: directory(),
        }
    }

    fn path(&self, label: &str) -> PathBuf {
        self.backups.path().join(label)
    }

    fn back_up(&self, label: &str, tar: bool, arguments: &[&str]) {
        let options = BackupOptions {
            tar,
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
        };
        self.cluster.backup(&self.path(label), &options).unwrap();
        self.cluster.pgbench("postgres", &["-t", "50"]).unwrap();
    }

    /// Compresses the archives of a backup.
    fn compress(&self, label: &str, program: &[&str]) {
        let mut find = Command::new("find");
        find.arg(self.path(label)).args(["-name", "*.tar", "-exec"]);
        run(find.args(program).args(["{}", ";"])).unwrap();
    }

    fn here(&self) -> Box<dyn Repository> {
        open_repository(self.backups.path(), OpenOptions::default()).unwrap()
    }
}

fn there(server: &S3Server, prefix: &str) -> Box<dyn Repository> {
    let storage = server.storage(prefix, &Arc::default()).unwrap();
    open_repository_in(storage, OpenOptions::default()).unwrap()
}

fn open(repository: &dyn Repository, label: &str) -> Arc<dyn Backup> {
    repository.open(BackupChoice::Label(label)).unwrap()
}

fn labels(repository: &dyn Repository) -> Vec<String> {
    let found = repository.restore_points().unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    let labels = found.restore_points.into_iter().map(|point| point.label);
    labels.collect()
}

#[test]
fn tar_backups_and_chains_in_s3_are_read_as_from_their_directory() {
    let stage = Stage::new();
    let on = |label: &str| {
        format!(
            "--incremental={}/backup_manifest",
            stage.path(label).display()
        )
    };
    stage.back_up("a-full", true, &["--compress=client-gzip"]);
    stage.back_up("b-incr", true, &[&on("a-full")]);
    stage.back_up("c-incr", true, &[&on("b-incr")]);
    stage.compress("c-incr", &["zstd", "-q", "--rm"]);
    stage.back_up("d-incr", false, &[&on("c-incr")]);
    stage.back_up("e-full", true, &[]);
    stage.compress("e-full", &["lz4", "-q", "-m", "--rm"]);
    stage.back_up("f-full", true, &[]);
    let server = S3Server::start().unwrap();
    for label in ["a-full", "b-incr", "c-incr", "d-incr", "e-full", "f-full"] {
        server
            .put_files(&stage.path(label), &format!("tars/{label}"))
            .unwrap();
    }
    std::fs::write(server.bucket().join("tars/README"), "no backup").unwrap();
    let before = tree_hash::of(&server.bucket()).unwrap();
    let (here, there) = (stage.here(), there(&server, "tars"));
    assert_eq!(labels(&*here), labels(&*there));
    let mut random = random();
    for (label, format) in [
        (
            "a-full",
            BackupFormat::PgBasebackupCompressedTar(Codec::Gzip),
        ),
        ("b-incr", BackupFormat::PgBasebackupTar),
        (
            "c-incr",
            BackupFormat::PgBasebackupCompressedTar(Codec::Zstd),
        ),
        (
            "e-full",
            BackupFormat::PgBasebackupCompressedTar(Codec::Lz4),
        ),
        ("f-full", BackupFormat::PgBasebackupTar),
    ] {
        let (here, there) = (open(&*here, label), open(&*there, label));
        assert_eq!(there.restore_point().format, format, "{label}");
        assert_eq!(here.restore_point(), there.restore_point(), "{label}");
        assert_eq!(entries_with_modes(&*here), entries_with_modes(&*there));
        compare_bytes(&*here, &*there, &mut random).unwrap();
    }
    // The newest of its chain is a directory, which in the bucket has no modes and no times.
    let (here, there) = (open(&*here, "d-incr"), open(&*there, "d-incr"));
    assert_eq!(
        there.restore_point().references,
        ["a-full", "b-incr", "c-incr"]
    );
    assert_eq!(entries(&*here), entries(&*there));
    compare_bytes(&*here, &*there, &mut random).unwrap();
    assert_eq!(before, tree_hash::of(&server.bucket()).unwrap());
}

#[test]
fn a_plain_backup_that_was_copied_into_a_bucket_has_the_directories_that_postgresql_needs() {
    for major in [15, 18] {
        let mut cluster = TestPostgres::start_new(&installation(major)).unwrap();
        let oid = cluster.create_tablespace("one").and_then(|_| {
            let fill = ["-i", "-q", "-s", "1", "--tablespace=one"];
            cluster.pgbench("postgres", &fill)?;
            let sql = "SELECT oid FROM pg_tablespace WHERE spcname = 'one'";
            cluster.psql("postgres", sql)
        });
        let oid = oid.unwrap().trim().to_owned();
        let backups = directory();
        let local = backups.path().join("monday");
        cluster.backup(&local, &BackupOptions::default()).unwrap();
        let server = S3Server::start().unwrap();
        server.put_files(&local, "plain").unwrap();
        assert!(!server.bucket().join("plain/pg_notify").exists());
        let here = open_repository(backups.path(), OpenOptions::default());
        let here = open(&*here.unwrap(), "monday");
        let there = there(&server, "plain").open(BackupChoice::Newest).unwrap();
        assert_eq!(there.restore_point().label, "plain");
        assert_eq!(entries(&*here), entries(&*there));
        for entry in there.tree().entries() {
            let mode = match entry.kind {
                EntryKind::Directory => 0o700,
                EntryKind::File { .. } => 0o600,
            };
            assert_eq!(entry.mode, mode, "{}", entry.path);
        }
        compare_bytes(&*here, &*there, &mut random()).unwrap();
        a_tablespace_that_was_not_copied_is_refused_by_name(&server, &oid);
    }
}

fn a_tablespace_that_was_not_copied_is_refused_by_name(server: &S3Server, oid: &str) {
    let path = server.bucket().join("plain/pg_tblspc").join(oid);
    std::fs::remove_dir_all(path).unwrap();
    let error = there(server, "plain").open(BackupChoice::Newest);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), RepositoryErrorKind::Unsupported, "{error}");
    assert_eq!(error.file(), format!("pg_tblspc/{oid}"));
    let shown = format!("{error}; {}", error.remedy());
    assert!(
        shown.contains("keeps no links") && error.is_permanent(),
        "{shown}"
    );
}

/// The largest file of the data directory.
fn largest(backup: &dyn Backup) -> (String, FileIndex, u64) {
    let mut all = files(backup);
    all.retain(|(path, ..)| path.starts_with("base/"));
    all.into_iter().max_by_key(|(_, _, size)| *size).unwrap()
}

#[test]
fn a_backup_in_s3_that_is_replaced_or_cannot_be_reached_is_an_error_that_names_it() {
    let stage = Stage::new();
    stage.back_up("tar", true, &[]);
    stage.back_up("plain", false, &[]);
    let mut server = S3Server::start().unwrap();
    for label in ["tar", "plain"] {
        server
            .put_files(&stage.path(label), &format!("b/{label}"))
            .unwrap();
    }
    let open_at_once = |server: &S3Server, prefix: &str| {
        let storage = server.storage(prefix, &S3Server::access(AT_ONCE)).unwrap();
        open_repository_in(storage, OpenOptions::default()).unwrap()
    };
    let repository = open_at_once(&server, "b");
    let backups = ["tar", "plain"].map(|label| (label, open(&*repository, label)));
    for (label, backup) in &backups {
        // No page of it has been read yet.
        let (path, file, size_bytes) = largest(&**backup);
        let stored = match *label {
            "tar" => "base.tar",
            _ => &path,
        };
        let at = server.bucket().join(format!("b/{label}/{stored}"));
        // By one of the same size.
        let replaced = std::fs::File::options().write(true).open(&at).unwrap();
        let end = replaced.metadata().unwrap().len();
        replaced.write_all_at(b"9", end - 1).unwrap();
        let later = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        replaced.set_modified(later).unwrap();
        let error = backup.read_at(file, size_bytes - 8192, &mut [0; 8192]);
        let error = error.unwrap_err();
        let shown = error.to_string();
        println!("{shown}");
        assert!(
            error.is_permanent() && shown.contains("has changed"),
            "{shown}"
        );
        let name = format!("s3://{BUCKET}/b/{label}/{stored}");
        assert!(shown.contains(&name), "{shown}");
    }
    let nothing = open_at_once(&server, "nothing")
        .restore_points()
        .unwrap_err();
    let shown = format!("{nothing}; {}", nothing.remedy());
    assert!(
        nothing.is_permanent() && shown.contains("is empty"),
        "{shown}"
    );
    assert!(shown.contains(&format!("s3://{BUCKET}/nothing")), "{shown}");
    server.kill();
    let away = repository.restore_points().unwrap_err();
    assert_eq!(away.kind(), RepositoryErrorKind::Unreadable, "{away}");
    assert!(
        away.to_string().contains(&format!("s3://{BUCKET}/b")),
        "{away}"
    );
}

#[test]
fn listing_and_reading_a_page_of_a_tar_in_s3_cost_small_pieces_of_it() {
    let stage = Stage::new();
    stage
        .cluster
        .pgbench("postgres", &["-i", "-q", "-s", "10"])
        .unwrap();
    stage.back_up("tar", true, &[]);
    let server = S3Server::start().unwrap();
    server.put_files(&stage.path("tar"), "t").unwrap();
    let size_bytes = std::fs::metadata(stage.path("tar").join("base.tar"))
        .unwrap()
        .len();
    let access = Arc::new(ObjectAccess::default());
    let storage = server.storage("t", &access).unwrap();
    let repository = open_repository_in(storage, OpenOptions::default()).unwrap();
    assert_eq!(labels(&*repository), ["t"]);
    let listed = access.fetched_bytes();
    assert!(listed < 2 << 20, "{listed} bytes to list it");
    let backup = open(&*repository, "t");
    let largest = largest(&*backup);
    assert!(
        largest.2 > 100 << 20 && size_bytes > 150 << 20,
        "{largest:?}"
    );
    let opened = access.fetched_bytes() - listed;
    assert!(
        opened < size_bytes / 2,
        "{opened} bytes to open {size_bytes}"
    );
    let before = access.fetched_bytes();
    backup.read_at(largest.1, 50 << 20, &mut [0; 8192]).unwrap();
    let fetched = access.fetched_bytes() - before;
    assert!(fetched <= 256 << 10, "{fetched} bytes for a page");
}

/// WAL that the backup lacks and what was archived after it come from the bucket.
#[tokio::test]
async fn a_backup_in_s3_is_published_with_the_wal_that_is_archived_in_the_bucket() -> Result<()> {
    let archive = directory();
    give_to_postgres(archive.path())?;
    let mut original = TestPostgres::start_new(&installation(15))?;
    let command = format!("cp %p {}/%f", archive.path().display());
    for (name, value) in [("archive_mode", "on"), ("archive_command", &command)] {
        original.psql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
    }
    original.stop("fast")?;
    original.start()?;
    original.psql("postgres", "CREATE DATABASE shop")?;
    original.psql("shop", "CREATE TABLE orders (name text)")?;
    original.psql("shop", "INSERT INTO orders VALUES ('a-before')")?;
    let backups = directory();
    let none = "--wal-method=none".to_owned();
    for (label, tar) in [("plain", false), ("tar", true)] {
        let mut arguments = vec![none.clone()];
        arguments.extend(tar.then(|| "--gzip".to_owned()));
        let options = BackupOptions { tar, arguments };
        original.backup(&backups.path().join(label), &options)?;
    }
    original.psql("shop", "INSERT INTO orders VALUES ('b-after')")?;
    let last = original.psql("shop", "SELECT pg_walfile_name(pg_switch_wal())")?;
    let sql = format!(
        "SELECT last_archived_wal >= '{}' FROM pg_stat_archiver",
        last.trim()
    );
    wait_until("all WAL is archived", || {
        original
            .psql("shop", &sql)
            .is_ok_and(|text| text.trim() == "t")
    })?;
    original.stop("fast")?;
    let server = S3Server::start()?;
    server.put_files(backups.path(), "backups")?;
    server.put_files(archive.path(), "archive/of this cluster")?;
    let before = tree_hash::of(&server.bucket())?;
    let lines = format!("wal_archive = \"s3://{BUCKET}/archive/of this cluster\"\n");
    let options = SystemOptions {
        repository_lines: lines + &server.lines(),
        ..SystemOptions::default()
    };
    let path = format!("s3://{BUCKET}/backups");
    let system = TestSystem::start_with(Path::new(&path), options).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    for label in ["plain", "tar"] {
        ensure!(listed.contains(label), "{label} is not in:\n{listed}");
        let (id, detail) = system.publish(&["--backup", label]).await?;
        let sql = "SELECT string_agg(name, ' ' ORDER BY name) FROM orders";
        let rows = system.sql(&detail, "shop", sql).await?;
        ensure!(rows == "a-before b-after", "{label}: {rows}");
        system
            .sql(&detail, "shop", "CREATE TABLE more AS SELECT 1")
            .await?;
        let unpublished = system.explorer(&["unpublish", &id]).await?;
        ensure!(unpublished.status.success(), "{unpublished:?}");
        system.reaches(&id, SessionStatus::Completed).await?;
        system.nothing_is_left_of(&id)?;
    }
    ensure!(before == tree_hash::of(&server.bucket())?);
    ensure!(
        !system.log("mount-svc").contains(SECRET),
        "a secret is in the log"
    );
    Ok(())
}
