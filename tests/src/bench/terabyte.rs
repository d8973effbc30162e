//! The first query of an instance with a terabyte of segments and very many small files: sparse, since only their number and
//! size matter to what is done before the first query.

use std::time::Instant;

use anyhow::Result;

use super::line::Ledger;
use super::stage::{Stage, add_files};

const NAME: &str = "first-query/terabyte";
const LABEL: &str = "terabyte";
const SEGMENT_BYTES: u64 = 1 << 30;

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.scales[0];
    stage.source(scale)?;
    let backup = stage.copy_of(&Stage::label(scale, "directory"), LABEL)?;
    stage.say("making segments and small files");
    let segments = (0..stage.sizes.segments).map(|number| match number {
        0 => "900000".to_owned(),
        number => format!("900000.{number}"),
    });
    add_files(&backup, segments, SEGMENT_BYTES)?;
    let small = (0..stage.sizes.small_files).map(|number| (1_000_000 + number).to_string());
    add_files(&backup, small, 8192)?;
    let measured = rounds(stage, ledger).await;
    std::fs::remove_dir_all(&backup)?;
    measured
}

async fn rounds(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let system = stage.system().await?;
    for round in 1..=stage.sizes.terabyte_rounds {
        stage.say(&format!("round {round}: first query of a terabyte"));
        stage.drop_caches();
        let began = Instant::now();
        let published = stage.publish(&system, LABEL).await?;
        published.server.first_query()?;
        ledger.ours(NAME, began.elapsed().as_secs_f64());
        published.end().await?;

        stage.drop_caches();
        let began = Instant::now();
        let native = stage.restore(LABEL)?;
        native.start()?;
        native.server.first_query()?;
        ledger.peer(NAME, began.elapsed().as_secs_f64());
    }
    Ok(())
}
