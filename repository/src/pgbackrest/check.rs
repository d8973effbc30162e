//! Opening one backup, and what is checked of it before it is believed to be one.

use std::sync::Arc;

use super::archive::{ArchiveListing, ArchivedWal, WalRange, find_wal, segment_name};
use super::backup_info::{BackupInfo, ListedBackup};
use super::content::{Content, Parts};
use super::layout::slow_layout;
use super::manifest::{BackupWal, Manifest, StoredFile, read_manifest};
use super::opened::OpenedBackup;
use super::stanza::Stanza;
use crate::backup::Backup;
use crate::checksums::{Algorithm, Checksum, Expected, Verifier};
use crate::pg_basebackup::{SMALL_FILE_BYTES_MAX, parse_backup_label};
use crate::tree::{FileIndex, Found, Location};
use crate::{
    BackupFormat, DecodedStore, Limits, Lsn, RecoverableInterval, RepositoryError, RestorePoint,
    Verification,
};

/// The first version whose block incremental backups are in the format that stayed.
const BLOCKS_SINCE: (u32, u32) = (2, 46);
/// The version whose manifests can lose block maps.
const MAPS_LOST_IN: (u32, u32) = (2, 46);

/// Where a backup is, and how it is opened.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) stanza: &'a Arc<Stanza>,
    pub(super) info: &'a BackupInfo,
    pub(super) label: &'a str,
    pub(super) listed: &'a ListedBackup,
    pub(super) limits: Limits,
    pub(super) store: &'a Arc<DecodedStore>,
}

impl Opening<'_> {
    /// Opens it; `listing` keeps what was looked up in the archive, for others that are opened for the same answer.
    pub(super) fn open(
        &self,
        listing: &mut ArchiveListing,
    ) -> Result<Arc<dyn Backup>, RepositoryError> {
        let path = self
            .stanza
            .backup_path(&format!("{}/backup.manifest", self.label));
        let mut manifest =
            self.stanza
                .info(&path, self.info.passphrase.as_ref(), &|source, file| {
                    read_manifest(source, file, &self.limits)
                })?;
        self.check_head(&manifest, &path)?;
        self.check_references(&manifest)?;
        let wal = self.add_wal(&mut manifest, listing)?;
        let Manifest {
            head,
            tree,
            files,
            all_have_checksums,
            ..
        } = manifest;
        let (tree, locations) = tree.finish()?;
        let places = locations.iter().map(|location| location.source).collect();
        let content = Content::new(
            Parts {
                stanza: Arc::clone(self.stanza),
                head,
                tree,
                files,
                places,
                wal,
                store: Arc::clone(self.store),
            },
            self.limits.open_file_count,
        );
        self.check_lost_maps(&content)?;
        let verifier = Verifier::new(
            content.expected_checksums()?,
            self.limits.checksum_piece_count,
        );
        let restore_point = restore_point(&content, all_have_checksums)?;
        let backup = OpenedBackup::new(content, restore_point, verifier);
        check_contents(&backup)?;
        Ok(Arc::new(backup))
    }

    fn check_head(&self, manifest: &Manifest, path: &str) -> Result<(), RepositoryError> {
        let head = &manifest.head;
        let corrupt = |reason: String| Err(RepositoryError::corrupt(path, reason));
        if head.label != self.label {
            return corrupt(format!("is the manifest of backup {}", head.label));
        }
        match self.info.clusters.get(&head.cluster) {
            Some(cluster)
                if self.listed.db_id == head.cluster
                    && cluster.db_system_id == head.system_identifier
                    && cluster.db_version == head.postgresql_version => {}
            _ => {
                let (number, version) = (head.cluster, &head.postgresql_version);
                let identifier = head.system_identifier;
                return corrupt(format!(
                    "is of cluster {number} ({identifier}, PostgreSQL {version}), which backup.info does not have so"
                ));
            }
        }
        Ok(())
    }

    /// Every backup that this one stands on has to be there, and blocks have to be in the format that is known: a block map may
    /// lead into any of these backups.
    fn check_references(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let own = &manifest.head.label;
        let has_blocks = manifest.files.iter().any(StoredFile::is_in_blocks);
        for label in &manifest.head.references {
            if label != own && !super::label::may_stand_on(own, label) {
                let reason = format!("says that it stands on {label}, which cannot be");
                return Err(RepositoryError::corrupt(
                    self.stanza.backup_path(own),
                    reason,
                ));
            }
            let path = self.stanza.backup_path(label);
            let is_there = match self.stanza.has_directory(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                Err(error) => return Err(RepositoryError::unreadable(path, "open", error)),
            };
            let listed = self.info.backups.get(label);
            let Some(listed) = listed.filter(|_| is_there) else {
                let reason = format!("is not in the repository, and backup {own} stands on it");
                return Err(RepositoryError::corrupt(path, reason));
            };
            if has_blocks && listed.tool_version() < BLOCKS_SINCE {
                return Err(RepositoryError::unsupported(
                    path,
                    format!(
                        "was written by pgBackRest {}, whose block incremental backups were a beta of another format",
                        listed.backrest_version
                    ),
                    "use a backup made by pgBackRest 2.46 or later, or one without repo-block",
                ));
            }
        }
        Ok(())
    }

    /// pgBackRest 2.46 could forget block maps; only its own backups and those that stand on them are looked through.
    fn check_lost_maps(&self, content: &Content) -> Result<(), RepositoryError> {
        let labels = content.head().references.iter();
        let mut listed = labels.filter_map(|label| self.info.backups.get(label));
        if !listed.any(|listed| listed.tool_version() == MAPS_LOST_IN) {
            return Ok(());
        }
        for file in 0..content.tree().file_count() {
            content.has_lost_map(FileIndex(u32::try_from(file).unwrap_or(u32::MAX)))?;
        }
        Ok(())
    }

    /// Shows the WAL that recovery needs in `pg_wal`: from the backup if it was made with `--archive-copy`, else from the
    /// archive.
    fn add_wal(
        &self,
        manifest: &mut Manifest,
        listing: &mut ArchiveListing,
    ) -> Result<Option<ArchivedWal>, RepositoryError> {
        let head = &manifest.head;
        if has_own_wal(manifest) {
            return Ok(None);
        }
        let wal = find_wal(
            self.stanza,
            &WalRange {
                archive_id: &format!("{}-{}", head.postgresql_version, head.cluster),
                first_segment: &head.wal.first_segment,
                start_lsn: head.wal.start_lsn,
                stop_lsn: head.wal.stop_lsn,
                system_identifier: head.system_identifier,
            },
            listing,
        )?;
        let modified_at_s = head.stopped_at.map_or(0, jiff::Timestamp::as_second);
        for (number, segment) in wal.segments.iter().enumerate() {
            if manifest.wal_files.contains(&segment.name) {
                continue;
            }
            let path = format!("pg_wal/{}", segment.name);
            let source = u32::try_from(manifest.files.len() + number)
                .map_err(|_| RepositoryError::corrupt(&path, "is one file too many"))?;
            manifest.tree.add(Found {
                path: &path,
                size_bytes: Some(wal.segment_bytes),
                mode: 0o600,
                modified_at_s,
                location: Location { source, offset: 0 },
            })?;
        }
        Ok(Some(wal))
    }
}

/// Whether the backup has all the WAL that it needs. The size of segments is taken from the first one's name, where it
/// shows: with one segment it does not matter.
fn has_own_wal(manifest: &Manifest) -> bool {
    let BackupWal {
        first_segment,
        start_lsn,
        stop_lsn,
    } = &manifest.head.wal;
    if !manifest.wal_files.contains(first_segment) {
        return false;
    }
    let timeline = first_segment.get(..8).unwrap_or_default();
    let sizes = (20..=30).map(|bits| 1_u64 << bits);
    let mut fitting =
        sizes.filter(|size| segment_name(timeline, *start_lsn, *size) == *first_segment);
    fitting.all(|size| {
        let numbers = start_lsn.0 / size..=stop_lsn.0.saturating_sub(1) / size;
        let mut names = numbers.map(|number| segment_name(timeline, Lsn(number * size), size));
        names.all(|name| manifest.wal_files.contains(&name))
    })
}

impl Content {
    /// Checksums of the files that are compared while they are read in pieces.
    fn expected_checksums(&self) -> Result<Expected, RepositoryError> {
        let file_count = usize::try_from(self.tree().file_count()).unwrap_or(usize::MAX);
        let mut expected = Expected::new(file_count);
        for index in 0..file_count {
            let file = FileIndex(u32::try_from(index).unwrap_or(u32::MAX));
            let Some((path, sha1)) = self.counted_checksum(file) else {
                continue;
            };
            let checksum = Checksum::new(Algorithm::Sha1, sha1.to_vec());
            if !checksum.is_some_and(|checksum| expected.set(file, &checksum)) {
                return Err(RepositoryError::corrupt(path, "has one checksum too many"));
            }
        }
        Ok(expected)
    }
}

fn restore_point(
    content: &Content,
    all_have_checksums: bool,
) -> Result<RestorePoint, RepositoryError> {
    let head = content.head();
    let major = head.postgresql_version.parse::<u32>();
    let postgresql_major = major.ok().filter(|major| *major >= 10).ok_or_else(|| {
        let version = &head.postgresql_version;
        RepositoryError::unsupported(
            &head.label,
            format!("is of PostgreSQL {version}, and 10 is the oldest that is known"),
            "use a backup of PostgreSQL 10 or newer",
        )
    })?;
    let others = head.references.iter().filter(|label| **label != head.label);
    Ok(RestorePoint {
        label: head.label.clone(),
        format: BackupFormat::PgBackRest,
        kind: head.kind,
        references: others.cloned().collect(),
        postgresql_major,
        started_at: head.started_at,
        stopped_at: head.stopped_at,
        size_bytes: content.tree().size_bytes(),
        file_count: content.tree().file_count(),
        tablespaces: head.tablespaces.clone(),
        recoverable: RecoverableInterval {
            from_lsn: head.wal.start_lsn,
            to_lsn: Some(head.wal.stop_lsn),
            timeline: head.wal.timeline(),
        },
        system_identifier: Some(head.system_identifier),
        verification: match all_have_checksums {
            true => Verification::Checksums,
            false => Verification::SizesOnly,
        },
        slow_layout: slow_layout(content.large_files()),
    })
}

/// Reads the small files that recovery begins with, and compares them with the manifest.
fn check_contents(backup: &OpenedBackup) -> Result<(), RepositoryError> {
    let point = backup.restore_point();
    let version = read_small(backup, "PG_VERSION")?;
    let version = String::from_utf8_lossy(&version);
    if version.trim_end() != point.postgresql_major.to_string() {
        let reason = format!(
            "says {version:?}, and the manifest {}",
            point.postgresql_major
        );
        return Err(RepositoryError::corrupt("PG_VERSION", reason));
    }
    let label = parse_backup_label(&read_small(backup, "backup_label")?)?;
    if label.start_lsn != point.recoverable.from_lsn || label.timeline != point.recoverable.timeline
    {
        let reason = format!(
            "begins at {} on timeline {}, and the manifest says {} on timeline {}",
            label.start_lsn, label.timeline, point.recoverable.from_lsn, point.recoverable.timeline
        );
        return Err(RepositoryError::corrupt("backup_label", reason));
    }
    if backup.tree().find_file("global/pg_control").is_none() {
        return Err(RepositoryError::corrupt("global/pg_control", "is missing"));
    }
    Ok(())
}

fn read_small(backup: &OpenedBackup, path: &str) -> Result<Vec<u8>, RepositoryError> {
    let found = backup.tree().find_file(path);
    let (file, size_bytes) =
        found.ok_or_else(|| RepositoryError::corrupt(path, "is missing in the manifest"))?;
    if size_bytes > SMALL_FILE_BYTES_MAX {
        let reason = "is far larger than such a file can be";
        return Err(RepositoryError::corrupt(path, reason));
    }
    let mut content = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
    backup.read_at(file, 0, &mut content)?;
    Ok(content)
}
