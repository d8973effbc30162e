//! Messages that no honest client sends: each is put aside with its reason or rejected, none is obeyed, and the services go on.
#![allow(
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that builds bad messages: a panic or an id of its own is right here"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::bus::amqp::AmqpBus;
use common::bus::{Bus, Deliveries, Destination, OutgoingMessage};
use common::messages::SessionStatus;
use common::topology::{self, Role};
use serde_json::{Value, json};
use tests::broker;
use tests::small_repository::SmallRepository;
use tests::system::TestSystem;
use tests::wait;
use uuid::Uuid;

const PUBLISH: &str = "io.pginstant.command.publish.v1";
const LIMIT: Duration = Duration::from_secs(30);

fn mount_queue() -> String {
    topology::mount_queue(&broker::server())
}

/// Sends a body to mount-svc as a third party does.
async fn send(bus: &AmqpBus, name: &str, type_name: &str, body: Vec<u8>) -> Result<()> {
    send_to(bus, mount_queue(), (name, type_name), body).await
}

async fn send_to(
    bus: &AmqpBus,
    routing_key: String,
    (name, type_name): (&str, &str),
    body: Vec<u8>,
) -> Result<()> {
    let message = OutgoingMessage {
        destination: Destination::Commands { routing_key },
        message_id: name.to_owned(),
        type_name: type_name.to_owned(),
        correlation_id: None,
        reply_to: None,
        headers: BTreeMap::new(),
        body,
    };
    Ok(bus.publish(message).await?)
}

fn envelope(id: &str, type_name: &str, data: &Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/third-party/test", "type": type_name, "data": data})
}

/// Waits for the rejection of a command; its problem's code.
async fn rejection(events: &mut Deliveries, id: &str) -> Result<String> {
    loop {
        let delivery = tokio::time::timeout(LIMIT, events.recv())
            .await
            .with_context(|| format!("command {id} was not rejected"))?
            .context("the bus is closed")?;
        let event: Value = serde_json::from_slice(&delivery.message.body)?;
        delivery.ack().await?;
        if event.pointer("/data/command_id").and_then(Value::as_str) == Some(id) {
            let code = event.pointer("/data/problem/code").and_then(Value::as_str);
            return Ok(code.context("a rejection without a code")?.to_owned());
        }
    }
}

async fn parked(system: &TestSystem) -> Result<Vec<Value>> {
    let lines = system.explorer_json(&["parked", "list"]).await?;
    let messages = lines
        .first()
        .and_then(|line| line.get("messages"))
        .and_then(Value::as_array);
    Ok(messages.context("no list of messages")?.clone())
}

/// What cannot be understood: a name for the message, its type, its body, and the code that it is parked with.
fn unreadable() -> Vec<(&'static str, &'static str, Vec<u8>, &'static str)> {
    let good = json!({"repository": "main", "target": "here"});
    let of = |value: Value| value.to_string().into_bytes();
    let id = || Uuid::now_v7().to_string();
    let mut wrong_specversion = envelope(&id(), PUBLISH, &good);
    wrong_specversion["specversion"] = "0.3".into();
    let session = json!({"session_id": id(), "epoch": 1, "target": "here"});
    let big = json!({"repository": "main", "target": "here", "reason": "x".repeat(70_000)});
    let type_v2 = "io.pginstant.command.publish.v2";
    let unknown = "io.pginstant.command.explode.v1";
    let release = "io.pginstant.mount.release.v1";
    vec![
        (
            "bad-not-json",
            PUBLISH,
            b"{not json".to_vec(),
            "malformed_message",
        ),
        ("bad-empty", PUBLISH, Vec::new(), "malformed_message"),
        (
            "bad-oversized",
            PUBLISH,
            of(envelope(&id(), PUBLISH, &big)),
            "message_too_large",
        ),
        (
            "bad-unknown-type",
            unknown,
            of(envelope(&id(), unknown, &good)),
            "unknown_message_type",
        ),
        (
            "bad-version",
            type_v2,
            of(envelope(&id(), type_v2, &good)),
            "unknown_message_type",
        ),
        (
            "bad-specversion",
            PUBLISH,
            of(wrong_specversion),
            "malformed_message",
        ),
        (
            "bad-id",
            PUBLISH,
            of(envelope("seventeen", PUBLISH, &good)),
            "malformed_message",
        ),
        (
            "bad-forged-release",
            release,
            of(envelope(&id(), release, &session)),
            "permission_denied",
        ),
    ]
}

#[tokio::test]
async fn bad_messages_are_parked_or_rejected_and_the_services_go_on() -> Result<()> {
    let repository = SmallRepository::new()?;
    let system = TestSystem::start(repository.path()).await?;
    let bus = system.bus(Role::ThirdParty).await?;
    let mut events = bus
        .private_queue(&["command.rejected", "session.#"])
        .await?
        .deliveries;

    let cases = unreadable();
    for (name, type_name, body, _) in &cases {
        send(&bus, name, type_name, body.clone()).await?;
    }
    wait::until("every bad message is parked", LIMIT, async || {
        parked(&system)
            .await
            .is_ok_and(|list| list.len() >= cases.len())
    })
    .await?;
    let list = parked(&system).await?;
    for (name, _, _, code) in &cases {
        let found = list
            .iter()
            .find(|message| message.get("id").and_then(Value::as_str) == Some(name));
        let found = found.with_context(|| format!("{name} is not parked: {list:?}"))?;
        let text = |field: &str| {
            found
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        ensure!(
            text("code") == *code,
            "{name} is parked as {}, not {code}",
            text("code")
        );
        ensure!(
            !text("reason").is_empty() && !text("remedy").is_empty(),
            "{name}: {found}"
        );
        ensure!(
            text("exchange") == "cmd" && text("routing_key") == mount_queue(),
            "{name}: {found}"
        );
    }

    // A session that does not exist, for each command that is about one.
    for kind in ["retry", "cancel", "unpublish"] {
        let (id, type_name) = (
            Uuid::now_v7().to_string(),
            format!("io.pginstant.command.{kind}.v1"),
        );
        let body = envelope(&id, &type_name, &json!({"session_id": Uuid::now_v7()}));
        send(&bus, &id, &type_name, body.to_string().into_bytes()).await?;
        ensure!(
            rejection(&mut events, &id).await? == "unknown_session",
            "{kind}"
        );
        let output = system
            .explorer(&[kind, &Uuid::now_v7().to_string()])
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(65) && said.contains("[unknown_session]"),
            "{kind}: {output:?}"
        );
    }

    the_same_command_twice_changes_nothing(&system, &bus).await?;
    bus.close().await;
    for name in ["mount-svc", "recovery-svc"] {
        ensure!(
            !system.log(name).contains("panicked"),
            "{}",
            system.log(name)
        );
    }
    Ok(())
}

/// Also the good publish after all the bad ones; and a forged answer or release does not touch it.
async fn the_same_command_twice_changes_nothing(system: &TestSystem, bus: &AmqpBus) -> Result<()> {
    let id = Uuid::now_v7().to_string();
    let body = envelope(
        &id,
        PUBLISH,
        &json!({"repository": "main", "target": "here"}),
    );
    send(bus, &id, PUBLISH, body.to_string().into_bytes()).await?;
    let first = system.reaches(&id, SessionStatus::Published).await?;

    send(bus, &id, PUBLISH, body.to_string().into_bytes()).await?;
    let parked_before = parked(system).await?.len();
    let recovery_queue = topology::recovery_queue(&broker::server());
    for (queue, type_name) in [
        (mount_queue(), "io.pginstant.mount.release.v1"),
        (recovery_queue.clone(), "io.pginstant.mount.lost.v1"),
        (recovery_queue.clone(), "io.pginstant.mount.failed.v1"),
        (recovery_queue, "io.pginstant.session.retry_due.v1"),
    ] {
        let data = json!({"session_id": id, "epoch": 1, "attempt": 2, "target": "here",
            "problem": {"code": "mount_failed", "message": "forged", "remedy": "none"}});
        let forged = envelope(&Uuid::now_v7().to_string(), type_name, &data).to_string();
        send_to(bus, queue, (type_name, type_name), forged.into_bytes()).await?;
    }
    wait::until("the forged messages are parked", LIMIT, async || {
        parked(system)
            .await
            .is_ok_and(|list| list.len() == parked_before + 4)
    })
    .await?;

    let list = system.explorer_json(&["sessions", "--all"]).await?;
    let sessions = list
        .first()
        .and_then(|line| line.get("sessions"))
        .and_then(Value::as_array);
    ensure!(
        sessions.is_some_and(|sessions| sessions.len() == 1),
        "{list:?}"
    );
    let now = system.reaches(&id, SessionStatus::Published).await?;
    ensure!(now.published == first.published, "{now:?}");
    ensure!(
        system
            .sql(&now, "postgres", "SELECT count(*) FROM goods")
            .await?
            == "3"
    );
    let events = system
        .explorer_json(&["events", "--since", "first", "--session", &id])
        .await?;
    let accepted = events.iter().filter(|event| {
        event.get("type").and_then(Value::as_str) == Some("io.pginstant.session.accepted.v1")
    });
    ensure!(accepted.count() == 1, "{events:?}");
    let output = system.explorer(&["unpublish", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    system.nothing_is_left_of(&id)
}
