//! What is checked of a backup before it is believed to be one.

use super::Content;
use crate::checksums::{Expected, Standing, Verifier};
use crate::name::parse_oid;
use crate::pg_basebackup::backup_label::{BackupLabel, parse_backup_label};
use crate::pg_basebackup::control::CONTROL;
use crate::pg_basebackup::increment::file_of_increment;
use crate::pg_basebackup::layout::slow_layout;
use crate::pg_basebackup::manifest::{MANIFEST, Manifest, ManifestFile, read_manifest};
use crate::pg_basebackup::tablespace_map::parse_tablespace_map;
use crate::restore_point::{RecoverableInterval, Verification};
use crate::storage::Forwards;
use crate::tree::{FileIndex, Tree};
use crate::{BackupFormat, BackupKind, Lsn, RepositoryError, RestorePoint, SlowLayout, Tablespace};

/// What a backup tells of itself.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Where its recovery begins, and where its parent did.
    pub(crate) begins: BackupLabel,
    format: BackupFormat,
    postgresql_major: u32,
    tablespaces: Vec<Tablespace>,
    manifest: Option<Manifest>,
    pub(crate) verification: Verification,
    started_at: Option<jiff::Timestamp>,
}

impl Facts {
    pub(super) fn restore_point(&self, label: &str, tree: &Tree) -> RestorePoint {
        let manifest = self.manifest.as_ref();
        let ends = manifest.map(|manifest| manifest.wal_ranges.iter().map(|range| range.end_lsn));
        RestorePoint {
            label: label.to_owned(),
            format: self.format,
            kind: BackupKind::Full,
            references: Vec::new(),
            postgresql_major: self.postgresql_major,
            started_at: self.started_at,
            stopped_at: None,
            size_bytes: tree.size_bytes(),
            file_count: tree.file_count(),
            tablespaces: self.tablespaces.clone(),
            recoverable: RecoverableInterval {
                from_lsn: self.begins.start_lsn,
                to_lsn: ends.and_then(Iterator::max),
                timeline: self.begins.timeline,
            },
            system_identifier: manifest.and_then(|manifest| manifest.system_identifier),
            verification: self.verification,
            slow_layout: self.slow_layout(),
        }
    }

    /// Why pages are slow to read at random, if they are.
    pub(crate) fn slow_layout(&self) -> Option<SlowLayout> {
        slow_layout(self.format)
    }
}

/// Checks all but the WAL; gives the checksums that the files should have, too.
pub(super) fn check(
    content: &Content,
    links: Vec<Tablespace>,
    manifest: Option<Forwards>,
) -> Result<(Facts, Expected), RepositoryError> {
    let begins = match content.read_small("backup_label")? {
        Some(label) => parse_backup_label(&label)?,
        None => return Err(no_label(manifest.is_some())),
    };
    refuse_stray_increments(content, &begins)?;
    if content.tree.find_file(CONTROL).is_none() {
        return Err(no_control());
    }
    let postgresql_major = postgresql_major(content)?;
    let listed = manifest
        .map(|file| check_manifest(content, file))
        .transpose()?;
    let mut tablespaces = links;
    let map = content.read_small("tablespace_map")?.unwrap_or_default();
    merge_map(&mut tablespaces, parse_tablespace_map(&map)?)?;
    for tablespace in &tablespaces {
        let path = format!("pg_tblspc/{}", tablespace.oid);
        if content.tree.find(&path).is_none() {
            return Err(content.lacks_tablespace(path));
        }
    }
    let verification = match &listed {
        None => Verification::Unverified,
        Some(listed) if listed.all_have_checksums => Verification::Checksums,
        Some(_) => Verification::SizesOnly,
    };
    let label_modified_at = listed.as_ref().and_then(|listed| listed.label_modified_at);
    let started_at = begins.started_at.or(label_modified_at);
    let (manifest, expected) = listed
        .map(|listed| (listed.manifest, listed.expected))
        .unzip();
    let facts = Facts {
        begins,
        format: content.format(),
        postgresql_major,
        tablespaces,
        manifest,
        verification,
        started_at,
    };
    Ok((facts, expected.unwrap_or_default()))
}

fn no_label(has_manifest: bool) -> RepositoryError {
    if has_manifest {
        RepositoryError::corrupt(
            "backup_label",
            "is missing, so PostgreSQL would start from the wrong checkpoint",
        )
    } else {
        RepositoryError::unsupported(
            "backup_label",
            "is missing, and so is backup_manifest: this is no backup, or one still being written",
            "wait until pg_basebackup has ended, or name the directory that it wrote",
        )
    }
}

/// A full backup has no increments.
fn refuse_stray_increments(content: &Content, label: &BackupLabel) -> Result<(), RepositoryError> {
    if label.incremental_from.is_some() {
        return Ok(());
    }
    let mut entries = content.tree.entries();
    match entries.find(|entry| file_of_increment(entry.path).is_some()) {
        None => Ok(()),
        Some(entry) => Err(RepositoryError::corrupt(
            entry.path,
            "belongs to an incremental backup, and backup_label says that this is a full one",
        )),
    }
}

/// pg_basebackup writes it last.
pub(super) fn no_control() -> RepositoryError {
    RepositoryError::unsupported(
        CONTROL,
        "is missing: the backup is still being written, or was never finished",
        "wait until pg_basebackup has ended, or use another backup",
    )
}

fn postgresql_major(content: &Content) -> Result<u32, RepositoryError> {
    let file = "PG_VERSION";
    let version = content.read_small(file)?;
    let version = version.ok_or_else(|| RepositoryError::corrupt(file, "is missing"))?;
    let version = String::from_utf8_lossy(&version);
    let version = version.trim_end();
    match version.parse::<u32>() {
        Ok(major) if (10..1000).contains(&major) => Ok(major),
        Ok(_) => {
            let reason = format!("says PostgreSQL {version}, and 10 is the oldest that is known");
            Err(RepositoryError::unsupported(
                file,
                reason,
                "use a backup of PostgreSQL 10 or newer",
            ))
        }
        Err(_) if version.starts_with("9.") => {
            let reason = format!("says PostgreSQL {version}, and 10 is the oldest that is known");
            Err(RepositoryError::unsupported(
                file,
                reason,
                "use a backup of PostgreSQL 10 or newer",
            ))
        }
        Err(_) => Err(RepositoryError::corrupt(
            file,
            format!("is no version: {version}"),
        )),
    }
}

/// Original locations come from `tablespace_map`; where it is silent, from the links.
pub(super) fn merge_map(
    tablespaces: &mut Vec<Tablespace>,
    map: Vec<Tablespace>,
) -> Result<(), RepositoryError> {
    for mapped in map {
        match tablespaces.iter_mut().find(|known| known.oid == mapped.oid) {
            Some(known) => known.location = mapped.location,
            None => tablespaces.push(mapped),
        }
    }
    tablespaces.sort_by_key(|tablespace| tablespace.oid);
    Ok(())
}

/// Recovery needs the WAL from the start to the end of the backup, and it has to come from the backup itself.
pub(super) fn check_wal(content: &Content, facts: &Facts) -> Result<(), RepositoryError> {
    let (label, manifest) = (&facts.begins, facts.manifest.as_ref());
    let missing = |file: String| {
        RepositoryError::unsupported(
            file,
            "is missing, and recovery needs this WAL",
            "take backups with --wal-method=stream or fetch, or name the directory to which WAL is archived (wal_archive)",
        )
    };
    let first = format!("pg_wal/{}", label.start_wal_file);
    let (_, segment_bytes) = content
        .tree
        .find_file(&first)
        .ok_or_else(|| missing(first.clone()))?;
    if !segment_bytes.is_power_of_two() || !(1 << 20..=1 << 30).contains(&segment_bytes) {
        let reason = format!("has {segment_bytes} bytes, which is no size of a WAL segment");
        return Err(RepositoryError::corrupt(first, reason));
    }
    if segment_name(label.timeline, label.start_lsn, segment_bytes) != label.start_wal_file {
        let reason = format!("is not the file of WAL position {}", label.start_lsn);
        return Err(RepositoryError::corrupt(first, reason));
    }
    // Across timelines the segments of a switch may bear either name, so only a simple range is followed through.
    let Some([range]) = manifest.map(|manifest| manifest.wal_ranges.as_slice()) else {
        return Ok(());
    };
    if range.timeline != label.timeline || range.start_lsn > label.start_lsn {
        let reason = format!(
            "begins its WAL at {}, backup_label at {}",
            range.start_lsn, label.start_lsn
        );
        return Err(RepositoryError::corrupt(MANIFEST, reason));
    }
    let mut at = label.start_lsn.0 / segment_bytes * segment_bytes;
    while at < range.end_lsn.0 {
        let path = format!(
            "pg_wal/{}",
            segment_name(range.timeline, Lsn(at), segment_bytes)
        );
        match content.tree.find_file(&path) {
            Some((_, found)) if found == segment_bytes => {}
            Some((_, found)) => {
                let reason = format!("has {found} bytes instead of {segment_bytes}");
                return Err(RepositoryError::corrupt(path, reason));
            }
            None => return Err(missing(path)),
        }
        at += segment_bytes;
    }
    Ok(())
}

/// The name of the segment that holds a WAL position.
pub(crate) fn segment_name(timeline: u32, lsn: Lsn, segment_bytes: u64) -> String {
    let number = lsn.0 / segment_bytes;
    let per_log = (1_u64 << 32) / segment_bytes;
    format!(
        "{timeline:08X}{:08X}{:08X}",
        number / per_log,
        number % per_log
    )
}

/// What the manifest says, found to be true of the tree.
struct Listed {
    manifest: Manifest,
    expected: Expected,
    all_have_checksums: bool,
    label_modified_at: Option<jiff::Timestamp>,
}

/// Whether a file is outside the manifest's word, as `pg_verifybackup` has it: WAL comes beside the backup,
/// and `pg_basebackup --write-recovery-conf` changes the others afterwards.
pub(super) fn is_exempt(path: &str) -> bool {
    matches!(
        path,
        "postgresql.auto.conf" | "recovery.signal" | "standby.signal"
    ) || path.starts_with("pg_wal/")
}

impl Content {
    /// The refusal of a backup without a file that the manifest has.
    fn lacks(&self, path: &str) -> RepositoryError {
        let below = path.strip_prefix("pg_tblspc/");
        let oid = below.and_then(|below| parse_oid(below.split('/').next()?));
        let tablespace = oid.map(|oid| format!("pg_tblspc/{oid}"));
        match tablespace.filter(|tablespace| self.tree.find(tablespace).is_none()) {
            Some(tablespace) if self.is_plain_in_objects() => self.lacks_tablespace(tablespace),
            _ => RepositoryError::corrupt(path, format!("is in {MANIFEST}, but not in the backup")),
        }
    }

    /// The refusal of a backup without a tablespace.
    fn lacks_tablespace(&self, path: String) -> RepositoryError {
        match self.is_plain_in_objects() {
            true => RepositoryError::unsupported(
                path,
                "is a link in the backup, and neither it nor the tablespace's files are in the object store, which keeps no links",
                "copy the files of the tablespace to this path in the object store, or store backups of pg_basebackup -Ft there",
            ),
            false => RepositoryError::corrupt(path, "the backup lacks this tablespace"),
        }
    }
}

fn check_manifest(content: &Content, file: Forwards) -> Result<Listed, RepositoryError> {
    let file_count = usize::try_from(content.tree.file_count()).unwrap_or(usize::MAX);
    let mut expected = Expected::new(file_count);
    let mut seen = vec![false; file_count];
    let mut all_have_checksums = true;
    let mut label_modified_at = None;
    let manifest = read_manifest(file, &mut |file: ManifestFile| {
        let path = file.path.as_str();
        if path == "backup_label" {
            label_modified_at = file.modified_at;
        }
        if is_exempt(path) {
            return Ok(());
        }
        let corrupt = |reason: String| Err(RepositoryError::corrupt(path, reason));
        let Some((index, size_bytes)) = content.tree.find_file(path) else {
            return Err(content.lacks(path));
        };
        if size_bytes != file.size_bytes {
            let told = file.size_bytes;
            return corrupt(format!("has {size_bytes} bytes, but {told} in {MANIFEST}"));
        }
        match seen.get_mut(index.0 as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return corrupt(format!("is in {MANIFEST} twice")),
        }
        match &file.checksum {
            None => all_have_checksums = false,
            Some(checksum) if expected.set(index, checksum) => {}
            Some(_) => return corrupt(format!("{MANIFEST} has more checksums than can be held")),
        }
        Ok(())
    })?;
    for (index, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
        let file = FileIndex(u32::try_from(index).unwrap_or(u32::MAX));
        let (path, _) = content.describe(file)?;
        if !is_exempt(path) {
            return Err(RepositoryError::corrupt(
                path,
                format!("is in the backup, but not in {MANIFEST}"),
            ));
        }
    }
    let expected = check_empty_files(content, expected)?;
    Ok(Listed {
        manifest,
        expected,
        all_have_checksums,
        label_modified_at,
    })
}

/// An empty file is never read, so its checksum is compared now.
fn check_empty_files(content: &Content, expected: Expected) -> Result<Expected, RepositoryError> {
    let verifier = Verifier::new(expected, 1);
    for index in 0..content.tree.file_count() {
        let file = FileIndex(u32::try_from(index).unwrap_or(u32::MAX));
        let (path, size_bytes) = content.describe(file)?;
        if size_bytes == 0 && verifier.feed(file, 0, 0, &[]) == Standing::Corrupt {
            return Err(RepositoryError::corrupt(
                path,
                format!("is empty, but not in {MANIFEST}"),
            ));
        }
    }
    Ok(verifier.into_expected())
}
