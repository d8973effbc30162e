//! Sets the original aside and puts it back. It is renamed and never changed otherwise.

use std::path::Path;

use common::agent::hand::SetAside;
use common::problem::{ErrorCode, Problem};

use super::directory::{self, Before, Found};
use super::manager::{Context, Manager};
use super::record::{Original, Record};
use super::{Recovery, not_now, occupant};

/// How often something may start the original again while we stop it.
const STOPS_MAX: usize = 3;

impl Recovery<'_> {
    /// Stops what runs in the data directory and moves the directories aside.
    pub(super) fn set_aside(&self) -> Result<SetAside, Problem> {
        self.check()?;
        let mut record = self.record()?;
        self.refuse_when_settled(&record, "nothing can be set aside any more")?;
        if record.before(&self.final_place.data_directory).is_none() {
            self.stop_original(&mut record)?;
        }
        for path in self.directories() {
            self.take(path, &mut record)?;
        }
        let describe = |original: &Original| {
            let data = &self.final_place.data_directory;
            original.manager.describe(data)
        };
        Ok(SetAside {
            was_running: record.original.is_some(),
            manager: record.original.as_ref().map(describe),
            moved: record
                .aside()
                .map(|(from, to)| (from.clone(), to.clone()))
                .collect(),
        })
    }

    fn stop_original(&self, record: &mut Record) -> Result<(), Problem> {
        let data = &self.final_place.data_directory;
        let context = self.context();
        for _ in 0..STOPS_MAX {
            let Some(running) = occupant::of(data, &self.account)? else {
                return Ok(());
            };
            // Nothing that runs may be stopped unless its directory may be taken.
            if let Found::Occupied { real, .. } = directory::look(data, &self.account)? {
                self.check_replaceable(data, &real)?;
            }
            let manager = Manager::of_running(running.process, &context);
            record.original = Some(Original {
                manager: manager.clone(),
            });
            record.save(self.place)?;
            manager.stop(running.process, &context)?;
        }
        match occupant::of(data, &self.account)? {
            None => Ok(()),
            Some(running) => Err(Problem::new(
                ErrorCode::NotPossibleNow,
                format!(
                    "something starts PostgreSQL in {} again (pid {})",
                    data.display(),
                    running.process.pid
                ),
                "stop what supervises it (Patroni, a container, a timer) and retry",
            )),
        }
    }

    /// Makes a directory of the final place ours: an empty one, and what was there is aside.
    pub(super) fn take(&self, path: &Path, record: &mut Record) -> Result<(), Problem> {
        if record.before(path).is_none() {
            let before = match directory::look(path, &self.account)? {
                Found::Missing => Before::Missing,
                Found::Empty { real, mode } => Before::Empty { real, mode },
                Found::Occupied { real, mode } => {
                    self.check_replaceable(path, &real)?;
                    Before::Aside {
                        to: self.aside_name(&real),
                        real,
                        mode,
                    }
                }
            };
            record.directories.insert(path.to_owned(), before);
            record.save(self.place)?;
        }
        match record.before(path) {
            Some(Before::Aside { real, to, mode }) => {
                directory::move_aside(real, to, &self.account)?;
                directory::make(real, *mode, &self.account)
            }
            Some(Before::Missing) => directory::make(path, 0o700, &self.account),
            // PostgreSQL takes no data directory that others can look into.
            Some(Before::Empty { real, mode }) => {
                directory::make(real, mode & 0o750, &self.account)
            }
            None => Ok(()),
        }
    }

    /// Brings back what was set aside and starts it if we stopped it.
    pub(super) fn put_back(&self) -> Result<(), Problem> {
        let mut record = self.record()?;
        if record == Record::default() {
            return Ok(());
        }
        self.refuse_when_settled(&record, "the original stays aside")?;
        if record.copy.is_some() {
            return Err(not_now(
                format!(
                    "a half-made standby is in {}",
                    self.final_place.data_directory.display()
                ),
                "remove the standby first",
            ));
        }
        // The tablespaces first: a data directory that is back may be started by anybody.
        let data = &self.final_place.data_directory;
        let mut paths: Vec<_> = record.directories.keys().cloned().collect();
        paths.sort_by_key(|path| path == data);
        for path in paths {
            match record.before(&path) {
                Some(Before::Aside { real, to, .. }) => {
                    directory::move_back(real, to, &self.account)?;
                }
                Some(Before::Missing) => directory::remove_empty(&path, &self.account)?,
                Some(Before::Empty { real, mode }) => {
                    directory::make(real, *mode, &self.account)?;
                }
                None => {}
            }
        }
        record.directories.clear();
        record.save(self.place)?;
        if let Some(original) = &record.original {
            original.manager.start(&self.context())?;
            record.original = None;
            record.save(self.place)?;
        }
        Ok(())
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context {
            data_directory: &self.final_place.data_directory,
            account: &self.account,
            place: self.place,
        }
    }
}
