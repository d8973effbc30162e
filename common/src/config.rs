//! Configuration: a TOML file, then the environment (`PGINSTANT__BROKER__HOST`), read and checked before anything is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent::client::TargetConnection;
use crate::agent::hand::Hydrate;
use crate::bus::amqp::AmqpOptions;
use crate::ids::OsUser;
use crate::problem::{ErrorCode, Problem};
use crate::topology::{Role, Topology};

/// Prefix of environment variables that override the file.
pub const ENVIRONMENT_PREFIX: &str = "PGINSTANT";

/// Largest secret file, in bytes: a password, not a disk.
const SECRET_BYTES_MAX: u64 = 4096;

fn invalid(message: String, remedy: &str) -> Problem {
    Problem::new(ErrorCode::InvalidConfiguration, message, remedy)
}

/// Reads a configuration from its file and the environment. Nothing is opened but the file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    load_with(path, config::Environment::with_prefix(ENVIRONMENT_PREFIX))
}

fn load_with<T: DeserializeOwned>(
    path: &Path,
    environment: config::Environment,
) -> Result<T, Problem> {
    if !path.is_file() {
        return Err(invalid(
            format!(
                "the configuration file {} does not exist or is not a file",
                path.display()
            ),
            "name one with --config FILE; docs/CONFIGURATION.md shows what it holds",
        ));
    }
    config::Config::builder()
        .add_source(config::File::from(path).format(config::FileFormat::Toml))
        .add_source(
            environment
                .prefix_separator("__")
                .separator("__")
                .try_parsing(true),
        )
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| {
            invalid(
                format!("the configuration {} is not valid: {error}", path.display()),
                "correct the named key; docs/CONFIGURATION.md describes each",
            )
        })
}

/// The configuration as TOML, for `--print-config`. Secrets are not in it: they are read from files later.
pub fn print<T: Serialize>(configuration: &T) -> String {
    toml::to_string_pretty(configuration)
        .unwrap_or_else(|error| format!("# the configuration cannot be shown: {error}\n"))
}

/// A secret text: never shown, never serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Reads a secret from a file; one line end at its end is not part of it.
    pub fn from_file(path: &Path) -> Result<Self, Problem> {
        let remedy =
            "put the secret alone into the file and make it readable for the service's user only";
        let wrong =
            |what: String| invalid(format!("secret file {}: {what}", path.display()), remedy);
        let length = std::fs::metadata(path)
            .map_err(|e| wrong(e.to_string()))?
            .len();
        if length > SECRET_BYTES_MAX {
            return Err(wrong(format!(
                "{length} bytes, at most {SECRET_BYTES_MAX} are allowed"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(wrong("it is empty".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How to reach the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerConfig {
    /// Host name or address.
    #[serde(default = "default_broker_host")]
    pub host: String,
    /// TCP port.
    #[serde(default = "default_broker_port")]
    pub port: u16,
    /// Virtual host.
    #[serde(default = "default_broker_vhost")]
    pub vhost: String,
    /// User.
    pub user: String,
    /// File that holds the user's password.
    pub password_file: PathBuf,
    /// Heartbeat in seconds, 1 to 60; a frozen broker is noticed after twice that.
    #[serde(default = "default_heartbeat_s")]
    pub heartbeat_s: u16,
}

fn default_broker_host() -> String {
    "127.0.0.1".to_owned()
}

fn default_broker_port() -> u16 {
    5672
}

fn default_broker_vhost() -> String {
    "/recovery".to_owned()
}

fn default_heartbeat_s() -> u16 {
    10
}

impl BrokerConfig {
    /// The options of a connection for a role.
    pub fn amqp(
        &self,
        password: Secret,
        connection_name: String,
        publish_limit_s: u64,
        role: Role,
        topology: Topology,
    ) -> AmqpOptions {
        AmqpOptions {
            host: self.host.clone(),
            port: self.port,
            vhost: self.vhost.clone(),
            user: self.user.clone(),
            password,
            heartbeat_s: self.heartbeat_s,
            connection_name,
            publish_limit_s,
            role,
            topology,
        }
    }

    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), Problem> {
        if !(1..=60).contains(&self.heartbeat_s) {
            return Err(invalid(
                format!("broker.heartbeat_s is {}", self.heartbeat_s),
                "choose 1 to 60 seconds",
            ));
        }
        if self.host.is_empty() || self.user.is_empty() || self.port == 0 {
            return Err(invalid(
                "broker.host, broker.port and broker.user must not be empty".to_owned(),
                "fill them in",
            ));
        }
        Ok(())
    }
}

/// How the agent on a target is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Connection {
    /// The target is this host: the agent is started as a child process.
    Local,
    /// An agent listens on this Unix socket (`pginstant-agent listen`).
    Socket(PathBuf),
}

impl TryFrom<String> for Connection {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "local" => Ok(Connection::Local),
            Some(("socket", path)) if path.starts_with('/') => Ok(Connection::Socket(path.into())),
            _ => Err(format!(
                "{text:?} is neither \"local\" nor \"socket:/absolute/path\""
            )),
        }
    }
}

impl From<Connection> for String {
    fn from(connection: Connection) -> String {
        match connection {
            Connection::Local => "local".to_owned(),
            Connection::Socket(path) => format!("socket:{}", path.display()),
        }
    }
}

/// One target: a host, an OS user on it, and how to reach it. Both services have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetConfig {
    /// How its agent is reached.
    #[serde(default = "default_connection")]
    pub connection: Connection,
    /// The agent's program, for `local` connections.
    #[serde(default = "default_agent_program")]
    pub agent_program: PathBuf,
    /// The name under which clients reach the target; shown when an instance is published.
    #[serde(default = "default_target_host")]
    pub host: String,
    /// Who runs PostgreSQL and owns the mount's files.
    #[serde(default = "default_os_user")]
    pub os_user: OsUser,
    /// Root of the mount points.
    #[serde(default = "default_mount_root")]
    pub mount_root: PathBuf,
    /// Root of the write caches.
    #[serde(default = "default_cache_root")]
    pub cache_root: PathBuf,
    /// Port of published instances for which none was asked.
    #[serde(default = "default_port")]
    pub default_port: u16,
    /// `listen_addresses` of published instances.
    #[serde(default = "default_listen_addresses")]
    pub listen_addresses: String,
    /// Lines of `pg_hba.conf` that come before the backup's own.
    #[serde(default)]
    pub hba_lines: Vec<String>,
    /// Superuser role of the published instances, for our own connections over the private socket.
    #[serde(default = "default_superuser")]
    pub superuser: String,
    /// Directories with PostgreSQL's programs, beside the usual places.
    #[serde(default)]
    pub program_directories: Vec<PathBuf>,
    /// `shared_buffers` in bytes; fitted to the host when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_buffers_bytes: Option<u64>,
    /// Least free space of the write cache's volume for a new session, in bytes.
    #[serde(default = "default_cache_free_bytes_min")]
    pub cache_free_bytes_min: u64,
    /// How long a read waits for a page while the mount server is away, in seconds.
    #[serde(default = "default_base_wait_s")]
    pub base_wait_s: u32,
    /// What is copied from the backup into the write cache beside what is read, unless a command says otherwise.
    #[serde(default)]
    pub hydrate: Hydrate,
    /// Most that is copied in the background, in MiB a second.
    #[serde(default = "default_hydrate_mib_per_s")]
    pub hydrate_mib_per_s: u32,
    /// Most that a write cache may occupy while there are copies of the backup in it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes_max: Option<u64>,
    /// How often at most PostgreSQL is made to open its files anew so that the kernel serves those that have become
    /// complete, in seconds; 0: never.
    #[serde(default = "default_reopen_every_s")]
    pub reopen_every_s: u32,
    /// Settings of published instances that come last and win.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

fn default_connection() -> Connection {
    Connection::Local
}

fn default_agent_program() -> PathBuf {
    "pginstant-agent".into()
}

fn default_target_host() -> String {
    "localhost".to_owned()
}

fn default_os_user() -> OsUser {
    OsUser::new("postgres").expect("a valid name")
}

fn default_mount_root() -> PathBuf {
    "/tmp/pginstant".into()
}

fn default_cache_root() -> PathBuf {
    "/var/tmp/pginstant".into()
}

fn default_port() -> u16 {
    6543
}

fn default_listen_addresses() -> String {
    "localhost".to_owned()
}

fn default_superuser() -> String {
    "postgres".to_owned()
}

fn default_cache_free_bytes_min() -> u64 {
    1 << 30
}

fn default_base_wait_s() -> u32 {
    900
}

fn default_hydrate_mib_per_s() -> u32 {
    128
}

fn default_reopen_every_s() -> u32 {
    600
}

impl TargetConfig {
    /// How a service connects to the target's agent.
    pub fn endpoint(&self) -> TargetConnection {
        match &self.connection {
            Connection::Local => TargetConnection::Local {
                program: self.agent_program.clone(),
            },
            Connection::Socket(path) => TargetConnection::Socket { path: path.clone() },
        }
    }

    /// Checks what the types alone do not.
    pub fn validate(&self, name: &str) -> Result<(), Problem> {
        for (key, path) in [
            ("mount_root", &self.mount_root),
            ("cache_root", &self.cache_root),
        ] {
            if !path.is_absolute() {
                return Err(invalid(
                    format!(
                        "targets.{name}.{key} is {}, a relative path",
                        path.display()
                    ),
                    "give an absolute path",
                ));
            }
        }
        if self.mount_root == self.cache_root {
            return Err(invalid(
                format!("targets.{name}: mount_root and cache_root are the same directory"),
                "give each its own",
            ));
        }
        if self.hydrate_mib_per_s == 0 {
            return Err(invalid(
                format!("targets.{name}.hydrate_mib_per_s is 0"),
                "choose at least 1, or hydrate = \"none\"",
            ));
        }
        if self.default_port == 0 {
            return Err(invalid(
                format!("targets.{name}.default_port is 0"),
                "choose 1 to 65535",
            ));
        }
        let texts = self
            .hba_lines
            .iter()
            .chain(self.settings.values())
            .chain([&self.listen_addresses, &self.superuser]);
        for text in texts {
            if text.contains(['\n', '\r', '\0']) {
                return Err(invalid(
                    format!("targets.{name}: the text {text:?} has a line break"),
                    "give each line as an entry of its own",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, Serialize)]
    struct Example {
        broker: BrokerConfig,
        targets: BTreeMap<String, TargetConfig>,
    }

    fn example(text: &str, environment: &[(&str, &str)]) -> Result<Example, Problem> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        std::fs::write(&path, text).unwrap();
        let map = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        load_with(
            &path,
            config::Environment::with_prefix(ENVIRONMENT_PREFIX).source(Some(map)),
        )
    }

    const TEXT: &str = "[broker]\nuser = \"u\"\npassword_file = \"/run/secrets/p\"\n[targets.t]\nconnection = \"socket:/run/a.sock\"\n";

    #[test]
    fn the_environment_wins_over_the_file_and_defaults_fill_the_rest() {
        let read = example(TEXT, &[("PGINSTANT__BROKER__PORT", "5999")]).unwrap();
        assert_eq!(read.broker.port, 5999);
        assert_eq!(read.broker.vhost, "/recovery");
        assert_eq!(
            read.targets["t"].connection,
            Connection::Socket("/run/a.sock".into())
        );
        assert_eq!(read.targets["t"].mount_root, Path::new("/tmp/pginstant"));
        let shown: Example = toml::from_str(&print(&read)).unwrap();
        assert_eq!(shown.broker, read.broker);
    }

    #[test]
    fn what_is_wrong_in_a_configuration_is_named() {
        let text = TEXT.replace("socket:/run/a.sock", "ssh");
        let problem = example(&text, &[]).unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidConfiguration);
        assert!(problem.message.contains("ssh"), "{problem}");
        let problem = example("[broker]\nuser = 1\n", &[]).unwrap_err();
        assert_eq!(problem.code.exit_code(), 78);
    }

    #[test]
    fn a_secret_comes_from_its_file_and_is_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p");
        std::fs::write(&path, "swordfish\n").unwrap();
        let secret = Secret::from_file(&path).unwrap();
        assert_eq!(secret.expose(), "swordfish");
        assert!(!format!("{secret:?}").contains("sword"));
        std::fs::write(&path, "").unwrap();
        assert!(Secret::from_file(&path).is_err());
    }
}
