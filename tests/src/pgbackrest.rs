//! The real pgBackRest for a test: a cluster that archives to one or more repositories, backups in them, and what
//! `pgbackrest restore` makes of those.

mod legacy;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use repository::Backup;
use tempfile::TempDir;

use crate::postgres::{Installation, TestPostgres, as_postgres, give_to_postgres, run, wait_until};
use crate::same_backups::files;

pub use legacy::rewrite_as_2_36;

/// The passphrase of encrypted repositories.
pub const PASSPHRASE: &str = "a passphrase of the tests";
/// The name of every stanza.
pub const STANZA: &str = "main";

/// One version of pgBackRest, as `./test` installs it.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
}

impl Tool {
    /// The version of a Debian: `bookworm` has 2.45, `trixie` 2.55, `forky` today's.
    pub fn of(suite: &str) -> Result<Self> {
        let place = std::env::var_os("PGINSTANT_TEST_PGBACKREST").map_or_else(
            || "/var/cache/pginstant-test/pgbackrest".into(),
            PathBuf::from,
        );
        let program = place.join(suite).join("pgbackrest");
        let output = run(Command::new(&program).arg("version")).with_context(|| {
            format!("{} is not installed; ./test installs it", program.display())
        })?;
        let text = String::from_utf8(output.stdout)?;
        let mut numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok());
        let version = numbers.next().zip(numbers.next());
        Ok(Self {
            program,
            version: version.with_context(|| format!("no version in {text:?}"))?,
        })
    }
}

/// How a repository stores what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each file by itself.
    Plain,
    /// Small files in bundles.
    Bundle,
    /// Bundles, and changed blocks only.
    Blocks,
}

/// One repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepositoryKind {
    /// How files are stored.
    pub layout: Layout,
    /// Whether they are encrypted.
    pub is_encrypted: bool,
}

/// What a stage is made of.
#[derive(Debug)]
pub struct Setting<'a> {
    /// The cluster, which runs.
    pub cluster: TestPostgres,
    /// Where the repositories are made; the OS user must get through to it.
    pub parent: &'a Path,
}

impl Setting<'_> {
    /// A cluster of its own, with a tablespace.
    fn new(installation: &Installation) -> Result<Self> {
        let mut cluster = TestPostgres::start_new(installation)?;
        cluster.create_tablespace("one")?;
        Ok(Self {
            cluster,
            parent: Path::new("/var/tmp"),
        })
    }
}

/// A cluster and its repositories; all of it goes away with the test.
#[derive(Debug)]
pub struct Stage {
    tool: Tool,
    directory: TempDir,
    cluster: TestPostgres,
    repository_count: usize,
    /// More lines of the configuration, where the repository is in an object store.
    store_lines: Option<String>,
}

impl Stage {
    /// Makes a cluster with a tablespace, and a stanza for it in each repository.
    pub fn new(tool: &Tool, installation: &Installation, kinds: &[RepositoryKind]) -> Result<Self> {
        Self::of(tool, Setting::new(installation)?, kinds)
    }

    /// The same for a cluster that there is already, with what is in it.
    pub fn of(tool: &Tool, setting: Setting<'_>, kinds: &[RepositoryKind]) -> Result<Self> {
        Self::make(tool, setting, kinds, None)
    }

    /// The same with one repository in an object store, which these lines of the configuration describe.
    pub fn new_in_store(
        tool: &Tool,
        installation: &Installation,
        kind: RepositoryKind,
        store_lines: &str,
    ) -> Result<Self> {
        let setting = Setting::new(installation)?;
        Self::make(tool, setting, &[kind], Some(store_lines.to_owned()))
    }

    fn make(
        tool: &Tool,
        setting: Setting<'_>,
        kinds: &[RepositoryKind],
        store_lines: Option<String>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-pgbackrest-")
            .tempdir_in(setting.parent)?;
        give_to_postgres(directory.path())?;
        let mut stage = Self {
            tool: tool.clone(),
            cluster: setting.cluster,
            directory,
            repository_count: kinds.len(),
            store_lines,
        };
        stage.configure(kinds)?;
        stage.run(&["stanza-create"])?;
        stage.archive()?;
        Ok(stage)
    }

    fn configure(&self, kinds: &[RepositoryKind]) -> Result<()> {
        let here = self.directory.path().display();
        let mut text = format!(
            "[global]\nlog-level-console=error\nlog-level-file=off\nlog-path={here}/log\nlock-path={here}/lock\n\
             spool-path={here}/spool\nstart-fast=y\n"
        );
        if self.tool.version >= (2, 41) {
            // Its own processes run by the same loader.
            writeln!(text, "cmd={}", self.tool.program.display())?;
        }
        for (number, kind) in (1..).zip(kinds) {
            match &self.store_lines {
                None => writeln!(text, "repo{number}-path={here}/repository{number}")?,
                Some(lines) => text.push_str(lines),
            }
            writeln!(text, "repo{number}-retention-full=9")?;
            if kind.is_encrypted {
                writeln!(text, "repo{number}-cipher-type=aes-256-cbc")?;
                writeln!(text, "repo{number}-cipher-pass={PASSPHRASE}")?;
            }
            if kind.layout != Layout::Plain {
                writeln!(text, "repo{number}-bundle=y")?;
            }
            // 2.45 knows them as a beta, which is asked for with each backup.
            if kind.layout == Layout::Blocks && self.tool.version >= (2, 46) {
                writeln!(text, "repo{number}-block=y")?;
            }
        }
        write!(
            text,
            "[{STANZA}]\npg1-path={}\npg1-socket-path={}\npg1-port={}\n",
            self.cluster.data_directory().display(),
            self.cluster.socket_directory().display(),
            self.cluster.port()
        )?;
        Ok(std::fs::write(self.configuration(), text)?)
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("pgbackrest.conf")
    }

    /// Has the cluster archive its WAL.
    fn archive(&mut self) -> Result<()> {
        let command = format!(
            "{} --config={} --stanza={STANZA} archive-push %p",
            self.tool.program.display(),
            self.configuration().display()
        );
        for (name, value) in [("archive_mode", "on"), ("archive_command", &command)] {
            let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
            self.cluster.psql("postgres", &sql)?;
        }
        self.cluster.stop("fast")?;
        self.cluster.start()
    }

    /// Waits until all that the cluster has to archive now is in the repositories.
    pub fn archiving_is_done(&self) -> Result<()> {
        let status = self.cluster.data_directory().join("pg_wal/archive_status");
        wait_until("everything is archived", || {
            let names = std::fs::read_dir(&status).into_iter().flatten().flatten();
            let mut names = names.map(|entry| entry.file_name());
            !names.any(|name| name.to_string_lossy().ends_with(".ready"))
        })
    }

    /// Has the cluster go on on a timeline of its own, as after a failover.
    pub fn promote(&mut self) -> Result<()> {
        self.cluster.promote()
    }

    /// The directory of a repository, counted from 1.
    pub fn repository(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("repository{number}"))
    }

    /// The cluster.
    pub fn cluster(&self) -> &TestPostgres {
        &self.cluster
    }

    /// The program that is used.
    pub fn tool(&self) -> &Tool {
        &self.tool
    }

    /// Puts another cluster in the place of the one there is, as after `pg_upgrade`, and tells the stanza.
    pub fn upgrade_to(
        &mut self,
        installation: &Installation,
        kinds: &[RepositoryKind],
    ) -> Result<()> {
        ensure!(
            kinds.len() == self.repository_count,
            "the same repositories"
        );
        self.cluster.stop("fast")?;
        self.cluster = TestPostgres::start_new(installation)?;
        self.cluster.create_tablespace("one")?;
        self.configure(kinds)?;
        self.run(&["stanza-upgrade"])?;
        self.archive()
    }

    /// Takes a backup.
    pub fn back_up(&self, repository: usize, arguments: &[&str]) -> Result<()> {
        let number = format!("--repo={repository}");
        let all: Vec<&str> = ["backup", &number]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.run(&all)
    }

    /// Takes a backup into a directory and returns its label.
    pub fn backup(&self, repository: usize, arguments: &[&str]) -> Result<String> {
        self.back_up(repository, arguments)?;
        let latest = format!("backup/{STANZA}/latest");
        let label = std::fs::read_link(self.repository(repository).join(latest))?;
        let label = label.file_name().and_then(|name| name.to_str());
        Ok(label.context("the label of the latest backup")?.to_owned())
    }

    /// Restores a backup as it is stored, without settings for recovery, into a directory that goes away.
    pub fn restore(&self, repository: usize, label: &str) -> Result<TempDir> {
        self.restore_with(repository, label, &["--type=none"])
    }

    /// Restores a backup as these arguments say: `data` in a directory that goes away.
    pub fn restore_with(
        &self,
        repository: usize,
        label: &str,
        arguments: &[&str],
    ) -> Result<TempDir> {
        let to = tempfile::Builder::new()
            .prefix("restored-")
            .tempdir_in(self.directory.path())?;
        for name in ["data", "tablespaces"] {
            std::fs::create_dir(to.path().join(name))?;
            give_to_postgres(&to.path().join(name))?;
        }
        give_to_postgres(to.path())?;
        let path = to.path().display();
        let place = [
            format!("--repo={repository}"),
            format!("--set={label}"),
            format!("--pg1-path={path}/data"),
            format!("--tablespace-map-all={path}/tablespaces"),
        ];
        let all: Vec<&str> = ["restore"]
            .into_iter()
            .chain(place.iter().map(String::as_str))
            .chain(arguments.iter().copied())
            .collect();
        self.run(&all)?;
        Ok(to)
    }

    /// A WAL segment, as the archive gives it back.
    pub fn wal(&self, repository: usize, segment: &str) -> Result<Vec<u8>> {
        let to = self.directory.path().join("segment");
        let shown = to.display().to_string();
        let number = format!("--repo={repository}");
        self.run(&["archive-get", &number, segment, &shown])?;
        let content = std::fs::read(&to)?;
        std::fs::remove_file(&to)?;
        Ok(content)
    }

    /// Fails unless each file of a backup is what restore makes of it; gives how many were compared.
    pub fn compare_with_restored(&self, number: usize, backup: &dyn Backup) -> Result<u64> {
        let restored = self.restore(number, &backup.restore_point().label)?;
        let mut compared_count = 0;
        for (path, file, size_bytes) in files(backup) {
            let at = restored.path().join("data").join(&path);
            // Since 2.51 it has the cluster not start without the label.
            let is_changed = path == "global/pg_control" && self.tool.version >= (2, 51);
            // Restore makes links of the map, and gives no WAL of the archive.
            if is_changed || path == "tablespace_map" || path.starts_with("pg_wal/") && !at.exists()
            {
                continue;
            }
            let wanted = std::fs::read(&at).with_context(|| format!("read {}", at.display()))?;
            let mut found = vec![0; usize::try_from(size_bytes)?];
            ensure!(
                backup.read_at(file, 0, &mut found)? == found.len(),
                "{path}"
            );
            ensure!(found == wanted, "{path} differs");
            compared_count += 1;
        }
        Ok(compared_count)
    }

    /// Puts a file into a repository, over the one that is there.
    pub fn put(&self, number: usize, path: &str, content: &[u8]) -> Result<()> {
        let from = self.directory.path().join("put");
        std::fs::write(&from, content)?;
        let number = format!("--repo={number}");
        let mut command = self.command(&["repo-put", &number, path]);
        run(command.stdin(std::fs::File::open(&from)?)).map(drop)
    }

    /// Runs the real program for the stanza.
    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        run(self.command(arguments).arg(format!("--stanza={STANZA}"))).map(drop)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = as_postgres(&self.tool.program);
        command
            .arg(format!("--config={}", self.configuration().display()))
            .args(arguments);
        command
    }
}

/// Name, size and times of everything in a directory, to see that nothing changed.
pub fn state_of(directory: &Path) -> Result<BTreeSet<String>> {
    let found = run(Command::new("find")
        .arg(directory)
        .args(["-printf", "%p %y %s %m %T@ %C@ %i\n"]))?;
    let text = String::from_utf8(found.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}
