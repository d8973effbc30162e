//! A small file system of a test's own, which can be filled.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::mount::{UnmountFlags, unmount};

use crate::postgres::run;

/// An ext4 file system in a file, mounted by a loop device; goes when dropped.
#[derive(Debug)]
pub struct Volume {
    mounted_at: PathBuf,
}

impl Volume {
    /// Makes the file and the file system, and mounts it.
    pub fn mount(image: &Path, at: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        std::fs::File::create_new(image)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(image))?;
        // The loop device goes with the mount.
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(at))?;
        Ok(Self {
            mounted_at: at.to_owned(),
        })
    }

    /// What can still be written.
    pub fn free_bytes(&self) -> Result<u64> {
        let statistics = rustix::fs::statvfs(&self.mounted_at)?;
        Ok(statistics.f_bavail * statistics.f_frsize)
    }

    /// Takes all but `left` bytes; gives the file that does.
    pub fn fill_to(&self, left: u64) -> Result<PathBuf> {
        let path = self.mounted_at.join("filler");
        let length = self.free_bytes()?.saturating_sub(left);
        run(Command::new("fallocate")
            .args(["-l", &length.to_string()])
            .arg(&path))?;
        Ok(path)
    }
}

impl Volume {
    /// Takes everything, and whatever somebody gives back, until it is told to stop; returns when all is taken.
    pub fn keep_full(&self) -> Result<Full> {
        let path = self.mounted_at.join("taken");
        let mut file = File::create_new(&path)?;
        take(&mut file)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let taking = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                take(&mut file)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        Ok(Full {
            path,
            stop,
            taking: Some(taking),
        })
    }

    /// Whether a path lies on it.
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.mounted_at)
    }

    /// Unmounts it while nobody uses it.
    pub fn unmount(self) -> Result<()> {
        Ok(unmount(&self.mounted_at, UnmountFlags::empty())?)
    }
}

/// Writes until nothing more can be written.
fn take(file: &mut File) -> std::io::Result<()> {
    for size in [1 << 20, 4096] {
        let block = vec![0; size];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
    }
    // What was promised to the page cache only can still be refused by the disk.
    match file.sync_data() {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        other => other,
    }
}

/// A volume that is kept full.
#[derive(Debug)]
pub struct Full {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    taking: Option<JoinHandle<std::io::Result<()>>>,
}

impl Full {
    /// Makes room again.
    pub fn give_back(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(taking) = self.taking.take() else {
            return Ok(());
        };
        let taken = taking.join().map_err(|_| anyhow!("it panicked"))?;
        std::fs::remove_file(&self.path)?;
        taken.context("keep the volume full")
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // Told to end already when the test has gone well.
        self.end().ok();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Nothing is mounted when the test has gone well.
        unmount(&self.mounted_at, UnmountFlags::DETACH).ok();
    }
}
