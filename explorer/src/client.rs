//! Sends commands and asks queries, as any third party would: through the exchange `cmd`, answered on a queue of our own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::bus::{Bus, BusError, Destination, OutgoingMessage};
use common::env::Env;
use common::ids::{CommandId, ServerName, SessionId};
use common::messages::{
    BackupList, BackupsQuery, Command, Envelope, HostCheck, HostCheckQuery, Limits, Payload, Query,
    Reply, SessionDetail, SessionList, SessionQuery, SessionsQuery, TraceParent,
};
use common::problem::{ErrorCode, Problem};

use crate::exit::Failure;

/// How long a service may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// How long mount-svc may take for reading its repositories.
const BACKUPS_WAIT: Duration = Duration::from_secs(60);

/// The services of a mount server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Mount,
    Recovery,
}

impl Service {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Service::Mount => "mount-svc",
            Service::Recovery => "recovery-svc",
        }
    }

    /// Its queue on a mount server, which is its routing key too.
    pub(crate) fn queue(self, server: &ServerName) -> String {
        match self {
            Service::Mount => format!("mount.{server}"),
            Service::Recovery => format!("recovery.{server}"),
        }
    }
}

/// One mount server, seen through the broker.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) env: Env,
    pub(crate) server: ServerName,
    /// CloudEvents `source` of what we send.
    pub(crate) source: String,
}

impl Client {
    pub(crate) async fn backups(&self, query: BackupsQuery) -> Result<BackupList, Failure> {
        let reply = self.ask(Service::Mount, query.into(), BACKUPS_WAIT).await?;
        match reply {
            Reply::BackupList(list) => Ok(list),
            other => Err(unexpected(Service::Mount, other)),
        }
    }

    pub(crate) async fn sessions(&self, query: SessionsQuery) -> Result<SessionList, Failure> {
        let reply = self
            .ask(Service::Recovery, query.into(), ANSWER_WAIT)
            .await?;
        match reply {
            Reply::SessionList(list) => Ok(list),
            other => Err(unexpected(Service::Recovery, other)),
        }
    }

    pub(crate) async fn session(&self, session_id: SessionId) -> Result<SessionDetail, Failure> {
        let query = SessionQuery { session_id };
        let reply = self
            .ask(Service::Recovery, query.into(), ANSWER_WAIT)
            .await?;
        match reply {
            Reply::SessionDetail(detail) => Ok(detail),
            other => Err(unexpected(Service::Recovery, other)),
        }
    }

    pub(crate) async fn host_check(&self, query: HostCheckQuery) -> Result<HostCheck, Failure> {
        let reply = self
            .ask(Service::Recovery, query.into(), ANSWER_WAIT)
            .await?;
        match reply {
            Reply::HostCheck(check) => Ok(check),
            other => Err(unexpected(Service::Recovery, other)),
        }
    }

    /// Sends a command under an id that was made before, so that its events can be waited for already.
    pub(crate) async fn send(&self, id: CommandId, command: Command) -> Result<(), Failure> {
        let session = command.session();
        let subject = session.map(|id| id.to_string());
        let mut message = self.message(Service::Mount, id, command, subject);
        message.correlation_id = Some(session.unwrap_or(SessionId::from(id)).to_string());
        Ok(self.bus.publish(message).await?)
    }

    /// Sends a query whose answer is to come to a queue that the caller reads; the answer's correlation id is the query's id.
    pub(crate) async fn send_query(
        &self,
        service: Service,
        id: CommandId,
        query: Query,
        reply_to: &str,
    ) -> Result<(), Failure> {
        let mut message = self.message(service, id, query, None);
        message.correlation_id = Some(id.to_string());
        message.reply_to = Some(reply_to.to_owned());
        Ok(self.bus.publish(message).await?)
    }

    /// How many messages wait for a service; an error when its queue does not exist.
    pub(crate) async fn depth(&self, service: Service) -> Result<u64, BusError> {
        self.bus.depth(&service.queue(&self.server)).await
    }

    /// Refuses early when the mount server has no queues: a command to an unknown server would wait for ever.
    pub(crate) async fn check_server(&self) -> Result<(), Failure> {
        match self.depth(Service::Mount).await {
            Err(BusError::Topology(_)) => Err(Problem::new(
                ErrorCode::TopologyMismatch,
                format!("the broker has no queue for a mount server {}", self.server),
                "check --server, or make its queues with `explorer topology apply`",
            )
            .into()),
            // Whatever else is wrong, sending says it better; a user without the right to look may still send.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn ask(&self, service: Service, query: Query, limit: Duration) -> Result<Reply, Failure> {
        let mut queue = self.bus.private_queue(&[]).await?;
        let id = self.env.command_id();
        self.send_query(service, id, query, &queue.name).await?;
        let wanted = id.to_string();
        let answer = async {
            while let Some(delivery) = queue.deliveries.recv().await {
                let message = delivery.message.clone();
                // The queue is ours and goes away with us: an ack that fails changes nothing.
                drop(delivery.ack().await);
                if message.correlation_id.as_deref() == Some(&wanted) {
                    return Some(message.body);
                }
            }
            None
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(Some(body)) => read_reply(service, &body),
            Ok(None) => Err(BusError::Closed.into()),
            Err(_) => Err(self.silent(service, limit).await.into()),
        }
    }

    /// What to tell about a service that does not react.
    pub(crate) async fn silent(&self, service: Service, since: Duration) -> Problem {
        let queue = service.queue(&self.server);
        let name = service.name();
        match self.depth(service).await {
            Ok(count) => Problem::new(
                ErrorCode::ServiceUnavailable,
                format!(
                    "{name} of {} has not answered for {} s, {count} messages wait in {queue}",
                    self.server,
                    since.as_secs()
                ),
                format!("look there whether it runs: systemctl status pginstant-{name}"),
            ),
            Err(BusError::Topology(_)) => Problem::new(
                ErrorCode::TopologyMismatch,
                format!("the broker has no queue {queue}"),
                "check --server, or make its queues with `explorer topology apply`",
            ),
            Err(error) => crate::exit::bus_problem(error),
        }
    }

    fn message<P: Payload>(
        &self,
        service: Service,
        id: CommandId,
        payload: P,
        subject: Option<String>,
    ) -> OutgoingMessage {
        let type_name = payload.type_name().to_owned();
        let envelope = Envelope {
            id: id.uuid(),
            source: self.source.clone(),
            subject,
            time: Some(self.env.now()),
            sequence: None,
            traceparent: Some(TraceParent::from_uuid(id.uuid())),
            tracestate: None,
            payload,
        };
        OutgoingMessage {
            destination: Destination::Commands {
                routing_key: service.queue(&self.server),
            },
            message_id: id.to_string(),
            type_name,
            correlation_id: None,
            reply_to: None,
            headers: BTreeMap::new(),
            body: envelope.to_bytes(),
        }
    }
}

/// Reads an answer; a refusal becomes its problem.
pub(crate) fn read_reply(service: Service, body: &[u8]) -> Result<Reply, Failure> {
    match Envelope::<Reply>::from_bytes(body, Limits::REPLY_BYTES) {
        Ok(envelope) => match envelope.payload {
            Reply::Refused(refused) => Err(refused.problem.into()),
            reply => Ok(reply),
        },
        Err(error) => Err(Problem::new(
            ErrorCode::MalformedMessage,
            format!("the answer of {} cannot be read: {error}", service.name()),
            "use the explorer of the services' version",
        )
        .into()),
    }
}

fn unexpected(service: Service, reply: Reply) -> Failure {
    Problem::new(
        ErrorCode::Internal,
        format!(
            "{} answered with {} to another question",
            service.name(),
            reply.type_name()
        ),
        "use the explorer of the services' version",
    )
    .into()
}
