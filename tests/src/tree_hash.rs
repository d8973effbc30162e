//! One hash over everything in a directory: names, kinds, modes, sizes, times and contents.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

/// The hash of a tree, in hexadecimal.
pub fn of(root: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata =
            fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        hash.update(describe(root, &path, &metadata));
        if metadata.is_dir() {
            let mut children: Vec<PathBuf> = fs::read_dir(&path)?
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<_>>()?;
            children.sort_unstable_by(|a, b| b.cmp(a));
            pending.extend(children);
        } else if metadata.is_file() {
            std::io::copy(&mut fs::File::open(&path)?, &mut Writer(&mut hash))?;
        } else if metadata.is_symlink() {
            hash.update(fs::read_link(&path)?.to_string_lossy().as_bytes());
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn describe(root: &Path, path: &Path, metadata: &Metadata) -> String {
    let name = path.strip_prefix(root).unwrap_or(path).display();
    let size = if metadata.is_dir() { 0 } else { metadata.len() };
    format!(
        "{name}\0{:o} {size} {} {}\0",
        metadata.mode(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
