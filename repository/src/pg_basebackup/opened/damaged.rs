//! Archives that could be decoded to the last file, but whose own checksum is wrong: something in them is not what it was.
//!
//! Which files, only their checksums in the manifest tell. So these are compared before anything is handed on; a file that has
//! none is not handed on at all.

use std::collections::BTreeMap;

use super::{Content, EntryKind, Files, Layer};
use crate::checksums::Standing;
use crate::{FileIndex, RepositoryError};

/// Bytes per read.
const READ_BYTES: usize = 1 << 20;

impl Content {
    /// Tells of a damaged archive, if there is one, where something in the backup does not fit.
    pub(super) fn blame_damage(&self, error: RepositoryError) -> RepositoryError {
        let Files::Tar(files) = &self.files else {
            return error;
        };
        let damage = (0..files.count()).find_map(|source| files.damage(source));
        match (damage, &error) {
            (Some((archive, reason)), RepositoryError::Corrupt { .. }) => {
                RepositoryError::corrupt(archive, format!("{reason}; with what it has, {error}"))
            }
            _ => error,
        }
    }
}

impl Layer {
    /// The archive of a file and what is wrong with it, if something is.
    pub(super) fn damage(&self, file: FileIndex) -> Option<(&str, &str)> {
        let Files::Tar(files) = &self.content.files else {
            return None;
        };
        let location = self.content.locations.get(file.0 as usize)?;
        files.damage(location.source)
    }

    /// Finds out about every file of damaged archives; refuses the backup for an archive none of whose files is known to be sound.
    pub(super) fn settle_damaged(&self) -> Result<(), RepositoryError> {
        let mut sound_counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for entry in self.content.tree.entries() {
            let EntryKind::File { file, size_bytes } = entry.kind else {
                continue;
            };
            let Some(damage) = self.damage(file).filter(|_| size_bytes > 0) else {
                continue;
            };
            let sound_count = sound_counts.entry(damage).or_default();
            match self.is_sound(file)? {
                true => *sound_count += 1,
                false => self.verifier.settle(file, false),
            }
        }
        let without = sound_counts.into_iter().find(|(_, count)| *count == 0);
        match without {
            Some(((archive, reason), _)) => Err(RepositoryError::corrupt(archive, reason)),
            None => Ok(()),
        }
    }

    /// Whether a file has a checksum and is as it says.
    fn is_sound(&self, file: FileIndex) -> Result<bool, RepositoryError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while self.standing(file) == Standing::Pending {
            match self.read_at(file, offset, &mut buffer) {
                Ok(0) | Err(RepositoryError::Corrupt { .. }) => break,
                Ok(count) => offset += count as u64,
                Err(error) => return Err(error),
            }
        }
        Ok(self.standing(file) == Standing::Verified)
    }
}
