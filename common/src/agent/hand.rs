//! Typed requests to the agent's hand on a target: host facts, the mount's life, PostgreSQL.
//!
//! No request carries a shell string, and none carries a secret. All of them are idempotent.

mod recovery;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{OsUser, SessionId};
use crate::messages::{CacheStatistics, RecoveryTarget};
use crate::problem::Problem;

pub use recovery::{
    ControlPosition, FinalPlace, Positions, RecoveryAction, RecoveryRequest, RecoveryResponse,
    Replace, ReplicationStatus, SetAside, StandbyStatus,
};

/// Version of this protocol: both sides must say the same, since the agent is brought along by the services.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest line, in bytes: a chunk of a tree is the largest thing in one.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most entries of a tree in one [`Request::WriteTree`].
pub const TREE_CHUNK_ENTRIES_MAX: usize = 5_000;

/// One line to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Echoed in the response.
    pub id: u64,
    /// What is wanted.
    pub request: Request,
}

/// One line from the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseFrame {
    /// The request's id.
    pub id: u64,
    /// What came of it.
    pub result: Result<Response, Problem>,
}

/// Where a session lives on its target.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionPlace {
    /// The session.
    pub session_id: SessionId,
    /// Root of the mount points, `/tmp/pginstant`.
    pub mount_root: PathBuf,
    /// Root of the write caches, `/var/tmp/pginstant`.
    pub cache_root: PathBuf,
    /// Who owns every file of the mount and runs PostgreSQL.
    pub os_user: OsUser,
}

impl SessionPlace {
    /// The mount point: `<mount root>/<session>`.
    pub fn mount_point(&self) -> PathBuf {
        self.mount_root.join(self.session_id.to_string())
    }

    /// The data directory in the mount: `<mount point>/data`.
    pub fn data_directory(&self) -> PathBuf {
        self.mount_point().join("data")
    }

    /// The archive of WAL in the mount, where there is one: `<mount point>/wal`.
    pub fn wal_directory(&self) -> PathBuf {
        self.mount_point().join("wal")
    }

    /// The session's directory with the write cache: `<cache root>/<session>`.
    pub fn session_directory(&self) -> PathBuf {
        self.cache_root.join(self.session_id.to_string())
    }

    /// Where the worker keeps its files: `<session directory>/cache`.
    pub fn cache_directory(&self) -> PathBuf {
        self.session_directory().join("cache")
    }

    /// Generated configuration: `<session directory>/conf`.
    pub fn configuration_directory(&self) -> PathBuf {
        self.session_directory().join("conf")
    }

    /// PostgreSQL's Unix socket, 0700 and the OS user's: `<session directory>/socket`.
    pub fn socket_directory(&self) -> PathBuf {
        self.session_directory().join("socket")
    }

    /// Logs of PostgreSQL and of the agent's processes: `<session directory>/log`.
    pub fn log_directory(&self) -> PathBuf {
        self.session_directory().join("log")
    }

    /// Unix socket of the mount's worker: `<session directory>/agent.sock`.
    pub fn agent_socket(&self) -> PathBuf {
        self.session_directory().join("agent.sock")
    }
}

/// What can be asked of the hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First request on a connection. Answered by [`Response::Hello`].
    Hello {
        /// The asker's [`PROTOCOL_VERSION`].
        protocol: u32,
    },
    /// Facts about the host. Answered by [`Response::HostFacts`].
    HostFacts {
        /// Directories whose volumes are to be looked at; they need not exist yet.
        paths: Vec<PathBuf>,
    },
    /// Does the OS user exist, and may we act for it? Answered by [`Response::Done`].
    CheckOsUser {
        /// The user.
        user: OsUser,
        /// Roots in which a session's directories will be made.
        roots: Vec<PathBuf>,
    },
    /// Where are PostgreSQL's programs of this major version? Answered by [`Response::Postgresql`].
    FindPostgresql {
        /// Major version.
        major: u32,
        /// Directories of programs to look in first (`…/bin`).
        extra_directories: Vec<PathBuf>,
    },
    /// Every PostgreSQL that is installed. Answered by [`Response::PostgresqlList`].
    ListPostgresql {
        /// Directories of programs to look in first (`…/bin`).
        extra_directories: Vec<PathBuf>,
    },
    /// Can somebody listen on the port? Answered by [`Response::Done`].
    CheckPort {
        /// The port.
        port: u16,
        /// Addresses as `listen_addresses` has them.
        listen_addresses: String,
    },
    /// Make the session's directories (0700 where they hold data), or find them as they should be. Answered by [`Response::Done`].
    CreateSession {
        /// Where.
        place: SessionPlace,
    },
    /// Hand over the tree of files that the mount will show, in chunks; the last one makes it durable. Beginning again replaces it.
    /// A write cache that exists already belongs to its own tree: the same hash is accepted, another is refused. Answered by [`Response::Done`].
    WriteTree {
        /// Where.
        place: SessionPlace,
        /// Number of the chunk, from 0.
        chunk: u32,
        /// Entries; parents before their children.
        entries: Vec<TreeEntry>,
        /// Set in the last chunk: CRC32C over the postcard encoding of all entries, for the check at every attach.
        finish: Option<TreeFinish>,
    },
    /// Start supervisor and worker and mount, or find them running. Answered by [`Response::Mounted`].
    Mount {
        /// Where.
        place: SessionPlace,
        /// How.
        options: MountOptions,
    },
    /// How is the mount? Answered by [`Response::MountStatus`].
    MountStatus {
        /// Where.
        place: SessionPlace,
    },
    /// Make this connection the page channel of the mount's worker. Answered by [`Response::Done`], after which [`super::pages`] is spoken.
    Attach {
        /// Where.
        place: SessionPlace,
    },
    /// Hand over the connection to the mount's worker itself, so that nobody stands between: on a Unix socket only. Answered by
    /// [`Response::Done`], after which the asker sends [`super::passing::READY`] and gets the descriptor.
    AttachDirectly {
        /// Where.
        place: SessionPlace,
    },
    /// Unmount and end worker and supervisor. Answered by [`Response::Done`].
    Unmount {
        /// Where.
        place: SessionPlace,
        /// What becomes of the write cache.
        #[serde(default)]
        cache: CacheAfterwards,
    },
    /// Remove the session's directories, write cache included. Refused while mounted, while PostgreSQL runs, or while an original is set
    /// aside or a standby half made: by its directory alone these are known. Answered by [`Response::Done`].
    RemoveSession {
        /// Where.
        place: SessionPlace,
    },
    /// Which sessions have directories under these roots, mounted or not? Answered by [`Response::Sessions`].
    ListSessions {
        /// Root of the mount points.
        mount_root: PathBuf,
        /// Root of the write caches.
        cache_root: PathBuf,
    },
    /// Write configuration and recovery settings so that the instance can start. Answered by [`Response::Prepared`].
    Prepare {
        /// Where.
        place: SessionPlace,
        /// What for.
        instance: InstanceOptions,
    },
    /// Start PostgreSQL, not waiting for recovery. Found running: fine. Answered by [`Response::Done`].
    StartInstance {
        /// Where.
        place: SessionPlace,
        /// The same as were prepared.
        instance: InstanceOptions,
    },
    /// How is PostgreSQL? Answered by [`Response::Instance`].
    InstanceStatus {
        /// Where.
        place: SessionPlace,
        /// The same as were prepared.
        instance: InstanceOptions,
    },
    /// Stop PostgreSQL: fast, then after `timeout_s` immediate. Not running: fine. Answered by [`Response::Done`].
    StopInstance {
        /// Where.
        place: SessionPlace,
        /// The same as were prepared.
        instance: InstanceOptions,
        /// How long a fast stop may take, in seconds.
        timeout_s: u32,
    },
    /// One SQL statement over the private socket. Answered by [`Response::Rows`].
    Query {
        /// Where.
        place: SessionPlace,
        /// The same as were prepared.
        instance: InstanceOptions,
        /// Database to connect to.
        database: String,
        /// The statement; at most 1,000 rows of text come back.
        sql: String,
    },
    /// Something for an instant recovery. Answered by [`Response::Recovery`].
    Recovery(Box<RecoveryRequest>),
}

/// What becomes of a write cache when its mount ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheAfterwards {
    /// It may be mounted again: everything in it is made durable before the mount is said to have ended.
    #[default]
    Kept,
    /// It is removed next, so that nothing of it is worth a flush.
    Discarded,
}

/// What the hand answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Done, nothing to say.
    Done,
    /// Who is there.
    Hello {
        /// The agent's [`PROTOCOL_VERSION`].
        protocol: u32,
        /// The agent's version.
        version: String,
    },
    /// Facts about the host.
    HostFacts(HostFacts),
    /// PostgreSQL's programs.
    Postgresql(PostgresqlInstallation),
    /// PostgreSQL's programs, all of them.
    PostgresqlList(Vec<PostgresqlInstallation>),
    /// The mount is there.
    Mounted(MountStatus),
    /// The mount, or that there is none.
    MountStatus(Option<MountStatus>),
    /// Sessions with directories.
    Sessions(Vec<FoundSession>),
    /// What was prepared.
    Prepared(Prepared),
    /// PostgreSQL's state.
    Instance(InstanceStatus),
    /// Rows of text; `None` is NULL.
    Rows(Vec<Vec<Option<String>>>),
    /// What came of a request for an instant recovery.
    Recovery(RecoveryResponse),
}

/// Facts about a target host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Host name.
    pub host_name: String,
    /// Kernel release, `uname -r`.
    pub kernel: String,
    /// Whether `/dev/fuse` can be opened and mounts can be made; the reason and remedy when not.
    pub fuse: Result<(), Problem>,
    /// Whether files of the write cache can be served by FUSE passthrough; the reason when not.
    pub passthrough: Result<(), String>,
    /// Available memory in bytes (`MemAvailable`).
    pub memory_available_bytes: u64,
    /// Total memory in bytes.
    pub memory_total_bytes: u64,
    /// Volumes of the asked paths, by path.
    pub volumes: BTreeMap<PathBuf, VolumeFacts>,
}

/// A volume's space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Size, in bytes.
    pub total_bytes: u64,
    /// Free for unprivileged users, in bytes.
    pub free_bytes: u64,
}

/// An installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresqlInstallation {
    /// Major version.
    pub major: u32,
    /// Full version, `15.18`.
    pub version: String,
    /// Directory of its programs.
    pub program_directory: PathBuf,
    /// Directory of loadable libraries (`pg_config --pkglibdir`, or found beside the programs).
    pub library_directory: Option<PathBuf>,
}

/// One entry of the tree that a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Path below the mount point, no leading `/`, no `.` or `..`: `data/base/1/1259`.
    pub path: String,
    /// What it is.
    pub kind: TreeEntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, in seconds since the epoch.
    pub modified_at_s: i64,
}

/// What a tree's entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeEntryKind {
    /// A directory.
    Directory,
    /// A regular file whose content the page channel serves.
    File {
        /// Its number in the page channel.
        file: u32,
        /// Its size, in bytes.
        size_bytes: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: String,
    },
}

/// Closes a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeFinish {
    /// How many entries there are.
    pub entry_count: u64,
    /// CRC32C over the postcard encoding of all entries, in order.
    pub hash: u32,
}

/// How a mount is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// How long a read waits for a page when the mount server does not answer, in seconds; then EIO.
    pub base_wait_s: u32,
    /// Files up to this size are fetched whole at their first use, in bytes.
    pub small_file_bytes: u64,
    /// Whether passthrough may be used where the kernel offers it.
    pub passthrough: bool,
    /// What is copied from the backup behind everybody's back.
    #[serde(default)]
    pub hydrate: Hydrate,
    /// Most that is copied so, in bytes a second.
    #[serde(default = "default_hydrate_bytes_per_s")]
    pub hydrate_bytes_per_s: u64,
    /// Most that the write cache may occupy while there are copies of the backup in it that can be given back, in bytes.
    #[serde(default)]
    pub cache_bytes_max: Option<u64>,
    /// Whether a worker that has died is replaced where the kernel can send its requests again (Linux 6.9); else the
    /// mount ends with its worker, so that nobody waits for an answer that never comes.
    #[serde(default = "MountOptions::replace_workers")]
    pub replace_workers: bool,
}

/// What is copied from the backup into the write cache beside what is read.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Hydrate {
    /// Nothing.
    None,
    /// The rest of each file that was read or written, so that the kernel can serve it by itself.
    #[default]
    Touched,
    /// Every file, those in use first: at the end the backup is not needed any more.
    All,
}

fn default_hydrate_bytes_per_s() -> u64 {
    128 * 1024 * 1024
}

impl MountOptions {
    fn replace_workers() -> bool {
        true
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            base_wait_s: 900,
            small_file_bytes: 8 * 1024 * 1024,
            passthrough: true,
            hydrate: Hydrate::default(),
            hydrate_bytes_per_s: default_hydrate_bytes_per_s(),
            cache_bytes_max: None,
            replace_workers: true,
        }
    }
}

/// How a mount is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// Process id of the supervisor.
    pub supervisor_pid: u32,
    /// Whether the worker answers.
    pub worker_ready: bool,
    /// How often the worker was started.
    pub worker_starts: u32,
    /// Whether passthrough is used; the reason when not.
    pub passthrough: Result<(), String>,
    /// Whether a page channel is attached.
    pub base_attached: bool,
    /// Since when reads have been waiting for the page channel, in seconds; `None` when none waits.
    pub base_waiting_s: Option<u64>,
    /// Bytes that the write cache occupies.
    pub cache_bytes: u64,
    /// Volume of the write cache.
    pub cache_volume: VolumeFacts,
    /// Counters, by name: for metrics.
    pub counters: BTreeMap<String, u64>,
    /// How the write cache is doing.
    #[serde(default)]
    pub statistics: CacheStatistics,
}

/// A session's directories as found on the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSession {
    /// The session.
    pub session_id: SessionId,
    /// Whether its mount is in the mount table.
    pub mounted: bool,
    /// Whether its supervisor lives.
    pub supervised: bool,
}

/// How an instance is published.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceOptions {
    /// Directory of PostgreSQL's programs.
    pub program_directory: PathBuf,
    /// TCP port.
    pub port: u16,
    /// `listen_addresses`.
    pub listen_addresses: String,
    /// Lines of `pg_hba.conf` for TCP connections, before those of the backup.
    pub hba_lines: Vec<String>,
    /// Role for our own connections over the private socket.
    pub superuser: String,
    /// `shared_buffers` in bytes; fitted to the host's memory when absent.
    pub shared_buffers_bytes: Option<u64>,
    /// Settings that come last and win, by name.
    pub settings: BTreeMap<String, String>,
    /// How far it recovers, and from what.
    #[serde(default)]
    pub recovery: RecoveryOptions,
}

/// How far an instance recovers, and from what.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct RecoveryOptions {
    /// How far.
    pub target: RecoveryTarget,
    /// The archive of WAL in the mount, if it shows one; else there is what the backup brings along.
    pub archive: Option<ArchiveOptions>,
}

/// How WAL is taken from the archive in the mount ([`SessionPlace::wal_directory`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArchiveOptions {
    /// The timeline to which recovery goes; the one on which the backup was made when absent.
    pub timeline: Option<u32>,
}

/// What `prepare` found and wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// `shared_preload_libraries` of the original that this host does not have and that are left out.
    pub missing_libraries: Vec<String>,
    /// Sentences for people about what was changed against the original's configuration.
    pub remarks: Vec<String>,
}

/// How PostgreSQL is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceStatus {
    /// No postmaster.
    Stopped {
        /// The last lines of its log, at most 20.
        last_log_lines: Vec<String>,
    },
    /// A postmaster that does not accept reads and writes yet.
    Recovering {
        /// WAL position replayed so far, `X/X`, if known.
        replayed_lsn: Option<String>,
    },
    /// Accepts reads and writes.
    Ready {
        /// `server_version`.
        version: String,
        /// The timeline that it writes.
        timeline: u32,
        /// Where recovery ended, `X/X`.
        reached_lsn: String,
        /// Time of the last replayed transaction, RFC 3339, if there was one.
        reached_at: Option<String>,
    },
}
