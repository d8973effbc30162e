//! The product's programs as this build made them, started and ended by tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Where this build's programs are: beside the caller's own, or beside the `deps` directory that tests lie in.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the caller's own program")?;
    let mut directory = own.parent().context("find the programs' directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("find the target directory")?;
    }
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// A service that a test started. Dropped, it is killed.
#[derive(Debug)]
pub struct Service {
    child: Option<Child>,
    name: &'static str,
    arguments: Vec<std::ffi::OsString>,
    environment: Vec<(String, String)>,
    log: PathBuf,
}

impl Service {
    /// Starts a program; its standard error is appended to a log file.
    pub fn start<A: AsRef<OsStr>>(
        name: &'static str,
        arguments: &[A],
        log: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_in(Vec::new(), name, arguments, log)
    }

    /// The same with variables of the environment beside the caller's own.
    pub fn start_in<A: AsRef<OsStr>>(
        environment: Vec<(String, String)>,
        name: &'static str,
        arguments: &[A],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let arguments = arguments
            .iter()
            .map(|argument| argument.as_ref().to_owned())
            .collect();
        let mut service = Self {
            child: None,
            name,
            arguments,
            environment,
            log: log.to_owned(),
        };
        service.start_again()?;
        Ok(service)
    }

    /// Starts it again after it has ended.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.kill();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = Command::new(program(self.name)?)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.child.take().context("it does not run")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let mut status = None;
        crate::wait::until(
            &format!("{} ends", self.name),
            Duration::from_secs(30),
            async || {
                status = child.try_wait().ok().flatten();
                status.is_some()
            },
        )
        .await?;
        status.context("no exit status")
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
