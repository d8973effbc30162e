//! The backup, as the worker reads it: requests over the page channel, many at a time.
//!
//! Whoever reads waits until the mount server has answered, also when it is away; a new connection gets
//! all questions that have no answer yet.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::agent::hand::PROTOCOL_VERSION;
use common::agent::pages::{FRAME_BYTES_MAX, PageFrame};

/// Why bytes of the backup could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// Asking again is useless.
    #[error("the mount server cannot read the backup: {0}")]
    Permanent(String),
    /// Nobody answered for as long as readers may wait.
    #[error("the mount server did not answer within {0:?}")]
    TimedOut(Duration),
}

const RETRY_AFTER: Duration = Duration::from_secs(1);
const SEND_LIMIT: Duration = Duration::from_secs(20);

/// The client side of the page channel.
#[derive(Debug)]
pub struct Base {
    tree_hash: u32,
    wait_limit: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Arc<Channel>>,
    attached_count: u64,
    next_request: u64,
    waiting: HashMap<u64, Waiting>,
    bytes_read: u64,
    reads: u64,
}

#[derive(Debug)]
struct Channel {
    number: u64,
    sender: Mutex<UnixStream>,
}

#[derive(Debug)]
struct Waiting {
    frame: PageFrame,
    since: Instant,
    answer: Option<PageFrame>,
}

/// How the page channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseStatus {
    /// Whether a mount server is attached.
    pub attached: bool,
    /// How long the oldest read has been waiting while nobody is attached.
    pub waiting_for: Option<Duration>,
    /// Reads answered so far.
    pub reads: u64,
    /// Bytes read so far.
    pub bytes_read: u64,
}

impl Base {
    /// A client for a tree of this hash, whose readers wait at most this long.
    pub fn new(tree_hash: u32, wait_limit: Duration) -> Self {
        Self {
            tree_hash,
            wait_limit,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the page channel is.
    pub fn status(&self) -> BaseStatus {
        let state = self.lock();
        let oldest = state.waiting.values().map(|w| w.since).min();
        BaseStatus {
            attached: state.channel.is_some(),
            waiting_for: oldest
                .filter(|_| state.channel.is_none())
                .map(|since| since.elapsed()),
            reads: state.reads,
            bytes_read: state.bytes_read,
        }
    }

    /// Reads bytes of a file; fewer than asked for only at its end. Waits while nobody is attached.
    pub fn read(&self, file: u32, offset: u64, length: u32) -> Result<Vec<u8>, BaseError> {
        let since = Instant::now();
        loop {
            match self.ask(file, offset, length, since)? {
                PageFrame::Data { bytes, .. } => return Ok(bytes),
                PageFrame::Failed {
                    permanent: false,
                    message,
                    ..
                } => {
                    tracing::warn!(file, offset, message, "the mount server failed to read");
                    self.pause(since)?;
                }
                PageFrame::Failed { message, .. } => return Err(BaseError::Permanent(message)),
                PageFrame::Hello { .. } | PageFrame::Read { .. } => {
                    return Err(BaseError::Permanent("an answer of a wrong kind".to_owned()));
                }
            }
        }
    }

    fn ask(
        &self,
        file: u32,
        offset: u64,
        length: u32,
        since: Instant,
    ) -> Result<PageFrame, BaseError> {
        let mut state = self.lock();
        let request = state.next_request;
        state.next_request += 1;
        let frame = PageFrame::Read {
            request,
            file,
            offset,
            length,
        };
        let waiting = Waiting {
            frame: frame.clone(),
            since,
            answer: None,
        };
        state.waiting.insert(request, waiting);
        let channel = state.channel.clone();
        drop(state);
        if let Some(channel) = channel {
            channel.send(&frame);
        }
        let mut state = self.lock();
        loop {
            if let Some(answer) = state
                .waiting
                .get_mut(&request)
                .and_then(|w| w.answer.take())
            {
                state.waiting.remove(&request);
                return Ok(answer);
            }
            let Some(left) = self.wait_limit.checked_sub(since.elapsed()) else {
                state.waiting.remove(&request);
                return Err(BaseError::TimedOut(self.wait_limit));
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn pause(&self, since: Instant) -> Result<(), BaseError> {
        if since.elapsed() + RETRY_AFTER > self.wait_limit {
            return Err(BaseError::TimedOut(self.wait_limit));
        }
        std::thread::sleep(RETRY_AFTER);
        Ok(())
    }

    /// Serves a page channel until it ends; a later one takes its place.
    pub fn attach(&self, stream: UnixStream) -> io::Result<()> {
        let mut reader = stream.try_clone()?;
        self.expect_hello(&mut reader)?;
        stream.set_write_timeout(Some(SEND_LIMIT))?;
        let mut state = self.lock();
        state.attached_count += 1;
        let channel = Arc::new(Channel {
            number: state.attached_count,
            sender: Mutex::new(stream),
        });
        let former = state.channel.replace(channel.clone());
        let unanswered: Vec<PageFrame> = state
            .waiting
            .values()
            .filter(|w| w.answer.is_none())
            .map(|w| w.frame.clone())
            .collect();
        drop(state);
        if let Some(former) = former {
            former.close();
        }
        for frame in unanswered {
            channel.send(&frame);
        }
        let ended = self.receive(&mut reader);
        let mut state = self.lock();
        if state
            .channel
            .as_ref()
            .is_some_and(|c| c.number == channel.number)
        {
            state.channel = None;
        }
        drop(state);
        channel.close();
        ended
    }

    fn expect_hello(&self, reader: &mut UnixStream) -> io::Result<()> {
        reader.set_read_timeout(Some(SEND_LIMIT))?;
        let hello = read_frame(reader)?;
        reader.set_read_timeout(None)?;
        let wanted = PageFrame::Hello {
            protocol: PROTOCOL_VERSION,
            tree_hash: self.tree_hash,
        };
        if hello != wanted {
            let message = format!("expected {wanted:?}, got {hello:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(())
    }

    fn receive(&self, reader: &mut UnixStream) -> io::Result<()> {
        loop {
            let frame = read_frame(reader)?;
            let (PageFrame::Data { request, .. } | PageFrame::Failed { request, .. }) = &frame
            else {
                return Err(io::Error::other("a frame that only a worker sends"));
            };
            let mut state = self.lock();
            if let PageFrame::Data { bytes, .. } = &frame {
                state.reads += 1;
                state.bytes_read += bytes.len() as u64;
            }
            if let Some(waiting) = state.waiting.get_mut(request) {
                waiting.answer = Some(frame);
                drop(state);
                self.changed.notify_all();
            }
        }
    }
}

impl Channel {
    // A failed send ends the connection: its reader notices, and a new connection gets the question again.
    fn send(&self, frame: &PageFrame) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = sender.write_all(&frame.encode()) {
            tracing::warn!(%error, "the page channel broke while sending");
            sender.shutdown(Shutdown::Both).ok();
        }
    }

    fn close(&self) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.shutdown(Shutdown::Both).ok();
    }
}

/// Reads one frame of the page channel.
pub fn read_frame(reader: &mut impl Read) -> io::Result<PageFrame> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame)?;
    PageFrame::decode(&frame).map_err(io::Error::other)
}
