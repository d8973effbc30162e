//! Copies the published instance to its final place with `pg_basebackup`, a process that belongs to nobody but itself.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::agent::hand::{InstanceOptions, ReplicationStatus};
use common::problem::{ErrorCode, Problem};
use rustix::process::Signal;

use super::directory::{self, Found};
use super::record::{Copy, Record};
use super::{Recovery, not_now, progress, value};
use crate::hand::command::CommandLine;
use crate::hand::failure;
use crate::postgresql::log;
use crate::postgresql::process::{self, END_FOR, Process};
use crate::postgresql::settings_file::quote;

/// Lines of its log that a failed copy shows.
const LOG_LINES: usize = 20;

/// How long the copy may take to show up among the processes.
const APPEAR_FOR: Duration = Duration::from_secs(10);

/// How long the sender of an earlier copy may take to leave the slot.
const LEAVE_FOR: Duration = Duration::from_secs(60);

/// In the copy's `postgresql.auto.conf` until the instance is settled: no server of the host's can start there by mistake, since it
/// finds no place for its socket. Published instance and standby have theirs from their command line.
pub(super) const GUARD: &str = "unix_socket_directories";

impl Recovery<'_> {
    /// Copies, unless that is under way or done.
    pub(super) fn begin_replication(
        &self,
        options: &InstanceOptions,
    ) -> Result<ReplicationStatus, Problem> {
        self.check_paths()?;
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "nothing is copied there any more")?;
        match self.status_of(&mut record)? {
            status @ (ReplicationStatus::Running { .. } | ReplicationStatus::Complete { .. }) => {
                return Ok(status);
            }
            ReplicationStatus::NotBegun | ReplicationStatus::Failed { .. } => {}
        }
        let mappings = self.mappings(options)?;
        self.end_copying()?;
        if record.copy.is_some() {
            for path in self.directories() {
                directory::clear(path, &self.account)?;
            }
        }
        for path in self.directories() {
            self.take(path, &mut record)?;
            if !matches!(directory::look(path, &self.account)?, Found::Empty { .. }) {
                return Err(Problem::new(
                    ErrorCode::DirectoryNotEmpty,
                    format!("{} is not empty", path.display()),
                    "move away what is in it and retry",
                ));
            }
        }
        // An earlier copy's words must not be taken for those of this one.
        self.write(&self.copy_log(), "")?;
        record.copy = Some(Copy::default());
        record.save(self.place)?;
        self.guard(options)?;
        self.make_slot(options)?;
        self.account.act(|| self.spawn_copy(options, &mappings))??;
        self.await_copy(&mut record)
    }

    /// How far is the copy?
    pub(super) fn replication_status(&self) -> Result<ReplicationStatus, Problem> {
        self.status_of(&mut self.record()?)
    }

    fn status_of(&self, record: &mut Record) -> Result<ReplicationStatus, Problem> {
        let Some(copy) = &record.copy else {
            return Ok(ReplicationStatus::NotBegun);
        };
        if let Some(done_bytes) = copy.complete_bytes {
            return Ok(ReplicationStatus::Complete { done_bytes });
        }
        // Looked at before the log: it may end in between.
        let runs = self.copying().iter().any(Process::leads_session);
        let lines = self.account.act(|| log::tail_since(&self.copy_log(), 0))?;
        let counted = progress::bytes(&lines);
        if runs {
            return Ok(ReplicationStatus::Running {
                done_bytes: counted.map_or(0, |(done, _)| done),
                total_bytes: counted.and_then(|(_, total)| total),
            });
        }
        if progress::is_complete(&lines) {
            let done_bytes = counted.map_or(0, |(done, _)| done);
            record.copy = Some(Copy {
                complete_bytes: Some(done_bytes),
            });
            record.save(self.place)?;
            return Ok(ReplicationStatus::Complete { done_bytes });
        }
        Ok(ReplicationStatus::Failed {
            last_log_lines: log::last(&progress::words(&lines), LOG_LINES),
        })
    }

    fn await_copy(&self, record: &mut Record) -> Result<ReplicationStatus, Problem> {
        let deadline = Instant::now() + APPEAR_FOR;
        loop {
            let status = self.status_of(record)?;
            let failed = matches!(&status, ReplicationStatus::Failed { last_log_lines } if last_log_lines.iter().any(|line| line.contains("error:")));
            let begun = !matches!(status, ReplicationStatus::Failed { .. });
            if begun || failed || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes of this copy: the program itself, which leads its session, and its receiver of WAL.
    pub(super) fn copying(&self) -> Vec<Process> {
        let argument = self.target_argument();
        process::with_argument("pg_basebackup", &argument, self.account.uid)
    }

    fn target_argument(&self) -> String {
        format!("--pgdata={}", self.final_place.data_directory.display())
    }

    /// Ends what copies.
    pub(super) fn end_copying(&self) -> Result<(), Problem> {
        for (signal, limit) in [(Signal::TERM, END_FOR), (Signal::KILL, END_FOR)] {
            let all = self.copying();
            process::kill_all(&all, signal);
            if process::wait_for_end(&all, limit) {
                return Ok(());
            }
        }
        Err(Problem::new(
            ErrorCode::TimedOut,
            "pg_basebackup does not end even after SIGKILL",
            "it waits for its volume: look at the kernel's log",
        ))
    }

    /// Tablespaces of the published instance with their final directories.
    fn mappings(&self, options: &InstanceOptions) -> Result<Vec<(String, PathBuf)>, Problem> {
        let rows = self.ask_published(
            options,
            "SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace \
             WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
        )?;
        let mut mappings = Vec::new();
        for row in rows {
            let mut fields = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || fields.next().unwrap_or_default();
            let (oid, name, location) = (next(), next(), next());
            // One that lies in the data directory is copied with it.
            if !Path::new(&location).is_absolute() {
                continue;
            }
            let target = oid.parse().ok();
            let target = target.and_then(|oid: u32| self.final_place.tablespaces.get(&oid));
            let target = target.ok_or_else(|| {
                Problem::new(
                    ErrorCode::InvalidField,
                    format!("the tablespace {name} (oid {oid}) has no directory in the final place"),
                    format!("drop it if it was made since publishing, or name one: --tablespace {oid}=DIRECTORY"),
                )
            })?;
            mappings.push((location, target.clone()));
        }
        Ok(mappings)
    }

    fn guard(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let value = quote(&self.guard_value());
        self.ask_published(options, &format!("ALTER SYSTEM SET {GUARD} = {value}"))
            .map(|_| ())
    }

    pub(super) fn guard_value(&self) -> String {
        format!(
            "/nowhere/pginstant-{}-is-at-work-here",
            self.place.session_id
        )
    }

    pub(super) fn slot(&self) -> String {
        let id = self.place.session_id.to_string().replace('-', "");
        format!("pginstant_{id}").chars().take(63).collect()
    }

    fn make_slot(&self, options: &InstanceOptions) -> Result<(), Problem> {
        self.drop_slot(options)?;
        let slot = self.slot();
        self.ask_published(
            options,
            &format!("SELECT pg_create_physical_replication_slot('{slot}', true)"),
        )
        .map(|_| ())
    }

    /// Drops the slot once nobody uses it; none there is fine.
    pub(super) fn drop_slot(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let slot = self.slot();
        let deadline = Instant::now() + LEAVE_FOR;
        loop {
            let active = value(self.ask_published(
                options,
                &format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'"),
            )?);
            match active.as_deref() {
                None => return Ok(()),
                Some("f") => {
                    let dropping = format!(
                        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                         WHERE slot_name = '{slot}' AND NOT active"
                    );
                    self.ask_published(options, &dropping)?;
                }
                Some(_) if Instant::now() >= deadline => {
                    return Err(not_now(
                        format!("the replication slot {slot} is still in use"),
                        "retry: whoever used it ends when its connection does",
                    ));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn copy_log(&self) -> PathBuf {
        self.place.log_directory().join("pg_basebackup.log")
    }

    fn spawn_copy(
        &self,
        options: &InstanceOptions,
        mappings: &[(String, PathBuf)],
    ) -> Result<(), Problem> {
        let fail = |error| failure(ErrorCode::ReplicationFailed, "run pg_basebackup", error);
        let open = || {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(self.copy_log())
        };
        let socket = self.place.socket_directory();
        let mapped = mappings.iter().map(|(from, to)| {
            let escaped = |path: &str| path.replace('=', "\\=");
            let to = to.display().to_string();
            format!("--tablespace-mapping={}={}", escaped(from), escaped(&to))
        });
        let program = options.program_directory.join("pg_basebackup");
        let status = CommandLine::new("setsid")
            .args(["--fork".as_ref(), program.as_os_str()])
            .args([
                self.target_argument(),
                "--wal-method=stream".into(),
                format!("--slot={}", self.slot()),
                "--checkpoint=fast".into(),
                "--progress".into(),
                "--verbose".into(),
                "--no-password".into(),
                format!("--label=pginstant {}", self.place.session_id),
                format!("--host={}", socket.display()),
                format!("--port={}", options.port),
                format!("--username={}", options.superuser),
            ])
            .args(mapped)
            .command()
            .stdout(Stdio::null())
            .stderr(open().map_err(fail)?)
            .status()
            .map_err(fail)?;
        if status.success() {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::ReplicationFailed,
            format!("setsid could not start pg_basebackup ({status})"),
            "check that setsid is installed",
        ))
    }
}
