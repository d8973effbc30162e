//! Transactions per second with cache and native data in memory: what the mount costs when no disk hides it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::line::Ledger;
use super::server::Native;
use super::stage::Stage;
use super::throughput::{let_all_be_opened_anew, read_files};
use crate::postgres::run;

/// Little, so that most pages come from the file system.
const SHARED_BUFFERS_MIB: u64 = 32;
const LOADS: [(&str, &[&str]); 2] = [("select", &["-S"]), ("update", &["-N"])];

/// A volume in memory; goes when dropped.
struct Volume(PathBuf);

impl Volume {
    fn mount(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let options = ["-t", "tmpfs", "-o", "size=8g,mode=755", "pginstant-bench"];
        run(Command::new("mount").args(options).arg(at))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // What is still there, ./bench unmounts.
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.cpu_scale;
    stage.source(scale)?;
    let label = Stage::label(scale, "directory");
    let system = stage.system_with(SHARED_BUFFERS_MIB, "").await?;
    let _cache = Volume::mount(&system.cache_root())?;
    let memory = stage.path("memory");
    let _data = Volume::mount(&memory)?;
    let backup = stage.backup(&label);
    let native = Native::restore(&memory, &backup, stage.bin(), SHARED_BUFFERS_MIB)?;
    native.start()?;
    let published = stage.publish(&system, &label).await?;
    read_files(&published.data_directory, "hydrated")?;
    published.is_hydrated().await?;
    let_all_be_opened_anew(&published.server)?;
    let seconds = stage.sizes.load_s;
    for round in 1..=stage.sizes.rounds {
        for (load, arguments) in LOADS {
            let name = format!("cpu/{load}");
            if !ledger.wants(&name) {
                continue;
            }
            stage.say(&format!("round {round}: {name}"));
            published.server.sql("CHECKPOINT")?;
            native.server.sql("CHECKPOINT")?;
            ledger.ours(&name, published.server.pgbench(arguments, seconds)?);
            ledger.peer(&name, native.server.pgbench(arguments, seconds)?);
        }
    }
    published.end().await
}
