//! The process that serves a mount. It may be killed at any moment: its successor goes on.

mod attach;
pub mod client;
mod control;
mod probe;
mod read_ahead;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use common::agent::hand::{Hydrate, MountOptions, SessionPlace};
use serde::{Deserialize, Serialize};

use crate::base::Base;
use crate::cache::disk::RealDisk;
use crate::cache::namespace::Owner;
use crate::cache::store::{Store, StoreParts};
use crate::cache::tree::Tree;
use crate::cache::writeback::Writeback;
use crate::fs::{
    Hydrator, HydratorOptions, Limits, MountFs, MountFsParts, Room, Statistics, Transfer,
};
use crate::sys;

/// What a worker is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Where the session lives.
    pub place: SessionPlace,
    /// How the mount is made.
    pub options: MountOptions,
    /// Number of the inherited FUSE device.
    pub device: RawFd,
    /// Number of the inherited runtime journal.
    pub runtime: RawFd,
    /// The kernel's first request.
    pub init: Vec<u8>,
    /// How many workers there have been, this one counted.
    pub starts: u32,
    /// The supervisor.
    pub supervisor_pid: u32,
}

const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Serves the mount until it is gone.
pub fn run(spec: WorkerSpec) -> anyhow::Result<()> {
    die_on_panic();
    sys::limit_allocator_pools();
    let device = sys::adopt_descriptor(spec.device).context("take over the FUSE device")?;
    let runtime = sys::adopt_descriptor(spec.runtime).context("take over the runtime journal")?;
    raise_descriptor_limit();
    let tree = Tree::load(&spec.place.session_directory().join("tree"))?;
    let owner = owner_of(&spec.place)?;
    let cache = spec.place.cache_directory();
    let store = Store::open(StoreParts {
        disk: Arc::new(RealDisk::open(&cache).context("open the cache directory")?),
        runtime: File::from(runtime),
        owner,
        tree: Arc::new(tree),
    });
    let store = Arc::new(store.context("open the write cache")?);
    sys::return_free_memory();
    let wait = Duration::from_secs(spec.options.base_wait_s.into());
    let base = Arc::new(Base::new(store.tree_hash(), wait));
    let passthrough = Arc::new(Mutex::new(Err("not negotiated".to_owned())));
    let statistics = Arc::new(Statistics::default());
    let room = Arc::new(Room::new(
        store.clone(),
        Limits {
            cache_bytes_max: spec.options.cache_bytes_max,
        },
        statistics.clone(),
    ));
    let transfer = Transfer::start(
        store.clone(),
        base.clone(),
        room.clone(),
        spec.options.hydrate == Hydrate::None,
    )?;
    let transfer = Arc::new(transfer);
    let options = HydratorOptions {
        hydrate: spec.options.hydrate,
        bytes_per_s: spec.options.hydrate_bytes_per_s,
    };
    let hydrator = Hydrator::start(store.clone(), transfer.clone(), room, options)?;
    let filesystem = MountFs::new(MountFsParts {
        transfer: transfer.clone(),
        hydrator: hydrator.clone(),
        statistics: statistics.clone(),
        device: device.try_clone()?,
        owner,
        passthrough: spec.options.passthrough,
        small_file_bytes: spec.options.small_file_bytes,
        cache_directory: OwnedFd::from(File::open(&cache)?),
        passthrough_outcome: passthrough.clone(),
        store: store.clone(),
    })?;
    let session = attach::attach(filesystem, device.as_fd(), &spec.init)?;
    if let Err(error) = read_ahead::raise(&spec.place.mount_point()) {
        tracing::info!(%error, "read-ahead stays as the kernel has it");
    }
    {
        let mut outcome = passthrough.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_ok() {
            *outcome = probe::probe(device.as_fd(), &cache);
        }
    }
    let shared = Arc::new(control::Shared {
        spec,
        store: store.clone(),
        base,
        transfer,
        hydrator,
        statistics,
        passthrough,
    });
    control::listen(shared.clone())?;
    let swept = store.clone();
    std::thread::Builder::new()
        .name("sweep".to_owned())
        .spawn(move || sweep(&swept))?;
    let kept = store.clone();
    std::thread::Builder::new()
        .name("stop".to_owned())
        .spawn(move || end_with_supervisor(&kept))?;
    if shared.spec.starts > 1 {
        attach::ask_for_resend(device.as_fd());
    }
    tracing::info!(
        starts = shared.spec.starts,
        device = device.as_raw_fd(),
        "serving"
    );
    let writeback = Writeback::start(store.clone())?;
    session.run().context("serve")?;
    drop(writeback);
    store.sync_everything().context("make everything durable")
}

// Standard input ends when the supervisor wants us to end, and when it has died: then too there is nobody left
// who could restart us, and a mount that nobody keeps must not go on.
fn end_with_supervisor(store: &Store) {
    let mut nothing = Vec::new();
    io::stdin().lock().read_to_end(&mut nothing).ok();
    let code = match store.sync_everything() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "make everything durable");
            1
        }
    };
    std::process::exit(code);
}

// A thread that panics would leave requests without an answer; a new process answers them.
fn die_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        told(info);
        std::process::abort();
    }));
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, wanted).ok();
}

fn owner_of(place: &SessionPlace) -> anyhow::Result<Owner> {
    let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let find = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let user = fields.nth(1)?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        (name == place.os_user.as_str()).then_some(Owner { user, group })
    };
    users
        .lines()
        .find_map(find)
        .with_context(|| format!("there is no OS user {}", place.os_user))
}

fn sweep(store: &Store) {
    type Work = (&'static str, fn(&Store) -> io::Result<()>);
    let works: [Work; 5] = [
        ("free the space of removed files", Store::reap),
        ("note complete files", Store::complete_whole),
        ("sum up the journals", Store::sum_up_if_long),
        ("flush the catalog", Store::sync_names),
        ("count the cache's space", Store::count_used),
    ];
    let mut told = [const { None }; 5];
    if let Err(error) = store.count_all() {
        tracing::error!(%error, "count the cache's space");
    }
    loop {
        std::thread::sleep(SWEEP_EVERY);
        for ((what, work), told) in works.iter().zip(&mut told) {
            let said = work(store).err().map(|error| error.to_string());
            // What goes on failing is said once: the log must not fill the volume.
            if let Some(error) = &said
                && *told != said
            {
                tracing::error!(error, "{what}");
            }
            *told = said;
        }
    }
}

/// The I/O error of a worker's thread, in words.
pub(crate) fn log_end(what: &str, result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            tracing::info!(%error, "{what} ended");
        }
        _ => tracing::info!("{what} ended"),
    }
}

/// The subcommand `worker`.
pub fn command(spec: &str) -> std::process::ExitCode {
    let result = serde_json::from_str(spec)
        .context("read the specification")
        .and_then(run);
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the worker ends: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
