//! The command line against a whole system: what it prints for people and for programs, and how it ends.

use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::bus::{Bus, Destination, OutgoingMessage};
use common::messages::SessionStatus;
use common::topology::{self, Role};
use serde_json::Value;
use tests::broker;
use tests::programs::program;
use tests::small_repository::SmallRepository;
use tests::system::{TestSystem, json_lines};
use tests::wait;
use tokio::io::{AsyncBufReadExt, BufReader};

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs explorer, which must end with this code; everything that it printed.
async fn ends(system: &TestSystem, exit: i32, arguments: &[&str]) -> Result<String> {
    let output = system.explorer(arguments).await?;
    ensure!(
        output.status.code() == Some(exit),
        "{arguments:?} ended with {}, not {exit}: {}",
        output.status,
        said(&output)
    );
    Ok(said(&output))
}

fn holds(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
    Ok(())
}

fn text_of(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found
        .with_context(|| format!("no {pointer} in {value}"))?
        .to_owned())
}

const PUBLISH: [&str; 5] = ["publish", "--repository", "main", "--target", "here"];

#[tokio::test]
async fn a_session_is_begun_watched_and_ended_from_the_command_line() -> Result<()> {
    let repository = SmallRepository::new()?;
    let system = TestSystem::start(repository.path()).await?;

    holds(
        &ends(&system, 0, &["backups"]).await?,
        &["repository main", "monday  full", "15"],
    )?;
    let list = system.explorer_json(&["backups"]).await?;
    ensure!(list.len() == 1, "one object a line: {list:?}");
    let list = list.first().context("an answer")?;
    ensure!(text_of(list, "/backups/0/label")? == "monday", "{list}");
    ensure!(
        list.pointer("/backups/0/size_bytes")
            .is_some_and(Value::is_u64),
        "{list}"
    );
    ends(&system, 0, &["topology", "check"]).await?;

    let follower = Follower::start(&system)?;
    let wait = [&PUBLISH[..], &["--wait", "--reason", "look at yesterday"]].concat();
    let shown = ends(&system, 0, &wait).await?;
    holds(
        &shown,
        &[
            "is published after",
            "connect",
            "psql -h",
            "timeline",
            "explorer unpublish",
        ],
    )?;
    follower.hears("io.pginstant.session.published.v1").await?;

    let sessions = system.explorer_json(&["sessions"]).await?;
    let id = text_of(
        sessions.first().context("an answer")?,
        "/sessions/0/session_id",
    )?;
    holds(
        &ends(&system, 0, &["sessions"]).await?,
        &[&id, "Published", "monday"],
    )?;
    holds(
        &ends(&system, 0, &["session", &id]).await?,
        &[&id, "look at yesterday", "validate", "mount"],
    )?;
    let events = system
        .explorer_json(&["events", "--since", "first", "--session", &id])
        .await?;
    ensure!(events.len() >= 8, "{events:?}");
    ensure!(
        text_of(events.first().context("events")?, "/type")? == "io.pginstant.session.accepted.v1"
    );
    holds(
        &ends(&system, 0, &["events", "--since", "1h"]).await?,
        &["accepted: ", "published: "],
    )?;

    // Nothing to retry, and a second session on the same port is refused.
    holds(
        &ends(&system, 75, &["retry", &id]).await?,
        &["[not_possible_now]"],
    )?;
    holds(&ends(&system, 73, &PUBLISH).await?, &["[port_in_use]"])?;

    let unpublished = system.explorer_json(&["unpublish", &id]).await?;
    ensure!(
        unpublished.len() == 1
            && text_of(unpublished.first().context("an answer")?, "/status")? == "Completed",
        "{unpublished:?}"
    );
    system.nothing_is_left_of(&id)?;
    let live = system.explorer_json(&["sessions"]).await?;
    ensure!(
        live.first()
            .and_then(|list| list.get("sessions"))
            .and_then(Value::as_array)
            .is_some_and(Vec::is_empty),
        "{live:?}"
    );
    holds(
        &ends(&system, 0, &["sessions", "--all"]).await?,
        &[&id, "Completed"],
    )
}

/// `explorer events --follow`, killed with its owner.
struct Follower {
    child: tokio::process::Child,
}

impl Follower {
    fn start(system: &TestSystem) -> Result<Self> {
        let child = tokio::process::Command::new(program("explorer")?)
            .arg("--config")
            .arg(system.path("explorer.toml"))
            .args(["--output", "json", "events", "--follow", "--since", "first"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child })
    }

    /// Reads until an event of the type comes.
    async fn hears(mut self, type_name: &str) -> Result<()> {
        let mut lines = BufReader::new(self.child.stdout.take().context("a pipe")?).lines();
        let heard = async {
            while let Some(line) = lines.next_line().await? {
                let event: Value = serde_json::from_str(&line)?;
                if text_of(&event, "/type")? == type_name {
                    return Ok(());
                }
            }
            anyhow::bail!("explorer events --follow ended")
        };
        tokio::time::timeout(Duration::from_secs(30), heard)
            .await
            .context(type_name.to_owned())??;
        self.child.kill().await?;
        Ok(())
    }
}

#[tokio::test]
async fn files_are_mounted_for_the_os_user_without_postgresql() -> Result<()> {
    let repository = SmallRepository::new()?;
    let system = TestSystem::start(repository.path()).await?;
    let mounted = system
        .explorer_json(&["mount", "--repository", "main", "--target", "here"])
        .await?;
    let mounted = mounted.last().context("an answer")?;
    ensure!(text_of(mounted, "/status")? == "Mounted", "{mounted}");
    let (id, data) = (
        text_of(mounted, "/session_id")?,
        text_of(mounted, "/mounted/data_directory")?,
    );
    let output = tokio::process::Command::new("runuser")
        .args(["-u", "postgres", "--", "cat"])
        .arg(format!("{data}/PG_VERSION"))
        .current_dir("/")
        .output()
        .await?;
    ensure!(output.stdout == b"15\n", "{output:?}");
    ensure!(
        !std::path::Path::new(&data).join("postmaster.pid").exists(),
        "PostgreSQL was started"
    );
    let mode = std::fs::metadata(&data)?.permissions().mode() & 0o777;
    ensure!(mode == 0o700 || mode == 0o750, "{mode:o}");
    let output = system.explorer(&["cancel", &id]).await?;
    ensure!(output.status.success(), "{}", said(&output));
    system.nothing_is_left_of(&id)?;

    let again = system
        .explorer_json(&["mount", "--repository", "main", "--target", "here"])
        .await?;
    let id = text_of(again.last().context("an answer")?, "/session_id")?;
    ends(&system, 0, &["unpublish", "--all"]).await?;
    system.reaches(&id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(&id)
}

#[tokio::test]
async fn parked_messages_are_looked_after_and_the_doctor_speaks() -> Result<()> {
    let repository = SmallRepository::new()?;
    let mut system = TestSystem::start(repository.path()).await?;
    let bus = system.bus(Role::ThirdParty).await?;
    for name in ["first-odd", "second-odd"] {
        let message = OutgoingMessage {
            destination: Destination::Commands {
                routing_key: topology::mount_queue(&broker::server()),
            },
            message_id: name.to_owned(),
            type_name: "odd".to_owned(),
            correlation_id: None,
            reply_to: None,
            headers: std::collections::BTreeMap::new(),
            body: b"odd".to_vec(),
        };
        bus.publish(message).await?;
    }
    bus.close().await;
    let count = async || -> Result<usize> {
        let lines = system.explorer_json(&["parked", "list"]).await?;
        let messages = lines
            .first()
            .and_then(|line| line.get("messages"))
            .and_then(Value::as_array);
        Ok(messages.context("no list")?.len())
    };
    let limit = Duration::from_secs(30);
    wait::until("both are parked", limit, async || {
        count().await.is_ok_and(|n| n == 2)
    })
    .await?;
    holds(
        &ends(&system, 0, &["parked", "list"]).await?,
        &["first-odd", "second-odd", "not a CloudEvent"],
    )?;
    holds(
        &ends(&system, 0, &["parked", "show", "first"]).await?,
        &["malformed_message", "body\nodd"],
    )?;
    holds(
        &ends(&system, 0, &["parked", "discard", "first-odd"]).await?,
        &["discarded"],
    )?;
    ensure!(count().await? == 1, "one was discarded");
    holds(
        &ends(&system, 0, &["parked", "retry", "second-odd"]).await?,
        &["sent back to mount.test1"],
    )?;
    wait::until("it is parked again", limit, async || {
        count().await.is_ok_and(|n| n == 1)
    })
    .await?;
    holds(
        &ends(&system, 64, &["parked", "show", "third"]).await?,
        &["third", "parked list"],
    )?;

    let healthy = system.explorer(&["doctor"]).await?;
    ensure!(
        matches!(healthy.status.code(), Some(0 | 2)),
        "{}",
        said(&healthy)
    );
    holds(
        &said(&healthy),
        &[
            "broker",
            "topology",
            "mount-svc",
            "fuse",
            "passthrough",
            "postgresql",
            "space",
            "1 parked messages",
        ],
    )?;
    let findings = json_lines(&system.explorer(&["doctor", "--output", "json"]).await?)?;
    ensure!(findings.len() == 1, "one object a line: {findings:?}");

    holds(
        &ends(&system, 64, &["publish"]).await?,
        &["--repository", "--help"],
    )?;
    holds(
        &ends(
            &system,
            65,
            &["session", "0190b5a8-7c3a-7def-8123-456789abcdef"],
        )
        .await?,
        &["[unknown_session]"],
    )?;
    holds(
        &ends(&system, 78, &["--server", "elsewhere", "sessions"]).await?,
        &["elsewhere"],
    )?;
    let slow = [&PUBLISH[..], &["--wait=0s"]].concat();
    holds(&ends(&system, 75, &slow).await?, &["session"])?;
    let sessions = system.explorer_json(&["sessions"]).await?;
    let unfinished = text_of(
        sessions.first().context("an answer")?,
        "/sessions/0/session_id",
    )?;
    ends(&system, 0, &["cancel", &unfinished]).await?;
    system.nothing_is_left_of(&unfinished)?;

    system.recovery_svc.kill();
    let bad = ends(&system, 2, &["doctor"]).await?;
    holds(&bad, &["BAD", "recovery-svc"])?;
    holds(
        &ends(&system, 69, &["sessions"]).await?,
        &["recovery-svc", "[service_unavailable]"],
    )?;
    system.broker.kill().await?;
    holds(
        &ends(&system, 69, &["sessions"]).await?,
        &["[broker_unavailable]"],
    )?;
    holds(&ends(&system, 2, &["doctor"]).await?, &["BAD", "broker"])?;
    Ok(())
}
