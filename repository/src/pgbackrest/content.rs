//! The bytes of one backup's files, from wherever they are stored.

use std::sync::Arc;

use super::Framing;
use super::archive::{ArchivedSegment, ArchivedWal};
use super::blocks::BlockFile;
use super::compression::Compression;
use super::encrypted::{Decrypted, Encryption, Extent};
use super::indexes::Indexes;
use super::layout::LargeFiles;
use super::manifest::{ManifestHead, NO_REFERENCE, StoredFile, stored_name};
use super::passphrase::Passphrase;
use super::stanza::Stanza;
use super::stored::{Decoding, StoredRange};
use super::whole_file::{WholeFile, WholeFileReader};
use crate::bounded_cache::{BoundedCache, CacheKey};
use crate::decoded::{Decoded, DecodedRead, DecodedStore};
use crate::handles::Handles;
use crate::seekable::{FirstPass, Stored, Stream};
use crate::storage::{StorageFile, is_of_storage};
use crate::tree::{EntryKind, FileIndex, Tree, no_such_file, within_file};
use crate::{Codec, RepositoryError};

/// Largest file that is read and checked whole before any of its bytes is handed on.
const WHOLE_BYTES_MAX: u64 = 1 << 20;
/// Smallest file of which an index is kept.
const INDEXED_BYTES_MIN: u64 = 4 << 20;

/// What an opened backup consists of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) stanza: Arc<Stanza>,
    pub(super) head: ManifestHead,
    pub(super) tree: Tree,
    pub(super) files: Vec<StoredFile>,
    /// By file: its place in `files`, or behind them in the segments of `wal`.
    pub(super) places: Vec<u32>,
    /// WAL that is shown in `pg_wal`, although it is not in the backup.
    pub(super) wal: Option<ArchivedWal>,
    pub(super) store: Arc<DecodedStore>,
}

/// A tree and where its bytes are.
#[derive(Debug)]
pub(super) struct Content {
    parts: Parts,
    handles: Handles<StoredKey>,
    /// Of files that were decoded before.
    indexes: Arc<Indexes>,
    owner: u64,
}

/// Names a file of the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StoredKey {
    /// Many files together.
    Bundle { reference: u16, bundle: u32 },
    /// One file, whole.
    Own { reference: u16, file: FileIndex },
    /// One file, in blocks.
    Blocks { reference: u16, file: FileIndex },
    /// A WAL segment in the archive.
    Segment { number: u32 },
}

/// Where a file's bytes are.
enum Placed<'a> {
    Stored(&'a StoredFile),
    Segment(u32, &'a ArchivedSegment),
}

/// How far what was read has been checked.
pub(super) enum Checked {
    /// The file as a whole, before anything was handed on or with the last byte.
    Whole,
    /// As far as the format can check a piece.
    Piece,
    /// It counts towards the file's checksum.
    Counts,
}

impl Content {
    pub(super) fn new(parts: Parts, open_file_count: usize) -> Self {
        let owner = parts.store.new_owner();
        Self {
            owner,
            handles: Handles::new(open_file_count),
            indexes: Arc::new(Indexes::new(&parts.store, owner)),
            parts,
        }
    }

    pub(super) fn head(&self) -> &ManifestHead {
        &self.parts.head
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.parts.tree
    }

    pub(super) fn memory(&self) -> &BoundedCache {
        self.parts.store.memory()
    }

    pub(super) fn cache_key(&self, file: FileIndex, part: [u64; 3]) -> CacheKey {
        CacheKey {
            owner: self.owner,
            file: file.0,
            part,
        }
    }

    /// How the backup's files are decoded.
    pub(super) fn decoding(&self, compression: Compression, framing: Framing) -> Decoding<'_> {
        Decoding {
            compression,
            framing,
            passphrase: self.parts.head.passphrase.as_ref(),
        }
    }

    /// The label of a backup by its number.
    fn label(&self, reference: u16) -> Option<&str> {
        match reference {
            NO_REFERENCE => Some(&self.parts.head.label),
            number => {
                let labels = &self.parts.head.references;
                labels.get(usize::from(number)).map(String::as_str)
            }
        }
    }

    /// Where something is, for errors: `backup 20261121-124036F, bundle 3`.
    pub(super) fn place_of(&self, reference: u16, bundle: u32) -> String {
        let label = self.label(reference).unwrap_or("(unknown)");
        match bundle {
            0 => format!("backup {label}"),
            bundle => format!("backup {label}, bundle {bundle}"),
        }
    }

    /// The path and size of a file.
    pub(super) fn describe(&self, file: FileIndex) -> Result<(&str, u64), RepositoryError> {
        self.parts.tree.describe(file)
    }

    fn placed(&self, file: FileIndex) -> Result<Placed<'_>, RepositoryError> {
        let place = self.parts.places.get(file.0 as usize);
        let place = *place.ok_or_else(|| no_such_file(file))? as usize;
        if let Some(stored) = self.parts.files.get(place) {
            return Ok(Placed::Stored(stored));
        }
        let number = place - self.parts.files.len();
        let number = u32::try_from(number).map_err(|_| no_such_file(file))?;
        let segment = self.segment(number).ok_or_else(|| no_such_file(file))?;
        Ok(Placed::Segment(number, segment))
    }

    fn segment(&self, number: u32) -> Option<&ArchivedSegment> {
        self.parts.wal.as_ref()?.segments.get(number as usize)
    }

    /// The stored file that holds a file of the backup.
    pub(super) fn key_of(&self, file: FileIndex, stored: &StoredFile) -> StoredKey {
        let reference = stored.reference;
        match stored.bundle {
            0 if stored.is_in_blocks() => StoredKey::Blocks { reference, file },
            0 => StoredKey::Own { reference, file },
            bundle => StoredKey::Bundle { reference, bundle },
        }
    }

    /// The path of a stored file below the repository.
    fn stored_path(&self, key: StoredKey, path: &str) -> Result<String, RepositoryError> {
        let extension = self.parts.head.compression.extension();
        let (reference, rest) = match key {
            StoredKey::Bundle { reference, bundle } => (reference, format!("bundle/{bundle}")),
            StoredKey::Own { reference, .. } => {
                // WAL and labels are compressed as the rest; the name in the repository tells it.
                (reference, format!("{}{extension}", stored_name(path)))
            }
            StoredKey::Blocks { reference, .. } => {
                (reference, format!("{}.pgbi", stored_name(path)))
            }
            StoredKey::Segment { number } => {
                let found = self.segment(number).map(|segment| segment.path.clone());
                return found.ok_or_else(|| RepositoryError::corrupt(path, "has no segment"));
            }
        };
        let label = self
            .label(reference)
            .ok_or_else(|| RepositoryError::corrupt(path, "is in a backup that is not listed"))?;
        Ok(self.parts.stanza.backup_path(&format!("{label}/{rest}")))
    }

    /// A stored file, opened if need be, and its path below the repository.
    pub(super) fn open_stored(
        &self,
        key: StoredKey,
        path: &str,
    ) -> Result<(Arc<StorageFile>, String), RepositoryError> {
        let stored_path = self.stored_path(key, path)?;
        let handle = self.handles.get(key, path, || {
            let opened = self.parts.stanza.file(&stored_path);
            opened.map_err(|error| self.not_there(key, path, &stored_path, error))
        })?;
        Ok((handle, stored_path))
    }

    fn not_there(
        &self,
        key: StoredKey,
        path: &str,
        stored_path: &str,
        error: std::io::Error,
    ) -> RepositoryError {
        if let StoredKey::Own { reference, file } = key
            && error.kind() == std::io::ErrorKind::NotFound
            && let Ok(blocks) = self.stored_path(StoredKey::Blocks { reference, file }, path)
            && self.parts.stanza.file(&blocks).is_ok()
        {
            return lost_map(path, &blocks);
        }
        self.parts.stanza.missing(stored_path, path, error)
    }

    /// Whether a manifest has lost the block map of this file.
    pub(super) fn has_lost_map(&self, file: FileIndex) -> Result<(), RepositoryError> {
        let (path, size_bytes) = self.describe(file)?;
        if let Placed::Stored(stored) = self.placed(file)?
            && let key @ StoredKey::Own { reference, .. } = self.key_of(file, stored)
            && size_bytes > 0
        {
            let blocks = self.stored_path(StoredKey::Blocks { reference, file }, path)?;
            let own = self.stored_path(key, path)?;
            let stanza = &self.parts.stanza;
            if stanza.file(&blocks).is_ok() && stanza.file(&own).is_err() {
                return Err(lost_map(path, &blocks));
            }
        }
        Ok(())
    }

    /// How large files are stored. WAL is not among them: it is read from beginning to end.
    pub(super) fn large_files(&self) -> LargeFiles {
        let compression = self.parts.head.compression;
        let is_plain = self.decoding(compression, Framing::Standard).is_plain();
        let files = self.tree().entries().filter_map(|entry| match entry.kind {
            EntryKind::File { file, size_bytes }
                if size_bytes > WHOLE_BYTES_MAX && !entry.path.starts_with("pg_wal/") =>
            {
                Some(file)
            }
            EntryKind::File { .. } | EntryKind::Directory => None,
        });
        let mut large = LargeFiles {
            some_are_whole: false,
            some_are_in_blocks: false,
            compression,
        };
        for file in files {
            if let Ok(Placed::Stored(stored)) = self.placed(file) {
                large.some_are_in_blocks |= stored.is_in_blocks();
                large.some_are_whole |= !stored.is_in_blocks() && !is_plain;
            }
        }
        large
    }

    /// The checksum of a file whose pieces count towards it as they are read: one that is neither decoded nor read whole.
    pub(super) fn counted_checksum(&self, file: FileIndex) -> Option<(&str, [u8; 20])> {
        let (path, size_bytes) = self.describe(file).ok()?;
        let counts = |compression| compression == Compression::None && size_bytes > WHOLE_BYTES_MAX;
        let sha1 = match self.placed(file).ok()? {
            Placed::Stored(stored) => {
                let counts = stored.is_in_blocks() || counts(self.parts.head.compression);
                stored.checksum().filter(|_| counts)
            }
            Placed::Segment(_, segment) => {
                Some(segment.sha1).filter(|_| counts(segment.compression))
            }
        };
        Some((path, sha1?))
    }

    /// Reads, and says how far what was read has been checked.
    pub(super) fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, Checked), RepositoryError> {
        let (path, size_bytes) = self.describe(file)?;
        let buffer = within_file(size_bytes, offset, buffer);
        if buffer.is_empty() {
            return Ok((0, Checked::Piece));
        }
        match self.placed(file)? {
            Placed::Stored(stored) if stored.is_in_blocks() => {
                let blocks = BlockFile {
                    content: self,
                    file,
                    path,
                    size_bytes,
                    stored,
                };
                Ok((blocks.read_at(offset, buffer)?, Checked::Counts))
            }
            Placed::Stored(stored) => {
                let is_raw = stored.bundle > 0 && self.parts.head.is_raw;
                let framing = if is_raw {
                    Framing::Raw
                } else {
                    Framing::Standard
                };
                let whole = Whole {
                    file,
                    path,
                    size_bytes,
                    key: self.key_of(file, stored),
                    offset: stored.offset,
                    stored_bytes: stored.stored_bytes,
                    sha1: stored.checksum(),
                    decoding: self.decoding(self.parts.head.compression, framing),
                };
                self.read_whole(&whole, offset, buffer)
            }
            Placed::Segment(number, segment) => {
                let whole = Whole {
                    file,
                    path,
                    size_bytes,
                    key: StoredKey::Segment { number },
                    offset: 0,
                    stored_bytes: segment.stored_bytes,
                    sha1: Some(segment.sha1),
                    decoding: Decoding {
                        compression: segment.compression,
                        framing: Framing::Standard,
                        passphrase: self.archive_passphrase(),
                    },
                };
                self.read_whole(&whole, offset, buffer)
            }
        }
    }

    fn archive_passphrase(&self) -> Option<&Passphrase> {
        self.parts.wal.as_ref()?.passphrase.as_ref()
    }

    /// Reads a file that is stored whole.
    fn read_whole(
        &self,
        whole: &Whole<'_>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, Checked), RepositoryError> {
        if whole.size_bytes <= WHOLE_BYTES_MAX {
            let key = self.cache_key(whole.file, [0; 3]);
            let content = self.memory().get(key, || {
                let content = self.reader(whole, Decoded::Kept)?.read_all()?;
                let bytes = content.capacity();
                Ok((content, bytes))
            })?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let from = content.get(from..).unwrap_or_default();
            let count = from.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), from.get(..count)) {
                to.copy_from_slice(from);
            }
            return Ok((count, Checked::Whole));
        }
        if whole.decoding.is_in_place() {
            return match whole.decoding.passphrase {
                None => self.read_plain(whole, offset, buffer),
                Some(passphrase) => self.read_encrypted(whole, passphrase, offset, buffer),
            };
        }
        let read = DecodedRead {
            owner: self.owner,
            file: whole.file.0,
            path: whole.path,
            size_bytes: whole.size_bytes,
            offset,
        };
        if !self.parts.store.has(read, buffer.len())
            && let Some(index) = self.indexes.find(whole.file, offset + buffer.len() as u64)
        {
            let (handle, place) = self.open_whole(whole)?;
            let stored = self.stored(whole, handle, &place)?;
            let seekable = index.seekable();
            let count = seekable.read_at(&stored, whole.path, offset, buffer)?;
            return Ok((count, Checked::Piece));
        }
        let count = self.parts.store.read_at(read, buffer, &|purpose| {
            Ok(Box::new(self.reader(whole, purpose)?))
        })?;
        let checked = match offset + count as u64 == whole.size_bytes {
            true => Checked::Whole,
            false => Checked::Piece,
        };
        Ok((count, checked))
    }

    /// Reads a file that is neither compressed nor encrypted.
    fn read_plain(
        &self,
        whole: &Whole<'_>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, Checked), RepositoryError> {
        let (handle, place) = self.open_whole(whole)?;
        let read = handle.read_pages_at(whole.offset + offset, buffer);
        let read = read.map_err(|error| RepositoryError::unreadable(whole.path, "read", error))?;
        if read < buffer.len() {
            let reason = format!("{place} has become shorter since the backup was opened");
            return Err(RepositoryError::corrupt(whole.path, reason));
        }
        Ok((read, Checked::Counts))
    }

    /// Reads a file that is encrypted, and not compressed.
    fn read_encrypted(
        &self,
        whole: &Whole<'_>,
        passphrase: &Passphrase,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, Checked), RepositoryError> {
        let (handle, place) = self.open_whole(whole)?;
        let decrypted = self.decrypted(whole, passphrase, extent(whole, handle), &place)?;
        let found = decrypted.encryption.plain_bytes();
        if found != whole.size_bytes {
            let told = whole.size_bytes;
            let reason = format!("{place} holds {found} bytes, and {told} in the manifest");
            return Err(RepositoryError::corrupt(whole.path, reason));
        }
        let read = decrypted.read_at(offset, buffer);
        let read = read.map_err(|error| explain(whole.path, &place, error))?;
        Ok((read, Checked::Counts))
    }

    /// What a file's stored bytes are decompressed from, read at random.
    fn stored(
        &self,
        whole: &Whole<'_>,
        handle: Arc<StorageFile>,
        place: &str,
    ) -> Result<Arc<dyn Stored>, RepositoryError> {
        let extent = extent(whole, handle);
        Ok(match whole.decoding.passphrase {
            None => Arc::new(extent),
            Some(passphrase) => Arc::new(self.decrypted(whole, passphrase, extent, place)?),
        })
    }

    fn decrypted(
        &self,
        whole: &Whole<'_>,
        passphrase: &Passphrase,
        extent: Extent,
        place: &str,
    ) -> Result<Decrypted, RepositoryError> {
        let key = self.cache_key(whole.file, [0; 3]);
        let encryption: Arc<Encryption> = self.memory().get(key, || {
            let opened = Encryption::of(&extent, passphrase, whole.decoding.framing);
            let opened = opened.map_err(|error| explain(whole.path, place, error))?;
            Ok((opened, size_of::<Encryption>()))
        })?;
        Ok(Decrypted { encryption, extent })
    }

    fn reader(
        &self,
        whole: &Whole<'_>,
        purpose: Decoded,
    ) -> Result<WholeFileReader, RepositoryError> {
        let (handle, place) = self.open_whole(whole)?;
        let file = WholeFile {
            path: whole.path.to_owned(),
            place: match whole.key {
                StoredKey::Bundle { .. } => format!("{place} from byte {}", whole.offset),
                _ => place,
            },
            size_bytes: whole.size_bytes,
            sha1: whole.sha1,
        };
        let Some(codec) = self.codec_of_index(whole, purpose) else {
            let range = StoredRange::new(handle, whole.offset, whole.stored_bytes);
            return WholeFileReader::new(file, range, whole.decoding);
        };
        let stream = Stream {
            name: file.place.clone(),
            codec,
            store: Arc::clone(&self.parts.store),
            owner: self.parts.store.new_owner(),
            number: 0,
        };
        let stored = self.stored(whole, handle, &file.place)?;
        let pass = FirstPass::new(stream, stored, whole.stored_bytes);
        let pass = pass.map_err(|error| error.within(whole.path))?.optional();
        let (indexes, number) = (Arc::clone(&self.indexes), whole.file);
        let keep = Box::new(move |seen| indexes.keep(number, seen));
        Ok(WholeFileReader::kept(file, pass, keep))
    }

    /// The codec of a file of which an index is worth while: where to make one slows decoding down, nobody needs it as long as
    /// decoded files can stay.
    fn codec_of_index(&self, whole: &Whole<'_>, purpose: Decoded) -> Option<Codec> {
        let store = &self.parts.store;
        let compression = whole.decoding.compression;
        let codec = compression.seekable_codec(whole.decoding.framing);
        let codec = codec.filter(|_| whole.size_bytes >= INDEXED_BYTES_MIN);
        match purpose {
            Decoded::Passing if codec.is_some_and(Codec::has_cheap_places) => return codec,
            Decoded::Passing => {}
            Decoded::Kept if whole.size_bytes > store.disk_bytes_max() / 2 => {
                // Indexes must not take the room that it needs.
                store.indexes().clear();
                return None;
            }
            Decoded::Kept => {}
        }
        let is_short = self.parts.tree.size_bytes() > store.disk_bytes_max() || store.has_evicted();
        codec.filter(|_| is_short)
    }

    /// Opens what holds a file, and compares its length with what the manifest has.
    fn open_whole(&self, whole: &Whole<'_>) -> Result<(Arc<StorageFile>, String), RepositoryError> {
        let (handle, place) = self.open_stored(whole.key, whole.path)?;
        let unreadable = |error| RepositoryError::unreadable(whole.path, "look at", error);
        let found = handle.size_bytes().map_err(unreadable)?;
        let end = whole.offset + whole.stored_bytes;
        let fits = match whole.key {
            StoredKey::Bundle { .. } => found >= end,
            _ => found == end,
        };
        match fits {
            true => Ok((handle, place)),
            false => Err(RepositoryError::corrupt(
                whole.path,
                format!("{place} has {found} bytes, and {end} in the manifest"),
            )),
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.parts.store.forget(self.owner);
    }
}

/// A file that is stored whole.
struct Whole<'a> {
    file: FileIndex,
    path: &'a str,
    size_bytes: u64,
    key: StoredKey,
    offset: u64,
    stored_bytes: u64,
    sha1: Option<[u8; 20]>,
    decoding: Decoding<'a>,
}

fn extent(whole: &Whole<'_>, handle: Arc<StorageFile>) -> Extent {
    Extent {
        file: handle,
        offset: whole.offset,
        length: whole.stored_bytes,
    }
}

/// The error of reading what is encrypted.
fn explain(path: &str, place: &str, error: std::io::Error) -> RepositoryError {
    match is_of_storage(&error) {
        true => RepositoryError::unreadable(format!("{path} ({place})"), "read", error),
        false => RepositoryError::corrupt(path, format!("{place} cannot be decoded: {error}")),
    }
}

fn lost_map(path: &str, blocks: &str) -> RepositoryError {
    RepositoryError::unsupported(
        path,
        format!(
            "is stored in blocks ({blocks}), but its manifest has lost the block map, as pgBackRest 2.46 does (fixed in 2.47)"
        ),
        "use another backup: pgBackRest itself cannot restore this one",
    )
}
