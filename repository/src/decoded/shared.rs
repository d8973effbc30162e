//! Backups that took long to open, shared by all who have them open: what is the same where it is stored is decoded and kept once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::{Backup, RepositoryError};

/// What a backup is where it is stored: its label, and each of its files by everything that a change of it changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    label: String,
    files: Vec<(String, String)>,
}

impl Identity {
    pub(crate) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            files: Vec::new(),
        }
    }

    /// Adds a file, and everything of it that a change of it changes.
    pub(crate) fn add(&mut self, name: &str, identity: String) {
        self.files.push((name.to_owned(), identity));
    }
}

/// Backups that are open.
#[derive(Debug, Default)]
pub(crate) struct SharedBackups {
    slots: Mutex<HashMap<Identity, Arc<Slot>>>,
}

/// Locked while its backup is being opened.
type Slot = Mutex<Option<Weak<dyn Backup>>>;

impl SharedBackups {
    /// The backup of this identity if it is open, else opened now. Who asks meanwhile waits for it.
    pub(crate) fn get(
        &self,
        identity: Identity,
        open: impl FnOnce() -> Result<Arc<dyn Backup>, RepositoryError>,
    ) -> Result<Arc<dyn Backup>, RepositoryError> {
        let slot = {
            // Nothing under these locks is left half done, so poisoned ones are as good.
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|_, slot| is_used(slot));
            Arc::clone(slots.entry(identity).or_default())
        };
        let mut shared = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backup) = shared.as_ref().and_then(Weak::upgrade) {
            return Ok(backup);
        }
        let backup = open()?;
        *shared = Some(Arc::downgrade(&backup));
        Ok(backup)
    }
}

/// Whether somebody has or opens the backup.
fn is_used(slot: &Arc<Slot>) -> bool {
    let is_open = |shared: &Option<Weak<dyn Backup>>| {
        shared
            .as_ref()
            .is_some_and(|backup| backup.strong_count() > 0)
    };
    Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|shared| is_open(&shared))
}
