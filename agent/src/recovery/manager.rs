//! How the host runs the server of a data directory: Debian's cluster tools, a systemd unit, or nobody but the server itself.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::agent::hand::SessionPlace;
use common::problem::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};

use super::{io_failed, occupant};
use crate::hand::command::CommandLine;
use crate::hand::os_user::Account;
use crate::postgresql::host_files::Disk;
use crate::postgresql::process::{self, Process};
use crate::postgresql::server::Server;
use crate::postgresql::{log, settings_file::SettingsFile};

/// Where Debian keeps the configuration of its clusters.
const DEBIAN_ROOT: &str = "/etc/postgresql";

/// How long a tool of the host may take to start a server.
const START_FOR: Duration = Duration::from_secs(120);

/// How long a server of the host may take for a fast stop.
const STOP_FOR: Duration = Duration::from_secs(90);

/// Who starts and stops a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Manager {
    /// Debian's cluster tools.
    Debian {
        /// Major version.
        version: String,
        /// Name of the cluster.
        cluster: String,
    },
    /// A unit of systemd.
    Systemd {
        /// Its name.
        unit: String,
    },
    /// Nobody: the server is started by its own program.
    Program {
        /// The program `postgres`.
        program: PathBuf,
        /// Its arguments beside the data directory.
        arguments: Vec<String>,
        /// Where its output goes.
        log: PathBuf,
    },
}

/// What a manager works with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) data_directory: &'a Path,
    pub(super) account: &'a Account,
    pub(super) place: &'a SessionPlace,
}

impl Manager {
    /// What runs this postmaster.
    pub(super) fn of_running(postmaster: Process, context: &Context<'_>) -> Self {
        if let Some(debian) = debian_cluster(Path::new(DEBIAN_ROOT), context.data_directory) {
            return debian;
        }
        if let Some(unit) = systemd_unit(postmaster) {
            return Self::Systemd { unit };
        }
        let mut words = postmaster.arguments().into_iter();
        let named = PathBuf::from(words.next().unwrap_or_default());
        let real = std::fs::read_link(format!("/proc/{}/exe", postmaster.pid));
        Self::Program {
            program: match named.is_absolute() {
                true => named,
                false => real.unwrap_or(named),
            },
            arguments: without_data_directory(words),
            log: output_of(postmaster)
                .unwrap_or_else(|| context.place.log_directory().join("original.log")),
        }
    }

    /// Debian's cluster of this data directory, if there is one.
    pub(super) fn debian(data_directory: &Path) -> Option<Self> {
        debian_cluster(Path::new(DEBIAN_ROOT), data_directory)
    }

    /// The configuration file that it starts the server with, where that lies outside the data directory.
    pub(super) fn configuration_file(&self) -> Option<PathBuf> {
        match self {
            Self::Debian { version, cluster } => Some(
                Path::new(DEBIAN_ROOT)
                    .join(version)
                    .join(cluster)
                    .join("postgresql.conf"),
            ),
            Self::Systemd { .. } => None,
            Self::Program { arguments, .. } => arguments.iter().find_map(|argument| {
                let argument = argument.strip_prefix("--").unwrap_or(argument);
                argument.strip_prefix("config_file=").map(PathBuf::from)
            }),
        }
    }

    /// The command, for people.
    pub(super) fn describe(&self, data_directory: &Path) -> String {
        match self {
            Self::Debian { version, cluster } => format!("pg_ctlcluster {version} {cluster} start"),
            Self::Systemd { unit } => format!("systemctl start {unit}"),
            Self::Program { program, .. } => format!(
                "{} -D {} start",
                program.with_file_name("pg_ctl").display(),
                data_directory.display()
            ),
        }
    }

    /// Starts the server, not waiting for recovery.
    pub(super) fn start(&self, context: &Context<'_>) -> Result<(), Problem> {
        let find = || occupant::of(context.data_directory, context.account).ok()?;
        if find().is_some() {
            return Ok(());
        }
        let line = match self {
            Self::Debian { version, cluster } => {
                CommandLine::new("pg_ctlcluster").args([version, cluster, "start"])
            }
            Self::Systemd { unit } => CommandLine::new("systemctl").args(["start", unit]),
            Self::Program {
                program,
                arguments,
                log,
            } => {
                let server = Server {
                    account: context.account,
                    program: program.clone(),
                    data_directory: context.data_directory.to_owned(),
                    arguments: arguments.clone(),
                    log: log.clone(),
                    socket: None,
                };
                let listens =
                    || find().is_some_and(|found| matches!(&*found.state, "ready" | "standby"));
                return server.start(&|| find().map(|found| found.process), &listens);
            }
        };
        let said = words_of_managers(context.place);
        let began = std::fs::metadata(&said).map_or(0, |facts| facts.len());
        if run_apart(&line, &said)? || find().is_some() {
            return Ok(());
        }
        let lines = log::tail_since(&said, began);
        let why = lines.iter().rev().find(|line| line.contains("FATAL:"));
        Err(Problem::new(
            ErrorCode::InstanceFailed,
            format!(
                "{} failed: {}",
                self.describe(context.data_directory),
                why.or(lines.last()).cloned().unwrap_or_default()
            ),
            format!("look at {} and at the server's log", said.display()),
        ))
    }

    /// Stops the server: as the host does, else fast, else immediately.
    pub(super) fn stop(&self, postmaster: Process, context: &Context<'_>) -> Result<(), Problem> {
        let line = match self {
            Self::Debian { version, cluster } => Some(
                CommandLine::new("pg_ctlcluster").args(["-m", "fast", version, cluster, "stop"]),
            ),
            Self::Systemd { unit } => Some(CommandLine::new("systemctl").args(["stop", unit])),
            Self::Program { .. } => None,
        };
        if let Some(line) = line {
            let said = words_of_managers(context.place);
            if let Err(problem) = run_apart(&line.timeout(STOP_FOR), &said) {
                tracing::warn!(%problem, "stop the original as the host does");
            }
        }
        match postmaster.lives() {
            true => process::stop(postmaster, STOP_FOR),
            false => Ok(()),
        }
    }
}

/// Where their words go: not in the log directory, which is the OS user's.
fn words_of_managers(place: &SessionPlace) -> PathBuf {
    place.session_directory().join("manager.log")
}

/// Runs a tool to its end with its output in a file: a server that it leaves behind would keep a pipe open. Tells whether it succeeded.
fn run_apart(line: &CommandLine, said: &Path) -> Result<bool, Problem> {
    let open = || {
        let options = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(said);
        options.map_err(|e| io_failed(format!("open {}", said.display()), e))
    };
    let doing = |error| io_failed("run a tool of the host", error);
    let mut child = line
        .command()
        .env_remove("LC_ALL")
        .stdout(open()?)
        .stderr(open()?)
        .spawn()
        .map_err(doing)?;
    let deadline = Instant::now() + START_FOR;
    loop {
        if let Some(status) = child.try_wait().map_err(doing)? {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child.kill().map_err(doing)?;
            child.wait().map_err(doing)?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn debian_cluster(root: &Path, data_directory: &Path) -> Option<Manager> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let wanted = real(data_directory);
    let children = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        found.sort();
        found
    };
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    for version in children(root) {
        for cluster in children(&version) {
            let file = cluster.join("postgresql.conf");
            let Ok(settings) = SettingsFile::read(&file, &Disk) else {
                continue;
            };
            let Some(data) = settings.get("data_directory") else {
                continue;
            };
            if real(Path::new(data)) == wanted {
                return Some(Manager::Debian {
                    version: name(&version)?,
                    cluster: name(&cluster)?,
                });
            }
        }
    }
    None
}

fn systemd_unit(postmaster: Process) -> Option<String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    unit_of_groups(&std::fs::read_to_string(format!("/proc/{}/cgroup", postmaster.pid)).ok()?)
}

/// The service in the text of a `/proc/<pid>/cgroup`.
fn unit_of_groups(text: &str) -> Option<String> {
    let unit = text
        .lines()
        .filter_map(|line| line.rsplit('/').next())
        .find(|name| name.ends_with(".service"))?;
    // A service manager of a user, or a container's, is not the unit that starts this server.
    (!unit.starts_with("user@")).then(|| unit.to_owned())
}

/// A postmaster's arguments without its data directory.
fn without_data_directory(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "-D" {
            words.next();
        } else if !word.starts_with("-D") && !word.starts_with("--data_directory=") {
            kept.push(word);
        }
    }
    kept
}

/// The file that a server's standard error goes to.
fn output_of(postmaster: Process) -> Option<PathBuf> {
    let target = std::fs::read_link(format!("/proc/{}/fd/2", postmaster.pid)).ok()?;
    let is_file = std::fs::metadata(&target).is_ok_and(|facts| facts.is_file());
    (target == Path::new("/dev/null") || is_file).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_cluster_is_known_by_its_data_directory() {
        let root = tempfile::tempdir().unwrap();
        let cluster = root.path().join("15/main");
        std::fs::create_dir_all(&cluster).unwrap();
        std::fs::write(
            cluster.join("postgresql.conf"),
            "data_directory = '/nowhere/15/main' # comment\n",
        )
        .unwrap();
        let found = |path: &str| debian_cluster(root.path(), Path::new(path));
        let manager = found("/nowhere/15/main").unwrap();
        assert_eq!(
            manager.describe(Path::new("/nowhere/15/main")),
            "pg_ctlcluster 15 main start"
        );
        assert_eq!(found("/nowhere/15"), None);
    }

    #[test]
    fn the_unit_is_the_service_that_the_process_belongs_to() {
        for (text, expected) in [
            (
                "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
                Some("postgresql@15-main.service"),
            ),
            (
                "12:cpu:/\n1:name=systemd:/system.slice/postgresql-16.service\n",
                Some("postgresql-16.service"),
            ),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
        ] {
            assert_eq!(unit_of_groups(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_data_directory_is_left_out_of_the_arguments_however_it_was_given() {
        for given in [
            vec!["-D", "/d", "-c", "port=1"],
            vec!["-D/d", "-c", "port=1"],
            vec!["-c", "port=1", "--data_directory=/d"],
        ] {
            let given = given.into_iter().map(str::to_owned);
            assert_eq!(without_data_directory(given), ["-c", "port=1"]);
        }
    }
}
