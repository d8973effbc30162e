//! Starts the instance that stays, and watches it by its files: who may connect to it is the original's business, not ours.

use std::path::Path;

use common::agent::hand::{InstanceOptions, InstanceStatus};
use common::problem::Problem;
use rustix::process::Signal;

use super::manager::Manager;
use super::record::Settled;
use super::{Recovery, not_now, occupant, timelines};
use crate::hand::port;
use crate::postgresql::instance::switch_position;
use crate::postgresql::server::LOG_LINES;
use crate::postgresql::settings_file::{Setting, SettingsFile, quote};
use crate::postgresql::{find, log};

impl Recovery<'_> {
    /// Starts it as the host does; running is fine.
    pub(super) fn start_final(&self, options: &InstanceOptions) -> Result<(), Problem> {
        let settled = self.settled()?;
        let data = &self.final_place.data_directory;
        if occupant::of(data, &self.account)?.is_some() {
            return Ok(());
        }
        if self.published_process().is_some() {
            return Err(not_now("the published instance runs", "stop it first"));
        }
        port::check(options.port, "localhost")?;
        if !settled.complete {
            self.leave_the_timeline(options, &settled)?;
        }
        settled.manager.start(&self.context())
    }

    /// Has the next start take a new timeline. A first start that was killed has removed `recovery.signal` before it took one: the
    /// next would go on with the published instance's, while the archive may have the history of the one that never began.
    fn leave_the_timeline(
        &self,
        options: &InstanceOptions,
        settled: &Settled,
    ) -> Result<(), Problem> {
        let data = &self.final_place.data_directory;
        let signal = data.join("recovery.signal");
        let on = timelines::timeline(&self.control(options, data)?)?;
        if on <= settled.left_timeline && self.read(&signal)?.is_none() {
            self.write(&signal, "")?;
        }
        Ok(())
    }

    fn settled(&self) -> Result<Settled, Problem> {
        self.record()?.settled.ok_or_else(|| {
            not_now(
                format!(
                    "the standby in {} is not settled",
                    self.final_place.data_directory.display()
                ),
                "settle it first",
            )
        })
    }

    /// How it is; once it accepts writes, what only its first start needed is taken back.
    pub(super) fn final_status(
        &self,
        options: &InstanceOptions,
    ) -> Result<InstanceStatus, Problem> {
        let settled = self.settled()?;
        let data = &self.final_place.data_directory;
        let Some(running) = occupant::of(data, &self.account)? else {
            return Ok(InstanceStatus::Stopped {
                last_log_lines: self.final_words(&settled)?,
            });
        };
        let recovering = InstanceStatus::Recovering { replayed_lsn: None };
        // A server in recovery says that it is ready as well; its control file does not.
        let control = self.control(options, data)?;
        if running.state != "ready"
            || control.text("Database cluster state") != Some("in production")
        {
            return Ok(recovering);
        }
        // Its end of recovery is a checkpoint on the timeline that it took.
        let timeline = timelines::timeline(&control)?;
        if timeline <= settled.left_timeline {
            tracing::warn!(
                timeline,
                "the final instance took no timeline of its own: start it again"
            );
            settled.manager.stop(running.process, &self.context())?;
            self.start_final(options)?;
            return Ok(recovering);
        }
        let Some(reached_lsn) = self.account.act(|| left_parent_at(data, timeline))? else {
            return Ok(recovering);
        };
        if !settled.complete {
            self.take_back(&settled)?;
            if let Err(error) = running.process.signal(Signal::HUP) {
                tracing::warn!(%error, "have the final instance read its settings again");
            }
            let mut record = self.record()?;
            record.settled = Some(Settled {
                complete: true,
                ..settled
            });
            record.save(self.place)?;
        }
        let installed = find::inspect(&options.program_directory);
        Ok(InstanceStatus::Ready {
            version: installed.map(|found| found.version).unwrap_or_default(),
            timeline,
            reached_lsn,
            reached_at: None,
        })
    }

    /// Takes the temporary settings out of `postgresql.auto.conf`.
    fn take_back(&self, settled: &Settled) -> Result<(), Problem> {
        let file = self.final_place.data_directory.join("postgresql.auto.conf");
        let Some(text) = self.read(&file)? else {
            return Ok(());
        };
        match without(&text, &settled.temporary) {
            Some(text) => self.write(&file, &text),
            None => Ok(()),
        }
    }

    fn final_words(&self, settled: &Settled) -> Result<Vec<String>, Problem> {
        let lines = match &settled.manager {
            Manager::Program { log, .. } => self.account.act(|| log::tail_since(log, 0))?,
            Manager::Debian { version, cluster } => {
                let name = format!("/var/log/postgresql/postgresql-{version}-{cluster}.log");
                log::tail_since(Path::new(&name), 0)
            }
            Manager::Systemd { .. } => Vec::new(),
        };
        Ok(log::last(&lines, LOG_LINES))
    }
}

/// The text without the last line of each of these settings; `None` if it has none of them. PostgreSQL itself may have written the
/// file anew since, without comments.
fn without(text: &str, temporary: &[(String, String)]) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let before = lines.len();
    for (name, value) in temporary {
        let wanted = Setting {
            name: name.clone(),
            value: value.clone(),
        };
        let is_it = |line: &&str| SettingsFile::of_text(line).settings == [wanted.clone()];
        if let Some(at) = lines.iter().rposition(is_it) {
            lines.remove(at);
        }
    }
    lines.retain(|line| *line != super::settle::TEMPORARY_COMMENT);
    (lines.len() < before).then(|| lines.join("\n") + "\n")
}

/// A line of a settings file.
pub(super) fn line(name: &str, value: &str) -> String {
    format!("{name} = {}\n", quote(value))
}

/// Where a timeline left its parent, by its history file.
fn left_parent_at(data: &Path, timeline: u32) -> Option<String> {
    let history = data.join("pg_wal").join(format!("{timeline:08X}.history"));
    switch_position(&std::fs::read_to_string(history).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_for_the_first_start_are_taken_back_and_the_originals_stay() {
        let temporary = [("restore_command".to_owned(), "/bin/false".to_owned())];
        let mine = line("restore_command", "/bin/false");
        let text = format!("work_mem = '5MB'\nrestore_command = 'get %f'\n{mine}jit = off\n");
        let expected = "work_mem = '5MB'\nrestore_command = 'get %f'\njit = off\n";
        assert_eq!(without(&text, &temporary).as_deref(), Some(expected));
        assert_eq!(without(expected, &temporary), None);
    }
}
