//! Instant recovery, whole: online at once, replicated behind, switched over, while clients never stop writing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionStatus, Severity};
use tests::history::History;
use tests::ledger::Ledger;
use tests::leftovers;
use tests::postgres::{as_postgres, give_to_postgres, run};
use tests::recoverable::{DATABASE, World};
use tests::{tree_hash, wait};

const CLIENTS: u8 = 4;

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

async fn recovers_to_the_original_location(major: u32) -> Result<()> {
    let world = World::new(major).await?;
    let id = world.recover("auto").await?;
    world.is_online(&id).await?;
    let ledger = Ledger::open(world.original.port(), DATABASE, CLIENTS);
    let detail = world.system.reaches(&id, SessionStatus::Completed).await?;
    // From here on they work in the final instance.
    let before = ledger.acknowledged();
    wait::until("clients go on", Duration::from_secs(30), async || {
        ledger.acknowledged() > before + 100
    })
    .await?;
    let report = ledger.close().await?;
    for line in &detail.log {
        say(&format!("  {} {}", line.at, line.text));
    }
    let switched_over = detail
        .recovery
        .and_then(|recovery| recovery.switched_over)
        .context("what came of the switchover")?;
    say(&format!(
        "PostgreSQL {major}: {report:?}, {} ms without writes, {} ms without service",
        switched_over.without_writes_ms, switched_over.without_service_ms
    ));
    ensure!(report.acknowledged > 200, "{report:?}");
    ensure!(
        world.moved_aside(&id).join("PG_VERSION").exists(),
        "the original is kept"
    );
    world.system.nothing_is_left_of(&id)?;
    world.is_the_original_again(switched_over.timeline)
}

#[tokio::test]
async fn an_instance_of_postgresql_15_is_recovered_under_load_without_losing_or_doubling_a_commit()
-> Result<()> {
    recovers_to_the_original_location(15).await
}

#[tokio::test]
async fn an_instance_of_postgresql_18_is_recovered_under_load_without_losing_or_doubling_a_commit()
-> Result<()> {
    recovers_to_the_original_location(18).await
}

#[tokio::test]
async fn a_second_recovery_from_the_same_backup_takes_timelines_that_the_archive_does_not_have()
-> Result<()> {
    let mut world = World::new(15).await?;
    let mut timelines = Vec::new();
    for _ in 0..2 {
        let id = world.recover("auto").await?;
        let detail = world.system.reaches(&id, SessionStatus::Completed).await?;
        let switched_over = detail
            .recovery
            .and_then(|recovery| recovery.switched_over)
            .context("what came of the switchover")?;
        timelines.push(switched_over.timeline);
        // It archives its own: a file of that name that is another's would stop it.
        world.is_the_original_again(switched_over.timeline)?;
        std::fs::remove_dir_all(world.moved_aside(&id))?;
        world.original.start()?;
    }
    // The published instance of the second has one of its own as well.
    ensure!(timelines == [3, 5], "{timelines:?}");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_recovery_puts_the_original_back_as_it_was_and_starts_it() -> Result<()> {
    let world = World::new(15).await?;
    world
        .original
        .psql(DATABASE, "CREATE TABLE kept (text text)")?;
    world
        .original
        .psql(DATABASE, "INSERT INTO kept VALUES ('after the backup')")?;
    let id = world.recover("manual").await?;
    world
        .system
        .reaches(&id, SessionStatus::ReadyForSwitchover)
        .await?;
    let aside = tree_hash::of(&world.moved_aside(&id))?;
    // Started again it changes: it is looked at before, when the mount is released last.
    let output = world.system.explorer(&["cancel", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(!world.moved_aside(&id).exists(), "it is put back");
    wait::until("the original runs", Duration::from_secs(30), async || {
        world
            .original
            .psql(DATABASE, "SELECT text FROM kept")
            .ok()
            .as_deref()
            == Some("after the backup")
    })
    .await?;
    ensure!(!aside.is_empty());
    world.system.nothing_is_left_of(&id)?;
    let standby = world.original.data_directory();
    let processes = leftovers::processes(&standby);
    ensure!(!processes.is_empty(), "the original runs as itself");
    Ok(())
}

#[tokio::test]
async fn a_stopped_original_is_byte_identical_after_a_cancelled_recovery() -> Result<()> {
    let world = World::new(15).await?;
    world.original.stop("fast")?;
    let before = tree_hash::of(&world.original.data_directory())?;
    let id = world.recover("manual").await?;
    world
        .system
        .reaches(&id, SessionStatus::ReadyForSwitchover)
        .await?;
    let output = world.system.explorer(&["cancel", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    let after = tree_hash::of(&world.original.data_directory())?;
    ensure!(after == before, "the original changed");
    world.system.nothing_is_left_of(&id)
}

#[tokio::test]
async fn a_published_session_becomes_a_recovery_and_its_switchover_waits_for_the_order()
-> Result<()> {
    let world = World::new(15).await?;
    let port = tests::system::free_port()?.to_string();
    let (id, detail) = world.system.publish(&["--port", &port]).await?;
    world
        .system
        .sql(
            &detail,
            DATABASE,
            "CREATE TABLE written_before AS SELECT 1 one",
        )
        .await?;
    let place = tempfile::Builder::new()
        .prefix("pginstant-final-")
        .tempdir_in("/var/tmp")?;
    give_to_postgres(place.path())?;
    let data_directory = place.path().join("data");
    let data_text = data_directory.to_str().context("a path in UTF-8")?;
    world
        .system
        .explorer_json(&[
            "recover",
            "--from-session",
            &id,
            "--data-directory",
            data_text,
        ])
        .await?;
    let detail = world.system.session(&id).await?.context("known")?;
    ensure!(
        detail.summary.status == SessionStatus::ReadyForSwitchover,
        "{}",
        detail.summary.status
    );
    world
        .system
        .sql(
            &detail,
            DATABASE,
            "CREATE TABLE written_behind AS SELECT 2 two",
        )
        .await?;
    let output = world.system.explorer(&["switchover", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    say(&String::from_utf8_lossy(&output.stdout));
    let sum = run(as_postgres(&world.installation.bin.join("psql")).args([
        "-XAtq",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-d",
        DATABASE,
        "-c",
        "SELECT one + two FROM written_before, written_behind",
    ]));
    // Ended whatever the answer was, so that nothing is left.
    run(as_postgres(&world.installation.bin.join("pg_ctl"))
        .args(["stop", "-w", "-m", "fast", "-D", data_text]))?;
    let sum = String::from_utf8(sum?.stdout)?;
    ensure!(sum.trim() == "3", "{sum}");
    // Another place than the original's: that one has not noticed anything.
    world
        .original
        .psql(DATABASE, "SELECT count(*) FROM ledger")?;
    world.system.nothing_is_left_of(&id)
}

#[tokio::test]
async fn ten_automatic_retries_come_through_the_queue_then_someone_must_ask_and_nothing_is_lost()
-> Result<()> {
    let world = World::new(15).await?;
    let history = History::open(&world.system).await?;
    world.original.stop("fast")?;
    let repository = world.repository().to_owned();
    let away = repository.with_extension("away");
    std::fs::rename(&repository, &away)?;
    let id = world.recover("auto").await?;
    let exhausted = history.until(&id, "retries_exhausted").await;
    std::fs::rename(&away, &repository)?;
    let exhausted = exhausted?;
    ensure!(exhausted.event.head.severity == Severity::Critical);
    let retries = history.count(&id, "retrying");
    ensure!(retries == 10, "{retries} automatic retries");
    let detail = world.system.session(&id).await?.context("known")?;
    ensure!(
        detail.summary.status == SessionStatus::WaitingForManualRetry,
        "{}",
        detail.summary.status
    );
    ensure!(
        world.original.data_directory().join("PG_VERSION").exists(),
        "the original is where it was"
    );
    let output = world.system.explorer(&["retry", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    let detail = world.system.reaches(&id, SessionStatus::Completed).await?;
    history.is_gapless(&id)?;
    let switched_over = detail.recovery.and_then(|r| r.switched_over);
    world.is_the_original_again(switched_over.context("switched over")?.timeline)
}
