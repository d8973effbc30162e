//! Opening one backup of either shape, and reading from it.

use std::sync::Arc;

use super::combined::Combined;
use super::control::{CONTROL, CONTROL_BYTES, ControlFacts, read_control};
use super::place::Place;
use super::plain::{PlainFiles, scan_plain};
use super::plain_objects::is_listed;
use super::siblings::Siblings;
use super::tar::{TarFiles, compressed_archives, scan_tar};
use crate::backup::{Backup, CorruptFile};
use crate::checksums::{Standing, Verifier};
use crate::decoded::Identity;
use crate::handles::Handles;
use crate::restore_point::{BackupFormat, RestorePoint, Tablespace};
use crate::storage::StorageFile;
use crate::tree::{EntryKind, FileIndex, Location, Tree, TreeBuilder, within_file};
use crate::wal_archive::has_wal;
use crate::{OpenOptions, RepositoryError};

mod check;
mod damaged;
mod outline;

pub(crate) use outline::{began_in_archive, known_of_archive, outline_of};

use check::no_control;
pub(crate) use check::{Facts, segment_name};

/// Where the WAL is that recovery needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wal {
    /// In the backup; without it, the backup is refused.
    InBackup,
    /// In the backup, or nowhere in it: then the caller sees to it.
    InBackupIfAny,
    /// In an archive: the caller sees to it.
    Elsewhere,
}

/// Opens a backup, and those among `siblings` that it stands on; checks them as far as that goes without reading their contents.
/// One that has to be decoded for it, and is open already, is shared.
pub(crate) fn open_backup(
    place: &Place,
    siblings: &Siblings<'_>,
    wal: Wal,
    options: &OpenOptions,
) -> Result<Arc<dyn Backup>, RepositoryError> {
    let open = || open_anew(place, siblings, wal, options);
    match (&options.decoded, compressed_identity(place, wal)) {
        (Some(store), Some(identity)) => store.shared().get(identity, open),
        _ => open(),
    }
}

/// What a backup with compressed archives is on disk; none for others, and where something is wrong, for which opening it has the words.
fn compressed_identity(place: &Place, wal: Wal) -> Option<Identity> {
    if place.has("PG_VERSION") {
        return None;
    }
    // What was checked of its WAL is not the same for everybody.
    let mut identity = Identity::new(&format!("{} {wal:?}", place.label));
    let of = |name: &str| place.repository.identity(&place.path_of(name));
    for name in compressed_archives(place).ok()?? {
        identity.add(&name, of(&name).ok()?);
    }
    if let Ok(manifest) = of(super::MANIFEST) {
        identity.add(super::MANIFEST, manifest);
    }
    Some(identity)
}

fn open_anew(
    place: &Place,
    siblings: &Siblings<'_>,
    wal: Wal,
    options: &OpenOptions,
) -> Result<Arc<dyn Backup>, RepositoryError> {
    let last = siblings.opened_last();
    let stored = last.get(&place.label, || Stored::open(place, options))?;
    let is_needed = match wal {
        Wal::InBackup => true,
        Wal::InBackupIfAny => has_wal(&stored.layer.content.tree),
        Wal::Elsewhere => false,
    };
    if is_needed {
        stored.check_wal()?;
    }
    match stored.facts.begins.incremental_from {
        None => {
            last.keep([(place.label.clone(), Arc::clone(&stored))]);
            Ok(Arc::new(OpenedBackup {
                restore_point: stored.restore_point(),
                stored,
            }))
        }
        Some(_) => {
            let combined = Combined::open(stored, siblings, options)?;
            Ok(Arc::new(combined))
        }
    }
}

/// One backup as it is stored, without those that it may stand on.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) layer: Layer,
    pub(crate) facts: Facts,
}

impl Stored {
    pub(crate) fn open(place: &Place, options: &OpenOptions) -> Result<Self, RepositoryError> {
        if place.has("backup_manifest.tmp") {
            return Err(RepositoryError::unsupported(
                "backup_manifest.tmp",
                "shows that the backup is still being written, or was never finished",
                "wait until pg_basebackup has ended, or use another backup",
            ));
        }
        let (content, links) = Content::scan(place, options)?;
        let manifest = place.manifest()?;
        let checked = check::check(&content, links, manifest);
        let (facts, expected) = checked.map_err(|error| content.blame_damage(error))?;
        let layer = Layer {
            label: place.label.clone(),
            content,
            verifier: Verifier::new(expected, options.limits.checksum_piece_count),
        };
        layer.settle_damaged()?;
        Ok(Self { layer, facts })
    }

    /// What the backup tells of itself, as if it stood on no other.
    pub(crate) fn restore_point(&self) -> RestorePoint {
        let tree = &self.layer.content.tree;
        self.facts.restore_point(&self.layer.label, tree)
    }

    /// Refuses a backup without the WAL that its recovery needs.
    pub(crate) fn check_wal(&self) -> Result<(), RepositoryError> {
        check::check_wal(&self.layer.content, &self.facts)
    }

    /// What `pg_control` tells.
    pub(crate) fn control(&self) -> Result<ControlFacts, RepositoryError> {
        self.layer.content.control()
    }
}

#[derive(Debug)]
enum Files {
    Plain(PlainFiles),
    Tar(TarFiles),
}

/// A tree and where its bytes are.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) tree: Tree,
    locations: Vec<Location>,
    files: Files,
    handles: Handles<u32>,
}

impl Content {
    /// Looks through a backup's directory or archives; gives its tablespaces by their links, too.
    pub(crate) fn scan(
        place: &Place,
        options: &OpenOptions,
    ) -> Result<(Self, Vec<Tablespace>), RepositoryError> {
        let mut tree = TreeBuilder::new(options.limits);
        let (files, links) = if place.is_tar() {
            let scan = scan_tar(place, options, &mut tree)?;
            (Files::Tar(scan.files), scan.links)
        } else {
            let scan = scan_plain(place, options, &mut tree)?;
            (Files::Plain(scan.files), scan.links)
        };
        let (tree, locations) = tree.finish()?;
        let content = Self {
            tree,
            locations,
            files,
            handles: Handles::new(options.limits.open_file_count),
        };
        Ok((content, links))
    }

    /// Keeps fewer files open from now on.
    pub(crate) fn keep_open(&self, count_max: usize) {
        self.handles.keep_at_most(count_max);
    }

    /// Whether it is a plain backup without the links and empty directories that it had.
    fn is_plain_in_objects(&self) -> bool {
        match &self.files {
            Files::Plain(files) => files.is_in_objects(),
            Files::Tar(_) => false,
        }
    }

    fn format(&self) -> BackupFormat {
        let Files::Tar(files) = &self.files else {
            return BackupFormat::PgBasebackupPlain;
        };
        match files.codec() {
            None => BackupFormat::PgBasebackupTar,
            Some(codec) => BackupFormat::PgBasebackupCompressedTar(codec),
        }
    }

    /// What `pg_control` tells.
    pub(crate) fn control(&self) -> Result<ControlFacts, RepositoryError> {
        let mut beginning = [0; CONTROL_BYTES];
        let (file, _) = self.tree.find_file(CONTROL).ok_or_else(no_control)?;
        self.read_at(file, 0, &mut beginning)?;
        read_control(&beginning)
    }

    /// The path and size of a file.
    pub(crate) fn describe(&self, file: FileIndex) -> Result<(&str, u64), RepositoryError> {
        self.tree.describe(file)
    }

    /// Reads without counting towards a checksum.
    pub(crate) fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let (path, size_bytes) = self.describe(file)?;
        let buffer = within_file(size_bytes, offset, buffer);
        let wanted = buffer.len();
        if buffer.is_empty() {
            return Ok(0);
        }
        let location = self
            .locations
            .get(file.0 as usize)
            .copied()
            .unwrap_or_default();
        let read = match &self.files {
            Files::Plain(files) => {
                let open = || self.open_unchanged(files, file, location);
                let handle = self.handles.get(file.0, path, open)?;
                let read = handle.read_pages_at(offset, buffer);
                read.map_err(|error| RepositoryError::unreadable(path, "read", error))?
            }
            Files::Tar(files) => {
                let location = Location {
                    offset: location.offset + offset,
                    ..location
                };
                files.read_at(&self.handles, path, location, buffer)?
            }
        };
        if read < wanted {
            return Err(RepositoryError::corrupt(
                path,
                "has become shorter since the backup was opened",
            ));
        }
        Ok(read)
    }

    fn open_unchanged(
        &self,
        files: &PlainFiles,
        file: FileIndex,
        location: Location,
    ) -> Result<StorageFile, RepositoryError> {
        let (path, size_bytes) = self.describe(file)?;
        let unreadable = |error| RepositoryError::unreadable(path, "open", error);
        let opened = files.open(location.source, path).map_err(unreadable)?;
        let found = opened.size_bytes().map_err(unreadable)?;
        if found != size_bytes {
            let reason = format!(
                "its size has changed from {size_bytes} to {found} bytes since the backup was opened"
            );
            return Err(RepositoryError::corrupt(path, reason));
        }
        let modified_at_s = self.tree.file(file).map_or(0, |entry| entry.modified_at_s);
        match is_listed(&opened, location, modified_at_s) {
            true => Ok(opened),
            false => Err(unreadable(opened.changed())),
        }
    }

    /// Reads a small file whole; none if there is no such file.
    pub(crate) fn read_small(&self, path: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some((file, size_bytes)) = self.tree.find_file(path) else {
            return Ok(None);
        };
        if size_bytes > super::SMALL_FILE_BYTES_MAX {
            return Err(RepositoryError::corrupt(
                path,
                "is far larger than such a file can be",
            ));
        }
        let mut content = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
        self.read_at(file, 0, &mut content)?;
        Ok(Some(content))
    }
}

/// The files of one backup, counted towards their checksums as they are read.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The backup's label.
    pub(crate) label: String,
    pub(crate) content: Content,
    verifier: Verifier,
}

impl Layer {
    fn corrupt(&self, file: FileIndex) -> RepositoryError {
        let path = self
            .content
            .describe(file)
            .map_or_else(|_| String::new(), |(path, _)| path.to_owned());
        match self.damage(file) {
            Some((archive, reason)) if !self.verifier.has_checksum(file) => {
                let reason = format!(
                    "has no checksum in backup_manifest and is in {archive}, which {reason}"
                );
                RepositoryError::corrupt(path, reason)
            }
            _ => {
                let reason =
                    "its content does not have the checksum that backup_manifest has for it";
                RepositoryError::corrupt(path, reason)
            }
        }
    }

    pub(crate) fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        if self.verifier.standing(file) == Standing::Corrupt {
            return Err(self.corrupt(file));
        }
        let count = self.content.read_at(file, offset, buffer)?;
        let (_, size_bytes) = self.content.describe(file)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        match self.verifier.feed(file, size_bytes, offset, bytes) {
            Standing::Corrupt => Err(self.corrupt(file)),
            Standing::Unknown | Standing::Pending | Standing::Verified => Ok(count),
        }
    }

    /// Reads a stored file from its beginning, until its standing is known or it ends.
    pub(crate) fn read_through(
        &self,
        file: FileIndex,
        buffer: &mut [u8],
    ) -> Result<(), RepositoryError> {
        let mut offset = 0;
        while self.standing(file) == Standing::Pending {
            match self.read_at(file, offset, buffer)? {
                0 => break,
                count => offset += count as u64,
            }
        }
        Ok(())
    }

    pub(crate) fn corrupt_files(&self) -> Vec<CorruptFile> {
        let reason = |file| self.corrupt(file).to_string();
        let corrupt = self.verifier.corrupt().into_iter();
        corrupt
            .map(|file| CorruptFile {
                file,
                reason: reason(file),
            })
            .collect()
    }

    pub(crate) fn standing(&self, file: FileIndex) -> Standing {
        self.verifier.standing(file)
    }
}

/// A backup that is shown as it is stored.
#[derive(Debug)]
struct OpenedBackup {
    stored: Arc<Stored>,
    restore_point: RestorePoint,
}

impl Backup for OpenedBackup {
    fn restore_point(&self) -> &RestorePoint {
        &self.restore_point
    }

    fn tree(&self) -> &Tree {
        &self.stored.layer.content.tree
    }

    fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        self.stored.layer.read_at(file, offset, buffer)
    }

    fn corrupt_files(&self) -> Vec<CorruptFile> {
        self.stored.layer.corrupt_files()
    }

    fn standing(&self, file: FileIndex) -> Standing {
        self.stored.layer.standing(file)
    }
}
