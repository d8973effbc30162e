//! What must outlive a killed worker but not the machine: a journal in a memfd that the supervisor holds.
//!
//! Its first 8 bytes say where the records begin. A compaction writes the successor behind the present journal
//! and then changes that number, so that a kill at any moment leaves one whole journal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FallocateFlags;

use super::Ino;
use super::answered::Answered;
use super::record::{self, RuntimeRecord};

const HEAD_BYTES: u64 = 8;

/// The open journal.
#[derive(Debug)]
pub struct Runtime {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    start: u64,
    end: u64,
    // Opens and closes that were carried out.
    answered: Answered,
    // While a compaction runs: the successor, which also gets what is appended meanwhile.
    successor: Option<Vec<u8>>,
    size_when_compacted: u64,
}

impl Runtime {
    /// Reads the journal to its first torn record.
    pub fn open(file: File) -> io::Result<(Self, Vec<RuntimeRecord>)> {
        let size = file.metadata()?.len();
        let mut head = [0; 8];
        let mut start = HEAD_BYTES;
        if size >= HEAD_BYTES {
            file.read_exact_at(&mut head, 0)?;
            start = u64::from_le_bytes(head).max(HEAD_BYTES);
        }
        let length = usize::try_from(size.saturating_sub(start)).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start)?;
        let (records, good) = record::decode(&bytes);
        let state = State {
            start,
            end: start + good as u64,
            answered: Answered::default(),
            successor: None,
            size_when_compacted: 0,
        };
        let runtime = Self {
            file,
            state: Mutex::new(state),
        };
        for record in &records {
            runtime.lock().note(record);
        }
        Ok((runtime, records))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a record.
    pub fn append(&self, record: &RuntimeRecord) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(48);
        record::encode(record, &mut bytes);
        let mut state = self.lock();
        self.file.write_all_at(&bytes, state.end)?;
        state.end += bytes.len() as u64;
        state.note(record);
        if let Some(successor) = &mut state.successor {
            successor.extend_from_slice(&bytes);
        }
        Ok(())
    }

    /// The node that a carried out open or close was about.
    pub fn answered(&self, unique: u64) -> Option<Ino> {
        self.lock().answered.get(unique)
    }

    /// Size of the journal, in bytes.
    pub fn size(&self) -> u64 {
        let state = self.lock();
        state.end - state.start
    }

    /// Size right after the last compaction, in bytes.
    pub fn size_when_compacted(&self) -> u64 {
        self.lock().size_when_compacted
    }

    /// Begins a compaction: from now on all that is appended counts for the successor too.
    pub fn begin_compaction(&self) {
        let mut state = self.lock();
        let mut bytes = Vec::new();
        for (unique, ino) in state.answered.all() {
            record::encode(&RuntimeRecord::Answered { unique, ino }, &mut bytes);
        }
        state.successor = Some(bytes);
    }

    /// Puts records that sum up earlier ones into the successor.
    pub fn sum_up(&self, records: &[RuntimeRecord]) {
        if let Some(successor) = &mut self.lock().successor {
            for record in records {
                record::encode(record, successor);
            }
        }
    }

    /// Puts the successor in place.
    pub fn finish_compaction(&self) -> io::Result<()> {
        let mut state = self.lock();
        let Some(successor) = state.successor.take() else {
            return Ok(());
        };
        let (start, end) = (state.end, state.end + successor.len() as u64);
        self.file.write_all_at(&successor, start)?;
        self.file.write_all_at(&start.to_le_bytes(), 0)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let old = start - HEAD_BYTES;
        rustix::fs::fallocate(&self.file, hole, HEAD_BYTES, old.max(1))?;
        state.start = start;
        state.end = end;
        state.size_when_compacted = end - start;
        Ok(())
    }
}

impl State {
    fn note(&mut self, record: &RuntimeRecord) {
        if let RuntimeRecord::Opens { unique, ino, .. } | RuntimeRecord::Answered { unique, ino } =
            record
        {
            self.answered.remember(*unique, *ino);
        }
    }
}
