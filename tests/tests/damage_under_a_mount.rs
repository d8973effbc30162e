//! What becomes of a mount when its repository is damaged, or its backup expired by the tool that made it: readers get errors, people get
//! events that name backup, file and place, nothing wrong is read, and what is not touched by it goes on.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use common::messages::SessionStatus;
use tests::pgbackrest::{Layout, RepositoryKind, STANZA, Stage, Tool};
use tests::postgres::{installations, run};
use tests::system::{SESSION_LIMIT, SystemOptions, TestSystem};
use tests::wait;

fn stage(layout: Layout) -> Result<Stage> {
    let all = installations();
    let postgresql_15 = all.iter().find(|found| found.major == 15);
    let postgresql_15 = postgresql_15.context("./test installs PostgreSQL 15")?;
    let kind = RepositoryKind {
        layout,
        is_encrypted: false,
    };
    let stage = Stage::new(&Tool::of("trixie")?, postgresql_15, &[kind])?;
    for sql in [
        "CREATE TABLE touched AS SELECT g, md5(g::text) FROM generate_series(1, 60000) g",
        "CREATE TABLE untouched AS SELECT g FROM generate_series(1, 60000) g",
    ] {
        stage.cluster().psql("postgres", sql)?;
    }
    Ok(stage)
}

async fn system(stage: &Stage) -> Result<TestSystem> {
    let options = SystemOptions {
        repository_lines: format!("kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\n"),
        target_lines: "hydrate = \"none\"\n".to_owned(),
        ..SystemOptions::default()
    };
    TestSystem::start_with(&stage.repository(1), options).await
}

/// Waits for a warning of a damaged file that says all of this.
async fn is_told(system: &TestSystem, id: &str, words: &[&str]) -> Result<()> {
    let what = format!("an event that says {words:?}");
    wait::find(&what, SESSION_LIMIT, async || {
        let arguments = ["events", "--since", "first", "--session", id];
        let events = system.explorer_json(&arguments).await?;
        let found = events.into_iter().map(|event| event.to_string());
        let mut warnings = found.filter(|event| event.contains("backup_file_corrupt"));
        Ok(warnings
            .any(|event| words.iter().all(|word| event.contains(word)))
            .then_some(()))
    })
    .await
}

/// The stored file of a table in blocks: it is too large for a bundle.
fn blocks_of(stage: &Stage, label: &str, path: &str) -> PathBuf {
    let backup = stage.repository(1).join("backup").join(STANZA).join(label);
    backup.join("pg_data").join(format!("{path}.pgbi"))
}

#[tokio::test]
async fn a_flipped_bit_is_an_io_error_and_an_event_that_names_backup_file_and_place_and_the_rest_goes_on()
-> Result<()> {
    let stage = stage(Layout::Blocks)?;
    let label = stage.backup(1, &["--type=full", "--compress-type=zst"])?;
    let path = "SELECT pg_relation_filepath('touched')";
    let path = stage.cluster().psql("postgres", path)?;
    let path = path.trim();
    let stored = blocks_of(&stage, &label, path);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&stored)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000)?;
    file.write_all_at(&[byte[0] ^ 1], 1000)?;
    let system = system(&stage).await?;
    let (id, detail) = system.publish(&[]).await?;
    let read = system.sql(&detail, "postgres", "SELECT count(md5) FROM touched");
    ensure!(read.await.is_err(), "a damaged table was read");
    // The block is at the beginning of the file, or the superblock's, which cannot be decoded.
    is_told(&system, &id, &[&label, path, "byte 0"]).await?;
    let read = system.sql(&detail, "postgres", "SELECT sum(g) FROM untouched");
    ensure!(read.await? == "1800030000");
    let detail = system.session(&id).await?.context("the session")?;
    ensure!(detail.summary.status == SessionStatus::Published);
    let output = system.explorer(&["unpublish", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_backup_that_pgbackrest_expires_under_its_mount_fails_loudly_and_others_go_on()
-> Result<()> {
    let stage = stage(Layout::Plain)?;
    let expired = stage.backup(1, &["--type=full", "--compress-type=none"])?;
    let stays = stage.backup(1, &["--type=full", "--compress-type=none"])?;
    let system = system(&stage).await?;
    let (first, first_mount) = system.mount(&["--backup", &expired]).await?;
    let (second, second_mount) = system.mount(&["--backup", &stays]).await?;
    let set = format!("--set={expired}");
    stage.run(&["expire", "--repo=1", &set])?;
    let gone = stage
        .repository(1)
        .join("backup")
        .join(STANZA)
        .join(&expired);
    ensure!(!gone.exists(), "pgbackrest has not expired it");
    let path = stage
        .cluster()
        .psql("postgres", "SELECT pg_relation_filepath('touched')")?;
    let path = path.trim();
    let error = std::fs::read(first_mount.data_directory.join(path));
    let error = error.err().context("an expired file was read")?;
    ensure!(error.raw_os_error() == Some(5), "{error}");
    is_told(&system, &first, &[&expired, path, "expired"]).await?;
    is_whole(&stage, &stays, &second_mount.data_directory)?;
    for id in [&first, &second] {
        let output = system.explorer(&["unpublish", id]).await?;
        ensure!(output.status.success(), "{output:?}");
    }
    Ok(())
}

/// Every file of the mount that a restore has too is the same.
fn is_whole(stage: &Stage, label: &str, mounted: &Path) -> Result<()> {
    let restored = stage.restore(1, label)?;
    let restored = restored.path().join("data");
    let mut find = Command::new("find");
    find.arg(&restored).args(["-type", "f", "-printf", "%P\n"]);
    let names = String::from_utf8(run(&mut find)?.stdout)?;
    let mut compared = 0;
    for name in names.lines() {
        // restore changes these itself, and takes WAL from elsewhere.
        if matches!(name, "global/pg_control" | "postgresql.auto.conf") || name.contains("pg_wal") {
            continue;
        }
        let wanted = std::fs::read(restored.join(name))?;
        ensure!(
            std::fs::read(mounted.join(name))? == wanted,
            "{name} differs"
        );
        compared += 1;
    }
    ensure!(compared > 900, "{compared} files");
    Ok(())
}
