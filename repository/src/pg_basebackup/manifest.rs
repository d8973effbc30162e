//! `backup_manifest` (versions 1 and 2), read as a stream: a manifest of millions of files is never in memory.

use std::fmt;
use std::io::{BufReader, Read, Seek, SeekFrom};

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use crate::checksums::{Algorithm, Checksum};
use crate::{Lsn, RepositoryError};

/// The manifest's name.
pub const MANIFEST: &str = "backup_manifest";

/// Most WAL ranges: one per timeline that was passed during the backup.
const WAL_RANGES_MAX: usize = 1_000;

/// What a manifest says beside its list of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `PostgreSQL-Backup-Manifest-Version`: 1, or 2 since PostgreSQL 17.
    pub version: u64,
    /// `System-Identifier`, of version 2.
    pub system_identifier: Option<u64>,
    /// The WAL that the backup needs.
    pub wal_ranges: Vec<WalRange>,
}

/// A range of WAL on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: u32,
    /// Its first position.
    pub start_lsn: Lsn,
    /// The position after its last.
    pub end_lsn: Lsn,
}

/// One file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path below PGDATA, as it stands there: not checked.
    pub path: String,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// When it was last changed, if that is said in the usual form.
    pub modified_at: Option<Timestamp>,
    /// Its checksum; absent with `--manifest-checksums=NONE`.
    pub checksum: Option<Checksum>,
}

/// What becomes of each file of the manifest.
pub type OnFile<'a> = dyn FnMut(ManifestFile) -> Result<(), RepositoryError> + 'a;

/// Reads a manifest, checks its own checksum, and hands each file to `on_file`.
pub fn read_manifest<R: Read + Seek>(
    mut source: R,
    on_file: &mut OnFile<'_>,
) -> Result<Manifest, RepositoryError> {
    let hashed_bytes = hashed_length(&mut source)?;
    let mut reader = BufReader::with_capacity(
        1 << 16,
        HashingReader {
            source,
            hasher: Sha256::new(),
            left: hashed_bytes,
        },
    );
    let mut deserializer = serde_json::Deserializer::from_reader(&mut reader);
    let mut refusal = None;
    let document = Document {
        on_file,
        refusal: &mut refusal,
    };
    let parsed = document
        .deserialize(&mut deserializer)
        .and_then(|parsed| deserializer.end().map(|()| parsed));
    let parsed = match (parsed, refusal) {
        (_, Some(refusal)) => return Err(refusal),
        (Ok(parsed), None) => parsed,
        (Err(error), None) if error.is_io() => {
            return Err(RepositoryError::unreadable(MANIFEST, "read", error));
        }
        (Err(error), None) => {
            return Err(corrupt(format!("cannot be read: {error}")));
        }
    };
    // The deserializer has read to the end, so every byte before the last line has been hashed.
    let digest = reader.into_inner().hasher.finalize();
    if parsed.checksum.as_slice() != digest.as_slice() {
        return Err(corrupt(
            "its own checksum does not fit: it was changed or damaged".into(),
        ));
    }
    Ok(parsed.manifest)
}

fn corrupt(reason: String) -> RepositoryError {
    RepositoryError::corrupt(MANIFEST, reason)
}

/// The manifest's checksum covers everything up to its last line, which holds the checksum.
fn hashed_length<R: Read + Seek>(source: &mut R) -> Result<u64, RepositoryError> {
    const TAIL: u64 = 4096;
    let unreadable = |error| RepositoryError::unreadable(MANIFEST, "read", error);
    let length = source.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let start = length.saturating_sub(TAIL);
    source.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    let mut tail = Vec::new();
    source
        .take(TAIL)
        .read_to_end(&mut tail)
        .map_err(unreadable)?;
    source.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let last_line = tail
        .strip_suffix(b"\n")
        .and_then(|lines| lines.iter().rposition(|b| *b == b'\n'));
    match last_line {
        Some(at) => Ok(start + at as u64 + 1),
        None => Err(corrupt(
            "does not end with a line of its own for the checksum, it is truncated".into(),
        )),
    }
}

/// Hashes the first `left` bytes that pass through it.
struct HashingReader<R> {
    source: R,
    hasher: Sha256,
    left: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.source.read(buffer)?;
        let hashed = usize::try_from(self.left).unwrap_or(usize::MAX).min(count);
        self.hasher.update(buffer.get(..hashed).unwrap_or_default());
        self.left -= hashed as u64;
        Ok(count)
    }
}

/// What the document has been found to say.
struct Parsed {
    manifest: Manifest,
    checksum: Vec<u8>,
}

struct Document<'a, 'b> {
    on_file: &'a mut OnFile<'b>,
    refusal: &'a mut Option<RepositoryError>,
}

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = Parsed;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let Document { on_file, refusal } = self;
        let mut version = None;
        let mut system_identifier = None;
        let mut files_seen = false;
        let mut wal_ranges = None;
        let mut checksum = None;
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" => {
                    version.replace(map.next_value::<u64>()?).is_some()
                }
                "System-Identifier" => system_identifier
                    .replace(map.next_value::<u64>()?)
                    .is_some(),
                "Files" => {
                    map.next_value_seed(Files {
                        on_file: &mut *on_file,
                        refusal: &mut *refusal,
                    })?;
                    std::mem::replace(&mut files_seen, true)
                }
                "WAL-Ranges" => wal_ranges
                    .replace(map.next_value_seed(WalRanges)?)
                    .is_some(),
                "Manifest-Checksum" => {
                    let text = map.next_value::<String>()?;
                    let bytes = decode_hex(&text).filter(|bytes| bytes.len() == 32);
                    let bytes =
                        bytes.ok_or_else(|| A::Error::custom("Manifest-Checksum is no SHA-256"))?;
                    checksum.replace(bytes).is_some()
                }
                // PostgreSQL refuses what it does not know; so do we, rather than overlook what it means.
                _ => return Err(A::Error::custom(format!("unknown key {key:?}"))),
            };
            if twice {
                return Err(A::Error::custom(format!("key {key:?} is there twice")));
            }
        }
        let missing = |what: &str| A::Error::custom(format!("{what} is missing"));
        let version = version.ok_or_else(|| missing("PostgreSQL-Backup-Manifest-Version"))?;
        if !matches!(version, 1 | 2) {
            let file = MANIFEST;
            let reason = format!("is of version {version}, and only 1 and 2 are known");
            *refusal = Some(RepositoryError::unsupported(
                file,
                reason,
                "use a newer pginstant",
            ));
            return Err(A::Error::custom("version"));
        }
        if !files_seen {
            return Err(missing("Files"));
        }
        Ok(Parsed {
            manifest: Manifest {
                version,
                system_identifier,
                wal_ranges: wal_ranges.ok_or_else(|| missing("WAL-Ranges"))?,
            },
            checksum: checksum.ok_or_else(|| missing("Manifest-Checksum"))?,
        })
    }
}

struct Files<'a, 'b> {
    on_file: &'a mut OnFile<'b>,
    refusal: &'a mut Option<RepositoryError>,
}

impl<'de> DeserializeSeed<'de> for Files<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(raw) = list.next_element::<RawFile>()? {
            let handed = raw.checked().and_then(&mut *self.on_file);
            if let Err(error) = handed {
                *self.refusal = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawFile {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm")]
    checksum_algorithm: Option<String>,
    checksum: Option<String>,
}

impl RawFile {
    fn checked(self) -> Result<ManifestFile, RepositoryError> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path,
            (None, Some(hex)) => {
                let bytes = decode_hex(&hex);
                let bytes =
                    bytes.ok_or_else(|| corrupt(format!("the encoded path {hex} is no hex")))?;
                crate::name::utf8_name(&bytes, MANIFEST)?.to_owned()
            }
            _ => return Err(corrupt("a file has no path, or two".into())),
        };
        let wrong = |what: &str| RepositoryError::corrupt(&path, format!("{what} in {MANIFEST}"));
        let checksum = match (self.checksum_algorithm.as_deref(), self.checksum) {
            (None | Some("NONE"), None) => None,
            (Some(name), Some(hex)) => {
                let algorithm = Algorithm::from_name(name)
                    .ok_or_else(|| wrong("has an unknown checksum algorithm"))?;
                let bytes = decode_hex(&hex).and_then(|bytes| Checksum::new(algorithm, bytes));
                Some(bytes.ok_or_else(|| wrong("has a checksum that is none of its algorithm's"))?)
            }
            _ => {
                return Err(wrong(
                    "has a checksum without algorithm, or the other way round",
                ));
            }
        };
        Ok(ManifestFile {
            size_bytes: self.size,
            modified_at: self.last_modified.as_deref().and_then(parse_last_modified),
            checksum,
            path,
        })
    }
}

/// `2026-11-21 04:53:06 GMT`, always in GMT.
fn parse_last_modified(text: &str) -> Option<Timestamp> {
    let local: DateTime = text.strip_suffix(" GMT")?.parse().ok()?;
    jiff::tz::Offset::UTC.to_timestamp(local).ok()
}

struct WalRanges;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct RawWalRange {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl<'de> DeserializeSeed<'de> for WalRanges {
    type Value = Vec<WalRange>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<WalRange>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for WalRanges {
    type Value = Vec<WalRange>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of WAL ranges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<WalRange>, A::Error> {
        let mut ranges = Vec::new();
        while let Some(raw) = list.next_element::<RawWalRange>()? {
            let range = WalRange {
                timeline: raw.timeline,
                start_lsn: raw.start.parse().map_err(A::Error::custom)?,
                end_lsn: raw.end.parse().map_err(A::Error::custom)?,
            };
            if range.end_lsn < range.start_lsn || range.timeline == 0 {
                return Err(A::Error::custom(
                    "a WAL range ends before it starts, or is on timeline 0",
                ));
            }
            if ranges.len() == WAL_RANGES_MAX {
                return Err(A::Error::custom("there are too many WAL ranges"));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    odd.is_empty().then(|| bytes.collect()).flatten()
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
