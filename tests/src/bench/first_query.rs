//! From the command to the first query's answer, against copying or extracting the backup and starting it.

use std::time::Instant;

use anyhow::Result;

use super::line::Ledger;
use super::plan::{FORMATS, first_query_name};
use super::stage::Stage;
use crate::system::TestSystem;

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scales = stage.sizes.scales;
    let mut pairs = Vec::new();
    for (format, _) in FORMATS {
        let flatness = ledger.wants(&flatness_name(format));
        for scale in scales {
            if flatness || ledger.wants(&first_query_name(format, scale)) {
                stage.source(scale)?;
                pairs.push((format, scale));
            }
        }
    }
    let system = stage.system().await?;
    for round in 1..=stage.sizes.rounds {
        // What was measured before leaves its trace (memory that is fresh, a disk that still writes): nothing comes always after the same.
        pairs.rotate_left(1);
        for (format, scale) in &pairs {
            stage.say(&format!(
                "round {round}: first query, {format}, scale {scale}"
            ));
            one_round(stage, ledger, &system, format, *scale).await?;
        }
    }
    for (format, _) in FORMATS {
        flatness(ledger, format, scales);
    }
    Ok(())
}

fn flatness_name(format: &str) -> String {
    format!("first-query/{format}/flatness")
}

async fn one_round(
    stage: &mut Stage,
    ledger: &mut Ledger,
    system: &TestSystem,
    format: &str,
    scale: u32,
) -> Result<()> {
    let label = Stage::label(scale, format);
    let name = first_query_name(format, scale);
    stage.drop_caches();
    let began = Instant::now();
    let published = stage.publish(system, &label).await?;
    published.server.first_query()?;
    ledger.ours(&name, began.elapsed().as_secs_f64());
    published.end().await?;

    stage.drop_caches();
    let began = Instant::now();
    let native = stage.restore(&label)?;
    native.start()?;
    native.server.first_query()?;
    ledger.peer(&name, began.elapsed().as_secs_f64());
    Ok(())
}

// The slowest of the medians over the fastest.
fn flatness(ledger: &mut Ledger, format: &str, scales: [u32; 3]) {
    let spread = |values: Vec<f64>| {
        let most = values.iter().copied().reduce(f64::max)?;
        let least = values.iter().copied().reduce(f64::min)?;
        (values.len() == scales.len()).then_some(most / least)
    };
    let medians = scales.map(|scale| ledger.medians(&first_query_name(format, scale)));
    let ours = spread(medians.iter().filter_map(|(ours, _)| *ours).collect());
    let peer = spread(medians.iter().filter_map(|(_, peer)| *peer).collect());
    if let (Some(ours), Some(peer)) = (ours, peer) {
        ledger.ours(&flatness_name(format), ours);
        ledger.peer(&flatness_name(format), peer);
    }
}
