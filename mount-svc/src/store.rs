//! The mounts that mount-svc owes or keeps: their records in the journal, and a keeper task for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::bus::{Destination, OutgoingMessage};
use common::env::Env;
use common::ids::SessionId;
use common::journal::{Journal, JournalError, RecordKey, Transaction};
use common::messages::{Envelope, Internal};
use common::problem::Problem;
use common::topology;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::keeper;
use crate::record::{MountRecord, Pinned};
use crate::repositories::Shared;

const KIND: &str = "mount";
/// Most mounts that one mount server keeps.
const MOUNTS_MAX: usize = 1_000;
/// Wait between attempts to write the journal when it fails (a full disk).
const JOURNAL_AGAIN: Duration = Duration::from_secs(2);

/// Records and keepers.
#[derive(Debug)]
pub struct Store {
    /// The configuration.
    pub config: Arc<Config>,
    shared: Shared,
    journal: Journal,
    env: Env,
    keepers: Mutex<HashMap<SessionId, watch::Sender<MountRecord>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn key(session_id: SessionId) -> RecordKey {
    RecordKey {
        kind: KIND,
        id: session_id.to_string(),
    }
}

impl Store {
    /// A store without keepers; [`Store::resume`] starts them.
    pub fn new(
        config: Arc<Config>,
        journal: Journal,
        env: Env,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Shared::new(&config),
            config,
            journal,
            env,
            keepers: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
        })
    }

    /// What all backups that are open share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts a keeper for every mount of the journal.
    pub async fn resume(self: &Arc<Self>) -> Result<usize, JournalError> {
        let records = self
            .journal
            .commit(|t| t.records::<MountRecord>(KIND, false, MOUNTS_MAX))
            .await?;
        let count = records.len();
        for record in records {
            self.wake(record.body);
        }
        Ok(count)
    }

    /// Reads a mount's record.
    pub fn record(
        t: &Transaction<'_>,
        session_id: SessionId,
    ) -> Result<Option<MountRecord>, JournalError> {
        Ok(t.record::<MountRecord>(&key(session_id))?
            .map(|record| record.body))
    }

    /// Writes a mount's record; to be followed by [`Store::wake`] after the commit.
    pub fn put(t: &Transaction<'_>, record: &MountRecord) -> Result<(), JournalError> {
        t.put_record(&key(record.session_id()), record, false)
    }

    /// Gives a changed record to its keeper, which is started when there is none.
    pub fn wake(self: &Arc<Self>, record: MountRecord) {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.retain(|_, sender| !sender.is_closed());
        let session_id = record.session_id();
        if let Some(sender) = keepers.get(&session_id) {
            sender.send_replace(record);
            return;
        }
        let (sender, receiver) = watch::channel(record);
        keepers.insert(session_id, sender);
        self.tasks
            .spawn(keeper::keep(self.clone(), receiver, self.stop.clone()));
    }

    /// Writes down what a mount shows before anybody gets to see it. A record that was changed meanwhile by a newer request stays as
    /// it is, which `None` says.
    pub async fn pin(&self, before: &MountRecord, pinned: &Pinned) -> Option<MountRecord> {
        let after = before.clone().with_pinned(pinned);
        if after == *before {
            return Some(after);
        }
        let (session_id, written) = (before.session_id(), after.clone());
        let done = self.journaled(
            move |t: &Transaction<'_>, before: &MountRecord| {
                let unchanged = Self::record(t, session_id)?.as_ref() == Some(before);
                if unchanged {
                    Self::put(t, &written)?;
                }
                Ok(unchanged)
            },
            before,
        );
        if done.await != Some(true) {
            return None;
        }
        self.replace(before, after.clone());
        Some(after)
    }

    /// Gives a keeper the record that it wrote itself, unless somebody has sent a newer one since.
    fn replace(&self, before: &MountRecord, after: MountRecord) {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = keepers.get(&before.session_id()) {
            sender.send_if_modified(|present| {
                let same = present == before;
                if same {
                    *present = after;
                }
                same
            });
        }
    }

    /// Commits a keeper's result: the record after it (`None`: removed) and the answer to recovery-svc. A record that was changed
    /// meanwhile by a newer request stays as it is, which `false` says; then the answer, whose epoch is old, does no harm.
    pub async fn settle(
        &self,
        before: &MountRecord,
        after: Option<MountRecord>,
        answer: Internal,
    ) -> bool {
        let message = self.message(answer);
        let session_id = before.session_id();
        let kept = after.clone();
        let done = self.journaled(
            move |t: &Transaction<'_>, before: &MountRecord| {
                let unchanged = Self::record(t, session_id)?.as_ref() == Some(before);
                if unchanged {
                    match &after {
                        Some(record) => Self::put(t, record)?,
                        None => t.remove_record(&key(session_id))?,
                    }
                }
                t.enqueue(Some(&session_id.to_string()), &message)?;
                Ok(unchanged)
            },
            before,
        );
        let settled = done.await == Some(true);
        if settled && let Some(record) = kept {
            self.replace(before, record);
        }
        settled
    }

    /// Takes a keeper off the list, unless it was woken for a newer request since it looked.
    pub fn retire(&self, session_id: SessionId, wanted: &watch::Receiver<MountRecord>) -> bool {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = !wanted.has_changed().unwrap_or(false);
        if is_idle {
            keepers.remove(&session_id);
        }
        is_idle
    }

    /// Tells recovery-svc something that changes no record.
    pub async fn tell(&self, session_id: SessionId, news: Internal) {
        let message = self.message(news);
        self.journaled(
            move |t: &Transaction<'_>, (): &()| t.enqueue(Some(&session_id.to_string()), &message),
            &(),
        )
        .await;
    }

    /// Tells recovery-svc something of which only the last word matters: nothing where earlier messages still wait for the broker, and
    /// a journal that cannot be written is no reason to wait.
    pub async fn tell_in_passing(&self, news: Internal) {
        let message = self.message(news);
        let told = self.journal.commit(move |t| {
            if t.outbox_depth()?.pending_count == 0 {
                t.enqueue(None, &message)?;
            }
            Ok::<(), JournalError>(())
        });
        if let Err(error) = told.await {
            tracing::debug!(%error, "tell how far a mount is");
        }
    }

    /// Runs a transaction until it succeeds or the service stops: what a keeper has done must be told.
    async fn journaled<T, C>(
        &self,
        work: impl Fn(&Transaction<'_>, &C) -> Result<T, JournalError> + Send + Sync + 'static,
        context: &C,
    ) -> Option<T>
    where
        T: Send + 'static,
        C: Clone + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        loop {
            let (work, context) = (work.clone(), context.clone());
            match self.journal.commit(move |t| work(t, &context)).await {
                Ok(value) => return Some(value),
                Err(error) => {
                    tracing::error!(%error, "write the journal");
                    tokio::select! {
                        () = self.stop.cancelled() => return None,
                        () = tokio::time::sleep(JOURNAL_AGAIN) => {}
                    }
                }
            }
        }
    }

    fn message(&self, internal: Internal) -> OutgoingMessage {
        let envelope = Envelope {
            id: self.env.event_id().uuid(),
            source: format!("/hosts/{}/mount-svc", self.config.server),
            subject: None,
            time: Some(self.env.now()),
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload: internal,
        };
        let queue = topology::recovery_queue(&self.config.server);
        OutgoingMessage::new(Destination::Queue(queue), &envelope)
    }

    /// How many mounts have a keeper.
    pub fn count(&self) -> usize {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers
            .values()
            .filter(|sender| !sender.is_closed())
            .count()
    }

    /// Waits until every keeper has ended after the stop.
    pub async fn closed(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The refusal for one mount too many.
    pub fn room(&self) -> Result<(), Problem> {
        if self.count() < MOUNTS_MAX {
            return Ok(());
        }
        Err(Problem::new(
            common::problem::ErrorCode::NotPossibleNow,
            format!(
                "mount server {} keeps {MOUNTS_MAX} mounts already",
                self.config.server
            ),
            "unpublish some of its sessions",
        ))
    }
}
