//! The WAL archive: the segments that recovery of one backup needs, from its start to its stop.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use super::Framing;
use super::compression::Compression;
use super::info_file::read_info;
use super::passphrase::Passphrase;
use super::stanza::Stanza;
use super::stored::{Decoding, StoredRange};
use crate::wal_archive::WalHead;
use crate::{Lsn, RepositoryError};

/// A WAL segment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchivedSegment {
    /// Its name in `pg_wal`.
    pub(crate) name: String,
    /// Its path below the repository.
    pub(crate) path: String,
    pub(crate) compression: Compression,
    pub(crate) stored_bytes: u64,
    pub(crate) sha1: [u8; 20],
}

/// What a backup needs of the archive.
#[derive(Debug)]
pub(crate) struct WalRange<'a> {
    /// The archive of its cluster: `15-1`.
    pub(crate) archive_id: &'a str,
    pub(crate) first_segment: &'a str,
    pub(crate) start_lsn: Lsn,
    pub(crate) stop_lsn: Lsn,
    /// The cluster that the WAL must be of.
    pub(crate) system_identifier: u64,
}

/// The segments of a backup, and what is common to them.
#[derive(Debug)]
pub(crate) struct ArchivedWal {
    pub(crate) segments: Vec<ArchivedSegment>,
    pub(crate) segment_bytes: u64,
    /// Opens the segments.
    pub(crate) passphrase: Option<Passphrase>,
}

/// What was looked up in the archive for one answer, so that it is not looked up for each backup. It grows with the directories in which
/// backups have WAL, each of 256 segments of the usual size.
#[derive(Debug, Default)]
pub(crate) struct ArchiveListing {
    /// What opens the archive's files, once it was read; none if it is not encrypted.
    passphrase: Option<Option<Passphrase>>,
    directories: BTreeMap<String, Listed>,
}

/// Most segments of one backup: 64 TiB with the largest segments, 1 TiB with the usual ones.
const SEGMENT_COUNT_MAX: u64 = 1 << 16;

/// Finds the segments in the archive; `listing` keeps what was looked up.
pub(crate) fn find_wal(
    stanza: &Stanza,
    range: &WalRange<'_>,
    listing: &mut ArchiveListing,
) -> Result<ArchivedWal, RepositoryError> {
    let passphrase = match &listing.passphrase {
        Some(known) => known.clone(),
        None => listing
            .passphrase
            .insert(archive_passphrase(stanza)?)
            .clone(),
    };
    let directories = &mut listing.directories;
    let first = find_segment(stanza, range.archive_id, range.first_segment, directories)?;
    let segment_bytes = segment_bytes(stanza, &first, passphrase.as_ref(), range)?;
    let timeline = range.first_segment.get(..8).unwrap_or_default();
    let corrupt = |reason: String| RepositoryError::corrupt(&first.path, reason);
    if segment_name(timeline, range.start_lsn, segment_bytes) != range.first_segment {
        let reason = format!("is not the file of WAL position {}", range.start_lsn);
        return Err(corrupt(reason));
    }
    let first_number = range.start_lsn.0 / segment_bytes;
    // A stop at a segment's very beginning needs nothing of that segment.
    let last_number = range.stop_lsn.0.saturating_sub(1) / segment_bytes;
    if last_number < first_number || last_number - first_number >= SEGMENT_COUNT_MAX {
        let (start, stop) = (range.start_lsn, range.stop_lsn);
        return Err(corrupt(format!(
            "the backup's WAL is from {start} to {stop}"
        )));
    }
    let mut segments = Vec::new();
    for number in first_number..=last_number {
        let name = segment_name(timeline, Lsn(number * segment_bytes), segment_bytes);
        let found = find_segment(stanza, range.archive_id, &name, directories)?;
        segments.push(found);
    }
    Ok(ArchivedWal {
        segments,
        segment_bytes,
        passphrase,
    })
}

/// The name of the segment that holds a WAL position.
pub(crate) fn segment_name(timeline: &str, lsn: Lsn, segment_bytes: u64) -> String {
    let number = lsn.0 / segment_bytes;
    let per_log = (1_u64 << 32) / segment_bytes;
    let (log, segment) = (number / per_log, number % per_log);
    format!("{timeline}{log:08X}{segment:08X}")
}

/// What opens the archive's files, if it is encrypted.
pub(super) fn archive_passphrase(stanza: &Stanza) -> Result<Option<Passphrase>, RepositoryError> {
    let info = stanza.archive_path("archive.info");
    stanza.info(&info, stanza.passphrase(), &read_archive_info)
}

pub(super) fn read_archive_info(
    source: Box<dyn Read + Send>,
    file: &str,
) -> Result<Option<Passphrase>, RepositoryError> {
    let mut passphrase = None;
    read_info(source, file, &mut |line| {
        if (line.section, line.key) == ("cipher", "cipher-pass") {
            passphrase = Some(Passphrase::new(line.parse::<String>(file)?));
        }
        Ok(())
    })?;
    Ok(passphrase)
}

/// Names of the files in one directory of the archive, by the segment that they are of.
pub(super) type Listed = BTreeMap<String, Vec<String>>;

/// Finds one segment; `directories` keeps what was listed for the next.
pub(super) fn find_segment(
    stanza: &Stanza,
    archive_id: &str,
    name: &str,
    directories: &mut BTreeMap<String, Listed>,
) -> Result<ArchivedSegment, RepositoryError> {
    let prefix = name.get(..16).unwrap_or_default();
    let directory = stanza.archive_path(&format!("{archive_id}/{prefix}"));
    if !directories.contains_key(&directory) {
        let listed = list(stanza, &directory)?;
        directories.insert(directory.clone(), listed);
    }
    let files = directories
        .get(&directory)
        .and_then(|listed| listed.get(name));
    let path = format!("{directory}/{name}");
    let file = match files.map(Vec::as_slice) {
        Some([file]) => file,
        None | Some([]) => {
            return Err(RepositoryError::unsupported(
                path,
                "is not in the WAL archive, and recovery of the backup needs it",
                "use another backup, and find out with pgbackrest check why WAL is not archived",
            ));
        }
        Some(_) => {
            return Err(RepositoryError::corrupt(
                path,
                "is in the WAL archive several times, with different contents",
            ));
        }
    };
    let path = format!("{directory}/{file}");
    let (sha1, compression) = parse_file_name(file, name)
        .ok_or_else(|| RepositoryError::corrupt(&path, "has a name that is no segment's"))?;
    let found = stanza.file(&path).and_then(|file| file.size_bytes());
    let stored_bytes =
        found.map_err(|error| RepositoryError::unreadable(&path, "look at", error))?;
    Ok(ArchivedSegment {
        name: name.to_owned(),
        path,
        compression,
        stored_bytes,
        sha1,
    })
}

fn list(stanza: &Stanza, directory: &str) -> Result<Listed, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(directory, "list", error);
    let names = match stanza.names(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Listed::new()),
        names => names.map_err(unreadable)?,
    };
    let mut listed = Listed::new();
    for name in names {
        if let Some(segment) = segment_of(&name) {
            listed.entry(segment.to_owned()).or_default().push(name);
        }
    }
    Ok(listed)
}

/// The segment that a file of the archive is; none if it is something else, as one that is only being written.
pub(super) fn segment_of(file: &str) -> Option<&str> {
    let (segment, _) = file.split_at_checked(24)?;
    parse_file_name(file, segment).map(|_| segment)
}

/// `<segment>-<SHA-1>` with the compression's extension.
fn parse_file_name(file: &str, segment: &str) -> Option<([u8; 20], Compression)> {
    let rest = file.strip_prefix(segment)?.strip_prefix('-')?;
    let (digits, extension) = rest.split_at_checked(40)?;
    Some((
        super::manifest::parse_sha1(digits)?,
        Compression::from_extension(extension)?,
    ))
}

/// The size of segments, as the first one's first page says, and that it is WAL of this cluster.
fn segment_bytes(
    stanza: &Stanza,
    first: &ArchivedSegment,
    passphrase: Option<&Passphrase>,
    range: &WalRange<'_>,
) -> Result<u64, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(&first.path, "open", error);
    let file = stanza.file(&first.path).map_err(unreadable)?;
    let stored = StoredRange::new(Arc::new(file), 0, first.stored_bytes);
    let decoding = Decoding {
        compression: first.compression,
        framing: Framing::Standard,
        passphrase,
    };
    let head = WalHead::read(&first.path, stored, decoding)?;
    head.check(&first.path, Some(range.system_identifier), None)?;
    Ok(head.segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_the_name_that_postgresql_gives_it() {
        for (lsn, segment_bytes, name) in [
            (0x2000028, 16 << 20, "000000010000000000000002"),
            (0x1_0000_0000, 16 << 20, "000000010000000100000000"),
            (0xFF00_0000, 16 << 20, "0000000100000000000000FF"),
            (0x2000028, 1 << 20, "000000010000000000000020"),
            (0x4000_0000, 1 << 30, "000000010000000000000001"),
        ] {
            assert_eq!(segment_name("00000001", Lsn(lsn), segment_bytes), name);
        }
    }

    #[test]
    fn the_name_in_the_archive_tells_checksum_and_compression() {
        let segment = "000000010000000000000002";
        let sum = "0123456789abcdef0123456789abcdef01234567";
        let parse = |rest: &str| parse_file_name(&format!("{segment}-{rest}"), segment);
        assert_eq!(parse(sum).unwrap().1, Compression::None);
        assert_eq!(parse(&format!("{sum}.zst")).unwrap().1, Compression::Zst);
        let being_written = format!("{sum}.zst.pgbackrest.tmp");
        for bad in [
            "",
            "0123",
            &format!("{sum}.xz"),
            &format!("{sum}0"),
            &being_written,
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(segment_of(&format!("{segment}-{sum}")), Some(segment));
        assert_eq!(segment_of(&format!("{segment}.partial-{sum}")), None);
    }
}
