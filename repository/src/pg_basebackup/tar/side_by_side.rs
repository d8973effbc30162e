//! Going through several archives at a time: decoding them takes one core each.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;

use super::{Archive, ArchiveName, FoundMember, Member};
use crate::RepositoryError;

/// Members that wait to be taken.
const MEMBER_COUNT_MAX: usize = 1024;

/// Goes through one archive, given its number.
type Scan<'a> =
    dyn Fn(u32, &ArchiveName, &mut FoundMember<'_>) -> Result<Archive, RepositoryError> + Sync + 'a;

/// Takes a member of the archive of this number.
type Take<'a> = dyn FnMut(u32, &ArchiveName, Member) -> Result<(), RepositoryError> + 'a;

/// Goes through all archives, as many at a time as there are cores, and hands their members to `take` as they come.
///
/// The error is that of `take`, else that of the first archive that has one.
pub(super) fn scan_side_by_side(
    names: &[ArchiveName],
    scan: &Scan<'_>,
    take: &mut Take<'_>,
) -> Result<Vec<Archive>, RepositoryError> {
    let thread_count = available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let scanned = Mutex::new(Vec::new());
    let (send, receive) = sync_channel(MEMBER_COUNT_MAX);
    let work = |send: SyncSender<(u32, Member)>| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (Some(name), Ok(source)) = (names.get(number), u32::try_from(number)) else {
                return;
            };
            let result = scan(source, name, &mut |member| {
                // Nobody takes them any more where one was refused, and then that is the error.
                send.send((source, member))
                    .map_err(|_| RepositoryError::corrupt(&name.name, "is not read to its end"))
            });
            let mut scanned = scanned.lock().unwrap_or_else(PoisonError::into_inner);
            scanned.push((number, result));
        }
    };
    let mut take_all = |receive: Receiver<(u32, Member)>| {
        for (source, member) in receive {
            if let Some(name) = names.get(source as usize) {
                take(source, name, member)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..thread_count.min(names.len()) {
            let send = send.clone();
            scope.spawn(|| work(send));
        }
        drop(send);
        take_all(receive)
    })?;
    let mut scanned = scanned.into_inner().unwrap_or_else(PoisonError::into_inner);
    scanned.sort_by_key(|(number, _)| *number);
    scanned.into_iter().map(|(_, result)| result).collect()
}
