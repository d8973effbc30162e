//! The configuration of mount-svc.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use common::config::{BrokerConfig, Secret, TargetConfig};
use common::ids::{RepositoryName, ServerName, TargetName};
use common::problem::{ErrorCode, Problem};
use repository::{ObjectLocation, ObjectOptions};
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
    /// Most bytes of objects in memory that were fetched from object stores, of all mounts together.
    #[serde(default = "default_object_cache_bytes_max")]
    pub object_cache_bytes_max: usize,
    /// Most requests to object stores at a time, 1 to 1024.
    #[serde(default = "default_object_requests_max")]
    pub object_requests_max: usize,
    /// How long a request to an object store is tried again, in seconds, 1 to 240.
    #[serde(default = "default_object_retry_s")]
    pub object_retry_s: u64,
}

fn default_object_cache_bytes_max() -> usize {
    64 << 20
}

fn default_object_requests_max() -> usize {
    32
}

fn default_object_retry_s() -> u64 {
    60
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
    /// that of the server. Also a part of a bucket: `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`.
    pub path: PathBuf,
    /// Directories outside of `path` to which tablespace links of plain backups may lead.
    #[serde(default)]
    pub tablespace_directories: Vec<PathBuf>,
    /// Directory to which the WAL of `pg_basebackup`'s backups is archived (`archive_command = 'cp %p /path/%f'`), or a part of a bucket.
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
    /// How the object store is reached, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStoreConfig>,
}

/// How an object store is reached. Credentials come from `credentials_file`, else from the environment, else from the machine's own
/// identity in its cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStoreConfig {
    /// Where it answers, if it is not its maker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's region, of S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the bucket is a part of the path, of S3, and not of the host's name.
    #[serde(default = "default_path_style")]
    pub path_style: bool,
    /// Whether requests may go unencrypted.
    #[serde(default)]
    pub allow_http: bool,
    /// Certificates to trust beside the system's, as PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// File with the credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

fn default_path_style() -> bool {
    true
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::new))
}

impl RepositoryConfig {
    /// Where it is in an object store, if it is in one.
    pub fn location(&self, name: &str) -> Result<Option<ObjectLocation>, Problem> {
        location_of(&self.path, name)
    }

    /// Where its archive of WAL is in an object store, if it is in one.
    pub fn wal_location(&self, name: &str) -> Result<Option<ObjectLocation>, Problem> {
        let archive = self.wal_archive.as_deref();
        archive.map_or(Ok(None), |path| location_of(path, name))
    }

    /// How its object store is reached.
    pub fn object_options(&self, name: &str) -> ObjectOptions {
        let setting = format!("repositories.{name}.object_store");
        match &self.object_store {
            None => ObjectOptions {
                setting,
                ..ObjectOptions::default()
            },
            Some(store) => ObjectOptions {
                endpoint: store.endpoint.clone(),
                region: store.region.clone(),
                virtual_hosts: !store.path_style,
                allow_http: store.allow_http,
                ca_file: store.ca_file.clone(),
                credentials_file: store.credentials_file.clone(),
                setting,
            },
        }
    }

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
        let (location, wal_location) = (self.location(name)?, self.wal_location(name)?);
        let is_in_objects = location.is_some();
        let stores = [&location, &wal_location].map(|found| found.as_ref().map(|found| found.kind));
        if let [Some(store), Some(other)] = stores
            && store != other
        {
            return wrong(
                "path and wal_archive are in two kinds of object stores".to_owned(),
                "keep both in one, or wal_archive in a directory",
            );
        }
        if is_in_objects && !self.tablespace_directories.is_empty() {
            return wrong(
                "there are no tablespace_directories in an object store".to_owned(),
                "remove them",
            );
        }
        if stores == [None, None] && self.object_store.is_some() {
            return wrong(
                "object_store belongs to repositories in object stores".to_owned(),
                "set path = \"s3://bucket/prefix\", or remove it",
            );
        }
        let store = self.object_store.as_ref();
        let endpoint = store.filter(|store| !store.allow_http);
        let endpoint = endpoint.and_then(|store| store.endpoint.as_ref());
        if endpoint.is_some_and(|endpoint| !endpoint.starts_with("https://")) {
            return wrong(
                "endpoint does not begin with https://".to_owned(),
                "name one that does, or set allow_http where nobody can listen",
            );
        }
        let paths = std::iter::once(&self.path)
            .filter(|_| !is_in_objects)
            .chain(&self.tablespace_directories)
            .chain(self.wal_archive.as_ref().filter(|_| wal_location.is_none()))
            .chain(&self.cipher_passphrase_file)
            .chain(store.and_then(|store| store.ca_file.as_ref()))
            .chain(store.and_then(|store| store.credentials_file.as_ref()));
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

/// Where a path is in an object store, if it is in one.
fn location_of(path: &Path, name: &str) -> Result<Option<ObjectLocation>, Problem> {
    let Some(text) = path.to_str() else {
        return Ok(None);
    };
    ObjectLocation::parse(text).map_err(|error| {
        Problem::new(
            ErrorCode::InvalidConfiguration,
            format!("repositories.{name}: {error}"),
            "give a directory, or s3://bucket/prefix, az://container/prefix or gs://bucket/prefix",
        )
    })
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
        if self.object_cache_bytes_max < 8 << 20 {
            return wrong(
                format!("object_cache_bytes_max is {}", self.object_cache_bytes_max),
                "choose at least 8 MiB",
            );
        }
        if !(1..=1024).contains(&self.object_requests_max) {
            return wrong(
                format!("object_requests_max is {}", self.object_requests_max),
                "choose 1 to 1024",
            );
        }
        if !(1..=240).contains(&self.object_retry_s) {
            return wrong(
                format!("object_retry_s is {}", self.object_retry_s),
                "choose 1 to 240",
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
    fn a_repository_may_be_in_an_object_store_and_settings_that_do_not_fit_one_are_refused() {
        let with = |more: &str| load(&format!("[repositories.b]\n{more}"));
        let good = "kind = \"pgbackrest\"\npath = \"s3://bucket/prefix\"\n";
        let config = with(good).unwrap();
        let repository = config.repositories.values().next().unwrap();
        let location = repository.location("b").unwrap().unwrap();
        assert_eq!((&*location.bucket, &*location.prefix), ("bucket", "prefix"));
        for bad in [
            "kind = \"pgbackrest\"\npath = \"ftp://bucket\"",
            "kind = \"pgbackrest\"\npath = \"s3://bucket/../x\"",
            "path = \"s3://bucket/prefix\"\nwal_archive = \"az://bucket/wal\"",
            "path = \"s3://bucket/prefix\"\nwal_archive = \"s3://bucket//wal\"",
            "path = \"s3://bucket/prefix\"\nwal_archive = \"wal\"",
            "kind = \"barman\"\npath = \"s3://\"",
        ] {
            let problem = with(bad).unwrap_err();
            assert!(problem.message.starts_with("repositories.b: "), "{problem}");
        }
        for bad in [
            "object_store = { endpoint = \"http://minio\" }",
            "object_store = { ca_file = \"ca.pem\" }",
            "object_store = { credentials_file = \"x\" }",
            "tablespace_directories = [\"/x\"]",
        ] {
            let problem = with(&format!("{good}{bad}")).unwrap_err();
            assert!(problem.message.starts_with("repositories.b: "), "{problem}");
        }
        let plain = "object_store = { endpoint = \"http://minio\", allow_http = true }";
        assert!(with(&format!("{good}{plain}")).is_ok());
        for good in [
            "path = \"s3://bucket/prefix\"",
            "kind = \"barman\"\npath = \"s3://bucket/prefix/server\"",
            "path = \"s3://bucket/prefix\"\nwal_archive = \"s3://other/wal\"",
            "path = \"s3://bucket/prefix\"\nwal_archive = \"/wal\"",
            "path = \"/r\"\nwal_archive = \"s3://bucket/wal\"",
        ] {
            let config = with(&format!("{good}\n{plain}")).unwrap();
            let name = "b".parse().unwrap();
            assert!(config.repositories.contains_key(&name), "{good}");
        }
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
            "object_store = { region = \"eu\" }",
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
