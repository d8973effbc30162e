//! Starts a PostgreSQL server as a process of its own and watches its first moments.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::problem::{ErrorCode, Problem};
use rustix::process::Signal;

use super::log;
use super::process::{self, END_FOR, Process};
use crate::hand::command::CommandLine;
use crate::hand::failure;
use crate::hand::os_user::Account;

/// How long a started server may take to show up among the processes.
const APPEAR_FOR: Duration = Duration::from_secs(20);

/// Lines of the log that a stopped instance shows.
pub const LOG_LINES: usize = 20;

/// A server to be started.
#[derive(Debug, Clone)]
pub struct Server<'a> {
    /// In whose name it runs.
    pub account: &'a Account,
    /// The program `postgres`.
    pub program: PathBuf,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Arguments beside the data directory.
    pub arguments: Vec<String>,
    /// Where its standard output and error go.
    pub log: PathBuf,
    /// Its private socket.
    pub socket: Option<PathBuf>,
}

impl Server<'_> {
    /// Starts it, not waiting for recovery; `find` tells the postmaster once it is there, `listens` whether it got through its beginning.
    pub fn start(
        &self,
        find: &dyn Fn() -> Option<Process>,
        listens: &dyn Fn() -> bool,
    ) -> Result<(), Problem> {
        // Complaints of an earlier start must not be taken for those of this one.
        let log_start = self
            .account
            .act(|| std::fs::metadata(&self.log).map_or(0, |facts| facts.len()))?;
        self.account.act(|| self.spawn())??;
        let deadline = Instant::now() + APPEAR_FOR;
        while Instant::now() < deadline {
            if let Some(postmaster) = find() {
                return self.watch_beginning(postmaster, log_start, listens);
            }
            if self
                .log_since(log_start)
                .iter()
                .any(|line| line.contains("FATAL:"))
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.did_not_start(log_start))
    }

    /// A configuration or port that cannot work ends the server in its first moments: say so at once.
    fn watch_beginning(
        &self,
        postmaster: Process,
        log_start: u64,
        listens: &dyn Fn() -> bool,
    ) -> Result<(), Problem> {
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if !postmaster.lives() {
                return Err(self.did_not_start(log_start));
            }
            if listens() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn did_not_start(&self, log_start: u64) -> Problem {
        let lines = log::last(&self.log_since(log_start), LOG_LINES);
        let said = lines.iter().rev().find(|l| l.contains("FATAL:")).cloned();
        Problem::new(
            ErrorCode::InstanceFailed,
            format!(
                "PostgreSQL did not start: {}",
                said.or_else(|| lines.last().cloned()).unwrap_or_default()
            ),
            format!("look at {}", self.log.display()),
        )
    }

    fn spawn(&self) -> Result<(), Problem> {
        let io_failed = |doing: &str, error| failure(ErrorCode::InstanceFailed, doing, error);
        let open = || {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.log)
        };
        let log = open().map_err(|e| io_failed("open PostgreSQL's log", e))?;
        let errors = open().map_err(|e| io_failed("open PostgreSQL's log", e))?;
        // setsid takes it out of our session and, by forking, makes init its parent.
        let status = CommandLine::new("setsid")
            .args(["--fork".as_ref(), self.program.as_os_str()])
            .args(["-D".as_ref(), self.data_directory.as_os_str()])
            .args(&self.arguments)
            .command()
            .env_remove("LC_ALL")
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(errors))
            .status()
            .map_err(|e| io_failed("run setsid", e))?;
        if status.success() {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::InstanceFailed,
            format!("setsid could not start PostgreSQL ({status})"),
            format!("look at {}", self.log.display()),
        ))
    }

    /// Ends what is left of a postmaster that died, and removes its pid file: PostgreSQL believes a number that is in use again.
    pub fn clear_leftovers(&self) -> Result<(), Problem> {
        let data = &self.data_directory;
        let left = process::working_in(data, self.account.uid);
        if !left.is_empty() {
            process::kill_all(&left, Signal::QUIT);
            if !process::wait_for_end(&left, END_FOR) {
                return Err(Problem::new(
                    ErrorCode::CacheInUse,
                    format!(
                        "processes of an earlier server still work in {}",
                        data.display()
                    ),
                    "end them, or wait until the mount answers again, and retry",
                ));
            }
        }
        // The socket's lock as well: a dead postmaster that nobody has reaped (containers) still has its number.
        let mut files = vec![data.join("postmaster.pid")];
        if let Some(socket) = &self.socket {
            let mut lock = socket.clone().into_os_string();
            lock.push(".lock");
            files.extend([socket.clone(), lock.into()]);
        }
        for file in files {
            match self.account.act(|| std::fs::remove_file(&file))? {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let doing = format!("remove {}", file.display());
                    return Err(failure(ErrorCode::IoFailed, doing, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether its private socket is there.
    pub fn has_socket(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.exists())
    }

    fn log_since(&self, start: u64) -> Vec<String> {
        self.account
            .act(|| log::tail_since(&self.log, start))
            .unwrap_or_default()
    }
}
