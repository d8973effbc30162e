//! Makes the stopped standby an instance of its own, with the original's configuration.
//!
//! `postgresql.auto.conf` is written last: until then its guard keeps everybody from starting a server there.

mod decision;

use std::path::{Path, PathBuf};

use common::agent::hand::{InstanceOptions, RecoveryResponse};
use common::problem::{ErrorCode, Problem};

use super::final_instance::line;
use super::manager::Manager;
use super::record::{Record, Settled};
use super::switchover::major;
use super::{Recovery, io_failed, not_now, occupant, timelines};
use crate::postgresql::host_files::{Disk, ask_server, keep_missing_libraries, tls_usable};
use crate::postgresql::log::refused_parameters;
use crate::postgresql::settings_file::{Setting, SettingsFile, quote};
use crate::postgresql::{configuration, find, host_based_authentication};
use decision::{Decision, Host, Sources};

/// Before the settings that only the first start needs.
pub(super) const TEMPORARY_COMMENT: &str =
    "# For the first start only; taken back when the instance accepts writes:";

/// How often the server may be asked whether it takes the configuration: each time it refuses something more.
const CHECKS_MAX: usize = 8;

/// The state of a standby that was stopped.
const STOPPED_STANDBY: &str = "shut down in recovery";

/// The main configuration file of the instance that stays.
struct Main {
    file: PathBuf,
    /// Its text, where it lies in the data directory and is ours to change.
    text: Option<String>,
    changed: bool,
    settings: SettingsFile,
}

impl Recovery<'_> {
    /// Settles the standby; settled already is fine.
    pub(super) fn settle(&self, options: &InstanceOptions) -> Result<RecoveryResponse, Problem> {
        let mut record = self.record()?;
        let data = &self.final_place.data_directory;
        let settled = match record.settled.take() {
            Some(settled) => settled,
            None => self.settle_now(options, record)?,
        };
        Ok(RecoveryResponse::Settled {
            manager: settled.manager.describe(data),
            remarks: settled.remarks,
        })
    }

    fn settle_now(
        &self,
        options: &InstanceOptions,
        mut record: Record,
    ) -> Result<Settled, Problem> {
        let data = &self.final_place.data_directory;
        let control = self.control(options, data)?;
        if control.text("Database cluster state") != Some(STOPPED_STANDBY)
            || occupant::of(data, &self.account)?.is_some()
        {
            // The host has started it in the moment after everything was written.
            if let Some(plan) = record.settling.take() {
                record.settled = Some(plan.clone());
                record.save(self.place)?;
                return Ok(plan);
            }
            return Err(not_now(
                format!("{} holds no stopped standby", data.display()),
                "stop the standby first",
            ));
        }
        let manager = self.manager(options, &record)?;
        let mut main = self.main_file(&manager, options)?;
        let last_timeline = timelines::give(&record, data, options, &self.account)?;
        let decision = self.decide(options, &manager, &mut main, &control)?;
        // An attempt that was killed may have changed what the next one remarks on.
        let mut remarks = record
            .settling
            .take()
            .map_or(Vec::new(), |plan| plan.remarks);
        remarks.extend(decision.remarks.iter().cloned());
        let mut known = std::collections::BTreeSet::new();
        remarks.retain(|remark| known.insert(remark.clone()));
        let plan = Settled {
            manager,
            remarks,
            temporary: decision.temporary.clone(),
            left_timeline: last_timeline,
            complete: false,
        };
        record.settling = Some(plan.clone());
        record.save(self.place)?;
        self.write_settled(options, &main, &decision)?;
        record.settling = None;
        record.settled = Some(plan.clone());
        record.save(self.place)?;
        Ok(plan)
    }

    /// How the host will start it: as it knows it, else as it started what was there.
    fn manager(&self, options: &InstanceOptions, record: &Record) -> Result<Manager, Problem> {
        let data = &self.final_place.data_directory;
        let wanted = major(options)?.to_string();
        if let Some(Manager::Debian { version, cluster }) = Manager::debian(data)
            && version == wanted
        {
            return Ok(Manager::Debian { version, cluster });
        }
        let ours = |arguments, log: PathBuf| Manager::Program {
            program: options.program_directory.join("postgres"),
            arguments,
            // The session's own directory will go.
            log: match log.starts_with(self.place.session_directory()) {
                true => data.join("log").join("postgresql.log"),
                false => log,
            },
        };
        Ok(match record.original.as_ref().map(|found| &found.manager) {
            Some(systemd @ Manager::Systemd { .. }) => systemd.clone(),
            Some(Manager::Program { arguments, log, .. }) => {
                ours(decision::without_port(arguments), log.clone())
            }
            Some(Manager::Debian { .. }) | None => {
                ours(Vec::new(), self.place.log_directory().join("none"))
            }
        })
    }

    fn main_file(&self, manager: &Manager, options: &InstanceOptions) -> Result<Main, Problem> {
        let data = &self.final_place.data_directory;
        let file = manager
            .configuration_file()
            .unwrap_or_else(|| data.join("postgresql.conf"));
        let mut text = self.read(&file)?;
        let ours = file.starts_with(data);
        let generated = text.is_none() && ours;
        if generated {
            text = Some(format!(
                "# Written by pginstant: the backup holds no postgresql.conf.\n{}",
                line("listen_addresses", &options.listen_addresses)
            ));
        }
        let Some(text) = text else {
            return Err(Problem::new(
                ErrorCode::InvalidConfiguration,
                format!("{} does not exist", file.display()),
                "bring back the configuration with which the host starts this instance",
            ));
        };
        let settings = match generated {
            true => SettingsFile::of_text(&text),
            false => self
                .account
                .act(|| SettingsFile::read(&file, &Disk))?
                .map_err(|e| io_failed(format!("read {}", file.display()), e))?,
        };
        Ok(Main {
            file,
            text: ours.then_some(text),
            changed: generated,
            settings,
        })
    }

    /// Decides what is set, and has the server judge it until it takes it.
    fn decide(
        &self,
        options: &InstanceOptions,
        manager: &Manager,
        main: &mut Main,
        control: &crate::postgresql::control_data::ControlData,
    ) -> Result<Decision, Problem> {
        let data = &self.final_place.data_directory;
        let conf = self.place.configuration_directory();
        let read = |name: &str| -> Result<SettingsFile, Problem> {
            let text = self.read(&conf.join(name))?.unwrap_or_default();
            Ok(SettingsFile::of_text(&text))
        };
        let (original, published) = (read("original.auto.conf")?, read("published.auto.conf")?);
        let libraries = find::inspect(&options.program_directory)
            .and_then(|installation| installation.library_directory);
        let mut refused: Vec<(String, String)> = Vec::new();
        let mut complaint = String::new();
        for _ in 0..CHECKS_MAX {
            let sources = Sources {
                main: &main.settings,
                generated: main.changed && main.text.is_some(),
                automatic: [&original, &published],
                refused: &refused,
                port: options.port,
                data_directory: data,
                control,
            };
            let host = Host {
                readable: &|path| self.readable(path),
                writable: &|path| self.writable(path),
                missing_libraries: &|names, path| {
                    keep_missing_libraries(names, libraries.as_deref(), path);
                },
                tls_usable: &|settings| {
                    self.account
                        .act(|| tls_usable(settings, data))
                        .unwrap_or(false)
                },
            };
            let mut decision = decision::decide(&sources, &host);
            match self.judge(options, main, &decision)? {
                Ok(sockets) => {
                    decision.use_sockets(&sockets, &host);
                    decision.remark_on_archive(manager, data);
                    return Ok(decision);
                }
                Err(said) => complaint = said,
            }
            let more: Vec<_> = refused_parameters(&complaint)
                .into_iter()
                .filter(|found| !refused.contains(found))
                .collect();
            let in_main = more.is_empty()
                || more
                    .iter()
                    .any(|(name, _)| main.settings.get(name).is_some());
            refused.extend(more);
            if in_main && !main.flatten(&refused) {
                break;
            }
        }
        Err(Problem::new(
            ErrorCode::InvalidConfiguration,
            format!(
                "PostgreSQL refuses the configuration {}: {}",
                main.file.display(),
                complaint.trim()
            ),
            "correct it and retry",
        ))
    }

    /// The server's own judgement: where its sockets would be, or what it printed.
    fn judge(
        &self,
        options: &InstanceOptions,
        main: &Main,
        decision: &Decision,
    ) -> Result<Result<String, String>, Problem> {
        let conf = self.place.configuration_directory();
        let file = conf.join("final-check.conf");
        let mut text = match (&main.text, main.changed) {
            (Some(text), true) => text.clone(),
            _ => line("include", &main.file.display().to_string()),
        };
        text.push_str(&decision.automatic_text());
        self.write(&file, &text)?;
        let programs = &options.program_directory;
        // Another data directory: in the final one lies the guard.
        let conf = conf.display();
        let arguments = [
            "-D".to_owned(),
            conf.to_string(),
            "-c".to_owned(),
            format!("data_directory={conf}"),
        ];
        let ask = || ask_server(programs, &arguments, &file, "unix_socket_directories");
        let judged = self.account.act(ask)??;
        self.remove(&file)?;
        Ok(judged)
    }

    fn write_settled(
        &self,
        options: &InstanceOptions,
        main: &Main,
        decision: &Decision,
    ) -> Result<(), Problem> {
        let data = &self.final_place.data_directory;
        if let (Some(text), true) = (&main.text, main.changed || decision.data_directory_differs) {
            let mut text = text.clone();
            if decision.data_directory_differs {
                text.push_str("\n# Added by pginstant: the original lay elsewhere.\n");
                text.push_str(&line("data_directory", &data.display().to_string()));
            }
            self.write(&data.join("postgresql.conf"), &text)?;
        }
        if decision.access_in_data && self.read(&data.join("pg_hba.conf"))?.is_none() {
            let access = host_based_authentication::without_backup(&options.hba_lines);
            self.write(&data.join("pg_hba.conf"), &access)?;
        }
        let names = data.join("pg_ident.conf");
        if decision.access_in_data && self.read(&names)?.is_none() {
            self.write(
                &names,
                "# Written by pginstant: the backup holds no pg_ident.conf.\n",
            )?;
        }
        let logs = data.join("log");
        match self.account.act(|| std::fs::create_dir(&logs))? {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(io_failed(format!("make {}", logs.display()), error));
            }
            _ => {}
        }
        for left in ["backup_manifest", "backup_label.old", "tablespace_map.old"] {
            self.remove(&data.join(left))?;
        }
        self.write(&data.join("recovery.signal"), "")?;
        self.remove(&data.join("standby.signal"))?;
        let automatic = data.join("postgresql.auto.conf");
        self.write(&automatic, &decision.automatic_text())
    }

    fn readable(&self, path: &Path) -> bool {
        let read = || crate::postgresql::host_files::read_limited(path).is_ok();
        self.account.act(read).unwrap_or(false)
    }

    fn writable(&self, directory: &Path) -> bool {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        let flags = rustix::fs::AtFlags::EACCESS;
        let look = || rustix::fs::accessat(rustix::fs::CWD, directory, access, flags).is_ok();
        self.account.act(look).unwrap_or(false)
    }
}

impl Main {
    /// Replaces the file by the settings that it and its includes hold, without what is refused; `false` if it is not ours to change.
    fn flatten(&mut self, refused: &[(String, String)]) -> bool {
        if self.text.is_none() {
            return false;
        }
        let is_refused = |setting: &Setting| refused.iter().any(|(name, _)| *name == setting.name);
        self.settings
            .settings
            .retain(|setting| !is_refused(setting));
        let lines = self
            .settings
            .settings
            .iter()
            .map(|setting| format!("{} = {}\n", setting.name, quote(&setting.value)));
        let mut text = String::from(
            "# Written by pginstant: the original's settings without those that this server refuses.\n",
        );
        text.extend(lines);
        self.text = Some(text);
        self.changed = true;
        true
    }
}

/// Names of the settings that hold libraries.
const LIBRARIES: [&str; 3] = configuration::LIBRARY_SETTINGS;
