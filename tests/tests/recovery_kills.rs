//! Instant recoveries whose processes are killed at random: each completes, and no commit is lost or doubled.
//!
//! `PGINSTANT_TEST_RECOVERY_KILLS` says how many recoveries there are, `PGINSTANT_TEST_RECOVERY_SEED` with which seed they begin;
//! the seed of each is printed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tests::ledger::Ledger;
use tests::leftovers;
use tests::recoverable::{DATABASE, World};
use tests::wait;

const RUNS_DEFAULT: u64 = 3;
const SEED_DEFAULT: u64 = 14_292_277_648_054_053_517;
const LIMIT: Duration = Duration::from_secs(180);

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn a_recovery_completes_without_losing_a_commit_whatever_process_is_killed() -> Result<()> {
    let runs = number("PGINSTANT_TEST_RECOVERY_KILLS").unwrap_or(RUNS_DEFAULT);
    let first = number("PGINSTANT_TEST_RECOVERY_SEED").unwrap_or(SEED_DEFAULT);
    let mut world = World::new(15).await?;
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        say(&format!("PGINSTANT_TEST_RECOVERY_SEED={seed}"));
        one(&mut world, StdRng::seed_from_u64(seed))
            .await
            .with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

async fn one(world: &mut World, mut random: StdRng) -> Result<()> {
    let id = world.recover("auto").await?;
    world.is_online(&id).await?;
    let ledger = Ledger::open(world.original.port(), DATABASE, 3);
    // Anywhere in the two or so seconds that replication and switchover of a small instance take.
    tokio::time::sleep(Duration::from_millis(random.random_range(0..2_500))).await;
    let killed = kill_one(world, &id, &mut random)?;
    let detail = completes(world, &id).await?;
    let before = ledger.acknowledged();
    wait::until("clients go on", Duration::from_secs(60), async || {
        ledger.acknowledged() > before + 20
    })
    .await?;
    let report = ledger.close().await?;
    say(&format!("killed {killed}: {report:?}"));
    let switched_over = detail
        .recovery
        .and_then(|recovery| recovery.switched_over)
        .context("what came of the switchover")?;
    world.system.nothing_is_left_of(&id)?;
    world.is_the_original_again(switched_over.timeline)?;
    std::fs::remove_dir_all(world.moved_aside(&id))?;
    world.original.start()
}

/// Waits for the end; a session that waits by itself is fine, one that waits for someone is not.
async fn completes(world: &World, id: &str) -> Result<SessionDetail> {
    let what = format!("session {id} has completed");
    wait::find(&what, LIMIT, async || {
        let Some(detail) = world.system.session(id).await? else {
            return Ok(None);
        };
        let status = detail.summary.status;
        let stuck = status == SessionStatus::WaitingForManualRetry
            || (status.is_final() && status != SessionStatus::Completed);
        ensure!(
            !stuck,
            "{status}: {:?}\n{:#?}",
            detail.summary.problem,
            detail.log
        );
        Ok((status == SessionStatus::Completed).then_some(detail))
    })
    .await
}

fn kill_one(world: &mut World, id: &str, random: &mut StdRng) -> Result<String> {
    let mut processes = leftovers::processes(Path::new(id));
    processes.sort_unstable();
    let which = random.random_range(0..processes.len() + 2);
    if which >= processes.len() {
        let (service, name) = match which - processes.len() {
            0 => (&mut world.system.mount_svc, "mount-svc"),
            _ => (&mut world.system.recovery_svc, "recovery-svc"),
        };
        service.kill();
        service.start_again()?;
        return Ok(name.to_owned());
    }
    let (pid, line) = processes.get(which).context("a process")?;
    let raw = i32::try_from(*pid).ok().and_then(Pid::from_raw);
    // It may have ended by itself meanwhile.
    kill_process(raw.context("a process id")?, Signal::KILL).ok();
    Ok(line.chars().take(120).collect())
}
