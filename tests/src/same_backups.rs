//! Two openings of one backup, which have to read the same.

use anyhow::{Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use repository::{Backup, EntryKind, FileIndex};

/// Random reads of each file.
const READS: usize = 3;

/// The files of a backup, with their sizes.
pub fn files(backup: &dyn Backup) -> Vec<(String, FileIndex, u64)> {
    let files = backup
        .tree()
        .entries()
        .filter_map(|entry| match entry.kind {
            EntryKind::File { file, size_bytes } => Some((entry.path.to_owned(), file, size_bytes)),
            EntryKind::Directory => None,
        });
    files.collect()
}

/// Every entry's path, kind and size, of files and directories.
pub fn entries(backup: &dyn Backup) -> Vec<String> {
    let all = backup.tree().entries();
    all.map(|entry| format!("{} {:?}", entry.path, entry.kind))
        .collect()
}

/// The same with modes and times.
pub fn entries_with_modes(backup: &dyn Backup) -> Vec<String> {
    let all = backup.tree().entries();
    all.map(|entry| {
        format!(
            "{} {:?} {:o} {}",
            entry.path, entry.kind, entry.mode, entry.modified_at_s
        )
    })
    .collect()
}

/// Fails unless the second has the bytes of the first, in order and at random.
pub fn compare_bytes(here: &dyn Backup, there: &dyn Backup, random: &mut StdRng) -> Result<()> {
    for (path, file, size_bytes) in files(here) {
        let size = usize::try_from(size_bytes)?;
        let (mut wanted, mut found) = (vec![0; size], vec![0; size]);
        ensure!(here.read_at(file, 0, &mut wanted)? == size, "{path}");
        ensure!(there.read_at(file, 0, &mut found)? == size, "{path}");
        ensure!(wanted == found, "{path} differs");
        for _ in 0..READS {
            let offset = random.random_range(0..=size);
            let mut buffer = vec![0; random.random_range(1..100_000)];
            let count = there.read_at(file, offset as u64, &mut buffer)?;
            let wanted = wanted.get(offset..(offset + buffer.len()).min(size));
            ensure!(buffer.get(..count) == wanted, "{path} at {offset}");
        }
    }
    Ok(())
}
