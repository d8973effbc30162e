//! Recovery from the repository's archive of WAL, every part real: how far it goes, what it leaves out, and what happens when the
//! archive changes under a mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus};
use tempfile::TempDir;
use tests::barman;
use tests::history::{self, History};
use tests::pgbackrest::{Layout, PASSPHRASE, RepositoryKind, STANZA, Setting, Stage, Tool};
use tests::postgres::{
    BackupOptions, Installation, TestPostgres, give_to_postgres, installations, run, wait_until,
};
use tests::system::{SystemOptions, TestSystem};
use tests::victims;
use tests::wait;

/// A segment is replayed in far less, on a machine that has anything left for it.
const REPLAY_LIMIT: Duration = Duration::from_secs(60);

fn installation(major: u32) -> Result<Installation> {
    let mut all = installations().into_iter();
    all.find(|installation| installation.major == major)
        .with_context(|| format!("PostgreSQL {major} is not installed; ./test installs it"))
}

/// Commits a row, and has the WAL up to it archived; gives the name of the segment that has it.
fn commit(cluster: &TestPostgres, row: &str) -> Result<String> {
    cluster.psql("shop", &format!("INSERT INTO orders VALUES ('{row}')"))?;
    archived(cluster)
}

/// Waits until all WAL is archived; gives the name of the last segment.
fn archived(cluster: &TestPostgres) -> Result<String> {
    let name = cluster.psql("shop", "SELECT pg_walfile_name(pg_switch_wal())")?;
    let name = name.trim().to_owned();
    let sql = format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver");
    wait_until(&format!("segment {name} is archived"), || {
        cluster
            .psql("shop", &sql)
            .is_ok_and(|text| text.trim() == "t")
    })?;
    Ok(name)
}

async fn rows(system: &TestSystem, detail: &SessionDetail) -> Result<String> {
    let sql = "SELECT string_agg(name, ' ' ORDER BY name) FROM orders";
    system.sql(detail, "shop", sql).await
}

/// What the list of backups says in JSON, whatever is wrong with some of them.
async fn list_of_backups(system: &TestSystem) -> Result<String> {
    let listed = system.explorer(&["--output", "json", "backups"]).await?;
    Ok(String::from_utf8(listed.stdout)?)
}

async fn unpublish(system: &TestSystem, id: &str) -> Result<()> {
    let unpublished = system.explorer(&["unpublish", id]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");
    system.reaches(id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(id)
}

/// What is published with these arguments: its rows and its timeline.
async fn published(system: &TestSystem, arguments: &[&str]) -> Result<(String, u32)> {
    let (id, detail) = system.publish(arguments).await?;
    let found = rows(system, &detail).await?;
    let timeline = detail.published.as_ref().context("published")?.timeline;
    unpublish(system, &id).await?;
    Ok((found, timeline))
}

/// A repository of pgBackRest with a backup of a shop.
struct Shop {
    stage: Stage,
    label: String,
    secret: tempfile::NamedTempFile,
}

impl Shop {
    fn new() -> Result<Self> {
        Self::with_segments(16)
    }

    fn with_segments(segment_mib: u32) -> Result<Self> {
        let kind = RepositoryKind {
            layout: Layout::Bundle,
            is_encrypted: true,
        };
        let setting = Setting {
            cluster: TestPostgres::start_new_with_segments(&installation(15)?, segment_mib)?,
            parent: Path::new("/var/tmp"),
        };
        let stage = Stage::of(&Tool::of("trixie")?, setting, &[kind])?;
        let cluster = stage.cluster();
        fill(cluster)?;
        let label = stage.backup(1, &["--type=full", "--compress-type=zst"])?;
        let secret = tempfile::NamedTempFile::new()?;
        std::fs::write(secret.path(), format!("{PASSPHRASE}\n"))?;
        Ok(Self {
            stage,
            label,
            secret,
        })
    }

    async fn system(&self) -> Result<TestSystem> {
        let options = SystemOptions {
            repository_lines: format!(
                "kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\ncipher_passphrase_file = \"{}\"\n",
                self.secret.path().display()
            ),
            ..SystemOptions::default()
        };
        TestSystem::start_with(&self.stage.repository(1), options).await
    }

    /// Where a segment lies in the repository.
    fn stored(&self, segment: &str) -> Result<PathBuf> {
        let archive = self
            .stage
            .repository(1)
            .join(format!("archive/{STANZA}/15-1"));
        let directory = archive.join(segment.get(..16).context("a segment")?);
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(&format!("{segment}-"))) {
                return Ok(path);
            }
        }
        anyhow::bail!("{segment} is not in {}", directory.display())
    }
}

#[tokio::test]
async fn recovery_goes_to_the_end_of_the_archive_across_timelines_and_up_to_a_gap() -> Result<()> {
    let mut shop = Shop::new()?;
    commit(shop.stage.cluster(), "b-after")?;
    let system = shop.system().await?;
    let label = shop.label.clone();
    let latest = ["--backup", label.as_str()];
    let immediate = ["--backup", label.as_str(), "--to", "immediate"];
    ensure!(published(&system, &latest).await? == ("a-before b-after".into(), 2));
    ensure!(published(&system, &immediate).await? == ("a-before".into(), 2));

    // What was published writes a timeline that the archive does not have, also where recovery does not go that far.
    shop.stage.promote()?;
    let missing = commit(shop.stage.cluster(), "c-promoted")?;
    ensure!(missing.starts_with("00000002"), "{missing}");
    commit(shop.stage.cluster(), "d-last")?;
    let all = "a-before b-after c-promoted d-last".to_owned();
    ensure!(published(&system, &latest).await? == (all.clone(), 3));
    ensure!(published(&system, &immediate).await? == ("a-before".into(), 3));

    let stored = shop.stored(&missing)?;
    let aside = stored.with_extension("aside");
    std::fs::rename(&stored, &aside)?;
    let (id, detail) = system.publish(&latest).await?;
    let found = rows(&system, &detail).await?;
    ensure!(found == "a-before b-after", "{found}");
    let told = format!("{missing} is missing");
    ensure!(
        detail.log.iter().any(|line| line.text.contains(&told)),
        "{:?}",
        detail.log
    );
    unpublish(&system, &id).await?;
    let listed = system.explorer_json(&["backups"]).await?;
    let listed = serde_json::to_string(&listed)?;
    ensure!(listed.contains(&missing), "{listed}");
    std::fs::rename(&aside, &stored)?;
    ensure!(published(&system, &latest).await? == (all, 3));
    let log = system.log("mount-svc");
    ensure!(!log.contains(PASSPHRASE), "the passphrase is in the log");
    Ok(())
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The smallest segments that PostgreSQL knows, and the largest.
#[tokio::test]
async fn recovery_goes_on_with_segments_of_any_size() -> Result<()> {
    for segment_mib in [1, 1024] {
        let shop = Shop::with_segments(segment_mib)?;
        commit(shop.stage.cluster(), "b-after")?;
        commit(shop.stage.cluster(), "c-after")?;
        let system = shop.system().await?;
        let found = published(&system, &[]).await?;
        ensure!(found == ("a-before b-after c-after".into(), 2), "{found:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_mount_shows_the_archive_as_it_was_when_it_was_made_whatever_becomes_of_it() -> Result<()>
{
    let shop = Shop::new()?;
    let first = commit(shop.stage.cluster(), "b-after")?;
    let second = commit(shop.stage.cluster(), "c-after")?;
    let third = commit(shop.stage.cluster(), "d-after")?;
    let mut system = shop.system().await?;
    let (id, mounted) = system.mount(&[]).await?;
    let wal = mounted.mount_point.join("wal");
    let shown = names_in(&wal)?;
    for name in [&first, &second, &third] {
        ensure!(shown.contains(name), "{name} is not in {shown:?}");
    }
    let content = std::fs::read(wal.join(&third))?;
    ensure!(content == shop.stage.wal(1, &third)?, "{third} differs");

    // The archive grows, loses a segment, and gets a damaged one; mount-svc is killed and finds its mount again.
    let later = commit(shop.stage.cluster(), "e-later")?;
    std::fs::remove_file(shop.stored(&first)?)?;
    let damaged = shop.stored(&second)?;
    let mut bytes = std::fs::read(&damaged)?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    std::fs::write(&damaged, bytes)?;
    system.mount_svc.kill();
    system.mount_svc.start_again()?;
    system.ready().await?;
    ensure!(names_in(&wal)? == shown, "the mount has changed");
    let whole = mounted.mount_point.join("data/PG_VERSION");
    ensure!(std::fs::read_to_string(whole)?.trim() == "15");
    for name in [&first, &second] {
        let path = wal.join(name);
        let error = std::fs::read(&path).err().context("it was read")?;
        ensure!(error.raw_os_error() == Some(5), "{name}: {error}");
        let what = format!("{name} is told of");
        let told = tests::wait::find(&what, tests::system::SESSION_LIMIT, async || {
            let detail = system.session(&id).await?.context("the session")?;
            let mut warnings = detail.warnings.iter();
            let told = warnings.any(|warning| warning.text.contains(name));
            Ok(told.then_some(()))
        });
        told.await?;
    }

    ensure!(!shown.contains(&later), "{later} was there before");
    unpublish(&system, &id).await
}

/// A shop with one order.
fn fill(cluster: &TestPostgres) -> Result<()> {
    cluster.psql("postgres", "CREATE DATABASE shop")?;
    cluster.psql("shop", "CREATE TABLE orders (name text)")?;
    cluster.psql("shop", "INSERT INTO orders VALUES ('a-before')")?;
    Ok(())
}

/// Compressed segments in `wals`, and the one that is being received.
#[tokio::test]
async fn recovery_of_a_backup_of_barman_goes_on_with_what_is_archived_and_streamed() -> Result<()> {
    let stage = barman::Stage::new(barman::of_debian(), &installation(15)?)?;
    let cluster = stage.cluster();
    fill(cluster)?;
    let id = stage.backup(barman::PLAIN, &[])?;
    let after = commit(cluster, "b-after")?;
    stage.run(&["archive-wal", barman::PLAIN])?;
    // As if the configuration had been changed from bzip2 to xz.
    let directory = after.get(..16).context("a segment")?;
    let stored = stage
        .server(barman::PLAIN)
        .join(format!("wals/{directory}/{after}"));
    let again = "bzip2 -dc \"$0\" | xz >\"$0.new\" && mv \"$0.new\" \"$0\"";
    run(std::process::Command::new("sh")
        .args(["-c", again])
        .arg(&stored))?;
    cluster.psql("shop", "INSERT INTO orders VALUES ('c-received')")?;
    let received = cluster.psql("shop", "SELECT pg_walfile_name(pg_current_wal_lsn())")?;
    let received = received.trim();
    let server = stage.server(barman::PLAIN);
    std::fs::create_dir_all(server.join("streaming"))?;
    let partial = server.join(format!("streaming/{received}.partial"));
    std::fs::copy(
        cluster.data_directory().join("pg_wal").join(received),
        &partial,
    )?;
    let options = SystemOptions {
        repository_lines: "kind = \"barman\"\n".to_owned(),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(&server, options).await?;
    let latest = ["--backup", id.as_str()];
    let all = "a-before b-after c-received".to_owned();
    ensure!(published(&system, &latest).await? == (all, 2));
    // Less of it, as it is while it is received.
    let file = std::fs::OpenOptions::new().write(true).open(&partial)?;
    file.set_len(0)?;
    ensure!(published(&system, &latest).await? == ("a-before b-after".to_owned(), 2));
    let immediate = ["--backup", id.as_str(), "--to", "immediate"];
    ensure!(published(&system, &immediate).await? == ("a-before".to_owned(), 2));
    Ok(())
}

/// A cluster that archives its WAL to a directory, and a directory for its backups.
struct Archiving {
    archive: TempDir,
    backups: TempDir,
    original: TestPostgres,
}

impl Archiving {
    fn new() -> Result<Self> {
        let archive = directory()?;
        let mut original = TestPostgres::start_new(&installation(15)?)?;
        let command = format!("cp %p {}/%f", archive.path().display());
        for (name, value) in [("archive_mode", "on"), ("archive_command", &command)] {
            let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
            original.psql("postgres", &sql)?;
        }
        original.stop("fast")?;
        original.start()?;
        fill(&original)?;
        Ok(Self {
            archive,
            backups: directory()?,
            original,
        })
    }

    /// The product, with both directories as its repository.
    async fn system(archive: &TempDir, backups: &TempDir) -> Result<TestSystem> {
        let options = SystemOptions {
            repository_lines: format!("wal_archive = \"{}\"\n", archive.path().display()),
            ..SystemOptions::default()
        };
        TestSystem::start_with(backups.path(), options).await
    }
}

/// The directory to which `archive_command` copies; some of it was compressed since.
#[tokio::test]
async fn recovery_of_a_directory_goes_on_with_the_archive_that_is_configured() -> Result<()> {
    let Archiving {
        archive,
        backups,
        mut original,
    } = Archiving::new()?;
    original.backup(&backups.path().join("monday"), &BackupOptions::default())?;
    let compressed = commit(&original, "b-after")?;
    run(std::process::Command::new("gzip").arg(archive.path().join(&compressed)))?;
    original.promote()?;
    commit(&original, "c-promoted")?;
    let system = Archiving::system(&archive, &backups).await?;
    let all = "a-before b-after c-promoted".to_owned();
    ensure!(published(&system, &[]).await? == (all, 3));
    ensure!(published(&system, &["--to", "immediate"]).await? == ("a-before".to_owned(), 3));
    Ok(())
}

/// `pg_basebackup --wal-method=none`, with a manifest and without: the archive has what the backup lacks, or the backup is refused.
#[tokio::test]
async fn a_backup_without_wal_is_published_with_that_of_the_archive() -> Result<()> {
    let Archiving {
        archive,
        backups,
        original,
    } = Archiving::new()?;
    let none = "--wal-method=none".to_owned();
    for (label, arguments) in [
        ("listed", vec![none.clone()]),
        ("unlisted", vec![none, "--no-manifest".to_owned()]),
        ("whole", vec!["--no-manifest".to_owned()]),
    ] {
        let options = BackupOptions {
            tar: label == "unlisted",
            arguments,
        };
        original.backup(&backups.path().join(label), &options)?;
        archived(&original)?;
    }
    let compressed = commit(&original, "b-after")?;
    run(std::process::Command::new("xz").arg(archive.path().join(&compressed)))?;
    let system = Archiving::system(&archive, &backups).await?;
    for label in ["listed", "unlisted", "whole"] {
        let latest = ["--backup", label];
        ensure!(
            published(&system, &latest).await?.0 == "a-before b-after",
            "{label}"
        );
        let immediate = ["--backup", label, "--to", "immediate"];
        ensure!(
            published(&system, &immediate).await?.0 == "a-before",
            "{label}"
        );
    }
    // Where a backup without a manifest ends, the archive says; one with its WAL is listed without that, too.
    let segments = |ending: &str| -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(archive.path())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.ends_with(ending)) {
                found.push(path);
            }
        }
        Ok(found)
    };
    for path in segments(".backup")? {
        std::fs::remove_file(path)?;
    }
    let text = list_of_backups(&system).await?;
    ensure!(
        text.contains("nothing else says where the backup ends"),
        "{text}"
    );
    ensure!(text.contains("whole") && text.contains("listed"), "{text}");
    for path in segments("")? {
        std::fs::remove_file(path)?;
    }
    let text = list_of_backups(&system).await?;
    ensure!(
        text.contains("is not in the WAL archive, nor whole in the backup"),
        "{text}"
    );
    Ok(())
}

/// What `pg_receivewal` left when it was stopped stays for ever where another program goes on.
#[tokio::test]
async fn a_partial_segment_with_others_behind_it_is_told_as_a_gap() -> Result<()> {
    let Archiving {
        archive,
        backups,
        original,
    } = Archiving::new()?;
    original.backup(&backups.path().join("monday"), &BackupOptions::default())?;
    commit(&original, "b-after")?;
    let stale = commit(&original, "c-stale")?;
    commit(&original, "d-behind")?;
    let whole = archive.path().join(&stale);
    let partial = archive.path().join(format!("{stale}.partial"));
    std::fs::rename(&whole, &partial)?;
    let file = std::fs::OpenOptions::new().write(true).open(&partial)?;
    file.set_len(0)?;
    let system = Archiving::system(&archive, &backups).await?;
    let text = serde_json::to_string(&system.explorer_json(&["backups"]).await?)?;
    ensure!(text.contains(&stale), "{text}");
    ensure!(published(&system, &[]).await?.0 == "a-before b-after");
    Ok(())
}

/// The services, the mount's worker, and PostgreSQL die while it replays; only PostgreSQL's death is one that somebody must answer.
#[tokio::test]
async fn a_long_replay_goes_on_after_each_of_its_parts_was_killed() -> Result<()> {
    let shop = Shop::new()?;
    let cluster = shop.stage.cluster();
    for _ in 0..3 {
        let sql = "CREATE TABLE filler AS SELECT g, repeat('x', 1000) FROM generate_series(1, 100000) g; \
                   DROP TABLE filler";
        for statement in sql.split("; ") {
            cluster.psql("shop", statement)?;
        }
    }
    commit(cluster, "b-after")?;
    let mut system = shop.system().await?;
    let history = History::open(&system).await?;
    let id = history
        .send(history::publish(&shop.label, None)?)
        .await?
        .to_string();
    history.until(&id, "step_started recover").await?;
    let data_directory = system.mount_root().join(&id).join("data");
    let startup = replays(&data_directory).await?;
    // Services take their time to start again, and the replay must not be over by then.
    let halted = victims::Halted::new(startup)?;
    system.mount_svc.kill();
    system.recovery_svc.kill();
    system.mount_svc.start_again()?;
    system.recovery_svc.start_again()?;
    system.ready().await?;
    drop(halted);
    replays(&data_directory).await?;
    victims::kill(victims::agent(&id, "worker")?)?;
    replays(&data_directory).await?;
    let pid = std::fs::read_to_string(data_directory.join("postmaster.pid"))?;
    victims::kill(pid.lines().next().context("a process id")?.parse()?)?;
    system
        .reaches(&id, SessionStatus::WaitingForManualRetry)
        .await?;
    let retried = system.explorer(&["retry", &id]).await?;
    ensure!(retried.status.success(), "{retried:?}");
    let detail = system.reaches(&id, SessionStatus::Published).await?;
    let found = rows(&system, &detail).await?;
    ensure!(found == "a-before b-after", "{found}");
    unpublish(&system, &id).await
}

/// Waits until PostgreSQL goes from one segment to another; gives the process that replays.
async fn replays(data_directory: &Path) -> Result<u32> {
    let mut before: Option<String> = None;
    wait::find("another segment replayed", REPLAY_LIMIT, async || {
        let Some((pid, title)) = victims::replay(data_directory) else {
            return Ok(None);
        };
        if !title.contains("recovering") {
            return Ok(None);
        }
        let goes_on = before.as_ref().is_some_and(|before| *before != title);
        before = Some(title);
        Ok(goes_on.then_some(pid))
    })
    .await
}

fn directory() -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("pginstant-wal-")
        .tempdir_in("/var/tmp")?;
    give_to_postgres(directory.path())?;
    Ok(directory)
}
