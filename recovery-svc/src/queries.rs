//! Queries: answered from the journal (or by looking at a target) straight to the asker; nothing is kept.

use std::sync::Arc;
use std::time::Duration;

use common::bus::{Destination, IncomingMessage, OutgoingMessage};
use common::ids::SessionId;
use common::journal::{JournalError, LogEntry, Record};
use common::messages::{
    Envelope, Query, RecoveryDetail, Refused, Reply, SessionDetail, SessionList, SessionLogLine,
    SessionSummary, Waiting,
};
use common::problem::{ErrorCode, Problem};
use common::session::{Ending, Phase};
use common::topology;

use crate::commands::unknown;
use crate::host_check;
use crate::service::Service;
use crate::stored::{SESSION, Stored, session_key};
use crate::telling::source;
use crate::worker::Unhandled;

const SESSIONS_MAX: usize = 500;
const LOG_LINES_MAX: u32 = 200;
/// Queries that are answered at a time; more are told to come again.
const AT_ONCE_MAX: usize = 8;
/// Longest that answering may take.
const BUDGET: Duration = Duration::from_secs(60);

/// Takes a query; the answer is worked out beside the queue, since looking at a target takes a while.
pub(crate) fn take(
    service: &Arc<Service>,
    envelope: Envelope<Query>,
    message: &IncomingMessage,
) -> Result<&'static str, Unhandled> {
    let never = |message: &str, remedy: &str| {
        let code = ErrorCode::MalformedMessage;
        Unhandled::Never(Problem::new(code, message, remedy))
    };
    let Some(reply_to) = message.reply_to.clone().filter(|queue| !queue.is_empty()) else {
        return Err(never(
            "the query has no reply_to",
            "set the AMQP property reply_to to a queue of your own",
        ));
    };
    let ours = ["mount.", "recovery.", "cmd.", topology::PARKED, "events"];
    if ours.iter().any(|name| reply_to.starts_with(name)) {
        return Err(never(
            "the query's reply_to is one of our own queues",
            "set the AMQP property reply_to to a queue of your own",
        ));
    }
    let correlation_id = message
        .correlation_id
        .clone()
        .unwrap_or_else(|| envelope.id.to_string());
    let query = envelope.payload;
    let busy = service.query_permits.clone().try_acquire_owned();
    let service = Arc::clone(service);
    let tasks = service.tasks.clone();
    tasks.spawn(async move {
        let reply = match busy {
            Ok(_permit) => match tokio::time::timeout(BUDGET, answer(&service, query)).await {
                Ok(reply) => reply,
                Err(_) => refused(Problem::new(
                    ErrorCode::TimedOut,
                    format!("the answer took longer than {} s", BUDGET.as_secs()),
                    "ask again later",
                )),
            },
            Err(_) => refused(Problem::new(
                ErrorCode::NotPossibleNow,
                format!("{AT_ONCE_MAX} queries are being answered"),
                "ask again in a moment",
            )),
        };
        let envelope = Envelope {
            id: service.env.event_id().uuid(),
            source: source(&service.config.server),
            subject: None,
            time: Some(service.env.now()),
            sequence: None,
            traceparent: envelope.traceparent,
            tracestate: envelope.tracestate,
            payload: reply,
        };
        let outgoing =
            OutgoingMessage::new(Destination::Queue(reply_to), &envelope).correlate(correlation_id);
        if let Err(error) = service.bus.publish(outgoing).await {
            // The asker has gone; it will ask again if it still wants to know.
            tracing::debug!(%error, "send a reply");
        }
    });
    Ok("accepted")
}

/// The permits that limit how many queries are answered at a time.
pub(crate) fn permits() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(AT_ONCE_MAX))
}

fn refused(problem: Problem) -> Reply {
    Refused { problem }.into()
}

async fn answer(service: &Arc<Service>, query: Query) -> Reply {
    match query {
        Query::SessionsQuery(query) => match list(service, query.include_ended).await {
            Ok(list) => list.into(),
            Err(error) => refused(error.into()),
        },
        Query::SessionQuery(query) => match detail(service, query.session_id).await {
            Ok(Some(detail)) => detail.into(),
            Ok(None) => refused(unknown(service, query.session_id)),
            Err(error) => refused(error.into()),
        },
        Query::HostCheckQuery(query) => match host_check::check(service, query.target).await {
            Ok(check) => check.into(),
            Err(problem) => refused(problem),
        },
        Query::BackupsQuery(_) => refused(Problem::new(
            ErrorCode::UnknownMessageType,
            "recovery-svc knows no backups",
            format!("send this query to mount.{}", service.config.server),
        )),
    }
}

async fn list(service: &Service, include_ended: bool) -> Result<SessionList, JournalError> {
    let mut records: Vec<Record<Stored>> = service
        .journal
        .commit(move |t| t.records(SESSION, include_ended, SESSIONS_MAX + 1))
        .await?;
    let truncated = records.len() > SESSIONS_MAX;
    records.truncate(SESSIONS_MAX);
    let sessions = records
        .iter()
        .map(|record| summary(service, &record.body))
        .collect();
    Ok(SessionList {
        sessions,
        truncated,
    })
}

fn summary(service: &Service, stored: &Stored) -> SessionSummary {
    let state = &stored.state;
    let opened = state.mount.as_ref().map(|mount| mount.backup.clone());
    SessionSummary {
        session_id: state.session_id,
        server: service.config.server.clone(),
        kind: state.spec.kind,
        status: state.status(),
        step: state.step(),
        repository: state.spec.repository.clone(),
        backup: opened.or_else(|| state.spec.backup.clone()),
        target: state.spec.target.clone(),
        port: state.spec.port,
        started_at: stored.started_at,
        ended_at: stored.ended_at,
        attempt: state.attempt,
        problem: state.problem().cloned(),
    }
}

async fn detail(
    service: &Service,
    session_id: SessionId,
) -> Result<Option<SessionDetail>, JournalError> {
    let found = service
        .journal
        .commit(move |t| {
            let record: Option<Record<Stored>> = t.record(&session_key(session_id))?;
            let log = t.log(&session_id.to_string(), LOG_LINES_MAX)?;
            Ok::<_, JournalError>(record.map(|record| (record.body, log)))
        })
        .await?;
    Ok(found.map(|(stored, log)| SessionDetail {
        summary: summary(service, &stored),
        steps: stored.state.timings.clone(),
        published: stored.state.published.clone(),
        mounted: stored.state.mounted.clone(),
        recovery: recovery(&stored),
        waiting: waiting(&stored),
        warnings: stored.state.warning_list(),
        cache: service.caches.latest(session_id),
        reason: stored.state.spec.reason.clone(),
        log: log.into_iter().map(line).collect(),
    }))
}

fn recovery(stored: &Stored) -> Option<RecoveryDetail> {
    let spec = stored.state.spec.recovery.as_ref()?;
    let recovery = &stored.state.recovery;
    Some(RecoveryDetail {
        data_directory: spec.data_directory.clone(),
        switchover: recovery.switchover,
        lag: recovery.lag,
        switched_over: recovery.switched_over.clone(),
        went_back: recovery.went_back.clone(),
    })
}

fn waiting(stored: &Stored) -> Option<Waiting> {
    match &stored.state.phase {
        Phase::Waiting { step, problem, .. } => Some(Waiting {
            step: *step,
            attempt: stored.state.attempt,
            automatic_retries_max: stored.state.retry.automatic_max,
            next_attempt_at: stored.next_attempt_at,
            problem: problem.clone(),
        }),
        Phase::Running { .. }
        | Phase::Established
        | Phase::Undoing { .. }
        | Phase::Ended(Ending::Completed | Ending::Cancelled | Ending::Failed { .. }) => None,
    }
}

fn line(entry: LogEntry) -> SessionLogLine {
    SessionLogLine {
        at: entry.at,
        sequence: entry.sequence,
        event_type: entry.event_type,
        text: entry.text,
    }
}
