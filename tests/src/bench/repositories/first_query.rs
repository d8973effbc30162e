//! From the command to the first query's answer, against the tool's own restore and start. Both recover to the end of the archive.

use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use tempfile::TempDir;

use crate::bench::line::Ledger;
use crate::bench::plan::repositories::first_query_name;
use crate::bench::server::{Native, WhichBackup};
use crate::bench::stage::{SHARED_BUFFERS_MIB, Stage};
use crate::pgbackrest::{Layout, RepositoryKind, STANZA, Setting, Tool};
use crate::system::TestSystem;
use crate::{barman, pgbackrest};

/// The Debian whose pgBackRest knows blocks.
pub(super) const PGBACKREST_OF: &str = "trixie";

/// Repositories of pgBackRest, counted from 1.
const KINDS: [RepositoryKind; 2] = [
    RepositoryKind {
        layout: Layout::Plain,
        is_encrypted: false,
    },
    RepositoryKind {
        layout: Layout::Blocks,
        is_encrypted: false,
    },
];

/// Backups of pgBackRest: name of the line, repository, compression.
const PGBACKREST: [(&str, usize, &str); 3] = [
    ("pgbackrest-zst-blocks", 2, "zst"),
    ("pgbackrest-zst", 1, "zst"),
    ("pgbackrest-gz", 1, "gz"),
];

/// One line: the backup that is published, and what restores it natively.
struct Subject {
    line: String,
    /// The repository in the system's configuration, and its section.
    repository: String,
    section: String,
    label: String,
    restore: Box<dyn Fn() -> Result<TempDir>>,
}

pub(in crate::bench) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let mut subjects = Vec::new();
    for scale in stage.sizes.repository_scales {
        of_pgbackrest(stage, ledger, scale, &mut subjects)?;
        of_barman(stage, ledger, scale, &mut subjects)?;
    }
    if subjects.is_empty() {
        return Ok(());
    }
    let sections = subjects.iter().map(|subject| {
        let (name, section) = (&subject.repository, &subject.section);
        format!("[repositories.{name}]\n{section}\n")
    });
    let system = stage.system_over(sections.collect()).await?;
    for round in 1..=stage.sizes.repository_rounds {
        // Nothing comes always after the same.
        subjects.rotate_left(1);
        for subject in &subjects {
            stage.say(&format!("round {round}: {}", subject.line));
            one_round(stage, ledger, &system, subject).await?;
        }
    }
    Ok(())
}

async fn one_round(
    stage: &mut Stage,
    ledger: &mut Ledger,
    system: &TestSystem,
    subject: &Subject,
) -> Result<()> {
    stage.drop_caches();
    let began = Instant::now();
    let which = WhichBackup {
        repository: &subject.repository,
        label: &subject.label,
    };
    let published = stage.publish_which(system, which).await?;
    published.server.first_query()?;
    ledger.ours(&subject.line, began.elapsed().as_secs_f64());
    published.end().await?;

    stage.drop_caches();
    let began = Instant::now();
    let native = Native::restored((subject.restore)()?, stage.bin(), SHARED_BUFFERS_MIB)?;
    native.start()?;
    native.server.first_query()?;
    ledger.peer(&subject.line, began.elapsed().as_secs_f64());
    Ok(())
}

fn of_pgbackrest(
    stage: &Stage,
    ledger: &mut Ledger,
    scale: u32,
    subjects: &mut Vec<Subject>,
) -> Result<()> {
    let mut wanted = PGBACKREST.to_vec();
    wanted.retain(|(name, ..)| ledger.wants(&first_query_name(name, scale)));
    if wanted.is_empty() {
        return Ok(());
    }
    let tool = match Tool::of(PGBACKREST_OF) {
        Ok(tool) => tool,
        Err(error) => {
            for (name, ..) in wanted {
                ledger.leave_out(&first_query_name(name, scale), &format!("{error:#}"));
            }
            return Ok(());
        }
    };
    stage.say(&format!(
        "making a database of scale {scale} and its backups by pgBackRest"
    ));
    let setting = Setting {
        cluster: stage.original(scale)?,
        parent: &stage.path(""),
    };
    let made = Rc::new(pgbackrest::Stage::of(&tool, setting, &KINDS)?);
    let processes = format!("--process-max={}", processor_count());
    for (name, number, compression) in wanted {
        let compression = format!("--compress-type={compression}");
        let label = made.backup(number, &["--type=full", &compression, &processes])?;
        let (restored, restored_label) = (Rc::clone(&made), label.clone());
        let processes = processes.clone();
        subjects.push(Subject {
            line: first_query_name(name, scale),
            repository: format!("{name}-{scale}"),
            section: format!(
                "kind = \"pgbackrest\"\nstanza = \"{STANZA}\"\npath = \"{}\"",
                made.repository(number).display()
            ),
            label,
            restore: Box::new(move || {
                let arguments = ["--archive-mode=off", &processes];
                restored.restore_with(number, &restored_label, &arguments)
            }),
        });
    }
    Ok(())
}

fn of_barman(
    stage: &Stage,
    ledger: &mut Ledger,
    scale: u32,
    subjects: &mut Vec<Subject>,
) -> Result<()> {
    const NAME: &str = "barman";
    let line = first_query_name(NAME, scale);
    if !ledger.wants(&line) {
        return Ok(());
    }
    let program = barman::of_debian();
    if !program.exists() {
        let reason = format!("{} is not there; ./bench installs it", program.display());
        ledger.leave_out(&line, &reason);
        return Ok(());
    }
    stage.say(&format!(
        "making a database of scale {scale} and its backup by Barman"
    ));
    let mut cluster = stage.original(scale)?;
    // Its stage restores it by name.
    cluster.create_tablespace("one")?;
    let made = barman::Stage::of(program, cluster, &stage.path(""))?;
    let label = made.backup(barman::PLAIN, &[])?;
    let restored_label = label.clone();
    subjects.push(Subject {
        line,
        repository: format!("{NAME}-{scale}"),
        section: format!(
            "kind = \"barman\"\npath = \"{}\"",
            made.server(barman::PLAIN).display()
        ),
        label,
        restore: Box::new(move || made.recover(barman::PLAIN, &restored_label, &[])),
    });
    Ok(())
}

/// What the tools may use, as we do.
pub(super) fn processor_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
