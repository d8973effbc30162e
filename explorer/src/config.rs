//! Configuration: a TOML file, over it the environment (`PGINSTANT__BROKER__HOST=…`).

use std::path::{Path, PathBuf};

use common::config::BrokerConfig;
use common::ids::ServerName;
use common::problem::{ErrorCode, Problem};
use serde::Deserialize;

/// Where the configuration is looked for last.
const SYSTEM_FILE: &str = "/etc/pginstant/explorer.toml";

/// What explorer needs to know.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ExplorerConfig {
    /// The mount server that commands go to.
    #[serde(default)]
    pub(crate) server: Option<ServerName>,
    /// How to reach the broker.
    pub(crate) broker: BrokerConfig,
}

impl ExplorerConfig {
    /// Reads the file that was named, else the user's, else the system's; then the environment.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, Problem> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => default_files()
                .into_iter()
                .find(|path| path.exists())
                .unwrap_or_else(|| PathBuf::from(SYSTEM_FILE)),
        };
        let config: Self = common::config::load(&path).map_err(one_line)?;
        config.broker.validate()?;
        Ok(config)
    }

    /// The mount server: as the command line says, else the configuration.
    pub(crate) fn server(&self, named: Option<&ServerName>) -> Result<ServerName, Problem> {
        named.or(self.server.as_ref()).cloned().ok_or_else(|| {
            Problem::new(
                ErrorCode::InvalidConfiguration,
                "neither the command line nor the configuration says which mount server is meant",
                "give --server NAME, or write server = \"NAME\" into the configuration",
            )
        })
    }
}

/// TOML mistakes come with a picture of several lines; a refusal is one.
fn one_line(problem: Problem) -> Problem {
    let message = problem
        .message
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    Problem { message, ..problem }
}

fn default_files() -> Vec<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let user = base.map(|base| base.join("pginstant/explorer.toml"));
    user.into_iter()
        .chain([PathBuf::from(SYSTEM_FILE)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: &str = "[broker]\nuser = \"ops\"\npassword_file = \"/etc/pginstant/ops\"\n";

    fn load(text: &str) -> Result<ExplorerConfig, Problem> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("explorer.toml");
        std::fs::write(&path, text).unwrap();
        ExplorerConfig::load(Some(&path))
    }

    #[test]
    fn the_file_says_server_and_broker_and_the_command_line_wins() {
        let config = load(&format!("server = \"backup1\"\n{BROKER}")).unwrap();
        assert_eq!(config.broker.vhost, "/recovery");
        assert_eq!(config.server(None).unwrap().as_str(), "backup1");
        let named = ServerName::new("backup2").unwrap();
        assert_eq!(config.server(Some(&named)).unwrap(), named);
        assert!(load(BROKER).unwrap().server(None).is_err());
    }

    #[test]
    fn a_configuration_that_is_not_right_is_refused_by_name_in_one_line() {
        let bad_name = format!("server = \"a/b\"\n{BROKER}");
        let bad_port = format!("{BROKER}port = 99999\n");
        for bad in [&bad_name, &bad_port, "server = ", "server = \"a\""] {
            let problem = load(bad).unwrap_err();
            assert_eq!(problem.code.exit_code(), 78, "{bad}");
            assert!(problem.message.contains("explorer.toml"), "{problem}");
            assert!(!problem.message.contains('\n'), "{problem}");
        }
        let missing = ExplorerConfig::load(Some(Path::new("/nowhere/explorer.toml")));
        assert_eq!(missing.unwrap_err().code.exit_code(), 78);
    }
}
