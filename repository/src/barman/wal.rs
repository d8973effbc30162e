//! The WAL of a server: the segments that recovery of one backup needs, from its beginning to its end.

use std::io;
use std::sync::Arc;

use super::server::Server;
use crate::pg_basebackup::segment_name;
use crate::pgbackrest::{Compression, StoredRange};
use crate::wal_archive::{MAGIC_BYTES, WalHead, compression_of};
use crate::with_wal::Segment;
use crate::{Lsn, RepositoryError};

/// Most segments of one backup: 64 TiB with the largest segments, 1 TiB with the usual ones.
const SEGMENT_COUNT_MAX: u64 = 1 << 16;

/// What a backup needs.
#[derive(Debug)]
pub(super) struct WalRange {
    pub(super) timeline: u32,
    pub(super) start_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) segment_bytes: u64,
    /// The cluster that the WAL must be of, if known.
    pub(super) system_identifier: Option<u64>,
}

/// Finds the segments, and sees that the first is WAL of this cluster.
pub(super) fn find_wal(server: &Server, range: &WalRange) -> Result<Vec<Segment>, RepositoryError> {
    let first_number = range.start_lsn.0 / range.segment_bytes;
    // An end at a segment's very beginning needs nothing of that segment.
    let last_number = range.end_lsn.0.saturating_sub(1) / range.segment_bytes;
    if last_number < first_number || last_number - first_number >= SEGMENT_COUNT_MAX {
        let reason = format!("has its WAL from {} to {}", range.start_lsn, range.end_lsn);
        return Err(RepositoryError::corrupt("backup.info", reason));
    }
    let mut segments = Vec::new();
    for number in first_number..=last_number {
        let at = Lsn(number * range.segment_bytes);
        let name = segment_name(range.timeline, at, range.segment_bytes);
        segments.push(find_segment(server, &name, range.segment_bytes)?);
    }
    if let Some(first) = segments.first() {
        check_cluster(server, first, range)?;
    }
    Ok(segments)
}

/// A segment is in `wals`, or still where `pg_receivewal` has written it.
fn find_segment(
    server: &Server,
    name: &str,
    segment_bytes: u64,
) -> Result<Segment, RepositoryError> {
    let prefix = name.get(..16).unwrap_or_default();
    let archived = format!("wals/{prefix}/{name}");
    for path in [archived.clone(), format!("streaming/{name}")] {
        let (path, file) = match server.archived(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(|error| RepositoryError::unreadable(&path, "read", error))?,
        };
        let unreadable = |error| RepositoryError::unreadable(&path, "read", error);
        let stored_bytes = file.size_bytes().map_err(unreadable)?;
        let beginning = file.read_beginning(MAGIC_BYTES).map_err(unreadable)?;
        let compression = compression_of(&beginning).map_err(|what| {
            RepositoryError::unsupported(
                &path,
                what,
                "have Barman keep WAL with compression gzip, bzip2, xz, zstd, lz4 or none, and without encryption",
            )
        })?;
        if compression == Compression::None && stored_bytes != segment_bytes {
            let reason = format!("has {stored_bytes} bytes, and a WAL segment {segment_bytes}");
            return Err(RepositoryError::corrupt(path, reason));
        }
        return Ok(Segment {
            name: name.to_owned(),
            path,
            compression,
            stored_bytes,
        });
    }
    Err(RepositoryError::unsupported(
        archived,
        "is not in Barman's archive, nor is the segment in streaming, and recovery of the backup needs it",
        "wait for WAL that is not archived yet (barman cron, barman switch-wal), or use another backup",
    ))
}

fn check_cluster(
    server: &Server,
    first: &Segment,
    range: &WalRange,
) -> Result<(), RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(&first.path, "open", error);
    let file = server.file(&first.path).map_err(unreadable)?;
    let stored = StoredRange::new(Arc::new(file), 0, first.stored_bytes);
    let head = WalHead::read(&first.path, stored, first.decoding())?;
    head.check(
        &first.path,
        range.system_identifier,
        Some(range.segment_bytes),
    )
}
