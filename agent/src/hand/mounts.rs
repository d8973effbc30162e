//! What the hand needs of the FUSE side, so that requests about PostgreSQL can be tested without a mount.

use std::io;
use std::os::unix::net::UnixStream;

use common::agent::hand::{
    CacheAfterwards, MountOptions, MountStatus, SessionPlace, TreeEntry, TreeFinish,
};
use common::problem::{ErrorCode, Problem};

/// Makes, watches and ends the mounts of sessions.
pub trait MountKeeper: Send + Sync + 'static {
    /// Starts supervisor and worker and mounts, or finds them running.
    fn start(&self, place: &SessionPlace, options: &MountOptions) -> Result<MountStatus, Problem>;
    /// How the mount is; `None` when no supervisor lives.
    fn status(&self, place: &SessionPlace) -> Result<Option<MountStatus>, Problem>;
    /// Unmounts and ends worker and supervisor; nothing running is fine.
    fn stop(&self, place: &SessionPlace, cache: CacheAfterwards) -> Result<(), Problem>;
    /// A connection to the worker that will carry the page channel.
    fn connect_pages(&self, place: &SessionPlace) -> io::Result<UnixStream>;
    /// Takes one chunk of the tree; the one with `finish` makes it durable.
    fn write_tree(&self, place: &SessionPlace, chunk: TreeChunk) -> Result<(), Problem>;
}

/// One chunk of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeChunk {
    /// Its number, from 0.
    pub number: u32,
    /// Its entries, parents before their children.
    pub entries: Vec<TreeEntry>,
    /// Set in the last chunk.
    pub finish: Option<TreeFinish>,
}

/// Keeps no mounts: answers everything about PostgreSQL and the host, and refuses mounts.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMounts;

impl NoMounts {
    fn problem() -> Problem {
        Problem::new(
            ErrorCode::FuseUnavailable,
            "this agent was started without the FUSE side",
            "run the agent's own program `pginstant-agent serve`",
        )
    }
}

impl MountKeeper for NoMounts {
    fn start(&self, _: &SessionPlace, _: &MountOptions) -> Result<MountStatus, Problem> {
        Err(Self::problem())
    }
    fn status(&self, _: &SessionPlace) -> Result<Option<MountStatus>, Problem> {
        Ok(None)
    }
    fn stop(&self, _: &SessionPlace, _: CacheAfterwards) -> Result<(), Problem> {
        Ok(())
    }
    fn connect_pages(&self, _: &SessionPlace) -> io::Result<UnixStream> {
        Err(io::Error::from(io::ErrorKind::NotConnected))
    }
    fn write_tree(&self, _: &SessionPlace, _: TreeChunk) -> Result<(), Problem> {
        Err(Self::problem())
    }
}
