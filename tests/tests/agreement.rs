//! The main proof: a large and varied backup, taken under load as directory and as tar, is published, and everything that can be
//! compared with the original agrees: heaps, B-trees, page checksums, a dump. Neither the original nor the backup is touched.

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

/// Says what takes how long: the proof is also a measurement.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, what: &str) {
        println!("{what}: {} ms", self.0.elapsed().as_millis());
        self.0 = Instant::now();
    }
}

async fn agrees(major: u32) -> Result<()> {
    let installation = installation(major)?;
    let mut clock = Clock(Instant::now());
    let original = Original::make(&installation)?;
    clock.lap("make the original and its backups");
    let originals_before = original.hash()?;
    let backups_before = original.backups_hash()?;
    clock.lap("hash the original and its backups");
    let options = SystemOptions {
        target_lines: format!("program_directories = [\"{}\"]", installation.bin.display()),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(original.repository(), options).await?;
    clock.lap("start the system");
    for backup in ["directory", "tar"] {
        files_agree_with_the_manifest(&system, &installation, backup).await?;
        clock.lap("mount the files and check them against the manifest");
        published_agrees(&system, &original, &installation, backup).await?;
    }
    ensure!(
        original.hash()? == originals_before,
        "the original's directories were changed"
    );
    ensure!(
        original.backups_hash()? == backups_before,
        "the backups were changed"
    );
    Ok(())
}

/// Every file that the mount shows is the one whose checksum the manifest has.
async fn files_agree_with_the_manifest(
    system: &TestSystem,
    installation: &Installation,
    backup: &str,
) -> Result<()> {
    let arguments = [
        "mount",
        "--repository",
        "main",
        "--backup",
        backup,
        "--target",
        "here",
        "--no-wait",
    ];
    let lines = system.explorer_json(&arguments).await?;
    let id = lines
        .iter()
        .find_map(|line| line.get("session_id").and_then(|id| id.as_str()))
        .with_context(|| format!("no session id in {lines:?}"))?;
    let detail = system.reaches(id, SessionStatus::Mounted).await?;
    let mounted = detail.mounted.context("where it is mounted")?;
    let mut verify = tests::postgres::as_postgres(&installation.bin.join("pg_verifybackup"));
    tests::postgres::run(verify.arg("--quiet").arg(&mounted.data_directory))?;
    unpublish(system, id).await
}

async fn published_agrees(
    system: &TestSystem,
    original: &Original,
    installation: &Installation,
    backup: &str,
) -> Result<()> {
    let mut clock = Clock(Instant::now());
    let (id, detail) = system.publish(&["--backup", backup]).await?;
    clock.lap(&format!("publish {backup}"));
    tell_timings(&detail);
    let instance = Instance::new(system, installation, &detail)?;
    instance.checks_pages_and_has_every_relation().await?;
    clock.lap("look around");
    instance.scan_speed().await?;
    clock.lap("scan the large table twice");
    ensure!(
        instance.dump()? == original.dump,
        "the dump of {backup} differs from the original's"
    );
    clock.lap("dump and compare");
    instance.unlogged_tables_are_empty_and_usable().await?;
    instance.balances_agree().await?;
    instance.check_heaps_and_b_trees()?;
    clock.lap("pg_amcheck");
    instance.load_heavily().await?;
    clock.lap("heavy load");
    instance.balances_agree().await?;
    instance.check_heaps_and_b_trees()?;
    clock.lap("pg_amcheck again");
    instance.stop()?;
    instance.check_page_checksums()?;
    clock.lap("stop and pg_checksums");
    // The loss of the instance is seen first, so that the end of the session does not race with it.
    system
        .reaches(&id, SessionStatus::WaitingForManualRetry)
        .await?;
    unpublish(system, &id).await?;
    clock.lap("unpublish");
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

