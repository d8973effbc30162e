//! Starts, watches and stops the session's PostgreSQL. It belongs to nobody but itself: the hand's end does not end it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::agent::hand::{InstanceOptions, InstanceStatus, SessionPlace};
use common::problem::{ErrorCode, Problem};
use serde::{Deserialize, Serialize};

use super::prepare::{PREPARED_MARKER, RECOVERED_MARKER};
use super::process::{self, Process};
use super::query::{Answer, Asked};
use super::server::{LOG_LINES, Server};
use super::{configuration, log, query};
use crate::hand::os_user::Account;
use crate::hand::{failure, write_durably};

/// The session's PostgreSQL.
#[derive(Debug, Clone)]
pub struct Instance<'a> {
    /// Where it lives.
    pub place: &'a SessionPlace,
    /// How it is published.
    pub options: &'a InstanceOptions,
    /// In whose name it runs.
    pub account: &'a Account,
}

/// Where recovery ended, written down when it is first seen to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recovered {
    lsn: String,
    at: Option<String>,
}

/// The session's postmaster, if it lives.
pub fn running(place: &SessionPlace, account: &Account) -> Option<Process> {
    let file = place.configuration_directory().join("postgresql.conf");
    process::postmaster(&file, account.uid)
}

impl Instance<'_> {
    /// Starts it, not waiting for recovery; found running is fine.
    pub fn start(&self, major: u32) -> Result<(), Problem> {
        if self.postmaster().is_some() {
            return Ok(());
        }
        if !self.configuration(PREPARED_MARKER).exists() {
            return Err(Problem::new(
                ErrorCode::NotPossibleNow,
                format!("session {} is not prepared", self.place.session_id),
                "prepare the instance first",
            ));
        }
        self.check_socket_path()?;
        self.server(major).clear_leftovers()?;
        crate::hand::port::check(self.options.port, &self.options.listen_addresses)?;
        let server = self.server(major);
        server.start(&|| self.postmaster(), &|| server.has_socket())
    }

    fn server(&self, major: u32) -> Server<'_> {
        let socket = self.place.socket_directory();
        let mut arguments = vec![
            "-c".to_owned(),
            process::configuration_argument(&self.configuration("postgresql.conf")),
        ];
        arguments.extend(configuration::forced_arguments(
            major,
            self.options.port,
            &socket,
        ));
        Server {
            account: self.account,
            program: self.options.program_directory.join("postgres"),
            data_directory: self.place.data_directory(),
            arguments,
            log: self.log_file(),
            socket: Some(socket.join(format!(".s.PGSQL.{}", self.options.port))),
        }
    }

    /// How it is, asked of the server itself where it answers.
    pub fn status(&self, runtime: &tokio::runtime::Handle) -> Result<InstanceStatus, Problem> {
        let Some(postmaster) = self.postmaster() else {
            return Ok(InstanceStatus::Stopped {
                last_log_lines: log::last(&self.log_tail(), LOG_LINES),
            });
        };
        let socket = self.place.socket_directory();
        let asked = Asked {
            socket_directory: &socket,
            port: self.options.port,
            user: &self.options.superuser,
        };
        match runtime.block_on(query::state(&asked))? {
            Answer::NotYet => Ok(InstanceStatus::Recovering {
                replayed_lsn: process::recovering_segment(postmaster)
                    .and_then(|segment| self.segment_start(&segment)),
            }),
            Answer::Recovering { replayed_lsn } => Ok(InstanceStatus::Recovering { replayed_lsn }),
            Answer::Ready {
                version,
                timeline,
                history,
            } => {
                let recovered = self.recovered(history)?;
                Ok(InstanceStatus::Ready {
                    version,
                    timeline,
                    reached_lsn: recovered.lsn,
                    reached_at: recovered.at,
                })
            }
        }
    }

    /// Where recovery ended: as written down, else as the timeline's history and the log tell now.
    fn recovered(&self, history: Option<String>) -> Result<Recovered, Problem> {
        let file = self.configuration(RECOVERED_MARKER);
        let known = self.account.act(|| std::fs::read_to_string(&file))?;
        if let Some(known) = known.ok().and_then(|text| serde_json::from_str(&text).ok()) {
            return Ok(known);
        }
        let lines = self.log_tail();
        let recovered = Recovered {
            lsn: history
                .as_deref()
                .and_then(switch_position)
                .or_else(|| log::redo_done_at(&lines))
                .unwrap_or_else(|| "0/0".to_owned()),
            at: log::last_transaction_at(&lines),
        };
        let text = serde_json::to_string(&recovered)
            .map_err(|e| Problem::new(ErrorCode::Internal, e.to_string(), "report this"))?;
        self.account
            .act(|| write_durably(&file, &text, 0o600))?
            .map_err(|e| failure(ErrorCode::IoFailed, format!("write {}", file.display()), e))?;
        Ok(recovered)
    }

    /// Stops it: fast, then immediate, then by killing exactly its processes. Not running is fine.
    pub fn stop(&self, timeout: Duration) -> Result<(), Problem> {
        let Some(postmaster) = self.postmaster() else {
            return Ok(());
        };
        process::stop(postmaster, timeout)
    }

    fn postmaster(&self) -> Option<Process> {
        running(self.place, self.account)
    }

    fn configuration(&self, name: &str) -> PathBuf {
        self.place.configuration_directory().join(name)
    }

    fn log_file(&self) -> PathBuf {
        self.place.log_directory().join("postgresql.log")
    }

    fn log_tail(&self) -> Vec<String> {
        self.account
            .act(|| log::tail_since(&self.log_file(), 0))
            .unwrap_or_default()
    }

    fn check_socket_path(&self) -> Result<(), Problem> {
        const PATH_BYTES_MAX: usize = 107;
        let path = self
            .place
            .socket_directory()
            .join(format!(".s.PGSQL.{}", self.options.port));
        if path.as_os_str().len() <= PATH_BYTES_MAX {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::InvalidConfiguration,
            format!(
                "the socket path {} is longer than {PATH_BYTES_MAX} bytes",
                path.display()
            ),
            "choose a shorter root for the write caches of this target",
        ))
    }

    fn segment_start(&self, segment: &str) -> Option<String> {
        let data = self.place.data_directory();
        let programs: &Path = &self.options.program_directory;
        let control = self
            .account
            .act(|| super::control_data::ControlData::read(programs, &data))
            .ok()?
            .ok()?;
        segment_position(segment, control.number("Bytes per WAL segment")?)
    }
}

/// The position at which a timeline left its parent, from the last line of its history file.
pub(crate) fn switch_position(history: &str) -> Option<String> {
    let line = history
        .lines()
        .rev()
        .find(|l| !l.trim().is_empty() && !l.starts_with('#'))?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

/// First position of a WAL segment, from its file name.
fn segment_position(segment: &str, segment_bytes: u64) -> Option<String> {
    let log = u64::from_str_radix(segment.get(8..16)?, 16).ok()?;
    let number = u64::from_str_radix(segment.get(16..24)?, 16).ok()?;
    Some(format!("{log:X}/{:X}", number.checked_mul(segment_bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_from_segment_names_and_history() {
        let got = segment_position("00000001000000020000001F", 16 << 20);
        assert_eq!(got.as_deref(), Some("2/1F000000"));
        let history = "1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tx\n";
        assert_eq!(switch_position(history).as_deref(), Some("0/5000000"));
    }
}
