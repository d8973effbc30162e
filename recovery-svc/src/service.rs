//! What all parts of the service share, and the gate through which every input of a session goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::bus::Bus;
use common::env::Env;
use common::ids::{CommandId, SessionId};
use common::journal::{Journal, JournalError, Record};
use common::messages::{SessionKind, SessionStatus, TraceParent};
use common::problem::Problem;
use common::session::{Accept, Input, SessionState, accept};
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::cache_watch::CacheWatch;
use crate::config::Config;
use crate::executor;
use crate::hand::Hands;
use crate::metrics::Metrics;
use crate::stored::{Clerk, Stored, Written, session_key};
use crate::telling::RejectedCommand;

/// The service's shared parts.
pub(crate) struct Service {
    pub(crate) config: Config,
    pub(crate) journal: Journal,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) hands: Arc<dyn Hands>,
    pub(crate) env: Env,
    pub(crate) metrics: Metrics,
    pub(crate) clerk: Clerk,
    /// Latest figures of the write caches.
    pub(crate) caches: CacheWatch,
    /// Limits requests to agents.
    pub(crate) hand_permits: Semaphore,
    /// Limits queries that are answered at a time.
    pub(crate) query_permits: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    slots: Mutex<HashMap<SessionId, Arc<Slot>>>,
}

/// One live session in memory. The journal is the truth; this is how its executor is steered.
pub(crate) struct Slot {
    /// Held from reading the record until the executor was told, so that orders come in the order of the commits.
    gate: tokio::sync::Mutex<()>,
    activity: watch::Sender<Activity>,
    seen: Mutex<Seen>,
    /// How often mount-svc has said that it advances.
    mount_advances: AtomicU64,
}

/// What the upkeep looks at without asking the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) kind: SessionKind,
    pub(crate) status: SessionStatus,
    pub(crate) status_since: Timestamp,
    pub(crate) fires_at: Option<Timestamp>,
}

impl Seen {
    fn of(stored: &Stored) -> Self {
        Self {
            kind: stored.state.spec.kind,
            status: stored.state.status(),
            status_since: stored.status_since,
            fires_at: stored.fires_at,
        }
    }
}

/// A command as the inbox knows it.
#[derive(Debug, Clone)]
pub(crate) struct CommandMark {
    pub(crate) id: CommandId,
    pub(crate) type_name: &'static str,
}

impl CommandMark {
    fn rejected(&self) -> RejectedCommand {
        RejectedCommand {
            id: Some(self.id),
            type_name: Some(self.type_name.to_owned()),
        }
    }
}

/// What came of an input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Taken {
    /// Taken; it may have changed nothing, as stale and repeated answers do.
    Accepted,
    /// The command was dealt with before.
    Duplicate,
    /// The command was refused, and everyone was told.
    Rejected(Problem),
    /// There is no such session.
    Unknown,
}

/// Whether a command was dealt with before.
enum Inbox {
    New,
    Known,
}

impl Service {
    /// Puts the parts together.
    pub(crate) fn new(
        config: Config,
        journal: Journal,
        (bus, hands): (Arc<dyn Bus>, Arc<dyn Hands>),
        env: Env,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let clerk = Clerk {
            server: config.server.clone(),
            env: env.clone(),
            retry_queue_ms: config.limits.retry_queue_ms,
            retry_overdue_s: config.limits.retry_overdue_s,
        };
        Arc::new(Self {
            hand_permits: Semaphore::new(config.limits.hand_requests_max),
            query_permits: crate::queries::permits(),
            config,
            journal,
            bus,
            hands,
            env,
            metrics,
            clerk,
            caches: CacheWatch::default(),
            stop,
            tasks: TaskTracker::new(),
            slots: Mutex::new(HashMap::new()),
        })
    }

    /// Reads a session.
    pub(crate) async fn stored(
        &self,
        session_id: SessionId,
    ) -> Result<Option<Stored>, JournalError> {
        let key = session_key(session_id);
        let record: Option<Record<Stored>> = self.journal.commit(move |t| t.record(&key)).await?;
        Ok(record.map(|record| record.body))
    }

    /// The live sessions as the upkeep sees them.
    pub(crate) fn seen(&self) -> Vec<(SessionId, Seen)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .iter()
            .map(|(id, slot)| {
                (
                    *id,
                    *slot.seen.lock().unwrap_or_else(PoisonError::into_inner),
                )
            })
            .collect()
    }

    /// How many sessions live.
    pub(crate) fn session_count(&self) -> usize {
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn slot(&self, session_id: SessionId) -> Option<Arc<Slot>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&session_id).cloned()
    }

    /// Takes note that mount-svc advances with what it was asked for.
    pub(crate) fn mount_advances(&self, session_id: SessionId) {
        if let Some(slot) = self.slot(session_id) {
            slot.mount_advances.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often it has said so in this life of the service.
    pub(crate) fn mount_advance_count(&self, session_id: SessionId) -> u64 {
        let slot = self.slot(session_id);
        slot.map_or(0, |slot| slot.mount_advances.load(Ordering::Relaxed))
    }

    /// Removes an ended session from memory.
    pub(crate) fn forget(&self, session_id: SessionId) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&session_id);
    }

    /// Makes the slot of a session and starts its executor.
    fn open_slot(self: &Arc<Self>, stored: &Stored, activity: Activity) {
        let session_id = stored.state.session_id;
        let (sender, receiver) = watch::channel(activity);
        let slot = Arc::new(Slot {
            gate: tokio::sync::Mutex::new(()),
            activity: sender,
            seen: Mutex::new(Seen::of(stored)),
            mount_advances: AtomicU64::new(0),
        });
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.insert(session_id, slot);
        drop(slots);
        let service = Arc::clone(self);
        self.tasks
            .spawn(executor::run(service, session_id, receiver));
    }

    /// Begins a session, once: a repeated command finds its id in the inbox.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        mark: CommandMark,
        request: Accept,
        traceparent: Option<TraceParent>,
    ) -> Result<Taken, JournalError> {
        let clerk = self.clerk.clone();
        let key = session_key(request.session_id);
        let written = self
            .journal
            .commit(move |t| {
                let known: Option<Record<Stored>> = t.record(&key)?;
                if known.is_some() || t.inbox_outcome(mark.id.uuid())?.is_some() {
                    return Ok::<_, JournalError>(None);
                }
                t.remember(mark.id.uuid(), "accepted")?;
                clerk.begin(t, accept(request), traceparent).map(Some)
            })
            .await?;
        let Some(written) = written else {
            return Ok(Taken::Duplicate);
        };
        self.count(&written);
        let activity = written.activity.unwrap_or(Activity::Rest);
        self.open_slot(&written.stored, activity);
        Ok(Taken::Accepted)
    }

    /// Takes a session of an earlier life of the service up again.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        session_id: SessionId,
    ) -> Result<(), JournalError> {
        let clerk = self.clerk.clone();
        let key = session_key(session_id);
        let written = self
            .journal
            .commit(move |t| {
                let Some(record) = t.record::<Stored>(&key)? else {
                    return Ok::<_, JournalError>(None);
                };
                let written = clerk.transition(t, record.body, Input::Restarted)?;
                Ok(written.ok())
            })
            .await?;
        if let Some(written) = written {
            let activity = written.activity.unwrap_or(Activity::Rest);
            self.open_slot(&written.stored, activity);
        }
        Ok(())
    }

    /// Refuses a command before any session is concerned.
    pub(crate) async fn reject(
        &self,
        mark: CommandMark,
        problem: Problem,
    ) -> Result<Taken, JournalError> {
        let clerk = self.clerk.clone();
        let told = problem.clone();
        let inbox = self
            .journal
            .commit(move |t| {
                if t.inbox_outcome(mark.id.uuid())?.is_some() {
                    return Ok::<_, JournalError>(Inbox::Known);
                }
                t.remember(mark.id.uuid(), "rejected")?;
                clerk.reject(t, mark.rejected(), told)?;
                Ok(Inbox::New)
            })
            .await?;
        Ok(match inbox {
            Inbox::New => Taken::Rejected(problem),
            Inbox::Known => Taken::Duplicate,
        })
    }

    /// Gives a session an input: reads, applies, commits state and messages together, then steers the executor.
    /// With a command, its id goes into the inbox in the same commit.
    pub(crate) async fn give(
        self: &Arc<Self>,
        session_id: SessionId,
        input: Input,
        mark: Option<CommandMark>,
    ) -> Result<Taken, JournalError> {
        let slot = self.slot(session_id);
        let _gate = match &slot {
            Some(slot) => Some(slot.gate.lock().await),
            None => None,
        };
        let clerk = self.clerk.clone();
        let is_automatic = matches!(input, Input::RetryDue { .. });
        let is_manual = matches!(input, Input::Retry);
        let (taken, written) = self
            .journal
            .commit(move |t| {
                if let Some(mark) = &mark
                    && t.inbox_outcome(mark.id.uuid())?.is_some()
                {
                    return Ok::<_, JournalError>((Taken::Duplicate, None));
                }
                let Some(record) = t.record::<Stored>(&session_key(session_id))? else {
                    return Ok((Taken::Unknown, None));
                };
                let result = clerk.transition(t, record.body, input)?;
                let (outcome, answer) = match result {
                    Ok(written) => ("accepted", (Taken::Accepted, Some(written))),
                    Err(refusal) => {
                        if let Some(mark) = &mark {
                            clerk.reject(t, mark.rejected(), refusal.0.clone())?;
                        }
                        ("rejected", (Taken::Rejected(refusal.0), None))
                    }
                };
                if let Some(mark) = &mark {
                    t.remember(mark.id.uuid(), outcome)?;
                }
                Ok(answer)
            })
            .await?;
        let Some(written) = written else {
            return Ok(taken);
        };
        self.count(&written);
        if written.activity.is_some() && (is_automatic || is_manual) {
            let kind = written.stored.state.spec.kind.as_str();
            let outcome = if is_manual { "manual" } else { "automatic" };
            self.metrics
                .retry_attempts
                .with_label_values(&[kind, outcome])
                .inc();
        }
        if let Some(slot) = &slot {
            *slot.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::of(&written.stored);
            if let Some(activity) = written.activity {
                slot.activity.send_replace(activity);
            }
        }
        Ok(taken)
    }

    /// The retry that came back from the broker begins at this time.
    pub(crate) async fn fire_at(
        &self,
        session_id: SessionId,
        (attempt, epoch): (u32, u64),
        at: Timestamp,
    ) -> Result<(), JournalError> {
        let Some(slot) = self.slot(session_id) else {
            return Ok(());
        };
        let _gate = slot.gate.lock().await;
        let stored = self
            .journal
            .commit(move |t| {
                let key = session_key(session_id);
                let Some(record) = t.record::<Stored>(&key)? else {
                    return Ok::<_, JournalError>(None);
                };
                let mut stored = record.body;
                // The queue may be faster than the session's interval.
                let at = stored.next_attempt_at.map_or(at, |next| at.max(next));
                let is_due = stored.state.epoch == epoch
                    && next_attempt(&stored.state) == Some(attempt)
                    && stored.fires_at.is_none_or(|fires_at| at < fires_at);
                if !is_due {
                    return Ok(None);
                }
                stored.fires_at = Some(at);
                t.put_record(&key, &stored, false)?;
                Ok(Some(stored))
            })
            .await?;
        if let Some(stored) = stored {
            *slot.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::of(&stored);
        }
        Ok(())
    }

    fn count(&self, written: &Written) {
        let state = &written.stored.state;
        let kind = state.spec.kind;
        self.metrics
            .transition(kind, written.status_before, state.status());
        if written.retries_exhausted {
            self.metrics
                .retries_exhausted
                .with_label_values(&[kind.as_str()])
                .inc();
        }
        let established = matches!(
            state.status(),
            SessionStatus::Published | SessionStatus::Mounted
        );
        if established && written.status_before != Some(state.status()) {
            self.metrics
                .last_success
                .with_label_values(&[kind.as_str()])
                .set(self.env.now().as_second() as f64);
        }
    }
}

/// The automatic attempt that a session waits for.
pub(crate) fn next_attempt(state: &SessionState) -> Option<u32> {
    match &state.phase {
        common::session::Phase::Waiting { next_attempt, .. } => *next_attempt,
        _ => None,
    }
}
