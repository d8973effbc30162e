//! The journal of a service: one SQLite file that holds its records, the commands it has dealt with (inbox), the messages it owes (outbox)
//! and the sessions' event logs, so that a transition, what it consumed and what it tells commit together or not at all.
//!
//! What must stay true: nothing is told that is not committed first; a committed message is relayed until the broker has it;
//! one process owns the file; every commit is on the disk before it returns (WAL, `synchronous=FULL`).

mod inbox;
mod outbox;
mod records;
mod relay;
mod schema;
mod sequence;

pub use outbox::OutboxDepth;
pub use records::{Record, RecordKey};
pub use relay::relay;
pub use sequence::LogEntry;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Notify;

use crate::env::Env;
use crate::problem::{ErrorCode, Problem};

/// Why the journal could not do something.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it open.
    #[error("the journal {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// SQLite finds its own structures broken.
    #[error("the journal {path} is damaged: {finding}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first finding.
        finding: String,
    },
    /// It was written by a newer version of the service.
    #[error("the journal {path} has schema version {found}, this program knows {known}")]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// What stands in it cannot be understood.
    #[error("the journal holds {what} that cannot be read: {reason}")]
    Unreadable {
        /// What it is.
        what: String,
        /// Why.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite failed.
    #[error("access the journal: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The runtime ends.
    #[error("the journal is closing")]
    Closing,
}

impl JournalError {
    /// Whether no retry can mend it.
    pub fn is_permanent(&self) -> bool {
        match self {
            JournalError::Damaged { .. }
            | JournalError::TooNew { .. }
            | JournalError::Unreadable { .. } => true,
            JournalError::InUse { .. }
            | JournalError::Io { .. }
            | JournalError::Sqlite(_)
            | JournalError::Closing => false,
        }
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Problem {
        let remedy = match &error {
            JournalError::InUse { .. } => "end the other instance of the service",
            JournalError::Damaged { .. } | JournalError::Unreadable { .. } => {
                "restore the state directory from a copy, or move it aside and clean up the sessions that explorer doctor reports"
            }
            JournalError::TooNew { .. } => {
                "start the version of the service that wrote the journal"
            }
            JournalError::Io { .. } | JournalError::Sqlite(_) | JournalError::Closing => {
                "check the space and the permissions of the state directory"
            }
        };
        Problem::new(ErrorCode::JournalFailed, error.to_string(), remedy)
    }
}

/// The open journal. Cheap to clone; [`Journal::close`] closes it for all clones.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    /// None once the journal is closed.
    open: Mutex<Option<Open>>,
    env: Env,
    /// Wakes the relay after a commit that may have left something in the outbox.
    committed: Notify,
}

struct Open {
    connection: Connection,
    /// The operating system gives it back when the process ends, however it ends.
    _lock: File,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}

/// Everything that can be read and written in one commit.
#[derive(Debug)]
pub struct Transaction<'a> {
    sqlite: rusqlite::Transaction<'a>,
    env: &'a Env,
    /// Whether the relay has something new to do after the commit.
    enqueued: std::cell::Cell<bool>,
}

impl Journal {
    /// Opens `journal.sqlite` in a directory (both are made when they are not there), checks its integrity and locks it for this process.
    pub fn open(directory: &Path, env: Env) -> Result<Self, JournalError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io {
                action,
                path,
                source,
            }
        };
        std::fs::create_dir_all(directory).map_err(io("create the state directory", directory))?;
        let path = directory.join("journal.sqlite");
        let lock_path = directory.join("journal.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io("open the lock file", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        let connection = schema::open(&path)?;
        Ok(Self {
            shared: Arc::new(Shared {
                open: Mutex::new(Some(Open {
                    connection,
                    _lock: lock,
                })),
                env,
                committed: Notify::new(),
            }),
        })
    }

    /// Runs `work` in one transaction and commits it; an error of `work` leaves nothing behind.
    pub async fn commit<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<JournalError> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || shared.commit(work)).await;
        done.unwrap_or_else(|_| Err(JournalError::Closing.into()))
    }

    /// Closes the file and gives its lock back, after a commit that is under way (it runs to its end even when nobody waits for it any more).
    /// Every later commit fails with [`JournalError::Closing`].
    pub async fn close(&self) {
        let shared = Arc::clone(&self.shared);
        let closed = tokio::task::spawn_blocking(move || {
            shared
                .open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
        });
        if closed.await.is_err() {
            tracing::warn!("the journal could not be closed");
        }
    }

    /// Waits until something may have been put into the outbox.
    async fn committed(&self) {
        self.shared.committed.notified().await;
    }
}

impl Shared {
    fn commit<T, E: From<JournalError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // A panic in `work` rolled its transaction back: the connection is as good as before.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let sqlite = open
            .as_mut()
            .ok_or(JournalError::Closing)?
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(JournalError::from)?;
        let transaction = Transaction {
            sqlite,
            env: &self.env,
            enqueued: std::cell::Cell::new(false),
        };
        let value = work(&transaction)?;
        let enqueued = transaction.enqueued.get();
        transaction.sqlite.commit().map_err(JournalError::from)?;
        if enqueued {
            self.committed.notify_one();
        }
        Ok(value)
    }
}

fn unreadable(what: impl Into<String>, reason: impl ToString) -> JournalError {
    JournalError::Unreadable {
        what: what.into(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
