//! The relay: brings the outbox to the broker, keeps the order of each session, survives any outage.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outbox::Owed;
use super::{Journal, JournalError};
use crate::bus::{Bus, PublishError};

/// Keys whose messages are published at the same time.
const KEYS_AT_ONCE: usize = 8;
/// How often a message may come back as unroutable before it is taken out of its key's way.
const RETURNS_MAX: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long the relay sleeps when nothing is owed; a commit wakes it earlier.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// What a key has suffered since its last success.
#[derive(Debug, Default, Clone)]
struct Trouble {
    failures: u32,
    returns_of: Option<(i64, u32)>,
    not_before: Option<Instant>,
}

/// What came of one key's messages in one round.
struct Round {
    key: String,
    relayed: Vec<i64>,
    stopped: Option<(i64, PublishError)>,
}

/// Relays until `shutdown` or until the bus is closed. Messages are published at least once, those of one key in order.
/// A message that no queue takes is set aside with the reason after three tries and blocks nothing.
pub async fn relay(journal: Journal, bus: Arc<dyn Bus>, shutdown: CancellationToken) {
    let mut troubles: HashMap<String, Trouble> = HashMap::new();
    let mut journal_failures = 0_u32;
    loop {
        let progress = tokio::select! {
            () = shutdown.cancelled() => return,
            progress = one_round(&journal, bus.as_ref(), &mut troubles) => progress,
        };
        let wait = match progress {
            Ok(Progress::Closed) => return,
            Ok(Progress::More) => {
                journal_failures = 0;
                continue;
            }
            Ok(Progress::Until(wait)) => {
                journal_failures = 0;
                wait
            }
            Err(error) => {
                tracing::error!(%error, "read the outbox");
                journal_failures = journal_failures.saturating_add(1);
                backoff(journal_failures)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = journal.committed(), if journal_failures == 0 => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

enum Progress {
    /// Something was relayed: look again at once.
    More,
    /// Nothing can be done before this much later, unless something is committed.
    Until(Duration),
    /// The bus is closed.
    Closed,
}

async fn one_round(
    journal: &Journal,
    bus: &dyn Bus,
    troubles: &mut HashMap<String, Trouble>,
) -> Result<Progress, JournalError> {
    let owed = journal.commit(|t| t.owed()).await?;
    let mut by_key: BTreeMap<String, Vec<Owed>> = BTreeMap::new();
    for message in owed {
        by_key
            .entry(message.order_key.clone())
            .or_default()
            .push(message);
    }
    troubles.retain(|key, _| by_key.contains_key(key));
    let now = Instant::now();
    let ready: Vec<(String, Vec<Owed>)> = by_key
        .into_iter()
        .filter(|(key, _)| {
            let not_before = troubles.get(key).and_then(|trouble| trouble.not_before);
            not_before.is_none_or(|at| at <= now)
        })
        .collect();
    let rounds: Vec<Round> = futures::stream::iter(ready)
        .map(|(key, messages)| publish_key(bus, key, messages))
        .buffer_unordered(KEYS_AT_ONCE)
        .collect()
        .await;
    let mut relayed = Vec::new();
    let mut parked = Vec::new();
    let mut closed = false;
    for round in rounds {
        let advanced = !round.relayed.is_empty();
        relayed.extend(round.relayed);
        let Some((id, error)) = round.stopped else {
            troubles.remove(&round.key);
            continue;
        };
        let trouble = troubles.entry(round.key.clone()).or_default();
        if advanced {
            *trouble = Trouble::default();
        }
        closed |= error == PublishError::Closed;
        trouble.failures = trouble.failures.saturating_add(1);
        trouble.not_before = Some(Instant::now() + backoff(trouble.failures));
        tracing::warn!(%error, failures = trouble.failures, key = %round.key, "relay a message, it is tried again");
        if error.is_permanent() {
            let returns = match trouble.returns_of {
                Some((of, count)) if of == id => count + 1,
                _ => 1,
            };
            trouble.returns_of = Some((id, returns));
            if returns >= RETURNS_MAX {
                tracing::error!(%error, key = %round.key, "set a message aside that no queue takes");
                parked.push((id, error.to_string()));
                *trouble = Trouble::default();
            }
        }
    }
    let advanced = !relayed.is_empty() || !parked.is_empty();
    if advanced {
        journal
            .commit(move |t| {
                t.relayed(&relayed)?;
                for (id, reason) in &parked {
                    t.park_owed(*id, reason)?;
                }
                Ok::<(), JournalError>(())
            })
            .await?;
    }
    if closed {
        return Ok(Progress::Closed);
    }
    if advanced {
        return Ok(Progress::More);
    }
    let next = troubles.values().filter_map(|trouble| trouble.not_before);
    let wait = next
        .map(|at| at.saturating_duration_since(Instant::now()))
        .min();
    Ok(Progress::Until(wait.unwrap_or(IDLE_FOR)))
}

async fn publish_key(bus: &dyn Bus, key: String, messages: Vec<Owed>) -> Round {
    let mut round = Round {
        key,
        relayed: Vec::with_capacity(messages.len()),
        stopped: None,
    };
    for owed in messages {
        match bus.publish(owed.message).await {
            Ok(()) => round.relayed.push(owed.id),
            Err(error) => {
                round.stopped = Some((owed.id, error));
                break;
            }
        }
    }
    round
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(8))
        .min(BACKOFF_MAX)
}
