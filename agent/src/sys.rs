//! The few places where the system's interface needs `unsafe`.
#![allow(unsafe_code)]

mod present_buffers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::DupFlags;
use rustix::ioctl;

pub use present_buffers::PresentBuffers;

/// Takes over a descriptor that the supervisor passed by inheritance under a number.
///
/// Refuses a number that is not open.
pub fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: only the worker's start calls this, once for each number of its specification, before it opens anything else.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC) {
        std::mem::forget(descriptor);
        return Err(error.into());
    }
    Ok(descriptor)
}

/// Makes the descriptor `target` refer to what `source` refers to, as `dup3` does.
pub fn replace_descriptor(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the number stays owned by the caller's object; the value made here is forgotten and never closes it.
    let mut borrowed =
        std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    rustix::io::dup3(source, &mut borrowed, DupFlags::CLOEXEC)?;
    Ok(())
}

const BACKING_CLOSE: ioctl::Opcode = ioctl::opcode::write::<u32>(229, 2);

/// Gives back a passthrough registration: `FUSE_DEV_IOC_BACKING_CLOSE`.
pub fn close_backing(fuse_device: impl AsFd, backing_id: u32) -> io::Result<()> {
    // SAFETY: the opcode takes a pointer to a u32, which the setter passes.
    unsafe {
        let request = ioctl::Setter::<BACKING_CLOSE, u32>::new(backing_id);
        ioctl::ioctl(fuse_device, request)?;
    }
    Ok(())
}

/// Wraps a registration for the reply to an open.
pub fn adopt_backing(reply: &fuser::ReplyOpen, backing_id: u32) -> fuser::BackingId {
    // SAFETY: the number was registered on this connection and is given back at the last release only;
    // the caller turns the wrapper back into the number.
    unsafe { reply.wrap_backing(backing_id) }
}

/// Wraps a registration for the reply to a create.
pub fn adopt_created_backing(reply: &fuser::ReplyCreate, backing_id: u32) -> fuser::BackingId {
    // SAFETY: as in `adopt_backing`.
    unsafe { reply.wrap_backing(backing_id) }
}

/// Begins to write a range of a file to the disk, to its end where the length is 0, and waits for nothing.
pub fn start_writeback(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let (offset, length) = (
        libc::off64_t::try_from(offset).map_err(io::Error::other)?,
        libc::off64_t::try_from(length).map_err(io::Error::other)?,
    );
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: takes numbers only; the descriptor is open for as long as it is borrowed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a lease is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Nobody has the file open for writing; granted only if that is so.
    NoWriters,
    /// None.
    Released,
}

/// Takes or gives back a lease on a file that is open for reading.
pub fn set_lease(file: BorrowedFd<'_>, lease: Lease) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let kind = match lease {
        Lease::NoWriters => libc::F_RDLCK,
        Lease::Released => libc::F_UNLCK,
    };
    // SAFETY: takes numbers only; the descriptor is open for as long as it is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the allocator from holding on to memory that is free: few pools for all threads.
pub fn limit_allocator_pools() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number before other threads allocate; an unknown parameter is refused.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives memory that is free back to the system.
pub fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
