//! The backup's tree as it was handed over: durable in the file `tree`, compact in memory.
//!
//! The file is a magic word, the number of entries, their hash, and the entries in postcard, one after the other;
//! the hash is the CRC32C of exactly those bytes. In memory an entry takes some 60 bytes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use common::agent::hand::{SessionPlace, TreeEntry, TreeEntryKind, TreeFinish};
use common::problem::{ErrorCode, Problem};

use super::{Ino, ROOT};

const MAGIC: &[u8; 8] = b"PGITREE1";
const HEAD_BYTES: usize = 20;
/// Least bytes of an entry in the file: path, kind, mode and time.
const ENTRY_BYTES_MIN: u64 = 5;
/// How much of the file is read at a time.
const PIECE_BYTES: u64 = 256 * 1024;

/// A node of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeNode<'a> {
    /// Its number.
    pub ino: Ino,
    /// Name in its directory.
    pub name: &'a str,
    /// What it is.
    pub kind: TreeNodeKind<'a>,
    /// Permission bits.
    pub mode: u16,
    /// Modification time, in seconds since the epoch.
    pub modified_at_s: i64,
}

/// What a node of the backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeNodeKind<'a> {
    /// A directory.
    Directory,
    /// A file: its number in the page channel and its size.
    File {
        /// Number.
        file: u32,
        /// Size.
        size_bytes: u64,
    },
    /// A symbolic link.
    Symlink(&'a str),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Directory,
    File,
    Symlink,
}

#[derive(Debug, Clone, Copy)]
struct Packed {
    // Of a symlink: length of its target, which follows its name in the arena.
    size: u64,
    modified_at_s: i64,
    name_at: u32,
    file: u32,
    name_length: u16,
    mode: u16,
    kind: Kind,
}

/// The backup's tree.
#[derive(Debug)]
pub struct Tree {
    hash: u32,
    // Number 0 is the root: a node's inode number is its place here plus 1.
    nodes: Vec<Packed>,
    names: String,
    // Children of node n: `children[starts[n]..starts[n + 1]]`, by name.
    starts: Vec<u32>,
    children: Vec<u32>,
    // The numbers of the files in the directory of WAL, which are read once.
    wal: Range<Ino>,
}

impl Tree {
    /// Reads the file `tree` of a session directory.
    pub fn load(path: &Path) -> Result<Self, Problem> {
        let corrupt = |why: &str| {
            Problem::new(
                ErrorCode::IoFailed,
                format!("the tree file {} is damaged: {why}", path.display()),
                "hand the tree over again",
            )
        };
        let unreadable = |error: io::Error| corrupt(&error.to_string());
        let mut file = File::open(path).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head).map_err(unreadable)?;
        let (count, hash) = parse_head(&head).ok_or_else(|| corrupt("it begins wrongly"))?;
        let mut entries = Entries::new(file);
        let mut builder = Builder::with_room_for(count.min(bytes / ENTRY_BYTES_MIN));
        for _ in 0..count {
            let entry = entries.next().map_err(unreadable)?;
            builder.add(&entry).map_err(|why| corrupt(&why))?;
        }
        if entries.finish().map_err(unreadable)? != hash {
            return Err(corrupt("its checksum is wrong"));
        }
        builder.finish(hash).map_err(|why| corrupt(&why))
    }

    /// Builds a tree from entries, parents before children.
    pub fn from_entries(entries: &[TreeEntry]) -> Result<Self, String> {
        let mut builder = Builder::new();
        for entry in entries {
            builder.add(entry)?;
        }
        builder.finish(finish_of(entries).hash)
    }

    /// Hash of the entries, for the check at every attach.
    pub fn hash(&self) -> u32 {
        self.hash
    }

    /// How many entries it has, the root not counted.
    pub fn entry_count(&self) -> usize {
        self.nodes.len() - 1
    }

    /// The node of this number, if the backup has it.
    pub fn node(&self, ino: Ino) -> Option<TreeNode<'_>> {
        let place = usize::try_from(ino.checked_sub(ROOT)?).ok()?;
        let packed = self.nodes.get(place)?;
        let name_at = packed.name_at as usize;
        let name_end = name_at + usize::from(packed.name_length);
        let kind = match packed.kind {
            Kind::Directory => TreeNodeKind::Directory,
            Kind::File => TreeNodeKind::File {
                file: packed.file,
                size_bytes: packed.size,
            },
            Kind::Symlink => {
                let length = usize::try_from(packed.size).ok()?;
                TreeNodeKind::Symlink(self.names.get(name_end..name_end + length)?)
            }
        };
        Some(TreeNode {
            ino,
            name: self.names.get(name_at..name_end)?,
            kind,
            mode: packed.mode,
            modified_at_s: packed.modified_at_s,
        })
    }

    /// Whether a node is of the archive of WAL (`wal/`): recovery reads that once, so that copies of it are worth nothing.
    pub fn is_wal(&self, ino: Ino) -> bool {
        self.wal.contains(&ino)
    }

    fn wal_range(&self) -> Range<Ino> {
        let files = || self.lookup(ROOT, "wal").map(|wal| self.child_places(wal));
        let files = files().unwrap_or_default();
        // They follow each other in the tree; what else there might be in between loses its copies, and nothing more.
        let (first, last) = (files.iter().min(), files.iter().max());
        let (Some(first), Some(last)) = (first, last) else {
            return 0..0;
        };
        u64::from(*first) + ROOT..u64::from(*last) + ROOT + 1
    }

    /// The number of a name in a directory.
    pub fn lookup(&self, parent: Ino, name: &str) -> Option<Ino> {
        let children = self.child_places(parent);
        let at = children
            .binary_search_by(|&place| self.name_of(place).cmp(name))
            .ok()?;
        Some(u64::from(*children.get(at)?) + ROOT)
    }

    /// The nodes in a directory, by name.
    pub fn children(&self, parent: Ino) -> impl Iterator<Item = TreeNode<'_>> {
        self.child_places(parent)
            .iter()
            .filter_map(|&place| self.node(u64::from(place) + ROOT))
    }

    fn child_places(&self, parent: Ino) -> &[u32] {
        let range = || {
            let place = usize::try_from(parent.checked_sub(ROOT)?).ok()?;
            let start = *self.starts.get(place)? as usize;
            let end = *self.starts.get(place + 1)? as usize;
            self.children.get(start..end)
        };
        range().unwrap_or_default()
    }

    fn name_of(&self, place: u32) -> &str {
        let name = |packed: &Packed| {
            let at = packed.name_at as usize;
            self.names.get(at..at + usize::from(packed.name_length))
        };
        self.nodes
            .get(place as usize)
            .and_then(name)
            .unwrap_or_default()
    }
}

/// Reads entries a piece of the file at a time: a tree of millions is never in memory twice.
struct Entries {
    file: File,
    piece: Vec<u8>,
    at: usize,
    hash: u32,
}

impl Entries {
    fn new(file: File) -> Self {
        Self {
            file,
            piece: Vec::new(),
            at: 0,
            hash: 0,
        }
    }

    fn next(&mut self) -> io::Result<TreeEntry> {
        loop {
            let rest = self.piece.get(self.at..).unwrap_or_default();
            match postcard::take_from_bytes(rest) {
                Ok((entry, after)) => {
                    self.at = self.piece.len() - after.len();
                    return Ok(entry);
                }
                Err(postcard::Error::DeserializeUnexpectedEnd) => {
                    if !self.more()? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    fn more(&mut self) -> io::Result<bool> {
        self.piece.drain(..self.at);
        self.at = 0;
        let begin = self.piece.len();
        (&self.file)
            .take(PIECE_BYTES)
            .read_to_end(&mut self.piece)?;
        let new = self.piece.get(begin..).unwrap_or_default();
        self.hash = crc32c::crc32c_append(self.hash, new);
        Ok(!new.is_empty())
    }

    // The hash is that of all bytes, so there may be none behind the entries.
    fn finish(mut self) -> io::Result<u32> {
        while self.more()? {
            self.at = self.piece.len();
        }
        Ok(self.hash)
    }
}

struct Builder {
    nodes: Vec<Packed>,
    parents: Vec<u32>,
    names: String,
    directories: HashMap<String, u32>,
}

impl Builder {
    fn with_room_for(count: u64) -> Self {
        let count = usize::try_from(count).unwrap_or(0) + 1;
        let mut builder = Self::new();
        builder.nodes.reserve_exact(count);
        builder.parents.reserve_exact(count);
        builder
    }

    fn new() -> Self {
        let root = Packed {
            size: 0,
            modified_at_s: 0,
            name_at: 0,
            file: 0,
            name_length: 0,
            mode: 0o700,
            kind: Kind::Directory,
        };
        Self {
            nodes: vec![root],
            parents: vec![0],
            names: String::new(),
            directories: HashMap::from([(String::new(), 0)]),
        }
    }

    fn add(&mut self, entry: &TreeEntry) -> Result<(), String> {
        let (directory, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
            return Err(format!("{:?} is not a path of a tree", entry.path));
        }
        let parent = *self
            .directories
            .get(directory)
            .ok_or_else(|| format!("{:?} comes before its directory", entry.path))?;
        let place = u32::try_from(self.nodes.len()).map_err(|_| "too many entries")?;
        let too_large = |_| "names beyond 4 GiB".to_owned();
        let name_at = u32::try_from(self.names.len()).map_err(too_large)?;
        self.names.push_str(name);
        let (kind, file, size) = match &entry.kind {
            TreeEntryKind::Directory => {
                if self.directories.insert(entry.path.clone(), place).is_some() {
                    return Err(format!("{:?} comes twice", entry.path));
                }
                (Kind::Directory, 0, 0)
            }
            TreeEntryKind::File { file, size_bytes } => (Kind::File, *file, *size_bytes),
            TreeEntryKind::Symlink { target } => {
                self.names.push_str(target);
                (Kind::Symlink, 0, target.len() as u64)
            }
        };
        self.parents.push(parent);
        self.nodes.push(Packed {
            size,
            modified_at_s: entry.modified_at_s,
            name_at,
            file,
            name_length: u16::try_from(name.len()).map_err(|_| "a name is too long")?,
            mode: u16::try_from(entry.mode & 0o7777).unwrap_or(0o600),
            kind,
        });
        Ok(())
    }

    fn finish(self, hash: u32) -> Result<Tree, String> {
        let count = self.nodes.len();
        let mut starts = vec![0u32; count + 1];
        for &parent in self.parents.iter().skip(1) {
            if let Some(start) = starts.get_mut(parent as usize + 1) {
                *start += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut tree = Tree {
            hash,
            nodes: self.nodes,
            names: self.names,
            starts,
            children: Vec::new(),
            wal: 0..0,
        };
        let mut children: Vec<u32> =
            (1..u32::try_from(count).map_err(|e| e.to_string())?).collect();
        let parent_of = |place: u32| self.parents.get(place as usize).copied().unwrap_or(0);
        children.sort_unstable_by(|&a, &b| {
            let names = || tree.name_of(a).cmp(tree.name_of(b));
            parent_of(a).cmp(&parent_of(b)).then_with(names)
        });
        let twice = children
            .iter()
            .zip(children.iter().skip(1))
            .find(|&(&a, &b)| parent_of(a) == parent_of(b) && tree.name_of(a) == tree.name_of(b));
        if let Some((&place, _)) = twice {
            return Err(format!(
                "{:?} comes twice in its directory",
                tree.name_of(place)
            ));
        }
        tree.children = children;
        tree.wal = tree.wal_range();
        tree.names.shrink_to_fit();
        Ok(tree)
    }
}

fn parse_head(head: &[u8; HEAD_BYTES]) -> Option<(u64, u32)> {
    let rest = head.strip_prefix(MAGIC)?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let hash = rest.first_chunk::<4>()?;
    Some((u64::from_le_bytes(*count), u32::from_le_bytes(*hash)))
}

/// What closes a tree of these entries: the hash is the CRC32C over the postcard encodings of the entries, one after the other.
pub fn finish_of(entries: &[TreeEntry]) -> TreeFinish {
    let encode = |hash, entry| {
        let bytes = postcard::to_stdvec(entry).unwrap_or_default();
        crc32c::crc32c_append(hash, &bytes)
    };
    TreeFinish {
        entry_count: entries.len() as u64,
        hash: entries.iter().fold(0, encode),
    }
}

/// Takes one chunk of a tree; the last one, which has `finish`, makes it durable.
///
/// A cache that exists belongs to the tree that it was made with: the same hash is accepted, another is refused.
pub fn write_chunk(
    place: &SessionPlace,
    chunk: u32,
    entries: &[TreeEntry],
    finish: Option<TreeFinish>,
) -> Result<(), Problem> {
    let directory = place.session_directory();
    let failed = |what: &str, error: io::Error| {
        Problem::new(
            ErrorCode::IoFailed,
            format!("{what} of the tree in {}: {error}", directory.display()),
            "look at the volume of the session directory, then retry",
        )
    };
    let new = directory.join("tree.new");
    let mut options = OpenOptions::new();
    options.append(true);
    if chunk == 0 {
        options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
    }
    let mut file = options.open(&new).map_err(|e| failed("open the file", e))?;
    let mut bytes = if chunk == 0 {
        vec![0; HEAD_BYTES]
    } else {
        Vec::new()
    };
    for entry in entries {
        bytes.extend(
            postcard::to_stdvec(entry)
                .map_err(|e| failed("encode an entry", io::Error::other(e)))?,
        );
    }
    file.write_all(&bytes)
        .map_err(|e| failed("write a chunk", e))?;
    let Some(finish) = finish else {
        return Ok(());
    };
    drop(file);
    finish_file(place, finish).map_err(|e| failed("finish the file", e))?
}

fn finish_file(place: &SessionPlace, finish: TreeFinish) -> io::Result<Result<(), Problem>> {
    use std::os::unix::fs::FileExt;
    let directory = place.session_directory();
    let (path, new) = (directory.join("tree"), directory.join("tree.new"));
    let mut file = OpenOptions::new().read(true).write(true).open(&new)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let hash = crc32c::crc32c(bytes.get(HEAD_BYTES..).unwrap_or_default());
    if hash != finish.hash {
        return Ok(Err(Problem::new(
            ErrorCode::Internal,
            format!(
                "the tree arrived with hash {hash:08x} instead of {:08x}",
                finish.hash
            ),
            "hand the tree over again from its first chunk",
        )));
    }
    if place.cache_directory().join("catalog").exists()
        && let Some((_, old)) = read_head(&path)?
        && old != hash
    {
        return Ok(Err(Problem::new(
            ErrorCode::CacheInUse,
            format!(
                "the write cache in {} belongs to another tree",
                directory.display()
            ),
            "remove the session, or publish the backup that it was made with",
        )));
    }
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&finish.entry_count.to_le_bytes());
    head.extend_from_slice(&finish.hash.to_le_bytes());
    file.write_all_at(&head, 0)?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    File::open(&directory)?.sync_all()?;
    Ok(Ok(()))
}

fn read_head(path: &Path) -> io::Result<Option<(u64, u32)>> {
    let mut head = [0; HEAD_BYTES];
    match File::open(path) {
        Ok(mut file) => {
            file.read_exact(&mut head)?;
            Ok(parse_head(&head))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, file: u32) -> TreeEntry {
        TreeEntry {
            path: path.to_owned(),
            kind: TreeEntryKind::File {
                file,
                size_bytes: u64::from(file),
            },
            mode: 0o600,
            modified_at_s: 1,
        }
    }

    fn written(root: &Path, entries: &[TreeEntry]) -> std::path::PathBuf {
        let place = SessionPlace {
            session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
            mount_root: root.join("m"),
            cache_root: root.to_path_buf(),
            os_user: "root".parse().unwrap(),
        };
        std::fs::create_dir_all(place.session_directory()).unwrap();
        write_chunk(&place, 0, entries, Some(finish_of(entries))).unwrap();
        place.session_directory().join("tree")
    }

    #[test]
    fn a_tree_larger_than_a_piece_is_read_whole_and_one_that_was_changed_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let name = |number: u32| format!("file{number:0>200}");
        let entries: Vec<TreeEntry> = (0..5000).map(|n| entry(&name(n), n)).collect();
        let path = written(root.path(), &entries);
        let tree = Tree::load(&path).unwrap();
        assert_eq!(tree.entry_count(), 5000);
        for number in [0, 1250, 4999] {
            let ino = tree.lookup(ROOT, &name(number)).unwrap();
            let kind = tree.node(ino).unwrap().kind;
            let size_bytes = u64::from(number);
            assert_eq!(
                kind,
                TreeNodeKind::File {
                    file: number,
                    size_bytes
                }
            );
        }
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Tree::load(&path).unwrap_err().message
        };
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(refused(&changed).contains("checksum"));
        let mut longer = whole.clone();
        longer.push(0);
        assert!(refused(&longer).contains("checksum"));
        let (shorter, _) = whole.split_at(whole.len() - 10);
        assert!(refused(shorter).contains("damaged"));
    }
}
