//! The list of a backup's files and directories, compact: a backup may have millions.

use std::collections::BTreeSet;

use crate::name::check_path;
use crate::{Limits, RepositoryError};

/// The number of a file in its tree, from 0, in the tree's order; directories have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIndex(pub u32);

/// A backup's files and directories, sorted by path, parents before their children.
#[derive(Debug, Default)]
pub struct Tree {
    paths: String,
    nodes: Vec<Node>,
    /// Position in `nodes` of each file.
    files: Vec<u32>,
    size_bytes: u64,
}

/// One file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path below PGDATA: `base/1/1259`, `pg_tblspc/16384/PG_15_202209061/5/16385`.
    pub path: &'a str,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits (the lowest 12).
    pub mode: u32,
    /// When it was last changed, in seconds since 1970.
    pub modified_at_s: i64,
}

/// What an entry is. There are no links: what a backup links to is below the link's own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its number.
        file: FileIndex,
        /// Its size, in bytes.
        size_bytes: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Node {
    path_start: u32,
    /// `u32::MAX` for a directory.
    file: u32,
    path_length: u16,
    mode: u16,
    size_bytes: u64,
    modified_at_s: i64,
}

const DIRECTORY: u32 = u32::MAX;

/// A number that no file of the backup has.
pub(crate) fn no_such_file(file: FileIndex) -> RepositoryError {
    let name = format!("file number {}", file.0);
    RepositoryError::corrupt(name, "the backup has no such file")
}

/// The beginning of the buffer that a read from this offset can fill.
pub(crate) fn within_file(size_bytes: u64, offset: u64, buffer: &mut [u8]) -> &mut [u8] {
    let left = usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
    let wanted = left.min(buffer.len());
    buffer.get_mut(..wanted).unwrap_or_default()
}

impl Node {
    fn path<'a>(&self, paths: &'a str) -> &'a str {
        let start = self.path_start as usize;
        paths
            .get(start..start + usize::from(self.path_length))
            .unwrap_or_default()
    }
}

impl Tree {
    /// Every entry, in order.
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            tree: self,
            nodes: self.nodes.iter(),
        }
    }

    /// How many files and directories there are.
    pub fn entry_count(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// How many files there are; their numbers are below it.
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Size of all files, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The file of this number, if there is one.
    pub fn file(&self, file: FileIndex) -> Option<Entry<'_>> {
        let node = *self.files.get(file.0 as usize)?;
        self.nodes.get(node as usize).map(|node| self.entry(node))
    }

    /// The path and size of a file.
    pub(crate) fn describe(&self, file: FileIndex) -> Result<(&str, u64), RepositoryError> {
        match self.file(file) {
            Some(entry) => match entry.kind {
                EntryKind::File { size_bytes, .. } => Ok((entry.path, size_bytes)),
                EntryKind::Directory => Ok((entry.path, 0)),
            },
            None => Err(no_such_file(file)),
        }
    }

    /// The entry of this path, if there is one.
    pub fn find(&self, path: &str) -> Option<Entry<'_>> {
        let found = self
            .nodes
            .binary_search_by(|node| node.path(&self.paths).cmp(path));
        self.nodes.get(found.ok()?).map(|node| self.entry(node))
    }

    /// The number and size of the file of this path, if there is one.
    pub fn find_file(&self, path: &str) -> Option<(FileIndex, u64)> {
        match self.find(path)?.kind {
            EntryKind::Directory => None,
            EntryKind::File { file, size_bytes } => Some((file, size_bytes)),
        }
    }

    /// What lies below a directory, at any depth.
    pub fn below<'a>(&'a self, directory: &str) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let prefix = format!("{directory}/");
        let first = self
            .nodes
            .partition_point(|node| node.path(&self.paths) < prefix.as_str());
        let rest = self.nodes.get(first..).unwrap_or_default();
        rest.iter()
            .map(|node| self.entry(node))
            .take_while(move |entry| entry.path.starts_with(&prefix))
    }

    fn entry(&self, node: &Node) -> Entry<'_> {
        Entry {
            path: node.path(&self.paths),
            kind: match node.file {
                DIRECTORY => EntryKind::Directory,
                file => EntryKind::File {
                    file: FileIndex(file),
                    size_bytes: node.size_bytes,
                },
            },
            mode: u32::from(node.mode),
            modified_at_s: node.modified_at_s,
        }
    }
}

/// Every entry of a tree, in order.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    tree: &'a Tree,
    nodes: std::slice::Iter<'a, Node>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        self.nodes.next().map(|node| self.tree.entry(node))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.nodes.size_hint()
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Where a file's bytes are, as its reader numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Location {
    /// Which directory or archive.
    pub(crate) source: u32,
    /// First byte of the content there.
    pub(crate) offset: u64,
}

/// The mode of what has the one that [`TreeBuilder::fill_modes`] is given later.
pub(crate) const DEFAULT_MODE: u32 = u32::MAX;
/// How a node has it: no mode of 12 bits.
const NODE_DEFAULT_MODE: u16 = u16::MAX;

/// What a reader found; the paths are checked when it is added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) path: &'a str,
    /// Absent for a directory.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) mode: u32,
    pub(crate) modified_at_s: i64,
    pub(crate) location: Location,
}

/// Collects entries in any order and makes a [`Tree`] of them, or says why it cannot be one.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    limits: Limits,
    paths: String,
    nodes: Vec<(Node, Location)>,
    size_bytes: u64,
}

impl TreeBuilder {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            paths: String::new(),
            nodes: Vec::new(),
            size_bytes: 0,
        }
    }

    /// Adds an entry, or refuses it by name.
    pub(crate) fn add(&mut self, found: Found<'_>) -> Result<(), RepositoryError> {
        let Found { path, .. } = found;
        check_path(path, &self.limits)?;
        let size_bytes = found.size_bytes.unwrap_or(0);
        if size_bytes > self.limits.file_bytes {
            let max = self.limits.file_bytes;
            let reason = format!("a size of {size_bytes} bytes is over the limit of {max}");
            return Err(RepositoryError::corrupt(path, reason));
        }
        // Node numbers and path positions are 32 bits wide.
        let entry_count_max = self.limits.entry_count.min(u64::from(DIRECTORY) - 1);
        if self.nodes.len() as u64 >= entry_count_max {
            let reason =
                format!("the backup has more than {entry_count_max} files and directories");
            return Err(RepositoryError::corrupt(path, reason));
        }
        let paths_bytes = self.paths.len() as u64 + path.len() as u64;
        let (Ok(path_start), Ok(path_length), true) = (
            u32::try_from(self.paths.len()),
            u16::try_from(path.len()),
            paths_bytes <= self.limits.all_paths_bytes.min(u64::from(u32::MAX)),
        ) else {
            let reason = "the backup's file names are longer than all together may be";
            return Err(RepositoryError::corrupt(path, reason));
        };
        self.size_bytes = self.size_bytes.saturating_add(size_bytes);
        self.paths.push_str(path);
        let node = Node {
            path_start,
            file: if found.size_bytes.is_some() {
                0
            } else {
                DIRECTORY
            },
            path_length,
            mode: match found.mode {
                DEFAULT_MODE => NODE_DEFAULT_MODE,
                mode => u16::try_from(mode & 0o7777).unwrap_or(0),
            },
            size_bytes,
            modified_at_s: found.modified_at_s,
        };
        self.nodes.push((node, found.location));
        Ok(())
    }

    /// Gives a mode to what was added with [`DEFAULT_MODE`].
    pub(crate) fn fill_modes(&mut self, file_mode: u32, directory_mode: u32) {
        for (node, _) in &mut self.nodes {
            if node.mode == NODE_DEFAULT_MODE {
                let mode = match node.file {
                    DIRECTORY => directory_mode,
                    _ => file_mode,
                };
                node.mode = u16::try_from(mode & 0o7777).unwrap_or(0);
            }
        }
    }

    /// Sorts, adds directories that only their children speak of, and numbers the files.
    pub(crate) fn finish(mut self) -> Result<(Tree, Vec<Location>), RepositoryError> {
        self.sort()?;
        let missing = self.missing_parents()?;
        if !missing.is_empty() {
            for path in &missing {
                self.add(Found {
                    path,
                    size_bytes: None,
                    mode: 0o700,
                    modified_at_s: 0,
                    location: Location::default(),
                })?;
            }
            self.sort()?;
        }
        let mut locations = Vec::new();
        let mut files = Vec::new();
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for (mut node, location) in self.nodes {
            if node.file != DIRECTORY {
                // Both fit: `add` bounds the number of nodes by 32 bits.
                node.file = u32::try_from(files.len()).unwrap_or(DIRECTORY);
                files.push(u32::try_from(nodes.len()).unwrap_or(DIRECTORY));
                locations.push(location);
            }
            nodes.push(node);
        }
        let tree = Tree {
            paths: self.paths,
            nodes,
            files,
            size_bytes: self.size_bytes,
        };
        Ok((tree, locations))
    }

    /// Sorts by path and refuses duplicates. A directory may be in two archives (`pg_wal` is), once in each.
    fn sort(&mut self) -> Result<(), RepositoryError> {
        let paths = &self.paths;
        self.nodes
            .sort_by(|(a, _), (b, _)| a.path(paths).cmp(b.path(paths)));
        let mut duplicate = None;
        self.nodes.dedup_by(|(next, next_at), (kept, kept_at)| {
            let same = next.path(paths) == kept.path(paths);
            let directories = next.file == DIRECTORY && kept.file == DIRECTORY;
            if same && !(directories && next_at.source != kept_at.source) {
                duplicate.get_or_insert_with(|| next.path(paths).to_owned());
            }
            same
        });
        match duplicate {
            None => Ok(()),
            Some(path) => Err(RepositoryError::corrupt(
                path,
                "the backup has this name twice",
            )),
        }
    }

    fn missing_parents(&self) -> Result<BTreeSet<String>, RepositoryError> {
        let mut missing = BTreeSet::new();
        let mut known = "";
        for (node, _) in &self.nodes {
            let path = node.path(&self.paths);
            let mut rest = path;
            while let Some((parent, _)) = rest.rsplit_once('/') {
                if parent == known || missing.contains(parent) {
                    break;
                }
                let found = self
                    .nodes
                    .binary_search_by(|(node, _)| node.path(&self.paths).cmp(parent));
                match found.ok().and_then(|at| self.nodes.get(at)) {
                    Some((node, _)) if node.file == DIRECTORY => break,
                    Some(_) => {
                        let reason = format!("{parent} is a file, so nothing can be below it");
                        return Err(RepositoryError::corrupt(path, reason));
                    }
                    None => {
                        missing.insert(parent.to_owned());
                    }
                }
                rest = parent;
            }
            if let Some((parent, _)) = path.rsplit_once('/') {
                known = parent;
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(entries: &[(&str, Option<u64>, u32)]) -> Result<Tree, RepositoryError> {
        let mut builder = TreeBuilder::new(Limits::default());
        for &(path, size_bytes, source) in entries {
            builder.add(Found {
                path,
                size_bytes,
                mode: 0o100600,
                modified_at_s: 7,
                location: Location { source, offset: 0 },
            })?;
        }
        builder.finish().map(|(tree, _)| tree)
    }

    #[test]
    fn entries_are_sorted_with_parents_first_and_files_numbered() {
        let tree = build(&[
            ("base/1/2", Some(5), 0),
            ("base-x", Some(1), 0),
            ("base", None, 0),
            ("PG_VERSION", Some(3), 0),
        ])
        .unwrap();
        let paths: Vec<_> = tree.entries().map(|entry| entry.path).collect();
        assert_eq!(
            paths,
            ["PG_VERSION", "base", "base-x", "base/1", "base/1/2"]
        );
        assert_eq!((tree.file_count(), tree.size_bytes()), (3, 9));
        assert_eq!(tree.find_file("base/1/2"), Some((FileIndex(2), 5)));
        assert_eq!(tree.file(FileIndex(2)).unwrap().path, "base/1/2");
        assert_eq!(tree.file(FileIndex(3)), None);
        assert_eq!(tree.find("base").unwrap().kind, EntryKind::Directory);
        assert_eq!(tree.find("base/1/2").unwrap().mode, 0o600);
        assert_eq!(tree.below("base").count(), 2);
    }

    #[test]
    fn duplicates_and_files_with_children_are_refused_by_name() {
        type Listed<'a> = &'a [(&'a str, Option<u64>, u32)];
        let table: &[(Listed<'_>, &str)] = &[
            (&[("a", Some(1), 0), ("a", Some(1), 0)], "a"),
            (&[("a", Some(1), 0), ("a", Some(1), 1)], "a"),
            (&[("a", Some(1), 0), ("a", None, 1)], "a"),
            (&[("a", None, 0), ("a", None, 0)], "a"),
            (&[("a", Some(1), 0), ("a/b", Some(1), 0)], "a/b"),
            (&[("a", Some(1), 0), ("a/b/c", Some(1), 0)], "a/b/c"),
        ];
        for (entries, file) in table {
            let error = build(entries).unwrap_err();
            assert_eq!(error.file(), *file, "{error}");
        }
        assert_eq!(
            build(&[("a", None, 0), ("a", None, 1)])
                .unwrap()
                .entry_count(),
            1
        );
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        assert!(build(&[("a", Some((1 << 40) + 1), 0)]).is_err());
        let limits = Limits {
            entry_count: 2,
            all_paths_bytes: 10,
            ..Limits::default()
        };
        let add = |builder: &mut TreeBuilder, path: &str| {
            builder.add(Found {
                path,
                size_bytes: None,
                mode: 0,
                modified_at_s: 0,
                location: Location::default(),
            })
        };
        let mut builder = TreeBuilder::new(limits);
        add(&mut builder, "a").unwrap();
        assert!(add(&mut builder, "0123456789").is_err());
        add(&mut builder, "b").unwrap();
        assert!(add(&mut builder, "c").is_err());
    }
}
