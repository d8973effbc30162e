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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg_basebackup::MemberKind;
    use crate::pg_basebackup::tar::Part;

    fn names() -> Vec<ArchiveName> {
        (1..=7)
            .map(|oid| ArchiveName {
                name: format!("{oid}.tar"),
                part: Part::Tablespace(oid),
                piece: 0,
                codec: None,
            })
            .collect()
    }

    fn member(number: u64) -> Member {
        Member {
            name: number.to_string(),
            kind: MemberKind::Directory,
            mode: 0,
            modified_at_s: 0,
            offset: number,
        }
    }

    fn archive(name: &ArchiveName) -> Archive {
        Archive {
            name: name.clone(),
            size_bytes: 0,
            identity: None,
            seekable: None,
            damage: None,
        }
    }

    #[test]
    fn every_member_of_every_archive_is_taken_and_the_archives_keep_their_order() {
        let names = names();
        let mut taken = vec![0; names.len()];
        let scanned = scan_side_by_side(
            &names,
            &|_, name, found| {
                (0..5000).try_for_each(|number| found(member(number)))?;
                Ok(archive(name))
            },
            &mut |source, name, member| {
                assert_eq!(names[source as usize], *name);
                assert_eq!(taken[source as usize], member.offset, "in order");
                taken[source as usize] += 1;
                Ok(())
            },
        );
        let scanned = scanned.unwrap().into_iter().map(|archive| archive.name);
        assert_eq!(scanned.collect::<Vec<_>>(), names);
        assert_eq!(taken, [5000; 7]);
    }

    #[test]
    fn the_error_is_that_of_the_taker_else_that_of_the_first_archive() {
        let names = names();
        let scan = |source: u32, name: &ArchiveName, found: &mut FoundMember<'_>| {
            found(member(0))?;
            match source {
                2 | 5 => Err(RepositoryError::corrupt(&name.name, "is damaged")),
                _ => Ok(archive(name)),
            }
        };
        let error = scan_side_by_side(&names, &scan, &mut |_, _, _| Ok(())).unwrap_err();
        assert_eq!(error.file(), "3.tar");
        let mut refuse =
            |_, _: &ArchiveName, _: Member| Err(RepositoryError::corrupt("a", "is refused"));
        let error = scan_side_by_side(&names, &scan, &mut refuse).unwrap_err();
        assert_eq!(error.file(), "a");
    }
}
