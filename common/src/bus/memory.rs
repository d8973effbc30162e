//! A broker inside the process for tests of what stands on the bus: it duplicates, delays, reorders, breaks connections,
//! returns and refuses, at rates of its owner's choice and by a seed, so that a failure can be played again.
//!
//! Time is tokio's, so a test with paused time waits no five minutes for a retry.

mod state;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::state::{Attempt, Id, State};
use super::{
    Bus, BusError, BusHealth, Deliveries, Delivery, NotSettled, OutgoingMessage, PrivateQueue,
    PublishError, Settle, StreamFrom,
};
use crate::env::Env;
use crate::topology::{self, Topology};

const PREFETCH_MAX: u16 = 16;
const STREAM_PREFETCH: usize = 100;
const REPUBLISH_AFTER: Duration = Duration::from_millis(10);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long a publish waits for a broker that is down, in seconds.
const PUBLISH_LIMIT_S: u64 = 60;

/// How often what goes wrong, each as a probability from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// A published message is there twice.
    pub duplicate: f64,
    /// A published message is delivered late, up to [`Faults::delay_max`], and so out of order.
    pub delay: f64,
    /// The longest delay.
    pub delay_max: Duration,
    /// The connection breaks at a publish (before or after the broker has the message) or a delivery.
    pub connection_drop: f64,
    /// A publish is returned although its queue exists.
    pub returned: f64,
    /// A publish is refused.
    pub refused: f64,
}

struct Shared {
    state: Mutex<State>,
    // Counts changes; consumers wait for the next one.
    changes: watch::Sender<u64>,
    down: watch::Sender<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A broker inside the process. Clones are the same broker.
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryBroker")
    }
}

impl MemoryBroker {
    /// A broker with the queues of a topology, and no faults yet.
    pub fn new(seed: u64, topology: &Topology) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new(seed, topology)),
                changes: watch::Sender::new(0),
                down: watch::Sender::new(false),
            }),
        }
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.lock().set_faults(faults);
    }

    /// Takes the broker away (publishes wait, nothing is delivered, connections break) or puts it back.
    pub fn set_down(&self, down: bool) {
        self.shared.down.send_replace(down);
        if down {
            self.shared.lock().everything_broken(Instant::now());
        }
        self.shared.changed();
    }

    /// A new connection.
    pub fn bus(&self, env: Env) -> Arc<MemoryBus> {
        let id = self.shared.lock().new_id();
        Arc::new(MemoryBus {
            line: Line {
                id,
                shared: Arc::clone(&self.shared),
                reconnects: Arc::new(AtomicU64::new(0)),
            },
            env,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }
}

/// One bus's end of the broker.
#[derive(Clone)]
struct Line {
    id: Id,
    shared: Arc<Shared>,
    reconnects: Arc<AtomicU64>,
}

impl Line {
    fn break_connection(&self) {
        self.shared
            .lock()
            .connection_broken(self.id, Instant::now());
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        self.shared.changed();
    }
}

/// A bus over a [`MemoryBroker`].
pub struct MemoryBus {
    line: Line,
    env: Env,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBus")
            .field("id", &self.line.id)
            .finish_non_exhaustive()
    }
}

impl MemoryBus {
    /// Breaks this bus's connection: what is unsettled goes back and is delivered again.
    pub fn break_connection(&self) {
        self.line.break_connection();
    }

    fn missing(queue: &str) -> BusError {
        topology::mismatch(format!("the broker has no queue {queue}"))
    }

    fn start(&self, queue: &str, prefetch: u16) -> Deliveries {
        let (out, deliveries) = mpsc::channel(usize::from(prefetch));
        let consumer = {
            let mut state = self.line.shared.lock();
            let id = state.new_id();
            state.add_consumer(queue, id);
            id
        };
        let line = self.line.clone();
        let stop = self.stop.clone();
        let queue = queue.to_owned();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = out.closed() => {}
                () = hand_out(&line, &queue, consumer, prefetch, &out) => {}
            }
            line.shared
                .lock()
                .remove_consumer(&queue, consumer, Instant::now());
            line.shared.changed();
        });
        deliveries
    }
}

/// Delivers a queue's messages, at most `prefetch` unsettled, until nobody receives any more.
async fn hand_out(
    line: &Line,
    queue: &str,
    consumer: Id,
    prefetch: u16,
    out: &mpsc::Sender<Delivery>,
) {
    let mut changes = line.shared.changes.subscribe();
    loop {
        let (tag, message) = loop {
            changes.mark_unchanged();
            if out.is_closed() {
                return;
            }
            let now = Instant::now();
            let down = *line.shared.down.borrow();
            let (next, again_at) = {
                let mut state = line.shared.lock();
                let next = match down {
                    true => None,
                    false => state.next(line.id, queue, Some((consumer, prefetch)), now),
                };
                (next, state.next_change_at(now))
            };
            if let Some(next) = next {
                break next;
            }
            let again = async {
                match again_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = again => {}
            }
        };
        // Expiry moves messages without anybody's publishing: the other consumers must look too.
        line.shared.changed();
        let settle = MemorySettle {
            line: line.clone(),
            tag,
        };
        if out
            .send(Delivery::new(message, Box::new(settle)))
            .await
            .is_err()
        {
            return;
        }
        let breaks = line.shared.lock().connection_breaks();
        if breaks {
            line.break_connection();
        }
    }
}

struct MemorySettle {
    line: Line,
    tag: Id,
}

impl MemorySettle {
    fn settle(&self, settled: bool) -> Result<(), NotSettled> {
        self.line.shared.changed();
        match settled {
            true => Ok(()),
            false => Err(NotSettled("its connection is gone".to_owned())),
        }
    }
}

impl Drop for MemorySettle {
    fn drop(&mut self) {
        // Does nothing when it is settled.
        self.line.shared.lock().abandon(self.tag, Instant::now());
        self.line.shared.changed();
    }
}

#[async_trait]
impl Settle for MemorySettle {
    async fn ack(self: Box<Self>) -> Result<(), NotSettled> {
        let settled = self.line.shared.lock().ack(self.tag);
        self.settle(settled)
    }

    async fn requeue(self: Box<Self>) -> Result<(), NotSettled> {
        let settled = self.line.shared.lock().requeue(self.tag, Instant::now());
        self.settle(settled)
    }
}

/// A delivery of the stream has nothing to settle.
struct NothingToSettle;

#[async_trait]
impl Settle for NothingToSettle {
    async fn ack(self: Box<Self>) -> Result<(), NotSettled> {
        Ok(())
    }

    async fn requeue(self: Box<Self>) -> Result<(), NotSettled> {
        Ok(())
    }
}

async fn read_stream(shared: &Shared, from: StreamFrom, out: &mpsc::Sender<Delivery>) {
    let mut changes = shared.changes.subscribe();
    let mut offset = match from {
        StreamFrom::First | StreamFrom::Time(_) => 0,
        StreamFrom::Next => shared.lock().stream_end(),
        StreamFrom::Offset(offset) => offset,
    };
    loop {
        changes.mark_unchanged();
        let down = *shared.down.borrow();
        let entry = match down {
            true => None,
            false => shared.lock().stream_entry(offset),
        };
        let Some(entry) = entry else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        offset += 1;
        if matches!(from, StreamFrom::Time(first) if entry.at_s < first.as_second()) {
            continue;
        }
        let delivery = Delivery::new(entry.message, Box::new(NothingToSettle));
        if out.send(delivery).await.is_err() {
            return;
        }
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, message: OutgoingMessage) -> Result<(), PublishError> {
        let shared = &self.line.shared;
        let at_s = self.env.now().as_second();
        let until_confirmed = async {
            loop {
                let mut down = shared.down.subscribe();
                if down.wait_for(|down| !down).await.is_err() {
                    return Err(PublishError::Closed);
                }
                let attempt = shared.lock().publish(&message, Instant::now(), at_s);
                shared.changed();
                match attempt {
                    Attempt::Confirmed => return Ok(()),
                    Attempt::Failed(error) => return Err(error),
                    Attempt::Unknown => {
                        self.line.break_connection();
                        sleep(REPUBLISH_AFTER).await;
                    }
                }
            }
        };
        let deadline = Instant::now() + Duration::from_secs(PUBLISH_LIMIT_S);
        tokio::select! {
            () = self.stop.cancelled() => Err(PublishError::Closed),
            result = timeout_at(deadline, until_confirmed) => result.unwrap_or_else(|_| {
                Err(PublishError::TimedOut {
                    after_s: PUBLISH_LIMIT_S,
                    last_error: "the broker is down".to_owned(),
                })
            }),
        }
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Deliveries, BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        if !self.line.shared.lock().has_queue(queue) {
            return Err(Self::missing(queue));
        }
        Ok(self.start(queue, prefetch.clamp(1, PREFETCH_MAX)))
    }

    async fn private_queue(&self, event_keys: &[&str]) -> Result<PrivateQueue, BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        let name = format!("private.memory.{}", self.env.event_id());
        self.line
            .shared
            .lock()
            .add_private_queue(&name, self.line.id, event_keys);
        let deliveries = self.start(&name, PREFETCH_MAX);
        Ok(PrivateQueue { name, deliveries })
    }

    async fn read_events(&self, from: StreamFrom) -> Result<Deliveries, BusError> {
        if self.stop.is_cancelled() {
            return Err(BusError::Closed);
        }
        let (out, deliveries) = mpsc::channel(STREAM_PREFETCH);
        // `Next` means from this call on, not from the task's first turn.
        let from = match from {
            StreamFrom::Next => StreamFrom::Offset(self.line.shared.lock().stream_end()),
            other => other,
        };
        let shared = Arc::clone(&self.line.shared);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = out.closed() => {}
                () = read_stream(&shared, from, &out) => {}
            }
        });
        Ok(deliveries)
    }

    async fn take(&self, queue: &str) -> Result<Option<Delivery>, BusError> {
        let shared = &self.line.shared;
        if *shared.down.borrow() {
            return Err(BusError::Unreachable("the broker is down".to_owned()));
        }
        let next = {
            let mut state = shared.lock();
            if !state.has_queue(queue) {
                return Err(Self::missing(queue));
            }
            state.next(self.line.id, queue, None, Instant::now())
        };
        Ok(next.map(|(tag, message)| {
            let settle = MemorySettle {
                line: self.line.clone(),
                tag,
            };
            Delivery::new(message, Box::new(settle))
        }))
    }

    async fn depth(&self, queue: &str) -> Result<u64, BusError> {
        let mut state = self.line.shared.lock();
        state.expire(Instant::now());
        state.depth(queue).ok_or_else(|| Self::missing(queue))
    }

    fn health(&self) -> BusHealth {
        let down = *self.line.shared.down.borrow();
        BusHealth {
            connected: !down && !self.stop.is_cancelled(),
            blocked: false,
            reconnects: self.line.reconnects.load(Ordering::Relaxed),
            last_error: down.then(|| "the broker is down".to_owned()),
        }
    }

    async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(CLOSE_LIMIT, self.tasks.wait()).await.is_err() {
            warn!("the bus was not closed within 10 s");
        }
        self.line.break_connection();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::bus::Destination;
    use crate::ids::ServerName;
    use crate::topology::{mount_queue, retry_queue};

    fn message(queue: &str, id: &str) -> OutgoingMessage {
        OutgoingMessage {
            destination: Destination::Queue(queue.to_owned()),
            message_id: id.to_owned(),
            type_name: "test".to_owned(),
            correlation_id: None,
            reply_to: None,
            headers: BTreeMap::new(),
            body: Vec::new(),
        }
    }

    /// Publishes through all faults, half by way of the retry queue; what was acknowledged and what came out.
    async fn soak(seed: u64) -> (BTreeSet<String>, Vec<String>, u64) {
        let server = ServerName::new("db1").unwrap();
        let broker = MemoryBroker::new(seed, &Topology::new([server.clone()]));
        broker.set_faults(Faults {
            duplicate: 0.1,
            delay: 0.3,
            delay_max: Duration::from_secs(5),
            connection_drop: 0.05,
            returned: 0.02,
            refused: 0.02,
        });
        let (sender, receiver) = (broker.bus(Env::system()), broker.bus(Env::system()));
        let queue = mount_queue(&server);
        let mut acknowledged = BTreeSet::new();
        for n in 0..200 {
            let retry = retry_queue(&queue);
            let to = if n % 2 == 0 { &queue } else { &retry };
            let id = format!("m{n}");
            if sender.publish(message(to, &id)).await.is_ok() {
                acknowledged.insert(id);
            }
        }
        let mut deliveries = receiver.consume(&queue, 4).await.unwrap();
        let mut came = Vec::new();
        // Longer than the five minutes of the retry queue; the clock is the test's.
        while let Ok(Some(delivery)) = timeout(Duration::from_secs(400), deliveries.recv()).await {
            let id = delivery.message.message_id.clone().unwrap();
            if delivery.ack().await.is_ok() {
                came.push(id);
            }
        }
        let reconnects = sender.health().reconnects + receiver.health().reconnects;
        receiver.close().await;
        sender.close().await;
        (acknowledged, came, reconnects)
    }

    #[tokio::test(start_paused = true)]
    async fn faults_duplicate_and_delay_but_lose_nothing_acknowledged() {
        let (mut duplicates, mut refusals, mut reconnects) = (0, 0, 0);
        for seed in 0..20 {
            let (acknowledged, came, broken) = soak(seed).await;
            let distinct: BTreeSet<String> = came.iter().cloned().collect();
            let lost: Vec<_> = acknowledged.difference(&distinct).collect();
            assert!(lost.is_empty(), "seed {seed}: {lost:?}");
            duplicates += came.len() - distinct.len();
            refusals += 200 - acknowledged.len();
            reconnects += broken;
        }
        assert!(duplicates > 100 && refusals > 50 && reconnects > 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_is_down_keeps_publishers_waiting_and_gives_unsettled_messages_back() {
        let server = ServerName::new("db1").unwrap();
        let queue = mount_queue(&server);
        let broker = MemoryBroker::new(1, &Topology::new([server]));
        let bus = broker.bus(Env::system());
        bus.publish(message(&queue, "a")).await.unwrap();
        let mut deliveries = bus.consume(&queue, 1).await.unwrap();
        let held = deliveries.recv().await.unwrap();
        broker.set_down(true);
        assert!(!bus.health().connected);
        assert!(held.ack().await.is_err());
        let late = bus.publish(message(&queue, "b")).await;
        assert!(matches!(late, Err(PublishError::TimedOut { .. })));
        broker.set_down(false);
        let again = deliveries.recv().await.unwrap();
        assert_eq!(again.message.message_id.as_deref(), Some("a"));
        assert!(again.message.redelivered);
        again.ack().await.unwrap();
        bus.close().await;
    }
}
