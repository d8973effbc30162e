//! A backup as we read it against the files that another program has written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use repository::{Backup, EntryKind};

use crate::postgres::run;

/// Random reads of each file.
const READS: usize = 6;

/// Every file of a directory, links followed, by its path there.
pub fn files_of(directory: &Path) -> Result<BTreeSet<String>> {
    let mut find = std::process::Command::new("find");
    find.arg("-L").arg(directory);
    let found = run(find.args(["-type", "f", "-printf", "%P\n"]))?;
    let text = String::from_utf8(found.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Fails unless each file of a backup has the content of the one that `place` names, read at random and in order, and each directory
/// is there; gives the paths of the files. Where it names none, nothing is compared.
pub fn compare(
    backup: &dyn Backup,
    random: &mut StdRng,
    place: impl Fn(&str) -> Option<PathBuf>,
) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for entry in backup.tree().entries() {
        let path = entry.path;
        let Some(at) = place(path) else {
            continue;
        };
        let EntryKind::File { file, size_bytes } = entry.kind else {
            ensure!(at.is_dir(), "{} is no directory", at.display());
            continue;
        };
        paths.insert(path.to_owned());
        let wanted = std::fs::read(&at).with_context(|| format!("read {}", at.display()))?;
        let length = wanted.len();
        ensure!(
            size_bytes == length as u64,
            "{path}: {size_bytes} bytes, and not {length}"
        );
        for _ in 0..READS {
            let offset = random.random_range(0..=length);
            let mut buffer = vec![0xEE; random.random_range(1..100_000)];
            let count = backup.read_at(file, offset as u64, &mut buffer)?;
            let end = length.min(offset + buffer.len());
            ensure!(
                buffer.get(..count) == wanted.get(offset..end),
                "{path} differs from {offset} on"
            );
        }
        let mut found = Vec::new();
        let mut buffer = vec![0xEE; 100_003];
        loop {
            let count = backup.read_at(file, found.len() as u64, &mut buffer)?;
            if count == 0 {
                break;
            }
            found.extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
        ensure!(found == wanted, "{path} differs");
    }
    Ok(paths)
}
