//! Hands a descriptor from one process to another over their Unix socket.
//!
//! The receiver asks for it by a byte ([`READY`]) once it has read everything that was said before: a plain read that meets a
//! descriptor loses it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Says that the receiver is ready for the descriptor.
pub const READY: u8 = b'!';

/// Whether descriptors can be handed over on this descriptor: it is a Unix socket.
pub fn is_possible(socket: impl AsFd) -> bool {
    let domain = rustix::net::sockopt::socket_domain(socket);
    domain.is_ok_and(|domain| domain == rustix::net::AddressFamily::UNIX)
}

/// Sends a descriptor with one byte.
pub fn send(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let byte = [READY];
    sendmsg(
        socket,
        &[IoSlice::new(&byte)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Takes a descriptor that was sent with one byte.
pub fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut received = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            received = descriptors.into_iter().next().or(received);
        }
    }
    received.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_and_works() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut inner, passed) = UnixStream::pair().unwrap();
        assert!(is_possible(&here));
        assert!(!is_possible(std::fs::File::open("/dev/null").unwrap()));
        send(&here, &passed).unwrap();
        drop(passed);
        let mut arrived = UnixStream::from(receive(&there).unwrap());
        inner.write_all(b"hello").unwrap();
        let mut seen = [0; 5];
        arrived.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        drop(here);
        assert!(receive(&there).is_err());
    }
}
