//! Volumes that fill up during an instant recovery: it goes back or waits, says why, and completes when there is room again.

use std::time::Duration;

use anyhow::{Context, Result};
use common::messages::Step;
use common::problem::Problem;
use tempfile::TempDir;
use tests::gate::{Moment, request_of};
use tests::ready::Ready;
use tests::recoverable::{World, WorldOptions, private};
use tests::volume::Volume;
use tests::wait;

const VOLUME_BYTES: u64 = 768 << 20;
const SMALL_WAL: &str = "settings = { max_wal_size = \"64MB\", min_wal_size = \"32MB\" }\n";
const LARGE: &str = "CREATE TABLE large AS SELECT repeat('x', 500) FROM generate_series(1, 80000)";
/// What the system says of a volume that is full.
const REASON: &str = "No space left on device";
const LIMIT: Duration = Duration::from_secs(90);

/// How often the session has said that something is wrong.
fn complaints(ready: &Ready) -> Vec<Problem> {
    let heard = ready.history.of(&ready.id);
    heard
        .iter()
        .filter_map(|heard| heard.problem().cloned())
        .collect()
}

/// Waits until the session says that a volume is full.
async fn says_why(ready: &Ready, complaints_before: usize) -> Result<()> {
    let what = "it is told that the volume is full";
    let said = wait::until(what, LIMIT, async || {
        let new = complaints(ready).split_off(complaints_before);
        new.iter().any(|problem| problem.message.contains(REASON))
    });
    said.await.with_context(|| ready.story())
}

/// The volume is full from this step on until the session has said so.
async fn full_at(ready: &Ready, volume: &Volume, step: Step, next: Option<Step>) -> Result<()> {
    let gate = ready.world.system.gate()?;
    gate.holds().await?;
    ready.is_in(step).await?;
    let complaints_before = complaints(ready).len();
    let full = volume.keep_full()?;
    if step == Step::Freeze && volume.holds(&ready.final_directory()) {
        // More than what the standby has made room for already.
        ready.psql(ready.world.original.port(), LARGE)?;
    }
    if let (true, Some(next)) = (is_final(step), next) {
        gate.want(Moment::Before, request_of(next)?)?;
    }
    gate.release()?;
    says_why(ready, complaints_before).await?;
    full.give_back()
}

fn is_final(step: Step) -> bool {
    matches!(step, Step::Settle | Step::StartFinal)
}

async fn sabotaged_at(ready: Ready, volume: &Volume, steps: &[Step]) -> Result<()> {
    let gate = ready.world.system.gate()?;
    for (number, step) in steps.iter().enumerate() {
        if *step != Step::StartFinal {
            gate.want(Moment::Before, request_of(*step)?)?;
            ready.order().await?;
        }
        let next = steps.get(number + 1).copied();
        full_at(&ready, volume, *step, next)
            .await
            .with_context(|| format!("full at {step}"))?;
        if !is_final(*step) {
            ready.is_ready_again().await?;
        }
    }
    gate.is_open()?;
    ready.ends_well().await
}

/// A world whose original, and so its standby, has a small volume of its own; to be dropped from the last to the first.
async fn on_small_volume() -> Result<(TempDir, Volume, World)> {
    let ground = private("pginstant-small-")?;
    let volume = Volume::mount(
        &ground.path().join("image"),
        &ground.path().join("volume"),
        VOLUME_BYTES,
    )?;
    let options = WorldOptions {
        gate: true,
        target_lines: SMALL_WAL.to_owned(),
        original_in: Some(ground.path().join("volume")),
        ..WorldOptions::default()
    };
    let world = World::with(15, options).await?;
    Ok((ground, volume, world))
}

#[tokio::test]
async fn a_full_volume_of_the_standby_makes_a_switchover_go_back_or_wait_until_there_is_room()
-> Result<()> {
    let (_ground, volume, world) = on_small_volume().await?;
    let ready = Ready::of(world).await?;
    sabotaged_at(
        ready,
        &volume,
        &[Step::Freeze, Step::Settle, Step::StartFinal],
    )
    .await?;
    volume.unmount()
}

#[tokio::test]
async fn a_full_volume_of_the_write_cache_makes_a_switchover_go_back_or_wait_until_there_is_room()
-> Result<()> {
    let options = WorldOptions {
        gate: true,
        target_lines: SMALL_WAL.to_owned(),
        ..WorldOptions::default()
    };
    let world = World::with(15, options).await?;
    let volume = Volume::mount(
        &world.system.path("volume.img"),
        &world.system.cache_root(),
        VOLUME_BYTES,
    )?;
    let ready = Ready::of(world).await?;
    sabotaged_at(
        ready,
        &volume,
        &[Step::Freeze, Step::StopPublished, Step::Settle],
    )
    .await
}

#[tokio::test]
async fn a_volume_that_fills_up_during_the_copy_keeps_nobody_from_working_and_the_copy_begins_anew()
-> Result<()> {
    let (_ground, volume, world) = on_small_volume().await?;
    let gate = world.system.gate()?;
    gate.want(Moment::Before, "BeginReplication")?;
    let copying = Ready::to_be(world).await?;
    gate.holds().await?;
    // Enough to begin with.
    let filler = volume.fill_to(16 << 20)?;
    gate.release()?;
    says_why(&copying, 0).await?;
    copying.goes_on().await?;
    std::fs::remove_file(filler)?;
    copying.is_ready_again().await?;
    copying.completes().await?;
    volume.unmount()
}
