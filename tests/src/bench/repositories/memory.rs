//! Memory of a process that has a backup open: with a manifest of very many files, and with very many block maps read.
//!
//! Both are made of a small real repository: lines are added to its manifest, for files that nobody reads, or for links to one file in
//! blocks, each with a map of its own for the reader. The process is this program once more, so that nothing else is counted.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use repository::pgbackrest::{PgBackRestOptions, open_pgbackrest, read_info, sealed_again};
use repository::{BackupChoice, EntryKind, OpenOptions};
use serde_json::Value;

use super::first_query::PGBACKREST_OF;
use crate::bench::line::Ledger;
use crate::bench::plan::repositories::{MANIFEST_MEMORY, MAP_MEMORY};
use crate::bench::stage::Stage;
use crate::pgbackrest::{self, Layout, RepositoryKind, STANZA, Setting, Tool};
use crate::postgres::{TestPostgres, run};

/// Name of the files that are added, before their number.
const LISTED: &str = "base/1/listed_";
const MAPPED: &str = "mapped_";
/// A file of a manifest, as pgBackRest lists one in a bundle.
const LISTED_VALUE: &str = r#"{"bni":1,"bno":1073741824,"checksum":"0123456789abcdef0123456789abcdef01234567","checksum-page":true,"size":8192,"timestamp":1795264869}"#;
/// Rows of the table whose file is in blocks: some 64 MiB.
const ROW_COUNT: u32 = 650_000;

pub(in crate::bench) fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let tool = match Tool::of(PGBACKREST_OF) {
        Ok(tool) => tool,
        Err(error) => {
            for name in [MANIFEST_MEMORY, MAP_MEMORY] {
                ledger.leave_out(name, &format!("{error:#}"));
            }
            return Ok(());
        }
    };
    stage.say("making a repository with long lists");
    let cluster = TestPostgres::start_new(stage.installation())?;
    let sql = format!(
        "CREATE TABLE part AS SELECT g, md5(g::text) || md5((-g)::text) AS text FROM generate_series(1, {ROW_COUNT}) g"
    );
    cluster.psql("postgres", &sql)?;
    let setting = Setting {
        cluster,
        parent: &stage.path(""),
    };
    let kind = RepositoryKind {
        layout: Layout::Blocks,
        is_encrypted: false,
    };
    let made = pgbackrest::Stage::of(&tool, setting, &[kind])?;
    let label = made.backup(1, &["--type=full", "--compress-type=zst"])?;
    let place = made.repository(1);
    let backup = place.join(format!("backup/{STANZA}/{label}"));
    let manifest = std::fs::read_to_string(backup.join("backup.manifest"))?;

    if ledger.wants(MANIFEST_MEMORY) {
        let lines = (0..stage.sizes.manifest_files)
            .map(|number| format!("pg_data/{LISTED}{number}={LISTED_VALUE}\n"));
        write_manifest(&backup, &manifest, lines.collect())?;
        for round in 1..=stage.sizes.repository_rounds {
            stage.say(&format!("round {round}: {MANIFEST_MEMORY}"));
            ledger.ours(MANIFEST_MEMORY, of_another_process(&place, None)?);
        }
    }
    if ledger.wants(MAP_MEMORY) {
        let (lines, directory) = map_lines(&backup, &manifest, stage.sizes.map_mib)?;
        write_manifest(&backup, &manifest, lines)?;
        for round in 1..=stage.sizes.repository_rounds {
            stage.say(&format!("round {round}: {MAP_MEMORY}"));
            let prefix = format!("{directory}/{MAPPED}");
            ledger.ours(MAP_MEMORY, of_another_process(&place, Some(&prefix))?);
        }
    }
    Ok(())
}

/// Puts lines among the files of a manifest.
fn write_manifest(backup: &Path, manifest: &str, lines: String) -> Result<()> {
    const HEAD: &str = "\n[target:file]\n";
    let at = manifest.find(HEAD).context("a manifest has files")? + HEAD.len();
    let (before, after) = manifest.split_at(at);
    let text = sealed_again(&format!("{before}{lines}{after}"));
    Ok(std::fs::write(backup.join("backup.manifest"), text)?)
}

/// Lines of files whose maps take so much together, and the directory in which the files are. Each is a link to the largest file in
/// blocks.
fn map_lines(backup: &Path, manifest: &str, mib: u32) -> Result<(String, String)> {
    let mut largest: Option<(u64, String, String)> = None;
    read_info(manifest.as_bytes(), "backup.manifest", &mut |line| {
        let value: Value = serde_json::from_str(line.value).unwrap_or_default();
        let map_bytes = value.get("bim").and_then(Value::as_u64).unwrap_or(0);
        let has_own_file = value.get("bni").is_none();
        let is_larger = largest.as_ref().is_none_or(|(most, ..)| map_bytes > *most);
        if line.section == "target:file" && has_own_file && map_bytes > 0 && is_larger {
            largest = Some((map_bytes, line.key.to_owned(), line.value.to_owned()));
        }
        Ok(())
    })?;
    let (map_bytes, key, value) = largest.context("a file in blocks of its own")?;
    let (directory, _) = key.rsplit_once('/').context("a file of a database")?;
    let mut lines = String::new();
    for number in 0..(u64::from(mib) << 20) / map_bytes {
        writeln!(lines, "{directory}/{MAPPED}{number}={value}")?;
        let link = backup.join(format!("{directory}/{MAPPED}{number}.pgbi"));
        std::fs::hard_link(backup.join(format!("{key}.pgbi")), link)?;
    }
    let shown = directory.strip_prefix("pg_data/").unwrap_or(directory);
    Ok((lines, shown.to_owned()))
}

fn of_another_process(place: &Path, prefix: Option<&str>) -> Result<f64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--memory-of").arg(place);
    command.args(prefix.map(|prefix| format!("--reading={prefix}")));
    let output = run(&mut command)?;
    let text = String::from_utf8(output.stdout)?;
    text.trim()
        .parse()
        .with_context(|| format!("it said {text:?}"))
}

/// The most memory of this process, in MiB, after opening the newest backup of a repository of pgBackRest and reading a page of each
/// file whose path begins so.
pub fn memory_of(place: &Path, prefix: Option<&str>) -> Result<f64> {
    let repository = open_pgbackrest(place, &PgBackRestOptions::default(), OpenOptions::default())?;
    let backup = repository.open(BackupChoice::Newest)?;
    let mut page = vec![0; 8192];
    for entry in backup.tree().entries() {
        let is_read = prefix.is_some_and(|prefix| entry.path.starts_with(prefix));
        if let EntryKind::File { file, .. } = entry.kind
            && is_read
        {
            backup.read_at(file, 0, &mut page)?;
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|rest| rest.split_whitespace().next());
    Ok(f64::from(kib.context("no VmHWM")?.parse::<u32>()?) / 1024.0)
}
