//! What all measurements need: backups of every scale, a system over them, and caches that can be dropped.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::plan::Sizes;
use super::server::{self, DATABASE, Native, Published, WhichBackup};
use crate::postgres::{
    BackupOptions, Installation, TestPostgres, give_to_postgres, installations, run,
};
use crate::system::{SystemOptions, TestSystem};

/// `shared_buffers` of both sides on the disk, in MiB.
pub(super) const SHARED_BUFFERS_MIB: u64 = 256;

/// Everything that is measured lies in one directory.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    /// How large, how long, how often.
    pub sizes: Sizes,
    installation: Installation,
    sources: BTreeSet<u32>,
    drops_caches: bool,
}

impl Stage {
    /// In a directory that exists and that the OS user `postgres` may enter.
    pub fn open(directory: &Path, sizes: Sizes) -> Result<Self> {
        let installation = installations()
            .into_iter()
            .next()
            .context("PostgreSQL is not installed; ./bench installs it")?;
        std::fs::create_dir_all(directory.join("backups"))?;
        give_to_postgres(&directory.join("backups"))?;
        let mut stage = Self {
            directory: directory.to_owned(),
            sizes,
            installation,
            sources: BTreeSet::new(),
            drops_caches: true,
        };
        stage.drop_caches();
        Ok(stage)
    }

    /// Tells people how far it is.
    pub fn say(&self, text: &str) {
        // A closed terminal is no reason to stop measuring.
        writeln!(std::io::stderr(), "bench: {text}").ok();
    }

    /// PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.installation.major
    }

    /// Whether caches are dropped before what is measured cold.
    pub fn drops_caches(&self) -> bool {
        self.drops_caches
    }

    /// PostgreSQL, as it is installed.
    pub(super) fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Directory of PostgreSQL's programs.
    pub(super) fn bin(&self) -> &Path {
        &self.installation.bin
    }

    /// A path in the stage's directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A backup of the repository.
    pub(super) fn backup(&self, label: &str) -> PathBuf {
        self.directory.join("backups").join(label)
    }

    /// The name of a scale's backup.
    pub(super) fn label(scale: u32, format: &str) -> String {
        format!("scale-{scale}-{format}")
    }

    /// Makes the backups of a scale, as directory and tar, unless they are there.
    pub(super) fn source(&mut self, scale: u32) -> Result<()> {
        if !self.sources.insert(scale) {
            return Ok(());
        }
        self.say(&format!(
            "making a database of scale {scale} and its backups"
        ));
        let original = self.original(scale)?;
        for (format, tar) in [("directory", false), ("tar", true)] {
            let options = BackupOptions {
                tar,
                ..BackupOptions::default()
            };
            original.backup(&self.backup(&Self::label(scale, format)), &options)?;
        }
        Ok(())
    }

    /// A running cluster with the database of a scale.
    pub(super) fn original(&self, scale: u32) -> Result<TestPostgres> {
        let original = TestPostgres::start_new(&self.installation)?;
        original.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        original.pgbench(DATABASE, &["-i", "-q", "-s", &scale.to_string()])?;
        Ok(original)
    }

    /// Writes everything out and lets the kernel forget what it has read.
    pub(super) fn drop_caches(&mut self) {
        rustix::fs::sync();
        self.drops_caches &= std::fs::write("/proc/sys/vm/drop_caches", "3\n").is_ok();
    }

    /// A system over the repository.
    pub(super) async fn system(&self) -> Result<TestSystem> {
        self.system_with(SHARED_BUFFERS_MIB, "").await
    }

    /// The same with other memory and more lines of the target's section.
    pub(super) async fn system_with(
        &self,
        shared_buffers_mib: u64,
        more: &str,
    ) -> Result<TestSystem> {
        let mut options = self.system_options(shared_buffers_mib);
        options.target_lines = format!("{}\n{more}", options.target_lines);
        TestSystem::start_with(&self.path("backups"), options).await
    }

    /// A system over more repositories: sections of mount-svc's configuration.
    pub(super) async fn system_over(&self, sections: String) -> Result<TestSystem> {
        let options = SystemOptions {
            repository_lines: sections,
            ..self.system_options(SHARED_BUFFERS_MIB)
        };
        TestSystem::start_with(&self.path("backups"), options).await
    }

    fn system_options(&self, shared_buffers_mib: u64) -> SystemOptions {
        SystemOptions {
            target_lines: server::target_lines(self.bin(), shared_buffers_mib),
            // The product's own intervals, not those that let tests see results soon.
            recovery_lines: String::new(),
            directory_prefix: self.path("system-"),
            ..SystemOptions::default()
        }
    }

    /// Publishes a backup.
    pub(super) async fn publish<'a>(
        &self,
        system: &'a TestSystem,
        label: &str,
    ) -> Result<Published<'a>> {
        let repository = "main";
        self.publish_which(system, WhichBackup { repository, label })
            .await
    }

    /// Publishes a backup of any repository.
    pub(super) async fn publish_which<'a>(
        &self,
        system: &'a TestSystem,
        which: WhichBackup<'_>,
    ) -> Result<Published<'a>> {
        Published::new(system, self.bin(), which).await
    }

    /// Restores a backup natively.
    pub(super) fn restore(&self, label: &str) -> Result<Native> {
        let backup = self.backup(label);
        Native::restore(&self.directory, &backup, self.bin(), SHARED_BUFFERS_MIB)
    }

    /// Copies a backup without its manifest under another label, so that files can be added.
    pub(super) fn copy_of(&self, label: &str, to: &str) -> Result<PathBuf> {
        let path = self.backup(to);
        run(Command::new("cp")
            .arg("-a")
            .arg(self.backup(label))
            .arg(&path))?;
        std::fs::remove_file(path.join("backup_manifest"))?;
        Ok(path)
    }
}

/// Adds files without content to the database's directory of a backup, as relations that the catalog does not name.
pub(super) fn add_files(
    backup: &Path,
    names: impl Iterator<Item = String>,
    bytes: u64,
) -> Result<()> {
    let database = largest_directory(&backup.join("base"))?;
    let owner = std::fs::metadata(&database)?;
    let (user, group) = {
        use std::os::unix::fs::MetadataExt;
        (owner.uid(), owner.gid())
    };
    for name in names {
        let path = database.join(name);
        let file = std::fs::File::create_new(&path)?;
        file.set_len(bytes)?;
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    Ok(())
}

// The database with most files is the last that was made.
fn largest_directory(parent: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        found.push((std::fs::read_dir(&path)?.count(), path));
    }
    let (_, path) = found.into_iter().max().context("no database")?;
    Ok(path)
}
