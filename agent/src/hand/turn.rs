//! Turns: of the requests that change a session, one works at a time, in whichever hand process it came.
//!
//! A service that lost patience, or was killed, leaves its request running; what asks next, an undo perhaps, waits for its end here.
//! The lock is on the session's own directory, so nothing is left behind, and the kernel frees it when its holder dies.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use common::agent::hand::{RecoveryAction, Request, SessionPlace};
use common::problem::{ErrorCode, Problem};
use rustix::fs::{FlockOperation, OFlags};

use super::failure;

/// Between two looks whether the turn has come.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The right to change a session, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "holds the lock")] File);

/// What a request does to its session.
enum Touch<'a> {
    /// Changes nothing, or has no session.
    Nothing,
    /// Makes its directories or takes things away: a session without directories is fine.
    Anything(&'a SessionPlace),
    /// Works in its directories, so they must be there.
    Inside(&'a SessionPlace),
}

fn touch(request: &Request) -> Touch<'_> {
    match request {
        Request::CreateSession { place }
        | Request::Unmount { place, .. }
        | Request::RemoveSession { place }
        | Request::StopInstance { place, .. } => Touch::Anything(place),
        Request::WriteTree { place, .. }
        | Request::Mount { place, .. }
        | Request::Prepare { place, .. }
        | Request::StartInstance { place, .. } => Touch::Inside(place),
        Request::Recovery(asked) if crate::recovery::changes(&asked.action) => {
            match asked.action {
                // These undo: what is undone may never have been begun.
                RecoveryAction::PutBack | RecoveryAction::RemoveStandby { .. } => {
                    Touch::Anything(&asked.place)
                }
                _ => Touch::Inside(&asked.place),
            }
        }
        Request::Recovery(_)
        | Request::Hello { .. }
        | Request::HostFacts { .. }
        | Request::CheckOsUser { .. }
        | Request::FindPostgresql { .. }
        | Request::ListPostgresql { .. }
        | Request::CheckPort { .. }
        | Request::MountStatus { .. }
        | Request::ListSessions { .. }
        | Request::Attach { .. }
        | Request::InstanceStatus { .. }
        | Request::Query { .. } => Touch::Nothing,
    }
}

/// Waits for the request's turn; `None` when it needs none.
pub(super) fn take(request: &Request, limit: Duration) -> Result<Option<Turn>, Problem> {
    let (place, must_exist) = match touch(request) {
        Touch::Nothing => return Ok(None),
        Touch::Anything(place) => (place, false),
        Touch::Inside(place) => (place, true),
    };
    match wait(&place.session_directory(), limit)? {
        None if must_exist => Err(Problem::new(
            ErrorCode::MountFailed,
            format!("session {} has no directory on this host", place.session_id),
            "retry: the session is made anew",
        )),
        turn => Ok(turn),
    }
}

/// Locks a directory; `None` when there is none.
fn wait(directory: &Path, limit: Duration) -> Result<Option<Turn>, Problem> {
    let began = Instant::now();
    let doing = || format!("lock {}", directory.display());
    loop {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(directory);
        let file = match opened {
            Ok(file) => file,
            // Something planted in its place is no session's directory; the request itself says so.
            Err(error)
                if matches!(
                    rustix::io::Errno::from_io_error(&error),
                    Some(
                        rustix::io::Errno::NOENT
                            | rustix::io::Errno::NOTDIR
                            | rustix::io::Errno::LOOP
                    )
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failure(ErrorCode::IoFailed, doing(), error)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_still(&file, directory) => return Ok(Some(Turn(file))),
            // Whoever held it has removed the directory; there may be a new one.
            Ok(()) => continue,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(failure(ErrorCode::IoFailed, doing(), error.into())),
        }
        if began.elapsed() >= limit {
            return Err(Problem::new(
                ErrorCode::TimedOut,
                format!(
                    "an earlier request for {} has not ended within {} s",
                    directory.display(),
                    limit.as_secs()
                ),
                "look at the host's load and whether its mount answers, then retry",
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn is_still(file: &File, directory: &Path) -> bool {
    let (Ok(held), Ok(found)) = (file.metadata(), directory.symlink_metadata()) else {
        return false;
    };
    (held.dev(), held.ino()) == (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LATER: Duration = Duration::from_secs(20);

    #[test]
    fn a_second_request_for_a_session_waits_for_the_first() {
        let root = tempfile::tempdir().unwrap();
        let first = wait(root.path(), SOON).unwrap().unwrap();
        assert_eq!(
            wait(root.path(), SOON).unwrap_err().code,
            ErrorCode::TimedOut
        );
        let path = root.path().to_owned();
        let second = std::thread::spawn(move || wait(&path, LATER).unwrap().is_some());
        drop(first);
        assert!(second.join().unwrap());
    }

    #[test]
    fn a_late_request_finds_that_the_session_was_removed_meanwhile() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("session");
        std::fs::create_dir(&directory).unwrap();
        let undo = wait(&directory, SOON).unwrap().unwrap();
        let path = directory.clone();
        let late = std::thread::spawn(move || wait(&path, LATER).unwrap().is_none());
        std::fs::remove_dir(&directory).unwrap();
        drop(undo);
        assert!(late.join().unwrap());
    }
}
