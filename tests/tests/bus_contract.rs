//! What every bus promises, shown on RabbitMQ and on the in-memory broker alike. One broker serves all of it: booting takes
//! longer than everything else here.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "the whole file is a test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::bus::memory::MemoryBroker;
use common::bus::{
    Bus, BusError, Deliveries, Delivery, Destination, OutgoingMessage, Parked, PublishError,
    StreamFrom, park,
};
use common::env::Env;
use common::problem::{ErrorCode, Problem};
use common::topology::{self, Role, Topology, mount_queue, recovery_queue, retry_queue};
use tests::broker::{TestBroker, server, test_topology};
use tokio::time::timeout;

const RETRY_TTL_MS: u64 = 700;
const LIMIT: Duration = Duration::from_secs(20);

/// The connections of a contract's cast.
struct Cast {
    mount: Arc<dyn Bus>,
    recovery: Arc<dyn Bus>,
    explorer: Arc<dyn Bus>,
    third_party: Arc<dyn Bus>,
    monitor: Arc<dyn Bus>,
}

impl Cast {
    async fn close(&self) {
        for bus in [
            &self.mount,
            &self.recovery,
            &self.explorer,
            &self.third_party,
            &self.monitor,
        ] {
            bus.close().await;
        }
    }
}

#[tokio::test]
async fn the_contract_holds_over_rabbitmq() {
    let broker = TestBroker::start(test_topology(RETRY_TTL_MS))
        .await
        .unwrap();
    println!("RabbitMQ {}", broker.version().unwrap());
    let cast = Cast {
        mount: broker.bus(Role::MountService).await.unwrap(),
        recovery: broker.bus(Role::RecoveryService).await.unwrap(),
        explorer: broker.bus(Role::Explorer).await.unwrap(),
        third_party: broker.bus(Role::ThirdParty).await.unwrap(),
        monitor: broker.bus(Role::Monitor).await.unwrap(),
    };
    contract(&cast).await;
    only_what_a_role_may_do(&broker).await;
    a_wrong_topology_is_named(&broker).await;
    cast.close().await;
    // The refusals that the two checks above provoke, and nothing else.
    let provoked = [
        "operation basic.publish caused a channel exception access_refused",
        "operation basic.consume caused a channel exception access_refused",
        "operation basic.consume caused a channel exception not_found",
        "operation queue.declare caused a channel exception not_found",
        "operation queue.declare caused a channel exception precondition_failed",
        "PLAIN login refused",
    ];
    let unexpected = broker.unexpected_errors(&provoked);
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[tokio::test]
async fn the_contract_holds_over_the_memory_broker() {
    let broker = MemoryBroker::new(7, &test_topology(RETRY_TTL_MS));
    let bus = || broker.bus(Env::system()) as Arc<dyn Bus>;
    let cast = Cast {
        mount: bus(),
        recovery: bus(),
        explorer: bus(),
        third_party: bus(),
        monitor: bus(),
    };
    contract(&cast).await;
    cast.close().await;
}

async fn contract(cast: &Cast) {
    for bus in [&cast.mount, &cast.recovery, &cast.monitor] {
        assert!(bus.health().connected, "{:?}", bus.health());
    }
    a_message_arrives_as_it_was_sent(cast).await;
    a_requeued_message_comes_again(cast).await;
    prefetch_limits_what_is_unsettled(cast).await;
    a_message_for_no_queue_is_returned(cast).await;
    a_command_for_no_server_is_kept_aside(cast).await;
    a_retry_comes_back_after_its_time(cast).await;
    a_parked_message_tells_why_and_goes_back(cast).await;
    parked_messages_may_be_looked_through_often(cast).await;
    a_poisonous_message_is_parked_by_the_broker(cast).await;
    an_answer_reaches_its_private_queue(cast).await;
    events_reach_watchers_and_the_stream(cast).await;
}

fn message(destination: Destination, id: &str) -> OutgoingMessage {
    OutgoingMessage {
        destination,
        message_id: id.to_owned(),
        type_name: "io.pginstant.test.v1".to_owned(),
        correlation_id: Some("session-1".to_owned()),
        reply_to: None,
        headers: BTreeMap::from([("x-attempt".to_owned(), "3".to_owned())]),
        body: format!("{{\"id\":\"{id}\"}}").into_bytes(),
    }
}

fn queue(name: impl Into<String>) -> Destination {
    Destination::Queue(name.into())
}

fn event(kind: &str, phase: &str) -> Destination {
    Destination::Events {
        routing_key: format!("session.{kind}.{phase}"),
    }
}

async fn next(deliveries: &mut Deliveries, what: &str) -> Delivery {
    timeout(LIMIT, deliveries.recv())
        .await
        .unwrap_or_else(|_| panic!("{what} did not come"))
        .unwrap_or_else(|| panic!("{what}: the bus was closed"))
}

fn id(delivery: &Delivery) -> &str {
    delivery.message.message_id.as_deref().unwrap_or_default()
}

async fn take(bus: &dyn Bus, queue: &str, what: &str) -> Delivery {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(delivery) = bus.take(queue).await.unwrap() {
            return delivery;
        }
        assert!(Instant::now() < deadline, "{what} did not come to {queue}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn depth_becomes(bus: &dyn Bus, queue: &str, wanted: u64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let depth = bus.depth(queue).await.unwrap();
        if depth == wanted {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{queue} holds {depth}, not {wanted}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_message_arrives_as_it_was_sent(cast: &Cast) {
    let name = mount_queue(&server());
    let mut deliveries = cast.mount.consume(&name, 4).await.unwrap();
    let commands = Destination::Commands {
        routing_key: name.clone(),
    };
    for (bus, destination, exchange) in [
        (&cast.recovery, queue(&name), ""),
        (&cast.third_party, commands, "cmd"),
    ] {
        let sent = OutgoingMessage {
            reply_to: Some("private.somebody".to_owned()),
            ..message(destination, "as-sent")
        };
        bus.publish(sent.clone()).await.unwrap();
        let delivery = next(&mut deliveries, "the message").await;
        let got = delivery.message.clone();
        assert_eq!(got.message_id, Some(sent.message_id));
        assert_eq!(got.type_name, Some(sent.type_name));
        assert_eq!(got.correlation_id, sent.correlation_id);
        assert_eq!(got.reply_to, sent.reply_to);
        assert_eq!(got.headers, sent.headers);
        assert_eq!(got.body, sent.body);
        assert_eq!(got.exchange, exchange);
        assert_eq!(got.routing_key, name);
        assert!(!got.redelivered);
        delivery.ack().await.unwrap();
    }
    drop(deliveries);
    depth_becomes(&*cast.mount, &name, 0).await;
}

async fn a_requeued_message_comes_again(cast: &Cast) {
    let name = mount_queue(&server());
    let mut deliveries = cast.mount.consume(&name, 4).await.unwrap();
    let sent = message(queue(&name), "requeued");
    cast.recovery.publish(sent).await.unwrap();
    next(&mut deliveries, "the message")
        .await
        .requeue()
        .await
        .unwrap();
    let again = next(&mut deliveries, "the requeued message").await;
    assert_eq!(id(&again), "requeued");
    assert!(again.message.redelivered);
    assert_eq!(again.message.delivery_count, Some(1));
    again.ack().await.unwrap();
}

async fn prefetch_limits_what_is_unsettled(cast: &Cast) {
    let name = recovery_queue(&server());
    let mut deliveries = cast.recovery.consume(&name, 2).await.unwrap();
    for n in 0..3 {
        let sent = message(queue(&name), &format!("prefetched-{n}"));
        cast.mount.publish(sent).await.unwrap();
    }
    let first = next(&mut deliveries, "the first").await;
    let second = next(&mut deliveries, "the second").await;
    let third = timeout(Duration::from_millis(300), deliveries.recv()).await;
    assert!(third.is_err(), "two are unsettled, a third came");
    first.ack().await.unwrap();
    let third = next(&mut deliveries, "the third").await;
    assert_eq!([id(&second), id(&third)], ["prefetched-1", "prefetched-2"]);
    second.ack().await.unwrap();
    third.ack().await.unwrap();
}

async fn a_message_for_no_queue_is_returned(cast: &Cast) {
    let wrong = message(queue("mount.nowhere"), "lost");
    let right = message(queue(topology::PARKED), "found");
    // Together, so that the answers could be mixed up.
    for _ in 0..20 {
        let (a, b, c) = tokio::join!(
            cast.recovery.publish(right.clone()),
            cast.recovery.publish(wrong.clone()),
            cast.recovery.publish(right.clone()),
        );
        let returned = PublishError::Returned {
            destination: "mount.nowhere".to_owned(),
        };
        assert_eq!((a, b, c), (Ok(()), Err(returned), Ok(())));
    }
    for _ in 0..40 {
        let parked = take(&*cast.explorer, topology::PARKED, "the message").await;
        assert_eq!(id(&parked), "found");
        parked.ack().await.unwrap();
    }
    depth_becomes(&*cast.explorer, topology::PARKED, 0).await;
    let missing = cast.recovery.consume("recovery.nowhere", 1).await;
    let Err(BusError::Topology(problem)) = missing else {
        panic!("{missing:?}");
    };
    assert_eq!(problem.code.exit_code(), 78);
    assert!(problem.message.contains("recovery.nowhere"), "{problem}");
}

async fn a_command_for_no_server_is_kept_aside(cast: &Cast) {
    let nowhere = Destination::Commands {
        routing_key: "mount.nowhere".to_owned(),
    };
    let sent = message(nowhere, "unrouted");
    cast.third_party.publish(sent).await.unwrap();
    let mut deliveries = cast.mount.consume(topology::UNROUTED, 1).await.unwrap();
    let delivery = next(&mut deliveries, "the unrouted command").await;
    assert_eq!(id(&delivery), "unrouted");
    assert_eq!(delivery.message.routing_key, "mount.nowhere");
    assert_eq!(delivery.message.exchange, topology::COMMANDS);
    delivery.ack().await.unwrap();
}

async fn a_retry_comes_back_after_its_time(cast: &Cast) {
    let name = recovery_queue(&server());
    let mut deliveries = cast.recovery.consume(&name, 1).await.unwrap();
    let began = Instant::now();
    let sent = message(queue(retry_queue(&name)), "retried");
    cast.recovery.publish(sent.clone()).await.unwrap();
    let delivery = next(&mut deliveries, "the retry").await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(RETRY_TTL_MS - 50), "{took:?}");
    assert!(
        took < Duration::from_millis(RETRY_TTL_MS + 3_000),
        "{took:?}"
    );
    assert_eq!(id(&delivery), "retried");
    assert_eq!(delivery.message.exchange, "");
    assert_eq!(delivery.message.routing_key, name);
    assert_eq!(delivery.message.body, sent.body);
    assert_eq!(delivery.message.headers.get("x-attempt").unwrap(), "3");
    delivery.ack().await.unwrap();
}

async fn a_parked_message_tells_why_and_goes_back(cast: &Cast) {
    let env = Env::system();
    let name = mount_queue(&server());
    let mut deliveries = cast.mount.consume(&name, 1).await.unwrap();
    let commands = Destination::Commands {
        routing_key: name.clone(),
    };
    // A header that would lead the message elsewhere when it is taken up again.
    let forged = message(commands, "unreadable")
        .header(common::bus::X_ORIGINAL_ROUTING_KEY, "recovery.test1");
    let body = forged.body.clone();
    cast.third_party.publish(forged).await.unwrap();
    let delivery = next(&mut deliveries, "the message").await;
    let problem = Problem::new(ErrorCode::MalformedMessage, "it is not JSON", "send JSON");
    park(&*cast.mount, &env, delivery, &problem).await.unwrap();

    let parked = take(&*cast.explorer, topology::PARKED, "the parked message").await;
    let why = Parked::of(&parked.message);
    assert_eq!(why.reason, "it is not JSON");
    assert_eq!(why.code.as_deref(), Some("malformed_message"));
    assert_eq!(why.remedy.as_deref(), Some("send JSON"));
    assert_eq!((why.exchange.as_str(), &why.routing_key), ("cmd", &name));
    assert!(why.first_failed_at.is_some());
    assert_eq!(parked.message.body, body);
    let again = Parked::unpark(&parked.message, &env);
    cast.explorer.publish(again).await.unwrap();
    parked.ack().await.unwrap();
    let delivery = next(&mut deliveries, "the message, once more").await;
    assert_eq!(id(&delivery), "unreadable");
    let headers: Vec<&str> = delivery
        .message
        .headers
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(headers, ["x-attempt"]);
    delivery.ack().await.unwrap();
    depth_becomes(&*cast.explorer, topology::PARKED, 0).await;
}

async fn parked_messages_may_be_looked_through_often(cast: &Cast) {
    let sent = message(queue(topology::PARKED), "looked-at");
    cast.mount.publish(sent).await.unwrap();
    let looks = topology::DELIVERY_LIMIT + 5;
    for _ in 0..looks {
        let parked = take(&*cast.explorer, topology::PARKED, "the parked message").await;
        parked.requeue().await.unwrap();
    }
    let parked = take(&*cast.explorer, topology::PARKED, "the parked message").await;
    parked.ack().await.unwrap();
}

async fn a_poisonous_message_is_parked_by_the_broker(cast: &Cast) {
    let name = mount_queue(&server());
    let mut deliveries = cast.mount.consume(&name, 1).await.unwrap();
    let sent = message(queue(&name), "poison");
    cast.recovery.publish(sent).await.unwrap();
    let mut count = 0;
    let parked = loop {
        tokio::select! {
            delivery = deliveries.recv() => {
                count += 1;
                delivery.unwrap().requeue().await.unwrap();
            }
            parked = take(&*cast.explorer, topology::PARKED, "the poison") => break parked,
        }
    };
    assert_eq!(count, topology::DELIVERY_LIMIT + 1);
    assert_eq!(id(&parked), "poison");
    let why = Parked::of(&parked.message);
    assert!(why.reason.contains("delivery_limit"), "{why:?}");
    assert_eq!((why.exchange.as_str(), &why.routing_key), ("", &name));
    parked.ack().await.unwrap();
}

async fn an_answer_reaches_its_private_queue(cast: &Cast) {
    let name = mount_queue(&server());
    let mut questions = cast.mount.consume(&name, 1).await.unwrap();
    let mut answers = cast.third_party.private_queue(&[]).await.unwrap();
    let commands = Destination::Commands { routing_key: name };
    let question = message(commands, "question").reply_to(&answers.name);
    cast.third_party.publish(question).await.unwrap();
    let question = next(&mut questions, "the question").await;
    let reply_to = question.message.reply_to.clone().unwrap();
    let answer = message(queue(&reply_to), "answer")
        .correlate(question.message.correlation_id.clone().unwrap());
    cast.mount.publish(answer).await.unwrap();
    question.ack().await.unwrap();
    let answer = next(&mut answers.deliveries, "the answer").await;
    assert_eq!(id(&answer), "answer");
    assert_eq!(answer.message.correlation_id.as_deref(), Some("question"));
    answer.ack().await.unwrap();
    drop(answers);
    // Its queue goes with its owner: a late answer is returned.
    let deadline = Instant::now() + LIMIT;
    while cast
        .mount
        .publish(message(queue(&reply_to), "late"))
        .await
        .is_ok()
    {
        assert!(Instant::now() < deadline, "the private queue stayed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn events_reach_watchers_and_the_stream(cast: &Cast) {
    let mut watched = cast
        .monitor
        .private_queue(&["session.publish.#"])
        .await
        .unwrap();
    let mut coming = cast.explorer.read_events(StreamFrom::Next).await.unwrap();
    let count = 300;
    let half_at = Env::system();
    let mut half = None;
    for n in 0..count {
        if n == count / 2 {
            // A second boundary of its own: the stream is read from a time to the second.
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            half = Some(half_at.now());
        }
        let kind = if n % 100 == 0 { "publish" } else { "mount" };
        let sent = message(event(kind, "waiting"), &format!("event-{n}"));
        cast.recovery.publish(sent).await.unwrap();
    }
    for n in [0, 100, 200] {
        let delivery = next(&mut watched.deliveries, "a watched event").await;
        assert_eq!(id(&delivery), format!("event-{n}"));
        delivery.ack().await.unwrap();
    }
    gapless(&mut coming, 0, count, "read from now").await;
    let mut all = cast
        .third_party
        .read_events(StreamFrom::First)
        .await
        .unwrap();
    let offsets = gapless(&mut all, 0, count, "read from the beginning").await;
    let from = StreamFrom::Offset(offsets[100]);
    let mut some = cast.monitor.read_events(from).await.unwrap();
    gapless(&mut some, 100, count, "read from an offset").await;
    let from = StreamFrom::Time(half.unwrap());
    let mut late = cast.monitor.read_events(from).await.unwrap();
    gapless(&mut late, count / 2, count, "read from a time").await;
}

/// Reads events `first..end` and nothing else; their offsets.
async fn gapless(deliveries: &mut Deliveries, first: usize, end: usize, what: &str) -> Vec<u64> {
    let mut offsets = Vec::new();
    for n in first..end {
        let delivery = next(deliveries, what).await;
        assert_eq!(id(&delivery), format!("event-{n}"), "{what}");
        offsets.push(delivery.message.stream_offset.unwrap());
        delivery.ack().await.unwrap();
    }
    assert!(offsets.is_sorted_by(|a, b| a + 1 == *b), "{offsets:?}");
    offsets
}

async fn only_what_a_role_may_do(broker: &TestBroker) {
    let third_party = broker.bus(Role::ThirdParty).await.unwrap();
    let parked = message(queue(topology::PARKED), "forbidden");
    let refused = third_party.publish(parked).await;
    assert!(
        matches!(refused, Err(PublishError::Refused { .. })),
        "{refused:?}"
    );
    let forged = third_party
        .publish(message(event("publish", "published"), "forged"))
        .await;
    assert!(
        matches!(forged, Err(PublishError::Refused { .. })),
        "{forged:?}"
    );
    let read = third_party.consume(&mount_queue(&server()), 1).await;
    assert!(matches!(read, Err(BusError::Forbidden(_))), "{read:?}");
    third_party.close().await;

    let mut options = broker.options(Role::Monitor);
    options.password = common::config::Secret::new("wrong");
    let env = Env::system();
    let cancel = tokio_util::sync::CancellationToken::new();
    let opened = common::bus::amqp::AmqpBus::open(options, env, cancel).await;
    assert!(matches!(opened, Err(BusError::Forbidden(_))), "{opened:?}");
}

async fn a_wrong_topology_is_named(broker: &TestBroker) {
    use common::bus::amqp::{apply_topology, check_topology};
    let problem = |result: Result<(), BusError>| match result {
        Err(BusError::Topology(problem)) => problem,
        other => panic!("{other:?}"),
    };
    let mut options = broker.options(Role::Admin);
    apply_topology(&options).await.expect("what is there fits");

    options.topology = options.topology.with_retry_ttl_ms(300_000);
    let differs = problem(apply_topology(&options).await);
    assert!(differs.message.contains("mount.test1.retry"), "{differs}");

    let more = common::ids::ServerName::new("test2").unwrap();
    options.topology = Topology::new([server(), more]).with_retry_ttl_ms(RETRY_TTL_MS);
    let missing = problem(check_topology(&options).await);
    assert!(missing.message.contains("test2"), "{missing}");
    assert!(
        missing.remedy.contains("explorer topology apply"),
        "{missing}"
    );
    apply_topology(&options).await.unwrap();
    check_topology(&options).await.unwrap();
}
