//! Makes a mounted backup startable: clears what belongs to the original host and writes the session's configuration.
//!
//! Everything here runs with the OS user's credentials. It can be repeated at any time while PostgreSQL is stopped, and
//! never sends an instance that has ended recovery back into it: writes made since would be on a timeline left behind.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use common::agent::hand::{InstanceOptions, Prepared, RecoveryOptions, SessionPlace};
use common::problem::{ErrorCode, Problem};

use super::configuration::{self, Generated, Input, Paths};
use super::control_data::{ControlData, STANDBY_LIMITS};
use super::find;
use super::host_files::{self, Disk, read_limited};
use super::log::refused_parameters;
use super::settings_file::SettingsFile;
use crate::hand::os_user::Account;
use crate::hand::{failure, host, write_durably};

/// How often the server may be asked whether it takes the configuration: each time it refuses something more.
const CHECKS_MAX: usize = 8;

/// Left when a first preparation was complete.
pub const PREPARED_MARKER: &str = "prepared";

/// Left when the instance was seen to have ended recovery.
pub const RECOVERED_MARKER: &str = "recovered.json";

/// Prepares the instance in the name of the OS user; PostgreSQL must not be running.
pub fn prepare(
    place: &SessionPlace,
    options: &InstanceOptions,
    account: &Account,
) -> Result<Prepared, Problem> {
    configuration::check_settings(&options.settings)?;
    let installation = find::inspect(&options.program_directory).ok_or_else(|| {
        Problem::new(
            ErrorCode::PostgresqlNotFound,
            format!(
                "{} holds no PostgreSQL programs",
                options.program_directory.display()
            ),
            "name the directory that holds the program postgres",
        )
    })?;
    let job = Job {
        place,
        options,
        major: installation.major,
        libraries: installation.library_directory,
        data: place.data_directory(),
        configuration: place.configuration_directory(),
    };
    account.act(|| job.run())?
}

struct Job<'a> {
    place: &'a SessionPlace,
    options: &'a InstanceOptions,
    major: u32,
    libraries: Option<PathBuf>,
    data: PathBuf,
    configuration: PathBuf,
}

impl Job<'_> {
    fn run(&self) -> Result<Prepared, Problem> {
        self.check_version()?;
        let control = ControlData::read(&self.options.program_directory, &self.data)?;
        self.clear()?;
        let original = self.original_settings()?;
        let missing_libraries = self.missing_libraries(&original);
        self.write_access_files()?;
        let generated = self.write_configuration(&original, &control, &missing_libraries)?;
        let mut remarks = generated.remarks;
        self.write_recovery_signal(&control, &mut remarks)?;
        self.write(&self.configuration.join(PREPARED_MARKER), "")?;
        Ok(Prepared {
            missing_libraries,
            remarks,
        })
    }

    fn check_version(&self) -> Result<(), Problem> {
        let path = self.data.join("PG_VERSION");
        let text = read_limited(&path).map_err(|e| {
            failure(
                ErrorCode::MountFailed,
                format!("read {}", path.display()),
                e,
            )
        })?;
        if text.trim() == self.major.to_string() {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::PostgresqlNotFound,
            format!(
                "the backup is of PostgreSQL {}, {} holds {}",
                text.trim(),
                self.options.program_directory.display(),
                self.major
            ),
            "name the programs of the backup's major version",
        ))
    }

    /// Removes what belongs to the host that the backup came from.
    fn clear(&self) -> Result<(), Problem> {
        for name in [
            "tablespace_map",
            "standby.signal",
            "postmaster.pid",
            "postmaster.opts",
            "recovery.done",
        ] {
            self.remove(&self.data.join(name))?;
        }
        // Before the first start only: what is there later, users of the published instance have set.
        let automatic = self.data.join("postgresql.auto.conf");
        if !self.prepared()
            && let Some(text) = self.read_optional(&automatic)?
        {
            self.write(&self.original_automatic(), &text)?;
            self.remove(&automatic)?;
        }
        Ok(())
    }

    fn prepared(&self) -> bool {
        self.configuration.join(PREPARED_MARKER).exists()
    }

    fn original_main(&self) -> PathBuf {
        self.data.join("postgresql.conf")
    }

    fn original_automatic(&self) -> PathBuf {
        self.configuration.join("original.auto.conf")
    }

    fn original_settings(&self) -> Result<SettingsFile, Problem> {
        let mut all = SettingsFile::default();
        for path in [self.original_main(), self.original_automatic()] {
            match SettingsFile::read(&path, &Disk) {
                Ok(file) => {
                    all.settings.extend(file.settings);
                    all.remarks.extend(file.remarks);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(read_failed(&path, error)),
            }
        }
        Ok(all)
    }

    fn missing_libraries(&self, original: &SettingsFile) -> Vec<String> {
        let mut missing = configuration::preloaded_libraries(original);
        let path = original.get("dynamic_library_path").unwrap_or_default();
        host_files::keep_missing_libraries(&mut missing, self.libraries.as_deref(), path);
        missing
    }

    fn write_access_files(&self) -> Result<(), Problem> {
        let backup = self.read_optional(&self.data.join("pg_hba.conf"))?;
        let access = super::host_based_authentication::text(
            &self.options.hba_lines,
            backup.as_deref(),
            &self.data,
        );
        self.write(&self.configuration.join("pg_hba.conf"), &access)?;
        let names = self.read_optional(&self.data.join("pg_ident.conf"))?;
        self.write(
            &self.configuration.join("pg_ident.conf"),
            &super::host_based_authentication::name_maps(names.as_deref(), &self.data),
        )
    }

    /// Writes the configuration and asks the server whether it takes it, leaving out what it refuses.
    fn write_configuration(
        &self,
        original: &SettingsFile,
        control: &ControlData,
        missing_libraries: &[String],
    ) -> Result<Generated, Problem> {
        let (data, main, automatic) = (&self.data, self.original_main(), self.original_automatic());
        let least = STANDBY_LIMITS
            .iter()
            .filter_map(|(name, label, _)| Some(((*name).to_owned(), control.number(label)?)))
            .collect();
        let mut refused = BTreeMap::new();
        let mut input = Input {
            major: self.major,
            original,
            paths: Paths {
                data_directory: data,
                configuration_directory: &self.configuration,
                socket_directory: &self.place.socket_directory(),
                wal_directory: &self.place.wal_directory(),
                original_main: main.exists().then_some(main.as_path()),
                original_automatic: automatic.exists().then_some(automatic.as_path()),
            },
            port: self.options.port,
            listen_addresses: &self.options.listen_addresses,
            least,
            memory_available_bytes: host::memory_available_bytes(),
            shared_buffers_bytes: self.options.shared_buffers_bytes,
            tls_files_readable: host_files::tls_usable(original, &self.data),
            missing_libraries,
            settings: &self.options.settings,
            refused: &BTreeMap::new(),
            copy_original: !original.remarks.is_empty(),
            recovery: self.recovery(),
        };
        let file = self.configuration.join("postgresql.conf");
        let mut complaint = String::new();
        for _ in 0..CHECKS_MAX {
            let current = refused.clone();
            let generated = configuration::generate(&Input {
                refused: &current,
                ..input.clone()
            });
            self.write(&file, &generated.text)?;
            let arguments = ["-D".to_owned(), self.configuration.display().to_string()];
            let programs = &self.options.program_directory;
            let judged = host_files::ask_server(programs, &arguments, &file, "data_directory");
            let Err(text) = judged? else {
                return Ok(generated);
            };
            let more: Vec<_> = refused_parameters(&text)
                .into_iter()
                .filter(|(name, _)| !refused.contains_key(name) && original.get(name).is_some())
                .collect();
            if more.is_empty() && input.copy_original {
                complaint = text;
                break;
            }
            // A complaint that names no setting of the original is about the form of its files: copy them.
            input.copy_original = true;
            refused.extend(more);
            complaint = text;
        }
        Err(Problem::new(
            ErrorCode::InvalidConfiguration,
            format!("PostgreSQL refuses the configuration: {}", complaint.trim()),
            "correct the settings of the publish command",
        ))
    }

    /// An instance that has not ended recovery gets `recovery.signal`, so that it ends on a timeline of its own. One that was killed
    /// at the end of recovery has removed it before it took that timeline: its `pg_control` still says that it recovers.
    fn write_recovery_signal(
        &self,
        control: &ControlData,
        remarks: &mut Vec<String>,
    ) -> Result<(), Problem> {
        if self.configuration.join(RECOVERED_MARKER).exists() {
            return Ok(());
        }
        let signal = self.data.join("recovery.signal");
        let begun = self.prepared() && !self.data.join("backup_label").exists();
        let recovers = control.text("Database cluster state") == Some("in archive recovery");
        if begun && signal.exists() {
            remarks.push("recovery had begun before and goes on".into());
        } else if !begun || recovers {
            return self.write(&signal, "");
        }
        Ok(())
    }

    /// How it recovers; one that has ended recovery never does again, and takes nothing from the archive any more.
    fn recovery(&self) -> RecoveryOptions {
        match self.configuration.join(RECOVERED_MARKER).exists() {
            true => RecoveryOptions::default(),
            false => self.options.recovery,
        }
    }

    fn read_optional(&self, path: &Path) -> Result<Option<String>, Problem> {
        match read_limited(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(read_failed(path, error)),
        }
    }

    fn remove(&self, path: &Path) -> Result<(), Problem> {
        match std::fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failure(
                ErrorCode::IoFailed,
                format!("remove {}", path.display()),
                error,
            )),
        }
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Problem> {
        write_durably(path, text, 0o600)
            .map_err(|e| failure(ErrorCode::IoFailed, format!("write {}", path.display()), e))
    }
}

fn read_failed(path: &Path, error: io::Error) -> Problem {
    failure(
        ErrorCode::IoFailed,
        format!("read {}", path.display()),
        error,
    )
}
