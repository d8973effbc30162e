//! `backup.manifest`: what a backup is, and where the bytes of each of its files are. It may have millions of files, so it
//! is read as a stream and kept compactly (`info/manifest` of pgBackRest).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::compression::Compression;
use super::info_file::{InfoLine, read_info};
use super::label::label_kind;
use super::passphrase::Passphrase;
use crate::tree::{DEFAULT_MODE, Found, Location, TreeBuilder};
use crate::{BackupKind, Limits, Lsn, RepositoryError, Tablespace};

mod entry;
mod head;

pub(crate) use entry::{NO_REFERENCE, StoredFile, parse_sha1};
use head::HeadLines;
pub(crate) use head::{BackupWal, ManifestHead};

/// A manifest, read.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) head: ManifestHead,
    /// Everything in the backup; `Location::source` of a file is its place in `files`.
    pub(crate) tree: TreeBuilder,
    pub(crate) files: Vec<StoredFile>,
    /// The names in `pg_wal`.
    pub(crate) wal_files: BTreeSet<String>,
    /// Whether every file that is not empty has a checksum.
    pub(crate) all_have_checksums: bool,
}

/// Reads a manifest; `file` is its name for errors.
pub(crate) fn read_manifest(
    source: impl Read,
    file: &str,
    limits: &Limits,
) -> Result<Manifest, RepositoryError> {
    let mut reader = Reader {
        file,
        head: HeadLines::default(),
        references: References::default(),
        tree: TreeBuilder::new(*limits),
        files: Vec::new(),
        wal_files: BTreeSet::new(),
        all_have_checksums: true,
    };
    let mut modes: BTreeMap<&str, u32> = BTreeMap::new();
    let version = read_info(source, file, &mut |line| match line.section {
        "target:file" => reader.file(line),
        "target:path" => reader.directory(line),
        "target:file:default" | "target:path:default" => {
            if line.key == "mode" {
                let of = match line.section {
                    "target:file:default" => "file",
                    _ => "path",
                };
                modes.insert(of, entry::parse_mode(&line.parse::<String>(file)?, file)?);
            }
            Ok(())
        }
        _ => reader.head.take(line, file),
    })?;
    let mode = |of: &str, usual: u32| modes.get(of).copied().unwrap_or(usual);
    reader
        .tree
        .fill_modes(mode("file", 0o600), mode("path", 0o700));
    let head = reader
        .head
        .finish(reader.references.labels, version, file)?;
    Ok(Manifest {
        head,
        tree: reader.tree,
        files: reader.files,
        wal_files: reader.wal_files,
        all_have_checksums: reader.all_have_checksums,
    })
}

/// Whether bytes are a manifest whose files make a tree; for fuzzing.
pub fn manifest_is_sound(bytes: &[u8]) -> bool {
    read_manifest(bytes, "backup.manifest", &Limits::default())
        .and_then(|manifest| manifest.tree.finish())
        .is_ok()
}

struct Reader<'a> {
    file: &'a str,
    head: HeadLines,
    references: References,
    tree: TreeBuilder,
    files: Vec<StoredFile>,
    wal_files: BTreeSet<String>,
    all_have_checksums: bool,
}

/// Labels of other backups, in the order in which blocks number them.
#[derive(Debug, Default)]
struct References {
    labels: Vec<String>,
    /// Files of one backup often stand together.
    last: usize,
}

impl Reader<'_> {
    fn file(&mut self, line: InfoLine<'_>) -> Result<(), RepositoryError> {
        let Some(path) = shown_path(line.key)? else {
            return Err(RepositoryError::corrupt(line.key, "is listed as a file"));
        };
        let raw: entry::RawFile<'_> = serde_json::from_str(line.value).map_err(|error| {
            RepositoryError::corrupt(self.file, format!("[target:file] {path}: {error}"))
        })?;
        let reference = match raw.reference {
            None => NO_REFERENCE,
            Some(label) => self.reference(label, path)?,
        };
        let stored = raw.checked(path, reference)?;
        let source = u32::try_from(self.files.len())
            .map_err(|_| RepositoryError::corrupt(path, "is one file too many"))?;
        self.tree.add(Found {
            path,
            size_bytes: Some(raw.size),
            mode: match raw.mode {
                None => DEFAULT_MODE,
                Some(mode) => entry::parse_mode(mode, path)?,
            },
            modified_at_s: raw.timestamp,
            location: Location { source, offset: 0 },
        })?;
        if let Some(name) = path.strip_prefix("pg_wal/") {
            self.wal_files.insert(name.to_owned());
        }
        self.all_have_checksums &= stored.has_checksum() || raw.size == 0;
        self.files.push(stored);
        Ok(())
    }

    fn directory(&mut self, line: InfoLine<'_>) -> Result<(), RepositoryError> {
        let Some(path) = shown_path(line.key)? else {
            return Ok(());
        };
        let raw: entry::RawDirectory<'_> = serde_json::from_str(line.value).map_err(|error| {
            RepositoryError::corrupt(self.file, format!("[target:path] {path}: {error}"))
        })?;
        self.tree.add(Found {
            path,
            size_bytes: None,
            mode: match raw.mode {
                None => DEFAULT_MODE,
                Some(mode) => entry::parse_mode(mode, path)?,
            },
            modified_at_s: 0,
            location: Location::default(),
        })
    }

    /// The number of a backup that a file is taken from. The list stands in `[backup]`; manifests older than pgBackRest
    /// 2.42 have none, and then it is made as the backups appear.
    fn reference(&mut self, label: &str, path: &str) -> Result<u16, RepositoryError> {
        let corrupt = |reason: String| RepositoryError::corrupt(path, reason);
        if let Some(listed) = self.head.take_references() {
            self.references.labels = listed;
        }
        let labels = &mut self.references.labels;
        if labels.get(self.references.last).map(String::as_str) != Some(label) {
            let known = labels.iter().position(|known| known == label);
            self.references.last = match known {
                Some(at) => at,
                None if self.head.has_references() => {
                    return Err(corrupt(format!(
                        "is taken from backup {label:?}, which is not in the manifest's list"
                    )));
                }
                None if label_kind(label).is_none() => {
                    return Err(corrupt(format!(
                        "is taken from {label:?}, which is no label of a backup"
                    )));
                }
                None => {
                    labels.push(label.to_owned());
                    labels.len() - 1
                }
            };
        }
        u16::try_from(self.references.last)
            .ok()
            .filter(|number| *number != NO_REFERENCE)
            .ok_or_else(|| corrupt("stands on too many backups".into()))
    }
}

/// A name in the manifest, as a path below PGDATA; none for the data directory itself and the directory that stands
/// for all tablespaces.
fn shown_path(name: &str) -> Result<Option<&str>, RepositoryError> {
    if matches!(name, "pg_data" | "pg_tblspc") {
        return Ok(None);
    }
    if name.starts_with("pg_tblspc/") {
        return Ok(Some(name));
    }
    match name.strip_prefix("pg_data/") {
        Some(path) if path.starts_with("pg_tblspc/") => Err(RepositoryError::unsupported(
            path,
            "is in a tablespace inside of the data directory (allow_in_place_tablespaces)",
            "restore this backup with pgbackrest restore",
        )),
        Some(path) => Ok(Some(path)),
        None => Err(RepositoryError::corrupt(
            name,
            "is neither in pg_data nor in pg_tblspc",
        )),
    }
}

/// The name in the manifest, and in the repository, of a path below PGDATA.
pub(crate) fn stored_name(path: &str) -> String {
    match path.starts_with("pg_tblspc/") {
        true => path.to_owned(),
        false => format!("pg_data/{path}"),
    }
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
