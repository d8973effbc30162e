//! What the event stream says about sessions: heard as it happens, and checked for gaps, repetitions and wrong turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::bus::amqp::AmqpBus;
use common::bus::{Bus, Destination, OutgoingMessage, StreamFrom};
use common::env::Env;
use common::ids::CommandId;
use common::messages::{
    Command, Envelope, Event, EventBody, Limits, Publish, RecoveryTarget, Step,
};
use common::problem::Problem;
use common::topology::{self, Role};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;

use crate::broker;
use crate::system::{SESSION_LIMIT, TestSystem};

/// One event, as far as tests look at it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The session, or the command of a rejection.
    pub subject: String,
    /// Number in the session.
    pub sequence: Option<u64>,
    /// When it was told.
    pub told_at: Timestamp,
    /// What it says.
    pub event: Event,
}

impl Heard {
    /// The last word of its type.
    pub fn phase(&self) -> &'static str {
        self.event.body.phase()
    }

    /// Why a switchover went back or the session waits.
    pub fn problem(&self) -> Option<&Problem> {
        match &self.event.body {
            EventBody::SwitchoverFailed(failed) => Some(&failed.problem),
            EventBody::Waiting(waiting) => Some(&waiting.problem),
            _ => None,
        }
    }

    /// `step_started mount`, or the phase alone.
    pub fn word(&self) -> String {
        use common::messages::EventBody as Body;
        match &self.event.body {
            Body::StepStarted(body) => format!("{} {}", self.phase(), body.step),
            Body::StepFinished(body) => format!("{} {}", self.phase(), body.step),
            _ => self.phase().to_owned(),
        }
    }
}

/// A reader of the whole event stream, from its beginning, each event once.
#[derive(Debug)]
pub struct History {
    heard: Arc<Mutex<Vec<Heard>>>,
    // Ends with the history: a set aborts its tasks when it is dropped.
    _reader: JoinSet<()>,
    bus: Arc<AmqpBus>,
}

impl History {
    /// Begins to listen.
    pub async fn open(system: &TestSystem) -> anyhow::Result<Self> {
        let bus = system.bus(Role::Explorer).await?;
        let mut deliveries = bus.read_events(StreamFrom::First).await?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut known = BTreeSet::new();
            while let Some(delivery) = deliveries.recv().await {
                let read =
                    Envelope::<Event>::from_bytes(&delivery.message.body, Limits::REPLY_BYTES);
                // A delivery that is not settled comes again; it is known then.
                delivery.ack().await.ok();
                let Ok(event) = read else { continue };
                if known.insert(event.id) {
                    into.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Heard {
                            subject: event.subject.unwrap_or_default(),
                            sequence: event.sequence,
                            told_at: event.time.unwrap_or_default(),
                            event: event.payload,
                        });
                }
            }
        });
        Ok(Self {
            heard,
            _reader: reader,
            bus,
        })
    }

    /// All that was heard about a session (or rejected command).
    pub fn of(&self, subject: &str) -> Vec<Heard> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard
            .iter()
            .filter(|event| event.subject == subject)
            .cloned()
            .collect()
    }

    /// The subjects heard of, with the words of each.
    pub fn words(&self) -> BTreeMap<String, Vec<String>> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for event in heard.iter() {
            words
                .entry(event.subject.clone())
                .or_default()
                .push(event.word());
        }
        words
    }

    /// How often a word was heard.
    pub fn count(&self, subject: &str, word: &str) -> usize {
        self.of(subject)
            .iter()
            .filter(|event| event.word() == word)
            .count()
    }

    /// How long a switchover says that it took writes and service away agrees with when its steps were told, whatever went wrong.
    pub fn tells_the_outage(&self, subject: &str) -> anyhow::Result<()> {
        let heard = self.of(subject);
        let began = heard
            .iter()
            .rposition(|heard| heard.word() == "step_started checkpoint")
            .context("no switchover")?;
        let heard = heard.get(began..).unwrap_or_default();
        let when = |word: &str| {
            let found = heard.iter().find(|heard| heard.word() == word);
            let found = found.with_context(|| format!("{word} was not told"));
            found.map(|heard| heard.told_at)
        };
        let (end, done) = heard
            .iter()
            .find_map(|heard| match &heard.event.body {
                EventBody::SwitchedOver(done) => Some((heard.told_at, done)),
                _ => None,
            })
            .context("not switched over")?;
        let last = heard
            .iter()
            .rfind(|heard| heard.word() == "step_started start_final")
            .context("no last step")?;
        for (step, before, told_ms) in [
            ("freeze", "checkpoint", done.without_writes_ms),
            ("stop_published", "freeze", done.without_service_ms),
        ] {
            let began = when(&format!("step_started {step}"))?;
            let before = when(&format!("step_started {before}"))?;
            let told = SignedDuration::from_millis(told_ms.try_into()?);
            // Whole milliseconds.
            let rounded = SignedDuration::from_millis(1);
            let least = last.told_at.duration_since(began) - rounded;
            ensure!(
                (least..=end.duration_since(before)).contains(&told),
                "{step}: {told:?}, the last step began {least:?} after it: {done:?}"
            );
        }
        Ok(())
    }

    /// Waits until a word was heard of a session for the given time.
    pub async fn until_count(
        &self,
        subject: &str,
        word: &str,
        count: usize,
    ) -> anyhow::Result<Heard> {
        let began = Instant::now();
        loop {
            let all = self.of(subject).into_iter();
            let found = all.filter(|event| event.word() == word).nth(count - 1);
            if let Some(heard) = found {
                return Ok(heard);
            }
            ensure!(
                began.elapsed() < SESSION_LIMIT,
                "missing {word:?} number {count} of {subject}, heard: {:?}",
                self.words().get(subject)
            );
            // Steps are short: a fault must come while they last.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a word was heard of a session.
    pub async fn until(&self, subject: &str, word: &str) -> anyhow::Result<Heard> {
        self.until_count(subject, word, 1).await
    }

    /// Sends a command; the broker has it when this returns.
    pub async fn send(&self, command: impl Into<Command>) -> anyhow::Result<CommandId> {
        let id = Env::system().command_id();
        self.send_as(id, command).await?;
        Ok(id)
    }

    /// The same with a given id: sending it twice is a duplicate.
    pub async fn send_as(&self, id: CommandId, command: impl Into<Command>) -> anyhow::Result<()> {
        let envelope = Envelope {
            id: id.uuid(),
            source: "/tests".to_owned(),
            subject: None,
            time: None,
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload: command.into(),
        };
        let destination = Destination::Commands {
            routing_key: topology::mount_queue(&broker::server()),
        };
        let message = OutgoingMessage::new(destination, &envelope);
        Ok(self.bus.publish(message).await?)
    }

    /// Fails unless the session's story has no gap and no repetition.
    pub fn is_gapless(&self, subject: &str) -> anyhow::Result<()> {
        let sequences: Vec<u64> = self
            .of(subject)
            .iter()
            .filter_map(|event| event.sequence)
            .collect();
        let wanted: Vec<u64> = (1..=sequences.len() as u64).collect();
        let mut sorted = sequences.clone();
        sorted.sort_unstable();
        ensure!(
            sorted == wanted && !wanted.is_empty(),
            "the events of {subject} are numbered {sequences:?}"
        );
        Ok(())
    }

    /// Fails unless the session was published once, in its first attempt, each step done once.
    pub fn went_straight(&self, subject: &str) -> anyhow::Result<()> {
        self.is_gapless(subject)?;
        let story = || format!("{:?}", self.words().get(subject));
        for step in Step::of(common::messages::SessionKind::Publish) {
            let done = self.count(subject, &format!("step_finished {step}"));
            ensure!(done == 1, "{step} was done {done} times: {}", story());
        }
        for (word, count) in [
            ("accepted", 1),
            ("published", 1),
            ("waiting", 0),
            ("retrying", 0),
            ("failed", 0),
            ("rejected", 0),
        ] {
            let found = self.count(subject, word);
            ensure!(found == count, "{word} {found} times: {}", story());
        }
        Ok(())
    }
}

/// The command that publishes a backup of `main` on `here`.
pub fn publish(backup: &str, port: Option<u16>) -> anyhow::Result<Publish> {
    Ok(Publish {
        repository: "main".parse()?,
        backup: Some(backup.parse()?),
        target: "here".parse()?,
        port,
        hydrate: None,
        recovery_target: RecoveryTarget::Latest,
        reason: None,
    })
}
