//! Finds the processes of a session's PostgreSQL.
//!
//! A postmaster of ours is known by its arguments (the session's own configuration file) and its user, never by a
//! `postmaster.pid`: that file may come from the backup's host, and cannot be read when the mount is dead.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::problem::{ErrorCode, Problem};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long processes may take to end after SIGQUIT, and after SIGKILL.
pub const END_FOR: Duration = Duration::from_secs(10);

/// A process, safe against reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    started_ticks: u64,
}

/// The argument that makes a postmaster ours.
pub fn configuration_argument(configuration_file: &Path) -> String {
    format!("config_file={}", configuration_file.display())
}

/// The session's postmaster, if it lives.
pub fn postmaster(configuration_file: &Path, uid: u32) -> Option<Process> {
    let wanted = configuration_argument(configuration_file);
    let matching: Vec<(Process, i32)> = all()
        .filter(|path| std::fs::metadata(path).is_ok_and(|m| m.uid() == uid))
        .filter(|path| is_postmaster(path, &wanted))
        .filter_map(|path| stat(&path))
        .collect();
    // A child that has not set its title yet shows the same arguments: the postmaster is the one whose parent does not.
    matching
        .iter()
        .find(|(_, parent)| !matching.iter().any(|(other, _)| other.pid == *parent))
        .map(|(process, _)| *process)
}

/// The process with this number, if it lives.
pub fn by_number(pid: i32) -> Option<Process> {
    stat(&PathBuf::from(format!("/proc/{pid}"))).map(|(process, _)| process)
}

/// Processes of this user that run the program with the argument.
pub fn with_argument(program: &str, argument: &str, uid: u32) -> Vec<Process> {
    all()
        .filter(|path| std::fs::metadata(path).is_ok_and(|m| m.uid() == uid))
        .filter(|path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|b| *b == 0);
            let name = words.next().unwrap_or_default();
            name.rsplit(|b| *b == b'/').next() == Some(program.as_bytes())
                && words.any(|word| word == argument.as_bytes())
        })
        .filter_map(|path| stat(&path))
        .map(|(process, _)| process)
        .collect()
}

/// Stops a postmaster: fast, then immediate, then by killing exactly its processes.
pub fn stop(postmaster: Process, fast_for: Duration) -> Result<(), Problem> {
    for (signal, limit) in [
        (Signal::INT, fast_for),
        (Signal::QUIT, END_FOR),
        (Signal::KILL, END_FOR),
    ] {
        let mut all = children(postmaster);
        all.push(postmaster);
        if signal == Signal::KILL {
            kill_all(&all, signal);
        } else {
            kill_all(&[postmaster], signal);
        }
        if wait_for_end(&all, limit) {
            return Ok(());
        }
        tracing::warn!(
            pid = postmaster.pid,
            ?signal,
            "PostgreSQL did not end in time"
        );
    }
    Err(Problem::new(
        ErrorCode::TimedOut,
        format!(
            "PostgreSQL (pid {}) does not end even after SIGKILL",
            postmaster.pid
        ),
        "it waits for the mount: let the mount server return, or unmount the session",
    ))
}

/// Sends a signal to each; what has ended is fine.
pub fn kill_all(processes: &[Process], signal: Signal) {
    for process in processes {
        if let Err(error) = process.signal(signal) {
            tracing::warn!(pid = process.pid, %error, "send a signal to PostgreSQL");
        }
    }
}

/// Waits until none of them lives; whether that came to be.
pub fn wait_for_end(processes: &[Process], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if !processes.iter().any(Process::lives) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Children of a process.
pub fn children(parent: Process) -> Vec<Process> {
    all()
        .filter_map(|path| stat(&path))
        .filter(|(_, above)| *above == parent.pid)
        .map(|(process, _)| process)
        .collect()
}

/// PostgreSQL processes of this user that work in the data directory, whoever their parent is.
pub fn working_in(data_directory: &Path, uid: u32) -> Vec<Process> {
    all()
        .filter(|path| std::fs::metadata(path).is_ok_and(|m| m.uid() == uid))
        .filter(|path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == data_directory))
        .filter(|path| {
            std::fs::read_to_string(path.join("comm"))
                .is_ok_and(|name| name.starts_with("postgres"))
        })
        .filter_map(|path| stat(&path))
        .map(|(process, _)| process)
        .collect()
}

/// The WAL segment in the title of the startup process, `startup recovering 0000…`.
pub fn recovering_segment(postmaster: Process) -> Option<String> {
    children(postmaster).into_iter().find_map(|child| {
        let title = std::fs::read(format!("/proc/{}/cmdline", child.pid)).ok()?;
        let title = String::from_utf8_lossy(&title).into_owned();
        let (_, rest) = title.split_once("startup recovering ")?;
        rest.get(..24).map(str::to_owned)
    })
}

impl Process {
    /// Whether it leads a session of its own, as what was started by `setsid` does and its children do not.
    pub fn leads_session(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return false;
        };
        self.lives() && rustix::process::getsid(Some(pid)).is_ok_and(|session| session == pid)
    }

    /// The words of its command line.
    pub fn arguments(&self) -> Vec<String> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        line.split(|b| *b == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    /// Whether it still runs; a zombie does not.
    pub fn lives(&self) -> bool {
        stat(&PathBuf::from(format!("/proc/{}", self.pid))).is_some_and(|(now, _)| now == *self)
    }

    /// Sends a signal to exactly this process; one that has ended is fine.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        let opened = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // Checked after opening: the number cannot change hands any more.
        if !self.lives() {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(&opened, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn all() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.bytes().all(|b| b.is_ascii_digit())
    })
}

fn is_postmaster(path: &Path, wanted: &str) -> bool {
    let Ok(line) = std::fs::read(path.join("cmdline")) else {
        return false;
    };
    let arguments: Vec<&[u8]> = line.split(|b| *b == 0).collect();
    let program = arguments.first().copied().unwrap_or_default();
    // `postgres -C name` only prints a value.
    program.ends_with(b"/postgres")
        && arguments.contains(&wanted.as_bytes())
        && !arguments.contains(&&b"-C"[..])
}

/// Process and parent of a `/proc/<pid>`, unless it has ended.
fn stat(path: &Path) -> Option<(Process, i32)> {
    let text = std::fs::read_to_string(path.join("stat")).ok()?;
    let pid = path.file_name()?.to_str()?.parse().ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let started_ticks = fields.get(19)?.parse().ok()?;
    Some((Process { pid, started_ticks }, fields.get(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_our_argument_that_is_not_postgres_is_not_the_postmaster() {
        let file = Path::new("/nowhere/conf/postgresql.conf");
        let mut child = std::process::Command::new("sleep")
            .args(["30"])
            .env("X", configuration_argument(file))
            .spawn()
            .unwrap();
        let found = postmaster(file, 0);
        let process = children(
            stat(Path::new(&format!("/proc/{}", std::process::id())))
                .unwrap()
                .0,
        )
        .into_iter()
        .find(|p| p.pid == child.id() as i32)
        .unwrap();
        assert!(process.lives());
        process.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(found.is_none() && !process.lives());
    }
}
