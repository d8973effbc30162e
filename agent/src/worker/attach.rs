//! Attaches fuser to a FUSE device that is mounted already, by playing the kernel's first request to it again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use fuser::{Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::fs::MountFs;
use crate::sys;

const REPLY_BYTES_MAX: usize = 4096;
const SESSION_THREADS: usize = 2;

/// A session over the device. The handshake happens over a socket pair; then the device takes the socket's place.
pub(super) fn attach(
    filesystem: MountFs,
    device: BorrowedFd<'_>,
    init: &[u8],
) -> anyhow::Result<Session<MountFs>> {
    let (ours, theirs): (OwnedFd, OwnedFd) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::write(&ours, init).context("replay the first request")?;
    let mut config = Config::default();
    config.n_threads = Some(SESSION_THREADS);
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)
        .context("shake hands with fuser")?;
    let mut reply = vec![0; REPLY_BYTES_MAX];
    let count = rustix::io::read(&ours, &mut reply).context("read the first answer")?;
    reply.truncate(count);
    match rustix::io::write(device, &reply) {
        Ok(_) => {}
        // A predecessor has answered the kernel already.
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).context("answer the kernel's first request"),
    }
    sys::replace_descriptor(device, session.as_fd()).context("put the device in place")?;
    Ok(session)
}

/// Asks the kernel to send again what a predecessor took and did not answer (Linux 6.9).
pub(super) fn ask_for_resend(device: BorrowedFd<'_>) {
    const NOTIFY_RESEND: u32 = 7;
    let mut notification = Vec::with_capacity(16);
    notification.extend_from_slice(&16u32.to_ne_bytes());
    notification.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    notification.extend_from_slice(&0u64.to_ne_bytes());
    if let Err(error) = rustix::io::write(device, &notification) {
        let error = io::Error::from(error);
        tracing::error!(%error, "the kernel cannot resend: requests in flight stay unanswered");
    }
}
