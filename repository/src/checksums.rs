//! Checksums of whole files, computed from the reads that happen anyway.
//!
//! A CRC32C is put together from pieces read in any order; a SHA follows reads from the beginning to the end. What stays in
//! memory between reads is bounded: of all pieces at once, and per file by its own size.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::FileIndex;

/// A checksum algorithm of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// CRC32C; its hex digits are in little-endian byte order.
    Crc32c,
    /// SHA-1, of pgBackRest.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The algorithm as `backup_manifest` names it.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "CRC32C" => Self::Crc32c,
            "SHA224" => Self::Sha224,
            "SHA256" => Self::Sha256,
            "SHA384" => Self::Sha384,
            "SHA512" => Self::Sha512,
            _ => return None,
        })
    }

    fn length(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// A fresh hasher; none for CRC32C, which is put together from pieces.
    fn hasher(self) -> Option<Box<dyn DynDigest + Send>> {
        Some(match self {
            Self::Crc32c => return None,
            Self::Sha1 => Box::new(Sha1::new()),
            Self::Sha224 => Box::new(Sha224::new()),
            Self::Sha256 => Box::new(Sha256::new()),
            Self::Sha384 => Box::new(Sha384::new()),
            Self::Sha512 => Box::new(Sha512::new()),
        })
    }
}

/// A checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Checksum {
    /// Takes the bytes as they stand in a manifest; none if their number is not the algorithm's.
    pub fn new(algorithm: Algorithm, bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() == algorithm.length()).then_some(Self { algorithm, bytes })
    }

    /// Whether it is that of this content.
    pub(crate) fn is_of(&self, content: &[u8]) -> bool {
        match self.algorithm.hasher() {
            None => crc32c::crc32c(content).to_le_bytes()[..] == self.bytes,
            Some(mut hasher) => {
                hasher.update(content);
                hasher.finalize_reset()[..] == self.bytes
            }
        }
    }
}

/// The checksums that files should have, compact.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// By file: algorithm and place in `bytes`.
    files: Vec<Option<(Algorithm, u32)>>,
    bytes: Vec<u8>,
}

impl Expected {
    pub(crate) fn new(file_count: usize) -> Self {
        Self {
            files: vec![None; file_count],
            bytes: Vec::new(),
        }
    }

    /// Notes a file's checksum; false if there is no room for it, which limits on files rule out but for absurd manifests.
    #[must_use]
    pub(crate) fn set(&mut self, file: FileIndex, checksum: &Checksum) -> bool {
        let (Some(slot), Ok(at)) = (
            self.files.get_mut(file.0 as usize),
            u32::try_from(self.bytes.len()),
        ) else {
            return false;
        };
        *slot = Some((checksum.algorithm, at));
        self.bytes.extend_from_slice(&checksum.bytes);
        true
    }

    fn get(&self, file: FileIndex) -> Option<(Algorithm, &[u8])> {
        let (algorithm, at) = (*self.files.get(file.0 as usize)?)?;
        let at = at as usize;
        Some((algorithm, self.bytes.get(at..at + algorithm.length())?))
    }
}

/// What is known of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has no checksum.
    Unknown,
    /// Not all of it has been read.
    Pending,
    /// It has been read whole and is as it should be.
    Verified,
    /// It has been read whole and is not.
    Corrupt,
}

/// Checks files while they are read.
#[derive(Debug)]
pub(crate) struct Verifier {
    expected: Expected,
    shards: Vec<Mutex<Shard>>,
    piece_count_max: usize,
}

const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    /// Files whose end is known: true if sound.
    ended: HashMap<u32, bool>,
    running: HashMap<u32, Running>,
    piece_count: usize,
    clock: u64,
}

struct Running {
    touched_at: u64,
    progress: Progress,
}

enum Progress {
    /// Start to length and CRC of pieces that do not touch each other.
    Pieces(BTreeMap<u64, (u64, u32)>),
    Hasher(Box<dyn DynDigest + Send>, u64),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Running({} pieces)", self.piece_count())
    }
}

impl Running {
    fn piece_count(&self) -> usize {
        match &self.progress {
            Progress::Pieces(pieces) => pieces.len(),
            Progress::Hasher(..) => 1,
        }
    }
}

impl Verifier {
    pub(crate) fn new(expected: Expected, piece_count_max: usize) -> Self {
        Self {
            expected,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            piece_count_max: (piece_count_max / SHARDS).max(1),
        }
    }

    /// The checksums again, without what has been found out.
    pub(crate) fn into_expected(self) -> Expected {
        self.expected
    }

    /// A panic elsewhere while it was held leaves at worst a file unverified.
    fn shard(&self, file: FileIndex) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.shards.get(file.0 as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn standing(&self, file: FileIndex) -> Standing {
        let shard = self.shard(file);
        match shard.and_then(|shard| shard.ended.get(&file.0).copied()) {
            None if self.expected.get(file).is_none() => Standing::Unknown,
            None => Standing::Pending,
            Some(true) => Standing::Verified,
            Some(false) => Standing::Corrupt,
        }
    }

    /// Whether a file has a checksum to compare with.
    pub(crate) fn has_checksum(&self, file: FileIndex) -> bool {
        self.expected.get(file).is_some()
    }

    /// Notes what was found out about a file otherwise: that it has its checksum, or that it is not what it should be.
    pub(crate) fn settle(&self, file: FileIndex, sound: bool) {
        if let Some(mut shard) = self.shard(file)
            && shard.ended.get(&file.0) != Some(&false)
        {
            shard.ended.insert(file.0, sound);
        }
    }

    /// The files found corrupt, in order.
    pub(crate) fn corrupt(&self) -> Vec<FileIndex> {
        let mut corrupt = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let bad = shard.ended.iter().filter(|(_, sound)| !**sound);
            corrupt.extend(bad.map(|(file, _)| FileIndex(*file)));
        }
        corrupt.sort();
        corrupt
    }

    /// Counts bytes of a file towards its checksum and says how it stands then.
    pub(crate) fn feed(
        &self,
        file: FileIndex,
        size_bytes: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Standing {
        let Some((algorithm, wanted)) = self.expected.get(file) else {
            return Standing::Unknown;
        };
        let Some(mut shard) = self.shard(file) else {
            return Standing::Unknown;
        };
        match shard.ended.get(&file.0) {
            Some(true) => return Standing::Verified,
            Some(false) => return Standing::Corrupt,
            None => {}
        }
        shard.clock += 1;
        let clock = shard.clock;
        let existing = shard.running.remove(&file.0);
        shard.piece_count -= existing.as_ref().map_or(0, Running::piece_count);
        let mut running = existing.unwrap_or_else(|| Running {
            touched_at: clock,
            progress: match algorithm.hasher() {
                Some(hasher) => Progress::Hasher(hasher, 0),
                None => Progress::Pieces(BTreeMap::new()),
            },
        });
        running.touched_at = clock;
        let found = match &mut running.progress {
            Progress::Pieces(pieces) => {
                add_pieces(pieces, offset, bytes);
                let whole = pieces.get(&0).filter(|(length, _)| *length == size_bytes);
                if size_bytes == 0 {
                    Some(crc32c::crc32c(&[]).to_le_bytes().to_vec())
                } else {
                    whole.map(|(_, crc)| crc.to_le_bytes().to_vec())
                }
            }
            Progress::Hasher(hasher, next) => {
                // Where the read begins beyond what is hashed, it waits for one that begins sooner.
                if let Some(known) = next.checked_sub(offset) {
                    let known = usize::try_from(known).unwrap_or(usize::MAX);
                    let fresh = bytes.get(known..).unwrap_or_default();
                    hasher.update(fresh);
                    *next += fresh.len() as u64;
                }
                (*next == size_bytes).then(|| hasher.finalize_reset().to_vec())
            }
        };
        match found {
            Some(found) => {
                let sound = found == wanted;
                shard.ended.insert(file.0, sound);
                if sound {
                    Standing::Verified
                } else {
                    Standing::Corrupt
                }
            }
            None => {
                shard.piece_count += running.piece_count();
                shard.running.insert(file.0, running);
                shard.forget_oldest(self.piece_count_max);
                Standing::Pending
            }
        }
    }
}

impl Shard {
    fn forget_oldest(&mut self, piece_count_max: usize) {
        while self.piece_count > piece_count_max {
            let oldest = self
                .running
                .iter()
                .min_by_key(|(_, running)| running.touched_at);
            let Some(oldest) = oldest.map(|(file, _)| *file) else {
                return;
            };
            if let Some(forgotten) = self.running.remove(&oldest) {
                self.piece_count = self.piece_count.saturating_sub(forgotten.piece_count());
            }
        }
    }
}

/// Adds what of `bytes` is not there yet, and joins pieces that touch.
fn add_pieces(pieces: &mut BTreeMap<u64, (u64, u32)>, offset: u64, bytes: &[u8]) {
    let end = offset + bytes.len() as u64;
    let mut at = offset;
    // The piece that reaches over the beginning, if one does.
    if let Some((start, (length, _))) = pieces.range(..=at).next_back() {
        at = at.max(start + length);
    }
    while at < end {
        let next = pieces
            .range(at..)
            .next()
            .map(|(start, (length, _))| (*start, *length));
        let gap_end = next.map_or(end, |(start, _)| start.min(end));
        if gap_end > at {
            let range = usize::try_from(at - offset)
                .ok()
                .zip(usize::try_from(gap_end - offset).ok());
            let part = range
                .and_then(|(from, to)| bytes.get(from..to))
                .unwrap_or_default();
            join(pieces, at, (gap_end - at, crc32c::crc32c(part)));
        }
        at = match next {
            Some((start, length)) if start < end => start + length,
            _ => end,
        };
    }
}

/// Inserts a piece that overlaps none, and makes one of it and its neighbours where they touch.
fn join(pieces: &mut BTreeMap<u64, (u64, u32)>, start: u64, piece: (u64, u32)) {
    let combine = |(first, first_crc): (u64, u32), (second, second_crc): (u64, u32)| {
        let length = usize::try_from(second).unwrap_or(usize::MAX);
        (
            first + second,
            crc32c::crc32c_combine(first_crc, second_crc, length),
        )
    };
    let (mut start, mut piece) = (start, piece);
    if let Some((before, found)) = pieces.range(..start).next_back().map(|(k, v)| (*k, *v))
        && before + found.0 == start
    {
        piece = combine(found, piece);
        start = before;
    }
    if let Some(after) = pieces.remove(&(start + piece.0)) {
        piece = combine(piece, after);
    }
    pieces.insert(start, piece);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn verifier(content: &[u8], algorithm: Algorithm, piece_count_max: usize) -> Verifier {
        let bytes = match algorithm.hasher() {
            None => crc32c::crc32c(content).to_le_bytes().to_vec(),
            Some(mut hasher) => {
                hasher.update(content);
                hasher.finalize_reset().to_vec()
            }
        };
        let mut expected = Expected::new(40);
        for file in 0..40 {
            let checksum = Checksum::new(algorithm, bytes.clone()).unwrap();
            assert!(expected.set(FileIndex(file), &checksum));
        }
        Verifier::new(expected, piece_count_max)
    }

    proptest! {
        #[test]
        fn reads_in_any_order_complete_a_crc32c_once_all_is_read(
            content in proptest::collection::vec(any::<u8>(), 1..300),
            reads in proptest::collection::vec((0_usize..300, 1_usize..60), 0..60),
            flip in any::<bool>(),
        ) {
            let verifier = verifier(&content, Algorithm::Crc32c, 1 << 20);
            let mut shown = content.clone();
            if flip {
                shown[content.len() / 2] ^= 1;
            }
            let mut read = vec![false; content.len()];
            let all = reads.into_iter().chain(std::iter::once((0, 300)));
            for (start, length) in all {
                let start = start.min(content.len());
                let end = (start + length).min(content.len());
                read[start..end].fill(true);
                let standing = verifier.feed(FileIndex(3), content.len() as u64, start as u64, &shown[start..end]);
                let wanted = match (read.iter().all(|b| *b), flip) {
                    (false, _) => Standing::Pending,
                    (true, false) => Standing::Verified,
                    (true, true) => Standing::Corrupt,
                };
                prop_assert_eq!(standing, wanted);
            }
            prop_assert_eq!(verifier.corrupt().len(), usize::from(flip));
        }
    }

    #[test]
    fn a_sha_is_completed_by_reads_in_order_however_they_overlap() {
        let content = [7_u8; 100];
        for algorithm in [
            Algorithm::Sha1,
            Algorithm::Sha224,
            Algorithm::Sha256,
            Algorithm::Sha384,
            Algorithm::Sha512,
        ] {
            let verifier = verifier(&content, algorithm, 1 << 20);
            let feed = |offset: u64, bytes: &[u8]| verifier.feed(FileIndex(0), 100, offset, bytes);
            assert_eq!(feed(50, &content[50..]), Standing::Pending);
            assert_eq!(feed(0, &content[..60]), Standing::Pending);
            assert_eq!(feed(40, &content[40..80]), Standing::Pending);
            assert_eq!(
                feed(70, &content[70..]),
                Standing::Verified,
                "{algorithm:?}"
            );
        }
    }

    #[test]
    fn pieces_stay_within_their_limit() {
        let content = [1_u8; 1000];
        let verifier = verifier(&content, Algorithm::Crc32c, 64);
        for offset in (0..1000).step_by(3) {
            for file in 0..40 {
                verifier.feed(FileIndex(file), 1000, offset, &[1]);
            }
        }
        for shard in &verifier.shards {
            let shard = shard.lock().unwrap();
            let count: usize = shard.running.values().map(Running::piece_count).sum();
            assert_eq!(count, shard.piece_count);
            assert!(count <= 4, "{count}");
        }
        assert_eq!(
            verifier.feed(FileIndex(1), 1000, 0, &content),
            Standing::Verified
        );
    }
}
