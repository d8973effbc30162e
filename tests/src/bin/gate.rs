//! Stands between recovery-svc and the agent's hand, and holds one request or its answer when a test asks for it: see
//! `tests::gate`. Arguments: the directory in which it is told what to hold, the agent's program, and that program's arguments.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::gate::{HELD, Moment, WANTED, Wanted};

/// A test that has failed lets nobody wait for longer.
const HOLD_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    // Either side may be killed at any moment: then this ends as well, and the other side finds out.
    match relay() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn relay() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = PathBuf::from(arguments.next().context("a directory")?);
    let program = arguments.next().context("the agent's program")?;
    let mut agent = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut to_agent = agent.stdin.take().context("its standard input")?;
    let from_agent = agent.stdout.take().context("its standard output")?;
    let mut answers = BufReader::new(from_agent).split(b'\n');
    let mut output = std::io::stdout().lock();
    for request in std::io::stdin().lock().split(b'\n') {
        let request = String::from_utf8(request?)?;
        hold(&directory, Moment::Before, &request, agent.id())?;
        writeln!(to_agent, "{request}")?;
        let Some(answer) = answers.next() else { break };
        let answer = answer?;
        hold(&directory, Moment::After, &request, agent.id())?;
        output.write_all(&answer)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    drop(to_agent);
    agent.wait()?;
    Ok(())
}

/// Waits if this is what is to be held; of several gates one gets it.
fn hold(directory: &Path, moment: Moment, request: &str, agent: u32) -> Result<()> {
    let (wanted, held) = (directory.join(WANTED), directory.join(HELD));
    let Ok(text) = std::fs::read_to_string(&wanted) else {
        return Ok(());
    };
    let is_it = Wanted::read(&text)
        .is_some_and(|wanted| wanted.moment == moment && request.contains(&wanted.word()));
    let claimed = directory.join(format!("claimed-{}", std::process::id()));
    if !is_it || std::fs::rename(&wanted, &claimed).is_err() {
        return Ok(());
    }
    std::fs::write(&claimed, format!("{} {agent}", std::process::id()))?;
    std::fs::rename(&claimed, &held)?;
    let began = Instant::now();
    while held.exists() && began.elapsed() < HOLD_LIMIT {
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
