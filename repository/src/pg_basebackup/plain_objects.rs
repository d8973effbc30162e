//! A plain backup that was copied into an object store (`aws s3 sync`, `rclone copy`): objects by the paths of its files.
//!
//! An object store keeps no modes, no links and no directories without files. Modes are those that PostgreSQL gives, the directories that
//! it needs are shown whether they have files or not, and the files of tablespaces have to lie where the links were.

use super::backup_label::SMALL_FILE_BYTES_MAX;
use super::manifest::MANIFEST;
use super::place::Place;
use super::plain::{PlainFiles, PlainScan, Root};
use crate::RepositoryError;
use crate::name::parse_oid;
use crate::restore_point::Tablespace;
use crate::storage::{FoundObject, Kept, Storage, StorageFile};
use crate::tree::{Found, Location, TreeBuilder};

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Directories of every cluster.
const DIRECTORIES: [&str; 22] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
];
/// One more, and since when.
const SUMMARIES: (&str, u32) = ("pg_wal/summaries", 17);

/// Lists the objects of the data directory and of tablespaces that lie beside it; adds all files to `tree`.
pub(super) fn scan_objects(
    place: &Place,
    data: Storage,
    tree: &mut TreeBuilder,
) -> Result<PlainScan, RepositoryError> {
    let mut listing = Listing {
        tree,
        prefix: String::new(),
        source: 0,
        missing: DIRECTORIES.to_vec(),
        links: Vec::new(),
        elsewhere: place
            .tablespaces
            .iter()
            .map(|beside| format!("pg_tblspc/{}", beside.tablespace.oid))
            .collect(),
        held_back: None,
    };
    if postgresql_major(&data)? >= SUMMARIES.1 {
        listing.missing.push(SUMMARIES.0);
    }
    listing.root(&data)?;
    let mut roots = vec![Root {
        directory: data,
        prefix: String::new(),
    }];
    for beside in &place.tablespaces {
        let path = format!("pg_tblspc/{}", beside.tablespace.oid);
        let opened = place.repository.below(&beside.path);
        let opened =
            opened.map_err(|error| RepositoryError::unreadable(&path, "open directory", error))?;
        listing.add_directory(&path)?;
        listing.links.push(beside.tablespace.clone());
        listing.source += 1;
        listing.prefix = format!("{path}/");
        listing.root(&opened)?;
        roots.push(Root {
            directory: opened,
            prefix: listing.prefix.clone(),
        });
    }
    for path in std::mem::take(&mut listing.missing) {
        listing.add_directory(path)?;
    }
    let links = listing.links;
    Ok(PlainScan {
        files: PlainFiles::new(roots),
        links,
    })
}

/// Whether a file is the object that was listed.
pub(super) fn is_listed(file: &StorageFile, location: Location, modified_at_s: i64) -> bool {
    let tag = Some(location.offset).filter(|tag| *tag != 0);
    match file {
        StorageFile::Local(_) => true,
        StorageFile::Object(object) => object.is_the_one(tag, modified_at_s),
    }
}

/// As `PG_VERSION` says, which is looked at more closely later.
fn postgresql_major(data: &Storage) -> Result<u32, RepositoryError> {
    let path = "PG_VERSION";
    let content = match data.file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        opened => opened.and_then(|file| file.read_beginning(SMALL_FILE_BYTES_MAX)),
    };
    let content = content.map_err(|error| RepositoryError::unreadable(path, "read", error))?;
    let major = String::from_utf8_lossy(&content).trim_end().parse();
    Ok(major.unwrap_or(0))
}

struct Listing<'a> {
    tree: &'a mut TreeBuilder,
    /// Where what is listed is shown.
    prefix: String,
    source: u32,
    /// Directories of which no file has been seen yet.
    missing: Vec<&'static str>,
    /// Tablespaces that have files.
    links: Vec<Tablespace>,
    /// Directories whose files lie beside the data directory; some tools put them there, too, because they follow links.
    elsewhere: Vec<String>,
    /// An empty object, which may be the mark of a directory: then the next one lies below it.
    held_back: Option<Empty>,
}

struct Empty {
    path: String,
    modified_at_s: i64,
    tag: Option<u64>,
}

impl Listing<'_> {
    fn root(&mut self, directory: &Storage) -> Result<(), RepositoryError> {
        let Kept::Objects(objects) = directory.kept() else {
            return Ok(());
        };
        objects.each(&mut |found| self.take(&found))?;
        self.settle_held_back(None)
    }

    fn take(&mut self, found: &FoundObject<'_>) -> Result<(), RepositoryError> {
        let path = format!("{}{}", self.prefix, found.path);
        self.settle_held_back(Some(&path))?;
        let mut elsewhere = self.elsewhere.iter();
        let is_copy = self.source == 0 && elsewhere.any(|directory| is_below(&path, directory));
        if path == MANIFEST || is_copy {
            return Ok(());
        }
        if found.size_bytes == 0 {
            self.held_back = Some(Empty {
                path,
                modified_at_s: found.modified_at_s,
                tag: found.tag,
            });
            return Ok(());
        }
        self.add_file(&path, found.size_bytes, found.modified_at_s, found.tag)
    }

    /// Adds the object that was held back, unless it stands for a directory.
    fn settle_held_back(&mut self, next: Option<&str>) -> Result<(), RepositoryError> {
        let Some(empty) = self.held_back.take() else {
            return Ok(());
        };
        let is_mark = self.missing.contains(&empty.path.as_str())
            || next.is_some_and(|next| is_below(next, &empty.path));
        match is_mark {
            true => Ok(()),
            false => self.add_file(&empty.path, 0, empty.modified_at_s, empty.tag),
        }
    }

    fn add_file(
        &mut self,
        path: &str,
        size_bytes: u64,
        modified_at_s: i64,
        tag: Option<u64>,
    ) -> Result<(), RepositoryError> {
        self.missing.retain(|directory| !is_below(path, directory));
        let tablespace = path.strip_prefix("pg_tblspc/");
        let oid = tablespace.and_then(|below| parse_oid(below.split_once('/')?.0));
        let is_known = |oid| self.links.iter().any(|known| known.oid == oid);
        if let Some(oid) = oid.filter(|oid| !is_known(*oid)) {
            // Where it was on the original only the link said.
            self.links.push(Tablespace {
                oid,
                location: String::new(),
            });
        }
        self.tree.add(Found {
            path,
            size_bytes: Some(size_bytes),
            mode: FILE_MODE,
            modified_at_s,
            location: Location {
                source: self.source,
                offset: tag.unwrap_or(0),
            },
        })
    }

    fn add_directory(&mut self, path: &str) -> Result<(), RepositoryError> {
        self.missing.retain(|directory| *directory != path);
        self.tree.add(Found {
            path,
            size_bytes: None,
            mode: DIRECTORY_MODE,
            modified_at_s: 0,
            location: Location::default(),
        })
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryKind, Limits};

    /// The tree of objects of these paths and sizes.
    fn tree_of(objects: &[(&str, u64)]) -> (Vec<String>, Vec<u32>) {
        let mut tree = TreeBuilder::new(Limits::default());
        let mut listing = Listing {
            tree: &mut tree,
            prefix: String::new(),
            source: 0,
            missing: vec!["base", "pg_notify", "pg_tblspc"],
            links: Vec::new(),
            elsewhere: vec!["pg_tblspc/16385".to_owned()],
            held_back: None,
        };
        for (path, size_bytes) in objects {
            let found = FoundObject {
                path,
                size_bytes: *size_bytes,
                modified_at_s: 1,
                tag: None,
            };
            listing.take(&found).unwrap();
        }
        listing.settle_held_back(None).unwrap();
        for path in std::mem::take(&mut listing.missing) {
            listing.add_directory(path).unwrap();
        }
        let oids = listing.links.iter().map(|link| link.oid).collect();
        let (tree, _) = tree.finish().unwrap();
        let shown = tree.entries().map(|entry| match entry.kind {
            EntryKind::Directory => format!("{}/ {:o}", entry.path, entry.mode),
            EntryKind::File { size_bytes, .. } => {
                format!("{} {:o} {size_bytes}", entry.path, entry.mode)
            }
        });
        (shown.collect(), oids)
    }

    #[test]
    fn directories_that_a_cluster_needs_are_shown_whether_they_have_objects_or_not() {
        let (tree, oids) = tree_of(&[
            ("PG_VERSION", 3),
            ("backup_manifest", 9),
            ("base/1/1259", 8192),
            ("empty", 0),
            ("pg_tblspc/16384/PG_15/5/1", 8192),
            ("pg_tblspc/16384/PG_15/5/2", 0),
            ("pg_tblspc/16385/PG_15/5/3", 8192),
        ]);
        let wanted = [
            "PG_VERSION 600 3",
            "base/ 700",
            "base/1/ 700",
            "base/1/1259 600 8192",
            "empty 600 0",
            "pg_notify/ 700",
            "pg_tblspc/ 700",
            "pg_tblspc/16384/ 700",
            "pg_tblspc/16384/PG_15/ 700",
            "pg_tblspc/16384/PG_15/5/ 700",
            "pg_tblspc/16384/PG_15/5/1 600 8192",
            "pg_tblspc/16384/PG_15/5/2 600 0",
        ];
        assert_eq!(tree, wanted);
        assert_eq!(oids, [16384]);
    }

    #[test]
    fn objects_that_some_tools_leave_for_directories_are_not_shown_as_files() {
        let (tree, _) = tree_of(&[
            ("base", 0),
            ("base/1", 0),
            ("base/1/1259", 8192),
            ("pg_notify", 0),
        ]);
        let wanted = [
            "base/ 700",
            "base/1/ 700",
            "base/1/1259 600 8192",
            "pg_notify/ 700",
            "pg_tblspc/ 700",
        ];
        assert_eq!(tree, wanted);
    }
}
