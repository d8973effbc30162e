//! Instant recoveries that lose what they stand on: each completes by itself, and no commit is lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus, Step};
use tests::gate::{Gate, Moment, request_of};
use tests::history::History;
use tests::ledger::Ledger;
use tests::recoverable::{DATABASE, World, WorldOptions};
use tests::{leftovers, victims, wait};

const LIMIT: Duration = Duration::from_secs(120);
const CLIENTS: u8 = 3;

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// A recovery that is online and switches over as soon as it can, with clients at work.
struct Online {
    history: History,
    ledger: Ledger,
    gate: Gate,
    id: String,
    detail: SessionDetail,
    world: World,
}

impl Online {
    /// Held at this request to the agent, which may be one before users can work.
    async fn held(moment: Moment, request: &str, target_lines: &str) -> Result<Self> {
        let options = WorldOptions {
            gate: true,
            target_lines: target_lines.to_owned(),
            ..WorldOptions::default()
        };
        let world = World::with(15, options).await?;
        let gate = world.system.gate()?;
        let history = History::open(&world.system).await?;
        gate.want(moment, request)?;
        let id = world.recover("auto").await?;
        let detail = world.is_online(&id).await?;
        let ledger = Ledger::open(world.original.port(), DATABASE, CLIENTS);
        gate.holds().await?;
        Ok(Self {
            history,
            ledger,
            gate,
            id,
            detail,
            world,
        })
    }

    async fn goes_on(&self) -> Result<()> {
        let before = self.ledger.acknowledged();
        wait::until("clients go on", LIMIT, async || {
            self.ledger.acknowledged() > before + 20
        })
        .await
        .with_context(|| format!("{:?}", self.history.words().get(&self.id)))
    }

    /// It completes without anybody's help.
    async fn completes(self) -> Result<()> {
        let detail = self
            .world
            .system
            .reaches(&self.id, SessionStatus::Completed)
            .await?;
        for line in &detail.log {
            say(&format!("  {} {}", line.at, line.text));
        }
        self.goes_on().await?;
        self.history.until(&self.id, "completed").await?;
        self.history.is_gapless(&self.id)?;
        self.ledger.close().await?;
        self.world.system.nothing_is_left_of(&self.id)?;
        let switched_over = detail.recovery.and_then(|recovery| recovery.switched_over);
        self.world
            .is_the_original_again(switched_over.context("switched over")?.timeline)
    }
}

#[tokio::test]
async fn a_published_instance_killed_while_it_is_copied_or_followed_is_started_again_at_once()
-> Result<()> {
    let online = Online::held(Moment::After, "BeginReplication", "").await?;
    let kill = || victims::kill(victims::postmaster(&online.detail)?);
    kill()?;
    online.gate.want(Moment::After, "StartStandby")?;
    online.gate.release()?;
    online.gate.holds().await?;
    kill()?;
    online.gate.release()?;
    online.completes().await
}

#[tokio::test]
async fn a_recovery_goes_on_without_its_broker_and_completes_when_that_is_back() -> Result<()> {
    let mut online = Online::held(Moment::After, "BeginReplication", "").await?;
    online.world.system.broker.kill().await?;
    // It replicates, catches up and switches over by itself, and nobody hears of it.
    online
        .gate
        .want(Moment::After, request_of(Step::StartFinal)?)?;
    online.gate.release()?;
    online.gate.holds().await?;
    online.gate.release()?;
    online.goes_on().await?;
    online.world.system.broker.boot().await?;
    online.world.system.ready().await?;
    // What happened is told in order, nothing is missing.
    online.history.until(&online.id, "switched_over").await?;
    online.completes().await
}

/// Everything of the session dies at once, and the services with it; mounts and what is below /tmp are gone, the write cache stays.
fn lose_power(online: &mut Online) -> Result<()> {
    let data = online.world.original.data_directory();
    let system = &mut online.world.system;
    system.recovery_svc.kill();
    system.mount_svc.kill();
    let (gates, mounts) = (system.path("gate"), system.mount_root());
    for place in [&gates, &mounts, Path::new(&online.id), &data] as [&Path; 4] {
        leftovers::clear(place);
        let left = leftovers::processes(place);
        ensure!(left.is_empty(), "{left:?}");
    }
    ensure!(leftovers::mounts(&mounts).is_empty());
    for entry in std::fs::read_dir(mounts)? {
        std::fs::remove_dir(entry?.path())?;
    }
    online.gate.release()
}

async fn after_the_reboot(online: &mut Online) -> Result<()> {
    let system = &mut online.world.system;
    system.recovery_svc.start_again()?;
    system.mount_svc.start_again()?;
    system.ready().await
}

#[tokio::test]
async fn a_target_that_reboots_again_and_again_finds_its_write_cache_and_the_recovery_completes()
-> Result<()> {
    let mut online = Online::held(Moment::After, "BeginReplication", "").await?;
    for step in [Some(Step::StopStandby), Some(Step::StartFinal), None] {
        lose_power(&mut online)?;
        if let Some(step) = step {
            online.gate.want(Moment::After, request_of(step)?)?;
        }
        after_the_reboot(&mut online).await?;
        if step.is_some() {
            online
                .gate
                .holds()
                .await
                .with_context(|| format!("{:?}", online.history.words().get(&online.id)))?;
        }
    }
    online.completes().await
}

#[tokio::test]
async fn a_repository_that_is_away_is_noticed_by_a_new_mount_svc_only_which_waits_for_it()
-> Result<()> {
    // Nothing is copied in the background: what is replicated comes from the repository.
    let mut online = Online::held(Moment::Before, "BeginReplication", "hydrate = \"none\"").await?;
    let repository = online.world.repository().to_owned();
    let away = repository.with_extension("away");
    std::fs::rename(&repository, &away)?;
    // The backup is open: reads go on. A service that starts now has to open it.
    online.goes_on().await?;
    online.world.system.mount_svc.start_again()?;
    online.gate.release()?;
    let tried = wait::until("mount-svc looks for the backup", LIMIT, async || {
        online
            .world
            .system
            .log("mount-svc")
            .contains("serve pages; trying again")
    });
    let tried = tried.await;
    let copied = online.history.count(&online.id, "step_finished replicate");
    std::fs::rename(&away, &repository)?;
    tried?;
    ensure!(copied == 0, "it was copied without the repository");
    let (history, id) = (&online.history, &online.id);
    history.until(id, "switched_over").await?;
    ensure!(
        history.count(id, "waiting") == 0,
        "{:?}",
        history.words().get(id)
    );
    online.completes().await
}
