//! The service: takes messages off the queue, does in one transaction what they ask for, and keeps the mounts.

use std::sync::Arc;
use std::time::Duration;

use common::bus::{Bus, Delivery, Destination, OutgoingMessage, park};
use common::env::Env;
use common::ids::CommandId;
use common::journal::{Journal, JournalError, Transaction};
use common::messages::{
    BackupList, CommandRejected, Envelope, Event, EventBody, EventHead, MountRelease, MountRequest,
    Query, Refused, Reply, Severity,
};
use common::problem::{ErrorCode, Problem};
use common::topology;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::intake::{self, Door, Intake, Rejection};
use crate::metrics::Metrics;
use crate::record::MountRecord;
use crate::repositories;
use crate::store::Store;

/// Most unsettled deliveries at a time.
const PREFETCH: u16 = 8;
/// Most questions that are answered at a time; listing a repository reads its lists of files.
const ANSWERS_AT_ONCE: usize = 2;
/// Wait before a message that the journal could not take goes back to the queue.
const JOURNAL_AGAIN: Duration = Duration::from_secs(1);

/// Everything that handling a message needs.
#[derive(Debug, Clone)]
pub struct Service {
    /// The configuration.
    pub config: Arc<Config>,
    /// Time and ids.
    pub env: Env,
    /// The journal.
    pub journal: Journal,
    /// The broker.
    pub bus: Arc<dyn Bus>,
    /// The mounts.
    pub store: Arc<Store>,
    /// Counters.
    pub metrics: Metrics,
}

impl Service {
    /// Works messages off until the stop.
    pub async fn work(&self, stop: &CancellationToken) -> Result<(), Problem> {
        let queue = topology::mount_queue(&self.config.server);
        let mut deliveries = self.consume(&queue).await?;
        let mut unrouted = self.consume(topology::UNROUTED).await?;
        let answers = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(ANSWERS_AT_ONCE));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                delivery = deliveries.recv() => match delivery {
                    Some(delivery) => self.handle(delivery, &answers, &slots).await,
                    None => break,
                },
                delivery = unrouted.recv() => match delivery {
                    Some(delivery) => self.reject_unrouted(delivery).await,
                    None => break,
                },
            }
        }
        answers.close();
        answers.wait().await;
        Ok(())
    }

    async fn consume(&self, queue: &str) -> Result<common::bus::Deliveries, Problem> {
        self.bus
            .consume(queue, PREFETCH)
            .await
            .map_err(Problem::from)
    }

    async fn handle(&self, delivery: Delivery, answers: &TaskTracker, slots: &Arc<Semaphore>) {
        let intake = intake::decide(&self.config, door_of(&delivery), &delivery.message.body);
        tracing::debug!(session_id = ?intake::session_of(&intake), ?intake, "message");
        let outcome = match intake {
            Intake::Delegate(id) => self.delegate(id, &delivery).await,
            Intake::Reject(rejection) => self.reject(rejection).await,
            Intake::Mount(id, request) => self.mount(id, request).await,
            Intake::Release(id, release) => self.release(id, release).await,
            Intake::Park(rejection, problem) => {
                self.metrics.command("parked");
                let told = match rejection {
                    Some(rejection) => self.reject(rejection).await,
                    None => Ok(()),
                };
                if let Err(error) = told {
                    tracing::error!(%error, "tell of a parked message");
                }
                return self.park(delivery, &problem).await;
            }
            Intake::Answer(query) => {
                let Ok(slot) = slots.clone().acquire_owned().await else {
                    return;
                };
                let service = self.clone();
                answers.spawn(async move {
                    service.answer(query, delivery).await;
                    drop(slot);
                });
                return;
            }
        };
        settle(delivery, outcome).await;
    }

    /// Idempotent through the inbox: a repeated command is delegated once.
    async fn delegate(&self, id: CommandId, delivery: &Delivery) -> Result<(), JournalError> {
        self.metrics.command("accepted");
        let destination = Destination::Queue(topology::recovery_queue(&self.config.server));
        let message = OutgoingMessage::forward(&delivery.message, destination, &self.env);
        self.once(id, "delegated", move |t| t.enqueue(None, &message))
            .await?;
        Ok(())
    }

    /// Idempotent through the inbox: a repeated command is refused once.
    async fn reject(&self, rejection: Rejection) -> Result<(), JournalError> {
        self.metrics.command("rejected");
        tracing::warn!(command = %rejection.command_id, error = %rejection.problem, "rejected a command");
        let id = rejection.command_id;
        let message = OutgoingMessage::event(&self.rejected(rejection));
        self.once(id, "rejected", move |t| t.enqueue(None, &message))
            .await?;
        Ok(())
    }

    fn rejected(&self, rejection: Rejection) -> Envelope<Event> {
        let head = EventHead {
            server: self.config.server.clone(),
            kind: None,
            status: None,
            severity: Severity::Warning,
        };
        let body = EventBody::CommandRejected(CommandRejected {
            command_id: Some(rejection.command_id),
            command_type: Some(rejection.command_type),
            problem: rejection.problem,
        });
        Envelope {
            id: self.env.event_id().uuid(),
            source: self.source(),
            subject: Some(rejection.command_id.to_string()),
            time: Some(self.env.now()),
            sequence: Some(1),
            traceparent: None,
            tracestate: None,
            payload: Event { head, body },
        }
    }

    fn source(&self) -> String {
        format!("/hosts/{}/mount-svc", self.config.server)
    }

    /// Idempotent: the record says what is wanted, and wanting the same again finds the same mount.
    async fn mount(&self, id: CommandId, request: MountRequest) -> Result<(), JournalError> {
        let record = self.once(id, "mount", move |t| {
            let existing = Store::record(t, request.session_id)?;
            let record = MountRecord::requested(existing.as_ref(), request);
            Store::put(t, &record)?;
            Ok(record)
        });
        if let Some(record) = record.await? {
            self.store.wake(record);
        }
        Ok(())
    }

    /// Idempotent: what is gone already is answered as released.
    async fn release(&self, id: CommandId, release: MountRelease) -> Result<(), JournalError> {
        let Some(placeholder) = self.placeholder(&release) else {
            tracing::error!(session_id = %release.session_id, target = %release.target, "asked to release a mount on a target that is not configured");
            return Ok(());
        };
        let record = self.once(id, "release", move |t| {
            let existing = Store::record(t, release.session_id)?;
            let record = MountRecord::released(existing.as_ref(), &release, placeholder);
            Store::put(t, &record)?;
            Ok(record)
        });
        if let Some(record) = record.await? {
            self.store.wake(record);
        }
        Ok(())
    }

    /// The request that a release stands for when there is no record: only target and session of it are looked at.
    fn placeholder(&self, release: &MountRelease) -> Option<MountRequest> {
        let target = self.config.targets.get(&release.target)?;
        Some(MountRequest {
            session_id: release.session_id,
            epoch: release.epoch,
            repository: common::ids::RepositoryName::new("none").ok()?,
            backup: None,
            target: release.target.clone(),
            os_user: target.os_user.clone(),
            hydrate: None,
        })
    }

    /// Does something once for a message id; `None` when it was done before.
    async fn once<T: Send + 'static>(
        &self,
        id: CommandId,
        outcome: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<Option<T>, JournalError> {
        self.journal
            .commit(move |t| {
                if t.inbox_outcome(id.uuid())?.is_some() {
                    return Ok(None);
                }
                t.remember(id.uuid(), outcome)?;
                work(t).map(Some)
            })
            .await
    }

    /// Nothing is kept of a question: it is acknowledged first, and asked again by whoever misses the answer.
    async fn answer(&self, query: Envelope<Query>, delivery: Delivery) {
        let Some(reply_to) = delivery.message.reply_to.clone() else {
            let problem = Problem::new(
                ErrorCode::MalformedMessage,
                "a query without reply_to cannot be answered",
                "set reply_to to a queue of yours",
            );
            return self.park(delivery, &problem).await;
        };
        let correlation = delivery
            .message
            .correlation_id
            .clone()
            .unwrap_or_else(|| query.id.to_string());
        if let Err(error) = delivery.ack().await {
            tracing::debug!(%error, "a question will come again");
        }
        let config = self.config.clone();
        let asked = query.payload;
        let shared = self.store.shared().clone();
        let found = tokio::task::spawn_blocking(move || match asked {
            Query::BackupsQuery(query) => {
                repositories::list(&config, &shared, query.repository.as_ref())
            }
            other => Err(Problem::new(
                ErrorCode::InvalidField,
                format!(
                    "{} is not answered by mount-svc",
                    common::messages::Payload::type_name(&other)
                ),
                format!("send it to {}", topology::recovery_queue(&config.server)),
            )),
        });
        let found: Result<BackupList, Problem> = found.await.unwrap_or_else(|error| {
            Err(Problem::new(
                ErrorCode::Internal,
                format!("the answer failed: {error}"),
                "report this",
            ))
        });
        let payload = match found {
            Ok(list) => Reply::from(list),
            Err(problem) => Reply::from(Refused { problem }),
        };
        let envelope = Envelope {
            id: self.env.event_id().uuid(),
            source: self.source(),
            subject: None,
            time: Some(self.env.now()),
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload,
        };
        let message =
            OutgoingMessage::new(Destination::Queue(reply_to), &envelope).correlate(correlation);
        if let Err(error) = self.bus.publish(message).await {
            tracing::info!(%error, "nobody waits for an answer any more");
        }
    }

    /// A command to a mount server that does not exist reached the alternate exchange: its sender is told.
    async fn reject_unrouted(&self, delivery: Delivery) {
        let key = delivery.message.routing_key.clone();
        let problem = Problem::new(
            ErrorCode::InvalidField,
            format!("no queue takes messages with the routing key {key:?}"),
            format!(
                "this mount server's is {}",
                topology::mount_queue(&self.config.server)
            ),
        );
        match intake::decide(&self.config, door_of(&delivery), &delivery.message.body) {
            Intake::Delegate(id) => {
                let rejection = Rejection {
                    command_id: id,
                    command_type: delivery.message.type_name.clone().unwrap_or_default(),
                    problem,
                };
                let outcome = self.reject(rejection).await;
                settle(delivery, outcome).await;
            }
            Intake::Reject(rejection) => {
                let outcome = self
                    .reject(Rejection {
                        problem,
                        ..rejection
                    })
                    .await;
                settle(delivery, outcome).await;
            }
            Intake::Answer(_) | Intake::Mount(..) | Intake::Release(..) | Intake::Park(..) => {
                self.park(delivery, &problem).await;
            }
        }
    }

    async fn park(&self, delivery: Delivery, problem: &Problem) {
        tracing::warn!(error = %problem, "parked a message");
        if let Err(error) = park(self.bus.as_ref(), &self.env, delivery, problem).await {
            tracing::warn!(%error, "park a message; it will come again");
        }
    }
}

fn door_of(delivery: &Delivery) -> Door {
    Door::of_exchange(&delivery.message.exchange)
}

/// Acknowledges what is in the journal; what is not goes back to the queue.
async fn settle(delivery: Delivery, outcome: Result<(), JournalError>) {
    let settled = match outcome {
        Ok(()) => delivery.ack().await,
        Err(error) => {
            tracing::error!(%error, "write the journal; the message goes back to its queue");
            tokio::time::sleep(JOURNAL_AGAIN).await;
            delivery.requeue().await
        }
    };
    if let Err(error) = settled {
        tracing::debug!(%error, "the inbox will know the message when it comes again");
    }
}
