//! Runs a program by argument vector, with a deadline and a limit to what it may print.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::problem::{ErrorCode, Problem};

use super::failure;

/// Most bytes that are taken of each of a program's outputs.
const OUTPUT_BYTES_MAX: u64 = 1024 * 1024;

/// A program with its arguments: never a string for a shell.
#[derive(Debug, Clone)]
pub struct CommandLine {
    program: OsString,
    arguments: Vec<OsString>,
    timeout: Duration,
}

/// What a program printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl CommandLine {
    /// A program without arguments and with 30 seconds of time.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets how long it may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A [`Command`] with a clean environment and no standard input.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }
}

/// Runs it to its end; a program that takes too long is killed.
pub fn run(line: &CommandLine) -> Result<Outcome, Problem> {
    let name = line.program.to_string_lossy().into_owned();
    let io_failed =
        |doing: &str, error| failure(ErrorCode::IoFailed, format!("{doing} {name}"), error);
    let mut child = line
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io_failed("start", error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read_limited(stdout));
        let stderr = scope.spawn(|| read_limited(stderr));
        let deadline = Instant::now() + line.timeout;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| io_failed("wait for", e))? {
                break Some(status);
            }
            if Instant::now() >= deadline {
                child.kill().map_err(|e| io_failed("kill", e))?;
                child.wait().map_err(|e| io_failed("wait for", e))?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = (
            stdout.join().unwrap_or_default(),
            stderr.join().unwrap_or_default(),
        );
        match status {
            Some(status) => Ok(Outcome {
                success: status.success(),
                stdout,
                stderr,
            }),
            None => Err(Problem::new(
                ErrorCode::TimedOut,
                format!("{name} did not end within {} s", line.timeout.as_secs()),
                "look at the load of the host and try again",
            )),
        }
    })
}

fn read_limited(source: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        // A broken pipe only means less text; the exit status decides.
        let read = source
            .by_ref()
            .take(OUTPUT_BYTES_MAX)
            .read_to_end(&mut bytes);
        let drained = read.and_then(|_| std::io::copy(&mut source, &mut std::io::sink()));
        if let Err(error) = drained {
            tracing::debug!(%error, "read the output of a program");
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let line = CommandLine::new("sleep")
            .args(["60"])
            .timeout(Duration::from_millis(50));
        assert_eq!(run(&line).unwrap_err().code, ErrorCode::TimedOut);
    }

    #[test]
    fn arguments_are_never_seen_by_a_shell() {
        let line = CommandLine::new("echo").args(["$(id)", "; ls"]);
        assert_eq!(run(&line).unwrap().stdout, "$(id) ; ls\n");
    }
}
