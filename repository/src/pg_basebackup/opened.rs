//! Opening one backup of either shape, and reading from it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plain::{PlainFiles, scan_plain};
use super::tar::{TarFiles, compressed_archives, scan_tar};
use crate::backup::{Backup, CorruptFile};
use crate::beneath::{open_file, open_root, read_pages_at};
use crate::checksums::{Standing, Verifier};
use crate::decoded::Identity;
use crate::handles::Handles;
use crate::restore_point::{BackupFormat, RestorePoint};
use crate::tree::{EntryKind, FileIndex, Location, Tree, TreeBuilder};
use crate::{OpenOptions, RepositoryError};

mod check;
mod damaged;
mod outline;

pub(crate) use outline::describe_backup;

/// Where a backup is.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The repository's directory, below which links may lead.
    pub(crate) repository: &'a Path,
    /// The backup's directory.
    pub(crate) path: PathBuf,
    /// Its label.
    pub(crate) label: String,
}

/// Names of the archive of the data directory.
const BASE_ARCHIVES: [&str; 5] = [
    "base.tar",
    "base.tar.gz",
    "base.tgz",
    "base.tar.lz4",
    "base.tar.zst",
];

/// Whether a directory has what shows a backup, whole or not.
pub(crate) fn looks_like_a_backup(path: &Path) -> bool {
    const SIGNS: [&str; 4] = [
        "backup_label",
        "backup_manifest",
        "backup_manifest.tmp",
        "PG_VERSION",
    ];
    SIGNS
        .iter()
        .chain(&BASE_ARCHIVES)
        .any(|sign| path.join(sign).symlink_metadata().is_ok())
}

/// Opens a backup. One that has to be decoded for it, and is open already, is shared.
pub(crate) fn open_backup(
    place: &Place<'_>,
    options: &OpenOptions,
) -> Result<Arc<dyn Backup>, RepositoryError> {
    let open = || open_anew(place, options);
    match (&options.decoded, compressed_identity(place)) {
        (Some(store), Some(identity)) => store.shared().get(identity, open),
        _ => open(),
    }
}

/// What a backup with compressed archives is on disk; none for others, and where something is wrong, for which opening it has the words.
fn compressed_identity(place: &Place<'_>) -> Option<Identity> {
    if place.path.join("PG_VERSION").symlink_metadata().is_ok() {
        return None;
    }
    let mut identity = Identity::new(&place.label);
    for name in compressed_archives(&place.path).ok()?? {
        let metadata = place.path.join(&name).symlink_metadata().ok()?;
        identity.add(&name, &metadata);
    }
    let manifest = place.path.join(super::MANIFEST).symlink_metadata();
    if let Ok(metadata) = manifest {
        identity.add(super::MANIFEST, &metadata);
    }
    Some(identity)
}

/// Opens a backup, checks it as far as that goes without reading its contents.
fn open_anew(place: &Place<'_>, options: &OpenOptions) -> Result<Arc<dyn Backup>, RepositoryError> {
    let is = |name: &str| place.path.join(name).symlink_metadata().is_ok();
    if is("backup_manifest.tmp") {
        return Err(RepositoryError::unsupported(
            "backup_manifest.tmp",
            "shows that the backup is still being written, or was never finished",
            "wait until pg_basebackup has ended, or use another backup",
        ));
    }
    let is_tar = !is("PG_VERSION") && BASE_ARCHIVES.iter().any(|name| is(name));
    let mut tree = TreeBuilder::new(options.limits);
    let (files, links, format) = if is_tar {
        let scan = scan_tar(&place.path, options, &mut tree)?;
        let format = match scan.files.codec() {
            None => BackupFormat::PgBasebackupTar,
            Some(codec) => BackupFormat::PgBasebackupCompressedTar(codec),
        };
        (Files::Tar(scan.files), scan.links, format)
    } else {
        let scan = scan_plain(place, options, &mut tree)?;
        (
            Files::Plain(scan.files),
            scan.links,
            BackupFormat::PgBasebackupPlain,
        )
    };
    let (tree, locations) = tree.finish()?;
    let content = Content {
        tree,
        locations,
        files,
        handles: Handles::new(options.limits.open_file_count),
    };
    let manifest = open_manifest(&place.path)?;
    let checked = check::check(&content, links, manifest, place, format);
    let checked = checked.map_err(|error| content.blame_damage(error))?;
    let backup = OpenedBackup {
        content,
        restore_point: checked.restore_point,
        verifier: Verifier::new(checked.expected, options.limits.checksum_piece_count),
    };
    backup.settle_damaged()?;
    Ok(Arc::new(backup))
}

/// When a backup was begun, as its label says; `None` where only opening it tells.
pub(crate) fn started_at(place: &Place<'_>) -> Option<jiff::Timestamp> {
    let root = open_root(&place.path).ok()?;
    let Ok(file) = open_file(root.as_fd(), "backup_label") else {
        return outline::started_at(place);
    };
    let mut label = Vec::new();
    file.take(super::SMALL_FILE_BYTES_MAX)
        .read_to_end(&mut label)
        .ok()?;
    super::parse_backup_label(&label).ok()?.started_at
}

fn open_manifest(path: &Path) -> Result<Option<File>, RepositoryError> {
    let name = super::MANIFEST;
    let opened = open_root(path).and_then(|root| open_file(root.as_fd(), name));
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RepositoryError::unreadable(name, "open", error)),
    }
}

#[derive(Debug)]
enum Files {
    Plain(PlainFiles),
    Tar(TarFiles),
}

/// A tree and where its bytes are.
#[derive(Debug)]
struct Content {
    tree: Tree,
    locations: Vec<Location>,
    files: Files,
    handles: Handles<u32>,
}

impl Content {
    /// The path and size of a file.
    fn describe(&self, file: FileIndex) -> Result<(&str, u64), RepositoryError> {
        match self.tree.file(file) {
            Some(entry) => match entry.kind {
                EntryKind::File { size_bytes, .. } => Ok((entry.path, size_bytes)),
                EntryKind::Directory => Ok((entry.path, 0)),
            },
            None => Err(RepositoryError::corrupt(
                format!("file number {}", file.0),
                "the backup has no such file",
            )),
        }
    }

    /// Reads without counting towards a checksum.
    fn read_at(
        &self,
        file: FileIndex,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let (path, size_bytes) = self.describe(file)?;
        let left = usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
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
                let open = || open_unchanged(files, location.source, path, size_bytes);
                let handle = self.handles.get(file.0, open)?;
                let read = read_pages_at(&handle, offset, buffer);
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

    /// Reads a small file whole; none if there is no such file.
    fn read_small(&self, path: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
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

fn open_unchanged(
    files: &PlainFiles,
    source: u32,
    path: &str,
    size_bytes: u64,
) -> Result<File, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(path, "open", error);
    let file = files.open(source, path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?.len();
    if found != size_bytes {
        let reason = format!(
            "its size has changed from {size_bytes} to {found} bytes since the backup was opened"
        );
        return Err(RepositoryError::corrupt(path, reason));
    }
    Ok(file)
}

#[derive(Debug)]
struct OpenedBackup {
    content: Content,
    restore_point: RestorePoint,
    verifier: Verifier,
}

impl OpenedBackup {
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
}

impl Backup for OpenedBackup {
    fn restore_point(&self) -> &RestorePoint {
        &self.restore_point
    }

    fn tree(&self) -> &Tree {
        &self.content.tree
    }

    fn read_at(
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

    fn corrupt_files(&self) -> Vec<CorruptFile> {
        let reason = |file| self.corrupt(file).to_string();
        let corrupt = self.verifier.corrupt().into_iter();
        corrupt
            .map(|file| CorruptFile {
                file,
                reason: reason(file),
            })
            .collect()
    }

    fn standing(&self, file: FileIndex) -> Standing {
        self.verifier.standing(file)
    }
}
