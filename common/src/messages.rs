//! The contract: every message that crosses the broker.
//!
//! A message is a CloudEvent 1.0 in structured JSON mode ([`Envelope`]) around one payload. Five families of payloads:
//! [`Command`] (people and third parties ask for something), [`Query`] and [`Reply`] (asked and answered at once, nothing is kept),
//! [`Event`] (what happened, for everyone) and [`Internal`] (the two services between themselves).
//!
//! What must stay true: fields are only added, with a default; unknown fields are ignored; a removal is a new major version in the type's name.

mod command;
mod envelope;
mod event;
mod internal;
mod payload;
mod query;
mod statistics;

pub use command::{
    Cancel, Command, FinalLocation, MountFiles, Publish, Recover, RecoverSession, RecoveryTarget,
    Retry, Switchover, SwitchoverMode, SwitchoverOrder, Unpublish,
};
pub use envelope::{
    CONTENT_TYPE, CONTRACT_VERSION, ContractError, Envelope, Limits, RawEnvelope, TraceParent,
};
pub use event::{
    Accepted, Cancelled, Cancelling, CommandRejected, Completed, Event, EventBody, EventHead,
    Failed, Lag, Mounted, Published, ReadyForSwitchover, ReplicationLag, RetriesExhausted,
    Retrying, Severity, StepFinished, StepProgress, StepStarted, StepTiming, SwitchedOver,
    SwitchingOver, SwitchoverChanged, SwitchoverFailed, Unpublishing, Waiting, Warning,
    WarningCleared, WarningCode,
};
pub use internal::{
    Internal, MountFailed, MountLost, MountProgress, MountReady, MountRelease, MountReleased,
    MountRequest, MountWarning, MountedWal, RetryDue, WalGap,
};
pub use payload::{Payload, PayloadDoc};
pub use query::{
    BackupList, BackupListed, BackupsQuery, HostCheck, HostCheckLine, HostCheckQuery,
    HostCheckState, ListedArchive, ListedKind, ListedRestoreInterval, Query, RecoveryDetail,
    Refused, Reply, SessionDetail, SessionList, SessionLogLine, SessionQuery, SessionSummary,
    SessionsQuery,
};

pub use statistics::{CacheStatistics, Latency};

pub use session_words::{SessionKind, SessionStatus, Step};

mod session_words;
