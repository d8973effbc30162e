//! The configuration of mount-svc.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use common::config::{BrokerConfig, Secret, TargetConfig};
use common::ids::{RepositoryName, ServerName, TargetName};
use common::problem::{ErrorCode, Problem};
use serde::{Deserialize, Deserializer, Serialize};

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
    /// Directory for what is decoded of compressed and encrypted backups, in files without a name; on a disk.
    #[serde(default = "default_decoded_directory")]
    pub decoded_directory: PathBuf,
    /// Most bytes there, of all mounts together.
    #[serde(default = "default_decoded_bytes_max")]
    pub decoded_bytes_max: u64,
    /// Most bytes of decoded pieces in memory, of all mounts together.
    #[serde(default = "default_decoded_memory_bytes_max")]
    pub decoded_memory_bytes_max: usize,
}

fn default_decoded_directory() -> PathBuf {
    "/var/tmp".into()
}

fn default_decoded_bytes_max() -> u64 {
    16 << 30
}

fn default_decoded_memory_bytes_max() -> usize {
    256 << 20
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

/// Whose backups a repository holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepositoryKind {
    /// Those of `pg_basebackup`: the directory is one, or holds some as its children.
    #[default]
    PgBasebackup,
    /// pgBackRest's: the directory is `repo1-path`.
    #[serde(rename = "pgbackrest")]
    PgBackRest,
    /// Barman's: the directory is that of one server below `barman_home`.
    Barman,
}

/// One backup repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryConfig {
    /// Whose backups it holds.
    #[serde(default)]
    pub kind: RepositoryKind,
    /// The directory that is a backup or holds backups as its children; of pgBackRest the directory of the repository, of Barman
    /// that of the server.
    pub path: PathBuf,
    /// Directories outside of `path` to which tablespace links of plain backups may lead.
    #[serde(default)]
    pub tablespace_directories: Vec<PathBuf>,
    /// Directory to which the WAL of `pg_basebackup`'s backups is archived (`archive_command = 'cp %p /path/%f'`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_archive: Option<PathBuf>,
    /// pgBackRest's stanza; the only one there is when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stanza: Option<String>,
    /// File that holds the passphrase of an encrypted repository of pgBackRest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher_passphrase_file: Option<PathBuf>,
    /// The passphrase itself, best from the environment; never shown.
    #[serde(default, skip_serializing, deserialize_with = "secret")]
    pub cipher_passphrase: Option<Secret>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
}

impl RepositoryConfig {
    /// What is particular to pgBackRest may stand only there, and the passphrase only once.
    fn validate(&self, name: &str) -> Result<(), Problem> {
        let wrong = |message: String, remedy: &str| {
            let code = ErrorCode::InvalidConfiguration;
            Err(Problem::new(
                code,
                format!("repositories.{name}: {message}"),
                remedy,
            ))
        };
        let has_passphrase = self.cipher_passphrase.is_some();
        let has_file = self.cipher_passphrase_file.is_some();
        if self.kind != RepositoryKind::PgBackRest
            && (self.stanza.is_some() || has_passphrase || has_file)
        {
            return wrong(
                "stanza and passphrase belong to repositories of pgBackRest".to_owned(),
                "set kind = \"pgbackrest\", or remove them",
            );
        }
        if self.kind != RepositoryKind::PgBasebackup && self.wal_archive.is_some() {
            return wrong(
                "wal_archive belongs to backups of pg_basebackup; pgBackRest and Barman have their own".to_owned(),
                "remove it",
            );
        }
        if has_passphrase && has_file {
            return wrong(
                "there are both cipher_passphrase and cipher_passphrase_file".to_owned(),
                "keep one of them",
            );
        }
        let paths = std::iter::once(&self.path)
            .chain(&self.tablespace_directories)
            .chain(&self.wal_archive)
            .chain(&self.cipher_passphrase_file);
        for path in paths {
            if !path.is_absolute() {
                return wrong(
                    format!("{} is a relative path", path.display()),
                    "give an absolute path",
                );
            }
        }
        Ok(())
    }
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
            repository.validate(name.as_str())?;
        }
        if !self.decoded_directory.is_absolute() {
            return wrong(
                "decoded_directory is a relative path".to_owned(),
                "give an absolute path",
            );
        }
        if self.decoded_bytes_max < 1 << 30 || self.decoded_memory_bytes_max < 16 << 20 {
            return wrong(
                format!(
                    "decoded_bytes_max is {} and decoded_memory_bytes_max {}",
                    self.decoded_bytes_max, self.decoded_memory_bytes_max
                ),
                "choose at least 1 GiB (one segment of a relation) and 16 MiB",
            );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(repository: &str) -> Result<Config, Problem> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "server = \"s\"\nstate_directory = \"/s\"\n[broker]\nuser = \"u\"\npassword_file = \"/p\"\n\
             [repositories.main]\npath = \"/r\"\n{repository}\n"
        );
        std::fs::write(file.path(), text).unwrap();
        let config: Config = common::config::load(file.path())?;
        config.validate().map(|()| config)
    }

    #[test]
    fn the_passphrase_of_a_repository_is_taken_and_never_shown() {
        let config =
            load("kind = \"pgbackrest\"\nstanza = \"a\"\ncipher_passphrase = \"geheim\"").unwrap();
        let repository = config.repositories.values().next().unwrap();
        assert_eq!(repository.kind, RepositoryKind::PgBackRest);
        assert_eq!(repository.cipher_passphrase, Some(Secret::new("geheim")));
        let shown = common::config::print(&config) + &format!("{config:?}");
        assert!(
            shown.contains("pgbackrest") && !shown.contains("geheim"),
            "{shown}"
        );
    }

    #[test]
    fn settings_of_a_repository_that_do_not_fit_are_refused_by_its_name() {
        for bad in [
            "kind = \"pgbackrest\"\ncipher_passphrase = \"x\"\ncipher_passphrase_file = \"/x\"",
            "kind = \"pgbackrest\"\ncipher_passphrase_file = \"x\"",
            "stanza = \"a\"",
            "cipher_passphrase = \"x\"",
            "tablespace_directories = [\"x\"]",
            "wal_archive = \"x\"",
            "kind = \"barman\"\nwal_archive = \"/x\"",
        ] {
            let problem = load(bad).unwrap_err();
            assert!(
                problem.message.starts_with("repositories.main: "),
                "{problem}"
            );
        }
        assert!(load("kind = \"other\"").is_err());
        assert!(load("kind = \"pg_basebackup\"").is_ok());
    }
}
