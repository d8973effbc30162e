//! Decodes the next segments while one is read: recovery reads them one after the other, and need not wait for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::files::Reading;
use crate::RepositoryError;

/// How many segments ahead of the one that is read.
const AHEAD_COUNT: u32 = 2;

/// One thread that decodes what will be read next; it ends with this.
#[derive(Debug)]
pub(super) struct ReadAhead {
    reading: Arc<Reading>,
    stop: Arc<AtomicBool>,
    wanted: Option<SyncSender<u32>>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    pub(super) fn start(reading: &Arc<Reading>) -> Result<Self, RepositoryError> {
        // What does not fit is asked for again with the next segment that is read.
        let (wanted, asked) = sync_channel(AHEAD_COUNT as usize);
        let stop = Arc::new(AtomicBool::new(false));
        let (worker, ends) = (Arc::clone(reading), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("wal-ahead".to_owned())
            .spawn(move || run(&worker, &asked, &ends))
            .map_err(|error| RepositoryError::unreadable("wal", "start reading ahead in", error))?;
        Ok(Self {
            reading: Arc::clone(reading),
            stop,
            wanted: Some(wanted),
            thread: Some(thread),
        })
    }

    /// Somebody begins to read this segment.
    pub(super) fn note(&self, number: u32) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        for ahead in 1..=AHEAD_COUNT {
            let next = number.saturating_add(ahead);
            if self.reading.is_segment(next) {
                // A full queue is as good: there is enough to do.
                wanted.try_send(next).ok();
            }
        }
    }
}

fn run(reading: &Reading, asked: &Receiver<u32>, stop: &AtomicBool) {
    while let Ok(number) = asked.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Whoever reads it is told what is wrong with it.
        if let Err(error) = reading.decode(number, stop) {
            tracing::debug!(%error, "decode WAL ahead of its reader");
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            thread.join().ok();
        }
    }
}
