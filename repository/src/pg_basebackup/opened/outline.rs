//! What can be told of a backup without opening it.
//!
//! To open a compressed tar backup is to decode all of it, and to open one in an object store is to ask for each of its headers. A list of
//! backups needs less: `backup_manifest` has its files, and the beginning of `base.tar` its label. What the rest is worth, opening it tells.

use super::check::{is_exempt, merge_map};
use crate::pg_basebackup::backup_label::{BackupLabel, parse_backup_label};
use crate::pg_basebackup::layout::slow_layout;
use crate::pg_basebackup::manifest::{Manifest, ManifestFile, read_manifest};
use crate::pg_basebackup::place::Place;
use crate::pg_basebackup::tablespace_map::parse_tablespace_map;
use crate::pg_basebackup::tar::{TarBeginning, read_tar_beginning};
use crate::restore_point::{RecoverableInterval, Verification};
use crate::{BackupFormat, BackupKind, Lsn, RestorePoint, Tablespace};

/// When and where in the WAL a tar backup was begun, as opening it would tell.
pub(crate) fn began_in_archive(place: &Place) -> Option<(jiff::Timestamp, Lsn)> {
    let label = label_in_archive(place)?;
    let listed = || Listed::read(place)?.label_modified_at;
    let started_at = label.started_at.or_else(listed)?;
    Some((started_at, label.start_lsn))
}

/// What a tar backup tells of its place in a chain: its label, and its cluster's identity where the manifest has it.
pub(crate) fn known_of_archive(place: &Place) -> Option<(BackupLabel, u64)> {
    let label = label_in_archive(place)?;
    let system_identifier = Listed::read(place)?.manifest.system_identifier?;
    Some((label, system_identifier))
}

fn label_in_archive(place: &Place) -> Option<BackupLabel> {
    let beginning = read_tar_beginning(place).ok()??;
    parse_backup_label(beginning.label.as_deref()?).ok()
}

/// Describes a tar backup that is compressed or in an object store by its outline; none where it does not tell enough or something does not
/// fit, for then opening finds the words for it, and none of other backups.
pub(crate) fn outline_of(place: &Place) -> Option<RestorePoint> {
    if place.has("PG_VERSION") || place.has("backup_manifest.tmp") {
        return None;
    }
    let beginning = read_tar_beginning(place).ok()??;
    if beginning.codec.is_none() && !place.repository.is_in_objects() {
        return None;
    }
    let label = parse_backup_label(beginning.label.as_deref()?).ok()?;
    if label.incremental_from.is_some() {
        return None;
    }
    let listed = Listed::read(place)?;
    restore_point(place, &beginning, &label, listed)
}

/// What the manifest says.
struct Listed {
    manifest: Manifest,
    size_bytes: u64,
    file_count: u64,
    postgresql_major: u32,
    all_have_checksums: bool,
    label_modified_at: Option<jiff::Timestamp>,
}

impl Listed {
    fn read(place: &Place) -> Option<Self> {
        let manifest = place.manifest().ok()??;
        let (mut size_bytes, mut file_count) = (0_u64, 0);
        let mut postgresql_major = None;
        let mut all_have_checksums = true;
        let mut label_modified_at = None;
        let manifest = read_manifest(manifest, &mut |file: ManifestFile| {
            size_bytes = size_bytes.saturating_add(file.size_bytes);
            file_count += 1;
            all_have_checksums &= file.checksum.is_some() || is_exempt(&file.path);
            match file.path.as_str() {
                "PG_VERSION" => postgresql_major = major_by_checksum(&file),
                "backup_label" => label_modified_at = file.modified_at,
                _ => {}
            }
            Ok(())
        });
        Some(Self {
            manifest: manifest.ok()?,
            size_bytes,
            file_count,
            postgresql_major: postgresql_major?,
            all_have_checksums,
            label_modified_at,
        })
    }
}

/// The major version: `PG_VERSION` holds it and nothing else, so its checksum says which one it is.
fn major_by_checksum(file: &ManifestFile) -> Option<u32> {
    let checksum = file.checksum.as_ref()?;
    (10..1000).find(|major| checksum.is_of(format!("{major}\n").as_bytes()))
}

fn restore_point(
    place: &Place,
    beginning: &TarBeginning,
    label: &BackupLabel,
    listed: Listed,
) -> Option<RestorePoint> {
    let oids = beginning.tablespace_oids.iter();
    let mut tablespaces: Vec<_> = oids
        .map(|oid| Tablespace {
            oid: *oid,
            location: String::new(),
        })
        .collect();
    let map = beginning.tablespace_map.as_deref().unwrap_or_default();
    merge_map(&mut tablespaces, parse_tablespace_map(map).ok()?).ok()?;
    let format = match beginning.codec {
        None => BackupFormat::PgBasebackupTar,
        Some(codec) => BackupFormat::PgBasebackupCompressedTar(codec),
    };
    Some(RestorePoint {
        label: place.label.clone(),
        format,
        kind: BackupKind::Full,
        references: Vec::new(),
        postgresql_major: listed.postgresql_major,
        started_at: label.started_at.or(listed.label_modified_at),
        stopped_at: None,
        size_bytes: listed.size_bytes,
        file_count: listed.file_count,
        tablespaces,
        recoverable: RecoverableInterval {
            from_lsn: label.start_lsn,
            to_lsn: listed.manifest.wal_ranges.iter().map(|r| r.end_lsn).max(),
            timeline: label.timeline,
        },
        system_identifier: listed.manifest.system_identifier,
        verification: match listed.all_have_checksums {
            true => Verification::Checksums,
            false => Verification::SizesOnly,
        },
        slow_layout: slow_layout(format),
    })
}
