//! The driver against doubles (bus in memory, scripted hand, mount service that answers twice): what a restart, a duplicate or a failure at each
//! exact step does. The same walks with the real broker, agent and PostgreSQL are in the workspace's `tests`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may panic"
)]

mod support;

use common::ids::{EventId, SessionId};
use common::messages::*;
use common::problem::ErrorCode;
use support::{MOUNT_QUEUE, QUEUE, RETRY_QUEUE, Stage, envelope, incoming};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_published_once_although_everything_is_said_twice() {
    let mut stage = Stage::new(0).await;
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    let starts = |stage: &Stage| {
        let target = stage.target();
        target.requests.iter().filter(|r| **r == "start").count()
    };
    assert_eq!(starts(&stage), 1);
    stage.new_command(Unpublish {
        session_id: session,
    });
    stage.until_status(session, SessionStatus::Completed).await;
    assert!(!stage.target().running && !stage.target().cache);
    let phases = stage.phases(session);
    for once in ["accepted", "published", "unpublishing", "completed"] {
        let count = phases.iter().filter(|phase| **phase == once).count();
        assert_eq!(count, 1, "{once} in {phases:?}");
    }
    stage.check_sequences();
    let metrics = stage.running.as_ref().unwrap().metrics_text();
    assert!(metrics.contains("pginstant_session_state_transitions_total"));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_any_step_is_resumed_and_costs_no_attempt() {
    for hang in [
        "hello",
        "host_facts",
        "mount",
        "find",
        "prepare",
        "start",
        "status",
    ] {
        let mut stage = Stage::new(0).await;
        stage.target().hang.push(hang);
        let session = stage.publish();
        stage
            .until("the session is accepted", |s| {
                s.phases(session).contains(&"step_started")
            })
            .await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        stage.stop.cancel();
        stage.end().await;
        stage.start().await;
        stage.until_status(session, SessionStatus::Published).await;
        let attempts: Vec<u32> = stage
            .bus
            .events()
            .iter()
            .filter_map(|event| match &event.payload.body {
                EventBody::StepStarted(started) => Some(started.attempt),
                _ => None,
            })
            .collect();
        assert!(attempts.iter().all(|attempt| *attempt == 1), "{hang}");
        stage.check_sequences();
        stage.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_failure_undoes_what_was_made_and_a_temporary_one_keeps_it() {
    for (request, code, status, cache) in [
        (
            "check_os_user",
            ErrorCode::UnknownOsUser,
            SessionStatus::Failed,
            false,
        ),
        (
            "mount",
            ErrorCode::CorruptBackup,
            SessionStatus::Failed,
            false,
        ),
        (
            "find",
            ErrorCode::PostgresqlNotFound,
            SessionStatus::Failed,
            false,
        ),
        (
            "prepare",
            ErrorCode::IoFailed,
            SessionStatus::WaitingForManualRetry,
            true,
        ),
        (
            "start",
            ErrorCode::InstanceFailed,
            SessionStatus::WaitingForManualRetry,
            true,
        ),
    ] {
        let mut stage = Stage::new(0).await;
        stage.target().fail.insert(request, (code, 1));
        let session = stage.publish();
        stage.until_status(session, status).await;
        assert_eq!(stage.target().cache, cache, "{request}");
        if status == SessionStatus::WaitingForManualRetry {
            stage.new_command(Retry {
                session_id: session,
            });
            stage.until_status(session, SessionStatus::Published).await;
        }
        stage.check_sequences();
        stage.end().await;
    }
}

/// Opening compressed archives may take hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_may_take_any_time_as_long_as_it_advances() {
    let mut stage = Stage::with_mount_answer(2).await;
    stage.target().hang.push("mount");
    let session = stage.publish();
    let mut request = None;
    while request.is_none() {
        request = stage.bus.pop(MOUNT_QUEUE);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let request = request.unwrap();
    let request: Envelope<Internal> =
        Envelope::from_bytes(&request.body, Limits::COMMAND_BYTES).unwrap();
    let Internal::MountRequest(request) = request.payload else {
        panic!("{request:?}");
    };
    // Longer than mount-svc may say nothing.
    let began = tokio::time::Instant::now();
    let mut told = 0;
    while began.elapsed().as_secs() < 4 {
        told += 1;
        let progress = MountProgress {
            session_id: session,
            epoch: request.epoch,
            text: format!("read {told} MiB"),
            done_bytes: told,
            total_bytes: 100,
        };
        stage
            .bus
            .send(QUEUE, stage.env.event_id(), Internal::from(progress));
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(stage.status(session), Some(SessionStatus::Publishing));
    let is_told = |event: &Envelope<Event>| match &event.payload.body {
        EventBody::StepProgress(progress) => {
            progress.step == Step::Mount && progress.done_bytes == Some(told)
        }
        _ => false,
    };
    stage
        .until("progress is told", |s| s.bus.events().iter().any(is_told))
        .await;
    // Nothing more comes: this one is not waited for any longer.
    stage
        .until_status(session, SessionStatus::WaitingForManualRetry)
        .await;
    let events = stage.bus.events();
    let why = events.iter().find_map(|event| match &event.payload.body {
        EventBody::Waiting(waiting) => Some(waiting.problem.code),
        _ => None,
    });
    assert_eq!(why, Some(ErrorCode::TimedOut));
    stage.check_sequences();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_in_a_step_that_hangs_ends_it_first_and_undoes_the_rest() {
    let mut stage = Stage::new(0).await;
    stage.target().hang.push("start");
    let session = stage.publish();
    stage
        .until("the start hangs", |s| {
            s.target().requests.contains(&"prepare")
                && s.phases(session)
                    .iter()
                    .filter(|p| **p == "step_started")
                    .count()
                    == 4
        })
        .await;
    stage.new_command(Cancel {
        session_id: session,
    });
    stage.until_status(session, SessionStatus::Cancelling).await;
    assert!(!stage.target().requests.contains(&"stop"));
    stage.target().hang.clear();
    stage.until_status(session, SessionStatus::Cancelled).await;
    assert!(!stage.target().running && !stage.target().cache);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_instance_waits_and_a_retry_keeps_the_write_cache() {
    let mut stage = Stage::new(0).await;
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    stage.target().running = false;
    stage
        .until_status(session, SessionStatus::WaitingForManualRetry)
        .await;
    assert!(stage.target().cache);
    stage.new_command(Retry {
        session_id: session,
    });
    stage.until_status(session, SessionStatus::Published).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automatic_attempts_come_back_through_the_retry_queue_and_end_after_their_number() {
    let mut stage = Stage::new(2).await;
    stage
        .target()
        .fail
        .insert("check_os_user", (ErrorCode::TargetUnreachable, 3));
    let session = stage.publish();
    for _ in 0..2 {
        stage
            .until("a message in the retry queue", |s| {
                let Some(message) = s.bus.pop(RETRY_QUEUE) else {
                    return false;
                };
                assert!(message.headers.contains_key("x-attempt"));
                s.bus.put(QUEUE, message.clone());
                s.bus.put(QUEUE, message);
                true
            })
            .await;
    }
    stage
        .until_status(session, SessionStatus::WaitingForManualRetry)
        .await;
    let phases = stage.phases(session);
    let count = |name| phases.iter().filter(|phase| **phase == name).count();
    assert_eq!(
        (
            count("retrying"),
            count("waiting"),
            count("retries_exhausted")
        ),
        (2, 3, 1)
    );
    stage.new_command(Retry {
        session_id: session,
    });
    stage.until_status(session, SessionStatus::Published).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_are_parked_with_the_reason_and_the_worker_goes_on() {
    let mut stage = Stage::new(0).await;
    let id = stage.env.event_id();
    let good = envelope(
        id,
        Command::from(Cancel {
            session_id: stage.env.command_id().into(),
        }),
    );
    let mut messages = Vec::new();
    for body in [
        Vec::new(),
        b"{".to_vec(),
        vec![0xff; 10_000],
        vec![b' '; 100_000],
        b"[[[[[[".to_vec(),
        br#"{"specversion":"1.0","id":"0190b5a8-7c3a-7def-8123-456789abcdef","source":"/x","type":"io.pginstant.command.destroy.v1"}"#.to_vec(),
        br#"{"specversion":"1.0","id":"0190b5a8-7c3a-7def-8123-456789abcdee","source":"/x","type":"io.pginstant.command.publish.v1","data":{"repository":"../x"}}"#.to_vec(),
    ] {
        let mut message = incoming(&good, QUEUE);
        message.body = body;
        messages.push(message);
    }
    let mut forged = incoming(
        &envelope(
            id,
            Internal::from(RetryDue {
                session_id: stage.env.command_id().into(),
                epoch: 1,
                attempt: 2,
            }),
        ),
        QUEUE,
    );
    forged.exchange = "cmd".to_owned();
    messages.push(forged);
    // A command that did not pass mount-svc.
    let mut around = incoming(&good, QUEUE);
    around.exchange = "cmd".to_owned();
    messages.push(around);
    let mut unanswerable = incoming(
        &envelope(
            id,
            Query::from(SessionsQuery {
                include_ended: true,
            }),
        ),
        QUEUE,
    );
    unanswerable.reply_to = Some(QUEUE.to_owned());
    messages.push(unanswerable);
    let count = messages.len();
    for message in messages {
        stage.bus.put(QUEUE, message);
    }
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    let mut parked = Vec::new();
    while let Some(message) = stage.bus.pop("parked") {
        assert!(message.headers.contains_key("x-reason"), "{message:?}");
        parked.push(message);
    }
    assert_eq!(parked.len(), count);
    let rejected = |stage: &Stage| {
        let events = stage.bus.events();
        let rejected = events
            .iter()
            .filter(|event| matches!(event.payload.body, EventBody::CommandRejected(_)));
        rejected.count()
    };
    stage
        .until("two told rejections", |s| rejected(s) >= 2)
        .await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_cannot_be_taken_are_rejected_with_the_reason() {
    let mut stage = Stage::new(0).await;
    stage.new_command(Cancel {
        session_id: stage.env.command_id().into(),
    });
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    stage.new_command(Retry {
        session_id: session,
    });
    let codes = |stage: &Stage| -> Vec<ErrorCode> {
        let events = stage.bus.events();
        let bodies = events.iter().map(|event| &event.payload.body);
        bodies
            .filter_map(|body| match body {
                EventBody::CommandRejected(rejected) => Some(rejected.problem.code),
                _ => None,
            })
            .collect()
    };
    stage
        .until("both rejections", |s| codes(s).len() == 2)
        .await;
    assert_eq!(
        codes(&stage),
        [ErrorCode::UnknownSession, ErrorCode::NotPossibleNow]
    );
    // A second session on the same port of the same target.
    let second = stage.publish();
    stage.until_status(second, SessionStatus::Failed).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_to_the_asker() {
    let mut stage = Stage::new(0).await;
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    let ask = |query: Query| {
        let id: EventId = stage.env.event_id();
        let mut message = incoming(&envelope(id, query), QUEUE);
        message.reply_to = Some("asker".to_owned());
        message.correlation_id = Some("c1".to_owned());
        message.exchange = "cmd".to_owned();
        stage.bus.put(QUEUE, message);
    };
    ask(SessionsQuery {
        include_ended: false,
    }
    .into());
    ask(SessionQuery {
        session_id: session,
    }
    .into());
    ask(HostCheckQuery { target: None }.into());
    ask(SessionQuery {
        session_id: stage.env.command_id().into(),
    }
    .into());
    let mut replies = Vec::new();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while replies.len() < 4 {
        assert!(tokio::time::Instant::now() < deadline, "{replies:?}");
        match stage.bus.pop("asker") {
            Some(message) => {
                assert_eq!(message.correlation_id.as_deref(), Some("c1"));
                let reply: Envelope<Reply> =
                    Envelope::from_bytes(&message.body, Limits::REPLY_BYTES).unwrap();
                replies.push(reply.payload);
            }
            None => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    for reply in &replies {
        match reply {
            Reply::SessionList(list) => assert_eq!(list.sessions.len(), 1),
            Reply::SessionDetail(detail) => {
                assert_eq!(detail.steps.len(), 5);
                assert!(detail.published.is_some() && !detail.log.is_empty());
            }
            Reply::HostCheck(check) => assert!(check.lines.iter().any(|l| l.name == "fuse")),
            Reply::Refused(refused) => assert_eq!(refused.problem.code, ErrorCode::UnknownSession),
            Reply::BackupList(_) => panic!("nobody asked"),
        }
    }
    stage.end().await;
}

async fn fails_once(every_s: u32) -> (Stage, SessionId) {
    let stage = Stage::with_retries(2, Some(every_s)).await;
    let failure = (ErrorCode::TargetUnreachable, 1);
    stage.target().fail.insert("check_os_user", failure);
    let session = stage.publish();
    (stage, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_is_due_before_the_queue_gives_its_message_back_begins_by_itself() {
    // The stage's queue keeps messages for 5 s, and nobody gives them back.
    let (mut stage, session) = fails_once(1).await;
    stage.until_status(session, SessionStatus::Published).await;
    assert!(stage.bus.pop(RETRY_QUEUE).is_some());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_whose_message_comes_back_too_early_waits_until_it_is_due() {
    let (mut stage, session) = fails_once(3).await;
    stage
        .until("a message in the retry queue", |s| {
            let message = s.bus.pop(RETRY_QUEUE);
            message.is_some_and(|message| {
                s.bus.put(QUEUE, message);
                true
            })
        })
        .await;
    stage.until_status(session, SessionStatus::Published).await;
    let at = |phase| {
        let events = stage.bus.events();
        let event = events.iter().find(|e| e.payload.body.phase() == phase);
        event.unwrap().time.unwrap()
    };
    let waited = at("retrying").duration_since(at("waiting"));
    // The event is written a moment after the time was set.
    assert!(waited.as_millis() >= 2_900, "{waited:?}");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_ended_sessions_are_released_at_start_and_unknown_ones_are_left_alone() {
    use common::agent::hand::FoundSession;
    let mut stage = Stage::new(0).await;
    let session = stage.publish();
    stage.until_status(session, SessionStatus::Published).await;
    stage.new_command(Unpublish {
        session_id: session,
    });
    stage.until_status(session, SessionStatus::Completed).await;
    stage.end().await;
    for session_id in [session, stage.env.command_id().into()] {
        stage.target().leftovers.push(FoundSession {
            session_id,
            mounted: false,
            supervised: false,
        });
    }
    stage.target().cache = true;
    stage.start().await;
    stage
        .until("the leftover is released", |s| !s.target().cache)
        .await;
    stage.end().await;
}
