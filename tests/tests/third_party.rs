//! What a third party gets who has read docs/third-party.md and no more: the example program works as it is printed, the log of
//! events tells the session without gaps, and the broker's user cannot speak as one of our services.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::bus::{Bus, Destination, OutgoingMessage, PublishError, StreamFrom};
use common::messages::SessionStatus;
use common::topology::{self, Role};
use serde_json::Value;
use tests::broker;
use tests::small_repository::SmallRepository;
use tests::system::TestSystem;

fn documents() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Runs docs/examples/publish.py as it is; its lines: sequence, type, data.
async fn run_example(system: &TestSystem) -> Result<Vec<(u64, String, Value)>> {
    let password = std::fs::read_to_string(system.broker.password_file(Role::ThirdParty))?;
    let program = tokio::process::Command::new("/usr/bin/python3")
        .arg(documents().join("examples/publish.py"))
        .env("HOST", "127.0.0.1")
        .env("PORT", system.broker.port().to_string())
        .env("USER", Role::ThirdParty.user())
        .env("PASSWORD", password.trim())
        .env("SERVER", broker::SERVER)
        .env("REPOSITORY", "main")
        .env("TARGET", "here")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), program)
        .await
        .context("the example takes too long")??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the example ended with {}: {said}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().with_context(|| format!("too short: {line}"));
            Ok((
                word()?.parse()?,
                word()?.to_owned(),
                serde_json::from_str(word()?)?,
            ))
        })
        .collect()
}

/// The events of a session from the stream, up to its end.
async fn logged(system: &TestSystem, session: &str) -> Result<Vec<Value>> {
    let bus = system.bus(Role::ThirdParty).await?;
    let mut deliveries = bus.read_events(StreamFrom::First).await?;
    let mut events = Vec::new();
    loop {
        let delivery = tokio::time::timeout(Duration::from_secs(30), deliveries.recv())
            .await
            .context("the log of events ends before the session does")?
            .context("the bus is closed")?;
        let event: Value = serde_json::from_slice(&delivery.message.body)?;
        delivery.ack().await?;
        if event.get("subject").and_then(Value::as_str) != Some(session) {
            continue;
        }
        let ended =
            event.get("type").and_then(Value::as_str) == Some("io.pginstant.session.completed.v1");
        events.push(event);
        if ended {
            bus.close().await;
            return Ok(events);
        }
    }
}

/// What the published schemas demand: the attributes of the envelope, and the fields of the type's own schema with their kinds.
fn fits_the_schemas(event: &Value) -> Result<()> {
    let type_name = event
        .get("type")
        .and_then(Value::as_str)
        .context("no type")?;
    let read = |name: &str| -> Result<Value> {
        let path = documents().join("schemas").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no schema {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    };
    has_what_is_required(&read("envelope")?, event)?;
    let data = event.get("data").context("no data")?;
    has_what_is_required(&read(type_name)?, data).with_context(|| format!("{type_name}: {data}"))
}

fn has_what_is_required(schema: &Value, value: &Value) -> Result<()> {
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .context("a schema without required fields")?;
    for name in required.iter().filter_map(Value::as_str) {
        ensure!(value.get(name).is_some(), "{name} is missing in {value}");
    }
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .context("a schema without properties")?;
    for (name, property) in properties {
        let (Some(found), Some(wanted)) = (value.get(name), property.get("type")) else {
            continue;
        };
        let kind = match found {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = match wanted {
            Value::Array(kinds) => kinds.iter().any(|one| one == kind),
            one => one == kind,
        };
        ensure!(fits, "{name} is {found}, the schema says {wanted}");
    }
    Ok(())
}

#[tokio::test]
async fn the_printed_example_publishes_and_hears_every_event_of_its_session() -> Result<()> {
    let repository = SmallRepository::new()?;
    let system = TestSystem::start(repository.path()).await?;
    let heard = run_example(&system).await?;
    let (_, last_type, published) = heard.last().context("the example printed nothing")?;
    ensure!(
        last_type == "io.pginstant.session.published.v1",
        "{last_type}"
    );
    ensure!(
        published.get("port").is_some_and(Value::is_u64),
        "where to connect: {published}"
    );
    ensure!(
        heard
            .iter()
            .map(|(sequence, ..)| *sequence)
            .eq(1..=heard.len() as u64),
        "it heard {heard:?}"
    );
    ensure!(
        heard
            .first()
            .is_some_and(|(_, type_name, _)| type_name == "io.pginstant.session.accepted.v1"),
        "it heard {heard:?}"
    );

    let sessions = system.explorer_json(&["sessions"]).await?;
    let session = sessions
        .first()
        .and_then(|list| list.pointer("/sessions/0/session_id"))
        .and_then(Value::as_str)
        .context("its session is listed")?
        .to_owned();
    let detail = system.reaches(&session, SessionStatus::Published).await?;
    ensure!(
        system
            .sql(&detail, "postgres", "SELECT count(*) FROM goods")
            .await?
            == "3"
    );
    let unpublished = system.explorer(&["unpublish", &session]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");

    let events = logged(&system, &session).await?;
    for (event, sequence) in events.iter().zip(1_u64..) {
        ensure!(
            event.get("sequence").and_then(Value::as_u64) == Some(sequence),
            "event {sequence} of the log is {event}"
        );
        fits_the_schemas(event)?;
    }
    for (event, (_, type_name, data)) in events.iter().zip(&heard) {
        ensure!(
            event.get("type").and_then(Value::as_str) == Some(type_name)
                && event.get("data") == Some(data),
            "the log has {event}, the example heard {type_name} {data}"
        );
    }
    system.nothing_is_left_of(&session)
}

#[tokio::test]
async fn a_third_party_cannot_put_messages_into_the_queues_of_our_services() -> Result<()> {
    let broker = broker::TestBroker::start(broker::test_topology(700)).await?;
    let bus = broker.bus(Role::ThirdParty).await?;
    let server = broker::server();
    for queue in [
        topology::recovery_queue(&server),
        topology::mount_queue(&server),
    ] {
        let forged = OutgoingMessage {
            destination: Destination::Queue(queue.clone()),
            message_id: common::env::Env::system().event_id().to_string(),
            type_name: "io.pginstant.mount.ready.v1".to_owned(),
            correlation_id: None,
            reply_to: None,
            headers: std::collections::BTreeMap::new(),
            body: b"{}".to_vec(),
        };
        let refused = bus.publish(forged).await;
        ensure!(
            matches!(refused, Err(PublishError::Refused { .. })),
            "{queue}: {refused:?}"
        );
        let admin = broker.bus(Role::Admin).await?;
        ensure!(
            admin.depth(&queue).await? == 0,
            "{queue} holds the forged message"
        );
        admin.close().await;
    }
    bus.close().await;
    Ok(())
}
