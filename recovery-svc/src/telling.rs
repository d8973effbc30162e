//! From what the machine emits to messages in the outbox and lines in the session's log.

use common::bus::{Destination, OutgoingMessage};
use common::env::Env;
use common::ids::{CommandId, ServerName};
use common::journal::{JournalError, LogEntry, Transaction};
use common::messages::{
    CommandRejected, Envelope, Event, EventBody, EventHead, Internal, Payload, RetryDue, Severity,
    SwitchoverMode,
};
use common::problem::Problem;
use common::topology;

use crate::stored::Stored;

/// What is known of a command that is refused.
#[derive(Debug, Clone, Default)]
pub(crate) struct RejectedCommand {
    pub(crate) id: Option<CommandId>,
    pub(crate) type_name: Option<String>,
}

/// Writes into the outbox in the name of this service.
pub(crate) struct Teller<'a> {
    pub(crate) server: &'a ServerName,
    pub(crate) env: &'a Env,
}

/// The CloudEvents source of this service.
pub(crate) fn source(server: &ServerName) -> String {
    format!("/hosts/{server}/recovery-svc")
}

impl Teller<'_> {
    fn envelope<P: Payload>(&self, payload: P, subject: Option<String>) -> Envelope<P> {
        Envelope {
            id: self.env.event_id().uuid(),
            source: source(self.server),
            subject,
            time: Some(self.env.now()),
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload,
        }
    }

    /// An event of a session: numbered, logged and owed to the broker.
    pub(crate) fn tell(
        &self,
        transaction: &Transaction<'_>,
        stored: &Stored,
        body: EventBody,
        severity: Severity,
    ) -> Result<(), JournalError> {
        let key = stored.state.session_id.to_string();
        let sequence = transaction.next_sequence(&key)?;
        // Figures tell no story: they would push it out of the log.
        if !matches!(body, EventBody::CacheStatistics(_)) {
            let entry = LogEntry {
                at: self.env.now(),
                sequence,
                event_type: body.type_name().to_owned(),
                text: text(&body),
            };
            transaction.append_log(&key, &entry)?;
        }
        let head = EventHead {
            server: self.server.clone(),
            kind: Some(stored.state.spec.kind),
            status: Some(stored.state.status()),
            severity,
        };
        let mut envelope = self.envelope(Event { head, body }, Some(key.clone()));
        envelope.sequence = Some(sequence);
        envelope.traceparent.clone_from(&stored.traceparent);
        transaction.enqueue(Some(&key), &OutgoingMessage::event(&envelope))
    }

    /// The message that comes back when the next attempt is due.
    pub(crate) fn schedule(
        &self,
        transaction: &Transaction<'_>,
        stored: &Stored,
        due: RetryDue,
    ) -> Result<(), JournalError> {
        let key = stored.state.session_id.to_string();
        let queue = topology::retry_queue(&topology::recovery_queue(self.server));
        let (attempt, epoch) = (due.attempt, due.epoch);
        let envelope = self.envelope(Internal::from(due), Some(key.clone()));
        let mut message = OutgoingMessage::new(Destination::Queue(queue), &envelope)
            .header("x-attempt", attempt.to_string())
            .header(
                "x-attempts-max",
                stored.state.retry.automatic_max.to_string(),
            )
            .header("x-epoch", epoch.to_string());
        if let Some(at) = stored.next_attempt_at {
            message = message.header("x-next-attempt-at", at.to_string());
        }
        if let Some(problem) = stored.state.problem() {
            // The broker's limit for a header table is the frame; a kilobyte says enough.
            let text: String = problem.to_string().chars().take(256).collect();
            message = message.header("x-last-error", text);
        }
        transaction.enqueue(Some(&format!("{key} retry")), &message)
    }

    pub(crate) fn send_to_mount_service(
        &self,
        transaction: &Transaction<'_>,
        stored: &Stored,
        message: Internal,
    ) -> Result<(), JournalError> {
        let key = stored.state.session_id.to_string();
        let mut envelope = self.envelope(message, Some(key.clone()));
        envelope.traceparent.clone_from(&stored.traceparent);
        let destination = Destination::Queue(topology::mount_queue(self.server));
        let message = OutgoingMessage::new(destination, &envelope);
        // An order of its own: a mount must not wait behind events that the broker does not take.
        transaction.enqueue(Some(&format!("{key} mount")), &message)
    }

    pub(crate) fn reject(
        &self,
        transaction: &Transaction<'_>,
        command: RejectedCommand,
        problem: Problem,
    ) -> Result<(), JournalError> {
        let subject = command.id.map(|id| id.to_string());
        let event = Event {
            head: EventHead {
                server: self.server.clone(),
                kind: None,
                status: None,
                severity: Severity::Warning,
            },
            body: CommandRejected {
                command_id: command.id,
                command_type: command.type_name,
                problem,
            }
            .into(),
        };
        transaction.enqueue(
            None,
            &OutgoingMessage::event(&self.envelope(event, subject)),
        )
    }
}

/// An event as a line of the log, for people.
pub(crate) fn text(body: &EventBody) -> String {
    match body {
        EventBody::Accepted(e) => format!("accepted: {} on {}", e.repository, e.target),
        EventBody::StepStarted(e) => format!("{} (attempt {})", e.step, e.attempt),
        EventBody::StepProgress(e) => e.text.clone(),
        EventBody::StepFinished(e) => format!("{} done in {} ms", e.step, e.duration_ms),
        EventBody::Published(e) => format!("published at {}:{}", e.host, e.port),
        EventBody::Mounted(e) => format!("mounted at {}", e.mount_point.display()),
        EventBody::Waiting(e) => match e.next_attempt_at {
            Some(at) => format!("{}; tried again at {at}", e.problem),
            None => format!("{}; waits for a manual retry", e.problem),
        },
        EventBody::RetriesExhausted(e) => {
            format!(
                "{} automatic retries failed: {}",
                e.automatic_retries, e.problem
            )
        }
        EventBody::Retrying(e) => match e.manual {
            true => format!("attempt {}, asked for", e.attempt),
            false => format!("attempt {}, by itself", e.attempt),
        },
        EventBody::Cancelling(_) => "cancelling".to_owned(),
        EventBody::Unpublishing(_) => "unpublishing".to_owned(),
        EventBody::Cancelled(_) => "cancelled, everything is undone".to_owned(),
        EventBody::Completed(_) => "completed, the mount is gone".to_owned(),
        EventBody::ReadyForSwitchover(e) => {
            format!(
                "ready for switchover, {} KiB behind; {}",
                e.lag.bytes >> 10,
                when(e.switchover)
            )
        }
        EventBody::ReplicationLag(e) => {
            format!("{} KiB and {} ms behind", e.lag.bytes >> 10, e.lag.ms)
        }
        EventBody::SwitchoverChanged(e) => when(e.switchover),
        EventBody::SwitchingOver(e) => match e.manual {
            true => "switching over, asked for".to_owned(),
            false => "switching over, its time has come".to_owned(),
        },
        EventBody::SwitchoverFailed(e) => {
            format!("the switchover goes back from {}: {}", e.step, e.problem)
        }
        EventBody::SwitchedOver(e) => format!(
            "switched over to {} at {}:{}, {} ms without writes, {} ms without service",
            e.data_directory.display(),
            e.host,
            e.port,
            e.without_writes_ms,
            e.without_service_ms
        ),
        EventBody::Failed(e) => format!("failed: {}", e.problem),
        EventBody::Warning(e) => e.text.clone(),
        EventBody::WarningCleared(e) => format!("no longer: {:?}", e.code),
        EventBody::CacheStatistics(e) => format!("write cache: {} bytes", e.cache_bytes),
        EventBody::CommandRejected(e) => format!("rejected: {}", e.problem),
    }
}

/// When a switchover begins, for people.
fn when(mode: SwitchoverMode) -> String {
    match mode {
        SwitchoverMode::Auto => "it begins by itself".to_owned(),
        SwitchoverMode::Manual => "it begins when someone asks for it".to_owned(),
        SwitchoverMode::At { at } => format!("it begins at {at}"),
    }
}
