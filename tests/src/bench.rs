//! `./bench`: what the product is compared to, measured in turns with it on the same machine.
//!
//! [`line`] is a line of the table and what is wanted of it, [`plan`] every line and the sizes, [`stage`] what all measurements
//! need (backups, a system, native instances). Each other module measures the lines of one [`plan::Group`]; those about repositories of
//! other tools are in [`repositories`].

mod base_backup;
mod commands;
mod cpu_bound;
mod first_query;
pub mod line;
mod memory;
pub mod plan;
mod repositories;
mod scan;
mod server;
pub mod stage;
mod switchover;
mod terabyte;
mod throughput;

use std::collections::BTreeSet;

use anyhow::Result;

use line::Ledger;
use plan::Group;
pub use repositories::memory::memory_of;
use stage::Stage;

/// Measures every line that the ledger wants, group by group; gives the groups that failed with the reason.
pub async fn run(stage: &mut Stage, ledger: &mut Ledger) -> Vec<(Group, anyhow::Error)> {
    let groups: BTreeSet<Group> = ledger.wanted().map(|wanted| wanted.group).collect();
    let mut failed = Vec::new();
    for group in groups {
        stage.say(&format!("{group:?}"));
        if let Err(error) = measure(group, stage, ledger).await {
            stage.say(&format!("{group:?} failed: {error:#}"));
            failed.push((group, error));
        }
    }
    failed
}

async fn measure(group: Group, stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    match group {
        Group::FirstQuery => first_query::measure(stage, ledger).await,
        Group::Terabyte => terabyte::measure(stage, ledger).await,
        Group::Throughput => throughput::measure(stage, ledger).await,
        Group::CpuBound => cpu_bound::measure(stage, ledger).await,
        Group::Scan => scan::measure(stage, ledger).await,
        Group::BaseBackup => base_backup::measure(stage, ledger).await,
        Group::Switchover => switchover::measure(stage, ledger).await,
        Group::Memory => memory::measure(stage, ledger).await,
        Group::Commands => commands::measure(stage, ledger).await,
        Group::RepositoryFirstQuery => repositories::first_query::measure(stage, ledger).await,
        Group::RepositoryReads => repositories::reads::measure(stage, ledger),
        Group::RepositoryMemory => repositories::memory::measure(stage, ledger),
    }
}
