//! `pg_basebackup` from an instance just published, against one from the same data natively with cold caches.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::line::Ledger;
use super::server::Server;
use super::stage::Stage;

const NAME: &str = "pg_basebackup/untouched";

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.load_scale;
    stage.source(scale)?;
    let label = Stage::label(scale, "directory");
    let system = stage.system().await?;
    let native = stage.restore(&label)?;
    native.start()?;
    for round in 1..=stage.sizes.rounds {
        stage.say(&format!("round {round}: {NAME}"));
        native.stop("fast")?;
        let published = stage.publish(&system, &label).await?;
        stage.drop_caches();
        ledger.ours(NAME, backup_speed(&published.server)?);
        published.end().await?;
        native.start()?;
        stage.drop_caches();
        ledger.peer(NAME, backup_speed(&native.server)?);
    }
    Ok(())
}

/// MiB per second of a backup that nobody writes to a disk, so that only reading is measured.
fn backup_speed(server: &Server) -> Result<f64> {
    let began = Instant::now();
    let arguments = [
        "-D",
        "-",
        "-Ft",
        "-X",
        "none",
        "--checkpoint=fast",
        "--no-sync",
    ];
    let mut backup = server
        .client("pg_basebackup")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It remarks each time that the WAL is not in it.
        .stderr(Stdio::null())
        .spawn()?;
    let mut bytes = 0;
    if let Some(mut output) = backup.stdout.take() {
        bytes = std::io::copy(&mut output, &mut std::io::sink())?;
    }
    let status = backup.wait()?;
    ensure!(status.success(), "pg_basebackup ended with {status}");
    let mib = u32::try_from(bytes >> 20)?;
    Ok(f64::from(mib) / began.elapsed().as_secs_f64())
}
