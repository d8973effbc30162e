//! A sequential scan of a table that nobody has touched since publishing, against the same scan natively with cold caches.

use std::time::Instant;

use anyhow::Result;

use super::line::Ledger;
use super::server::Server;
use super::stage::Stage;

const NAME: &str = "scan/untouched";

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
        ledger.ours(NAME, scan_speed(&published.server)?);
        published.end().await?;
        native.start()?;
        stage.drop_caches();
        ledger.peer(NAME, scan_speed(&native.server)?);
    }
    Ok(())
}

/// MiB per second. A column that no index has, so that the heap is read.
fn scan_speed(server: &Server) -> Result<f64> {
    let began = Instant::now();
    let bytes = server.sql(
        "SELECT pg_relation_size('pgbench_accounts') + 0 * count(filler) FROM pgbench_accounts",
    )?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(bytes.parse::<f64>()? / f64::from(1 << 20) / seconds)
}
