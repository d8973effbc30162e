//! Takes away a copy or a standby, and nothing that was not made by us.

use std::time::Duration;

use common::agent::hand::InstanceOptions;
use common::problem::Problem;

use super::directory::{self, Before};
use super::record::Record;
use super::replication::GUARD;
use super::{Recovery, not_now, occupant};
use crate::postgresql::process;

/// How long the standby may take to end.
const STOP_FOR: Duration = Duration::from_secs(20);

impl Recovery<'_> {
    /// Ends the copy or the standby, and empties the directories that we filled.
    pub(super) fn remove_standby(&self, options: Option<&InstanceOptions>) -> Result<(), Problem> {
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "it is not removed any more")?;
        self.end_copying()?;
        if let Some(standby) = self.standby_process() {
            process::stop(standby, STOP_FOR)?;
        }
        if record == Record::default() {
            return Ok(());
        }
        let data = &self.final_place.data_directory;
        if record.copy.is_some() {
            if let Some(other) = occupant::of(data, &self.account)? {
                return Err(not_now(
                    format!(
                        "a server that is not ours runs in {} (pid {})",
                        data.display(),
                        other.process.pid
                    ),
                    "stop it and retry",
                ));
            }
            for path in record.directories.keys() {
                directory::clear(path, &self.account)?;
            }
        }
        // Where nothing was there is nothing again; what is aside comes back by another request.
        let made: Vec<_> = record
            .directories
            .iter()
            .filter(|(_, before)| **before == Before::Missing)
            .map(|(path, _)| path.clone())
            .collect();
        for path in made {
            directory::remove_empty(&path, &self.account)?;
        }
        record.copy = None;
        record.settling = None;
        record.save(self.place)?;
        for name in ["standby.conf", "published.auto.conf"] {
            self.remove(&self.place.configuration_directory().join(name))?;
        }
        match options {
            Some(options) if self.published_process().is_some() => {
                self.drop_slot(options)?;
                self.ask_published(options, &format!("ALTER SYSTEM RESET {GUARD}"))
                    .map(|_| ())
            }
            _ => Ok(()),
        }
    }
}
