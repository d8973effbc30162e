//! Names over the backup's names, and the table of touched nodes: changed only by applying records,
//! the same way in a live mount and in a replay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::answered::Answered;
use super::names::Names;
use super::node::{Node, NodeState};
use super::record::{Attributes, BasePart, Nanoseconds, NodeKind, NodeRecord, Record};
use super::tree::{Tree, TreeNode, TreeNodeKind};
use super::{Ino, ROOT};

/// First number of nodes that the backup does not have.
pub const FIRST_OWN_INO: Ino = 1 << 32;

/// Who owns what the backup does not say the owner of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub user: u32,
    /// Group.
    pub group: u32,
}

/// Names and nodes.
#[derive(Debug)]
pub struct Namespace {
    tree: Arc<Tree>,
    owner: Owner,
    names: HashMap<Ino, BTreeMap<String, Option<Ino>>>,
    nodes: HashMap<Ino, Arc<Node>>,
    next_ino: Ino,
    answered: Answered,
    /// Nodes that lost their last name and await removal.
    pub nameless: Vec<Ino>,
}

/// Attributes of a node of the backup.
pub fn attributes_in_tree(node: &TreeNode<'_>, owner: Owner) -> Attributes {
    let at = node.modified_at_s.saturating_mul(1_000_000_000);
    let mode = match node.kind {
        TreeNodeKind::Symlink(_) => 0o777,
        TreeNodeKind::Directory | TreeNodeKind::File { .. } => node.mode & 0o700,
    };
    Attributes {
        mode,
        user: owner.user,
        group: owner.group,
        modified_at: at,
        changed_at: at,
        accessed_at: at,
    }
}

impl Namespace {
    /// The backup's names, unchanged.
    pub fn new(tree: Arc<Tree>, owner: Owner) -> Self {
        Self {
            tree,
            owner,
            names: HashMap::new(),
            nodes: HashMap::new(),
            next_ino: FIRST_OWN_INO,
            answered: Answered::default(),
            nameless: Vec::new(),
        }
    }

    /// The number that the next new node gets.
    pub fn next_ino(&self) -> Ino {
        self.next_ino
    }

    /// The node, if it was touched.
    pub fn touched(&self, ino: Ino) -> Option<&Arc<Node>> {
        self.nodes.get(&ino)
    }

    /// All touched nodes.
    pub fn all_touched(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Forgets a node that is as in the backup, or gone.
    pub fn forget(&mut self, ino: Ino) {
        self.nodes.remove(&ino);
    }

    /// The node, brought into the table if only the backup has it.
    pub fn node(&mut self, ino: Ino) -> Option<Arc<Node>> {
        if let Some(node) = self.nodes.get(&ino) {
            return Some(node.clone());
        }
        let in_tree = self.tree.node(ino)?;
        let attributes = attributes_in_tree(&in_tree, self.owner);
        let kind = match in_tree.kind {
            TreeNodeKind::Directory => NodeKind::Directory,
            TreeNodeKind::File { .. } => NodeKind::File,
            TreeNodeKind::Symlink(target) => NodeKind::Symlink(target.to_owned()),
        };
        let node = Node::new(ino, kind, attributes);
        if let TreeNodeKind::File { file, size_bytes } = in_tree.kind {
            let mut state = node.lock();
            state.base = Some(BasePart {
                file,
                length: size_bytes,
            });
            state.size = size_bytes;
            state.size_in_catalog = size_bytes;
        }
        let node = Arc::new(node);
        self.nodes.insert(ino, node.clone());
        Some(node)
    }

    /// The number under a name.
    pub fn lookup(&self, parent: Ino, name: &str) -> Option<Ino> {
        match self.names.get(&parent).and_then(|names| names.get(name)) {
            Some(over) => *over,
            None => self.tree.lookup(parent, name),
        }
    }

    /// The names in a directory.
    pub fn list(&self, directory: Ino) -> Names {
        let empty = BTreeMap::new();
        let over = self.names.get(&directory).unwrap_or(&empty);
        let mut names = Names::default();
        for child in self.tree.children(directory) {
            if !over.contains_key(child.name) {
                names.push(child.name, child.ino);
            }
        }
        for (name, ino) in over {
            if let Some(ino) = ino {
                names.push(name, *ino);
            }
        }
        names
    }

    /// Whether a directory has no names in it.
    pub fn is_empty(&self, directory: Ino) -> bool {
        let over = self.names.get(&directory);
        if over.is_some_and(|names| names.values().any(Option::is_some)) {
            return false;
        }
        let hidden = |name: &str| over.is_some_and(|names| names.contains_key(name));
        self.tree
            .children(directory)
            .all(|child| hidden(child.name))
    }

    /// Whether a number is a directory's.
    pub fn is_directory(&self, ino: Ino) -> bool {
        match self.nodes.get(&ino) {
            Some(node) => node.is_directory(),
            None => self
                .tree
                .node(ino)
                .is_some_and(|node| node.kind == TreeNodeKind::Directory),
        }
    }

    /// How many directories are in a directory.
    pub fn subdirectory_count(&self, directory: Ino) -> u32 {
        let over = self.names.get(&directory);
        let hidden = |name: &str| over.is_some_and(|names| names.contains_key(name));
        let below = self
            .tree
            .children(directory)
            .filter(|child| child.kind == TreeNodeKind::Directory && !hidden(child.name))
            .count();
        let above = over.map_or(0, |names| {
            let inos = names.values().flatten();
            inos.filter(|ino| self.is_directory(**ino)).count()
        });
        u32::try_from(below + above).unwrap_or(u32::MAX)
    }

    /// The node that a request made, if the request was answered before the worker's restart; 0 for none made.
    pub fn answered(&self, unique: u64) -> Option<Ino> {
        self.answered.get(unique)
    }

    fn touch(&mut self, ino: Ino, at: Nanoseconds) {
        if let Some(node) = self.node(ino) {
            let mut state = node.lock();
            state.attributes.modified_at = at;
            state.attributes.changed_at = at;
        }
    }

    fn set_name(&mut self, parent: Ino, name: &str, ino: Option<Ino>) {
        let below = self.tree.lookup(parent, name);
        let names = self.names.entry(parent).or_default();
        if ino == below {
            names.remove(name);
        } else {
            names.insert(name.to_owned(), ino);
        }
    }

    fn drop_link(&mut self, ino: Ino, at: Nanoseconds) {
        let Some(node) = self.node(ino) else {
            return;
        };
        let mut state = node.lock();
        state.attributes.changed_at = at;
        state.links = if node.is_directory() {
            0
        } else {
            state.links.saturating_sub(1)
        };
        if state.links == 0 {
            self.nameless.push(ino);
        }
    }

    /// Applies a record of the catalog.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Mounted => {
                self.answered.clear();
            }
            Record::Create {
                ino,
                parent,
                name,
                kind,
                attributes,
                unique,
            } => {
                self.next_ino = self.next_ino.max(ino + 1);
                let node = Node::new(*ino, kind.clone(), *attributes);
                self.nodes.insert(*ino, Arc::new(node));
                self.set_name(*parent, name, Some(*ino));
                self.touch(*parent, attributes.changed_at);
                self.answered.remember(*unique, *ino);
            }
            Record::Link {
                ino,
                parent,
                name,
                at,
                unique,
            } => {
                if let Some(node) = self.node(*ino) {
                    let mut state = node.lock();
                    state.links += 1;
                    state.attributes.changed_at = *at;
                }
                self.set_name(*parent, name, Some(*ino));
                self.touch(*parent, *at);
                self.answered.remember(*unique, *ino);
            }
            Record::Unlink {
                parent,
                name,
                at,
                unique,
            } => {
                if let Some(ino) = self.lookup(*parent, name) {
                    self.set_name(*parent, name, None);
                    self.drop_link(ino, *at);
                    self.touch(*parent, *at);
                }
                self.answered.remember(*unique, 0);
            }
            Record::Rename {
                parent,
                name,
                new_parent,
                new_name,
                exchange,
                at,
                unique,
            } => {
                let moved = self.lookup(*parent, name);
                let replaced = self.lookup(*new_parent, new_name);
                self.set_name(*parent, name, if *exchange { replaced } else { None });
                self.set_name(*new_parent, new_name, moved);
                if let (Some(replaced), false) = (replaced, *exchange) {
                    self.drop_link(replaced, *at);
                }
                self.touch(*parent, *at);
                self.touch(*new_parent, *at);
                for ino in [moved, replaced].into_iter().flatten() {
                    if let Some(node) = self.node(ino) {
                        node.lock().attributes.changed_at = *at;
                    }
                }
                self.answered.remember(*unique, 0);
            }
            Record::Attributes { ino, attributes } => {
                if let Some(node) = self.node(*ino) {
                    node.lock().attributes = *attributes;
                }
            }
            Record::Commit {
                ino,
                size,
                modified_at,
                present,
            } => {
                if let Some(node) = self.node(*ino) {
                    let mut state = node.lock();
                    if state.base.is_some() {
                        state.size = *size;
                        state.size_in_catalog = *size;
                        state.cut = None;
                        state.attributes.modified_at = *modified_at;
                        let limit = state.base_granules();
                        for &(first, count) in present {
                            state
                                .present
                                .insert_range(first..(first + count).min(limit));
                        }
                    }
                }
            }
            Record::Copied { ino, granules } => self.with_base(*ino, |state| {
                let limit = state.base_granules();
                for &(first, count) in granules {
                    let end = (first + count).min(limit);
                    state.perhaps_copied.insert_range(first..end);
                }
            }),
            Record::Rewritten { ino, granules } => self.with_base(*ino, |state| {
                for &(first, count) in granules {
                    state.perhaps_copied.remove_range(first..first + count);
                }
            }),
            Record::Absent { ino, granules } => self.with_base(*ino, |state| {
                for &(first, count) in granules {
                    state.mark_absent(first, count);
                }
            }),
            Record::Truncate { ino, size } => {
                if let Some(node) = self.node(*ino) {
                    node.lock().resize(*size);
                }
            }
            Record::Complete { ino } => {
                if let Some(node) = self.node(*ino) {
                    let mut state = node.lock();
                    state.forget_base();
                }
            }
            Record::Node(record) => self.restore(record),
            Record::Name { parent, name, ino } => {
                self.names
                    .entry(*parent)
                    .or_default()
                    .insert(name.clone(), *ino);
            }
            Record::NextIno(ino) => self.next_ino = self.next_ino.max(*ino),
            Record::Answered { unique, ino } => self.answered.remember(*unique, *ino),
        }
    }

    fn with_base(&mut self, ino: Ino, change: impl FnOnce(&mut NodeState)) {
        if let Some(node) = self.node(ino) {
            let mut state = node.lock();
            if state.base.is_some() {
                change(&mut state);
            }
        }
    }

    fn restore(&mut self, record: &NodeRecord) {
        let node = Node::new(record.ino, record.kind.clone(), record.attributes);
        let mut state = node.lock();
        state.links = record.links;
        state.base = record.base;
        state.size = record.size;
        state.size_in_catalog = record.size;
        state.cut = record.cut;
        for &(first, count) in &record.present {
            state.present.insert_range(first..first + count);
        }
        if record.links == 0 {
            self.nameless.push(record.ino);
        }
        drop(state);
        self.nodes.insert(record.ino, Arc::new(node));
    }

    /// Everything but the nodes as records.
    pub fn snapshot(&self) -> Vec<Record> {
        let mut records = vec![Record::NextIno(self.next_ino)];
        for (parent, names) in &self.names {
            for (name, ino) in names {
                records.push(Record::Name {
                    parent: *parent,
                    name: name.clone(),
                    ino: *ino,
                });
            }
        }
        let answered = self.answered.all();
        records.extend(answered.map(|(unique, ino)| Record::Answered { unique, ino }));
        records
    }

    /// Whether a number is known at all.
    pub fn exists(&self, ino: Ino) -> bool {
        ino == ROOT || self.nodes.contains_key(&ino) || self.tree.node(ino).is_some()
    }
}
