//! An instant recovery on the target: the original set aside, the published instance copied to its final place, the copy run as a
//! standby, and the standby made the instance that stays.
//!
//! What was there before us is only ever renamed. What we are about to do is written down durably first ([`record`]), so that every
//! request finds what an earlier one left, whenever that was killed.

mod directory;
mod final_instance;
mod manager;
mod occupant;
mod original;
mod place_check;
mod progress;
mod record;
mod removal;
mod replication;
mod settle;
mod standby;
mod switchover;
mod timelines;

use std::path::PathBuf;
use std::time::Duration;

use common::agent::hand::{
    FinalPlace, InstanceOptions, RecoveryAction, RecoveryRequest, RecoveryResponse, SessionPlace,
};
use common::problem::{ErrorCode, Problem};
use tokio::runtime::Handle;

use crate::hand::os_user::{Account, look_up};
use crate::postgresql::instance::Instance;
use crate::postgresql::process::{self, Process};
use crate::postgresql::query::{self, Asked};
use record::Record;

pub(crate) use record::holds_what_must_stay;
pub(crate) use timelines::keep_clear;

/// One request at work.
struct Recovery<'a> {
    place: &'a SessionPlace,
    final_place: &'a FinalPlace,
    account: Account,
    runtime: &'a Handle,
}

/// Answers a request.
pub(crate) fn answer(
    request: &RecoveryRequest,
    runtime: &Handle,
) -> Result<RecoveryResponse, Problem> {
    let recovery = Recovery {
        place: &request.place,
        final_place: &request.final_place,
        account: look_up(&request.place.os_user)?,
        runtime,
    };
    recovery.account.check_we_may_act()?;
    recovery.act(&request.action)
}

/// Whether a request changes the session, so that it must wait for its turn.
pub(crate) fn changes(action: &RecoveryAction) -> bool {
    !matches!(
        action,
        RecoveryAction::Check
            | RecoveryAction::StandbyStatus { .. }
            | RecoveryAction::Checkpoint { .. }
            | RecoveryAction::Positions { .. }
    )
}

impl Recovery<'_> {
    fn act(&self, action: &RecoveryAction) -> Result<RecoveryResponse, Problem> {
        let done = |()| RecoveryResponse::Done;
        match action {
            RecoveryAction::Check => self.check(),
            RecoveryAction::SetAside => self.set_aside().map(RecoveryResponse::SetAside),
            RecoveryAction::PutBack => self.put_back().map(done),
            RecoveryAction::BeginReplication { instance } => self
                .begin_replication(instance)
                .map(RecoveryResponse::Replication),
            RecoveryAction::ReplicationStatus => {
                self.replication_status().map(RecoveryResponse::Replication)
            }
            RecoveryAction::StartStandby { instance } => self.start_standby(instance).map(done),
            RecoveryAction::StandbyStatus { instance } => {
                self.standby_status(instance).map(RecoveryResponse::Standby)
            }
            RecoveryAction::Checkpoint { instance } => self.checkpoint(instance).map(done),
            RecoveryAction::Freeze { instance } => self.freeze(instance),
            RecoveryAction::Thaw { instance } => self.thaw(instance).map(done),
            RecoveryAction::StopStandby {
                instance,
                timeout_s,
            } => self
                .stop_standby(instance, Duration::from_secs((*timeout_s).into()))
                .map(done),
            RecoveryAction::Positions { instance } => {
                self.positions(instance).map(RecoveryResponse::Positions)
            }
            RecoveryAction::Settle { instance } => self.settle(instance),
            RecoveryAction::StartFinal { instance } => self.start_final(instance).map(done),
            RecoveryAction::FinalStatus { instance } => {
                self.final_status(instance).map(RecoveryResponse::Final)
            }
            RecoveryAction::RemoveStandby { instance } => {
                self.remove_standby(instance.as_ref()).map(done)
            }
        }
    }

    fn record(&self) -> Result<Record, Problem> {
        Record::load(self.place)
    }

    /// Directories of the final place: the data directory first, then the tablespaces'.
    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        let tablespaces = self.final_place.tablespaces.values();
        std::iter::once(&self.final_place.data_directory).chain(tablespaces)
    }

    /// Refuses what must not happen any more once the standby has become the instance that stays.
    fn refuse_when_settled(&self, record: &Record, what: &str) -> Result<(), Problem> {
        if record.settled.is_none() {
            return Ok(());
        }
        Err(not_now(
            format!(
                "{} is the instance that stays: {what}",
                self.final_place.data_directory.display()
            ),
            "go on with the switchover",
        ))
    }

    fn published<'b>(&'b self, options: &'b InstanceOptions) -> Instance<'b> {
        Instance {
            place: self.place,
            options,
            account: &self.account,
        }
    }

    fn published_process(&self) -> Option<Process> {
        crate::postgresql::instance::running(self.place, &self.account)
    }

    fn standby_process(&self) -> Option<Process> {
        process::postmaster(&self.standby_configuration(), self.account.uid)
    }

    fn standby_configuration(&self) -> PathBuf {
        self.place.configuration_directory().join("standby.conf")
    }

    /// One statement to the published instance.
    fn ask_published(
        &self,
        options: &InstanceOptions,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Problem> {
        self.ask(options.port, &options.superuser, sql, query::QUERY_FOR)
    }

    /// One statement over the session's socket directory.
    fn ask(
        &self,
        port: u16,
        user: &str,
        sql: &str,
        limit: Duration,
    ) -> Result<Vec<Vec<Option<String>>>, Problem> {
        let socket = self.place.socket_directory();
        let asked = Asked {
            socket_directory: &socket,
            port,
            user,
        };
        self.runtime
            .block_on(query::rows_within(&asked, "postgres", sql, limit))
    }

    /// Writes a file durably in the name of the OS user.
    fn write(&self, path: &std::path::Path, text: &str) -> Result<(), Problem> {
        self.account
            .act(|| crate::hand::write_durably(path, text, 0o600))?
            .map_err(|e| io_failed(format!("write {}", path.display()), e))
    }

    /// Reads a file in the name of the OS user; `None` if there is none.
    fn read(&self, path: &std::path::Path) -> Result<Option<String>, Problem> {
        match self
            .account
            .act(|| crate::postgresql::host_files::read_limited(path))?
        {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_failed(format!("read {}", path.display()), error)),
        }
    }

    /// Removes a file in the name of the OS user; none there is fine.
    fn remove(&self, path: &std::path::Path) -> Result<(), Problem> {
        match self.account.act(|| std::fs::remove_file(path))? {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io_failed(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }
}

/// A volume that fills up in the middle is no reason to give up: whoever makes room mends it, and the next retry finds that.
fn io_failed(doing: impl AsRef<str>, error: std::io::Error) -> Problem {
    let problem = crate::hand::failure(ErrorCode::IoFailed, doing, error);
    match problem.code {
        ErrorCode::NotEnoughSpace => Problem {
            code: ErrorCode::IoFailed,
            ..problem
        },
        _ => problem,
    }
}

fn not_now(message: impl Into<String>, remedy: &str) -> Problem {
    Problem::new(ErrorCode::NotPossibleNow, message, remedy)
}

/// First column of the first row.
fn value(rows: Vec<Vec<Option<String>>>) -> Option<String> {
    rows.into_iter().next()?.into_iter().next()?
}
