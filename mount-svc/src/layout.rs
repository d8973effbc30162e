//! How a backup's tree is laid out in a mount: `data/` is PGDATA, `tablespaces/<oid>/` are the tablespaces, and
//! `data/pg_tblspc/<oid>` lead there and nowhere else, so that a published instance cannot reach the original's tablespaces.
//! Where there is an archive of WAL, `wal/` has what recovery goes on with, for reading only.

use std::path::Path;

use common::agent::hand::{TreeEntry, TreeEntryKind, TreeFinish};
use repository::ShownWal;

/// A backup's entry, in the repository's order: parents before their children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEntry<'a> {
    /// Path relative to PGDATA; `pg_tblspc/<oid>/…` for tablespaces.
    pub path: &'a str,
    /// The file's number and size; `None` for a directory.
    pub file: Option<(u32, u64)>,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, in seconds since the epoch.
    pub modified_at_s: i64,
}

/// Files that would lead PostgreSQL to places outside of the mount: a published instance must not see them (D8).
const HIDDEN: &[&str] = &["tablespace_map"];

const DIRECTORY_MODE: u32 = 0o700;
const WAL_DIRECTORY_MODE: u32 = 0o500;
const WAL_FILE_MODE: u32 = 0o400;

/// Lays a backup's entries out below a mount point.
pub fn lay_out<'a>(
    entries: impl Iterator<Item = BackupEntry<'a>>,
    mount_point: &Path,
) -> Vec<TreeEntry> {
    let directory = |path: String, modified_at_s: i64| TreeEntry {
        path,
        kind: TreeEntryKind::Directory,
        mode: DIRECTORY_MODE,
        modified_at_s,
    };
    let mut tree = vec![
        directory("data".to_owned(), 0),
        directory("tablespaces".to_owned(), 0),
    ];
    for entry in entries {
        if HIDDEN.contains(&entry.path) {
            continue;
        }
        let tablespace = entry.path.strip_prefix("pg_tblspc/");
        let path = match tablespace {
            Some(below) => format!("tablespaces/{below}"),
            None => format!("data/{}", entry.path),
        };
        if let (Some(oid), None) = (tablespace, entry.file)
            && !oid.contains('/')
        {
            let target = mount_point
                .join("tablespaces")
                .join(oid)
                .to_string_lossy()
                .into_owned();
            tree.push(TreeEntry {
                path: format!("data/pg_tblspc/{oid}"),
                kind: TreeEntryKind::Symlink { target },
                mode: 0o777,
                modified_at_s: entry.modified_at_s,
            });
        }
        tree.push(match entry.file {
            Some((file, size_bytes)) => TreeEntry {
                path,
                kind: TreeEntryKind::File { file, size_bytes },
                mode: entry.mode,
                modified_at_s: entry.modified_at_s,
            },
            None => directory(path, entry.modified_at_s),
        });
    }
    tree
}

/// Lays out the files of an archive behind a backup's; the first of them has the number `first_file`.
pub fn lay_out_wal(tree: &mut Vec<TreeEntry>, wal: &ShownWal, first_file: u32) {
    let entry = |path: String, kind, mode| TreeEntry {
        path,
        kind,
        mode,
        modified_at_s: wal.archived_at_s,
    };
    tree.push(entry(
        "wal".to_owned(),
        TreeEntryKind::Directory,
        WAL_DIRECTORY_MODE,
    ));
    for (file, (name, size_bytes)) in (first_file..).zip(wal.files()) {
        let kind = TreeEntryKind::File { file, size_bytes };
        tree.push(entry(format!("wal/{name}"), kind, WAL_FILE_MODE));
    }
}

/// The end of a tree: how many entries, and the hash by which both sides know that they mean the same.
pub fn finish(tree: &[TreeEntry]) -> TreeFinish {
    let hash = tree.iter().fold(0, |hash, entry| {
        let bytes = postcard::to_stdvec(entry).expect("a tree entry can be encoded");
        crc32c::crc32c_append(hash, &bytes)
    });
    TreeFinish {
        entry_count: tree.len() as u64,
        hash,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, file: Option<(u32, u64)>) -> BackupEntry<'_> {
        BackupEntry {
            path,
            file,
            mode: 0o600,
            modified_at_s: 1,
        }
    }

    #[test]
    fn tablespaces_are_served_inside_the_mount_and_the_map_to_the_originals_is_hidden() {
        let entries = [
            entry("PG_VERSION", Some((0, 3))),
            entry("pg_tblspc", None),
            entry("pg_tblspc/16384", None),
            entry("pg_tblspc/16384/PG_15_202209061", None),
            entry("pg_tblspc/16384/PG_15_202209061/5", Some((1, 8192))),
            entry("tablespace_map", Some((2, 30))),
        ];
        let tree = lay_out(entries.into_iter(), Path::new("/tmp/pginstant/s"));
        let lines: Vec<String> = tree
            .iter()
            .map(|entry| match &entry.kind {
                TreeEntryKind::Directory => format!("{}/", entry.path),
                TreeEntryKind::File { file, .. } => format!("{} #{file}", entry.path),
                TreeEntryKind::Symlink { target } => format!("{} -> {target}", entry.path),
            })
            .collect();
        assert_eq!(
            lines,
            [
                "data/",
                "tablespaces/",
                "data/PG_VERSION #0",
                "data/pg_tblspc/",
                "data/pg_tblspc/16384 -> /tmp/pginstant/s/tablespaces/16384",
                "tablespaces/16384/",
                "tablespaces/16384/PG_15_202209061/",
                "tablespaces/16384/PG_15_202209061/5 #1",
            ]
        );
    }

    #[test]
    fn the_archive_lies_beside_the_data_directory_and_is_for_reading_only() {
        let wal = ShownWal {
            segment_bytes: 16 << 20,
            runs: vec![repository::SegmentRun {
                timeline: 1,
                first: 2,
                last: 3,
            }],
            histories: vec![repository::ShownHistory {
                timeline: 2,
                size_bytes: 41,
            }],
            target_timeline: 1,
            archived_at_s: 5,
            gap: None,
        };
        let mut tree = lay_out([entry("wal", None)].into_iter(), Path::new("/m"));
        lay_out_wal(&mut tree, &wal, 7);
        let lines: Vec<String> = tree
            .iter()
            .map(|entry| format!("{} {:o}", entry.path, entry.mode))
            .collect();
        assert_eq!(
            lines,
            [
                "data 700",
                "tablespaces 700",
                "data/wal 700",
                "wal 500",
                "wal/000000010000000000000002 400",
                "wal/000000010000000000000003 400",
                "wal/00000002.history 400",
            ]
        );
        let kind = |file, size_bytes| TreeEntryKind::File { file, size_bytes };
        assert_eq!(tree[4].kind, kind(7, 16 << 20));
        assert_eq!(tree[6].kind, kind(9, 41));
    }

    #[test]
    fn two_trees_that_differ_anywhere_have_different_hashes() {
        let of = |size| {
            finish(&lay_out(
                [entry("a", Some((0, size)))].into_iter(),
                Path::new("/m"),
            ))
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1).hash, of(2).hash);
    }
}
