//! The published instance read-only and back, and the proof that the standby has all of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::agent::hand::{
    ControlPosition, InstanceOptions, InstanceStatus, Positions, RecoveryResponse,
};
use common::problem::{ErrorCode, Problem};

use super::{Recovery, not_now, occupant, value};
use crate::postgresql::control_data::ControlData;
use crate::postgresql::find;
use crate::postgresql::settings_file::{SettingsFile, quote};

/// How long both checkpoints may take: a little less than the request.
const CHECKPOINTS_FOR: Duration = Duration::from_secs(580);

/// How long a server may take to heed changed settings.
const HEED_FOR: Duration = Duration::from_secs(20);

/// How long sessions may take to end; what does not end is ended by the fast shutdown.
const END_SESSIONS_FOR: Duration = Duration::from_secs(5);

/// How long the published instance may take to be ready again.
const READY_FOR: Duration = Duration::from_secs(240);

const READ_ONLY: &str = "default_transaction_read_only";

impl Recovery<'_> {
    /// Both make a checkpoint: the standby's goes as far as what it has replayed.
    pub(super) fn checkpoint(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let began_at = Instant::now();
        for port in [options.port, super::standby::standby_port(options)] {
            let left = CHECKPOINTS_FOR.saturating_sub(began_at.elapsed());
            self.ask(port, &options.superuser, "CHECKPOINT", left)?;
        }
        Ok(())
    }

    /// Keeps what users set by `ALTER SYSTEM` while published: it is not in the WAL.
    pub(super) fn keep_automatic(&self) -> Result<(), Problem> {
        let text = self.read(&self.place.data_directory().join("postgresql.auto.conf"))?;
        self.write(&self.published_automatic(), &text.unwrap_or_default())
    }

    pub(super) fn published_automatic(&self) -> PathBuf {
        let directory = self.place.configuration_directory();
        directory.join("published.auto.conf")
    }

    /// Read-only for all that begins from now on; what was connected before is ended.
    pub(super) fn freeze(&self, options: &InstanceOptions) -> Result<RecoveryResponse, Problem> {
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "the published instance is history")?;
        if !record.frozen {
            self.keep_automatic()?;
            record.frozen = true;
            record.save(self.place)?;
        }
        self.ask_published(options, &format!("ALTER SYSTEM SET {READ_ONLY} = on"))?;
        self.reload_until(options, "on")?;
        let ended_session_count = self.end_sessions(options)?;
        let flushed = self.ask_published(options, "SELECT pg_current_wal_flush_lsn()")?;
        Ok(RecoveryResponse::Frozen {
            flushed_lsn: value(flushed).unwrap_or_default(),
            ended_session_count,
        })
    }

    /// Ends client sessions that began before the instance was read-only; users that come again are read-only.
    fn end_sessions(&self, options: &InstanceOptions) -> Result<u32, Problem> {
        let since = value(self.ask_published(options, "SELECT clock_timestamp()::text")?);
        let since = quote(&since.unwrap_or_default());
        let ending = format!(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
             AND application_name <> 'pginstant' AND backend_start < timestamptz {since}"
        );
        let mut ended = BTreeSet::new();
        let deadline = Instant::now() + END_SESSIONS_FOR;
        loop {
            let rows = self.ask_published(options, &ending)?;
            let left = rows.len();
            ended.extend(rows.into_iter().filter_map(|row| row.into_iter().next()?));
            if left == 0 || Instant::now() >= deadline {
                return Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has the server read its settings again, until a new session shows this value.
    fn reload_until(&self, options: &InstanceOptions, wanted: &str) -> Result<(), Problem> {
        let deadline = Instant::now() + HEED_FOR;
        self.ask_published(options, "SELECT pg_reload_conf()")?;
        loop {
            // A role may have a value of its own; what counts is the one for all.
            let shown = self.ask_published(
                options,
                &format!(
                    "SELECT CASE WHEN source IN ('default', 'configuration file') THEN setting \
                     ELSE '' END FROM pg_settings WHERE name = '{READ_ONLY}'"
                ),
            )?;
            let shown = value(shown).unwrap_or_default();
            if shown == wanted || shown.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Problem::new(
                    ErrorCode::SwitchoverFailed,
                    format!("the published instance does not take {READ_ONLY} = {wanted}"),
                    "look at its log",
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The published instance runs and may be written to again.
    pub(super) fn thaw(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "the published instance is history")?;
        let instance = self.published(options);
        instance.start(major(options)?)?;
        let deadline = Instant::now() + READY_FOR;
        while !matches!(instance.status(self.runtime)?, InstanceStatus::Ready { .. }) {
            if Instant::now() >= deadline {
                return Err(Problem::new(
                    ErrorCode::TimedOut,
                    format!(
                        "the published instance is not ready after {} s",
                        READY_FOR.as_secs()
                    ),
                    "look at its log and retry",
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if !record.frozen {
            return Ok(());
        }
        let before = self.read(&self.published_automatic())?.unwrap_or_default();
        let before = SettingsFile::of_text(&before);
        let undo = match before.get(READ_ONLY) {
            Some(value) => format!("ALTER SYSTEM SET {READ_ONLY} = {}", quote(value)),
            None => format!("ALTER SYSTEM RESET {READ_ONLY}"),
        };
        self.ask_published(options, &undo)?;
        self.ask_published(options, "SELECT pg_reload_conf()")?;
        record.frozen = false;
        record.save(self.place)
    }

    /// What `pg_control` of both says.
    pub(super) fn positions(&self, options: &InstanceOptions) -> Result<Positions, Problem> {
        let data = &self.final_place.data_directory;
        let runs = |what: &str| not_now(format!("{what} runs"), "stop it first");
        if self.published_process().is_some() {
            return Err(runs("the published instance"));
        }
        if self.standby_process().is_some() || occupant::of(data, &self.account)?.is_some() {
            return Err(runs("the standby"));
        }
        Ok(Positions {
            published: self.control_position(options, &self.place.data_directory())?,
            standby: self.control_position(options, data)?,
        })
    }

    fn control_position(
        &self,
        options: &InstanceOptions,
        data: &Path,
    ) -> Result<ControlPosition, Problem> {
        let control = self.control(options, data)?;
        let incomplete = || {
            Problem::new(
                ErrorCode::Internal,
                format!("pg_controldata says too little of {}", data.display()),
                "report this with the PostgreSQL version",
            )
        };
        let text = |label: &str| control.text(label).map(str::to_owned);
        Ok(ControlPosition {
            state: text("Database cluster state").ok_or_else(incomplete)?,
            checkpoint_lsn: text("Latest checkpoint location").ok_or_else(incomplete)?,
            timeline: control
                .number("Latest checkpoint's TimeLineID")
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(incomplete)?,
            system_identifier: text("Database system identifier").ok_or_else(incomplete)?,
        })
    }

    pub(super) fn control(
        &self,
        options: &InstanceOptions,
        data: &Path,
    ) -> Result<ControlData, Problem> {
        self.account
            .act(|| ControlData::read(&options.program_directory, data))?
    }
}

/// Major version of the programs.
pub(super) fn major(options: &InstanceOptions) -> Result<u32, Problem> {
    let programs = &options.program_directory;
    find::inspect(programs)
        .map(|installation| installation.major)
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::PostgresqlNotFound,
                format!("{} holds no PostgreSQL programs", programs.display()),
                "name the directory that holds the program postgres",
            )
        })
}
