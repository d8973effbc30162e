//! The cache as a whole: opens it, replays its journals, and does what concerns names and attributes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::Ino;
use super::account::Account;
use super::barrier::{Suspects, is_temporary_name};
use super::catalog::Catalog;
use super::disk::{Disk, DiskName};
use super::names::Names;
use super::namespace::{Namespace, Owner, attributes_in_tree};
use super::node::{Node, NodeState, Opens};
use super::record::{Attributes, Nanoseconds, NodeKind, Record, RuntimeRecord};
use super::replay::replay;
use super::runtime::Runtime;
use super::tree::{Tree, TreeNodeKind};

/// The present instant.
pub fn now() -> Nanoseconds {
    let since_epoch: Duration = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

/// Errors of the system, by the names that this crate uses.
pub mod errno {
    use rustix::io::Errno;
    use std::io;

    /// An error of this number.
    pub fn error(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }
}
use errno::error;
use rustix::io::Errno;

/// What is told about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: NodeKind,
    /// Attributes, with the times as they are to be shown.
    pub attributes: Attributes,
    /// Size, in bytes.
    pub size: u64,
    /// Occupied blocks of 512 bytes.
    pub blocks: u64,
    /// Number of names.
    pub links: u32,
}

/// A new node to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewNode<'a> {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    pub name: &'a str,
    /// Permission bits.
    pub mode: u16,
    /// Who makes it.
    pub owner: Owner,
    /// Request.
    pub unique: u64,
}

/// A place in the tree of names.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Directory.
    pub parent: Ino,
    /// Name in it.
    pub name: &'a str,
}

/// How a rename treats what is at the new place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails.
    NoReplace,
    /// Changes places with it.
    Exchange,
}

/// The write cache.
#[derive(Debug)]
pub struct Store {
    pub(crate) tree: Arc<Tree>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) catalog: Catalog,
    pub(crate) runtime: Runtime,
    pub(crate) owner: Owner,
    names: Mutex<Namespace>,
    // Nodes without a name and without a descriptor, whose data goes once the catalog is durable.
    reapable: Mutex<Vec<(Ino, u64)>>,
    // Nodes of which everything is here but of which the catalog does not say so yet.
    pub(crate) whole: Mutex<Vec<Arc<Node>>>,
    pub(crate) account: Account,
    pub(crate) suspects: Suspects,
}

/// What a cache is opened from.
#[derive(Debug)]
pub struct StoreParts {
    /// The backup's tree.
    pub tree: Arc<Tree>,
    /// Its directory.
    pub disk: Arc<dyn Disk>,
    /// The journal that outlives the worker.
    pub runtime: std::fs::File,
    /// Who owns the nodes.
    pub owner: Owner,
}

impl Store {
    /// Opens a cache: after a worker's death when the runtime journal has something, else after a mount.
    pub fn open(parts: StoreParts) -> io::Result<Self> {
        let (catalog, records) = Catalog::open(parts.disk.clone())?;
        let (runtime, runtime_records) = Runtime::open(parts.runtime)?;
        let is_takeover = !runtime_records.is_empty();
        let mut names = Namespace::new(parts.tree.clone(), parts.owner);
        for record in &records {
            names.apply(record);
        }
        for record in &runtime_records {
            replay(&mut names, record);
        }
        let store = Self {
            tree: parts.tree,
            disk: parts.disk,
            catalog,
            runtime,
            owner: parts.owner,
            names: Mutex::new(names),
            reapable: Mutex::default(),
            whole: Mutex::default(),
            account: Account::default(),
            suspects: Suspects::default(),
        };
        if is_takeover {
            for node in store.names().all_touched() {
                let mut state = node.lock();
                // What the predecessor did not flush is still to be flushed.
                store.mark_dirty(node.ino, &mut state);
                state.unnamed = true;
            }
        } else {
            // What a predecessor wrote may not be on the disk, and nobody remembers which files those are.
            if !records.is_empty() {
                store.disk.sync_all()?;
            }
            store.append(&[Record::Mounted])?;
            store
                .runtime
                .append(&RuntimeRecord::Cut { ino: 0, size: 0 })?;
            store.names().apply(&Record::Mounted);
            store.remove_strays()?;
        }
        store.collect_nameless();
        Ok(store)
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Namespace> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn append(&self, records: &[Record]) -> io::Result<u64> {
        self.catalog.append(records)
    }

    // Data files that no node owns: left by an unlink or a create that the power cut undid.
    fn remove_strays(&self) -> io::Result<()> {
        let names = self.names();
        for ino in self.disk.data_files()? {
            if !names.exists(ino) {
                self.disk.remove(DiskName::Data(ino))?;
            }
        }
        // Their numbers are given again: a stray must not come back under its number.
        self.disk.sync_data_names()
    }

    fn log_and_apply(&self, names: &mut Namespace, record: Record) -> io::Result<()> {
        let records = std::slice::from_ref(&record);
        let position = match record {
            Record::Create { .. } | Record::Link { .. } => self.catalog.append_new(records)?,
            _ => self.append(records)?,
        };
        names.apply(&record);
        if let Record::Create { ino, .. } | Record::Link { ino, .. } = record
            && let Some(node) = names.touched(ino)
        {
            node.lock().position = position;
        }
        Ok(())
    }

    /// The node of a number.
    pub fn node(&self, ino: Ino) -> io::Result<Arc<Node>> {
        self.names().node(ino).ok_or_else(|| error(Errno::NOENT))
    }

    /// The node that a resent request made before the worker's restart, 0 for none made.
    pub fn answered(&self, unique: u64) -> Option<Ino> {
        self.names().answered(unique)
    }

    /// Whether an open or close was carried out before the worker's restart.
    pub fn is_answered_open(&self, unique: u64) -> bool {
        self.runtime.answered(unique).is_some()
    }

    /// Looks a name up.
    pub fn lookup(&self, place: Place<'_>) -> io::Result<Facts> {
        let names = self.names();
        let ino = names
            .lookup(place.parent, place.name)
            .ok_or_else(|| error(Errno::NOENT))?;
        self.facts_of(&names, ino)
    }

    /// What there is to say about a node.
    pub fn facts(&self, ino: Ino) -> io::Result<Facts> {
        self.facts_of(&self.names(), ino)
    }

    fn facts_of(&self, names: &Namespace, ino: Ino) -> io::Result<Facts> {
        if let Some(node) = names.touched(ino) {
            let links = match node.is_directory() {
                true => 2 + names.subdirectory_count(ino),
                false => 0,
            };
            let state = node.lock();
            let mut facts = self.facts_of_state(node, &state)?;
            if links > 0 && state.links > 0 {
                facts.links = links;
            }
            return Ok(facts);
        }
        let node = self.tree.node(ino).ok_or_else(|| error(Errno::NOENT))?;
        let (kind, size, links) = match node.kind {
            TreeNodeKind::Directory => {
                (NodeKind::Directory, 4096, 2 + names.subdirectory_count(ino))
            }
            TreeNodeKind::File { size_bytes, .. } => (NodeKind::File, size_bytes, 1),
            TreeNodeKind::Symlink(target) => {
                (NodeKind::Symlink(target.to_owned()), target.len() as u64, 1)
            }
        };
        Ok(Facts {
            ino,
            kind,
            attributes: attributes_in_tree(&node, self.owner),
            size,
            blocks: size.div_ceil(512),
            links,
        })
    }

    pub(crate) fn facts_of_state(&self, node: &Node, state: &NodeState) -> io::Result<Facts> {
        let mut facts = Facts {
            ino: node.ino,
            kind: node.kind.clone(),
            attributes: state.attributes,
            size: state.size,
            blocks: state.size.div_ceil(512),
            links: state.links,
        };
        match &node.kind {
            NodeKind::Directory => facts.size = 4096,
            NodeKind::Symlink(target) => facts.size = target.len() as u64,
            NodeKind::File if state.base.is_none() => {
                let file = match &state.file {
                    Some(file) => Some(file.clone()),
                    None => self.disk.open(DiskName::Data(node.ino), false)?,
                };
                let Some(file) = file else {
                    facts.size = 0;
                    facts.blocks = 0;
                    return Ok(facts);
                };
                let stat = file.stat()?;
                facts.size = stat.size;
                facts.blocks = stat.blocks;
                facts.attributes.modified_at = stat.modified_at;
                facts.attributes.accessed_at = stat.accessed_at;
                facts.attributes.changed_at = stat.changed_at.max(facts.attributes.changed_at);
            }
            _ => {}
        }
        Ok(facts)
    }

    /// The names in a directory with what they lead to.
    pub fn list(&self, directory: Ino) -> Names {
        self.names().list(directory)
    }

    /// What a node is, without touching it.
    pub fn kind(&self, ino: Ino) -> Option<NodeKind> {
        let names = self.names();
        if let Some(node) = names.touched(ino) {
            return Some(node.kind.clone());
        }
        Some(match self.tree.node(ino)?.kind {
            TreeNodeKind::Directory => NodeKind::Directory,
            TreeNodeKind::File { .. } => NodeKind::File,
            TreeNodeKind::Symlink(target) => NodeKind::Symlink(target.to_owned()),
        })
    }

    /// Makes a node.
    pub fn create(&self, new: NewNode<'_>, kind: NodeKind) -> io::Result<Facts> {
        check_name(new.name)?;
        let mut names = self.names();
        if names.lookup(new.parent, new.name).is_some() {
            return Err(error(Errno::EXIST));
        }
        let parent = names.node(new.parent).ok_or_else(|| error(Errno::NOENT))?;
        let inherited = parent.lock().attributes;
        let (mut mode, mut group) = (new.mode, new.owner.group);
        if inherited.mode & 0o2000 != 0 {
            group = inherited.group;
            if kind == NodeKind::Directory {
                mode |= 0o2000;
            }
        }
        let at = now();
        let ino = names.next_ino();
        if kind == NodeKind::File {
            // Made before it is spoken of; a stray of a crash in between is removed at the next mount.
            self.disk.open(DiskName::Data(ino), true)?;
        }
        let record = Record::Create {
            ino,
            parent: new.parent,
            name: new.name.to_owned(),
            attributes: Attributes {
                mode,
                user: new.owner.user,
                group,
                modified_at: at,
                changed_at: at,
                accessed_at: at,
            },
            unique: new.unique,
            kind,
        };
        if let Err(failure) = self.log_and_apply(&mut names, record) {
            self.disk.remove(DiskName::Data(ino)).ok();
            return Err(failure);
        }
        if let Some(node) = names.touched(ino) {
            let mut state = node.lock();
            state.unnamed = true;
            state.settled = true;
            state.temporary = is_temporary_name(new.name);
        }
        self.facts_of(&names, ino)
    }

    /// Gives a node a further name.
    pub fn link(&self, ino: Ino, to: Place<'_>, unique: u64) -> io::Result<Facts> {
        check_name(to.name)?;
        let mut names = self.names();
        if names.lookup(to.parent, to.name).is_some() {
            return Err(error(Errno::EXIST));
        }
        let node = names.node(ino).ok_or_else(|| error(Errno::NOENT))?;
        match node.lock().links {
            0 => return Err(error(Errno::NOENT)),
            65_000.. => return Err(error(Errno::MLINK)),
            _ => {}
        }
        let record = Record::Link {
            ino,
            parent: to.parent,
            name: to.name.to_owned(),
            at: now(),
            unique,
        };
        self.log_and_apply(&mut names, record)?;
        self.facts_of(&names, ino)
    }

    /// Removes a name of something that is not a directory.
    pub fn unlink(&self, place: Place<'_>, unique: u64) -> io::Result<()> {
        let mut names = self.names();
        let ino = names
            .lookup(place.parent, place.name)
            .ok_or_else(|| error(Errno::NOENT))?;
        if names.is_directory(ino) {
            return Err(error(Errno::ISDIR));
        }
        self.remove_name(&mut names, place, unique)
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, place: Place<'_>, unique: u64) -> io::Result<()> {
        let mut names = self.names();
        let ino = names
            .lookup(place.parent, place.name)
            .ok_or_else(|| error(Errno::NOENT))?;
        if !names.is_directory(ino) {
            return Err(error(Errno::NOTDIR));
        }
        if !names.is_empty(ino) {
            return Err(error(Errno::NOTEMPTY));
        }
        self.remove_name(&mut names, place, unique)
    }

    fn remove_name(&self, names: &mut Namespace, place: Place<'_>, unique: u64) -> io::Result<()> {
        let record = Record::Unlink {
            parent: place.parent,
            name: place.name.to_owned(),
            at: now(),
            unique,
        };
        self.log_and_apply(names, record)?;
        self.collect(names);
        Ok(())
    }

    /// Moves a name.
    pub fn rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
        unique: u64,
    ) -> io::Result<()> {
        check_name(to.name)?;
        let mut names = self.names();
        let moved = names
            .lookup(from.parent, from.name)
            .ok_or_else(|| error(Errno::NOENT))?;
        let there = names.lookup(to.parent, to.name);
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(error(Errno::EXIST)),
            (RenameMode::Exchange, None) => return Err(error(Errno::NOENT)),
            (RenameMode::Replace, Some(there)) if there == moved => return Ok(()),
            (RenameMode::Replace, Some(there)) => {
                match (names.is_directory(moved), names.is_directory(there)) {
                    (true, false) => return Err(error(Errno::NOTDIR)),
                    (false, true) => return Err(error(Errno::ISDIR)),
                    (true, true) if !names.is_empty(there) => {
                        return Err(error(Errno::NOTEMPTY));
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        let record = Record::Rename {
            parent: from.parent,
            name: from.name.to_owned(),
            new_parent: to.parent,
            new_name: to.name.to_owned(),
            exchange: mode == RenameMode::Exchange,
            at: now(),
            unique,
        };
        self.log_and_apply(&mut names, record)?;
        if let Some(node) = names.touched(moved) {
            let mut state = node.lock();
            if state.temporary && !is_temporary_name(to.name) {
                state.temporary = false;
                self.suspects.add(moved);
            }
        }
        self.collect(&mut names);
        Ok(())
    }

    /// Changes attributes.
    pub fn set_attributes(
        &self,
        ino: Ino,
        change: impl FnOnce(&mut Attributes),
    ) -> io::Result<Facts> {
        let node = self.node(ino)?;
        let mut state = node.lock();
        let before = self.facts_of_state(&node, &state)?.attributes;
        let mut attributes = before;
        change(&mut attributes);
        attributes.changed_at = now();
        let times_set = (before.modified_at, before.accessed_at)
            != (attributes.modified_at, attributes.accessed_at);
        if node.kind == NodeKind::File && state.base.is_none() && times_set {
            let file = self.data_file(&node, &mut state)?;
            file.set_times(attributes.accessed_at, attributes.modified_at)?;
        }
        state.position = self.append(&[Record::Attributes { ino, attributes }])?;
        state.attributes = attributes;
        drop(state);
        self.facts(ino)
    }

    /// Makes names durable: what `fsync` of a directory promises.
    pub fn sync_names(&self) -> io::Result<()> {
        self.catalog.sync(self.catalog.position())
    }

    /// Notes descriptors; `unique` is the request that opened one.
    pub(crate) fn set_opens(
        &self,
        ino: Ino,
        state: &mut NodeState,
        opens: Opens,
        unique: u64,
    ) -> io::Result<()> {
        self.runtime.append(&RuntimeRecord::Opens {
            ino,
            cached: opens.cached,
            passthrough: opens.passthrough,
            backing: opens.backing,
            unique,
        })?;
        state.opens = opens;
        Ok(())
    }

    fn collect_nameless(&self) {
        self.collect(&mut self.names());
    }

    // Nodes without name that nobody has open can go; the others are looked at when they are closed.
    fn collect(&self, names: &mut Namespace) {
        let position = self.catalog.position();
        for ino in std::mem::take(&mut names.nameless) {
            let Some(node) = names.touched(ino) else {
                continue;
            };
            let state = node.lock();
            if state.links > 0 || !state.opens.is_empty() {
                continue;
            }
            drop(state);
            let mut reapable = self.reapable.lock().unwrap_or_else(PoisonError::into_inner);
            reapable.push((ino, position));
        }
    }

    /// To be called when the last descriptor is closed.
    pub(crate) fn closed(&self, node: &Arc<Node>) {
        let mut names = self.names();
        let mut state = node.lock();
        if !state.opens.is_empty() {
            return;
        }
        state.file = None;
        if state.links == 0 {
            names.nameless.push(node.ino);
            drop(state);
            self.collect(&mut names);
            return;
        }
        let in_tree = self.tree.node(node.ino);
        if let Some(in_tree) = in_tree
            && let TreeNodeKind::File { size_bytes, .. } = in_tree.kind
            && state.is_pristine(&attributes_in_tree(&in_tree, self.owner), size_bytes)
            && Arc::strong_count(node) <= 2
        {
            drop(state);
            names.forget(node.ino);
        }
    }

    /// Frees the space of nodes that are gone for good; flushes the catalog first.
    pub fn reap(&self) -> io::Result<()> {
        let mut reapable = self.reapable.lock().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *reapable);
        drop(reapable);
        let Some(position) = all.iter().map(|(_, position)| *position).max() else {
            return Ok(());
        };
        self.catalog.sync(position)?;
        for (ino, _) in all {
            let mut names = self.names();
            let gone = names.touched(ino).is_some_and(|node| {
                let state = node.lock();
                state.links == 0 && state.opens.is_empty()
            });
            if gone {
                if self.tree.node(ino).is_none() {
                    names.forget(ino);
                }
                drop(names);
                self.disk.remove(DiskName::Data(ino))?;
                self.count_gone(ino);
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> io::Result<()> {
    if name.len() > 255 {
        return Err(error(Errno::NAMETOOLONG));
    }
    Ok(())
}
