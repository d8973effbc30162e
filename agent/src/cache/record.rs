//! What the cache's journals remember, and how a record is framed: length, CRC32C, postcard.

use serde::{Deserialize, Serialize};

use super::Ino;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link and where it leads.
    Symlink(String),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharacterDevice(u32),
    /// A block device.
    BlockDevice(u32),
}

/// Nanoseconds since the epoch.
pub type Nanoseconds = i64;

/// Attributes that are not the data file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub user: u32,
    /// Group.
    pub group: u32,
    /// Last change of the content.
    pub modified_at: Nanoseconds,
    /// Last change of anything.
    pub changed_at: Nanoseconds,
    /// Last read, as far as it was set.
    pub accessed_at: Nanoseconds,
}

/// The part of a file that the backup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasePart {
    /// Number of the file in the page channel.
    pub file: u32,
    /// Bytes below this come from the backup unless they are present; zeros beyond.
    pub length: u64,
}

/// Everything about a node, for snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: NodeKind,
    /// Its attributes.
    pub attributes: Attributes,
    /// Number of names.
    pub links: u32,
    /// What the backup has of it; `None` when the data file is the whole truth.
    pub base: Option<BasePart>,
    /// Size, where there is a base part.
    pub size: u64,
    /// Smallest size since the data file was last synced, where there is a base part.
    pub cut: Option<u64>,
    /// Granules that are durably here: (first, count).
    pub present: Vec<(u64, u64)>,
}

/// One record of the catalog. `unique` is the kernel's number of the request that it answers, 0 for none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A new FUSE connection: request numbers before this mean nothing now.
    Mounted,
    /// A node was made under a name.
    Create {
        /// New number.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: String,
        /// What it is.
        kind: NodeKind,
        /// Its attributes.
        attributes: Attributes,
        /// Request.
        unique: u64,
    },
    /// A further name.
    Link {
        /// The node.
        ino: Ino,
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: String,
        /// When.
        at: Nanoseconds,
        /// Request.
        unique: u64,
    },
    /// A name, of whatever kind, is gone.
    Unlink {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: String,
        /// When.
        at: Nanoseconds,
        /// Request.
        unique: u64,
    },
    /// A name moved, replacing what was there, or two changed places.
    Rename {
        /// Old directory.
        parent: Ino,
        /// Old name.
        name: String,
        /// New directory.
        new_parent: Ino,
        /// New name.
        new_name: String,
        /// Whether they change places.
        exchange: bool,
        /// When.
        at: Nanoseconds,
        /// Request.
        unique: u64,
    },
    /// Attributes were set.
    Attributes {
        /// The node.
        ino: Ino,
        /// All of them.
        attributes: Attributes,
    },
    /// The data file was synced; these granules are in it.
    Commit {
        /// The node.
        ino: Ino,
        /// Its size.
        size: u64,
        /// Last change of the content.
        modified_at: Nanoseconds,
        /// New granules: (first, count).
        present: Vec<(u64, u64)>,
    },
    /// The file was cut or made longer; written durably before the data file is.
    Truncate {
        /// The node.
        ino: Ino,
        /// New size.
        size: u64,
    },
    /// The data file was synced and is now the whole truth.
    Complete {
        /// The node.
        ino: Ino,
    },
    /// A node as a snapshot has it.
    Node(NodeRecord),
    /// A name as a snapshot has it; `None` hides the backup's.
    Name {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: String,
        /// Whose.
        ino: Option<Ino>,
    },
    /// The next new number, in a snapshot.
    NextIno(Ino),
    /// A request that was answered, in a snapshot: its number and the node that it made.
    Answered {
        /// Request.
        unique: u64,
        /// Node, 0 for none.
        ino: Ino,
    },
    /// Granules that were only copied from the backup when they were synced.
    Copied {
        /// The node.
        ino: Ino,
        /// Which: (first, count).
        granules: Vec<(u64, u64)>,
    },
    /// Granules that had been copied and were written since.
    Rewritten {
        /// The node.
        ino: Ino,
        /// Which: (first, count).
        granules: Vec<(u64, u64)>,
    },
    /// Granules that were given back: the backup has them again. Written durably before their space is freed.
    Absent {
        /// The node.
        ino: Ino,
        /// Which: (first, count).
        granules: Vec<(u64, u64)>,
    },
}

/// One record of the runtime journal, which outlives the worker but not the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuntimeRecord {
    /// Granules are in the data file, not durably yet.
    Present {
        /// The node.
        ino: Ino,
        /// First granule.
        first: u64,
        /// How many.
        count: u64,
        /// Size of the file.
        size: u64,
        /// Last change of the content, 0 when only the backup's bytes were copied.
        modified_at: Nanoseconds,
    },
    /// The file was cut.
    Cut {
        /// The node.
        ino: Ino,
        /// New size.
        size: u64,
    },
    /// How many descriptors are open.
    Opens {
        /// The node.
        ino: Ino,
        /// Served by the worker.
        cached: u32,
        /// Served by the kernel.
        passthrough: u32,
        /// The kernel's number of the backing file.
        backing: Option<u32>,
        /// Request that made it so, 0 for none.
        unique: u64,
    },
    /// A request that was carried out, in a compacted journal.
    Answered {
        /// Request.
        unique: u64,
        /// What it was about.
        ino: Ino,
    },
    /// A flush failed: the node stays failed until remounted.
    Failed {
        /// The node.
        ino: Ino,
    },
    /// Granules that are here and were only copied: found by comparing, or in a compacted journal.
    Copied {
        /// The node.
        ino: Ino,
        /// First granule.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Granules that had been copied are about to be written.
    Rewritten {
        /// The node.
        ino: Ino,
        /// First granule.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Granules were given back.
    Absent {
        /// The node.
        ino: Ino,
        /// First granule.
        first: u64,
        /// How many.
        count: u64,
    },
}

const HEAD_BYTES: usize = 8;

/// Longest record, in bytes: a map of a whole 32 TiB file in the worst pattern is cut into several.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Appends the framed record to the buffer.
pub fn encode(record: &impl Serialize, buffer: &mut Vec<u8>) {
    let payload = postcard::to_stdvec(record).unwrap_or_default();
    let length = u32::try_from(payload.len()).unwrap_or(0);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&checksum(&payload).to_le_bytes());
    buffer.extend_from_slice(&payload);
}

/// Reads records from the beginning of the bytes to the first that is torn; says how many bytes were good.
pub fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> (Vec<T>, usize) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = decode_one(rest) {
        records.push(record);
        rest = after;
    }
    (records, bytes.len() - rest.len())
}

fn decode_one<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let [a, b, c, d, e, f, g, h] = *head;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    if length == 0 || length > RECORD_BYTES_MAX {
        return None;
    }
    let (payload, after) = rest.split_at_checked(length)?;
    if checksum(payload) != u32::from_le_bytes([e, f, g, h]) {
        return None;
    }
    Some((postcard::from_bytes(payload).ok()?, after))
}

// Never zero for zeros: a hole in a journal must not read as a record.
fn checksum(payload: &[u8]) -> u32 {
    crc32c::crc32c(payload) ^ 0x7067_696e
}
