//! The hand on a Unix socket, for services that may not start programs as root themselves.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use common::problem::{ErrorCode, Problem};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::dispatch::Hand;
use super::failure;
use super::serve::serve;

/// Most connections at a time; each mount holds one.
const CONNECTIONS_MAX: usize = 256;

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Group of the socket, by number.
    pub group: Option<u32>,
    /// Permission bits of the socket; 0660 with a group and 0600 without when absent.
    pub mode: Option<u32>,
}

/// Binds the socket; one that a dead listener left is replaced, one that answers is not.
pub fn bind(path: &Path, access: &Access) -> Result<UnixListener, Problem> {
    let failed = |doing: &str, error| {
        failure(
            ErrorCode::IoFailed,
            format!("{doing} {}", path.display()),
            error,
        )
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        let busy = |what: &str| {
            Problem::new(
                ErrorCode::NotPossibleNow,
                format!("{} {what}", path.display()),
                "choose another path, or stop that program",
            )
        };
        if !found.file_type().is_socket() {
            return Err(busy("exists and is not a socket"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(busy("is served by another program"));
        }
        std::fs::remove_file(path).map_err(|e| failed("remove", e))?;
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(|e| failed("make the directory of", e))?;
    // Made with no rights for others from the first moment: the umask decides at bind.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(|e| failed("listen on", e))?;
    std::os::unix::fs::chown(path, None, access.group)
        .map_err(|e| failed("set the group of", e))?;
    let default = if access.group.is_some() { 0o660 } else { 0o600 };
    let mode = std::fs::Permissions::from_mode(access.mode.unwrap_or(default));
    std::fs::set_permissions(path, mode).map_err(|e| failed("set the mode of", e))?;
    Ok(listener)
}

/// Serves connections until it is told to stop.
pub async fn run(hand: Hand, listener: UnixListener, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task panicked");
                }
            }
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let hand = hand.clone();
                    connections.spawn(async move {
                        let socket = stream.as_fd().try_clone_to_owned().ok();
                        let (reader, writer) = stream.into_split();
                        if let Err(error) = serve(hand, reader, writer, socket).await {
                            tracing::info!(%error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to be closed.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
    connections.shutdown().await;
}
