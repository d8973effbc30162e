//! A service's side of a connection to the agent's hand.
//!
//! A target is reached by starting the agent here or through its socket; no shell is involved. Dropping a connection ends the
//! agent's `serve` process, never a mount or PostgreSQL: those belong to nobody on this side.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf,
};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::hand::{
    HostFacts, InstanceOptions, InstanceStatus, LINE_BYTES_MAX, MountOptions, MountStatus,
    PROTOCOL_VERSION, Prepared, Request, RequestFrame, Response, ResponseFrame, SessionPlace,
};
use super::passing;
use crate::problem::{ErrorCode, Problem};

/// How long a connection and its greeting may take.
const GREETING_FOR: Duration = Duration::from_secs(15);

/// How a target is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetConnection {
    /// The target is this host: the agent is started as a child.
    Local {
        /// The agent's program.
        program: PathBuf,
    },
    /// An agent listens on this Unix socket.
    Socket {
        /// The socket.
        path: PathBuf,
    },
}

impl std::fmt::Display for TargetConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { program } => write!(f, "{}", program.display()),
            Self::Socket { path } => write!(f, "socket:{}", path.display()),
        }
    }
}

type Reader = BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>;
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A connection to a target's agent, greeted and of the same version. One request at a time.
pub struct AgentConnection {
    target: String,
    reader: Reader,
    writer: Writer,
    // The same connection once more, where descriptors can come over it.
    passing: Option<UnixStream>,
    child: Option<Child>,
    next_id: u64,
    version: String,
    /// Kept between calls: a response that came too late for its asker may be half read.
    line: Vec<u8>,
    broken: bool,
}

impl std::fmt::Debug for AgentConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentConnection")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl AgentConnection {
    /// Connects and greets.
    pub async fn open(target: &TargetConnection) -> Result<Self, Problem> {
        let name = target.to_string();
        let connected = connect(target).await;
        let (reader, writer, passing, child) = connected.map_err(|e| unreachable(&name, &e))?;
        let mut connection = Self {
            target: name,
            reader: BufReader::with_capacity(64 * 1024, reader),
            writer,
            passing,
            child,
            next_id: 1,
            version: String::new(),
            line: Vec::new(),
            broken: false,
        };
        connection.version = connection.hello().await?;
        Ok(connection)
    }

    /// The agent's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the connection has ended, so that another one is needed.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Greets again; brings back the agent's version.
    pub async fn hello(&mut self) -> Result<String, Problem> {
        let protocol = PROTOCOL_VERSION;
        let request = Request::Hello { protocol };
        match self.request(request, GREETING_FOR).await? {
            Response::Hello { protocol, version } if protocol == PROTOCOL_VERSION => Ok(version),
            Response::Hello { version, .. } => Err(Problem::new(
                ErrorCode::AgentMismatch,
                format!("the agent of {} is of version {version}", self.target),
                "install the same version of pginstant on mount server and target",
            )),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks and waits for the answer. After a deadline the connection stays usable; the late answer is skipped.
    pub async fn request(
        &mut self,
        request: Request,
        deadline: Duration,
    ) -> Result<Response, Problem> {
        if self.broken {
            return Err(unreachable(&self.target, &"the connection has ended"));
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&RequestFrame { id, request }).map_err(|error| {
            Problem::new(
                ErrorCode::Internal,
                format!("write a request: {error}"),
                "report this",
            )
        })?;
        if line.len() >= LINE_BYTES_MAX {
            return Err(Problem::new(
                ErrorCode::MessageTooLarge,
                format!("a request to the agent is longer than {LINE_BYTES_MAX} bytes"),
                "report this: trees are to be sent in smaller chunks",
            ));
        }
        line.push(b'\n');
        let mut sent = false;
        let exchange = async {
            self.writer.write_all(&line).await?;
            self.writer.flush().await?;
            sent = true;
            loop {
                let frame = next_frame(&mut self.reader, &mut self.line).await?;
                if frame.id == id || frame.id == 0 {
                    return Ok(frame.result);
                }
            }
        };
        let result: Result<std::io::Result<Result<Response, Problem>>, _> =
            tokio::time::timeout(deadline, exchange).await;
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                self.broken = true;
                Err(unreachable(&self.target, &error))
            }
            Err(_) => {
                // Half a request on the line cannot be taken back.
                self.broken |= !sent;
                Err(Problem::new(
                    ErrorCode::TimedOut,
                    format!(
                        "the agent of {} did not answer within {} s",
                        self.target,
                        deadline.as_secs()
                    ),
                    "look at the target's load and the agent's log, then retry",
                ))
            }
        }
    }

    /// Facts about the host and the volumes of these paths.
    pub async fn host_facts(
        &mut self,
        paths: Vec<PathBuf>,
        deadline: Duration,
    ) -> Result<HostFacts, Problem> {
        match self.request(Request::HostFacts { paths }, deadline).await? {
            Response::HostFacts(facts) => Ok(facts),
            other => Err(self.unexpected(&other)),
        }
    }

    /// A request that brings back nothing.
    pub async fn done(&mut self, request: Request, deadline: Duration) -> Result<(), Problem> {
        match self.request(request, deadline).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Mounts, or finds mounted.
    pub async fn mount(
        &mut self,
        place: SessionPlace,
        options: MountOptions,
        deadline: Duration,
    ) -> Result<MountStatus, Problem> {
        match self
            .request(Request::Mount { place, options }, deadline)
            .await?
        {
            Response::Mounted(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How the mount is.
    pub async fn mount_status(
        &mut self,
        place: SessionPlace,
        deadline: Duration,
    ) -> Result<Option<MountStatus>, Problem> {
        match self
            .request(Request::MountStatus { place }, deadline)
            .await?
        {
            Response::MountStatus(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Writes the instance's configuration and recovery settings.
    pub async fn prepare(
        &mut self,
        place: SessionPlace,
        instance: InstanceOptions,
        deadline: Duration,
    ) -> Result<Prepared, Problem> {
        match self
            .request(Request::Prepare { place, instance }, deadline)
            .await?
        {
            Response::Prepared(prepared) => Ok(prepared),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How PostgreSQL is.
    pub async fn instance_status(
        &mut self,
        place: SessionPlace,
        instance: InstanceOptions,
        deadline: Duration,
    ) -> Result<InstanceStatus, Problem> {
        let request = Request::InstanceStatus { place, instance };
        match self.request(request, deadline).await? {
            Response::Instance(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Turns the connection into the page channel of a mount's worker: its own socket where the agent can hand it over,
    /// else through the agent.
    pub async fn attach(
        mut self,
        place: SessionPlace,
        deadline: Duration,
    ) -> Result<PageStream, Problem> {
        let request = Request::AttachDirectly {
            place: place.clone(),
        };
        // An agent that cannot says so, and the way through it remains.
        if self.passing.is_some() && self.done(request, deadline).await.is_ok() {
            let received = tokio::time::timeout(deadline, self.receive()).await;
            let stream = received.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            let stream = stream.map_err(|error| unreachable(&self.target, &error))?;
            return Ok(PageStream::Direct(stream));
        }
        self.done(Request::Attach { place }, deadline).await?;
        Ok(PageStream::Relayed {
            reader: self.reader,
            writer: self.writer,
            _child: Box::new(self.child),
        })
    }

    async fn receive(&mut self) -> std::io::Result<UnixStream> {
        self.writer.write_all(&[passing::READY]).await?;
        self.writer.flush().await?;
        let socket = self.passing.take();
        let socket = socket.ok_or(std::io::ErrorKind::Unsupported)?;
        let received = socket
            .async_io(tokio::io::Interest::READABLE, || passing::receive(&socket))
            .await?;
        let stream = std::os::unix::net::UnixStream::from(received);
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }

    fn unexpected(&self, response: &Response) -> Problem {
        let mut text = format!("{response:?}");
        text.truncate(text.floor_char_boundary(200));
        Problem::new(
            ErrorCode::AgentMismatch,
            format!(
                "the agent of {} gave an answer of another kind: {text}",
                self.target
            ),
            "install the same version of pginstant on mount server and target",
        )
    }
}

/// The bytes of a page channel.
pub enum PageStream {
    /// To the worker.
    Direct(UnixStream),
    /// Through the agent, whose `serve` process ends when this is dropped.
    Relayed {
        /// From the worker.
        reader: Reader,
        /// To the worker.
        writer: Writer,
        /// The process between.
        _child: Box<Option<Child>>,
    },
}

impl std::fmt::Debug for PageStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PageStream::Direct(_) => "PageStream(direct)",
            PageStream::Relayed { .. } => "PageStream(relayed)",
        })
    }
}

impl PageStream {
    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Sync + Unpin)> {
        match self {
            PageStream::Direct(stream) => Pin::new(stream),
            PageStream::Relayed { writer, .. } => Pin::new(writer),
        }
    }
}

impl AsyncRead for PageStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match &mut *self {
            PageStream::Direct(stream) => Pin::new(stream).poll_read(context, buffer),
            PageStream::Relayed { reader, .. } => Pin::new(reader).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for PageStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.writer().poll_write(context, bytes)
    }
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.writer().poll_flush(context)
    }
    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.writer().poll_shutdown(context)
    }
}

type Streams = (
    Box<dyn AsyncRead + Send + Sync + Unpin>,
    Writer,
    Option<UnixStream>,
    Option<Child>,
);

// Connected to its socket, and the same once more for descriptors.
fn streams(
    stream: std::os::unix::net::UnixStream,
    child: Option<Child>,
) -> std::io::Result<Streams> {
    stream.set_nonblocking(true)?;
    let passing = UnixStream::from_std(stream.try_clone()?)?;
    let (reader, writer) = UnixStream::from_std(stream)?.into_split();
    Ok((Box::new(reader), Box::new(writer), Some(passing), child))
}

async fn connect(target: &TargetConnection) -> std::io::Result<Streams> {
    match target {
        TargetConnection::Local { program } => {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            let input = std::os::fd::OwnedFd::from(theirs.try_clone()?);
            let child = Command::new(program)
                .arg("serve")
                .stdin(Stdio::from(input))
                .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
                .kill_on_drop(true)
                .spawn()?;
            streams(ours, Some(child))
        }
        TargetConnection::Socket { path } => {
            let stream = tokio::time::timeout(GREETING_FOR, UnixStream::connect(path)).await??;
            streams(stream.into_std()?, None)
        }
    }
}

async fn next_frame(reader: &mut Reader, line: &mut Vec<u8>) -> std::io::Result<ResponseFrame> {
    let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
    let room = u64::try_from(room).unwrap_or(u64::MAX);
    reader.take(room).read_until(b'\n', line).await?;
    if line.last() != Some(&b'\n') {
        let reason = match line.len() > LINE_BYTES_MAX {
            true => "an answer of the agent is too long",
            false => "the agent ended the connection",
        };
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            reason,
        ));
    }
    let frame = serde_json::from_slice(line).map_err(std::io::Error::from);
    line.clear();
    frame
}

fn unreachable(target: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        ErrorCode::TargetUnreachable,
        format!("the agent of {target} cannot be reached: {error}"),
        "check that the agent is installed there and runs, and look at its log",
    )
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;
