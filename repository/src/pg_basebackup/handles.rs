//! Open files, a bounded number of them: the one not used for the longest time makes room.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use crate::RepositoryError;

#[derive(Debug)]
pub(crate) struct Handles {
    open: Mutex<Open>,
    count_max: usize,
}

#[derive(Debug, Default)]
struct Open {
    files: HashMap<u32, (u64, Arc<File>)>,
    clock: u64,
}

impl Handles {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            open: Mutex::default(),
            count_max: count_max.max(1),
        }
    }

    /// The open file of this number, opened now if need be.
    pub(crate) fn get(
        &self,
        number: u32,
        open: impl FnOnce() -> Result<File, RepositoryError>,
    ) -> Result<Arc<File>, RepositoryError> {
        // What is under the lock cannot be left half done, so one poisoned elsewhere is as good.
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut held = lock();
            held.clock += 1;
            let clock = held.clock;
            if let Some((used_at, file)) = held.files.get_mut(&number) {
                *used_at = clock;
                return Ok(Arc::clone(file));
            }
        }
        let file = Arc::new(open()?);
        let mut held = lock();
        if held.files.len() >= self.count_max {
            let oldest = held.files.iter().min_by_key(|(_, (used_at, _))| *used_at);
            let oldest = oldest.map(|(number, _)| *number);
            oldest.and_then(|number| held.files.remove(&number));
        }
        let clock = held.clock;
        held.files.insert(number, (clock, Arc::clone(&file)));
        Ok(file)
    }
}
