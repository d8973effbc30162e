use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::bus::{
    Bus, BusError, BusHealth, Deliveries, Delivery, Destination, OutgoingMessage, PrivateQueue,
    PublishError, StreamFrom,
};

fn open(directory: &Path) -> Journal {
    Journal::open(directory, Env::system()).unwrap()
}

fn message(queue: &str, id: &str) -> OutgoingMessage {
    OutgoingMessage {
        destination: Destination::Queue(queue.to_owned()),
        message_id: id.to_owned(),
        type_name: "t".to_owned(),
        correlation_id: None,
        reply_to: None,
        headers: BTreeMap::from([("x-a".to_owned(), "b".to_owned())]),
        body: vec![1, 2, 3],
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening_and_what_failed_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let id = Uuid::from_u128(7);
    let key = RecordKey {
        kind: "thing",
        id: "a".to_owned(),
    };
    {
        let journal = open(directory.path());
        let in_key = key.clone();
        journal
            .commit(move |t| {
                t.put_record(&in_key, &vec![1, 2], false)?;
                t.remember(id, "first")?;
                assert_eq!(t.next_sequence("s")?, 1);
                t.enqueue(Some("s"), &message("q", "m1"))
            })
            .await
            .unwrap();
        let in_key = key.clone();
        let failed: Result<(), JournalError> = journal
            .commit(move |t| {
                t.put_record(&in_key, &vec![9], true)?;
                assert_eq!(t.next_sequence("s")?, 2);
                t.enqueue(Some("s"), &message("q", "m2"))?;
                Err(JournalError::Closing)
            })
            .await;
        assert!(failed.is_err());
    }
    let journal = open(directory.path());
    journal
        .commit(move |t| {
            let record: Record<Vec<u32>> = t.record(&key)?.unwrap();
            assert_eq!((record.body, record.ended), (vec![1, 2], false));
            assert_eq!(t.inbox_outcome(id)?.as_deref(), Some("first"));
            t.remember(id, "second")?;
            assert_eq!(t.inbox_outcome(id)?.as_deref(), Some("first"));
            assert_eq!(t.next_sequence("s")?, 2, "no gap");
            assert_eq!(t.outbox_depth()?.pending_count, 1);
            let owed = t.owed()?;
            assert_eq!(owed[0].message, message("q", "m1"));
            Ok::<(), JournalError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_journal_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let second = Journal::open(directory.path(), Env::system());
    assert!(matches!(second, Err(JournalError::InUse { .. })));
    drop(journal);
    open(directory.path());
}

#[tokio::test]
async fn closing_waits_for_a_commit_that_nobody_awaits_any_more_and_gives_the_file_back() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go, may_go) = std::sync::mpsc::sync_channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    let commit = tasks.spawn({
        let journal = journal.clone();
        async move {
            let work = move |t: &Transaction<'_>| {
                begun.send(()).unwrap();
                may_go.recv().unwrap();
                t.remember(Uuid::from_u128(1), "done")
            };
            journal.commit(work).await.unwrap();
        }
    });
    has_begun.await.unwrap();
    commit.abort();
    tasks.join_next().await.unwrap().unwrap_err();
    tasks.spawn({
        let journal = journal.clone();
        async move { journal.close().await }
    });
    let second = Journal::open(directory.path(), Env::system());
    assert!(matches!(second, Err(JournalError::InUse { .. })));
    go.send(()).unwrap();
    tasks.join_next().await.unwrap().unwrap();
    let after = journal
        .commit(|t| t.remember(Uuid::from_u128(2), "too late"))
        .await;
    assert!(matches!(after, Err(JournalError::Closing)), "{after:?}");
    let reopened = open(directory.path());
    let outcome = reopened
        .commit(|t| t.inbox_outcome(Uuid::from_u128(1)))
        .await;
    assert_eq!(outcome.unwrap().as_deref(), Some("done"));
}

#[test]
fn a_damaged_or_newer_file_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.sqlite");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let damaged = Journal::open(directory.path(), Env::system()).unwrap_err();
    assert!(
        matches!(damaged, JournalError::Damaged { .. }),
        "{damaged:?}"
    );
    assert!(damaged.is_permanent());
    std::fs::remove_file(&path).unwrap();
    drop(open(directory.path()));
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let newer = Journal::open(directory.path(), Env::system()).unwrap_err();
    assert!(
        matches!(newer, JournalError::TooNew { found: 99, .. }),
        "{newer:?}"
    );
}

#[tokio::test]
async fn the_log_of_a_session_is_bounded_and_comes_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    journal
        .commit(|t| {
            for _ in 0..1_500 {
                let sequence = t.next_sequence("s")?;
                let entry = LogEntry {
                    at: jiff::Timestamp::UNIX_EPOCH,
                    sequence,
                    event_type: "e".to_owned(),
                    text: "x".to_owned(),
                };
                t.append_log("s", &entry)?;
            }
            let log: Vec<u64> = t.log("s", 3)?.iter().map(|entry| entry.sequence).collect();
            assert_eq!(log, [1_498, 1_499, 1_500]);
            assert!(t.log("s", 5_000)?.len() < 1_200);
            Ok::<(), JournalError>(())
        })
        .await
        .unwrap();
}

/// A bus double that publishes into memory and can be made to fail: the real one cannot fail on demand.
#[derive(Debug, Default)]
struct ScriptedBus {
    sent: Mutex<Vec<(String, String)>>,
    down: Mutex<bool>,
    missing: Mutex<HashMap<String, u32>>,
}

#[async_trait]
impl Bus for ScriptedBus {
    async fn publish(&self, message: OutgoingMessage) -> Result<(), PublishError> {
        let Destination::Queue(queue) = message.destination else {
            panic!("queues only")
        };
        if *self.down.lock().unwrap() {
            return Err(PublishError::TimedOut {
                after_s: 0,
                last_error: "down".to_owned(),
            });
        }
        if let Some(count) = self.missing.lock().unwrap().get_mut(&queue) {
            *count += 1;
            return Err(PublishError::Returned { destination: queue });
        }
        self.sent.lock().unwrap().push((queue, message.message_id));
        Ok(())
    }
    async fn consume(&self, _queue: &str, _prefetch: u16) -> Result<Deliveries, BusError> {
        Err(BusError::Closed)
    }
    async fn private_queue(&self, _event_keys: &[&str]) -> Result<PrivateQueue, BusError> {
        Err(BusError::Closed)
    }
    async fn read_events(&self, _from: StreamFrom) -> Result<Deliveries, BusError> {
        Err(BusError::Closed)
    }
    async fn take(&self, _queue: &str) -> Result<Option<Delivery>, BusError> {
        Err(BusError::Closed)
    }
    async fn depth(&self, _queue: &str) -> Result<u64, BusError> {
        Err(BusError::Closed)
    }
    fn health(&self) -> BusHealth {
        BusHealth::default()
    }
    async fn close(&self) {}
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(
            tokio::time::Instant::now() < give_up,
            "still missing: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_relay_keeps_the_order_of_a_session_over_an_outage_and_an_unroutable_message_blocks_nobody()
 {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    let bus = Arc::new(ScriptedBus::default());
    *bus.down.lock().unwrap() = true;
    bus.missing.lock().unwrap().insert("nowhere".to_owned(), 0);
    let shutdown = CancellationToken::new();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(relay(journal.clone(), bus.clone(), shutdown.clone()));
    journal
        .commit(|t| {
            t.enqueue(Some("lost"), &message("nowhere", "lost-0"))?;
            for n in 1..=40 {
                t.enqueue(Some("lost"), &message("q-lost", &format!("{n}")))?;
                t.enqueue(Some("good"), &message("q-good", &format!("{n}")))?;
            }
            t.enqueue(None, &message("q-alone", "1"))
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(bus.sent.lock().unwrap().is_empty());
    *bus.down.lock().unwrap() = false;
    until("all relayed", async || {
        journal.outbox_depth().await.unwrap().pending_count == 0
    })
    .await;
    shutdown.cancel();
    tasks.join_next().await.unwrap().unwrap();
    let expected: Vec<String> = (1..=40).map(|n: u32| n.to_string()).collect();
    let sent = bus.sent.lock().unwrap().clone();
    for queue in ["q-lost", "q-good"] {
        let ids: Vec<String> = sent
            .iter()
            .filter(|(to, _)| to == queue)
            .map(|(_, id)| id.clone())
            .collect();
        assert_eq!(ids, expected, "{queue}");
    }
    assert!(sent.contains(&("q-alone".to_owned(), "1".to_owned())));
    let depth = journal.outbox_depth().await.unwrap();
    assert_eq!((depth.pending_count, depth.parked_count), (0, 1));
}
