//! A backup in tar archives: `base.tar`, `<oid>.tar` for each tablespace, `pg_wal.tar`, each compressed or not.

use std::sync::Arc;

use super::place::Place;
use super::tar_index::{Member, MemberKind, ReadAt, read_tar_index};
use crate::decoded::{DecodedLimits, DecodedStore};
use crate::handles::Handles;
use crate::name::parse_oid;
use crate::restore_point::Tablespace;
use crate::seekable::{Codec, FirstPass, Seekable, Stored, Stream};
use crate::storage::{SizedFile, Storage, StorageFile};
use crate::tree::{Found, Location, TreeBuilder};
use crate::{OpenOptions, OpenProgress, RepositoryError};

mod beginning;
mod names;
mod side_by_side;

pub(crate) use beginning::{TarBeginning, read_tar_beginning};
pub(crate) use names::Naming;
pub(super) use names::{ArchiveName, Part, archive_names};
use side_by_side::scan_side_by_side;

/// The archives of a backup, in the order of [`Location::source`].
#[derive(Debug)]
pub(crate) struct TarFiles {
    directory: Storage,
    archives: Vec<Archive>,
    store: Arc<DecodedStore>,
    owner: u64,
}

#[derive(Debug)]
struct Archive {
    name: ArchiveName,
    size_bytes: u64,
    /// What tells it from another of this size, where that shows.
    identity: Option<String>,
    /// If it is compressed.
    seekable: Option<Seekable>,
    /// What is wrong behind its last file.
    damage: Option<String>,
}

/// What a pass over the archives gives.
#[derive(Debug)]
pub(crate) struct TarScan {
    pub(crate) files: TarFiles,
    /// Tablespaces by links in `base.tar`; where there is none, the location is empty.
    pub(crate) links: Vec<Tablespace>,
}

impl TarFiles {
    /// Reads bytes of an archive, fewer only at its end; `path` is the file that they are of.
    pub(crate) fn read_at(
        &self,
        handles: &Handles<u32>,
        path: &str,
        location: Location,
        buffer: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let Location { source, offset } = location;
        let archive = self.archives.get(source as usize);
        let archive = archive
            .ok_or_else(|| RepositoryError::corrupt(path, "is in an archive that is not there"))?;
        let handle = handles.get(source, path, || self.open(archive))?;
        match &archive.seekable {
            Some(seekable) => {
                let stored: Arc<dyn Stored> = handle;
                seekable.read_at(&stored, path, offset, buffer)
            }
            None => {
                let read = handle.read_pages_at(offset, buffer);
                read.map_err(|error| RepositoryError::unreadable(path, "read", error))
            }
        }
    }

    /// Opens an archive, if it is still the one that was indexed.
    fn open(&self, archive: &Archive) -> Result<StorageFile, RepositoryError> {
        let name = archive.name.name.as_str();
        let (file, size_bytes) = open_sized(&self.directory, name)?;
        if size_bytes != archive.size_bytes {
            return Err(RepositoryError::corrupt(
                name,
                "its size has changed since the backup was opened",
            ));
        }
        if file.identity() != archive.identity {
            return Err(RepositoryError::unreadable(name, "open", file.changed()));
        }
        Ok(file)
    }

    /// How the archive of the data directory is compressed.
    pub(crate) fn codec(&self) -> Option<Codec> {
        self.archives.first()?.name.codec
    }

    /// How many archives there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.archives.len()).unwrap_or(u32::MAX)
    }

    /// What is wrong with an archive although all of its files could be decoded: its name and the reason.
    pub(crate) fn damage(&self, source: u32) -> Option<(&str, &str)> {
        let archive = self.archives.get(source as usize)?;
        Some((&archive.name.name, archive.damage.as_deref()?))
    }
}

impl Drop for TarFiles {
    fn drop(&mut self) {
        self.store.forget(self.owner);
    }
}

fn open_sized(directory: &Storage, name: &str) -> Result<(StorageFile, u64), RepositoryError> {
    let unreadable = |error| RepositoryError::unreadable(name, "open archive", error);
    let file = directory.file(name).map_err(unreadable)?;
    let size_bytes = file.size_bytes().map_err(unreadable)?;
    Ok((file, size_bytes))
}

/// Reads the headers of all archives of a backup; adds all files to `tree`. Compressed ones are decoded for it, several at a time.
pub(crate) fn scan_tar(
    place: &Place,
    options: &OpenOptions,
    tree: &mut TreeBuilder,
) -> Result<TarScan, RepositoryError> {
    let directory = place.open()?;
    let names = archive_names(&directory, place.naming)?;
    let store = options
        .decoded
        .clone()
        .unwrap_or_else(|| Arc::new(DecodedStore::new(DecodedLimits::default())));
    let mut files = TarFiles {
        owner: store.new_owner(),
        directory,
        archives: Vec::new(),
        store,
    };
    let mut links: Vec<Tablespace> = Vec::new();
    for (source, name) in (0..).zip(&names) {
        if let (Part::Tablespace(oid), 0) = (name.part, name.piece) {
            note_tablespace(&mut links, oid, String::new());
            let path = format!("pg_tblspc/{oid}");
            add(tree, &path, None, 0o700, 0, Location { source, offset: 0 })?;
        }
    }
    for name in names.iter().filter(|name| name.codec.is_some()) {
        let (_, size_bytes) = open_sized(&files.directory, &name.name)?;
        options.progress.add_total(size_bytes);
    }
    let scan = |source: u32, name: &ArchiveName, found: &mut FoundMember<'_>| {
        scan_archive(&files, source, name, options, found)
    };
    files.archives = scan_side_by_side(&names, &scan, &mut |source, name, member| {
        add_member(tree, &mut links, source, name, member)
    })?;
    Ok(TarScan { files, links })
}

/// Takes a member of an archive, or refuses it.
type FoundMember<'a> = dyn FnMut(Member) -> Result<(), RepositoryError> + 'a;

/// Goes through one archive.
fn scan_archive(
    files: &TarFiles,
    source: u32,
    name: &ArchiveName,
    options: &OpenOptions,
    found: &mut FoundMember<'_>,
) -> Result<Archive, RepositoryError> {
    let limits = &options.limits;
    let shown = name.name.as_str();
    let (file, size_bytes) = open_sized(&files.directory, shown)?;
    let identity = file.identity();
    let mut index =
        |archive: &mut dyn ReadAt| read_tar_index(archive, shown, limits, &mut |m| found(m));
    let (seekable, damage) = match name.codec {
        None => {
            index(&mut SizedFile {
                name: shown,
                file: &file,
                size_bytes,
            })?;
            (None, None)
        }
        Some(codec) => {
            let stream = Stream {
                name: shown.to_owned(),
                codec,
                store: Arc::clone(&files.store),
                owner: files.owner,
                number: source,
            };
            let stored = Watched {
                file,
                progress: Arc::clone(&options.progress),
            };
            let mut pass = FirstPass::new(stream, Arc::new(stored), size_bytes)?;
            index(&mut pass)?;
            let (seekable, damage) = pass.finish()?;
            (Some(seekable), damage)
        }
    };
    Ok(Archive {
        name: name.clone(),
        size_bytes,
        identity,
        seekable,
        damage,
    })
}

/// An archive of which is told how much has been read. It is read from its beginning to its end, once.
struct Watched {
    file: StorageFile,
    progress: Arc<OpenProgress>,
}

impl Stored for Watched {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(offset, buffer)?;
        self.progress.add_done(count as u64);
        Ok(count)
    }
}

fn add_member(
    tree: &mut TreeBuilder,
    links: &mut Vec<Tablespace>,
    source: u32,
    archive: &ArchiveName,
    member: Member,
) -> Result<(), RepositoryError> {
    let Member {
        name,
        kind,
        mode,
        modified_at_s,
        offset,
    } = member;
    let path = match archive.part {
        Part::Base => name,
        Part::Tablespace(oid) => format!("pg_tblspc/{oid}/{name}"),
        Part::Wal => format!("pg_wal/{name}"),
    };
    let location = Location { source, offset };
    match kind {
        MemberKind::File(size) => add(tree, &path, Some(size), mode, modified_at_s, location),
        MemberKind::Directory => add(tree, &path, None, mode, modified_at_s, location),
        MemberKind::Symlink(target) => {
            let is_base = archive.part == Part::Base;
            let oid = path.strip_prefix("pg_tblspc/").filter(|_| is_base);
            let oid = oid.and_then(parse_oid).ok_or_else(|| {
                let archive = &archive.name;
                let reason =
                    format!("is a symbolic link in {archive}, which has no place in a backup here");
                RepositoryError::corrupt(&path, reason)
            })?;
            note_tablespace(links, oid, target);
            Ok(())
        }
    }
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

/// How the archive of a backup's data directory is compressed; none if there is no such archive.
pub(crate) fn codec_of(place: &Place) -> Result<Option<Option<Codec>>, RepositoryError> {
    let names = archive_names(&place.open()?, place.naming)?;
    let base = names.first().filter(|first| first.part == Part::Base);
    Ok(base.map(|base| base.codec))
}

/// The names of a backup's archives, if one of them is compressed.
pub(crate) fn compressed_archives(place: &Place) -> Result<Option<Vec<String>>, RepositoryError> {
    let names = archive_names(&place.open()?, place.naming)?;
    let is_compressed = names.iter().any(|name| name.codec.is_some());
    Ok(is_compressed.then(|| names.into_iter().map(|name| name.name).collect()))
}
