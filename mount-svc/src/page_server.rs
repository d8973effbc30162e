//! Serves the pages of one backup on one page channel, many reads at a time, until the channel ends.

use std::io;
use std::sync::Arc;

use common::agent::buffers::{Buffer, Buffers};
use common::agent::hand::PROTOCOL_VERSION;
use common::agent::pages::{DataFrame, HEAD_BYTES, PageFrame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Buffers that a page channel keeps for its next answers.
const BUFFERS_KEPT_MAX: usize = 8;

/// What a page server reads from: a backup, or in tests something that fails on demand.
pub trait PageSource: Send + Sync + 'static {
    /// Reads bytes of a file of the tree; fewer only at its end.
    fn read_at(&self, file: u32, offset: u64, buffer: &mut [u8]) -> Result<usize, PageFailure>;
}

/// Why pages cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageFailure {
    /// Whether asking again is useless.
    pub permanent: bool,
    /// Why.
    pub message: String,
}

/// Serves until the other side closes the channel or breaks the protocol. Reads that are being worked off are
/// finished or dropped with the channel: the agent asks again on the next one.
pub async fn serve<C>(
    channel: C,
    source: Arc<dyn PageSource>,
    tree_hash: u32,
    reads_max: usize,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(channel);
    let (answers, mut outgoing) = mpsc::channel::<Buffer>(reads_max);
    let buffers = Buffers::new(BUFFERS_KEPT_MAX.min(reads_max));
    let hello = PageFrame::Hello {
        protocol: PROTOCOL_VERSION,
        tree_hash,
    }
    .encode();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        writer.write_all(&hello).await?;
        while let Some(frame) = outgoing.recv().await {
            writer.write_all(&frame).await?;
        }
        writer.shutdown().await
    });

    let slots = Arc::new(Semaphore::new(reads_max));
    let mut work = JoinSet::new();
    let ended = loop {
        let frame = tokio::select! {
            frame = read_frame(&mut reader) => frame,
            written = tasks.join_next() => break flatten(written),
        };
        let Some(frame) = frame? else { break Ok(()) };
        let PageFrame::Read {
            request,
            file,
            offset,
            length,
        } = frame
        else {
            break Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the agent sent something other than a read",
            ));
        };
        // A slot is taken before the next frame is read, so that a flood of reads waits in the socket, not in memory.
        let Ok(slot) = slots.clone().acquire_owned().await else {
            break Ok(());
        };
        let (source, answers) = (source.clone(), answers.clone());
        let buffers = buffers.clone();
        work.spawn(async move {
            let answer = tokio::task::spawn_blocking(move || {
                let room = DataFrame::with_room(&buffers, length);
                answer(source.as_ref(), room, (request, file, offset))
            });
            if let Ok(frame) = answer.await {
                // A closed channel means that the page channel is gone: nobody waits for the answer.
                answers.send(frame).await.ok();
            }
            drop(slot);
        });
        while work.try_join_next().is_some() {}
    };
    work.abort_all();
    tasks.abort_all();
    ended
}

fn flatten(written: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> io::Result<()> {
    match written {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Ok(()),
    }
}

// The answer as bytes on the wire: what was read lies in its frame from the beginning.
fn answer(
    source: &dyn PageSource,
    mut frame: DataFrame,
    (request, file, offset): (u64, u32, u64),
) -> Buffer {
    match source.read_at(file, offset, frame.room()) {
        Ok(count) => frame.finish(request, count),
        Err(failure) => PageFrame::Failed {
            request,
            permanent: failure.permanent,
            message: failure.message,
        }
        .encode()
        .into(),
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<PageFrame>> {
    let mut head = [0; HEAD_BYTES];
    match reader.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut rest = vec![0; PageFrame::rest_length(&head).map_err(invalid)?];
    reader.read_exact(&mut rest).await?;
    PageFrame::from_parts(head, rest.into())
        .map(Some)
        .map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    struct Pattern;

    impl PageSource for Pattern {
        fn read_at(&self, file: u32, offset: u64, buffer: &mut [u8]) -> Result<usize, PageFailure> {
            if file == 9 {
                return Err(PageFailure {
                    permanent: true,
                    message: "file 9 is corrupt".to_owned(),
                });
            }
            for (at, byte) in (offset..).zip(buffer.iter_mut()) {
                *byte = (at % 251) as u8;
            }
            Ok(buffer.len())
        }
    }

    async fn next(reader: &mut (impl AsyncRead + Unpin)) -> PageFrame {
        tokio::time::timeout(Duration::from_secs(10), read_frame(reader))
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn reads_are_answered_by_number_and_failures_do_not_end_the_channel() {
        let (here, mut there) = tokio::io::duplex(1 << 16);
        let mut servers = JoinSet::new();
        servers.spawn(serve(here, Arc::new(Pattern), 77, 4));
        assert_eq!(
            next(&mut there).await,
            PageFrame::Hello {
                protocol: PROTOCOL_VERSION,
                tree_hash: 77
            }
        );
        for (request, file) in [(1, 0), (2, 9), (3, 5)] {
            let read = PageFrame::Read {
                request,
                file,
                offset: 8192 * request,
                length: 8192,
            };
            there.write_all(&read.encode()).await.unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            match next(&mut there).await {
                PageFrame::Data { request, bytes } => {
                    assert_eq!(bytes.len(), 8192);
                    assert_eq!(u64::from(bytes[0]), 8192 * request % 251);
                    seen.push(request);
                }
                PageFrame::Failed {
                    request, permanent, ..
                } => {
                    assert!(permanent && request == 2);
                    seen.push(request);
                }
                other => panic!("{other:?}"),
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3]);
        drop(there);
        servers.join_next().await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_breaks_the_protocol_loses_its_channel() {
        let (here, mut there) = tokio::io::duplex(1 << 16);
        let mut servers = JoinSet::new();
        servers.spawn(serve(here, Arc::new(Pattern), 0, 4));
        there.write_all(&[0xff; HEAD_BYTES]).await.unwrap();
        assert!(servers.join_next().await.unwrap().unwrap().is_err());
    }
}
