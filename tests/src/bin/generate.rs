//! Writes the files that are generated from the code: `cargo run -p tests --bin generate`.

use std::fs;

use anyhow::Context;
use tests::generated::{files, root};

fn main() -> anyhow::Result<()> {
    for (path, content) in files()? {
        let path = root().join(path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
