//! Measures the product against what it is compared to: see `./bench --help`, which builds and calls this.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tests::bench::line::{Ledger, Line, Spec, table};
use tests::bench::plan::{self, Sizes};
use tests::bench::stage::Stage;

/// Measures pginstant against what it is compared to, in turns, and prints medians and ratios in one table.
#[derive(Debug, Parser)]
#[command(
    name = "./bench",
    after_help = "Units: for s, ms, MiB and x (the largest of several numbers over the smallest, or the last over the first) less is \
better; for tps, MiB/s and \"per s\" more is better. RATIO always says how good ours is against the peer: 2 is twice as good. \
A goal that is not reached is no error: the exit code is 0 when every line was measured.\n\
Examples:\n  ./bench --quick --json result.json\n  ./bench first-query/tar\n  ./bench select/hydrated"
)]
struct Arguments {
    /// Lines to measure: names or beginnings of names; all when none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Smaller data and fewer rounds: all lines in less than ten minutes
    #[arg(long)]
    quick: bool,
    /// Very small data: shows that every line can be measured
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
    /// Write the lines to this file as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the lines and measure nothing
    #[arg(long)]
    list: bool,
    /// Directory for everything that is made
    #[arg(long, hide = true, default_value = "/var/tmp/pginstant-bench")]
    directory: PathBuf,
    /// Open a repository of pgBackRest and say how much memory that took; measures call it
    #[arg(long, hide = true)]
    memory_of: Option<PathBuf>,
    /// Of which files a page is read for that: the beginning of their paths
    #[arg(long, hide = true, requires = "memory_of")]
    reading: Option<String>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(place) = &arguments.memory_of {
        let mib = tests::bench::memory_of(place, arguments.reading.as_deref())?;
        return print(&format!("{mib}\n")).map(|()| ExitCode::SUCCESS);
    }
    let sizes = match (arguments.quick, arguments.tiny) {
        (true, _) => Sizes::quick(),
        (_, true) => Sizes::tiny(),
        _ => Sizes::full(),
    };
    let chosen = choose(plan::lines(&sizes), &arguments.names)?;
    if arguments.list {
        let names: Vec<&str> = chosen.iter().map(|line| line.name.as_str()).collect();
        return print(&format!("{}\n", names.join("\n"))).map(|()| ExitCode::SUCCESS);
    }
    let mut stage = Stage::open(&arguments.directory, sizes)?;
    let mut ledger = Ledger::new(chosen);
    let failed = tests::bench::run(&mut stage, &mut ledger).await;
    let lines = ledger.lines();
    if let Some(path) = &arguments.json {
        write_json(path, &lines)?;
    }
    print(&format!(
        "\n{}{}{}",
        table(&lines),
        ledger.left_out(),
        remarks(&stage, &arguments)
    ))?;
    Ok(match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn choose(all: Vec<Spec>, names: &[String]) -> Result<Vec<Spec>> {
    for name in names {
        if !all.iter().any(|line| line.name.starts_with(name.as_str())) {
            bail!("there is no line {name}; see ./bench --list");
        }
    }
    let is_chosen =
        |line: &Spec| names.is_empty() || names.iter().any(|n| line.name.starts_with(n.as_str()));
    Ok(all.into_iter().filter(is_chosen).collect())
}

fn write_json(path: &PathBuf, lines: &[Line]) -> Result<()> {
    let text = serde_json::to_string_pretty(lines)?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

fn remarks(stage: &Stage, arguments: &Arguments) -> String {
    let mut text = format!(
        "Medians of the rounds, PostgreSQL {}, {} processors.\n",
        stage.major(),
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    if arguments.quick || arguments.tiny {
        text += "Smaller data than the goals are about.\n";
    }
    if !stage.drops_caches() {
        text +=
            "The kernel's caches could not be dropped (not root): what is called cold was not.\n";
    }
    text
}

fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("write to standard output")
}
