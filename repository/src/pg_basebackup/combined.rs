//! An incremental backup and those that it stands on, shown as the one cluster that they stand for: what `pg_combinebackup`
//! would write, without writing it.
//!
//! The newest backup says which files there are. Of those that it has whole the others are not asked; of the others it has an
//! increment, and each block comes from the newest backup that has it. Which blocks an increment has is read when somebody
//! reads its file, and kept while there is room.

use std::sync::Arc;

use super::backup_label::without_parent;
use super::chain::Known;
use super::control::CONTROL;
use super::increment::{
    BLOCK_BYTES, INCREMENT_HEAD_BYTES, Increment, IncrementHead, parse_increment_head,
};
use super::opened::{Layer, Stored};
use super::siblings::Siblings;
use crate::bounded_cache::CacheKey;
use crate::tree::{FileIndex, Tree, within_file};
use crate::{
    Backup, BackupKind, CorruptFile, DecodedStore, OpenOptions, RepositoryError, RestorePoint,
    Standing, Verification,
};
use resolve::{Resolver, Spot};
use view::{Part, Shown, View};

mod resolve;
mod view;

/// Largest increment that is read whole, and compared with its checksum, before a block of it is handed on: a block number that
/// was damaged would lead to a wrong page.
const CHECKED_BYTES_MAX: u64 = 16 << 20;
/// Bytes per read of such a check.
const STEP_BYTES: usize = 1 << 18;
/// Fewest files that each backup of a chain keeps open.
const OPEN_FILES_MIN: usize = 4;

/// A chain of backups as one.
#[derive(Debug)]
pub(crate) struct Combined {
    /// Newest first.
    layers: Vec<Arc<Stored>>,
    view: View,
    restore_point: RestorePoint,
    store: Arc<DecodedStore>,
    owner: u64,
}

impl Combined {
    pub(crate) fn open(
        newest: Arc<Stored>,
        siblings: &Siblings<'_>,
        options: &OpenOptions,
    ) -> Result<Self, RepositoryError> {
        let control = newest.control()?;
        let places = siblings.chain_of(&Known {
            label: newest.layer.label.clone(),
            begins: newest.facts.begins.clone(),
            system_identifier: control.system_identifier,
        })?;
        let mut restore_point = newest.restore_point();
        let mut chain = vec![newest];
        for place in &places {
            let last = siblings.opened_last();
            let stored = last.get(&place.label, || Stored::open(place, options));
            chain.push(stored.map_err(|error| error.in_backup(&place.label, "backup_label"))?);
        }
        check_clusters(&chain)?;
        // What is slow in one of them is slow in the whole.
        let slow = chain.iter().find_map(|stored| stored.facts.slow_layout());
        restore_point.slow_layout = slow;
        let verification = weakest(chain.iter().map(|stored| stored.facts.verification));
        let labelled = chain
            .iter()
            .map(|stored| (stored.layer.label.clone(), Arc::clone(stored)));
        siblings.opened_last().keep(labelled);
        let open_files = options.limits.open_file_count / chain.len().max(1);
        for stored in &chain {
            let content = &stored.layer.content;
            content.keep_open(open_files.max(OPEN_FILES_MIN));
        }
        let label = match chain.first() {
            Some(newest) => newest.layer.content.read_small("backup_label")?,
            None => None,
        };
        let view = View::of(&chain, without_parent(&label.unwrap_or_default()), options)?;
        restore_point.kind = BackupKind::Incremental;
        restore_point.references = places
            .iter()
            .rev()
            .map(|place| place.label.clone())
            .collect();
        restore_point.size_bytes = view.tree.size_bytes();
        restore_point.file_count = view.tree.file_count();
        restore_point.verification = verification;
        let store = options.decoded_store();
        Ok(Self {
            owner: store.new_owner(),
            layers: chain,
            view,
            restore_point,
            store,
        })
    }

    fn describe(&self, file: FileIndex) -> Result<(&str, u64), RepositoryError> {
        self.view.tree.describe(file)
    }

    fn layer(&self, part: Part) -> Result<&Layer, RepositoryError> {
        let stored = self.layers.get(usize::from(part.layer));
        let layer = stored.map(|stored| &stored.layer);
        layer.ok_or_else(|| RepositoryError::corrupt("backup_label", "names no such backup"))
    }

    /// Which blocks an increment has.
    fn increment(&self, part: Part, path: &str) -> Result<Arc<Increment>, RepositoryError> {
        let key = CacheKey {
            owner: self.owner,
            file: part.file.0,
            part: [u64::from(part.layer), 0, 0],
        };
        self.store.memory().get(key, || {
            let layer = self.layer(part)?;
            let loaded = load_increment(layer, part.file);
            let increment = loaded.map_err(|error| error.in_backup(&layer.label, path))?;
            let bytes = increment.memory_bytes();
            Ok((increment, bytes))
        })
    }

    /// Fills the buffer, which does not reach over the file's end.
    fn read_blocks(
        &self,
        path: &str,
        parts: &[Part],
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), RepositoryError> {
        let Some((full, with_increments)) = parts.split_last() else {
            return Err(RepositoryError::corrupt(path, "is in no backup"));
        };
        let increments = with_increments
            .iter()
            .map(|part| self.increment(*part, path));
        let increments = increments.collect::<Result<Vec<_>, _>>()?;
        let (_, full_bytes) = self.layer(*full)?.content.describe(full.file)?;
        let resolver = Resolver {
            increments: &increments.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
            full_block_count: full_bytes / BLOCK_BYTES,
        };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let run = resolver.run(offset + done as u64, rest.len());
            let piece = rest.get_mut(..run.bytes).unwrap_or_default();
            match run.spot {
                Spot::Zeros => piece.fill(0),
                Spot::Stored { source, at } => {
                    let part = parts.get(source).copied().unwrap_or(*full);
                    let layer = self.layer(part)?;
                    let read = layer.read_at(part.file, at, piece);
                    let count = read.map_err(|error| error.in_backup(&layer.label, path))?;
                    if count < piece.len() {
                        let reason = format!("its part in backup {} ends too early", layer.label);
                        return Err(RepositoryError::corrupt(path, reason));
                    }
                }
            }
            done += run.bytes.max(1);
        }
        Ok(())
    }
}

impl Backup for Combined {
    fn restore_point(&self) -> &RestorePoint {
        &self.restore_point
    }

    fn tree(&self) -> &Tree {
        &self.view.tree
    }

    fn read_at(
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
        match self.view.shown(file)? {
            Shown::Stored(part) => return self.layer(part)?.read_at(part.file, offset, buffer),
            Shown::Blocks(parts) => self.read_blocks(path, parts, offset, buffer)?,
            Shown::Label(label) => {
                let from = usize::try_from(offset)
                    .ok()
                    .and_then(|from| label.get(from..));
                let from = from.and_then(|rest| rest.get(..wanted)).unwrap_or_default();
                buffer.copy_from_slice(from);
            }
        }
        Ok(wanted)
    }

    fn corrupt_files(&self) -> Vec<CorruptFile> {
        let mut corrupt = Vec::new();
        for stored in &self.layers {
            let layer = &stored.layer;
            for found in layer.corrupt_files() {
                let stored = layer.content.describe(found.file);
                if let Some(file) = stored.ok().and_then(|(path, _)| self.view.shown_as(path)) {
                    let reason = format!("{} (backup {})", found.reason, layer.label);
                    corrupt.push(CorruptFile { file, reason });
                }
            }
        }
        corrupt.sort_by_key(|found| found.file);
        corrupt.dedup_by_key(|found| found.file);
        corrupt
    }

    fn standing(&self, file: FileIndex) -> Standing {
        let standing = |part: Part| match self.layer(part) {
            Ok(layer) => layer.standing(part.file),
            Err(_) => Standing::Unknown,
        };
        match self.view.shown(file) {
            Ok(Shown::Stored(part)) => standing(part),
            Ok(Shown::Blocks(parts)) => all_together(parts.iter().map(|part| standing(*part))),
            // Made of the stored one, which was read when the backup was opened.
            Ok(Shown::Label(_)) => Standing::Unknown,
            Err(_) => Standing::Unknown,
        }
    }

    fn check_file(&self, file: FileIndex, buffer: &mut [u8]) -> Result<(), RepositoryError> {
        let parts = match self.view.shown(file)? {
            Shown::Stored(part) => &[part][..],
            Shown::Blocks(parts) => parts,
            Shown::Label(_) => &[],
        };
        for part in parts {
            let layer = self.layer(*part)?;
            match layer.read_through(part.file, buffer) {
                Err(_) if layer.standing(part.file) == Standing::Corrupt => {}
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

impl Drop for Combined {
    fn drop(&mut self) {
        self.store.forget(self.owner);
    }
}

/// What is known of a file of which several stored ones are parts.
fn all_together(standings: impl Iterator<Item = Standing>) -> Standing {
    standings.fold(Standing::Verified, |all, one| match (all, one) {
        (Standing::Corrupt, _) | (_, Standing::Corrupt) => Standing::Corrupt,
        (Standing::Pending, _) | (_, Standing::Pending) => Standing::Pending,
        (Standing::Unknown, _) | (_, Standing::Unknown) => Standing::Unknown,
        (Standing::Verified, Standing::Verified) => Standing::Verified,
    })
}

fn weakest(verifications: impl Iterator<Item = Verification>) -> Verification {
    verifications.fold(Verification::Checksums, |all, one| match (all, one) {
        (Verification::Unverified, _) | (_, Verification::Unverified) => Verification::Unverified,
        (Verification::SizesOnly, _) | (_, Verification::SizesOnly) => Verification::SizesOnly,
        (Verification::Checksums, Verification::Checksums) => Verification::Checksums,
    })
}

/// Each backup has to be of the same cluster, and that has to have had page checksums all the time or never: a page that was not
/// changed since would else be found wrong, or not be looked at.
fn check_clusters(chain: &[Arc<Stored>]) -> Result<(), RepositoryError> {
    let mut first = None;
    for stored in chain {
        let label = &stored.layer.label;
        let control = stored.control();
        let control = control.map_err(|error| error.in_backup(label, CONTROL))?;
        let told = stored.restore_point().system_identifier;
        if let Some(told) = told.filter(|told| *told != control.system_identifier) {
            let found = control.system_identifier;
            let reason =
                format!("of backup {label} is of cluster {found}, and backup_manifest of {told}");
            return Err(RepositoryError::corrupt(CONTROL, reason));
        }
        let (first_label, first_control) = *first.get_or_insert((label, control));
        if first_control.has_page_checksums != control.has_page_checksums {
            let word = |has: Option<bool>| match has {
                Some(true) => "with",
                Some(false) | None => "without",
            };
            return Err(RepositoryError::unsupported(
                CONTROL,
                format!(
                    "of backup {first_label} is of a cluster {} page checksums, and that of backup {label}, on which it stands, {} them",
                    word(first_control.has_page_checksums),
                    word(control.has_page_checksums)
                ),
                "take a full backup after page checksums were switched on or off",
            ));
        }
    }
    Ok(())
}

/// The beginning of an increment, and the number of its last block.
fn read_beginning(
    layer: &Layer,
    file: FileIndex,
) -> Result<(IncrementHead, Option<u32>), RepositoryError> {
    let (path, stored_bytes) = layer.content.describe(file)?;
    let corrupt = |reason: String| RepositoryError::corrupt(path, reason);
    let mut beginning = [0; INCREMENT_HEAD_BYTES];
    // The most have no blocks: these are checked by this.
    let count = layer.read_at(file, 0, &mut beginning)?;
    let head = parse_increment_head(beginning.get(..count).unwrap_or_default(), stored_bytes);
    let head = head.map_err(corrupt)?;
    let last = match head.last_number_at() {
        None => None,
        Some(at) => {
            let mut number = [0; 4];
            layer.content.read_at(file, at, &mut number)?;
            Some(u32::from_ne_bytes(number))
        }
    };
    Ok((head, last))
}

fn load_increment(layer: &Layer, file: FileIndex) -> Result<Increment, RepositoryError> {
    let (path, stored_bytes) = layer.content.describe(file)?;
    if stored_bytes <= CHECKED_BYTES_MAX {
        layer.read_through(file, &mut vec![0; STEP_BYTES])?;
    }
    let (head, _) = read_beginning(layer, file)?;
    let mut map = vec![0; usize::try_from(head.map_bytes()).unwrap_or(0)];
    let count = layer.read_at(file, 0, &mut map)?;
    head.with_numbers(map.get(..count).unwrap_or_default())
        .map_err(|reason| RepositoryError::corrupt(path, reason))
}
