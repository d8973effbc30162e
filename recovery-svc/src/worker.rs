//! The worker: takes one message after the other from `recovery.<server>`, writes down what it means, then acknowledges it.
//!
//! What must stay true: a message is acknowledged only after the commit (or after it is parked); nothing that a message holds stops the worker;
//! a message that breaks its handler is parked after its third delivery.

use std::sync::Arc;
use std::time::Duration;

use common::bus::{Delivery, IncomingMessage, park};
use common::journal::{JournalError, Record, RecordKey};
use common::messages::{
    Command, ContractError, Envelope, Internal, Limits, Payload, Query, RawEnvelope,
};
use common::problem::{ErrorCode, Problem};
use common::topology;
use tokio::task::JoinSet;

use crate::executor::pause;
use crate::service::{CommandMark, Service};
use crate::telling::RejectedCommand;
use crate::{answers, commands, queries};

/// Most messages that are unsettled at a time.
const PREFETCH: u16 = 8;
/// Longest that handling one message may take; anything longer is a journaled activity.
const BUDGET: Duration = Duration::from_secs(60);
/// How often a message is delivered again before one that breaks its handler is parked.
const REDELIVERIES_MAX: u64 = 3;
/// Wait before a message goes back, so that a broken journal does not spin the queue.
const REQUEUE_AFTER: Duration = Duration::from_secs(1);

/// Why a message was not dealt with.
pub(crate) enum Unhandled {
    /// It never will be: to be parked with the reason.
    Never(Problem),
    /// Not now: to be delivered again.
    NotNow(Problem),
}

impl From<JournalError> for Unhandled {
    fn from(error: JournalError) -> Self {
        Unhandled::NotNow(error.into())
    }
}

impl From<ContractError> for Unhandled {
    fn from(error: ContractError) -> Self {
        Unhandled::Never(error.into())
    }
}

/// Works until the service stops.
pub(crate) async fn work(service: Arc<Service>) {
    let queue = topology::recovery_queue(&service.config.server);
    let mut failures = 0_u32;
    while !service.stop.is_cancelled() {
        let mut deliveries = match service.bus.consume(&queue, PREFETCH).await {
            Ok(deliveries) => deliveries,
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(%error, %queue, "consume the queue, it is tried again");
                let wait = Duration::from_secs(u64::from(failures.min(15)));
                if !pause(wait, &service.stop).await {
                    return;
                }
                continue;
            }
        };
        failures = 0;
        loop {
            let delivery = tokio::select! {
                () = service.stop.cancelled() => return,
                delivery = deliveries.recv() => delivery,
            };
            match delivery {
                Some(delivery) => settle(&service, delivery).await,
                None => break, // the bus is closed, or the consumer is to be made anew
            }
        }
        if !pause(REQUEUE_AFTER, &service.stop).await {
            return;
        }
    }
}

async fn settle(service: &Arc<Service>, delivery: Delivery) {
    let message = delivery.message.clone();
    let type_label = type_label(&message);
    let timer = service
        .metrics
        .command_duration
        .with_label_values(&[type_label])
        .start_timer();
    let result = match suspicious(service, &message).await {
        Ok(()) => guarded(service, &message).await,
        Err(unhandled) => Err(unhandled),
    };
    timer.observe_duration();
    let outcome = match result {
        Ok(outcome) => {
            calm(service, &message).await;
            if let Err(error) = delivery.ack().await {
                tracing::warn!(%error, "acknowledge a message");
            }
            outcome
        }
        Err(Unhandled::Never(problem)) => {
            tell_rejected(service, &message, &problem).await;
            tracing::warn!(error = %problem, type_name = ?message.type_name, "park a message");
            if let Err(error) = park(service.bus.as_ref(), &service.env, delivery, &problem).await {
                tracing::warn!(%error, "park a message, it comes again");
            }
            "parked"
        }
        Err(Unhandled::NotNow(problem)) => {
            tracing::error!(error = %problem, "handle a message, it comes again");
            pause(REQUEUE_AFTER, &service.stop).await;
            if let Err(error) = delivery.requeue().await {
                tracing::warn!(%error, "requeue a message");
            }
            "requeued"
        }
    };
    service
        .metrics
        .commands
        .with_label_values(&[type_label, outcome])
        .inc();
}

/// Handles a message in a task of its own, so that a panic or a hang is this message's trouble only.
async fn guarded(
    service: &Arc<Service>,
    message: &IncomingMessage,
) -> Result<&'static str, Unhandled> {
    let mut task = JoinSet::new();
    let (shared, owned) = (Arc::clone(service), message.clone());
    task.spawn(async move { handle(&shared, owned).await });
    let limited = tokio::time::timeout(BUDGET, task.join_next()).await;
    let broken = match limited {
        Ok(Some(Ok(result))) => return result,
        Ok(Some(Err(error))) => format!("the handler broke down: {error}"),
        Ok(None) => "the handler vanished".to_owned(),
        Err(_) => format!("the handler took longer than {} s", BUDGET.as_secs()),
    };
    let problem = Problem::new(
        ErrorCode::Internal,
        broken,
        "see the log of recovery-svc and report this as a bug",
    );
    if message.delivery_count.unwrap_or(0) >= REDELIVERIES_MAX {
        Err(Unhandled::Never(problem))
    } else {
        Err(Unhandled::NotNow(problem))
    }
}

fn trial_key(message: &IncomingMessage) -> Option<RecordKey> {
    let id: String = message.message_id.as_ref()?.chars().take(100).collect();
    (message.delivery_count.unwrap_or(0) > 0).then_some(RecordKey { kind: "trial", id })
}

/// Notes before each redelivery that it is tried, so that a message that kills the whole process is known when it comes again.
async fn suspicious(service: &Service, message: &IncomingMessage) -> Result<(), Unhandled> {
    let Some(key) = trial_key(message) else {
        return Ok(());
    };
    let trials = service
        .journal
        .commit(move |t| {
            let before: Option<Record<u64>> = t.record(&key)?;
            let trials = before.map_or(1, |record| record.body.saturating_add(1));
            t.put_record(&key, &trials, false)?;
            Ok::<_, JournalError>(trials)
        })
        .await?;
    if trials > REDELIVERIES_MAX {
        return Err(Unhandled::Never(Problem::new(
            ErrorCode::Internal,
            format!(
                "the message was tried {trials} times and the service never got through with it"
            ),
            "see the log of recovery-svc and report this as a bug",
        )));
    }
    Ok(())
}

/// The message was dealt with: it is no longer suspicious.
async fn calm(service: &Service, message: &IncomingMessage) {
    let Some(key) = trial_key(message) else {
        return;
    };
    if let Err(error) = service.journal.commit(move |t| t.remove_record(&key)).await {
        tracing::warn!(%error, "forget the trials of a message");
    }
}

async fn handle(
    service: &Arc<Service>,
    message: IncomingMessage,
) -> Result<&'static str, Unhandled> {
    let raw = RawEnvelope::from_bytes(&message.body, Limits::COMMAND_BYTES)?;
    let type_name = raw.type_name.clone();
    let has =
        |docs: Vec<common::messages::PayloadDoc>| docs.iter().any(|doc| doc.type_name == type_name);
    if has(Command::docs()) {
        came_from_ours(&message, &type_name)?;
        let envelope: Envelope<Command> = raw.open()?;
        return commands::take(service, envelope).await;
    }
    if has(Query::docs()) {
        let envelope: Envelope<Query> = raw.open()?;
        return queries::take(service, envelope, &message);
    }
    if has(Internal::docs()) {
        came_from_ours(&message, &type_name)?;
        let envelope: Envelope<Internal> = raw.open()?;
        return answers::take(service, envelope.payload).await;
    }
    Err(ContractError::UnknownType { type_name }.into())
}

/// Only our own users may write to the default exchange: what came another way is neither mount-svc's answer nor a command
/// that mount-svc has checked.
fn came_from_ours(message: &IncomingMessage, type_name: &str) -> Result<(), Unhandled> {
    if message.exchange.is_empty() {
        return Ok(());
    }
    Err(Unhandled::Never(Problem::new(
        ErrorCode::PermissionDenied,
        format!(
            "a message of type {type_name} came to recovery-svc through exchange {:?}",
            message.exchange
        ),
        "send commands to mount.<server>; only the services themselves send the rest",
    )))
}

/// Whoever sent a command that is parked should hear of it, as far as its id can be read.
async fn tell_rejected(service: &Service, message: &IncomingMessage, problem: &Problem) {
    #[derive(serde::Deserialize)]
    struct Identity {
        id: common::ids::CommandId,
        #[serde(rename = "type", default)]
        type_name: Option<String>,
    }
    if message.body.len() > Limits::REPLY_BYTES {
        return;
    }
    let Ok(identity) = serde_json::from_slice::<Identity>(&message.body) else {
        return;
    };
    let id = identity.id;
    let command = RejectedCommand {
        id: Some(id),
        type_name: identity
            .type_name
            .map(|name| name.chars().take(Limits::ATTRIBUTE_BYTES).collect()),
    };
    let (clerk, problem) = (service.clerk.clone(), problem.clone());
    let told = service
        .journal
        .commit(move |t| {
            if t.inbox_outcome(id.uuid())?.is_some() {
                return Ok::<_, JournalError>(());
            }
            t.remember(id.uuid(), "parked")?;
            clerk.reject(t, command, problem)
        })
        .await;
    if let Err(error) = told {
        tracing::warn!(%error, "tell that a message is parked");
    }
}

/// The type as a label: one of the known ones, whatever the message says.
fn type_label(message: &IncomingMessage) -> &'static str {
    let said = message.type_name.as_deref().unwrap_or_default();
    [Command::docs(), Query::docs(), Internal::docs()]
        .into_iter()
        .flatten()
        .map(|doc| doc.type_name)
        .find(|name| *name == said)
        .unwrap_or("unknown")
}

/// The mark of a command for the inbox.
pub(crate) fn mark(envelope: &Envelope<Command>) -> Result<CommandMark, Unhandled> {
    let id = common::ids::CommandId::new(envelope.id).map_err(|error| {
        Unhandled::Never(Problem::new(
            ErrorCode::MalformedMessage,
            error.to_string(),
            "give each command a new UUID of version 7",
        ))
    })?;
    Ok(CommandMark {
        id,
        type_name: envelope.payload.type_name(),
    })
}
