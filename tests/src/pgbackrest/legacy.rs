//! Repositories as pgBackRest 2.36 wrote them, of which there is no package any more: made from those of 2.45, whose files have the
//! same framing where there are neither bundles nor blocks, by leaving out of the info files what came later. That 2.45 restores from
//! them shows that they are sound.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use repository::pgbackrest::sealed_again;
use serde_json::{Map, Value};

use super::{STANZA, Stage};
use crate::postgres::run;

const VERSION: &str = "2.36";

/// Takes what came after 2.36 out of all info files of a repository, which is neither encrypted nor bundled.
pub fn rewrite_as_2_36(stage: &Stage, number: usize) -> Result<()> {
    for path in info_files(&stage.repository(number))? {
        let text = std::fs::read_to_string(&path)?;
        let text = rewritten(&text).with_context(|| format!("rewrite {}", path.display()))?;
        std::fs::write(&path, text)?;
    }
    Ok(())
}

/// Those, and their copies.
fn info_files(repository: &Path) -> Result<Vec<PathBuf>> {
    let mut find = Command::new("find");
    find.arg(repository.join("backup").join(STANZA)).args([
        "-name",
        "backup.info*",
        "-o",
        "-name",
        "backup.manifest*",
    ]);
    let text = String::from_utf8(run(&mut find)?.stdout)?;
    Ok(text.lines().map(PathBuf::from).collect())
}

fn rewritten(text: &str) -> Result<String> {
    let mut section = "";
    let mut kept = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        }
        for line in line_of_2_36(section, line)? {
            kept += &line;
            kept.push('\n');
        }
    }
    Ok(sealed_again(&kept))
}

/// What 2.36 wrote instead of a line.
fn line_of_2_36(section: &str, line: &str) -> Result<Vec<String>> {
    const YOUNGER: [&str; 5] = [
        "backup-annotation",
        "backup-block-incr",
        "backup-bundle",
        "backup-bundle-raw",
        "backup-reference",
    ];
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    if YOUNGER.contains(&key) {
        return Ok(Vec::new());
    }
    Ok(match (section, key) {
        ("backrest", "backrest-version") => vec![format!("{key}=\"{VERSION}\"")],
        ("backup:current", _) if !value.is_empty() => {
            let mut entry: Map<String, Value> = serde_json::from_str(value)?;
            entry.retain(|key, _| !key.contains("-map") && !YOUNGER.contains(&key.as_str()));
            entry.insert("backrest-version".to_owned(), VERSION.into());
            // In the list of backups it has always been there.
            if let Some(references) = serde_json::from_str::<Value>(value)?.get("backup-reference")
            {
                entry.insert("backup-reference".to_owned(), references.clone());
            }
            vec![format!("{key}={}", serde_json::to_string(&entry)?)]
        }
        ("target:file", _) if line.ends_with('}') => {
            let at = line.rfind("={\"").context("a file")? + 1;
            let (key, value) = line.split_at(at);
            let mut entry: Map<String, Value> = serde_json::from_str(value)?;
            entry.remove("rck");
            vec![format!("{key}{}", serde_json::to_string(&entry)?)]
        }
        // Which files only the primary had.
        ("target:file:default", "mode") => vec!["master=false".to_owned(), line.to_owned()],
        _ => vec![line.to_owned()],
    })
}
