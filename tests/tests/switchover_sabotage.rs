//! Switchovers that somebody or something stands in the way of: each goes on, or goes back and says why. No commit is lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus};
use common::problem::ErrorCode;
use rustix::process::{Pid, Signal, kill_process};
use tests::history::History;
use tests::ledger::Ledger;
use tests::leftovers;
use tests::postgres::{as_postgres, run};
use tests::recoverable::{DATABASE, World};
use tests::wait;

/// A world with a recovery that is ready, its clients at work, and what it tells.
struct Ready {
    history: History,
    ledger: Ledger,
    id: String,
    detail: SessionDetail,
    world: World,
}

impl Ready {
    async fn new() -> Result<Self> {
        let world = World::new(15).await?;
        let history = History::open(&world.system).await?;
        let id = world.recover("manual").await?;
        let detail = world
            .system
            .reaches(&id, SessionStatus::ReadyForSwitchover)
            .await?;
        let ledger = Ledger::open(world.original.port(), DATABASE, 3);
        wait::until("clients work", Duration::from_secs(30), async || {
            ledger.acknowledged() > 50
        })
        .await?;
        Ok(Self {
            history,
            ledger,
            id,
            detail,
            world,
        })
    }

    /// The sockets' directory is common to the published instance and the standby.
    fn psql(&self, port: u16, sql: &str) -> Result<String> {
        let published = self.detail.published.as_ref().context("published")?;
        let output = run(as_postgres(&self.world.installation.bin.join("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", sql])
            .arg("-h")
            .arg(&published.socket_directory)
            .args(["-p", &port.to_string()]))?;
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// The port in the name of the standby's socket.
    fn standby_port(&self) -> Result<u16> {
        let published = self.detail.published.as_ref().context("published")?;
        std::fs::read_dir(&published.socket_directory)?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_prefix(".s.PGSQL.")?.parse().ok()
            })
            .find(|port| *port != published.port)
            .context("the standby has no socket")
    }

    async fn goes_on(&self) -> Result<()> {
        let before = self.ledger.acknowledged();
        wait::until("clients go on", Duration::from_secs(60), async || {
            self.ledger.acknowledged() > before + 20
        })
        .await
    }

    /// The switchover is ordered again and completes; the account agrees.
    async fn completes(self) -> Result<()> {
        let output = self
            .world
            .system
            .explorer(&["switchover", &self.id])
            .await?;
        ensure!(output.status.success(), "{output:?}");
        self.ends_well().await
    }

    async fn ends_well(self) -> Result<()> {
        self.goes_on().await?;
        let detail = self
            .world
            .system
            .reaches(&self.id, SessionStatus::Completed)
            .await?;
        self.history.is_gapless(&self.id)?;
        self.ledger.close().await?;
        let switched_over = detail.recovery.and_then(|recovery| recovery.switched_over);
        self.world
            .is_the_original_again(switched_over.context("switched over")?.timeline)
    }
}

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
    ready.psql(port, "SELECT pg_wal_replay_resume()")?;
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
    let mut ready = Ready::new().await?;
    let order = ["switchover", &ready.id, "--no-wait"];
    let output = ready.world.system.explorer(&order).await?;
    ensure!(output.status.success(), "{output:?}");
    ready
        .history
        .until(&ready.id, "step_started stop_published")
        .await?;
    ready.world.system.recovery_svc.kill();
    ready.world.system.mount_svc.kill();
    ensure!(
        !leftovers::processes(Path::new(&ready.id)).is_empty(),
        "the mount is there"
    );
    ready.world.system.recovery_svc.start_again()?;
    ready.world.system.mount_svc.start_again()?;
    ready.ends_well().await
}
