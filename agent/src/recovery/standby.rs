//! Runs the copy as a standby of the published instance. Its configuration is its own: nothing of it lies in the mount.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::agent::hand::{InstanceOptions, ReplicationStatus, StandbyStatus};
use common::problem::{ErrorCode, Problem};
use common::wal;

use super::replication::GUARD;
use super::{Recovery, not_now, occupant, value};
use crate::hand::host;
use crate::postgresql::control_data::{ControlData, STANDBY_LIMITS};
use crate::postgresql::server::{LOG_LINES, Server};
use crate::postgresql::settings_file::{SettingsFile, quote};
use crate::postgresql::{log, process, query};

const MIB: u64 = 1024 * 1024;

impl Recovery<'_> {
    /// Starts the copy as a standby; running is fine.
    pub(super) fn start_standby(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "it is no standby any more")?;
        if self.standby_process().is_some() {
            return Ok(());
        }
        let data = &self.final_place.data_directory;
        if !matches!(
            self.replication_status()?,
            ReplicationStatus::Complete { .. }
        ) {
            return Err(not_now(
                format!("{} holds no complete copy", data.display()),
                "let the copy end first",
            ));
        }
        if let Some(other) = occupant::of(data, &self.account)? {
            return Err(Problem::new(
                ErrorCode::CacheInUse,
                format!(
                    "another server runs in {} (pid {})",
                    data.display(),
                    other.process.pid
                ),
                "stop it and retry",
            ));
        }
        self.keep_automatic()?;
        self.write(
            &self.standby_configuration(),
            &self.standby_settings(options)?,
        )?;
        let guard = format!(
            "# pginstant makes this directory a standby, and writes this file anew when that is done.\n{GUARD} = {}\n",
            quote(&self.guard_value())
        );
        self.write(&data.join("postgresql.auto.conf"), &guard)?;
        self.write(&data.join("standby.signal"), "")?;
        if record.settling.take().is_some() {
            // Settling was begun and given up.
            self.remove(&data.join("recovery.signal"))?;
            record.save(self.place)?;
        }
        let server = self.standby_server(options);
        server.clear_leftovers()?;
        server.start(&|| self.standby_process(), &|| server.has_socket())
    }

    fn standby_server(&self, options: &InstanceOptions) -> Server<'_> {
        let socket = self.place.socket_directory();
        let port = standby_port(options);
        let forced = [
            process::configuration_argument(&self.standby_configuration()),
            format!("{GUARD}={}", socket.display()),
        ];
        Server {
            account: &self.account,
            program: options.program_directory.join("postgres"),
            data_directory: self.final_place.data_directory.clone(),
            arguments: forced
                .into_iter()
                .flat_map(|setting| ["-c".to_owned(), setting])
                .collect(),
            log: self.standby_log(),
            socket: Some(socket.join(format!(".s.PGSQL.{port}"))),
        }
    }

    fn standby_log(&self) -> PathBuf {
        self.place.log_directory().join("standby.log")
    }

    /// The text of the standby's configuration.
    fn standby_settings(&self, options: &InstanceOptions) -> Result<String, Problem> {
        let data = &self.final_place.data_directory;
        let control = self
            .account
            .act(|| ControlData::read(&options.program_directory, data))??;
        let ours = |name: &str| {
            let path = self.place.configuration_directory().join(name);
            path.display().to_string()
        };
        let socket = self.place.socket_directory().display().to_string();
        let buffers = (host::memory_available_bytes() / 16).clamp(32 * MIB, 1024 * MIB);
        let mut settings: Vec<(&str, String)> = vec![
            ("data_directory", data.display().to_string()),
            ("hba_file", ours("pg_hba.conf")),
            ("ident_file", ours("pg_ident.conf")),
            ("listen_addresses", String::new()),
            ("port", standby_port(options).to_string()),
            ("unix_socket_directories", socket.clone()),
            ("unix_socket_permissions", "0700".into()),
            ("hot_standby", "on".into()),
            ("archive_mode", "off".into()),
            ("primary_conninfo", self.connection(options, &socket)),
            ("primary_slot_name", self.slot()),
            ("wal_receiver_status_interval", "1s".into()),
            ("wal_retrieve_retry_interval", "500ms".into()),
            // Nobody but us asks it, and nobody may hold up its replay.
            ("max_standby_streaming_delay", "1s".into()),
            ("shared_buffers", format!("{}kB", buffers / 1024)),
            ("shared_preload_libraries", self.preloaded(options)?),
            ("huge_pages", "off".into()),
            ("logging_collector", "off".into()),
            ("log_line_prefix", "%m [%p] ".into()),
            ("lc_messages", "C".into()),
        ];
        for (name, label, default) in STANDBY_LIMITS {
            let value = control.number(label).unwrap_or(default);
            settings.push((name, value.to_string()));
        }
        let mut text = String::from("# Written by pginstant for a standby.\n");
        for (name, value) in settings {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "{name} = {}", quote(&value));
        }
        Ok(text)
    }

    fn connection(&self, options: &InstanceOptions, socket: &str) -> String {
        let word = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        format!(
            "host='{}' port={} user='{}' application_name='{}'",
            word(socket),
            options.port,
            word(&options.superuser),
            self.slot()
        )
    }

    /// Libraries that the published instance loads: WAL of theirs is replayed by them alone.
    fn preloaded(&self, options: &InstanceOptions) -> Result<String, Problem> {
        const NAME: &str = "shared_preload_libraries";
        match self.ask_published(options, &format!("SHOW {NAME}")) {
            Ok(rows) => Ok(value(rows).unwrap_or_default()),
            // It does not answer now; as it was then.
            Err(problem) => match self.read(&self.standby_configuration())? {
                Some(text) => Ok(SettingsFile::of_text(&text)
                    .get(NAME)
                    .unwrap_or_default()
                    .to_owned()),
                None => Err(problem),
            },
        }
    }

    /// How far is it behind?
    pub(super) fn standby_status(
        &self,
        options: &InstanceOptions,
    ) -> Result<StandbyStatus, Problem> {
        let running = self.standby_process().is_some();
        // The published instance first: what is replayed afterwards can only be more.
        let flushed_lsn = self
            .ask_published(options, "SELECT pg_current_wal_flush_lsn()")
            .ok()
            .and_then(value);
        let answer = match running {
            true => self.ask_standby(
                options,
                "SELECT pg_last_wal_replay_lsn()::text, \
                 EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')::text, \
                 (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint::text",
            ),
            false => Ok(Vec::new()),
        };
        let row = answer.ok().and_then(|rows| rows.into_iter().next());
        let mut fields = row.unwrap_or_default().into_iter();
        let mut next = || fields.next().flatten();
        let (replayed_lsn, streaming, age_ms) = (next(), next(), next());
        let lag_bytes = match (&flushed_lsn, &replayed_lsn) {
            (Some(flushed), Some(replayed)) => wal::position(flushed)
                .zip(wal::position(replayed))
                .map(|(flushed, replayed)| flushed.saturating_sub(replayed)),
            _ => None,
        };
        let streaming = streaming.as_deref() == Some("true");
        Ok(StandbyStatus {
            running,
            published_running: self.published_process().is_some(),
            streaming,
            lag_ms: match lag_bytes {
                Some(0) => Some(0),
                _ => age_ms
                    .and_then(|text| text.parse::<i64>().ok())
                    .map(|ms| u64::try_from(ms).unwrap_or(0)),
            },
            flushed_lsn,
            replayed_lsn,
            lag_bytes,
            last_log_lines: match running && streaming {
                true => Vec::new(),
                false => self.standby_words()?,
            },
        })
    }

    fn standby_words(&self) -> Result<Vec<String>, Problem> {
        let lines = self
            .account
            .act(|| log::tail_since(&self.standby_log(), 0))?;
        Ok(log::last(&lines, LOG_LINES))
    }

    pub(super) fn ask_standby(
        &self,
        options: &InstanceOptions,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Problem> {
        let port = standby_port(options);
        self.ask(port, &options.superuser, sql, query::QUERY_FOR)
    }

    /// Stops it once it has replayed what it received, if the published instance has ended and sends no more.
    pub(super) fn stop_standby(
        &self,
        options: &InstanceOptions,
        timeout: Duration,
    ) -> Result<(), Problem> {
        let Some(postmaster) = self.standby_process() else {
            return Ok(());
        };
        let deadline = Instant::now() + timeout;
        while self.published_process().is_none() && Instant::now() < deadline {
            let left = "SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()";
            match self.ask_standby(options, left).map(value) {
                Ok(Some(left)) if left == "t" => std::thread::sleep(Duration::from_millis(20)),
                _ => break,
            }
        }
        process::stop(postmaster, timeout)
    }
}

/// The port in the name of the standby's socket, which lies beside the published instance's.
pub(super) fn standby_port(options: &InstanceOptions) -> u16 {
    match options.port {
        5432 => 5433,
        _ => 5432,
    }
}
