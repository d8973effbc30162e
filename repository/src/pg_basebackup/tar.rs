//! A backup in tar archives: `base.tar`, `<oid>.tar` for each tablespace, `pg_wal.tar`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::Dir;

use super::tar_index::{Member, MemberKind, read_tar_index};
use crate::beneath::{SizedFile, open_file, open_root};
use crate::name::parse_oid;
use crate::restore_point::Tablespace;
use crate::tree::{Found, Location, TreeBuilder};
use crate::{OpenOptions, RepositoryError};

/// The archives of a backup, in the order of [`Location::source`].
#[derive(Debug)]
pub(crate) struct TarFiles {
    directory: OwnedFd,
    archives: Vec<Archive>,
}

#[derive(Debug)]
pub(crate) struct Archive {
    pub(crate) name: String,
    size_bytes: u64,
}

/// What a pass over the archives gives.
#[derive(Debug)]
pub(crate) struct TarScan {
    pub(crate) files: TarFiles,
    /// Tablespaces by links in `base.tar`; where there is none, the location is empty.
    pub(crate) links: Vec<Tablespace>,
}

impl TarFiles {
    /// Opens an archive, if it is still the one that was indexed.
    pub(crate) fn open(&self, source: u32) -> Result<File, RepositoryError> {
        let archive = self.archives.get(source as usize);
        let archive = archive
            .ok_or_else(|| RepositoryError::corrupt("base.tar", "has no such archive beside it"))?;
        let name = archive.name.as_str();
        let (file, size_bytes) = open_sized(&self.directory, name)?;
        if size_bytes != archive.size_bytes {
            return Err(RepositoryError::corrupt(
                name,
                "its size has changed since the backup was opened",
            ));
        }
        Ok(file)
    }
}

fn open_sized(directory: &OwnedFd, name: &str) -> Result<(File, u64), RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(name, "open archive", error);
    let file = open_file(directory.as_fd(), name).map_err(unreadable)?;
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    Ok((file, size_bytes))
}

/// Reads the headers of all archives of a backup; adds all files to `tree`.
pub(crate) fn scan_tar(
    path: &Path,
    options: &OpenOptions,
    tree: &mut TreeBuilder,
) -> Result<TarScan, RepositoryError> {
    let shown = path.display().to_string();
    let directory = open_root(path);
    let directory =
        directory.map_err(|error| RepositoryError::unreadable(shown, "open directory", error))?;
    let mut archives = Vec::new();
    let mut links: Vec<Tablespace> = Vec::new();
    for name in archive_names(&directory)? {
        let (file, size_bytes) = open_sized(&directory, &name)?;
        let source = u32::try_from(archives.len()).unwrap_or(u32::MAX);
        let stem = name.strip_suffix(".tar").unwrap_or(&name);
        let oid = parse_oid(stem);
        let prefix = match (stem, oid) {
            ("pg_wal", _) => "pg_wal/".to_owned(),
            (_, Some(oid)) => format!("pg_tblspc/{oid}/"),
            _ => String::new(),
        };
        if let Some(oid) = oid {
            note_tablespace(&mut links, oid, String::new());
            let path = format!("pg_tblspc/{oid}");
            add(tree, &path, None, 0o700, 0, Location { source, offset: 0 })?;
        }
        let mut sized = SizedFile {
            file: &file,
            size_bytes,
        };
        read_tar_index(&mut sized, &name, &options.limits, &mut |member| {
            let Member {
                name: member_name,
                kind,
                mode,
                modified_at_s,
                offset,
            } = member;
            let path = format!("{prefix}{member_name}");
            let location = Location { source, offset };
            match kind {
                MemberKind::File(size) => {
                    add(tree, &path, Some(size), mode, modified_at_s, location)
                }
                MemberKind::Directory => add(tree, &path, None, mode, modified_at_s, location),
                MemberKind::Symlink(target) => {
                    let oid = prefix
                        .is_empty()
                        .then(|| parse_oid(path.strip_prefix("pg_tblspc/")?))
                        .flatten();
                    let oid = oid.ok_or_else(|| {
                        let reason = format!(
                            "is a symbolic link in {name}, which has no place in a backup here"
                        );
                        RepositoryError::corrupt(&path, reason)
                    })?;
                    note_tablespace(&mut links, oid, target);
                    Ok(())
                }
            }
        })?;
        archives.push(Archive { name, size_bytes });
    }
    Ok(TarScan {
        files: TarFiles {
            directory,
            archives,
        },
        links,
    })
}

fn add(
    tree: &mut TreeBuilder,
    path: &str,
    size_bytes: Option<u64>,
    mode: u32,
    modified_at_s: i64,
    location: Location,
) -> Result<(), RepositoryError> {
    tree.add(Found {
        path,
        size_bytes,
        mode,
        modified_at_s,
        location,
    })
}

fn note_tablespace(links: &mut Vec<Tablespace>, oid: u32, location: String) {
    match links.iter_mut().find(|known| known.oid == oid) {
        Some(known) if known.location.is_empty() => known.location = location,
        Some(_) => {}
        None => links.push(Tablespace { oid, location }),
    }
}

/// The archives in the directory, `base.tar` first; compressed ones are refused.
fn archive_names(directory: &OwnedFd) -> Result<Vec<String>, RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(".", "list directory", error);
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // Names that are not UTF-8 are no archives of a backup, and nothing else here is of interest.
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let Some((stem, extension)) = name.split_once('.') else {
            continue;
        };
        if stem != "base" && stem != "pg_wal" && parse_oid(stem).is_none() {
            continue;
        }
        match extension {
            "tar" => names.push(name.to_owned()),
            "tar.gz" | "tar.lz4" | "tar.zst" | "tgz" => return Err(compressed(name)),
            _ => {}
        }
    }
    names.sort_by_key(|name| (name != "base.tar", name.clone()));
    Ok(names)
}

fn compressed(name: &str) -> RepositoryError {
    RepositoryError::unsupported(
        name,
        "is compressed, and compressed archives cannot be read yet",
        "unpack it beside itself (gunzip, unlz4, unzstd), or take backups with --compress=none",
    )
}
