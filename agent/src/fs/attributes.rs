//! Facts about nodes in the kernel's words.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::cache::record::{Nanoseconds, NodeKind};
use crate::cache::store::Facts;

/// The kernel's word for what a node is.
pub(super) fn file_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::File => FileType::RegularFile,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharacterDevice(_) => FileType::CharDevice,
        NodeKind::BlockDevice(_) => FileType::BlockDevice,
    }
}

/// An instant as the system has it.
pub(super) fn system_time(at: Nanoseconds) -> SystemTime {
    let distance = Duration::from_nanos(at.unsigned_abs());
    let time = match at < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(distance),
        false => SystemTime::UNIX_EPOCH.checked_add(distance),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// An instant as the cache has it.
pub(super) fn nanoseconds(time: SystemTime) -> Nanoseconds {
    let nanoseconds = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanoseconds(after),
        Err(before) => -nanoseconds(before.duration()),
    }
}

/// All attributes.
pub(super) fn file_attributes(facts: &Facts) -> FileAttr {
    let rdev = match facts.kind {
        NodeKind::CharacterDevice(number) | NodeKind::BlockDevice(number) => number,
        _ => 0,
    };
    FileAttr {
        ino: INodeNo(facts.ino),
        size: facts.size,
        blocks: facts.blocks,
        atime: system_time(facts.attributes.accessed_at),
        mtime: system_time(facts.attributes.modified_at),
        ctime: system_time(facts.attributes.changed_at),
        crtime: system_time(facts.attributes.changed_at),
        kind: file_type(&facts.kind),
        perm: facts.attributes.mode,
        nlink: facts.links,
        uid: facts.attributes.user,
        gid: facts.attributes.group,
        rdev,
        blksize: 4096,
        flags: 0,
    }
}
