//! Decides the configuration of a published instance. Pure: original settings and facts in, text and remarks out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::agent::hand::RecoveryOptions;
use common::messages::RecoveryTarget;
use common::problem::{ErrorCode, Problem};

use super::restore_command::restore_command;
use super::settings_file::{SettingsFile, parse_boolean, parse_list, parse_size, quote};

const MIB: u64 = 1024 * 1024;
const SHARED_BUFFERS_DEFAULT_BYTES: u64 = 128 * MIB;
const SHARED_BUFFERS_MAX_BYTES: u64 = 1024 * MIB;

/// WAL senders, and slots, that replicating takes, with one to spare.
const REPLICATION_LEAST: u64 = 4;

/// Settings that nobody may change: they would let the instance harm production, or lose it to us.
pub const RESERVED: [&str; 13] = [
    "archive_mode",
    "archive_command",
    "archive_library",
    "primary_conninfo",
    "primary_slot_name",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "port",
    "unix_socket_directories",
    "listen_addresses",
];

/// Libraries of the original by setting, checked by the caller against the host.
pub const LIBRARY_SETTINGS: [&str; 3] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
];

/// Everything that the decision rests on.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// PostgreSQL's major version.
    pub major: u32,
    /// What the original had.
    pub original: &'a SettingsFile,
    /// Where things lie.
    pub paths: Paths<'a>,
    /// TCP port.
    pub port: u16,
    /// `listen_addresses`.
    pub listen_addresses: &'a str,
    /// What hot standby wants at least, by setting.
    pub least: BTreeMap<String, u64>,
    /// Memory available on the host, in bytes.
    pub memory_available_bytes: u64,
    /// `shared_buffers` as wished, in bytes.
    pub shared_buffers_bytes: Option<u64>,
    /// Whether the files of the original's TLS settings can be read here.
    pub tls_files_readable: bool,
    /// Libraries that the host has not.
    pub missing_libraries: &'a [String],
    /// Settings that come last.
    pub settings: &'a BTreeMap<String, String>,
    /// Settings of the original that this server refuses.
    pub refused: &'a BTreeMap<String, String>,
    /// Whether the original's files must be copied instead of included.
    pub copy_original: bool,
    /// How far it recovers, and from what.
    pub recovery: RecoveryOptions,
}

/// Where things lie.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// The data directory in the mount.
    pub data_directory: &'a Path,
    /// Directory of the generated files.
    pub configuration_directory: &'a Path,
    /// Directory of the private socket.
    pub socket_directory: &'a Path,
    /// The archive of WAL in the mount.
    pub wal_directory: &'a Path,
    /// The backup's `postgresql.conf`, if it has one.
    pub original_main: Option<&'a Path>,
    /// The backup's `postgresql.auto.conf`, moved aside, if it had one.
    pub original_automatic: Option<&'a Path>,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Text of `postgresql.conf`.
    pub text: String,
    /// Sentences for people.
    pub remarks: Vec<String>,
}

/// Names of all libraries that the original preloads.
pub fn preloaded_libraries(original: &SettingsFile) -> Vec<String> {
    let mut names: Vec<String> = LIBRARY_SETTINGS
        .iter()
        .flat_map(|name| parse_list(original.get(name).unwrap_or_default()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Refuses wished settings that would let the instance harm production, or that are no settings.
pub fn check_settings(settings: &BTreeMap<String, String>) -> Result<(), Problem> {
    for name in settings.keys() {
        let lower = name.to_ascii_lowercase();
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let reason = if RESERVED.contains(&lower.as_str()) {
            "is decided by pginstant"
        } else if lower.starts_with("include") || lower.is_empty() || !lower.chars().all(sound) {
            "is not the name of a setting"
        } else {
            continue;
        };
        return Err(Problem::new(
            ErrorCode::InvalidField,
            format!("the setting {name:?} {reason}"),
            "leave it out of the settings",
        ));
    }
    Ok(())
}

/// Arguments that beat every file, so that `ALTER SYSTEM` cannot bring the original's ways back.
pub fn forced_arguments(major: u32, port: u16, socket_directory: &Path) -> Vec<String> {
    let mut forced = vec![
        ("archive_mode", "off".to_owned()),
        ("archive_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("port", port.to_string()),
        (
            "unix_socket_directories",
            socket_directory.display().to_string(),
        ),
    ];
    if major >= 15 {
        forced.push(("archive_library", String::new()));
    }
    forced
        .into_iter()
        .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
        .collect()
}

/// Decides the text of `postgresql.conf`.
pub fn generate(input: &Input<'_>) -> Generated {
    let mut writer = Writer::default();
    writer.line("# Written by pginstant for a published instance; written anew at every start.");
    original(input, &mut writer);
    writer.line("\n# What follows wins over the original.");
    places(input, &mut writer);
    harmlessness(input, &mut writer);
    recovery(input, &mut writer);
    replication(input, &mut writer);
    libraries(input, &mut writer);
    memory(input, &mut writer);
    durability(input, &mut writer);
    file_system(input, &mut writer);
    writer.line("\n# As the publisher asked.");
    for (name, value) in input.settings {
        writer.set(name, value);
    }
    for (name, reason) in input.refused {
        writer.remark(format!("the original's {name} was left out: {reason}"));
    }
    writer
        .remarks
        .extend(input.original.remarks.iter().cloned());
    Generated {
        text: writer.text,
        remarks: writer.remarks,
    }
}

#[derive(Default)]
struct Writer {
    text: String,
    remarks: Vec<String>,
}

impl Writer {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
    fn set(&mut self, name: &str, value: impl AsRef<str>) {
        self.line(&format!("{name} = {}", quote(value.as_ref())));
    }
    fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }
}

fn original(input: &Input<'_>, writer: &mut Writer) {
    if input.copy_original || !input.refused.is_empty() {
        writer.line("\n# The original's settings, without those that this server refuses.");
        for setting in &input.original.settings {
            let sound = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '$');
            if !input.refused.contains_key(&setting.name) && setting.name.chars().all(sound) {
                writer.set(&setting.name, &setting.value);
            }
        }
        return;
    }
    let files = [input.paths.original_main, input.paths.original_automatic];
    for file in files.into_iter().flatten() {
        writer.set("include", file.display().to_string());
    }
    if input.paths.original_main.is_none() {
        writer.remark(
            "the backup holds no postgresql.conf (Debian keeps it in /etc/postgresql): PostgreSQL's defaults are used".into(),
        );
    }
}

fn places(input: &Input<'_>, writer: &mut Writer) {
    let ours = |name: &str| input.paths.configuration_directory.join(name);
    let path = |path: PathBuf| path.display().to_string();
    writer.set(
        "data_directory",
        path(input.paths.data_directory.to_owned()),
    );
    writer.set("hba_file", path(ours("pg_hba.conf")));
    writer.set("ident_file", path(ours("pg_ident.conf")));
    writer.set("external_pid_file", "");
    writer.set("port", input.port.to_string());
    writer.set("listen_addresses", input.listen_addresses);
    writer.set(
        "unix_socket_directories",
        path(input.paths.socket_directory.to_owned()),
    );
    writer.set("unix_socket_permissions", "0700");
    writer.set("unix_socket_group", "");
    writer.set("bonjour", "off");
    // Standard error goes to the session's log; messages must read the same everywhere.
    writer.set("logging_collector", "off");
    writer.set("log_destination", "stderr");
    writer.set("log_line_prefix", "%m [%p] ");
    writer.set("lc_messages", "C");
    if input.major <= 14 {
        writer.set("stats_temp_directory", "pg_stat_tmp");
    }
    if parse_boolean(input.original.get("ssl").unwrap_or_default()) && !input.tls_files_readable {
        writer.set("ssl", "off");
        writer.remark("TLS is off: the original's certificate or key cannot be read here".into());
    }
}

fn harmlessness(input: &Input<'_>, writer: &mut Writer) {
    let was = |name: &str| input.original.get(name).unwrap_or_default().to_owned();
    writer.set("archive_mode", "off");
    writer.set("archive_command", "");
    if input.major >= 15 {
        writer.set("archive_library", "");
    }
    if !matches!(was("archive_mode").as_str(), "" | "off") {
        writer.remark("archiving is off: the original archives its WAL".into());
    }
    writer.set("primary_conninfo", "");
    writer.set("primary_slot_name", "");
    writer.set("hot_standby_feedback", "off");
    writer.set("synchronous_standby_names", "");
    // Subscriptions of the original would take changes away from its publishers.
    writer.set("max_logical_replication_workers", "0");
    if input.major >= 17 {
        writer.set("sync_replication_slots", "off");
        writer.set("synchronized_standby_slots", "");
    }
    if preloaded_libraries(input.original)
        .iter()
        .any(|name| name == "pg_cron")
    {
        writer.set("cron.launch_active_jobs", "off");
        writer.remark("jobs of pg_cron are not started".into());
    }
    for name in ["archive_cleanup_command", "recovery_end_command"] {
        writer.set(name, "");
    }
    if input.major <= 15 {
        writer.set("promote_trigger_file", "");
    }
}

fn recovery(input: &Input<'_>, writer: &mut Writer) {
    writer.set("hot_standby", "on");
    match input.recovery.archive {
        Some(_) => writer.set(
            "restore_command",
            restore_command(input.paths.wal_directory),
        ),
        // Archive recovery wants a command; what the mount shows in pg_wal is all there is.
        None => writer.set("restore_command", "/bin/false"),
    }
    for name in ["_name", "_time", "_xid", "_lsn"] {
        writer.set(&format!("recovery_target{name}"), "");
    }
    let timeline = input.recovery.archive.and_then(|archive| archive.timeline);
    let (target, timeline) = match input.recovery.target {
        RecoveryTarget::Immediate => ("immediate", None),
        RecoveryTarget::Latest => ("", timeline),
    };
    writer.set("recovery_target", target);
    writer.set(
        "recovery_target_timeline",
        timeline.map_or("current".to_owned(), |timeline| timeline.to_string()),
    );
    writer.set("recovery_target_action", "promote");
    writer.set("recovery_min_apply_delay", "0");
    for (name, _, default) in super::control_data::STANDBY_LIMITS {
        let original = input.original.get(name).and_then(|v| v.parse().ok());
        let original = original.unwrap_or(default);
        let mut value = input
            .least
            .get(name)
            .map_or(original, |least| original.max(*least));
        if name == "max_wal_senders" {
            value = value.max(REPLICATION_LEAST);
        }
        writer.set(name, value.to_string());
    }
}

/// An instant recovery replicates the published instance to its final place: a copy, its WAL, and the standby.
fn replication(input: &Input<'_>, writer: &mut Writer) {
    let was = |name: &str| input.original.get(name);
    if was("wal_level").is_some_and(|level| level.eq_ignore_ascii_case("minimal")) {
        writer.set("wal_level", "replica");
    }
    let slots = was("max_replication_slots").and_then(|v| v.parse::<u64>().ok());
    if slots.is_some_and(|slots| slots < REPLICATION_LEAST) {
        writer.set("max_replication_slots", REPLICATION_LEAST.to_string());
    }
    // The standby's WAL must wait for it, however long its copy takes.
    if input.major >= 13 {
        writer.set("max_slot_wal_keep_size", "-1");
    }
    if input.major >= 18 {
        writer.set("idle_replication_slot_timeout", "0");
    }
}

/// A list of libraries without those that are missing; `None` if it has none of them.
pub fn without_libraries(value: &str, missing: &[String]) -> Option<String> {
    let wanted = parse_list(value);
    let here: Vec<&String> = wanted
        .iter()
        .filter(|name| !missing.contains(name))
        .collect();
    // A name that needs quotes keeps them: it may hold a comma or a blank.
    let plain = |c: char| !c.is_whitespace() && !matches!(c, ',' | '"');
    let quoted: Vec<String> = here
        .iter()
        .map(|name| match name.chars().all(plain) {
            true => (*name).clone(),
            false => format!("\"{name}\""),
        })
        .collect();
    (here.len() < wanted.len()).then(|| quoted.join(", "))
}

fn libraries(input: &Input<'_>, writer: &mut Writer) {
    for setting in LIBRARY_SETTINGS {
        let wanted = input.original.get(setting).unwrap_or_default();
        if let Some(here) = without_libraries(wanted, input.missing_libraries) {
            writer.set(setting, here);
        }
    }
    for name in input.missing_libraries {
        writer.remark(format!(
            "the library {name}, which the original preloads, is not installed here and was left out"
        ));
    }
}

fn memory(input: &Input<'_>, writer: &mut Writer) {
    let was = |name: &str, unit| input.original.get(name).and_then(|v| parse_size(v, unit));
    let original = was("shared_buffers", 8192).unwrap_or(SHARED_BUFFERS_DEFAULT_BYTES);
    let fitting = original
        .min(input.memory_available_bytes / 8)
        .clamp(MIB, SHARED_BUFFERS_MAX_BYTES);
    let buffers = input.shared_buffers_bytes.unwrap_or(fitting);
    writer.set("shared_buffers", format!("{}kB", buffers / 1024));
    if input.shared_buffers_bytes.is_none() && fitting < original {
        writer.remark(format!(
            "shared_buffers is {} MB to fit this host; the original has {} MB",
            fitting / MIB,
            original / MIB
        ));
    }
    writer.set("huge_pages", "off");
    writer.set("wal_buffers", "-1");
    if input.major >= 14 {
        writer.set("min_dynamic_shared_memory", "0");
    }
    for (name, share) in [
        ("maintenance_work_mem", 16),
        ("work_mem", 64),
        ("autovacuum_work_mem", 16),
    ] {
        let most = (input.memory_available_bytes / share).max(4 * MIB);
        if let Some(original) = was(name, 1024)
            && original > most
        {
            writer.set(name, format!("{}kB", most / 1024));
            writer.remark(format!("{name} is {} MB to fit this host", most / MIB));
        }
    }
}

/// An original that gives up durability does so for its own reasons; whoever writes to a published instance was promised it.
fn durability(input: &Input<'_>, writer: &mut Writer) {
    for name in ["fsync", "full_page_writes"] {
        writer.set(name, "on");
        if input
            .original
            .get(name)
            .is_some_and(|value| !parse_boolean(value))
        {
            writer.remark(format!("{name} is on: the original has it off"));
        }
    }
}

fn file_system(input: &Input<'_>, writer: &mut Writer) {
    // Commits of WAL files in passthrough then never leave the kernel.
    writer.set("wal_sync_method", "open_datasync");
    if input.major >= 14 {
        // To flush each file would take longer than all else. It is the mount that makes it needless (`cache::barrier`):
        // recovery begins with a write of pg_control, before which everything else is made durable.
        writer.set("recovery_init_sync_method", "syncfs");
    }
    if input.major < 18 {
        // Each advice on a passthrough file would make the worker read pages that nobody uses.
        writer.set("effective_io_concurrency", "0");
        if input.major >= 13 {
            writer.set("maintenance_io_concurrency", "0");
        }
        if input.major >= 15 {
            writer.set("recovery_prefetch", "off");
        }
    }
}

#[cfg(test)]
#[path = "configuration/tests.rs"]
mod tests;
