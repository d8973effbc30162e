//! The process that keeps a mount: holds the FUSE device, the INIT request and the runtime journal, keeps a
//! worker running, and does nothing else, so that it has no reason to die.

mod fence;
mod keep;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::agent::hand::{CacheAfterwards, MountOptions, MountStatus, SessionPlace};
use common::problem::{ErrorCode, Problem};
use rustix::fs::{FlockOperation, MemfdFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::worker::client;

/// What a supervisor is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperviseSpec {
    /// Where the session lives.
    pub place: SessionPlace,
    /// How the mount is made.
    pub options: MountOptions,
}

const START_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for a supervisor's end; one that still makes its cache durable then goes on.
const STOP_LIMIT: Duration = Duration::from_secs(80);
const POLL_EVERY: Duration = Duration::from_millis(20);
const INIT_BYTES_MAX: usize = 64 * 1024;
/// Ends a mount whose cache is kept.
const END_AND_KEEP: Signal = Signal::TERM;
/// Ends a mount whose cache is removed next.
const END_AND_DISCARD: Signal = Signal::USR2;

fn problem(code: ErrorCode, message: String, remedy: &str) -> Problem {
    Problem::new(code, message, remedy)
}

fn io_problem(what: String) -> impl FnOnce(io::Error) -> Problem {
    move |error| {
        problem(
            ErrorCode::MountFailed,
            format!("{what}: {error}"),
            "look at the agent's log in the session directory, then retry",
        )
    }
}

fn lock_path(place: &SessionPlace) -> PathBuf {
    place.cache_directory().join("lock")
}

/// Whether a supervisor holds the session's cache.
pub fn is_supervised(place: &SessionPlace) -> bool {
    match File::open(lock_path(place)) {
        Ok(file) => rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err(),
        Err(_) => false,
    }
}

/// Whether the mount point is in the mount table.
pub fn is_mounted(place: &SessionPlace) -> bool {
    let point = place.mount_point();
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    let wanted = point.to_string_lossy();
    table
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|at| at == wanted))
}

/// Starts a detached supervisor from this very program and waits until the mount answers; found running is fine.
pub fn start(place: &SessionPlace, options: &MountOptions) -> Result<MountStatus, Problem> {
    start_program(&crate::own_program::path(), place, options)
}

/// As [`start`], with the agent's program given.
pub fn start_program(
    program: &Path,
    place: &SessionPlace,
    options: &MountOptions,
) -> Result<MountStatus, Problem> {
    if let Some(status) = client::status(place)? {
        return Ok(status);
    }
    let logs = place.log_directory();
    std::fs::create_dir_all(&logs).map_err(io_problem(format!("make {}", logs.display())))?;
    let log_path = logs.join("agent.log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&log_path)
        .map_err(io_problem(format!("open {}", log_path.display())))?;
    let log_length = log.metadata().map_or(0, |m| m.len());
    let spec = SuperviseSpec {
        place: place.clone(),
        options: options.clone(),
    };
    let spec = serde_json::to_string(&spec)
        .map_err(|e| io_problem("encode the specification".to_owned())(e.into()))?;
    let mut child = std::process::Command::new(program)
        .args(["supervise", "--spec", &spec])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(io_problem(format!("start {}", program.display())))?;
    let began_at = Instant::now();
    loop {
        if let Some(status) = client::status(place)? {
            // It outlives us; whoever adopts it collects it.
            return Ok(status);
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() && is_supervised(place) && began_at.elapsed() < START_LIMIT {
            // Somebody else was faster: theirs is as good as ours.
            std::thread::sleep(POLL_EVERY);
            continue;
        }
        if ended.is_some() || began_at.elapsed() > START_LIMIT {
            if ended.is_none() {
                child.kill().ok();
                child.wait().ok();
            }
            return Err(said(&log_path, log_length));
        }
        std::thread::sleep(POLL_EVERY);
    }
}

// The supervisor's last line is its problem in JSON, if it could say one.
fn said(log_path: &Path, from: u64) -> Problem {
    let log = std::fs::read(log_path).unwrap_or_default();
    let new = log
        .get(usize::try_from(from).unwrap_or(0)..)
        .unwrap_or_default();
    let text = String::from_utf8_lossy(new);
    let told = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Problem>(line).ok());
    told.unwrap_or_else(|| {
        let last = text.lines().last().unwrap_or("it said nothing");
        problem(
            ErrorCode::MountFailed,
            format!("the mount did not come up: {last}"),
            "look at the agent's log in the session directory, then retry",
        )
    })
}

/// Ends the mount of a session: unmounted, supervisor and worker gone.
pub fn stop(place: &SessionPlace, cache: CacheAfterwards) -> Result<(), Problem> {
    let signal = match cache {
        CacheAfterwards::Kept => END_AND_KEEP,
        CacheAfterwards::Discarded => END_AND_DISCARD,
    };
    let began_at = Instant::now();
    while is_supervised(place) {
        let pid = std::fs::read_to_string(lock_path(place))
            .ok()
            .and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
        if let Some(pid) = pid {
            // Gone already is as good as ended.
            rustix::process::kill_process(pid, signal).ok();
        }
        if began_at.elapsed() > STOP_LIMIT {
            return Err(problem(
                ErrorCode::TimedOut,
                format!(
                    "the supervisor of {} has not ended: it makes the write cache durable",
                    place.session_id
                ),
                "retry when the volume of the write cache has caught up",
            ));
        }
        std::thread::sleep(POLL_EVERY);
    }
    unmount(place).map_err(io_problem(format!(
        "unmount {}",
        place.mount_point().display()
    )))?;
    std::fs::remove_file(place.agent_socket()).ok();
    Ok(())
}

fn unmount(place: &SessionPlace) -> io::Result<()> {
    while is_mounted(place) {
        rustix::mount::unmount(place.mount_point(), UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Supervises until told to stop.
pub fn run(spec: &SuperviseSpec) -> Result<(), Problem> {
    // Already a leader of its own session is as good.
    rustix::process::setsid().ok();
    let _lock = take_lock(&spec.place)?;
    std::fs::write("/proc/self/oom_score_adj", "-1000").ok();
    // A mount that a dead supervisor left behind.
    unmount(&spec.place).map_err(io_problem("unmount what was left".to_owned()))?;
    fence::wait(&spec.place)?;
    let kept = mount(spec)?;
    if let Some(device) = fence::device_of(&spec.place.mount_point()) {
        fence::raise(&spec.place, device)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_problem("start the runtime".to_owned()))?;
    let result = runtime.block_on(keep::keep_worker(spec, &kept));
    unmount(&spec.place).map_err(io_problem("unmount".to_owned()))?;
    std::fs::remove_file(spec.place.agent_socket()).ok();
    result
}

fn take_lock(place: &SessionPlace) -> Result<File, Problem> {
    let directory = place.cache_directory();
    std::fs::create_dir_all(&directory)
        .map_err(io_problem(format!("make {}", directory.display())))?;
    let path = lock_path(place);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_problem(format!("open {}", path.display())))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        problem(
            ErrorCode::CacheInUse,
            format!(
                "another supervisor uses the write cache {}",
                directory.display()
            ),
            "unmount the session first",
        )
    })?;
    std::fs::write(&path, std::process::id().to_string())
        .map_err(io_problem(format!("write {}", path.display())))?;
    Ok(file)
}

/// What must live as long as the mount.
#[derive(Debug)]
struct Kept {
    device: OwnedFd,
    runtime: OwnedFd,
    init: Vec<u8>,
}

fn mount(spec: &SuperviseSpec) -> Result<Kept, Problem> {
    let unavailable = |error: io::Error| {
        problem(
            ErrorCode::FuseUnavailable,
            format!("FUSE cannot be used: {error}"),
            "load the kernel module fuse and give the agent /dev/fuse and the right to mount",
        )
    };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(unavailable)?;
    let point = spec.place.mount_point();
    std::fs::create_dir_all(&point).map_err(io_problem(format!("make {}", point.display())))?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(
        "pginstant",
        &point,
        "fuse.pginstant",
        flags,
        options.as_c_str(),
    )
    .map_err(|error| unavailable(error.into()))?;
    let keep = || -> io::Result<Kept> {
        let mut init = vec![0; INIT_BYTES_MAX];
        let count = (&device).read(&mut init)?;
        init.truncate(count);
        // Both are for the workers, which get them by inheritance: no close on exec.
        let runtime = rustix::fs::memfd_create("pginstant-runtime", MemfdFlags::empty())?;
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty())?;
        Ok(Kept {
            device: device.into(),
            runtime,
            init,
        })
    };
    keep().map_err(|error| {
        unmount(&spec.place).ok();
        io_problem("read the first request of the kernel".to_owned())(error)
    })
}

/// The subcommand `supervise`. Its last line on stderr is the problem in JSON, for whoever started it.
#[expect(clippy::print_stderr, reason = "the starter reads it")]
pub fn command(spec: &str) -> std::process::ExitCode {
    let spec: SuperviseSpec = match serde_json::from_str(spec) {
        Ok(spec) => spec,
        Err(error) => {
            tracing::error!(%error, "read the specification");
            return std::process::ExitCode::from(64);
        }
    };
    match run(&spec) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{}", serde_json::to_string(&problem).unwrap_or_default());
            std::process::ExitCode::from(problem.code.exit_code())
        }
    }
}
