//! The backup, as the worker reads it: requests over the page channel, many at a time.
//!
//! Whoever reads waits until the mount server has answered, also when it is away; a new connection gets
//! all questions that have no answer yet.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::agent::buffers::{Buffer, Buffers};
use common::agent::hand::PROTOCOL_VERSION;
use common::agent::pages::{HEAD_BYTES, PageFrame};

/// Why a reader does not get bytes of the backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    /// Asking again is useless.
    #[error("the mount server cannot read the backup: {0}")]
    Permanent(String),
    /// Nobody answered for as long as readers may wait.
    #[error("the mount server did not answer within {0:?}")]
    TimedOut(Duration),
}

/// Buffers that are kept for the next answers.
const BUFFERS_KEPT_MAX: usize = 8;
const SEND_LIMIT: Duration = Duration::from_secs(20);

/// The client side of the page channel.
#[derive(Debug)]
pub struct Base {
    tree_hash: u32,
    wait_limit: Duration,
    buffers: Arc<Buffers>,
    state: Mutex<State>,
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

// What is done with an answer, once: on the thread that receives, so that it must not wait for anything.
type Taker = Box<dyn FnOnce(PageFrame) + Send>;

struct Waiting {
    frame: PageFrame,
    taker: Taker,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("frame", &self.frame)
            .finish_non_exhaustive()
    }
}

/// Why one question was not answered with bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whether asking again is useless.
    pub permanent: bool,
    /// Why.
    pub message: String,
}

/// Bytes that are wanted of a file of the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Number of the file.
    pub file: u32,
    /// First byte.
    pub offset: u64,
    /// How many; at most [`common::agent::pages::READ_BYTES_MAX`].
    pub length: u32,
}

/// How the page channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseStatus {
    /// Whether a mount server is attached.
    pub attached: bool,
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
            buffers: Buffers::new(BUFFERS_KEPT_MAX),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the page channel is.
    pub fn status(&self) -> BaseStatus {
        let state = self.lock();
        BaseStatus {
            attached: state.channel.is_some(),
            reads: state.reads,
            bytes_read: state.bytes_read,
        }
    }

    /// Longest that a reader waits.
    pub fn wait_limit(&self) -> Duration {
        self.wait_limit
    }

    /// Asks for bytes of a file; fewer come only at its end. The taker gets the answer on the thread that receives, so that it
    /// must not wait; while nobody is attached the question stays open.
    pub fn ask(
        &self,
        range: Range,
        taker: impl FnOnce(Result<Buffer, Refused>) + Send + 'static,
    ) -> u64 {
        let taker = Box::new(move |answer| {
            taker(match answer {
                PageFrame::Data { bytes, .. } => Ok(bytes),
                PageFrame::Failed {
                    permanent, message, ..
                } => Err(Refused { permanent, message }),
                PageFrame::Hello { .. } | PageFrame::Read { .. } => Err(Refused {
                    permanent: true,
                    message: "an answer of a wrong kind".to_owned(),
                }),
            });
        });
        let mut state = self.lock();
        let request = state.next_request;
        state.next_request += 1;
        let frame = PageFrame::Read {
            request,
            file: range.file,
            offset: range.offset,
            length: range.length,
        };
        let waiting = Waiting {
            frame: frame.clone(),
            taker,
        };
        state.waiting.insert(request, waiting);
        let channel = state.channel.clone();
        drop(state);
        if let Some(channel) = channel {
            channel.send(&frame);
        }
        request
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
        let unanswered: Vec<PageFrame> = state.waiting.values().map(|w| w.frame.clone()).collect();
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
        let hello = read_frame(reader, &self.buffers)?;
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
            let frame = read_frame(reader, &self.buffers)?;
            let (PageFrame::Data { request, .. } | PageFrame::Failed { request, .. }) = &frame
            else {
                return Err(io::Error::other("a frame that only a worker sends"));
            };
            let mut state = self.lock();
            if let PageFrame::Data { bytes, .. } = &frame {
                state.reads += 1;
                state.bytes_read += bytes.len() as u64;
            }
            let waiting = state.waiting.remove(request);
            drop(state);
            if let Some(waiting) = waiting {
                (waiting.taker)(frame);
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
pub fn read_frame(reader: &mut impl Read, buffers: &Arc<Buffers>) -> io::Result<PageFrame> {
    let mut head = [0; HEAD_BYTES];
    reader.read_exact(&mut head)?;
    let mut rest = buffers.take(PageFrame::rest_length(&head).map_err(io::Error::other)?);
    reader.read_exact(&mut rest)?;
    PageFrame::from_parts(head, rest).map_err(io::Error::other)
}
