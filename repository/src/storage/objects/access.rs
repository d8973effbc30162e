//! The way to object stores, shared by all that is opened: threads that speak with them, a bound on how many requests are under way, and the
//! blocks that are kept in memory.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;

use super::blocks::BlockCache;
use super::failure::ObjectFailure;

/// Threads that speak with object stores.
const THREAD_COUNT: usize = 2;

/// What is allowed to object stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLimits {
    /// Most bytes of objects in memory.
    pub cache_bytes_max: usize,
    /// Most requests at a time.
    pub request_count_max: usize,
    /// How long a request is tried again that failed for a reason that may pass.
    pub retry_for: Duration,
}

impl Default for ObjectLimits {
    fn default() -> Self {
        Self {
            cache_bytes_max: 64 << 20,
            request_count_max: 32,
            retry_for: Duration::from_secs(60),
        }
    }
}

/// The way to object stores; nothing is started before it is needed.
#[derive(Debug)]
pub struct ObjectAccess {
    limits: ObjectLimits,
    runtime: Mutex<Option<Runtime>>,
    pub(super) requests: Arc<Semaphore>,
    pub(super) blocks: Arc<BlockCache>,
    next_object: AtomicU64,
    fetched_bytes: AtomicU64,
}

impl Default for ObjectAccess {
    fn default() -> Self {
        Self::new(ObjectLimits::default())
    }
}

impl ObjectAccess {
    /// A way within these limits.
    pub fn new(limits: ObjectLimits) -> Self {
        Self {
            runtime: Mutex::default(),
            requests: Arc::new(Semaphore::new(limits.request_count_max.max(1))),
            blocks: Arc::new(BlockCache::new(limits.cache_bytes_max)),
            next_object: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
            limits,
        }
    }

    /// Bytes of objects that were asked for so far: more than were read, for pages are fetched with what lies beside them.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count_fetched(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn limits(&self) -> &ObjectLimits {
        &self.limits
    }

    /// A number for an object that is being opened.
    pub(super) fn new_object(&self) -> u64 {
        self.next_object.fetch_add(1, Ordering::Relaxed)
    }

    /// Where requests run.
    pub(super) fn handle(&self) -> Result<Handle, ObjectFailure> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*runtime {
            return Ok(runtime.handle().clone());
        }
        let made = Builder::new_multi_thread()
            .worker_threads(THREAD_COUNT)
            .thread_name("objects")
            .enable_all()
            .build();
        let made = made.map_err(|error| {
            ObjectFailure::unavailable(
                "the object store",
                format!("cannot be spoken with: {error}"),
            )
        })?;
        Ok(runtime.insert(made).handle().clone())
    }

    /// Waits for a request, when it is its turn. `object` is what it is about.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        object: &str,
        request: impl Future<Output = Result<T, ObjectFailure>> + Send + 'static,
    ) -> Result<T, ObjectFailure> {
        let (send, receive) = sync_channel(1);
        let requests = Arc::clone(&self.requests);
        // It ends by itself: each request has a time limit.
        self.handle()?.spawn(async move {
            let turn = requests.acquire_owned().await;
            let answer = request.await;
            drop(turn);
            // Nobody waits any more where the process ends.
            send.send(answer).ok();
        });
        let answer = receive.recv();
        answer.unwrap_or_else(|_| Err(ObjectFailure::given_up(object)))
    }
}

impl Drop for ObjectAccess {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut();
        let runtime = runtime.unwrap_or_else(PoisonError::into_inner).take();
        // Whoever drops it may be on a thread that must not wait.
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}
