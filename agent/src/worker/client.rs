//! What others say to a worker over its socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::agent::hand::{CacheAfterwards, MountStatus, SessionPlace};
use common::problem::{ErrorCode, Problem};

use super::control::{CONTROL, ControlRequest, PAGES};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

fn connect(place: &SessionPlace, role: &str) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(place.agent_socket())?;
    stream.write_all(format!("{role}\n").as_bytes())?;
    Ok(stream)
}

/// A connection on which the page channel is spoken from the first byte.
pub fn connect_pages(place: &SessionPlace) -> Result<UnixStream, Problem> {
    connect(place, PAGES).map_err(|error| {
        Problem::new(
            ErrorCode::MountFailed,
            format!("the mount's worker cannot be reached: {error}"),
            "mount the session first",
        )
    })
}

/// How the mount is; `None` when no worker answers.
pub fn status(place: &SessionPlace) -> Result<Option<MountStatus>, Problem> {
    match ask(place, &ControlRequest::Status) {
        Ok(status) => Ok(Some(status)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Problem::new(
            ErrorCode::MountFailed,
            format!("the mount's worker does not answer: {error}"),
            "look at the agent's log in the session directory",
        )),
    }
}

/// Ends the mount, waiting until it is gone; found gone is fine.
pub fn stop(place: &SessionPlace, cache: CacheAfterwards) -> Result<(), Problem> {
    crate::supervisor::stop(place, cache)
}

fn ask(place: &SessionPlace, request: &ControlRequest) -> io::Result<MountStatus> {
    let mut stream = connect(place, CONTROL)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
