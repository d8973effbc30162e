//! Errors of what holds a repository, told apart from those of decoders.

use std::io;

use super::ObjectFailure;

/// Whether an error is of the storage: bytes could not be read. Otherwise it is of who took them.
pub(crate) fn is_of_storage(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || ObjectFailure::of(error).is_some()
}

/// The same error once more.
pub(crate) fn same_error(error: &io::Error) -> io::Error {
    match (error.raw_os_error(), ObjectFailure::of(error)) {
        (Some(number), _) => io::Error::from_raw_os_error(number),
        (None, Some(failure)) => failure.clone().into(),
        (None, None) => error.kind().into(),
    }
}
