//! The FUSE requests.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{file_attributes, file_type, nanoseconds};
use crate::cache::content::Outcome;
use crate::cache::record::NodeKind;
use crate::cache::store::{Place, RenameMode, now};
use crate::sys;

use super::statistics::Statistics;
use super::transfer::is_full;

use super::mount_fs::{
    Decision, GENERATION, MountFs, PASSTHROUGH_HANDLE, SEEK_DATA, SEEK_HOLE, TTL, WRITE_BYTES_MAX,
    errno, is_resent, text, unique,
};

impl Filesystem for MountFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        for flag in wanted.iter() {
            // Each only makes things faster; without it all is well.
            config.add_capabilities(flag).ok();
        }
        config.set_max_write(WRITE_BYTES_MAX).ok();
        config.set_max_background(64).ok();
        let outcome = if !self.parts.passthrough {
            Err("switched off by the settings".to_owned())
        } else if config
            .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
            .is_err()
        {
            Err("the kernel is older than 6.9 or built without FUSE passthrough".to_owned())
        } else {
            config.set_max_stack_depth(1).ok();
            Ok(())
        };
        let mut told = self
            .parts
            .passthrough_outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *told = outcome;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let find = || {
            let place = Place {
                parent: parent.0,
                name: text(name)?,
            };
            self.store().lookup(place).map_err(errno)
        };
        Self::entry(reply, find());
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.store().facts(ino.0) {
            Ok(facts) => reply.attr(&TTL, &file_attributes(&facts)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let at = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(time) => nanoseconds(time),
            TimeOrNow::Now => now(),
        };
        let set = || {
            if let Some(size) = size {
                let node = self.store().node(ino.0)?;
                self.store().truncate(&node, size)?;
            }
            let others = mode.is_some()
                || uid.is_some()
                || gid.is_some()
                || atime.is_some()
                || mtime.is_some();
            if !others {
                return self.store().facts(ino.0);
            }
            self.store().set_attributes(ino.0, |attributes| {
                if let Some(mode) = mode {
                    attributes.mode = u16::try_from(mode & 0o7777).unwrap_or(attributes.mode);
                }
                attributes.user = uid.unwrap_or(attributes.user);
                attributes.group = gid.unwrap_or(attributes.group);
                attributes.accessed_at = atime.map_or(attributes.accessed_at, at);
                attributes.modified_at = mtime.map_or(attributes.modified_at, at);
            })
        };
        match set() {
            Ok(facts) => reply.attr(&TTL, &file_attributes(&facts)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.store().kind(ino.0) {
            Some(NodeKind::Symlink(target)) => reply.data(target.as_bytes()),
            Some(_) => reply.error(Errno::EINVAL),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & 0o170_000 {
            0o010_000 => NodeKind::Fifo,
            0o020_000 => NodeKind::CharacterDevice(rdev),
            0o060_000 => NodeKind::BlockDevice(rdev),
            0o140_000 => NodeKind::Socket,
            _ => NodeKind::File,
        };
        Self::entry(reply, self.make(req, (parent, name), mode, kind));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.make(req, (parent, name), mode, NodeKind::Directory);
        Self::entry(reply, made);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let make = || {
            // A path: it may be longer than a name.
            let target = target.to_str().ok_or(Errno::EILSEQ)?.to_owned();
            self.make(req, (parent, link_name), 0o777, NodeKind::Symlink(target))
        };
        Self::entry(reply, make());
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.carried_out(req).is_some() {
            return reply.ok();
        }
        match text(name) {
            Ok(name) => {
                let place = Place {
                    parent: parent.0,
                    name,
                };
                Self::empty(reply, self.store().unlink(place, unique(req)));
            }
            Err(error) => reply.error(error),
        }
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.carried_out(req).is_some() {
            return reply.ok();
        }
        match text(name) {
            Ok(name) => {
                let place = Place {
                    parent: parent.0,
                    name,
                };
                Self::empty(reply, self.store().remove_directory(place, unique(req)));
            }
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if self.carried_out(req).is_some() {
            return reply.ok();
        }
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, newname) = match (text(name), text(newname)) {
            (Ok(name), Ok(newname)) => (name.to_owned(), newname.to_owned()),
            (Err(error), _) | (_, Err(error)) => return reply.error(error),
        };
        let (store, unique) = (self.store().clone(), unique(req));
        let is_control = self.is_control_name(newparent, &newname);
        let rename = move || {
            if is_control {
                store.barrier()?;
            }
            let from = Place {
                parent: parent.0,
                name: &name,
            };
            let to = Place {
                parent: newparent.0,
                name: &newname,
            };
            store.rename(from, to, mode, unique)
        };
        match is_control {
            true => self.flushes.run(move || Self::empty(reply, rename())),
            false => Self::empty(reply, rename()),
        }
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let make = || {
            if let Some(ino) = self.carried_out(req) {
                return self.store().facts(ino).map_err(errno);
            }
            let to = Place {
                parent: newparent.0,
                name: text(newname)?,
            };
            self.store().link(ino.0, to, unique(req)).map_err(errno)
        };
        Self::entry(reply, make());
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let node = match self.store().node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        let decision = self.decide(req, &node, flags.0, |fd| reply.open_backing(fd));
        match decision {
            Ok(Decision::Passthrough(id)) => {
                let backing = sys::adopt_backing(&reply, id);
                let handle = FileHandle(ino.0 | PASSTHROUGH_HANDLE);
                reply.opened_passthrough(handle, FopenFlags::empty(), &backing);
                // The registration lives until the last release.
                let _: u32 = backing.into_raw();
            }
            Ok(Decision::Cached { was_passthrough }) => {
                reply.opened(FileHandle(ino.0), Self::opened_flags(was_passthrough));
            }
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(req, (parent, name), mode, NodeKind::File);
        let facts = match made {
            Ok(facts) => facts,
            Err(error) => return reply.error(error),
        };
        let node = match self.store().node(facts.ino) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        let decision = self.decide(req, &node, flags, |fd| reply.open_backing(fd));
        let attributes = file_attributes(&facts);
        match decision {
            Ok(Decision::Passthrough(id)) => {
                let backing = sys::adopt_created_backing(&reply, id);
                let handle = FileHandle(facts.ino | PASSTHROUGH_HANDLE);
                let flags = FopenFlags::empty();
                reply.created_passthrough(&TTL, &attributes, GENERATION, handle, flags, &backing);
                let _: u32 = backing.into_raw();
            }
            Ok(Decision::Cached { was_passthrough }) => {
                let flags = Self::opened_flags(was_passthrough);
                reply.created(&TTL, &attributes, GENERATION, FileHandle(facts.ino), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let node = match self.store().node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        let transfer = &self.parts.transfer;
        self.parts.hydrator.touch(&node);
        let ahead = transfer.note_read(&node, offset, size);
        match transfer.read_now(&node, offset, size) {
            Ok(Outcome::Done(content)) => {
                reply.data(&content);
                Statistics::count(&self.parts.statistics.read_hits);
                if let Some(ahead) = ahead {
                    let transfer = transfer.clone();
                    self.pool.try_run(move || transfer.run_ahead(&node, ahead));
                }
            }
            Ok(Outcome::Needs(_)) => {
                self.complete_small(&node);
                let (transfer, began_at) = (transfer.clone(), Instant::now());
                let statistics = self.parts.statistics.clone();
                self.pool.run(move || {
                    if let Some(ahead) = ahead {
                        transfer.run_ahead(&node, ahead);
                    }
                    match transfer.read(&node, offset, size) {
                        Ok(content) => reply.data(&content),
                        Err(error) => {
                            Statistics::count(&statistics.read_errors);
                            reply.error(errno(error));
                        }
                    }
                    statistics.read_misses.end(began_at);
                });
            }
            Err(error) => {
                Statistics::count(&self.parts.statistics.read_errors);
                reply.error(errno(error));
            }
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let node = match self.store().node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        if self.is_control_file(ino.0) {
            return self.write_control(node, offset, data, reply);
        }
        let written = u32::try_from(data.len()).unwrap_or(0);
        self.parts.hydrator.touch(&node);
        match self.store().write(&node, offset, data, &[]) {
            Ok(Outcome::Done(())) => reply.written(written),
            Err(error) if !is_full(&error) => reply.error(errno(error)),
            // It waits for the backup, or for room.
            Ok(Outcome::Needs(_)) | Err(_) => {
                self.complete_small(&node);
                let (transfer, data) = (self.parts.transfer.clone(), data.to_vec());
                self.pool
                    .run(move || match transfer.write(&node, offset, &data) {
                        Ok(()) => reply.written(written),
                        Err(error) => reply.error(errno(error)),
                    });
            }
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let known = is_resent(req) && self.store().is_answered_open(unique(req));
        if !known && let Ok(node) = self.store().node(ino.0) {
            let passthrough = fh.0 & PASSTHROUGH_HANDLE != 0;
            match self.store().released(&node, passthrough, unique(req)) {
                Ok(Some(backing)) => {
                    if let Err(error) = sys::close_backing(self.parts.device.as_fd(), backing) {
                        tracing::warn!(%error, ino = ino.0, "give back a backing file");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, ino = ino.0, "note a close"),
            }
        }
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let node = match self.store().node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        if self.store().is_clean(&node) {
            return reply.ok();
        }
        let store = self.store().clone();
        let (statistics, began_at) = (self.parts.statistics.clone(), Instant::now());
        self.flushes.run(move || {
            Self::empty(reply, store.sync(&node));
            statistics.fsyncs.end(began_at);
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.listings.put(handle, self.store().list(ino.0));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (number, name) in [(1, "."), (2, "..")] {
            if offset < number && reply.add(ino, number, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let listing = self.listing(ino, fh);
        for listed in listing.after(offset) {
            let Some(kind) = self.store().kind(listed.ino) else {
                continue;
            };
            let ino = INodeNo(listed.ino);
            if reply.add(ino, listed.cookie, file_type(&kind), listed.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        if offset < 2
            && let Ok(facts) = self.store().facts(ino.0)
        {
            let attributes = file_attributes(&facts);
            for (number, name) in [(1, "."), (2, "..")] {
                if offset < number && reply.add(ino, number, name, &TTL, &attributes, GENERATION) {
                    return reply.ok();
                }
            }
        }
        let listing = self.listing(ino, fh);
        for listed in listing.after(offset) {
            // The kernel keeps what it is told here: only what is still true may be told.
            let place = Place {
                parent: ino.0,
                name: listed.name,
            };
            let Ok(facts) = self.store().lookup(place) else {
                continue;
            };
            let attributes = file_attributes(&facts);
            let ino = INodeNo(facts.ino);
            if reply.add(
                ino,
                listed.cookie,
                listed.name,
                &TTL,
                &attributes,
                GENERATION,
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.remove(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let store = self.store().clone();
        self.flushes
            .run(move || Self::empty(reply, store.sync_names()));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::fstatvfs(&self.parts.cache_directory) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                255,
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(errno(error.into())),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let node = match self.store().node(ino.0) {
            Ok(node) => node,
            Err(error) => return reply.error(errno(error)),
        };
        let mode = mode.cast_unsigned();
        match self.store().allocate(&node, mode, offset, length, &[]) {
            Ok(Outcome::Done(())) => reply.ok(),
            Err(error) if !is_full(&error) => reply.error(errno(error)),
            Ok(Outcome::Needs(_)) | Err(_) => {
                let transfer = self.parts.transfer.clone();
                self.pool.run(move || {
                    Self::empty(reply, transfer.allocate(&node, mode, offset, length))
                });
            }
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = || {
            let node = self.store().node(ino.0)?;
            self.store().seek(&node, offset, whence)
        };
        match whence {
            SEEK_DATA | SEEK_HOLE => match seek() {
                Ok(found) => reply.offset(found),
                Err(error) => reply.error(errno(error)),
            },
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copy = || {
            let from = self.store().node(ino_in.0)?;
            let to = self.store().node(ino_out.0)?;
            self.store()
                .copy_range((&from, offset_in), (&to, offset_out), len)
        };
        match copy() {
            Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
            // The kernel then copies by reading and writing.
            Err(error) => reply.error(errno(error)),
        }
    }
}
