//! The real Barman for a test: a cluster that archives to servers of Barman, one for each way of taking backups, and what
//! `barman recover` makes of those.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::postgres::{Installation, TestPostgres, as_postgres, give_to_postgres, run};

/// Servers by how their backups are taken.
pub const RSYNC: &str = "rs";
/// By `pg_basebackup`, into a directory.
pub const PLAIN: &str = "pg";
/// By `pg_basebackup`, into tar archives that are not compressed.
pub const TAR: &str = "tar";
/// The same by gzip.
pub const TAR_GZIP: &str = "gzip";
/// The same by lz4.
pub const TAR_LZ4: &str = "lz4";
/// The same by zstd.
pub const TAR_ZSTD: &str = "zstd";
const USUAL: [&str; 3] = [RSYNC, PLAIN, TAR];

/// In place of `ssh`: options, a host, options, a command, which runs here.
const SSH: &str = "#!/bin/sh\n\
    while :; do case $1 in here) shift ;; -[op]) shift 2 ;; -*) shift ;; *) break ;; esac; done\n\
    [ $# -gt 0 ] || exec sh\n\
    exec sh -c \"$*\"\n";

/// Debian's Barman: 3.4 in bookworm, 3.13 in trixie.
pub fn of_debian() -> PathBuf {
    "/usr/bin/barman".into()
}

/// One of the versions that `./test` installs: 3.13.3, which Debian 13 has, and today's, 3.19.1.
pub fn of_version(version: &str) -> PathBuf {
    let cache = std::env::var_os("PGINSTANT_TEST_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| "/var/cache/pginstant-test".into());
    cache.join(format!("barman-{version}/bin/barman"))
}

/// A cluster and its servers; all of it goes away with the test.
#[derive(Debug)]
pub struct Stage {
    program: PathBuf,
    cluster: TestPostgres,
    directory: TempDir,
    servers: Vec<&'static str>,
}

impl Stage {
    /// Makes a cluster with a tablespace, and has it archive to the three usual servers.
    pub fn new(program: PathBuf, installation: &Installation) -> Result<Self> {
        Self::with_servers(program, installation, &USUAL)
    }

    /// The same with these servers.
    pub fn with_servers(
        program: PathBuf,
        installation: &Installation,
        servers: &[&'static str],
    ) -> Result<Self> {
        let mut cluster = TestPostgres::start_new(installation)?;
        cluster.create_tablespace("one")?;
        Self::made(program, cluster, Path::new("/var/tmp"), servers)
    }

    /// The same for a cluster that there is already, with its tablespace `one`; what is made for it lies below `parent`, to which the
    /// OS user must get through.
    pub fn of(program: PathBuf, cluster: TestPostgres, parent: &Path) -> Result<Self> {
        Self::made(program, cluster, parent, &USUAL)
    }

    fn made(
        program: PathBuf,
        cluster: TestPostgres,
        parent: &Path,
        servers: &[&'static str],
    ) -> Result<Self> {
        anyhow::ensure!(
            program.exists(),
            "{} is not installed; ./test installs it",
            program.display()
        );
        let directory = tempfile::Builder::new()
            .prefix("pginstant-barman-")
            .tempdir_in(parent)?;
        give_to_postgres(directory.path())?;
        let mut stage = Self {
            program,
            cluster,
            directory,
            servers: servers.to_vec(),
        };
        stage.configure()?;
        stage.archive()?;
        Ok(stage)
    }

    fn configure(&self) -> Result<()> {
        let here = self.directory.path().display();
        let connection = format!(
            "host={} port={} user=postgres dbname=postgres",
            self.cluster.socket_directory().display(),
            self.cluster.port()
        );
        let bin = self.cluster.installation().bin.display();
        let mut text = format!(
            "[barman]\nbarman_home = {here}/home\nbarman_user = postgres\nlog_file = {here}/barman.log\nlog_level = INFO\n\
             configuration_files_directory = {here}/conf.d\npath_prefix = {bin}\nbackup_options = concurrent_backup\nimmediate_checkpoint = true\narchiver = on\n"
        );
        for server in &self.servers {
            let lines = match *server {
                RSYNC => format!(
                    "backup_method = rsync\nreuse_backup = link\nssh_command = {here}/ssh here\ncompression = gzip"
                ),
                PLAIN => format!(
                    "backup_method = postgres\nstreaming_conninfo = {connection}\ncompression = bzip2"
                ),
                tar => {
                    let codec = if tar == TAR { "none" } else { tar };
                    let staging = self.directory.path().join("staging");
                    std::fs::create_dir_all(&staging)?;
                    format!(
                        "backup_method = postgres\nstreaming_conninfo = {connection}\nbackup_compression = {codec}\n\
                         recovery_staging_path = {}",
                        staging.display()
                    )
                }
            };
            text +=
                &format!("[{server}]\ndescription = {server}\nconninfo = {connection}\n{lines}\n");
            std::fs::create_dir_all(self.server(server).join("incoming"))?;
        }
        std::fs::create_dir(self.directory.path().join("conf.d"))?;
        std::fs::write(self.configuration(), text)?;
        // A segment appears where Barman looks for it when it is whole.
        let archive = format!(
            "#!/bin/sh\nset -e\nhome={here}/home\nfor server in {}; do\n\
             cp \"$1\" \"$home/$2.$server\"\nmv \"$home/$2.$server\" \"$home/$server/incoming/$2\"\ndone\n",
            self.servers.join(" ")
        );
        for (name, script) in [("ssh", SSH), ("archive", &archive)] {
            let path = self.directory.path().join(name);
            std::fs::write(&path, script)?;
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        }
        let mut chown = std::process::Command::new("chown");
        run(chown.args(["-R", "postgres"]).arg(self.directory.path())).map(drop)
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("barman.conf")
    }

    /// Has the cluster archive its WAL, and each server receive some.
    fn archive(&mut self) -> Result<()> {
        let script = self.directory.path().join("archive");
        let command = format!("{} %p %f", script.display());
        for (name, value) in [("archive_mode", "on"), ("archive_command", &command)] {
            let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
            self.cluster.psql("postgres", &sql)?;
        }
        self.cluster.stop("fast")?;
        self.cluster.start()?;
        // What one has received, all have.
        let (first, others) = self.servers.split_first().context("a server")?;
        self.run(&["switch-wal", "--force", "--archive", first])?;
        for server in others {
            self.run(&["archive-wal", server])?;
        }
        Ok(())
    }

    /// The directory of a server.
    pub fn server(&self, name: &str) -> PathBuf {
        self.directory.path().join("home").join(name)
    }

    /// The cluster.
    pub fn cluster(&self) -> &TestPostgres {
        &self.cluster
    }

    /// Takes a backup and returns its id.
    pub fn backup(&self, server: &str, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["backup"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain([server])
            .collect();
        self.run(&all)?;
        // Not `--wait`: where a backup ends between two segments, older ones wait for the next, which nobody writes here.
        self.run(&["switch-wal", "--force", "--archive", server])?;
        let listed = self.run(&["list-backups", "--minimal", server])?;
        let newest = listed
            .lines()
            .next()
            .context("the id of the newest backup")?;
        Ok(newest.trim().to_owned())
    }

    /// How `barman recover` is told where it may put an incremental backup together; Barman 3.15 changed the words.
    pub fn staging(&self, directory: &Path) -> Result<Vec<String>> {
        let directory = directory.display().to_string();
        let help = self.run(&["recover", "--help"])?;
        Ok(match help.contains("--staging-location") {
            true => ["--staging-path", &directory, "--staging-location", "local"]
                .map(str::to_owned)
                .to_vec(),
            false => vec!["--local-staging-path".to_owned(), directory],
        })
    }

    /// What `barman recover` makes of a backup: `data` in a directory that goes away, and the tablespace beside it.
    pub fn recover(&self, server: &str, id: &str, arguments: &[&str]) -> Result<TempDir> {
        let to = tempfile::Builder::new()
            .prefix("recovered-")
            .tempdir_in(self.directory.path())?;
        give_to_postgres(to.path())?;
        let tablespace = format!("one:{}/one", to.path().display());
        let data = to.path().join("data").display().to_string();
        let all: Vec<&str> = ["recover", "--tablespace", &tablespace]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain([server, id, &data])
            .collect();
        self.run(&all)?;
        Ok(to)
    }

    /// Runs the real program; what it wrote to standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = as_postgres(&self.program);
        command.arg("-c").arg(self.configuration()).args(arguments);
        let output = run(&mut command);
        let output = output.with_context(|| {
            let log = self.directory.path().join("barman.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let last = log.lines().rev().take(20).collect::<Vec<_>>();
            last.into_iter().rev().collect::<Vec<_>>().join("\n")
        })?;
        Ok(String::from_utf8(output.stdout)?)
    }
}
