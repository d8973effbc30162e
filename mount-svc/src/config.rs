//! The configuration of mount-svc.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use common::config::{BrokerConfig, TargetConfig};
use common::ids::{RepositoryName, ServerName, TargetName};
use common::problem::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};

/// Everything that mount-svc is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The mount server's name: its queues are `mount.<server>` and `recovery.<server>`.
    pub server: ServerName,
    /// Where the journal is kept.
    pub state_directory: PathBuf,
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[serde(default = "default_http_listen")]
    pub http_listen: SocketAddr,
    /// The broker.
    pub broker: BrokerConfig,
    /// Backup repositories, by name.
    #[serde(default)]
    pub repositories: BTreeMap<RepositoryName, RepositoryConfig>,
    /// Targets, by name.
    #[serde(default)]
    pub targets: BTreeMap<TargetName, TargetConfig>,
    /// How often mounts are looked at, in seconds, 1 to 300.
    #[serde(default = "default_watch_every_s")]
    pub watch_every_s: u64,
    /// Most page reads of one mount that are worked off at a time, 1 to 256.
    #[serde(default = "default_page_reads_max")]
    pub page_reads_max: usize,
}

fn default_http_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9631))
}

fn default_watch_every_s() -> u64 {
    5
}

fn default_page_reads_max() -> usize {
    16
}

/// One backup repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// The directory that is a backup or holds backups as its children.
    pub path: PathBuf,
    /// Directories outside of `path` to which tablespace links of plain backups may lead.
    #[serde(default)]
    pub tablespace_directories: Vec<PathBuf>,
}

impl Config {
    /// Checks what the types alone do not; nothing is opened.
    pub fn validate(&self) -> Result<(), Problem> {
        let wrong = |message: String, remedy: &str| {
            Err(Problem::new(
                ErrorCode::InvalidConfiguration,
                message,
                remedy,
            ))
        };
        self.broker.validate()?;
        for (name, target) in &self.targets {
            target.validate(name.as_str())?;
        }
        for (name, repository) in &self.repositories {
            let paths = std::iter::once(&repository.path).chain(&repository.tablespace_directories);
            for path in paths {
                if !path.is_absolute() {
                    return wrong(
                        format!("repositories.{name}: {} is a relative path", path.display()),
                        "give an absolute path",
                    );
                }
            }
        }
        if !self.state_directory.is_absolute() {
            return wrong(
                "state_directory is a relative path".to_owned(),
                "give an absolute path",
            );
        }
        if !(1..=300).contains(&self.watch_every_s) {
            return wrong(
                format!("watch_every_s is {}", self.watch_every_s),
                "choose 1 to 300",
            );
        }
        if !(1..=256).contains(&self.page_reads_max) {
            return wrong(
                format!("page_reads_max is {}", self.page_reads_max),
                "choose 1 to 256",
            );
        }
        Ok(())
    }

    /// The repository of a name, or the refusal that names what there is.
    pub fn repository(&self, name: &RepositoryName) -> Result<&RepositoryConfig, Problem> {
        self.repositories.get(name).ok_or_else(|| {
            Problem::new(
                ErrorCode::UnknownRepository,
                format!("mount server {} has no repository {name}", self.server),
                format!("choose one of: {}", list(self.repositories.keys())),
            )
        })
    }

    /// The target of a name, or the refusal that names what there is.
    pub fn target(&self, name: &TargetName) -> Result<&TargetConfig, Problem> {
        self.targets.get(name).ok_or_else(|| {
            Problem::new(
                ErrorCode::UnknownTarget,
                format!("mount server {} has no target {name}", self.server),
                format!("choose one of: {}", list(self.targets.keys())),
            )
        })
    }
}

fn list<T: ToString>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<String> = names.take(20).map(|name| name.to_string()).collect();
    if names.is_empty() {
        "(none is configured)".to_owned()
    } else {
        names.join(", ")
    }
}
