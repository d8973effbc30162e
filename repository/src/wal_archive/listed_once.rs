//! An archive that several backups are looked at with: it is listed once for all of them.

use std::sync::{Arc, Mutex, PoisonError};

use super::names::ArchiveNames;
use super::storage::{StoredWal, WalStorage};
use crate::{Lsn, RepositoryError, RestorePoint};

/// The archive of some backups: itself for one of them, which may hold it for long, else one that keeps its list.
pub(crate) fn shared(storage: Arc<dyn WalStorage>, of: &[RestorePoint]) -> Arc<dyn WalStorage> {
    let starts = of.iter().map(|point| point.recoverable.from_lsn);
    match starts.min() {
        Some(from) if of.len() > 1 => Arc::new(ListedOnce {
            storage,
            from,
            names: Mutex::default(),
        }),
        _ => storage,
    }
}

#[derive(Debug)]
struct ListedOnce {
    storage: Arc<dyn WalStorage>,
    /// Where the oldest of the backups begins.
    from: Lsn,
    names: Mutex<Option<Arc<ArchiveNames>>>,
}

impl WalStorage for ListedOnce {
    fn list(&self, from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError> {
        if from < self.from {
            return self.storage.list(from);
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = &*names {
            return Ok(Arc::clone(names));
        }
        let listed = self.storage.list(self.from)?;
        *names = Some(Arc::clone(&listed));
        Ok(listed)
    }

    fn open(&self, name: &str) -> Result<StoredWal, RepositoryError> {
        self.storage.open(name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl WalStorage for Counting {
        fn list(&self, _from: Lsn) -> Result<Arc<ArchiveNames>, RepositoryError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::default())
        }

        fn open(&self, name: &str) -> Result<StoredWal, RepositoryError> {
            Err(RepositoryError::corrupt(name, "is not there"))
        }
    }

    #[test]
    fn an_archive_is_listed_once_for_all_backups_and_anew_for_what_is_older() {
        let counting = Arc::new(Counting::default());
        let listed = ListedOnce {
            storage: counting.clone(),
            from: Lsn(100),
            names: Mutex::default(),
        };
        for from in [300, 100, 200, 300] {
            listed.list(Lsn(from)).unwrap();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 1);
        listed.list(Lsn(99)).unwrap();
        assert_eq!(counting.0.load(Ordering::Relaxed), 2);
    }
}
