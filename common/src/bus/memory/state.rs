//! The inside of the in-memory broker: queues, the stream, routing, time to live, delivery limits and dead letters. It knows
//! no task and no clock: every call says what time it is.

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::Faults;
use crate::bus::{Destination, IncomingMessage, OutgoingMessage, PublishError};
use crate::topology::{self, Queue, Topology};

/// A consumer of one bus, a tag of one delivery, a bus: numbers that are never used again.
pub(super) type Id = u64;

/// A message inside a queue.
#[derive(Debug, Clone)]
struct Stored {
    message: IncomingMessage,
    deliveries: u64,
    ready_at: Instant,
    expires_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct QueueState {
    // Of the topology; private queues have none.
    rules: Option<Queue>,
    // The bus that a private queue belongs to, and the event keys that it is bound with.
    private: Option<(Id, Vec<String>)>,
    messages: VecDeque<Stored>,
    consumers: VecDeque<Id>,
}

#[derive(Debug)]
struct Unsettled {
    bus: Id,
    consumer: Option<Id>,
    // Dropped without being settled: it comes again when its consumer or connection ends.
    abandoned: bool,
    queue: String,
    stored: Stored,
}

/// One event of the stream, with the second in which it came.
#[derive(Debug, Clone)]
pub(super) struct StreamEntry {
    pub(super) message: IncomingMessage,
    pub(super) at_s: i64,
}

#[derive(Debug)]
pub(super) struct State {
    queues: BTreeMap<String, QueueState>,
    stream: Vec<StreamEntry>,
    unsettled: BTreeMap<Id, Unsettled>,
    last_id: Id,
    faults: Faults,
    random: StdRng,
}

/// What became of a publish attempt, before the faults of the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    Confirmed,
    Failed(PublishError),
    // The connection broke before or after the broker had it: the publisher sends it again.
    Unknown,
}

impl State {
    pub(super) fn new(seed: u64, topology: &Topology) -> Self {
        let queues = topology
            .queues()
            .into_iter()
            .filter(|queue| !queue.is_stream())
            .map(|queue| {
                let state = QueueState {
                    rules: Some(queue.clone()),
                    ..Default::default()
                };
                (queue.name, state)
            })
            .collect();
        Self {
            queues,
            stream: Vec::new(),
            unsettled: BTreeMap::new(),
            last_id: 0,
            faults: Faults::default(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    fn strikes(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.random.random_bool(rate.min(1.0))
    }

    /// Whether the bus's connection breaks now.
    pub(super) fn connection_breaks(&mut self) -> bool {
        self.strikes(self.faults.connection_drop)
    }

    pub(super) fn has_queue(&self, name: &str) -> bool {
        self.queues.contains_key(name)
    }

    pub(super) fn depth(&self, name: &str) -> Option<u64> {
        if name == topology::EVENTS_LOG {
            return u64::try_from(self.stream.len()).ok();
        }
        u64::try_from(self.queues.get(name)?.messages.len()).ok()
    }

    pub(super) fn stream_entry(&self, offset: u64) -> Option<StreamEntry> {
        self.stream.get(usize::try_from(offset).ok()?).cloned()
    }

    pub(super) fn stream_end(&self) -> u64 {
        u64::try_from(self.stream.len()).unwrap_or(u64::MAX)
    }

    /// Publishes as a broker with the configured faults would.
    pub(super) fn publish(
        &mut self,
        outgoing: &OutgoingMessage,
        now: Instant,
        at_s: i64,
    ) -> Attempt {
        self.expire(now);
        let destination = match &outgoing.destination {
            Destination::Queue(name) => name.clone(),
            Destination::Commands { routing_key } | Destination::Events { routing_key } => {
                routing_key.clone()
            }
        };
        if self.strikes(self.faults.returned) {
            return Attempt::Failed(PublishError::Returned { destination });
        }
        if self.strikes(self.faults.refused) {
            return Attempt::Failed(PublishError::Refused { destination });
        }
        let breaks = self.connection_breaks();
        if breaks && self.random.random_bool(0.5) {
            return Attempt::Unknown;
        }
        let targets = match self.targets(&outgoing.destination) {
            Some(targets) => targets,
            None => return Attempt::Failed(PublishError::Returned { destination }),
        };
        let full = |name: &String| {
            let queue = self.queues.get(name);
            let limit = queue.and_then(|q| q.rules.as_ref()?.messages_max());
            limit.is_some_and(|limit| self.depth(name) >= Some(limit))
        };
        if targets.iter().any(full) {
            return Attempt::Failed(PublishError::Refused { destination });
        }
        let copies = 1 + usize::from(self.strikes(self.faults.duplicate));
        let message = as_incoming(outgoing);
        for _ in 0..copies {
            if matches!(outgoing.destination, Destination::Events { .. }) {
                let offset = self.stream_end();
                self.stream.push(StreamEntry {
                    message: IncomingMessage {
                        stream_offset: Some(offset),
                        ..message.clone()
                    },
                    at_s,
                });
            }
            for target in &targets {
                self.enqueue(target, message.clone(), now);
            }
        }
        if breaks {
            Attempt::Unknown
        } else {
            Attempt::Confirmed
        }
    }

    /// The queues that a message goes to; `None` when it would be returned.
    fn targets(&self, destination: &Destination) -> Option<Vec<String>> {
        match destination {
            Destination::Queue(name) => self.has_queue(name).then(|| vec![name.clone()]),
            Destination::Commands { routing_key } => {
                let bound = self
                    .queues
                    .get(routing_key)
                    .is_some_and(|queue| queue.rules.is_some())
                    && is_work_queue(routing_key);
                let name = if bound {
                    routing_key
                } else {
                    topology::UNROUTED
                };
                Some(vec![name.to_owned()])
            }
            Destination::Events { routing_key } => {
                let bound = |queue: &QueueState| {
                    queue
                        .private
                        .iter()
                        .flat_map(|(_, keys)| keys)
                        .any(|pattern| topic_matches(pattern, routing_key))
                };
                let queues = self.queues.iter().filter(|(_, queue)| bound(queue));
                Some(queues.map(|(name, _)| name.clone()).collect())
            }
        }
    }

    fn enqueue(&mut self, queue: &str, message: IncomingMessage, now: Instant) {
        let mut ready_at = now;
        if self.strikes(self.faults.delay) {
            let delay_max_ms = u64::try_from(self.faults.delay_max.as_millis()).unwrap_or(u64::MAX);
            ready_at +=
                std::time::Duration::from_millis(self.random.random_range(0..=delay_max_ms));
        }
        if let Some(queue) = self.queues.get_mut(queue) {
            let ttl_ms = queue.rules.as_ref().and_then(Queue::message_ttl_ms);
            queue.messages.push_back(Stored {
                message,
                deliveries: 0,
                ready_at,
                expires_at: ttl_ms.map(|ttl| now + std::time::Duration::from_millis(ttl)),
            });
        }
    }

    /// Moves on what has waited its time.
    pub(super) fn expire(&mut self, now: Instant) {
        let mut expired = Vec::new();
        for (name, queue) in &mut self.queues {
            while queue
                .messages
                .front()
                .is_some_and(|stored| stored.expires_at.is_some_and(|at| at <= now))
            {
                expired.extend(queue.messages.pop_front().map(|s| (name.clone(), s)));
            }
        }
        for (name, stored) in expired {
            self.dead_letter(&name, stored, "expired", now);
        }
    }

    fn dead_letter(&mut self, from: &str, stored: Stored, reason: &str, now: Instant) {
        let rules = self.queues.get(from).and_then(|q| q.rules.as_ref());
        let Some((exchange, key)) = rules.and_then(Queue::dead_letters_to) else {
            return;
        };
        let (exchange, key) = (exchange.to_owned(), key.to_owned());
        let target = if exchange.is_empty() {
            key.clone()
        } else {
            topology::PARKED.to_owned()
        };
        let mut message = stored.message;
        for (name, value) in [
            ("x-first-death-queue", from),
            ("x-first-death-reason", reason),
            ("x-first-death-exchange", message.exchange.as_str()),
        ] {
            if !message.headers.contains_key(name) {
                message.headers.insert(name.to_owned(), value.to_owned());
            }
        }
        message.exchange = exchange;
        message.routing_key = key;
        self.enqueue(&target, message, now);
    }

    pub(super) fn add_private_queue(&mut self, name: &str, bus: Id, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        let queue = QueueState {
            private: Some((bus, keys)),
            ..Default::default()
        };
        self.queues.insert(name.to_owned(), queue);
    }

    pub(super) fn add_consumer(&mut self, queue: &str, consumer: Id) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.consumers.push_back(consumer);
        }
    }

    /// A consumer is gone, and with it its queue if that was private.
    pub(super) fn remove_consumer(&mut self, name: &str, consumer: Id, now: Instant) {
        self.put_all_back(
            |unsettled| unsettled.abandoned && unsettled.consumer == Some(consumer),
            now,
        );
        if let Some(queue) = self.queues.get_mut(name) {
            queue.consumers.retain(|id| *id != consumer);
            if queue.private.is_some() {
                self.queues.remove(name);
            }
        }
    }

    /// The next message of a queue for a consumer, or for `take` without one.
    pub(super) fn next(
        &mut self,
        bus: Id,
        name: &str,
        consumer: Option<(Id, u16)>,
        now: Instant,
    ) -> Option<(Id, IncomingMessage)> {
        self.expire(now);
        if let Some((id, prefetch)) = consumer {
            let held = self.unsettled.values().filter(|u| u.consumer == Some(id));
            if held.count() >= usize::from(prefetch) {
                return None;
            }
        }
        let consumer = consumer.map(|(id, _)| id);
        let queue = self.queues.get_mut(name)?;
        let single = queue.rules.as_ref().is_some_and(Queue::is_single_active);
        if single && consumer.is_some() && queue.consumers.front().copied() != consumer {
            return None;
        }
        let at = queue.messages.iter().position(|s| s.ready_at <= now)?;
        let stored = queue.messages.remove(at)?;
        let mut message = stored.message.clone();
        message.redelivered = stored.deliveries > 0;
        message.delivery_count = (stored.deliveries > 0).then_some(stored.deliveries);
        let tag = self.new_id();
        let queue = name.to_owned();
        let unsettled = Unsettled {
            bus,
            consumer,
            abandoned: false,
            queue,
            stored,
        };
        self.unsettled.insert(tag, unsettled);
        Some((tag, message))
    }

    /// When something may happen by itself next.
    pub(super) fn next_change_at(&self, now: Instant) -> Option<Instant> {
        let messages = self.queues.values().flat_map(|queue| &queue.messages);
        messages
            .flat_map(|stored| [Some(stored.ready_at), stored.expires_at])
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    /// Forgets a delivery; `false` when it is not that bus's to settle any more.
    pub(super) fn ack(&mut self, tag: Id) -> bool {
        self.unsettled.remove(&tag).is_some()
    }

    /// Puts a delivery back; `false` when it is not that bus's to settle any more.
    pub(super) fn requeue(&mut self, tag: Id, now: Instant) -> bool {
        match self.unsettled.remove(&tag) {
            Some(unsettled) => {
                self.put_back(unsettled, now);
                true
            }
            None => false,
        }
    }

    fn put_back(&mut self, unsettled: Unsettled, now: Instant) {
        let Unsettled {
            queue: name,
            mut stored,
            ..
        } = unsettled;
        stored.deliveries += 1;
        let Some(queue) = self.queues.get_mut(&name) else {
            return;
        };
        let limit = queue.rules.as_ref().and_then(Queue::delivery_limit);
        if limit.is_some_and(|limit| stored.deliveries > limit) {
            self.dead_letter(&name, stored, "delivery_limit", now);
        } else {
            queue.messages.push_front(stored);
        }
    }

    fn put_all_back(&mut self, fits: impl Fn(&Unsettled) -> bool, now: Instant) {
        let tags: Vec<Id> = self
            .unsettled
            .iter()
            .filter(|(_, unsettled)| fits(unsettled))
            .map(|(tag, _)| *tag)
            .collect();
        // Newest first, so that they stand in the queue in their old order.
        for tag in tags.into_iter().rev() {
            self.requeue(tag, now);
        }
    }

    /// A delivery was dropped unsettled. It goes back when its consumer is gone; until then it stays the consumer's.
    pub(super) fn abandon(&mut self, tag: Id, now: Instant) {
        let Some(unsettled) = self.unsettled.get_mut(&tag) else {
            return;
        };
        unsettled.abandoned = true;
        let queue = self.queues.get(&unsettled.queue);
        let consumer_lives = unsettled
            .consumer
            .is_none_or(|id| queue.is_some_and(|queue| queue.consumers.contains(&id)));
        if !consumer_lives {
            self.requeue(tag, now);
        }
    }

    /// What a broker does when a bus's connection breaks: its unsettled deliveries go back, its private queues are emptied.
    pub(super) fn connection_broken(&mut self, bus: Id, now: Instant) {
        self.break_those(|of| of == bus, now);
    }

    /// The same for every bus.
    pub(super) fn everything_broken(&mut self, now: Instant) {
        self.break_those(|_| true, now);
    }

    fn break_those(&mut self, is_broken: impl Fn(Id) -> bool, now: Instant) {
        self.put_all_back(|unsettled| is_broken(unsettled.bus), now);
        for queue in self.queues.values_mut() {
            if queue.private.as_ref().is_some_and(|(of, _)| is_broken(*of)) {
                queue.messages.clear();
            }
        }
    }
}

fn is_work_queue(name: &str) -> bool {
    (name.starts_with("mount.") || name.starts_with("recovery.")) && !name.ends_with(".retry")
}

fn as_incoming(outgoing: &OutgoingMessage) -> IncomingMessage {
    let (exchange, routing_key) = match &outgoing.destination {
        Destination::Queue(name) => ("", name),
        Destination::Commands { routing_key } => (topology::COMMANDS, routing_key),
        Destination::Events { routing_key } => (topology::EVENTS, routing_key),
    };
    IncomingMessage {
        message_id: Some(outgoing.message_id.clone()),
        type_name: Some(outgoing.type_name.clone()),
        correlation_id: outgoing.correlation_id.clone(),
        reply_to: outgoing.reply_to.clone(),
        exchange: exchange.to_owned(),
        routing_key: routing_key.clone(),
        redelivered: false,
        delivery_count: None,
        headers: outgoing.headers.clone(),
        stream_offset: None,
        body: outgoing.body.clone(),
    }
}

/// Whether a topic pattern (`*` one word, `#` any number of them) fits a key.
fn topic_matches(pattern: &str, key: &str) -> bool {
    fn fits(pattern: &[&str], key: &[&str]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => {
                (0..=key.len()).any(|skip| fits(rest, key.get(skip..).unwrap_or_default()))
            }
            Some((word, rest)) => key
                .split_first()
                .is_some_and(|(first, left)| (*word == "*" || word == first) && fits(rest, left)),
        }
    }
    let words = |text: &'_ str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, key) = (words(pattern), words(key));
    let (pattern, key): (Vec<&str>, Vec<&str>) = (
        pattern.iter().map(String::as_str).collect(),
        key.iter().map(String::as_str).collect(),
    );
    fits(&pattern, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_patterns_fit_keys_as_they_do_in_rabbitmq() {
        for (pattern, key, fits) in [
            ("#", "session.publish.waiting", true),
            ("session.publish.#", "session.publish.waiting", true),
            ("session.publish.#", "session.mount.waiting", false),
            ("session.*.waiting", "session.mount.waiting", true),
            ("session.*", "session.mount.waiting", false),
            ("#.waiting", "session.mount.waiting", true),
            ("session.mount.waiting", "session.mount.waiting", true),
        ] {
            assert_eq!(topic_matches(pattern, key), fits, "{pattern} {key}");
        }
    }
}
