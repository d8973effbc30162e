//! A plain backup: the data directory as it is, with links for tablespaces and perhaps for `pg_wal`.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, statat};

use super::manifest::MANIFEST;
use super::place::Place;
use super::plain_objects::scan_objects;
use crate::beneath::{open_directory, open_root};
use crate::name::{parse_oid, utf8_name};
use crate::restore_point::Tablespace;
use crate::storage::{Kept, Storage, StorageFile};
use crate::tree::{Found, Location, TreeBuilder};
use crate::{OpenOptions, RepositoryError};

/// Names of a directory that are looked at together, in the order of their inode numbers: file systems keep inodes in that order,
/// and a disk that has to be read for them is read from one end to the other.
const LOOKED_AT_TOGETHER_MAX: usize = 65_536;

/// The directories that a plain backup consists of.
#[derive(Debug)]
pub(crate) struct PlainFiles {
    roots: Vec<Root>,
}

#[derive(Debug)]
pub(super) struct Root {
    pub(super) directory: Storage,
    /// Where its files are shown: `pg_tblspc/16384/`; empty for the data directory.
    pub(super) prefix: String,
}

/// What a look through a plain backup gives.
#[derive(Debug)]
pub(crate) struct PlainScan {
    pub(crate) files: PlainFiles,
    /// Tablespaces by their links.
    pub(crate) links: Vec<Tablespace>,
}

impl PlainFiles {
    pub(super) fn new(roots: Vec<Root>) -> Self {
        Self { roots }
    }

    /// Whether it is in an object store.
    pub(crate) fn is_in_objects(&self) -> bool {
        let data = self.roots.first();
        data.is_some_and(|root| root.directory.is_in_objects())
    }

    /// Opens the file shown at `path`.
    pub(crate) fn open(&self, source: u32, path: &str) -> std::io::Result<StorageFile> {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let root = self.roots.get(source as usize).ok_or_else(gone)?;
        let inside = path.strip_prefix(&root.prefix).ok_or_else(gone)?;
        root.directory.file(inside)
    }
}

/// Looks through the directories, or lists the objects; adds all files to `tree`.
pub(crate) fn scan_plain(
    place: &Place,
    options: &OpenOptions,
    tree: &mut TreeBuilder,
) -> Result<PlainScan, RepositoryError> {
    let data = place.open()?;
    match data.kept() {
        Kept::Objects(_) => scan_objects(place, data, tree),
        Kept::Directory(..) => scan_directories(place, data, options, tree),
    }
}

fn scan_directories(
    place: &Place,
    data: Storage,
    options: &OpenOptions,
    tree: &mut TreeBuilder,
) -> Result<PlainScan, RepositoryError> {
    let mut walk = Walk {
        place,
        options,
        tree,
        links: Vec::new(),
        linked: Vec::new(),
        source: 0,
    };
    walk.root(&data, "")?;
    let mut roots = vec![Root {
        directory: data,
        prefix: String::new(),
    }];
    for beside in &place.tablespaces {
        let path = format!("pg_tblspc/{}", beside.tablespace.oid);
        let unreadable = |error| RepositoryError::unreadable(&path, "open directory", error);
        let opened = place.repository.below(&beside.path).map_err(unreadable)?;
        walk.links.push(beside.tablespace.clone());
        walk.add_linked(path.clone(), opened)?;
    }
    // Links are only found in the data directory itself, so this list does not grow any more.
    for (path, directory) in std::mem::take(&mut walk.linked) {
        walk.source += 1;
        walk.root(&directory, &path)?;
        roots.push(Root {
            directory,
            prefix: format!("{path}/"),
        });
    }
    Ok(PlainScan {
        files: PlainFiles { roots },
        links: walk.links,
    })
}

struct Walk<'a> {
    place: &'a Place,
    options: &'a OpenOptions,
    tree: &'a mut TreeBuilder,
    links: Vec<Tablespace>,
    linked: Vec<(String, Storage)>,
    source: u32,
}

/// The directory itself; in here there are no others.
fn handle(directory: &Storage) -> std::io::Result<(BorrowedFd<'_>, &Path)> {
    match directory.kept() {
        Kept::Directory(handle, path) => Ok((handle, path)),
        Kept::Objects(_) => Err(std::io::ErrorKind::NotADirectory.into()),
    }
}

impl Walk<'_> {
    fn root(&mut self, directory: &Storage, path: &str) -> Result<(), RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(path, "open directory", error);
        let (handle, _) = handle(directory).map_err(unreadable)?;
        self.directory(handle, path, 0)
    }

    /// Notes a directory that is shown at another place than where it lies.
    fn add_linked(&mut self, path: String, directory: Storage) -> Result<(), RepositoryError> {
        let unreadable = |error| RepositoryError::unreadable(&path, "open directory", error);
        let (handle, _) = handle(&directory).map_err(unreadable)?;
        let stat = rustix::fs::fstat(handle).map_err(|error| unreadable(error.into()))?;
        self.tree.add(Found {
            path: &path,
            size_bytes: None,
            mode: stat.st_mode & 0o7777,
            modified_at_s: stat.st_mtime,
            location: Location::default(),
        })?;
        self.linked.push((path, directory));
        Ok(())
    }

    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &str,
        depth: usize,
    ) -> Result<(), RepositoryError> {
        let shown = if path.is_empty() { "." } else { path };
        let unreadable = |error| RepositoryError::unreadable(shown, "list directory", error);
        if depth > self.options.limits.depth {
            return Err(RepositoryError::corrupt(
                path,
                "the directories are nested too deep",
            ));
        }
        let mut listing = Dir::read_from(directory).map_err(unreadable)?;
        loop {
            let mut names = Vec::new();
            let mut read_count = 0;
            for entry in listing.by_ref().take(LOOKED_AT_TOGETHER_MAX) {
                read_count += 1;
                let entry = entry.map_err(unreadable)?;
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    names.push((entry.ino(), utf8_name(name, shown)?.to_owned()));
                }
            }
            names.sort_unstable();
            for (_, name) in names {
                let full = match path {
                    "" => name.clone(),
                    path => format!("{path}/{name}"),
                };
                if full != MANIFEST {
                    self.entry(directory, &name, &full, depth)?;
                }
            }
            if read_count < LOOKED_AT_TOGETHER_MAX {
                return Ok(());
            }
        }
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &str,
        path: &str,
        depth: usize,
    ) -> Result<(), RepositoryError> {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| RepositoryError::unreadable(path, "look at", error))?;
        let mut found = Found {
            path,
            size_bytes: None,
            mode: stat.st_mode & 0o7777,
            modified_at_s: stat.st_mtime,
            location: Location {
                source: self.source,
                offset: 0,
            },
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size);
                found.size_bytes =
                    Some(size.map_err(|_| RepositoryError::corrupt(path, "its size is negative"))?);
                self.tree.add(found)
            }
            FileType::Directory => {
                self.tree.add(found)?;
                let inner = open_directory(directory, name);
                let inner = inner
                    .map_err(|error| RepositoryError::unreadable(path, "open directory", error))?;
                if let Some(oid) = tablespace_oid(path) {
                    // A tablespace in place (allow_in_place_tablespaces).
                    self.links.push(Tablespace {
                        oid,
                        location: path.to_owned(),
                    });
                }
                self.directory(inner.as_fd(), path, depth + 1)
            }
            FileType::Symlink => self.link(directory, name, path),
            // A socket or pipe holds no data and PostgreSQL backs none up: somebody left it here.
            FileType::Socket | FileType::Fifo => {
                tracing::debug!(path, "a socket or pipe in a backup is not shown");
                Ok(())
            }
            FileType::BlockDevice | FileType::CharacterDevice | FileType::Unknown => Err(
                RepositoryError::corrupt(path, "is a device, which has no place in a backup"),
            ),
        }
    }

    fn link(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &str,
        path: &str,
    ) -> Result<(), RepositoryError> {
        let oid = tablespace_oid(path);
        if self.source != 0 || (oid.is_none() && path != "pg_wal") {
            let reason = "is a symbolic link, which has no place in a backup here";
            return Err(RepositoryError::corrupt(path, reason));
        }
        // Its files are known to lie elsewhere.
        let elsewhere = &self.place.tablespaces;
        if oid.is_some_and(|oid| elsewhere.iter().any(|known| known.tablespace.oid == oid)) {
            return Ok(());
        }
        let unreadable = |error| RepositoryError::unreadable(path, "follow link", error);
        let target = rustix::fs::readlinkat(directory, name, Vec::new());
        let target = target.map_err(|error| unreadable(error.into()))?;
        let target = PathBuf::from(utf8_name(target.to_bytes(), path)?);
        let (_, repository) = handle(&self.place.repository).map_err(unreadable)?;
        let below = if target.is_absolute() {
            target.clone()
        } else {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let data = repository.join(&self.place.path);
            data.join(parent).join(&target)
        };
        let real = below
            .canonicalize()
            .map_err(|error| RepositoryError::Unsupported {
                file: path.to_owned(),
                reason: format!(
                    "is a link to {}, which cannot be reached: {error}",
                    target.display()
                ),
                remedy:
                    "put the tablespace's files where the link leads, or the link where they are"
                        .into(),
            })?;
        let opened = self.open_allowed(repository, &real).map_err(unreadable)?;
        let Some(opened) = opened else {
            return Err(RepositoryError::unsupported(
                path,
                format!(
                    "is a link to {}, outside the repository's directory",
                    real.display()
                ),
                format!(
                    "if those are the backup's files and not a live tablespace, add their directory to {}",
                    self.options.tablespace_setting()
                ),
            ));
        };
        if let Some(oid) = oid {
            self.links.push(Tablespace {
                oid,
                location: target.display().to_string(),
            });
        }
        self.add_linked(path.to_owned(), opened)
    }

    /// Opens a directory if it lies below one of those that links may lead into. `real` has no links in it when we look;
    /// one put in later is not followed.
    fn open_allowed(&self, repository: &Path, real: &Path) -> std::io::Result<Option<Storage>> {
        let allowed = std::iter::once(repository).chain(
            self.options
                .tablespace_directories
                .iter()
                .map(PathBuf::as_path),
        );
        for root in allowed {
            // An allowed directory that is not there allows nothing.
            let Ok(root) = root.canonicalize() else {
                continue;
            };
            if let Ok(inside) = real.strip_prefix(&root) {
                let Some(inside) = inside.to_str() else {
                    return Ok(None);
                };
                let opened = open_directory(open_root(&root)?.as_fd(), inside)?;
                return Ok(Some(Storage::opened(opened, real.to_owned())));
            }
        }
        Ok(None)
    }
}

/// The oid, if the path is that of a tablespace: `pg_tblspc/16384`.
pub(super) fn tablespace_oid(path: &str) -> Option<u32> {
    parse_oid(path.strip_prefix("pg_tblspc/")?)
}
