//! The processes of a session that tests kill.

use std::path::Path;

use anyhow::{Context, Result};
use common::messages::SessionDetail;
use rustix::process::{Pid, Signal, kill_process};

use crate::leftovers;

/// `kill -9`.
pub fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(kill_process(pid.context("a process id")?, Signal::KILL)?)
}

/// The postmaster of a published instance.
pub fn postmaster(detail: &SessionDetail) -> Result<u32> {
    let published = detail.published.as_ref().context("not published")?;
    let text = std::fs::read_to_string(published.data_directory.join("postmaster.pid"))?;
    Ok(text.lines().next().context("empty")?.parse()?)
}

/// The postmaster and its children.
pub fn server(detail: &SessionDetail) -> Result<Vec<u32>> {
    let postmaster = postmaster(detail)?;
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(path)?;
    let mut all = vec![postmaster];
    for child in children.split_whitespace() {
        all.push(child.parse()?);
    }
    Ok(all)
}

/// The agent's process of a session: `supervise` or `worker`.
pub fn agent(id: &str, word: &str) -> Result<u32> {
    let processes = leftovers::processes(Path::new(id));
    let found = processes
        .iter()
        .find(|(_, line)| line.contains(&format!(" {word} ")));
    let (pid, _) = found.with_context(|| format!("no {word} among {processes:?}"))?;
    Ok(*pid)
}

/// The process of PostgreSQL that replays WAL in a data directory, if there is one, and what it says that it does, as in
/// `startup recovering 000000010000000000000003`.
pub fn replay(data_directory: &Path) -> Option<(u32, String)> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let postmaster: u32 = text.lines().next()?.parse().ok()?;
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(path).ok()?;
    children.split_whitespace().find_map(|child| {
        let title = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        let at = title.find("startup ")?;
        Some((child.parse().ok()?, title.get(at..)?.trim().to_owned()))
    })
}

/// A process that does nothing until this is dropped.
#[derive(Debug)]
pub struct Halted(Pid);

impl Halted {
    /// Halts it.
    pub fn new(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It may have ended meanwhile.
        kill_process(self.0, Signal::CONT).ok();
    }
}
