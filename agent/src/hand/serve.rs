//! One connection: JSON lines until an attach turns it into the page channel, or the asker goes away.

use std::os::fd::OwnedFd;
use std::time::Duration;

use common::agent::hand::{
    LINE_BYTES_MAX, Request, RequestFrame, Response, ResponseFrame, SessionPlace,
};
use common::agent::passing;
use common::problem::{ErrorCode, Problem};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::task::JoinSet;

use super::dispatch::{Hand, deadline};

/// How long the relay goes on carrying one direction after the other has ended.
const DRAIN_FOR: Duration = Duration::from_secs(5);

/// Serves a connection to its end; on one that is a Unix socket, `socket`, descriptors can be handed over.
pub async fn serve<R, W>(
    hand: Hand,
    reader: R,
    mut writer: W,
    socket: Option<OwnedFd>,
) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    // A request that outlived its deadline: the next one waits for it, so that two never work at once.
    let mut working = JoinSet::new();
    let mut greeted = false;
    while let Some(line) = next_line(&mut reader).await? {
        let frame: RequestFrame = match line {
            Ok(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
            Ok(line) => match serde_json::from_slice(&line) {
                Ok(frame) => frame,
                Err(error) => {
                    let id = request_id(&line);
                    respond(&mut writer, id, Err(malformed(&error.to_string()))).await?;
                    continue;
                }
            },
            Err(too_long) => {
                respond(&mut writer, 0, Err(too_long)).await?;
                continue;
            }
        };
        let RequestFrame { id, request } = frame;
        greeted |= matches!(request, Request::Hello { .. });
        if !greeted {
            respond(
                &mut writer,
                id,
                Err(malformed("the first request must be Hello")),
            )
            .await?;
            continue;
        }
        if let Request::AttachDirectly { place } = &request {
            let connected = hand.mounts().connect_pages(place);
            match (connected, &socket) {
                (Ok(stream), Some(socket)) => {
                    respond(&mut writer, id, Ok(Response::Done)).await?;
                    // Whoever reads on would lose the descriptor: they say when they are ready.
                    if reader.read_u8().await? == passing::READY {
                        passing::send(socket, &stream)?;
                    }
                }
                (Ok(_), None) => {
                    let why = malformed("this connection is no Unix socket");
                    respond(&mut writer, id, Err(why)).await?;
                }
                (Err(error), _) => {
                    respond(&mut writer, id, Err(unreachable_worker(place, error))).await?;
                }
            }
            continue;
        }
        if let Request::Attach { place } = &request {
            let connected = hand.mounts().connect_pages(place).and_then(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)
            });
            match connected {
                Ok(stream) => {
                    respond(&mut writer, id, Ok(Response::Done)).await?;
                    return relay(reader, writer, stream).await;
                }
                Err(error) => {
                    respond(&mut writer, id, Err(unreachable_worker(place, error))).await?;
                    continue;
                }
            }
        }
        let result = answer(&hand, request, &mut working).await;
        greeted &= !matches!(&result, Err(p) if p.code == ErrorCode::AgentMismatch);
        respond(&mut writer, id, result).await?;
    }
    Ok(())
}

fn unreachable_worker(place: &SessionPlace, error: std::io::Error) -> Problem {
    let doing = format!("connect to the worker of session {}", place.session_id);
    super::failure(ErrorCode::MountFailed, doing, error)
}

type Outcome = Result<Response, Problem>;

async fn answer(hand: &Hand, request: Request, working: &mut JoinSet<Outcome>) -> Outcome {
    let limit = deadline(&request);
    let late = || {
        Problem::new(
            ErrorCode::TimedOut,
            format!("the agent did not finish within {} s", limit.as_secs()),
            "look at the host's load and whether its mount answers, then retry",
        )
    };
    let work = async {
        while working.join_next().await.is_some() {}
        let (hand, runtime) = (hand.clone(), tokio::runtime::Handle::current());
        working.spawn_blocking(move || hand.answer(request, &runtime));
        working.join_next().await
    };
    match tokio::time::timeout(limit, work).await {
        Ok(Some(Ok(result))) => result,
        Ok(_) => Err(Problem::new(
            ErrorCode::Internal,
            "the agent panicked while it worked on the request",
            "report this with the agent's log",
        )),
        Err(_) => Err(late()),
    }
}

async fn respond(
    writer: &mut (impl AsyncWrite + Unpin),
    id: u64,
    result: Outcome,
) -> std::io::Result<()> {
    if let Err(problem) = &result {
        tracing::info!(id, code = %problem.code, message = %problem.message, "request refused");
    }
    let mut line = serde_json::to_vec(&ResponseFrame { id, result })?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

/// The next line without its end; one that is too long is skipped to its end. `None` at the end of the connection.
async fn next_line(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> std::io::Result<Option<Result<Vec<u8>, Problem>>> {
    let mut line = Vec::new();
    let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let read = (&mut *reader)
        .take(most + 1)
        .read_until(b'\n', &mut line)
        .await?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(Ok(line)));
    }
    if line.len() <= LINE_BYTES_MAX {
        // The connection ended inside a line: nobody awaits an answer to a half request.
        return Ok(None);
    }
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let skip = end.map_or(buffer.len(), |at| at + 1);
        reader.consume(skip);
        if end.is_some() {
            break;
        }
    }
    Ok(Some(Err(Problem::new(
        ErrorCode::MessageTooLarge,
        format!("a line is longer than {LINE_BYTES_MAX} bytes"),
        "send the tree in smaller chunks",
    ))))
}

fn malformed(why: &str) -> Problem {
    Problem::new(
        ErrorCode::MalformedMessage,
        format!("the line is not a request: {why}"),
        "install the same version of pginstant on mount server and target",
    )
}

/// The id of a request that could not be understood, so that the asker can tell which it was.
fn request_id(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line)
        .ok()
        .and_then(|value| value.get("id")?.as_u64())
        .unwrap_or(0)
}

async fn relay<R, W>(
    mut reader: BufReader<R>,
    mut writer: W,
    stream: tokio::net::UnixStream,
) -> std::io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_worker, mut to_worker) = stream.into_split();
    let up = async {
        let copied = tokio::io::copy_buf(&mut reader, &mut to_worker).await;
        to_worker.shutdown().await.and(copied)
    };
    let down = async {
        let copied = tokio::io::copy(&mut from_worker, &mut writer).await;
        writer.shutdown().await.and(copied)
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    // Each end may close its half first; the other half must not hold the connection for ever.
    tokio::select! {
        first = &mut up => {
            first?;
            if let Ok(rest) = tokio::time::timeout(DRAIN_FOR, down).await { rest?; }
        }
        first = &mut down => { first?; }
    }
    Ok(())
}
