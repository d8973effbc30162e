//! The worker's socket: page channels and control connections.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::agent::hand::{MountStatus, VolumeFacts};
use common::messages::CacheStatistics;
use serde::{Deserialize, Serialize};

use super::{WorkerSpec, log_end};
use crate::base::Base;
use crate::cache::store::Store;
use crate::fs::{Hydrator, Passthrough, Statistics, Transfer, control_file};

/// First line of a page channel.
pub(super) const PAGES: &str = "pages";
/// First line of a control connection.
pub(super) const CONTROL: &str = "control";

const LINE_BYTES_MAX: u64 = 4096;
const CONNECTIONS_MAX: u32 = 64;
const FIRST_LINE_LIMIT: Duration = Duration::from_secs(10);

/// What is asked on a control connection, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ControlRequest {
    /// How is the mount? Answered by a `MountStatus`.
    Status,
    /// End the mount. Answered by the status before.
    Stop,
}

/// What connections need.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: WorkerSpec,
    pub(super) store: Arc<Store>,
    pub(super) base: Arc<Base>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) hydrator: Arc<Hydrator>,
    pub(super) statistics: Arc<Statistics>,
    pub(super) passthrough: Arc<Mutex<Passthrough>>,
}

/// Listens on the session's socket, on a thread of its own.
pub(super) fn listen(shared: Arc<Shared>) -> io::Result<()> {
    let path = shared.spec.place.agent_socket();
    let new = path.with_extension("sock.new");
    std::fs::remove_file(&new).ok();
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    // In one step, so that whoever connects meets either the predecessor's or ours.
    std::fs::rename(&new, &path)?;
    let count = Arc::new(AtomicU32::new(0));
    std::thread::Builder::new()
        .name("listen".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                if count.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                    count.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (shared, ended) = (shared.clone(), count.clone());
                let spawned = std::thread::Builder::new()
                    .name("connection".to_owned())
                    .spawn(move || {
                        log_end("a connection", serve(&shared, stream));
                        ended.fetch_sub(1, Ordering::Relaxed);
                    });
                if spawned.is_err() {
                    count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })?;
    Ok(())
}

// Byte by byte: what follows the first line belongs to the page channel.
fn first_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 {
        stream.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return String::from_utf8(line).map_err(io::Error::other);
        }
        line.extend_from_slice(&byte);
    }
    Err(io::Error::other("the first line is too long"))
}

fn serve(shared: &Shared, mut stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(FIRST_LINE_LIMIT))?;
    let role = first_line(&mut stream)?;
    stream.set_read_timeout(None)?;
    match role.as_str() {
        PAGES => {
            tracing::info!("a mount server attaches");
            shared.base.attach(stream)
        }
        CONTROL => serve_control(shared, &stream),
        _ => Err(io::Error::other(format!("unknown role {role:?}"))),
    }
}

fn serve_control(shared: &Shared, stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let request: ControlRequest = serde_json::from_str(&line)?;
        let mut answer = serde_json::to_string(&status(shared)?)?;
        answer.push('\n');
        let mut writer = stream;
        writer.write_all(answer.as_bytes())?;
        if request == ControlRequest::Stop {
            let pid = i32::try_from(shared.spec.supervisor_pid).map_err(io::Error::other)?;
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
        }
    }
}

fn status(shared: &Shared) -> io::Result<MountStatus> {
    let base = shared.base.status();
    let waiting_for = match base.attached {
        true => None,
        false => shared.transfer.waiting_for(),
    };
    let volume = rustix::fs::statvfs(shared.spec.place.cache_directory())?;
    let passthrough = shared
        .passthrough
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let (barrier_count, barrier_us) = shared.store.barriers();
    let counters = BTreeMap::from([
        ("barriers".to_owned(), barrier_count),
        ("barrier_us".to_owned(), barrier_us),
        ("base_reads".to_owned(), base.reads),
        ("base_bytes".to_owned(), base.bytes_read),
        ("catalog_bytes".to_owned(), shared.store.catalog_bytes()),
        ("runtime_bytes".to_owned(), shared.store.runtime_bytes()),
    ]);
    Ok(MountStatus {
        supervisor_pid: shared.spec.supervisor_pid,
        worker_ready: true,
        worker_starts: shared.spec.starts,
        passthrough,
        base_attached: base.attached,
        base_waiting_s: waiting_for.map(|waited| waited.as_secs()),
        cache_bytes: shared.store.cache_bytes(),
        cache_volume: VolumeFacts {
            total_bytes: volume.f_blocks.saturating_mul(volume.f_frsize),
            free_bytes: volume.f_bavail.saturating_mul(volume.f_frsize),
        },
        counters,
        statistics: statistics(shared),
    })
}

fn statistics(shared: &Shared) -> CacheStatistics {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (counted, base) = (&shared.statistics, shared.base.status());
    let read_miss = counted.read_misses.latency();
    CacheStatistics {
        hydrated_bytes: read(&shared.hydrator.copied_bytes),
        given_back_bytes: read(&counted.given_back_bytes),
        read_hits: read(&counted.read_hits),
        read_misses: read_miss.count,
        read_errors: read(&counted.read_errors),
        base_reads: base.reads,
        base_bytes: base.bytes_read,
        read_miss,
        fsync: counted.fsyncs.latency(),
        ..shared.store.census(control_file(&shared.store))
    }
}
