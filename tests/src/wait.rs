//! Waiting for a condition, with a deadline and a word about what was missing.

use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits until `holds` says so.
pub async fn until(
    what: &str,
    limit: Duration,
    mut holds: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds().await {
        anyhow::ensure!(
            began.elapsed() < limit,
            "after {} s still missing: {what}",
            limit.as_secs()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Waits until `look` finds something.
pub async fn find<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        anyhow::ensure!(
            began.elapsed() < limit,
            "after {} s still missing: {what}",
            limit.as_secs()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
