//! Keeps a worker running until the mount is to end, and ends it the way that its cache wants.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::agent::hand::CacheAfterwards;
use common::problem::{ErrorCode, Problem};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use super::{END_AND_DISCARD, END_AND_KEEP, Kept, SuperviseSpec, io_problem, is_mounted, unmount};
use crate::own_program;
use crate::worker::WorkerSpec;

/// How long a worker may take to make everything durable before it counts as hanging.
const FINISH_LIMIT: Duration = Duration::from_secs(600);
/// A worker that dies sooner than this after its start is restarted after a pause.
const HEALTHY_AFTER: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What the supervisor is told by signals.
struct Told {
    keep: Signals,
    interrupt: Signals,
    discard: Signals,
}

impl Told {
    fn listen() -> io::Result<Self> {
        let kind = |signal: rustix::process::Signal| SignalKind::from_raw(signal.as_raw());
        Ok(Self {
            keep: signal(kind(END_AND_KEEP))?,
            interrupt: signal(SignalKind::interrupt())?,
            discard: signal(kind(END_AND_DISCARD))?,
        })
    }

    async fn end(&mut self) -> CacheAfterwards {
        tokio::select! {
            _ = self.keep.recv() => CacheAfterwards::Kept,
            _ = self.interrupt.recv() => CacheAfterwards::Kept,
            _ = self.discard.recv() => CacheAfterwards::Discarded,
        }
    }

    /// Waits for longer than the last time; tells whether the end came first.
    async fn ends_within(&mut self, pause: &mut Duration) -> bool {
        *pause = (*pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        tokio::time::timeout(*pause, self.end()).await.is_ok()
    }

    async fn discard(&mut self) {
        self.discard.recv().await;
    }
}

/// Keeps a worker running until told to end or until the mount is gone.
pub(super) async fn keep_worker(spec: &SuperviseSpec, kept: &Kept) -> Result<(), Problem> {
    let mut told = Told::listen().map_err(io_problem("listen to signals".to_owned()))?;
    let mut starts = 0;
    let mut pause = Duration::ZERO;
    loop {
        let started_at = Instant::now();
        let mut worker = match spawn_worker(spec, kept, starts + 1) {
            Ok(worker) => worker,
            // The first one's failure is its starter's business; to give up a mount that serves would fail what its users do.
            Err(error) if starts == 0 => {
                return Err(io_problem("start the worker".to_owned())(error));
            }
            Err(error) => {
                tracing::error!(%error, "start the worker; it is tried again");
                if told.ends_within(&mut pause).await {
                    return Ok(());
                }
                continue;
            }
        };
        starts += 1;
        // Taken out, for waiting would close it, and its end tells the worker to end.
        let input = worker.stdin.take();
        let ended = tokio::select! {
            ended = worker.wait() => ended,
            cache = told.end() => {
                // Whoever comes now must not take it for a mount that goes on.
                std::fs::remove_file(spec.place.agent_socket()).ok();
                // A worker makes everything durable as soon as its mount is gone.
                if cache == CacheAfterwards::Kept {
                    unmount(&spec.place).map_err(io_problem("unmount".to_owned()))?;
                    drop(input);
                    finish(&mut worker, told.discard()).await;
                }
                worker.start_kill().ok();
                worker.wait().await.ok();
                return Ok(());
            }
        };
        tracing::warn!(?ended, starts, "the worker ended");
        if !is_mounted(&spec.place) {
            return Ok(());
        }
        if !(spec.options.replace_workers && can_resend(&kept.init)) {
            // The end of the last descriptor of the device fails what was under way.
            return Err(Problem::new(
                ErrorCode::MountFailed,
                format!(
                    "the worker of {} ended, and its requests cannot be sent to another",
                    spec.place.session_id
                ),
                "retry the session: its write cache is kept; Linux 6.9 and later replace a worker unnoticed",
            ));
        }
        if started_at.elapsed() > HEALTHY_AFTER {
            pause = Duration::ZERO;
            continue;
        }
        if told.ends_within(&mut pause).await {
            return Ok(());
        }
    }
}

/// Whether the kernel says in its first request that it can send requests again.
fn can_resend(init: &[u8]) -> bool {
    // struct fuse_in_header has 40 bytes; fuse_init_in begins with major, minor, max_readahead, flags, flags2.
    const FLAGS_AT: usize = 40 + 12;
    const INIT_EXT: u32 = 1 << 30;
    const HAS_RESEND: u32 = 1 << (39 - 32);
    let word = |at: usize| {
        let bytes = init.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let has = |at, flag| word(at).is_some_and(|word| word & flag != 0);
    has(FLAGS_AT, INIT_EXT) && has(FLAGS_AT + 4, HAS_RESEND)
}

// The end of its input has told the worker to make everything durable and to end.
async fn finish(worker: &mut Child, discarded: impl Future<Output = ()>) {
    tokio::select! {
        ended = tokio::time::timeout(FINISH_LIMIT, worker.wait()) => {
            if ended.is_err() {
                tracing::error!("the worker does not finish and is killed");
            }
        }
        () = discarded => {}
    }
}

fn spawn_worker(spec: &SuperviseSpec, kept: &Kept, starts: u32) -> io::Result<Child> {
    let worker = WorkerSpec {
        place: spec.place.clone(),
        options: spec.options.clone(),
        device: kept.device.as_fd().as_raw_fd(),
        runtime: kept.runtime.as_fd().as_raw_fd(),
        init: kept.init.clone(),
        starts,
        supervisor_pid: std::process::id(),
    };
    Command::new(own_program::path())
        .args(["worker", "--spec", &serde_json::to_string(&worker)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_can_send_requests_again_is_told_from_an_older_one() {
        let init = |flags: u32, flags2: u32| {
            let mut bytes = vec![0; 40 + 12];
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(flags2.to_ne_bytes());
            bytes
        };
        assert!(can_resend(&init(1 << 30, 1 << 7)));
        assert!(!can_resend(&init(0, 1 << 7)));
        assert!(!can_resend(&init(1 << 30, 1 << 6)));
        assert!(!can_resend(&init(1 << 30, 1 << 7)[..54]));
    }
}
