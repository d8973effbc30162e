//! The mounts of this agent: each kept by a supervisor of its own.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::agent::hand::{CacheAfterwards, MountOptions, MountStatus, SessionPlace};
use common::problem::Problem;

use super::mounts::{MountKeeper, TreeChunk};
use crate::cache::tree;
use crate::supervisor;
use crate::worker::client;

/// How long a worker that is being restarted may stay silent before the mount counts as not answering.
const WORKER_SILENT_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Mounts by FUSE.
#[derive(Debug, Clone, Copy, Default)]
pub struct FuseMounts;

impl MountKeeper for FuseMounts {
    fn start(&self, place: &SessionPlace, options: &MountOptions) -> Result<MountStatus, Problem> {
        supervisor::start(place, options)
    }

    fn status(&self, place: &SessionPlace) -> Result<Option<MountStatus>, Problem> {
        let began_at = Instant::now();
        loop {
            // No answer means nothing as long as a supervisor lives: its worker is being restarted.
            let status = client::status(place)?;
            if status.is_some() || !supervisor::is_supervised(place) {
                return Ok(status);
            }
            if began_at.elapsed() > WORKER_SILENT_MAX {
                return Err(Problem::new(
                    common::problem::ErrorCode::TimedOut,
                    format!(
                        "the worker of {} does not come back",
                        place.mount_point().display()
                    ),
                    "look at the agent's log in the session directory",
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn stop(&self, place: &SessionPlace, cache: CacheAfterwards) -> Result<(), Problem> {
        client::stop(place, cache)
    }

    fn connect_pages(&self, place: &SessionPlace) -> io::Result<UnixStream> {
        client::connect_pages(place).map_err(io::Error::other)
    }

    fn write_tree(&self, place: &SessionPlace, chunk: TreeChunk) -> Result<(), Problem> {
        tree::write_chunk(place, chunk.number, &chunk.entries, chunk.finish)
    }
}
