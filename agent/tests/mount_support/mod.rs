//! A session of its own for a test: a native directory as the backup, an in-process page server, a real mount.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::base::read_frame;
use agent::cache::tree::{finish_of, write_chunk};
use agent::supervisor;
use agent::worker::client;
use common::agent::buffers::Buffers;
use common::agent::hand::{
    CacheAfterwards, MountOptions, MountStatus, PROTOCOL_VERSION, SessionPlace, TreeEntry,
    TreeEntryKind,
};
use common::agent::pages::PageFrame;
use common::problem::Problem;

/// The agent, which cargo builds before the tests and puts beside their directory. Not by cargo's variable:
/// its name has a hyphen, which compiler wrappers written in shell drop.
pub(crate) fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().and_then(Path::parent).unwrap();
    directory.join("pginstant-agent")
}

/// Waits until the condition holds.
pub(crate) fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a session's mount; found ended is fine.
pub(crate) fn end(place: &SessionPlace, cache: CacheAfterwards) {
    client::stop(place, cache).unwrap();
}

/// A session's directories and backup; unmounts and removes everything when dropped.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) place: SessionPlace,
    pub(crate) entries: Vec<TreeEntry>,
    files: Arc<Vec<PathBuf>>,
    server: Option<Server>,
}

struct Server {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A backup that keeps its readers waiting.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    closed: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::Relaxed);
    }

    /// How many questions came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Fixture {
    /// A session of this OS user whose backup is what `make` puts into the directory `data` that it is given.
    pub(crate) fn new(user: &str, make: impl FnOnce(&Path)) -> Self {
        Self::with_cache_on(user, make, |_| ())
    }

    /// The same; `place_cache` may put a volume of its own to the root of the write caches, which it is given.
    pub(crate) fn with_cache_on(
        user: &str,
        make: impl FnOnce(&Path),
        place_cache: impl FnOnce(&Path),
    ) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-test-")
            .tempdir()
            .unwrap();
        let path = directory.path().to_path_buf();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let backup = path.join("backup");
        std::fs::create_dir(&backup).unwrap();
        std::fs::set_permissions(&backup, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(backup.join("data")).unwrap();
        make(&backup.join("data"));
        let place = SessionPlace {
            session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
            mount_root: path.join("mnt"),
            cache_root: path.join("cache"),
            os_user: user.parse().unwrap(),
        };
        std::fs::create_dir_all(&place.cache_root).unwrap();
        place_cache(&place.cache_root);
        std::fs::create_dir_all(place.cache_directory()).unwrap();
        let (mut entries, mut files) = (Vec::new(), Vec::new());
        scan(&backup, &backup, &mut entries, &mut files);
        let fixture = Self {
            directory,
            place,
            entries,
            files: Arc::new(files),
            server: None,
        };
        fixture.hand_over_the_tree();
        fixture
    }

    /// Writes the tree of the backup into the session's directory, also over one that is there.
    pub(crate) fn hand_over_the_tree(&self) {
        let entries = &self.entries;
        for (number, chunk) in entries.chunks(5000).enumerate() {
            let is_last = (number + 1) * 5000 >= entries.len();
            let finish = is_last.then(|| finish_of(entries));
            write_chunk(&self.place, number as u32, chunk, finish).unwrap();
        }
    }

    pub(crate) fn backup(&self) -> PathBuf {
        self.directory.path().join("backup")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.place.data_directory()
    }

    pub(crate) fn mount(&self, options: &MountOptions) -> Result<MountStatus, Problem> {
        supervisor::start_program(&program(), &self.place, options)
    }

    pub(crate) fn status(&self) -> MountStatus {
        client::status(&self.place)
            .unwrap()
            .expect("the worker answers")
    }

    /// Serves pages from now on, over new connections after the worker's restarts too.
    pub(crate) fn serve(&mut self) {
        self.serve_through(&Gate::default());
    }

    /// As [`Self::serve`], answering only while the gate is open.
    pub(crate) fn serve_through(&mut self, gate: &Gate) {
        let gate = gate.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let (place, files, stopped) = (self.place.clone(), self.files.clone(), stop.clone());
        let hash = finish_of(&self.entries).hash;
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if serve_once(&place, &files, hash, &gate, &stopped).is_err() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        self.server = Some(Server { stop, thread });
    }

    pub(crate) fn stop_serving(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop.store(true, Ordering::Relaxed);
            server.thread.join().unwrap();
        }
    }

    /// Pid of the worker: the supervisor's only child.
    pub(crate) fn worker_pid(&self) -> Option<i32> {
        let supervisor = std::fs::read_to_string(self.place.cache_directory().join("lock")).ok()?;
        let path = format!("/proc/{0}/task/{0}/children", supervisor.trim());
        let children = std::fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    pub(crate) fn kill_worker(&self) {
        if let Some(pid) = self.worker_pid().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }

    /// Kills supervisor and worker in the same moment: neither can finish anything, and the mount is dead.
    pub(crate) fn kill_mount(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        let supervisor = i32::try_from(self.status().supervisor_pid).unwrap();
        let supervisor = Pid::from_raw(supervisor).unwrap();
        kill_process(supervisor, Signal::STOP).unwrap();
        self.kill_worker();
        kill_process(supervisor, Signal::KILL).unwrap();
        wait_for("the mount is dead", Duration::from_secs(10), || {
            !supervisor::is_supervised(&self.place)
                && client::status(&self.place).is_ok_and(|status| status.is_none())
        });
    }

    pub(crate) fn unmount(&self) {
        client::stop(&self.place, CacheAfterwards::Kept).unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.place.log_directory().join("agent.log"));
            #[allow(
                clippy::print_stdout,
                reason = "a failed test tells what the agent said"
            )]
            {
                println!("agent's log:\n{}", log.unwrap_or_default());
            }
        }
        if let Some(server) = &self.server {
            server.stop.store(true, Ordering::Relaxed);
        }
        client::stop(&self.place, CacheAfterwards::Discarded).ok();
        if let Some(server) = self.server.take() {
            server.thread.join().ok();
        }
    }
}

fn scan(root: &Path, directory: &Path, entries: &mut Vec<TreeEntry>, files: &mut Vec<PathBuf>) {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    for path in names {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let kind = if stat.is_dir() {
            TreeEntryKind::Directory
        } else if stat.is_symlink() {
            TreeEntryKind::Symlink {
                target: std::fs::read_link(&path)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            }
        } else {
            files.push(path.clone());
            TreeEntryKind::File {
                file: files.len() as u32 - 1,
                size_bytes: stat.len(),
            }
        };
        entries.push(TreeEntry {
            path: path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned(),
            kind: kind.clone(),
            mode: stat.mode() & 0o7777,
            modified_at_s: stat.mtime(),
        });
        if kind == TreeEntryKind::Directory {
            scan(root, &path, entries, files);
        }
    }
}

fn serve_once(
    place: &SessionPlace,
    files: &Arc<Vec<PathBuf>>,
    tree_hash: u32,
    gate: &Gate,
    stop: &Arc<AtomicBool>,
) -> io::Result<()> {
    let mut stream = client::connect_pages(place).map_err(io::Error::other)?;
    let hello = PageFrame::Hello {
        protocol: PROTOCOL_VERSION,
        tree_hash,
    };
    stream.write_all(&hello.encode())?;
    let (closer, stopped) = (stream.try_clone()?, stop.clone());
    let ended = Arc::new(AtomicBool::new(false));
    let seen = ended.clone();
    let watch = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) && !seen.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        closer.shutdown(std::net::Shutdown::Both).ok();
    });
    let result = answer(&mut stream, files, gate, &ended);
    ended.store(true, Ordering::Relaxed);
    watch.join().ok();
    result
}

fn answer(
    stream: &mut std::os::unix::net::UnixStream,
    files: &Arc<Vec<PathBuf>>,
    gate: &Gate,
    ended: &Arc<AtomicBool>,
) -> io::Result<()> {
    let sender = Arc::new(Mutex::new(stream.try_clone()?));
    loop {
        let PageFrame::Read {
            request,
            file,
            offset,
            length,
        } = read_frame(stream, &Buffers::new(1))?
        else {
            return Err(io::Error::other("not a read"));
        };
        gate.asked.fetch_add(1, Ordering::Relaxed);
        let (gate, ended, sender) = (gate.clone(), ended.clone(), sender.clone());
        let path = files[file as usize].clone();
        std::thread::spawn(move || {
            while gate.closed.load(Ordering::Relaxed) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let bytes = read_range(&path, offset, length).unwrap();
            let frame = PageFrame::Data {
                request,
                bytes: bytes.into(),
            };
            sender.lock().unwrap().write_all(&frame.encode()).ok();
        });
    }
}

fn read_range(path: &Path, offset: u64, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    let source = File::open(path)?;
    let mut done = 0;
    loop {
        match source.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
