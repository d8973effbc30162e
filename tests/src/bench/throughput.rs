//! Transactions per second of a published instance and of the same data natively, on one disk, in turns.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use super::line::Ledger;
use super::plan::LOADS;
use super::server::{Native, Published, Server};
use super::stage::{SHARED_BUFFERS_MIB, Stage};
use crate::system::TestSystem;

/// What a warm instance does not get: the end of each file, so that none is complete.
const LEFT_BYTES: u64 = 16 * 1024;

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.load_scale;
    stage.source(scale)?;
    let label = Stage::label(scale, "directory");
    let native = stage.restore(&label)?;
    native.start()?;
    // Warm is without copies in the background, which would make it hydrated after a while.
    for (state, policy) in [("hydrated", ""), ("warm", "hydrate = \"none\"")] {
        if LOADS
            .iter()
            .any(|(load, _)| ledger.wants(&name(load, state)))
        {
            let system = stage.system_with(SHARED_BUFFERS_MIB, policy).await?;
            let published = stage.publish(&system, &label).await?;
            read_files(&published.data_directory, state)?;
            if state == "hydrated" {
                published.is_hydrated().await?;
                let_all_be_opened_anew(&published.server)?;
            }
            in_turns(stage, ledger, state, &published, &native)?;
            published.end().await?;
        }
    }
    let system = stage.system().await?;
    for round in 1..=stage.sizes.rounds {
        for (load, arguments) in LOADS {
            if ledger.wants(&name(load, "first-minute")) {
                stage.say(&format!("round {round}: {load}, first minute from cold"));
                first_minute(stage, ledger, &system, &native, (load, arguments)).await?;
            }
        }
    }
    Ok(())
}

fn name(load: &str, state: &str) -> String {
    format!("{load}/{state}")
}

fn in_turns(
    stage: &Stage,
    ledger: &mut Ledger,
    state: &str,
    published: &Published<'_>,
    native: &Native,
) -> Result<()> {
    let (ours, theirs) = (&published.server, &native.server);
    let seconds = stage.sizes.load_s;
    for round in 1..=stage.sizes.rounds {
        for (load, arguments) in LOADS {
            let name = name(load, state);
            if !ledger.wants(&name) {
                continue;
            }
            stage.say(&format!("round {round}: {load}, {state}"));
            // Both begin with nothing left to write, and each with all in memory: a machine may take away what lay idle during
            // the other's turn.
            ours.sql("CHECKPOINT")?;
            theirs.sql("CHECKPOINT")?;
            read_files(&published.data_directory, state)?;
            ledger.ours(&name, ours.pgbench(arguments, seconds)?);
            read_files(&native.data_directory(), state)?;
            ledger.peer(&name, theirs.pgbench(arguments, seconds)?);
        }
    }
    Ok(())
}

async fn first_minute(
    stage: &mut Stage,
    ledger: &mut Ledger,
    system: &TestSystem,
    native: &Native,
    (load, arguments): (&str, &[&str]),
) -> Result<()> {
    let label = Stage::label(stage.sizes.load_scale, "directory");
    let seconds = stage.sizes.cold_s;
    native.stop("fast")?;
    stage.drop_caches();
    let published = stage.publish(system, &label).await?;
    let tps = published.server.pgbench(arguments, seconds)?;
    ledger.ours(&name(load, "first-minute"), tps);
    published.end().await?;
    stage.drop_caches();
    native.start()?;
    let tps = native.server.pgbench(arguments, seconds)?;
    ledger.peer(&name(load, "first-minute"), tps);
    Ok(())
}

/// Reads every file: to its end, or, `warm`, without its last bytes.
pub(super) fn read_files(directory: &Path, state: &str) -> Result<()> {
    let left = match state {
        "warm" => LEFT_BYTES,
        _ => 0,
    };
    let mut waiting = vec![directory.to_owned()];
    let mut buffer = vec![0; 1 << 20];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                // PostgreSQL may have removed it since.
                let Ok(file) = File::open(entry.path()) else {
                    continue;
                };
                let length = file.metadata()?.len().saturating_sub(left);
                let mut file = file.take(length);
                while file.read(&mut buffer).context("read a file")? > 0 {}
            }
        }
    }
    Ok(())
}

/// Dropping a database makes every backend close its files: those that are complete are served by the kernel from then on.
pub(super) fn let_all_be_opened_anew(server: &Server) -> Result<()> {
    server.sql("CREATE DATABASE passing")?;
    server.sql("DROP DATABASE passing")?;
    Ok(())
}
