//! Threads for work that may wait for the backup.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// A bounded pool.
pub struct Pool {
    jobs: SyncSender<Job>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// Niceness of work that stands behind.
const BEHIND: i32 = 10;
const STACK_BYTES: usize = 256 * 1024;

impl Pool {
    /// Starts the threads, which end when the pool is dropped.
    pub fn start(name: &str, thread_count: usize, queue_length: usize) -> io::Result<Self> {
        Self::start_with(name, thread_count, queue_length, || {})
    }

    /// As [`Self::start`], for work that stands behind all other work.
    pub fn start_behind(name: &str, thread_count: usize, queue_length: usize) -> io::Result<Self> {
        Self::start_with(name, thread_count, queue_length, stand_behind)
    }

    fn start_with(
        name: &str,
        thread_count: usize,
        queue_length: usize,
        begin: fn(),
    ) -> io::Result<Self> {
        let (jobs, receiver) = sync_channel::<Job>(queue_length);
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..thread_count {
            let receiver = receiver.clone();
            std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    begin();
                    work(&receiver);
                })?;
        }
        Ok(Self { jobs })
    }

    /// Does the job soon; waits for room when the queue is full.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The receivers live as long as the pool, so that nothing can fail here.
        self.jobs.send(Box::new(job)).ok();
    }

    /// Does the job if there is room for it; it is one that need not be done.
    pub fn try_run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        !matches!(
            self.jobs.try_send(Box::new(job)),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
        )
    }
}

/// Lets the processor do this thread's work after others'.
pub(crate) fn stand_behind() {
    // On Linux a priority is a thread's. Without the right to it the work is done like any other.
    let thread = rustix::thread::gettid();
    rustix::process::setpriority_process(Some(thread), BEHIND).ok();
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let received = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match received {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
