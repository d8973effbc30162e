//! Memory of supervisor and worker with very many files in the backup, while the instance works and every file is read.
//!
//! Measured as proportional set size: what both share counts once.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::line::{Ledger, median};
use super::stage::{Stage, add_files};
use super::throughput::read_files;
use crate::leftovers;

const LABEL: &str = "many-files";
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.cpu_scale;
    stage.source(scale)?;
    let backup = stage.copy_of(&Stage::label(scale, "directory"), LABEL)?;
    let names = (0..stage.sizes.memory_files).map(|number| (1_000_000 + number).to_string());
    add_files(&backup, names, 8192)?;
    let system = stage.system().await?;
    for round in 1..=stage.sizes.rounds {
        stage.say(&format!("round {round}: memory"));
        let published = stage.publish(&system, LABEL).await?;
        let data = published.data_directory.clone();
        let reading = watched(&published.id, || read_files(&data, "hydrated"))?;
        let seconds = stage.sizes.cold_s;
        let working = watched(&published.id, || {
            published.server.pgbench(&[], seconds).map(drop)
        })?;
        let peak = reading.iter().chain(&working).copied().reduce(f64::max);
        ledger.ours("memory/peak", peak.context("nothing was seen")?);
        ledger.ours("memory/growth", growth(&working)?);
        published.end().await?;
    }
    std::fs::remove_dir_all(&backup)?;
    Ok(())
}

// The last third against the first.
fn growth(seen: &[f64]) -> Result<f64> {
    let third = seen.len() / 3;
    let first = seen.get(..third).and_then(median);
    let last = seen.get(seen.len() - third..).and_then(median);
    match (first, last) {
        (Some(first), Some(last)) => Ok(last / first),
        _ => anyhow::bail!("seen {} times only", seen.len()),
    }
}

/// MiB of both processes, over and over while something is done.
fn watched(session: &str, work: impl FnOnce() -> Result<()> + Send) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        let mut seen = Vec::new();
        loop {
            let is_over = worker.is_finished();
            seen.push(mib(session)?);
            if is_over {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        match worker.join() {
            Ok(result) => result.map(|()| seen),
            Err(_) => anyhow::bail!("the load panicked"),
        }
    })
}

fn mib(session: &str) -> Result<f64> {
    let mut kib = 0;
    let mut found = 0;
    for (pid, line) in leftovers::processes(Path::new(session)) {
        if ![" supervise ", " worker "]
            .iter()
            .any(|word| line.contains(word))
        {
            continue;
        }
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|rest| rest.split_whitespace().next());
        kib += pss.context("no Pss")?.parse::<u32>()?;
        found += 1;
    }
    ensure!(
        found == 2,
        "{found} processes instead of supervisor and worker"
    );
    Ok(f64::from(kib) / 1024.0)
}
