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
