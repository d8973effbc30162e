//! Decides what the instance that stays is configured with. Pure: the original's settings and the host's facts in, settings out.

use std::path::Path;

use super::super::final_instance::line;
use super::super::manager::Manager;
use super::super::replication::GUARD;
use super::{LIBRARIES, TEMPORARY_COMMENT};
use crate::postgresql::configuration::without_libraries;
use crate::postgresql::control_data::{ControlData, STANDBY_LIMITS};
use crate::postgresql::settings_file::{SettingsFile, parse_boolean, parse_list};

/// Where settings come from; what is later wins.
pub(super) struct Sources<'a> {
    /// The main configuration file with its includes.
    pub(super) main: &'a SettingsFile,
    /// Whether that is not the original's but made by us.
    pub(super) generated: bool,
    /// `ALTER SYSTEM` of the original, and of the published instance.
    pub(super) automatic: [&'a SettingsFile; 2],
    /// Settings that the server refuses, with the reason.
    pub(super) refused: &'a [(String, String)],
    /// The session's port.
    pub(super) port: u16,
    /// The final data directory.
    pub(super) data_directory: &'a Path,
    /// What the standby's `pg_control` says.
    pub(super) control: &'a ControlData,
}

/// What the host has, as the OS user sees it.
pub(super) struct Host<'a> {
    pub(super) readable: &'a (dyn Fn(&Path) -> bool + Sync),
    pub(super) writable: &'a (dyn Fn(&Path) -> bool + Sync),
    pub(super) missing_libraries: &'a (dyn Fn(&mut Vec<String>, &str) + Sync),
    pub(super) tls_usable: &'a (dyn Fn(&SettingsFile) -> bool + Sync),
}

/// What is to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// Settings of `postgresql.auto.conf` that stay.
    pub(super) lasting: Vec<(String, String)>,
    /// Those that only the first start needs.
    pub(super) temporary: Vec<(String, String)>,
    /// Sentences for people.
    pub(super) remarks: Vec<String>,
    /// Whether the main configuration names another data directory.
    pub(super) data_directory_differs: bool,
    /// Whether `pg_hba.conf` is the one in the data directory.
    pub(super) access_in_data: bool,
    archives: bool,
}

/// Decides.
pub(super) fn decide(sources: &Sources<'_>, host: &Host<'_>) -> Decision {
    let mut decision = Decision::default();
    keep_automatic(sources, &mut decision);
    let effective = effective(sources, &decision);
    let get = |name: &str| effective.get(name).unwrap_or_default();
    if sources.generated {
        decision.remark("the backup holds no postgresql.conf (Debian keeps it in /etc/postgresql): PostgreSQL's defaults are used".into());
    }
    for (name, reason) in sources.refused {
        decision.remark(format!("the original's {name} was left out: {reason}"));
    }
    decision
        .remarks
        .extend(sources.main.remarks.iter().cloned());
    let port = effective.get("port").unwrap_or("5432").to_owned();
    if port != sources.port.to_string() {
        decision.set("port", sources.port.to_string());
        decision.remark(format!(
            "port is {} as this session has it; the original has {port}",
            sources.port
        ));
    }
    libraries(&effective, host, &mut decision);
    files(sources, &effective, host, &mut decision);
    let names = get("synchronous_standby_names");
    if !names.is_empty() {
        decision.remark(format!(
            "commits wait for the synchronous standbys {names}, as the original's did"
        ));
    }
    decision.archives = parse_boolean(get("archive_mode")) || get("archive_mode") == "always";
    first_start(sources, &effective, &mut decision);
    decision
}

impl Decision {
    fn set(&mut self, name: &str, value: String) {
        self.lasting.retain(|(known, _)| known != name);
        self.lasting.push((name.to_owned(), value));
    }

    fn for_first_start(&mut self, name: &str, value: &str) {
        self.temporary.push((name.to_owned(), value.to_owned()));
    }

    fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    /// Text of `postgresql.auto.conf`.
    pub(super) fn automatic_text(&self) -> String {
        let lines = |settings: &[(String, String)]| -> String {
            let lines = settings.iter().map(|(name, value)| line(name, value));
            lines.collect()
        };
        format!(
            "# Settings of ALTER SYSTEM, and what pginstant had to change for this host.\n{}{TEMPORARY_COMMENT}\n{}",
            lines(&self.lasting),
            lines(&self.temporary)
        )
    }

    /// Leaves out directories for sockets that this host does not have.
    pub(super) fn use_sockets(&mut self, directories: &str, host: &Host<'_>) {
        let wanted = parse_list(directories);
        let usable = |path: &&String| path.starts_with('@') || (host.writable)(Path::new(path));
        let here: Vec<&String> = wanted.iter().filter(usable).collect();
        if here.len() == wanted.len() {
            return;
        }
        let here: Vec<&str> = here.into_iter().map(String::as_str).collect();
        let value = match here.is_empty() {
            true => "/tmp".to_owned(),
            false => here.join(", "),
        };
        self.remark(format!(
            "{GUARD} is {value}: this host has not all of {directories}"
        ));
        self.set(GUARD, value);
    }

    /// The archive has a gap that no recovery can cross.
    pub(super) fn remark_on_archive(&mut self, manager: &Manager, data: &Path) {
        if self.archives {
            self.remark("archiving goes on with a new timeline; take a backup soon: from an older one nothing after this switchover can be reached".into());
        }
        if let Manager::Program { log, .. } = manager {
            self.remark(format!(
                "nothing on this host starts PostgreSQL in {} by itself; its output goes to {}",
                data.display(),
                log.display()
            ));
        }
    }
}

/// Arguments of the original's server without a port: this session's is in `postgresql.auto.conf`.
pub(super) fn without_port(arguments: &[String]) -> Vec<String> {
    let is_port = |word: &str| word.strip_prefix("--").unwrap_or(word).starts_with("port=");
    let mut kept: Vec<String> = Vec::new();
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-p" => drop(words.next()),
            "-c" if words.peek().is_some_and(|next| is_port(next)) => drop(words.next()),
            alone if alone.starts_with("-p") || is_port(alone) => {}
            _ => kept.push(word.clone()),
        }
    }
    kept
}

fn keep_automatic(sources: &Sources<'_>, decision: &mut Decision) {
    for file in sources.automatic {
        for setting in &file.settings {
            let refused = sources
                .refused
                .iter()
                .any(|(name, _)| *name == setting.name);
            // The guard is ours; ALTER SYSTEM has put it in double quotes.
            let value = setting.value.trim_matches('"');
            let guard = setting.name == GUARD && value.starts_with("/nowhere/pginstant-");
            if !refused && !guard {
                decision.set(&setting.name, setting.value.clone());
            }
        }
    }
}

/// The settings that hold: of the main file, then of `ALTER SYSTEM`.
fn effective(sources: &Sources<'_>, decision: &Decision) -> SettingsFile {
    let mut all = sources.main.clone();
    for (name, value) in &decision.lasting {
        all.settings
            .push(crate::postgresql::settings_file::Setting {
                name: name.clone(),
                value: value.clone(),
            });
    }
    all
}

fn libraries(effective: &SettingsFile, host: &Host<'_>, decision: &mut Decision) {
    let path = effective.get("dynamic_library_path").unwrap_or_default();
    for name in LIBRARIES {
        let wanted = effective.get(name).unwrap_or_default();
        let mut missing = parse_list(wanted);
        (host.missing_libraries)(&mut missing, path);
        if let Some(here) = without_libraries(wanted, &missing) {
            decision.set(name, here);
            decision.remark(format!(
                "{name} has no {}: not installed here",
                missing.join(", ")
            ));
        }
    }
}

fn files(
    sources: &Sources<'_>,
    effective: &SettingsFile,
    host: &Host<'_>,
    decision: &mut Decision,
) {
    let data = sources.data_directory;
    let set = |name: &str| effective.get(name).filter(|value| !value.is_empty());
    decision.data_directory_differs =
        set("data_directory").is_some_and(|path| Path::new(path) != data);
    decision.access_in_data = true;
    for (name, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        let Some(path) = set(name) else { continue };
        let ours = data.join(file);
        if (host.readable)(Path::new(path)) {
            decision.access_in_data &= name != "hba_file" || Path::new(path) == ours;
            continue;
        }
        decision.set(name, ours.display().to_string());
        decision.remark(format!(
            "{name} is {}: {path} cannot be read here",
            ours.display()
        ));
    }
    if parse_boolean(set("ssl").unwrap_or_default()) && !(host.tls_usable)(effective) {
        decision.set("ssl", "off".into());
        decision.remark("TLS is off: the original's certificate or key cannot be read here".into());
    }
    let logs = set("log_directory").unwrap_or("log");
    if parse_boolean(set("logging_collector").unwrap_or_default())
        && Path::new(logs).is_absolute()
        && !(host.writable)(Path::new(logs))
    {
        decision.set("log_directory", "log".into());
        decision.remark(format!(
            "log_directory is {}: {logs} cannot be written here",
            data.join("log").display()
        ));
    }
}

/// What archive recovery needs that ends at once, on what the data directory holds.
fn first_start(sources: &Sources<'_>, effective: &SettingsFile, decision: &mut Decision) {
    let set = |name: &str| effective.get(name).filter(|value| !value.is_empty());
    let ask_archive = set("restore_command").map(histories_only);
    decision.for_first_start(
        "restore_command",
        ask_archive.as_deref().unwrap_or("/bin/false"),
    );
    for name in [
        "recovery_target",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
        "recovery_target_lsn",
        "recovery_end_command",
        "archive_cleanup_command",
    ] {
        if set(name).is_some() {
            decision.for_first_start(name, "");
        }
    }
    // The newest timeline that is found may be another's, or that of a first start which did not come to its end.
    decision.for_first_start("recovery_target_timeline", "current");
    if set("recovery_min_apply_delay").is_some_and(|value| value != "0") {
        decision.for_first_start("recovery_min_apply_delay", "0");
    }
    // Hot standby wants limits as large as those of the published instance; without it recovery does with the original's.
    let too_low = STANDBY_LIMITS.iter().any(|(name, label, default)| {
        let has = set(name).and_then(|value| value.parse().ok());
        let has: u64 = has.unwrap_or(*default);
        sources
            .control
            .number(label)
            .is_some_and(|least| has < least)
    });
    if too_low {
        decision.for_first_start("hot_standby", "off");
    }
}

/// How long the archive may take to say whether it has a timeline, in seconds: nobody can work meanwhile.
const HISTORY_FOR_S: u32 = 20;

/// The original's `restore_command` for histories alone, by which the server finds a timeline that its archive does not have yet. One
/// that is not here, fails or takes long counts as "no": PostgreSQL would give up the start.
fn histories_only(original: &str) -> String {
    let quoted = original.replace('\'', "'\\''");
    format!(
        "case %f in *.history) timeout -k 1 {HISTORY_FOR_S} sh -c '{quoted}' || exit 1 ;; *) exit 1 ;; esac"
    )
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
