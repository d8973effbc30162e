//! One soak over RabbitMQ: commands flow, a tenth of them through the retry queue, and events; meanwhile the broker is
//! killed, frozen, restarted, shut to the outside, out of memory, and robbed of a queue. Nothing acknowledged may be lost, no
//! consumer may stay deaf, and the stream may have no gap.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "the whole file is a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::bus::amqp::{AmqpBus, apply_topology};
use common::bus::{Bus, Destination, OutgoingMessage, PublishError, StreamFrom};
use common::env::Env;
use common::topology::{self, Role, mount_queue, retry_queue};
use tests::broker::{HEARTBEAT_S, TestBroker, server, test_topology};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const RETRY_TTL_MS: u64 = 700;
/// Consuming again after the broker's return.
const DEAF_LIMIT: Duration = Duration::from_secs(10);
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
const PUBLISHERS: u64 = 16;
const PACE: Duration = Duration::from_millis(3);

#[derive(Debug, Default)]
struct Ledger {
    attempted: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
    // How often each was completed: more than once is a duplicate, which the inbox of a service would have caught.
    completed: BTreeMap<String, u64>,
    events_acknowledged: BTreeSet<String>,
    events_read: BTreeSet<String>,
    last_offset: Option<u64>,
    stream_faults: Vec<String>,
}

impl Ledger {
    fn published(&mut self, id: String, is_event: bool, result: Result<(), PublishError>) {
        match (result, is_event) {
            (Ok(()), true) => self.events_acknowledged.insert(id),
            (Ok(()), false) => self.acknowledged.insert(id),
            (Err(PublishError::TimedOut { .. }), _) => self.unknown.insert(id),
            (Err(error), _) => panic!("{id}: {error}"),
        };
    }

    fn read(&mut self, offset: u64, id: String) {
        let wanted = self.last_offset.map_or(0, |last| last + 1);
        if offset != wanted {
            self.stream_faults
                .push(format!("{offset} came, not {wanted}"));
        }
        self.last_offset = Some(offset);
        self.events_read.insert(id);
    }
}

#[derive(Debug, Clone)]
struct Soak {
    ledger: Arc<Mutex<Ledger>>,
    paused: Arc<AtomicBool>,
    in_flight: Arc<AtomicU64>,
    stop: CancellationToken,
}

fn message(destination: Destination, id: &str) -> OutgoingMessage {
    OutgoingMessage {
        destination,
        message_id: id.to_owned(),
        type_name: "io.pginstant.test.v1".to_owned(),
        correlation_id: None,
        reply_to: None,
        headers: BTreeMap::new(),
        body: vec![b'x'; 1024],
    }
}

fn work_queue() -> String {
    mount_queue(&server())
}

impl Soak {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    fn completed(&self) -> usize {
        self.ledger().completed.len()
    }

    async fn publish(self, publisher: u64, bus: Arc<AmqpBus>) {
        let mut n = 0;
        while !self.stop.is_cancelled() {
            sleep(PACE).await;
            if self.paused.load(Ordering::SeqCst) {
                continue;
            }
            n += 1;
            let id = format!("{publisher}-{n}");
            let is_event = n % 5 == 0;
            let destination = match is_event {
                true => Destination::Events {
                    routing_key: "session.publish.step_progress".to_owned(),
                },
                false => Destination::Queue(work_queue()),
            };
            self.in_flight.fetch_add(1, Ordering::SeqCst);
            self.ledger().attempted.insert(id.clone());
            let result = bus.publish(message(destination, &id)).await;
            self.ledger().published(id, is_event, result);
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Every tenth command fails at first and goes through the retry queue: republished, confirmed, then acknowledged.
    async fn consume(self, bus: Arc<AmqpBus>) {
        let mut deliveries = bus.consume(&work_queue(), 16).await.unwrap();
        while let Some(delivery) = deliveries.recv().await {
            let id = delivery.message.message_id.clone().unwrap();
            let is_retry = delivery.message.headers.contains_key("x-attempt");
            if id.ends_with('1') && !is_retry {
                let retry = Destination::Queue(retry_queue(&work_queue()));
                let retry = message(retry, &id).header("x-attempt", "1");
                if bus.publish(retry).await.is_err() {
                    continue;
                }
            } else {
                *self.ledger().completed.entry(id).or_default() += 1;
            }
            // A failure means that it comes again, nothing else.
            drop(delivery.ack().await);
        }
    }

    async fn read(self, bus: Arc<AmqpBus>) {
        let mut deliveries = bus.read_events(StreamFrom::First).await.unwrap();
        while let Some(delivery) = deliveries.recv().await {
            let offset = delivery.message.stream_offset.unwrap();
            let id = delivery.message.message_id.clone().unwrap();
            self.ledger().read(offset, id);
            delivery.ack().await.unwrap();
        }
    }

    /// Shows that consuming goes on, within the limit.
    async fn is_not_deaf(&self, after: &str) {
        let began = Instant::now();
        let before = self.completed();
        while self.completed() < before + 20 {
            assert!(began.elapsed() < DEAF_LIMIT, "deaf after: {after}");
            sleep(Duration::from_millis(20)).await;
        }
        println!("consuming again {:?} after: {after}", began.elapsed());
    }

    /// Waits until everything acknowledged has come out.
    async fn drain(&self) {
        self.paused.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + DRAIN_LIMIT;
        loop {
            let missing = {
                let ledger = self.ledger();
                let commands = ledger.acknowledged.iter();
                let events = ledger.events_acknowledged.difference(&ledger.events_read);
                commands
                    .filter(|id| !ledger.completed.contains_key(*id))
                    .chain(events)
                    .cloned()
                    .collect::<Vec<_>>()
            };
            if missing.is_empty() && self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            let some = missing.iter().take(5).collect::<Vec<_>>();
            assert!(
                Instant::now() < deadline,
                "lost: {} of them, among them {some:?}",
                missing.len()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }
}

async fn becomes(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn open(broker: &TestBroker, role: Role) -> Arc<AmqpBus> {
    let env = Env::system();
    AmqpBus::open(broker.options(role), env, CancellationToken::new())
        .await
        .unwrap()
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whatever_befalls_the_broker() {
    let mut broker = TestBroker::start(test_topology(RETRY_TTL_MS))
        .await
        .unwrap();
    let publisher = open(&broker, Role::RecoveryService).await;
    let worker = open(&broker, Role::MountService).await;
    let reader = open(&broker, Role::Explorer).await;
    let soak = Soak {
        ledger: Arc::default(),
        paused: Arc::default(),
        in_flight: Arc::default(),
        stop: CancellationToken::new(),
    };
    let mut tasks = JoinSet::new();
    for n in 0..PUBLISHERS {
        tasks.spawn(soak.clone().publish(n, Arc::clone(&publisher)));
    }
    let mut listeners = JoinSet::new();
    listeners.spawn(soak.clone().consume(Arc::clone(&worker)));
    listeners.spawn(soak.clone().read(Arc::clone(&reader)));
    soak.is_not_deaf("the beginning").await;

    broker.kill().await.unwrap();
    becomes("the loss is seen", Duration::from_secs(5), || {
        !publisher.health().connected && !worker.health().connected
    })
    .await;
    // A program that starts while there is no broker waits for it.
    let late = open(&broker, Role::MountService).await;
    assert!(!late.health().connected);
    broker.boot().await.unwrap();
    soak.is_not_deaf("kill -9").await;
    becomes("the late one is connected", DEAF_LIMIT, || {
        late.health().connected
    })
    .await;
    late.close().await;

    broker.freeze().unwrap();
    let noticed = Instant::now();
    becomes(
        "the frozen broker is noticed",
        Duration::from_secs(15),
        || !publisher.health().connected && !worker.health().connected,
    )
    .await;
    println!("a frozen broker was noticed after {:?}", noticed.elapsed());
    sleep(Duration::from_secs(u64::from(HEARTBEAT_S))).await;
    broker.thaw().unwrap();
    soak.is_not_deaf("a freeze").await;

    broker.stop().await.unwrap();
    broker.boot().await.unwrap();
    soak.is_not_deaf("an orderly restart").await;

    shut_out(&broker, &soak, &publisher).await;
    out_of_memory(&broker, &soak, &publisher).await;
    robbed_of_a_queue(&broker, &soak, &worker).await;

    soak.drain().await;
    soak.stop.cancel();
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    for bus in [&publisher, &worker, &reader] {
        bus.close().await;
        assert!(!bus.health().connected);
    }
    while let Some(result) = listeners.join_next().await {
        result.unwrap();
    }
    report(&soak.ledger(), &broker);
}

fn report(ledger: &Ledger, broker: &TestBroker) {
    let lost = ledger
        .acknowledged
        .iter()
        .filter(|id| !ledger.completed.contains_key(*id))
        .count();
    let duplicated = ledger
        .completed
        .values()
        .filter(|count| **count > 1)
        .count();
    println!(
        "commands over RabbitMQ {}: attempted {}, acknowledged {}, unknown {}, completed {}, lost {lost}, duplicated {duplicated}; \
         events: acknowledged {}, read {}, gaps {}; faults: kill, freeze, restart, closed port, memory alarm, deleted queue",
        broker.version().unwrap(),
        ledger.attempted.len(),
        ledger.acknowledged.len(),
        ledger.unknown.len(),
        ledger.completed.len(),
        ledger.events_acknowledged.len(),
        ledger.events_read.len(),
        ledger.stream_faults.len(),
    );
    assert_eq!(lost, 0);
    assert!(
        ledger.stream_faults.is_empty(),
        "{:?}",
        ledger.stream_faults
    );
    let unexpected = ledger
        .completed
        .keys()
        .find(|id| !ledger.attempted.contains(*id));
    assert_eq!(unexpected, None);
}

async fn shut_out(broker: &TestBroker, soak: &Soak, publisher: &AmqpBus) {
    broker
        .rabbitmqctl(&[
            "eval",
            "rabbit_maintenance:suspend_all_client_listeners(), rabbit_maintenance:close_all_client_connections().",
        ])
        .unwrap();
    becomes("the closed port is seen", Duration::from_secs(5), || {
        !publisher.health().connected
    })
    .await;
    broker
        .rabbitmqctl(&["eval", "rabbit_maintenance:resume_all_client_listeners()."])
        .unwrap();
    soak.is_not_deaf("a closed port").await;
}

async fn out_of_memory(broker: &TestBroker, soak: &Soak, publisher: &AmqpBus) {
    becomes("both connections are back", DEAF_LIMIT, || {
        publisher.health().connected
    })
    .await;
    broker
        .rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1"])
        .unwrap();
    becomes("publishing is blocked", Duration::from_secs(10), || {
        publisher.health().blocked
    })
    .await;
    let health = publisher.health();
    assert!(health.connected, "blocked is not lost: {health:?}");
    broker
        .rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"])
        .unwrap();
    becomes("publishing is unblocked", Duration::from_secs(10), || {
        !publisher.health().blocked
    })
    .await;
    soak.is_not_deaf("a memory alarm").await;
}

async fn robbed_of_a_queue(broker: &TestBroker, soak: &Soak, worker: &AmqpBus) {
    soak.drain().await;
    broker
        .rabbitmqctl(&["delete_queue", "-p", topology::VHOST, &work_queue()])
        .unwrap();
    becomes("the missing queue is seen", Duration::from_secs(10), || {
        let health = worker.health();
        !health.connected
            && health
                .last_error
                .is_some_and(|error| error.contains(&work_queue()))
    })
    .await;
    apply_topology(&broker.options(Role::Admin)).await.unwrap();
    becomes("the queue is consumed again", DEAF_LIMIT, || {
        worker.health().connected
    })
    .await;
    soak.resume();
    soak.is_not_deaf("a deleted queue").await;
}
