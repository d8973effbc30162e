//! Switchovers that somebody or something stands in the way of: each goes on, or goes back and says why. No commit is lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionStatus, Step};
use common::problem::ErrorCode;
use rustix::process::{Pid, Signal, kill_process};
use tests::gate::{Moment, request_of};
use tests::leftovers;
use tests::postgres::as_postgres;
use tests::ready::Ready;
use tests::recoverable::{DATABASE, World, WorldOptions};
use tests::{victims, wait};

#[tokio::test]
async fn a_standby_that_does_not_replay_makes_the_switchover_go_back_and_users_go_on() -> Result<()>
{
    let ready = Ready::new().await?;
    let port = ready.standby_port()?;
    ready.psql(port, "SELECT pg_wal_replay_pause()")?;
    let output = ready
        .world
        .system
        .explorer(&["switchover", &ready.id])
        .await?;
    ensure!(!output.status.success(), "{output:?}");
    let detail = ready
        .world
        .system
        .reaches(&ready.id, SessionStatus::ReadyForSwitchover)
        .await;
    // A standby that stands still is not in step: it may still be catching up.
    drop(detail);
    let failed = ready.history.until(&ready.id, "switchover_failed").await?;
    ensure!(
        matches!(&failed.event.body, common::messages::EventBody::SwitchoverFailed(failed)
            if failed.problem.code == ErrorCode::SwitchoverFailed),
        "{failed:?}"
    );
    ready.goes_on().await?;
    // What it has not replayed yet may conflict with any query.
    let resumed = wait::until("replay goes on", Duration::from_secs(60), async || {
        ready.psql(port, "SELECT pg_wal_replay_resume()").is_ok()
    });
    resumed.await?;
    ready
        .world
        .system
        .reaches(&ready.id, SessionStatus::ReadyForSwitchover)
        .await?;
    ready.completes().await
}

#[tokio::test]
async fn a_standby_killed_as_the_switchover_begins_makes_it_go_back_and_it_is_ready_again()
-> Result<()> {
    let ready = Ready::new().await?;
    let data = ready.world.original.data_directory();
    let text = std::fs::read_to_string(data.join("postmaster.pid"))?;
    let pid: i32 = text.lines().next().context("a pid")?.parse()?;
    kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL)?;
    let output = ready
        .world
        .system
        .explorer(&["switchover", &ready.id])
        .await?;
    // Seen by the watch before the order, the loss of the standby is mended first, and the order refused.
    ensure!(!output.status.success(), "{output:?}");
    ready.goes_on().await?;
    ready
        .world
        .system
        .reaches(&ready.id, SessionStatus::ReadyForSwitchover)
        .await?;
    ready.completes().await
}

#[tokio::test]
async fn sessions_that_override_read_only_or_refuse_to_end_do_not_stop_a_switchover() -> Result<()>
{
    let ready = Ready::new().await?;
    let port = ready.world.original.port();
    let stubborn = "SET default_transaction_read_only = off; SET statement_timeout = 0; \
        CREATE TABLE stubborn (number int); \
        DO $$ BEGIN FOR number IN 1..100000 LOOP \
          BEGIN INSERT INTO stubborn VALUES (number); PERFORM pg_sleep(0.01); \
          EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
    let connection = format!("host=127.0.0.1 port={port} user=postgres dbname={DATABASE}");
    let mut child = as_postgres(&ready.world.installation.bin.join("psql"))
        .args(["-X", "-c", stubborn, &connection])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    wait::until("the stubborn one works", Duration::from_secs(30), async || {
        ready
            .psql(port, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%stubborn%' AND pid <> pg_backend_pid()")
            .is_ok_and(|count| count != "0")
    })
    .await?;
    let completed = ready.completes().await;
    // Its connection is gone: it ends by itself.
    child.kill().ok();
    child.wait()?;
    completed
}

#[tokio::test]
async fn both_services_killed_in_the_middle_of_a_switchover_go_on_with_it() -> Result<()> {
    let options = WorldOptions {
        gate: true,
        ..WorldOptions::default()
    };
    let mut ready = Ready::of(World::with(15, options).await?).await?;
    let gate = ready.world.system.gate()?;
    gate.want(Moment::Before, request_of(Step::StopPublished)?)?;
    ready.order().await?;
    let held = gate.holds().await?;
    ready.is_in(Step::StopPublished).await?;
    ready.world.system.recovery_svc.kill();
    ready.world.system.mount_svc.kill();
    victims::kill(held.gate)?;
    gate.release()?;
    ensure!(
        !leftovers::processes(Path::new(&ready.id)).is_empty(),
        "the mount is there"
    );
    ready.world.system.recovery_svc.start_again()?;
    ready.world.system.mount_svc.start_again()?;
    ready.ends_well().await
}
