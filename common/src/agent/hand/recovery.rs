//! Typed requests for an instant recovery: the original set aside, the published instance replicated to its final place, and the
//! standby made the instance that stays.
//!
//! All are idempotent: each finds what an earlier run left and goes on from there. What must be known after a crash stands in the
//! session's directory, written durably before the thing that it describes is done.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{InstanceOptions, InstanceStatus, SessionPlace};

/// Where the instance is to stay.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FinalPlace {
    /// Data directory, absolute.
    pub data_directory: PathBuf,
    /// Directory of each tablespace by its oid, absolute; every tablespace of the backup is here.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Whether what is in these directories may be moved aside (never deleted), after a PostgreSQL that runs there was stopped.
    pub replace: Replace,
}

/// What may be done about directories that are not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replace {
    /// Nothing: they are refused with [`crate::problem::ErrorCode::DirectoryNotEmpty`].
    Never,
    /// They are renamed to `<directory>.before-<session>`.
    MoveAside,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryRequest {
    /// Where the session lives.
    pub place: SessionPlace,
    /// Where the instance is to stay.
    pub final_place: FinalPlace,
    /// What is wanted.
    pub action: RecoveryAction,
}

/// What can be wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RecoveryAction {
    /// May the directories be used? Absolute, not inside each other or the session's, their parents there and searchable for the OS
    /// user, empty or agreed to be moved aside (ours from an earlier attempt count as empty). Changes nothing.
    /// Answered by [`RecoveryResponse::Checked`].
    Check,
    /// Stop (fast) a PostgreSQL that runs in the data directory, note how the host had started it, and move the directories aside.
    /// Answered by [`RecoveryResponse::SetAside`].
    SetAside,
    /// Bring back what was set aside, to its place, and start it if it was running, the way it had been started.
    /// Refused while a half-made standby is in its place. Answered by [`RecoveryResponse::Done`].
    PutBack,
    /// Create the replication slot and have `pg_basebackup` copy the published instance to the final place, as a process that outlives
    /// this connection. Running or complete: fine. Leftovers of one that broke off are removed first.
    /// Answered by [`RecoveryResponse::Replication`].
    BeginReplication {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// How far is the copy? Answered by [`RecoveryResponse::Replication`].
    ReplicationStatus,
    /// Start the copy as a standby that streams from the published instance and listens on a private socket only. Running: fine.
    /// Answered by [`RecoveryResponse::Done`].
    StartStandby {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// How far is the standby behind? Answered by [`RecoveryResponse::Standby`].
    StandbyStatus {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Have both instances make a checkpoint, so that stopping them will take little. Answered by [`RecoveryResponse::Done`].
    Checkpoint {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Make the published instance read-only and end the sessions of others that began before. What overrides it goes on until the
    /// instance is stopped. Answered by [`RecoveryResponse::Frozen`].
    Freeze {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Undo [`RecoveryAction::Freeze`]: start the published instance if it is stopped, wait until it is ready, and let it write.
    /// Answered by [`RecoveryResponse::Done`].
    Thaw {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Stop the standby (fast). Not running: fine. Answered by [`RecoveryResponse::Done`].
    StopStandby {
        /// How the published instance was prepared.
        instance: InstanceOptions,
        /// How long a fast stop may take, in seconds; an immediate one follows.
        timeout_s: u32,
    },
    /// What `pg_control` of both instances says; both must be stopped. Answered by [`RecoveryResponse::Positions`].
    Positions {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Turn the stopped standby into an instance of its own: the original's configuration, the port, archive recovery that ends at
    /// once on a new timeline. From its answer on nothing before it can be asked for any more. Answered by [`RecoveryResponse::Settled`].
    Settle {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// Start it the way the host starts PostgreSQL (`pg_ctlcluster`, a systemd unit, else `pg_ctl`), not waiting for recovery.
    /// Running: fine. Answered by [`RecoveryResponse::Done`].
    StartFinal {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// How is it, as its files tell? Nobody connects: who may is the original's business. Once it accepts writes, settings that were needed for the first start only are taken back.
    /// Answered by [`RecoveryResponse::Final`].
    FinalStatus {
        /// How the published instance was prepared.
        instance: InstanceOptions,
    },
    /// End a copy or a standby and remove what was made in the final place, and nothing else; drop the slot if the published
    /// instance runs. Answered by [`RecoveryResponse::Done`].
    RemoveStandby {
        /// How the published instance was prepared; absent when it never was.
        instance: Option<InstanceOptions>,
    },
}

impl RecoveryAction {
    /// The longest that the agent works at it; the asker waits a little longer, to hear how it ended.
    pub fn limit(&self) -> Duration {
        let seconds = match self {
            // Both write what was changed since their last one, while users work on.
            Self::Checkpoint { .. } => 600,
            Self::StopStandby { timeout_s, .. } => 120 + 2 * u64::from(*timeout_s),
            // Removes a whole copy, file by file.
            Self::RemoveStandby { .. } => 600,
            // A server may have a lot to replay before it is ready.
            Self::Thaw { .. } => 300,
            Self::SetAside
            | Self::PutBack
            | Self::BeginReplication { .. }
            | Self::Settle { .. }
            | Self::StartFinal { .. } => 300,
            Self::Freeze { .. } | Self::StartStandby { .. } => 60,
            Self::Check
            | Self::ReplicationStatus
            | Self::StandbyStatus { .. }
            | Self::Positions { .. }
            | Self::FinalStatus { .. } => 30,
        };
        Duration::from_secs(seconds)
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecoveryResponse {
    /// Done, nothing to say.
    Done,
    /// The directories may be used.
    Checked {
        /// A PostgreSQL that runs in the data directory and would be stopped: its port.
        running_port: Option<u16>,
        /// What would be moved aside.
        occupied: Vec<PathBuf>,
    },
    /// What was set aside.
    SetAside(SetAside),
    /// How far the copy is.
    Replication(ReplicationStatus),
    /// How the standby is.
    Standby(StandbyStatus),
    /// The published instance takes no writes.
    Frozen {
        /// Its WAL flush position afterwards, `X/X`.
        flushed_lsn: String,
        /// How many sessions were ended.
        ended_session_count: u32,
    },
    /// What `pg_control` of both says.
    Positions(Positions),
    /// The instance is ready to be started.
    Settled {
        /// How it will be started, for people: `pg_ctlcluster 15 main start`.
        manager: String,
        /// Sentences for people: what was changed or could not be taken over.
        remarks: Vec<String>,
    },
    /// How the final instance is.
    Final(InstanceStatus),
}

/// What was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// Whether a PostgreSQL ran there and was stopped.
    pub was_running: bool,
    /// How the host had started it, for people; absent when nothing ran.
    pub manager: Option<String>,
    /// Directories that were moved: from, to.
    pub moved: Vec<(PathBuf, PathBuf)>,
}

/// How far the copy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicationStatus {
    /// Nothing was begun.
    NotBegun,
    /// `pg_basebackup` runs.
    Running {
        /// Copied so far, in bytes.
        done_bytes: u64,
        /// How much there is, in bytes, as far as it is known.
        total_bytes: Option<u64>,
    },
    /// It ended before everything was copied.
    Failed {
        /// The last lines of its log, at most 20.
        last_log_lines: Vec<String>,
    },
    /// Everything is copied and durable.
    Complete {
        /// How much was copied, in bytes.
        done_bytes: u64,
    },
}

/// How the standby is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyStatus {
    /// Whether its postmaster runs.
    pub running: bool,
    /// Whether the published instance's postmaster runs.
    pub published_running: bool,
    /// Whether it receives WAL from the published instance.
    pub streaming: bool,
    /// The published instance's WAL flush position, `X/X`; absent when it does not answer.
    pub flushed_lsn: Option<String>,
    /// What the standby has replayed, `X/X`; absent when it does not answer.
    pub replayed_lsn: Option<String>,
    /// What is between the two, in bytes.
    pub lag_bytes: Option<u64>,
    /// How old the last replayed change is, in milliseconds; 0 when nothing is left to replay.
    pub lag_ms: Option<u64>,
    /// The last lines of its log, at most 20, when it does not run or does not receive WAL.
    pub last_log_lines: Vec<String>,
}

/// What `pg_control` of the stopped instances says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// Of the published instance.
    pub published: ControlPosition,
    /// Of the standby.
    pub standby: ControlPosition,
}

/// What one `pg_control` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPosition {
    /// `Database cluster state`, in the words of `pg_controldata` under `LC_MESSAGES=C`.
    pub state: String,
    /// `Latest checkpoint location`, `X/X`.
    pub checkpoint_lsn: String,
    /// `Latest checkpoint's TimeLineID`.
    pub timeline: u32,
    /// `Database system identifier`.
    pub system_identifier: String,
}
