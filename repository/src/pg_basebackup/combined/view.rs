//! The files of a combined backup, and of what each consists.

use std::sync::Arc;

use super::{Layer, Stored, read_beginning};
use crate::pg_basebackup::increment::{BLOCK_BYTES, file_of_increment, increment_of_file};
use crate::tree::{EntryKind, FileIndex, Found, Location, Tree, TreeBuilder, no_such_file};
use crate::{OpenOptions, RepositoryError};

/// A stored file of one backup of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// The backup, from the newest on.
    pub(super) layer: u16,
    pub(super) file: FileIndex,
}

/// What a file consists of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown<'a> {
    /// A file of the newest backup.
    Stored(Part),
    /// Increments, newest first, and the full file.
    Blocks(&'a [Part]),
    /// `backup_label`, changed.
    Label(&'a [u8]),
}

/// The tree of a combined backup.
#[derive(Debug)]
pub(super) struct View {
    pub(super) tree: Tree,
    /// By file: of which kind it is, and which of that kind.
    locations: Vec<Location>,
    blocks: Vec<Box<[Part]>>,
    label: Vec<u8>,
}

/// Kinds, as [`Location::source`] has them.
const STORED: u32 = 0;
const BLOCKS: u32 = 1;
const LABEL: u32 = 2;

impl View {
    pub(super) fn of(
        layers: &[Arc<Stored>],
        label: Vec<u8>,
        options: &OpenOptions,
    ) -> Result<Self, RepositoryError> {
        let Some(newest) = layers.first().map(|stored| &stored.layer) else {
            return Err(RepositoryError::corrupt("backup_label", "is of no backup"));
        };
        let mut tree = TreeBuilder::new(options.limits);
        let mut blocks: Vec<Box<[Part]>> = Vec::new();
        for entry in newest.content.tree.entries() {
            let mut found = Found {
                path: entry.path,
                size_bytes: None,
                mode: entry.mode,
                modified_at_s: entry.modified_at_s,
                location: Location::default(),
            };
            let EntryKind::File { file, size_bytes } = entry.kind else {
                tree.add(found)?;
                continue;
            };
            let shown = file_of_increment(entry.path);
            let (source, number, size_bytes) = match &shown {
                Some(shown) => {
                    let number = blocks.len() as u64;
                    blocks.push(parts_of(shown, file, layers)?);
                    found.path = shown;
                    (BLOCKS, number, shown_bytes(newest, file)?)
                }
                None if entry.path == "backup_label" => (LABEL, 0, label.len() as u64),
                None => (STORED, u64::from(file.0), size_bytes),
            };
            found.size_bytes = Some(size_bytes);
            found.location = Location {
                source,
                offset: number,
            };
            tree.add(found)?;
        }
        let (tree, locations) = tree.finish()?;
        Ok(Self {
            tree,
            locations,
            blocks,
            label,
        })
    }

    /// What a file consists of.
    pub(super) fn shown(&self, file: FileIndex) -> Result<Shown<'_>, RepositoryError> {
        let location = self.locations.get(file.0 as usize).copied();
        let found = location.and_then(|location| {
            let number = u32::try_from(location.offset).ok()?;
            match location.source {
                STORED => Some(Shown::Stored(Part {
                    layer: 0,
                    file: FileIndex(number),
                })),
                BLOCKS => self
                    .blocks
                    .get(number as usize)
                    .map(|parts| Shown::Blocks(parts)),
                _ => Some(Shown::Label(&self.label)),
            }
        });
        found.ok_or_else(|| no_such_file(file))
    }

    /// The file that a stored one is part of.
    pub(super) fn shown_as(&self, stored_path: &str) -> Option<FileIndex> {
        let path = file_of_increment(stored_path);
        let found = self.tree.find_file(path.as_deref().unwrap_or(stored_path));
        found.map(|(file, _)| file)
    }
}

/// The increments of a file from the newest on, and the full file behind them.
fn parts_of(
    path: &str,
    newest: FileIndex,
    layers: &[Arc<Stored>],
) -> Result<Box<[Part]>, RepositoryError> {
    let mut parts = vec![Part {
        layer: 0,
        file: newest,
    }];
    let increment = increment_of_file(path);
    for (layer, older) in (0_u16..).zip(layers).skip(1) {
        let older = &older.layer;
        let tree = &older.content.tree;
        if let Some((file, _)) = tree.find_file(path) {
            parts.push(Part { layer, file });
            return Ok(parts.into());
        }
        let Some((file, _)) = tree.find_file(&increment) else {
            let reason = format!(
                "is not in backup {}, and newer ones have only blocks of it",
                older.label
            );
            return Err(RepositoryError::corrupt(path, reason));
        };
        parts.push(Part { layer, file });
    }
    let reason = "has no full file in any of the backups that the backup stands on";
    Err(RepositoryError::corrupt(path, reason))
}

/// How long the file is that an increment of the newest backup stands for.
fn shown_bytes(newest: &Layer, file: FileIndex) -> Result<u64, RepositoryError> {
    let (head, last_block) = read_beginning(newest, file)?;
    let count = head.shown_block_count(last_block).map_err(|reason| {
        let path = newest.content.describe(file).map_or("", |(path, _)| path);
        RepositoryError::corrupt(path, reason)
    })?;
    Ok(u64::from(count) * BLOCK_BYTES)
}
