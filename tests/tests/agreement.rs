//! The main proof: a large and varied backup, taken under load as directory and as tar, is published, and everything that can be
//! compared with the original agrees: heaps, B-trees, page checksums, a dump. Neither the original nor the backup is touched.

#![allow(clippy::print_stdout)] // The proof is also a measurement, told on the output.

mod agreement {
    pub(crate) mod original;
    pub(crate) mod published;
}

use std::time::Instant;

use agreement::original::Original;
use agreement::published::Instance;
use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus};
use tests::postgres::{Installation, installations};
use tests::system::{SystemOptions, TestSystem};

#[tokio::test]
async fn everything_that_is_published_from_backups_of_postgresql_15_agrees_with_the_original()
-> Result<()> {
    agrees(15).await
}

#[tokio::test]
async fn everything_that_is_published_from_backups_of_postgresql_18_agrees_with_the_original()
-> Result<()> {
    agrees(18).await
}

fn installation(major: u32) -> Result<Installation> {
    installations()
        .into_iter()
        .find(|installation| installation.major == major)
        .with_context(|| format!("PostgreSQL {major} is not installed; ./test installs it"))
}

/// What was found so far, and how long it took. A run costs minutes, so it goes on after a finding.
struct Protocol {
    since: Instant,
    findings: Vec<String>,
}

impl Protocol {
    fn note(&mut self, what: &str, result: Result<()>) {
        println!("{what}: {} ms", self.since.elapsed().as_millis());
        if let Err(error) = result {
            println!("  {error:#}");
            self.findings.push(format!("{what}: {error:#}"));
        }
        self.since = Instant::now();
    }
}

async fn agrees(major: u32) -> Result<()> {
    let installation = installation(major)?;
    let mut protocol = Protocol {
        since: Instant::now(),
        findings: Vec::new(),
    };
    let original = Original::make(&installation)?;
    protocol.note("make the original and its backups", Ok(()));
    let before = (original.hash()?, original.backups_hash()?);
    protocol.note("hash the original and its backups", Ok(()));
    let options = SystemOptions {
        target_lines: format!("program_directories = [\"{}\"]", installation.bin.display()),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(original.repository(), options).await?;
    protocol.note("start the system", Ok(()));
    for backup in ["directory", "tar"] {
        published_agrees(&system, &original, &installation, backup, &mut protocol).await?;
        let verified = files_agree_with_the_manifest(&system, &original, &installation, backup);
        protocol.note("mount files and verify them", verified.await);
    }
    let after = (original.hash()?, original.backups_hash()?);
    protocol.note("hash again", Ok(()));
    ensure!(after.0 == before.0, "the original's directories changed");
    ensure!(after.1 == before.1, "the backups changed");
    ensure!(
        protocol.findings.is_empty(),
        "{}",
        protocol.findings.join("\n")
    );
    Ok(())
}

/// Every file that the mount shows is the one whose checksum the manifest has.
async fn files_agree_with_the_manifest(
    system: &TestSystem,
    original: &Original,
    installation: &Installation,
    backup: &str,
) -> Result<()> {
    let (id, mounted) = system.mount(&["--backup", backup]).await?;
    let mut verify = tests::postgres::as_postgres(&installation.bin.join("pg_verifybackup"));
    // The manifest is the backup's, not the instance's: the mount does not show it.
    let manifest = original.repository().join(backup).join("backup_manifest");
    // Without the WAL, which recovery reads anyway, and without the map to the original's places, which the mount hides.
    verify
        .args(["--quiet", "--no-parse-wal", "--ignore=tablespace_map", "-m"])
        .arg(manifest);
    let verified = tests::postgres::run(verify.arg(&mounted.data_directory)).map(drop);
    unpublish(system, &id).await?;
    verified
}

async fn published_agrees(
    system: &TestSystem,
    original: &Original,
    installation: &Installation,
    backup: &str,
    protocol: &mut Protocol,
) -> Result<()> {
    let (id, detail) = system.publish(&["--backup", backup]).await?;
    protocol.note(&format!("publish {backup}"), Ok(()));
    tell_timings(&detail);
    let instance = Instance::new(system, installation, &detail)?;
    let result = instance.checks_pages_and_has_every_relation().await;
    protocol.note("relations, tablespaces and checksums", result);
    let result = instance.large_table_agrees(original).await;
    protocol.note("every row of the large table", result);
    protocol.note("dump", same_dump(&instance, original));
    let result = instance.unlogged_tables_are_empty_and_usable().await;
    protocol.note("unlogged tables", result);
    protocol.note("balances", instance.balances_agree().await);
    protocol.note("pg_amcheck", instance.check_heaps_and_b_trees());
    protocol.note("heavy load", instance.load_heavily().await);
    protocol.note("balances after it", instance.balances_agree().await);
    instance.stop()?;
    protocol.note("page checksums", instance.check_page_checksums());
    // The loss of the instance is seen first, so that the end of the session does not race with it.
    system
        .reaches(&id, SessionStatus::WaitingForManualRetry)
        .await?;
    protocol.note("unpublish", unpublish(system, &id).await);
    Ok(())
}

fn same_dump(instance: &Instance<'_>, original: &Original) -> Result<()> {
    ensure!(
        instance.dump()? == original.dump,
        "it differs from the original's"
    );
    Ok(())
}

async fn unpublish(system: &TestSystem, id: &str) -> Result<()> {
    let output = system.explorer(&["unpublish", id]).await?;
    ensure!(output.status.success(), "{output:?}");
    let detail = system
        .session(id)
        .await?
        .context("the session is still known")?;
    ensure!(
        detail.summary.status.is_final(),
        "the session is {}",
        detail.summary.status
    );
    system.nothing_is_left_of(id)
}

fn tell_timings(detail: &SessionDetail) {
    for step in &detail.steps {
        println!("  step {step:?}");
    }
    for line in &detail.log {
        println!("  {} {} {}", line.at, line.event_type, line.text);
    }
}
