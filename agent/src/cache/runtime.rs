//! What must outlive a killed worker but not the machine: a journal in a memfd that the supervisor holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::record::{self, RuntimeRecord};

/// The open journal.
#[derive(Debug)]
pub struct Runtime {
    file: File,
    length: Mutex<u64>,
}

impl Runtime {
    /// Reads the journal to its first torn record.
    pub fn open(file: File) -> io::Result<(Self, Vec<RuntimeRecord>)> {
        let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, 0)?;
        let (records, good) = record::decode(&bytes);
        let runtime = Self {
            file,
            length: Mutex::new(good as u64),
        };
        Ok((runtime, records))
    }

    /// Appends a record.
    pub fn append(&self, record: &RuntimeRecord) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(48);
        record::encode(record, &mut bytes);
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(&bytes, *length)?;
        *length += bytes.len() as u64;
        Ok(())
    }

    /// Size of the journal, in bytes.
    pub fn size(&self) -> u64 {
        *self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
