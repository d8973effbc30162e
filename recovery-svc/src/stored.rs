//! A session as the journal keeps it, and the one place where a transition, what it tells and what it schedules are put into a transaction.

use common::env::Env;
use common::ids::{ServerName, SessionId};
use common::journal::{JournalError, RecordKey, Transaction};
use common::messages::{
    EventBody, Internal, RetryDue, SessionStatus, Step, SwitchedOver, TraceParent,
};
use common::problem::Problem;
use common::session::{Effect, Input, Phase, Refusal, SessionState, apply};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::telling::Teller;

/// Kind of the records.
pub(crate) const SESSION: &str = "session";

/// What stands in the journal about a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The machine's state.
    pub state: SessionState,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// When its status became what it is.
    pub status_since: Timestamp,
    /// When the running step began, in this life of the service.
    #[serde(default)]
    pub step_started_at: Option<Timestamp>,
    /// Since when nobody can write, in the switchover that is under way.
    #[serde(default)]
    pub writes_ended_at: Option<Timestamp>,
    /// Since when nobody can connect, in the switchover that is under way.
    #[serde(default)]
    pub service_ended_at: Option<Timestamp>,
    /// When the next automatic attempt is to come.
    #[serde(default)]
    pub next_attempt_at: Option<Timestamp>,
    /// When it begins at the latest: a while after its time, or at once after it has come back from the retry queue.
    #[serde(default)]
    pub fires_at: Option<Timestamp>,
    /// Trace of the command that began it.
    #[serde(default)]
    pub traceparent: Option<TraceParent>,
}

impl Stored {
    /// Takes note of when a switchover takes writes and service away; a step that is begun anew has done so before.
    fn note_outage(&mut self, step: Step, now: Timestamp) {
        match step {
            Step::Checkpoint => (self.writes_ended_at, self.service_ended_at) = (None, None),
            Step::Freeze => _ = self.writes_ended_at.get_or_insert(now),
            Step::StopPublished => _ = self.service_ended_at.get_or_insert(now),
            _ => {}
        }
    }

    /// Fills in how long the switchover took writes and service away, whatever went wrong meanwhile.
    fn tell_outage(&mut self, done: &mut SwitchedOver, now: Timestamp) {
        let since = |began: Option<Timestamp>| {
            let took = began.map(|began| now.duration_since(began).as_millis());
            took.and_then(|ms| u64::try_from(ms).ok())
                .unwrap_or_default()
        };
        done.without_writes_ms = since(self.writes_ended_at);
        done.without_service_ms = since(self.service_ended_at);
        self.state.recovery.switched_over = Some(done.clone());
    }
}

/// The key of a session's record.
pub fn session_key(session_id: SessionId) -> RecordKey {
    RecordKey {
        kind: SESSION,
        id: session_id.to_string(),
    }
}

/// What writing down a transition needs beside the transaction.
#[derive(Debug, Clone)]
pub(crate) struct Clerk {
    pub(crate) server: ServerName,
    pub(crate) env: Env,
    pub(crate) retry_queue_ms: u64,
    pub(crate) retry_overdue_s: u32,
}

/// A transition that was written down.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) stored: Stored,
    pub(crate) status_before: Option<SessionStatus>,
    /// What the executor is to do now; `None`: go on with what it does.
    pub(crate) activity: Option<Activity>,
    pub(crate) retries_exhausted: bool,
}

impl Clerk {
    /// How long after a failure a retry begins that did not come back from the broker, in seconds. A queue that keeps messages for
    /// longer than the interval cannot say when the time has come.
    fn begins_after_s(&self, interval_s: u32) -> u32 {
        match u64::from(interval_s) * 1_000 < self.retry_queue_ms {
            true => interval_s,
            false => interval_s.saturating_add(self.retry_overdue_s),
        }
    }

    /// Writes a new session down.
    pub(crate) fn begin(
        &self,
        transaction: &Transaction<'_>,
        (state, effects): (SessionState, Vec<Effect>),
        traceparent: Option<TraceParent>,
    ) -> Result<Written, JournalError> {
        let now = self.env.now();
        let stored = Stored {
            state,
            started_at: now,
            ended_at: None,
            status_since: now,
            step_started_at: None,
            writes_ended_at: None,
            service_ended_at: None,
            next_attempt_at: None,
            fires_at: None,
            traceparent,
        };
        self.write(transaction, stored, effects, None)
    }

    /// Applies an input to a session and writes down what comes of it.
    pub(crate) fn transition(
        &self,
        transaction: &Transaction<'_>,
        stored: Stored,
        mut input: Input,
    ) -> Result<Result<Written, Refusal>, JournalError> {
        if let (Input::StepDone { duration_ms, .. }, Some(began_at)) =
            (&mut input, stored.step_started_at)
        {
            let took = self.env.now().duration_since(began_at).as_millis();
            *duration_ms = u64::try_from(took).unwrap_or(0);
        }
        let before = stored.state.status();
        match apply(&stored.state, input) {
            Err(refusal) => Ok(Err(refusal)),
            Ok((state, effects)) if state == stored.state && effects.is_empty() => {
                Ok(Ok(Written {
                    stored,
                    status_before: Some(before),
                    activity: None,
                    retries_exhausted: false,
                }))
            }
            Ok((state, effects)) => {
                let stored = Stored { state, ..stored };
                self.write(transaction, stored, effects, Some(before))
                    .map(Ok)
            }
        }
    }

    fn write(
        &self,
        transaction: &Transaction<'_>,
        mut stored: Stored,
        effects: Vec<Effect>,
        status_before: Option<SessionStatus>,
    ) -> Result<Written, JournalError> {
        let now = self.env.now();
        let teller = Teller {
            server: &self.server,
            env: &self.env,
        };
        self.note_times(&mut stored, &effects, status_before);
        let mut activity = None;
        let mut retries_exhausted = false;
        for effect in effects {
            match effect {
                Effect::RunStep { step, epoch } => {
                    stored.step_started_at = Some(now);
                    stored.note_outage(step, now);
                    activity = Some(Activity::Step { step, epoch });
                }
                Effect::StopStep => activity = Some(Activity::Rest),
                Effect::Undo {
                    what,
                    epoch,
                    after_s,
                } => {
                    activity = Some(Activity::Undo {
                        what,
                        epoch,
                        after_s,
                    });
                }
                Effect::Watch { epoch } => activity = Some(Activity::Watch { epoch }),
                Effect::ScheduleRetry { attempt, epoch, .. } => {
                    let due = RetryDue {
                        session_id: stored.state.session_id,
                        epoch,
                        attempt,
                    };
                    teller.schedule(transaction, &stored, due)?;
                }
                Effect::Emit(mut body, severity) => {
                    if let EventBody::Waiting(waiting) = body.as_mut() {
                        waiting.next_attempt_at = stored.next_attempt_at;
                    }
                    if let EventBody::SwitchedOver(done) = body.as_mut() {
                        stored.tell_outage(done, now);
                    }
                    retries_exhausted |= matches!(*body, EventBody::RetriesExhausted(_));
                    teller.tell(transaction, &stored, *body, severity)?;
                }
                Effect::Forget => activity = Some(Activity::End),
            }
        }
        let key = session_key(stored.state.session_id);
        transaction.put_record(&key, &stored, stored.state.is_ended())?;
        Ok(Written {
            stored,
            status_before,
            activity,
            retries_exhausted,
        })
    }

    fn note_times(
        &self,
        stored: &mut Stored,
        effects: &[Effect],
        status_before: Option<SessionStatus>,
    ) {
        let now = self.env.now();
        if status_before != Some(stored.state.status()) {
            stored.status_since = now;
        }
        if stored.state.is_ended() {
            stored.ended_at.get_or_insert(now);
        }
        if !matches!(stored.state.phase, Phase::Waiting { .. }) {
            stored.next_attempt_at = None;
            stored.fires_at = None;
        }
        for effect in effects {
            if let Effect::ScheduleRetry { after_s, .. } = effect {
                let later = |s: u32| now.checked_add(SignedDuration::from_secs(s.into())).ok();
                stored.next_attempt_at = later(*after_s);
                stored.fires_at = later(self.begins_after_s(*after_s));
            }
        }
    }

    /// Puts a message for mount-svc into the outbox, in the order of its session.
    pub(crate) fn send_to_mount_service(
        &self,
        transaction: &Transaction<'_>,
        stored: &Stored,
        message: Internal,
    ) -> Result<(), JournalError> {
        let teller = Teller {
            server: &self.server,
            env: &self.env,
        };
        teller.send_to_mount_service(transaction, stored, message)
    }

    /// Tells everyone that a command was refused.
    pub(crate) fn reject(
        &self,
        transaction: &Transaction<'_>,
        command: crate::telling::RejectedCommand,
        problem: Problem,
    ) -> Result<(), JournalError> {
        let teller = Teller {
            server: &self.server,
            env: &self.env,
        };
        teller.reject(transaction, command, problem)
    }
}
