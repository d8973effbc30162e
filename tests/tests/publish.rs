//! The walk of one publish with every part real: command, mount, write cache, PostgreSQL, and nothing left afterwards.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::messages::SessionStatus;
use tests::barman;
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::{BackupOptions, Installation, TestPostgres, installations};
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::system::TestSystem;
use tests::tree_hash;
use tests::victims::Halted;

/// A repository with a backup of a small pgbench database, in the wanted format.
fn repository(
    installation: &Installation,
    options: &BackupOptions,
) -> Result<(tempfile::TempDir, TestPostgres)> {
    let original = TestPostgres::start_new(installation)?;
    original.psql("postgres", "CREATE DATABASE shop")?;
    original.pgbench("shop", &["-i", "-q", "-s", "2"])?;
    let directory = tempfile::Builder::new()
        .prefix("pginstant-repository-")
        .tempdir_in("/var/tmp")?;
    tests::postgres::give_to_postgres(directory.path())?;
    original.backup(&directory.path().join("monday"), options)?;
    Ok((directory, original))
}

fn installation(major: u32) -> Result<Installation> {
    installations()
        .into_iter()
        .find(|installation| installation.major == major)
        .with_context(|| format!("PostgreSQL {major} is not installed; ./test installs it"))
}

async fn publish_read_write_unpublish(
    system: &TestSystem,
    backup: &Path,
    label: &str,
) -> Result<()> {
    let before = tree_hash::of(backup)?;
    let (id, detail) = system.publish(&["--backup", label]).await?;
    let published = detail.published.clone().context("where it is published")?;
    ensure!(
        published.timeline == 2,
        "it writes timeline {}",
        published.timeline
    );
    ensure!(
        system
            .sql(&detail, "shop", "SELECT count(*) FROM pgbench_accounts")
            .await?
            == "200000"
    );
    // A balance that no load of pgbench has left there.
    system
        .sql(
            &detail,
            "shop",
            "UPDATE pgbench_accounts SET abalance = 123456789 WHERE aid % 10 = 0",
        )
        .await?;
    system.sql(&detail, "shop", "CHECKPOINT").await?;
    let changed = system
        .sql(
            &detail,
            "shop",
            "SELECT count(*) FROM pgbench_accounts WHERE abalance = 123456789",
        )
        .await?;
    ensure!(changed == "20000", "{changed} rows");
    let unpublished = system.explorer(&["unpublish", &id]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");
    system.reaches(&id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(&id)?;
    ensure!(tree_hash::of(backup)? == before, "the backup was changed");
    Ok(())
}

#[tokio::test]
async fn a_plain_backup_is_published_read_written_and_unpublished_without_a_trace() -> Result<()> {
    let (directory, _original) = repository(&installation(15)?, &BackupOptions::default())?;
    let system = TestSystem::start(directory.path()).await?;
    publish_read_write_unpublish(&system, &directory.path().join("monday"), "monday").await
}

#[tokio::test]
async fn a_tar_backup_is_published_read_written_and_unpublished_without_a_trace() -> Result<()> {
    let options = BackupOptions {
        tar: true,
        ..BackupOptions::default()
    };
    let (directory, _original) = repository(&installation(15)?, &options)?;
    let system = TestSystem::start(directory.path()).await?;
    publish_read_write_unpublish(&system, &directory.path().join("monday"), "monday").await
}

#[tokio::test]
async fn a_compressed_tar_backup_is_listed_and_published_without_a_trace() -> Result<()> {
    let options = BackupOptions {
        tar: true,
        arguments: vec!["--compress=server-gzip:level=1".into()],
    };
    let (directory, _original) = repository(&installation(15)?, &options)?;
    let system = TestSystem::start(directory.path()).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    for text in [
        "pg_basebackup tar, gzip",
        "monday: pages are slow to read at random",
    ] {
        ensure!(listed.contains(text), "{text} is not in:\n{listed}");
    }
    publish_read_write_unpublish(&system, &directory.path().join("monday"), "monday").await?;
    let events = system.explorer(&["events"]).await?;
    let events = String::from_utf8(events.stdout)?;
    ensure!(
        events.contains("warning: backup monday: pages are slow to read at random"),
        "{events}"
    );
    Ok(())
}

/// Its archives are decoded to their end first. mount-svc is halted in the middle, so that it has something to tell.
#[tokio::test]
async fn a_mount_that_decodes_archives_tells_how_far_it_is() -> Result<()> {
    let options = BackupOptions {
        tar: true,
        arguments: vec!["--compress=server-gzip:level=1".into()],
    };
    let (directory, _original) = repository(&installation(15)?, &options)?;
    let system = TestSystem::start(directory.path()).await?;
    let mount_svc = system.mount_svc.id().context("mount-svc runs")?;
    let descriptors = PathBuf::from(format!("/proc/{mount_svc}/fd"));
    let reads_the_archive = || {
        let open = std::fs::read_dir(&descriptors).into_iter().flatten();
        let mut open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        open.any(|path| path.ends_with("monday/base.tar.gz"))
    };
    let id = system.begin_publish(&[]).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reads_the_archive() {
        ensure!(Instant::now() < deadline, "the archive is not opened");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let halted = Halted::new(mount_svc)?;
    // Time goes on meanwhile: when it goes on too, it is due to tell.
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(halted);
    system.reaches(&id, SessionStatus::Published).await?;
    let events = system.explorer(&["events", "--session", &id]).await?;
    let events = String::from_utf8(events.stdout)?;
    ensure!(
        events.contains("MiB of the backup's compressed archives"),
        "{events}"
    );
    Ok(())
}

#[tokio::test]
async fn a_backup_of_postgresql_18_is_published_as_well() -> Result<()> {
    let (directory, original) = repository(&installation(18)?, &BackupOptions::default())?;
    let programs = original.installation().bin.clone();
    let options = tests::system::SystemOptions {
        target_lines: format!("program_directories = [\"{}\"]", programs.display()),
        ..tests::system::SystemOptions::default()
    };
    let system = TestSystem::start_with(directory.path(), options).await?;
    publish_read_write_unpublish(&system, &directory.path().join("monday"), "monday").await
}

/// The second of a chain; what was changed before it is in it, and the rest in the full one.
#[tokio::test]
async fn an_incremental_backup_is_listed_and_published_without_a_trace() -> Result<()> {
    let (directory, original) = repository(&installation(18)?, &BackupOptions::default())?;
    original.psql("shop", "ALTER SYSTEM SET summarize_wal = on")?;
    original.psql("shop", "SELECT pg_reload_conf()")?;
    let path = |label: &str| directory.path().join(label);
    let backup = |label: &str, parent: Option<&str>| {
        let parent = parent.map(|parent| path(parent).join("backup_manifest"));
        let argument = parent.map(|parent| format!("--incremental={}", parent.display()));
        let options = BackupOptions {
            arguments: argument.into_iter().collect(),
            ..BackupOptions::default()
        };
        original.backup(&path(label), &options)
    };
    backup("full", None)?;
    original.psql(
        "shop",
        "UPDATE pgbench_accounts SET abalance = 3 WHERE aid <= 100",
    )?;
    backup("incremental", Some("full"))?;
    let programs = original.installation().bin.clone();
    original.stop("fast")?;
    let options = tests::system::SystemOptions {
        target_lines: format!("program_directories = [\"{}\"]", programs.display()),
        ..tests::system::SystemOptions::default()
    };
    let system = TestSystem::start_with(directory.path(), options).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    for text in ["incr  pg_basebackup plain", "incremental needs full"] {
        ensure!(listed.contains(text), "{text} is not in:\n{listed}");
    }
    publish_read_write_unpublish(&system, directory.path(), "incremental").await
}

/// One by rsync and one by pg_basebackup. Their WAL is in Barman's archive only.
#[tokio::test]
async fn backups_of_barman_are_listed_and_published_without_a_trace() -> Result<()> {
    let stage = barman::Stage::new(barman::of_debian(), &installation(15)?)?;
    let cluster = stage.cluster();
    cluster.psql("postgres", "CREATE DATABASE shop")?;
    cluster.pgbench("shop", &["-i", "-q", "-s", "2", "--tablespace=one"])?;
    let by_rsync = stage.backup(barman::RSYNC, &[])?;
    let by_pg_basebackup = stage.backup(barman::PLAIN, &[])?;
    cluster.stop("fast")?; // nothing is archived any more
    for (server, id) in [(barman::RSYNC, by_rsync), (barman::PLAIN, by_pg_basebackup)] {
        let path = stage.server(server);
        let options = tests::system::SystemOptions {
            repository_lines: "kind = \"barman\"\n".to_owned(),
            ..tests::system::SystemOptions::default()
        };
        let system = TestSystem::start_with(&path, options).await?;
        let listed = system.explorer(&["backups"]).await?;
        let listed = String::from_utf8(listed.stdout)?;
        ensure!(listed.contains(&format!("{id}  full  Barman")), "{listed}");
        publish_read_write_unpublish(&system, &path, &id).await?;
    }
    Ok(())
}

/// An incremental backup, encrypted, compressed and in blocks: everything at once. Its WAL is in the archive only.
#[tokio::test]
async fn a_backup_of_pgbackrest_is_listed_and_published_without_a_trace() -> Result<()> {
    let kind = RepositoryKind {
        layout: Layout::Blocks,
        is_encrypted: true,
    };
    let stage = Stage::new(&Tool::of("trixie")?, &installation(15)?, &[kind])?;
    let cluster = stage.cluster();
    cluster.psql("postgres", "CREATE DATABASE shop")?;
    cluster.pgbench("shop", &["-i", "-q", "-s", "2", "--tablespace=one"])?;
    let full = stage.backup(1, &["--type=full", "--compress-type=zst"])?;
    cluster.pgbench("shop", &["-t", "200"])?;
    let label = stage.backup(1, &["--type=incr", "--compress-type=zst"])?;
    cluster.stop("fast")?; // nothing is archived any more
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), format!("{PASSPHRASE}\n"))?;
    let options = tests::system::SystemOptions {
        repository_lines: format!(
            "kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\ncipher_passphrase_file = \"{}\"\n",
            secret.path().display()
        ),
        ..tests::system::SystemOptions::default()
    };
    let repository = stage.repository(1);
    let system = TestSystem::start_with(&repository, options).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    let needs = format!("{label} needs {full}");
    for text in [&*needs, "full  pgBackRest", "incr  pgBackRest"] {
        ensure!(listed.contains(text), "{text} is not in:\n{listed}");
    }
    publish_read_write_unpublish(&system, &repository, &label).await?;
    let log = system.log("mount-svc");
    ensure!(!log.contains(PASSPHRASE), "the passphrase is in the log");
    Ok(())
}

/// What most people have: bundles in a bucket.
#[tokio::test]
async fn a_backup_in_s3_is_listed_and_published_without_a_trace() -> Result<()> {
    let kind = RepositoryKind {
        layout: Layout::Bundle,
        is_encrypted: false,
    };
    let stage = Stage::new(&Tool::of("bookworm")?, &installation(15)?, &[kind])?;
    let cluster = stage.cluster();
    cluster.psql("postgres", "CREATE DATABASE shop")?;
    cluster.pgbench("shop", &["-i", "-q", "-s", "2", "--tablespace=one"])?;
    let label = stage.backup(1, &["--type=full", "--compress-type=zst"])?;
    cluster.stop("fast")?; // nothing is archived any more
    let server = S3Server::start()?;
    server.put(&stage.repository(1), "pgbackrest")?;
    let options = tests::system::SystemOptions {
        repository_lines: format!(
            "kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\n{}",
            server.lines()
        ),
        ..tests::system::SystemOptions::default()
    };
    let path = format!("s3://{BUCKET}/pgbackrest");
    let system = TestSystem::start_with(Path::new(&path), options).await?;
    let listed = system.explorer(&["backups"]).await?;
    let listed = String::from_utf8(listed.stdout)?;
    for text in [&*label, "full  pgBackRest", "repo-block=y"] {
        ensure!(listed.contains(text), "{text} is not in:\n{listed}");
    }
    publish_read_write_unpublish(&system, &server.bucket(), &label).await?;
    let log = system.log("mount-svc");
    ensure!(!log.contains(SECRET), "the credentials are in the log");
    Ok(())
}
