use super::super::settings_file::Setting;
use super::*;

fn original(settings: &[(&str, &str)]) -> SettingsFile {
    let settings = settings.iter().map(|(name, value)| Setting {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    });
    SettingsFile {
        settings: settings.collect(),
        remarks: Vec::new(),
    }
}

struct Case {
    major: u32,
    original: SettingsFile,
    missing: Vec<String>,
    settings: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
    recovery: RecoveryOptions,
}

impl Case {
    fn new(major: u32, settings: &[(&str, &str)]) -> Self {
        Self {
            major,
            original: original(settings),
            missing: Vec::new(),
            settings: BTreeMap::new(),
            refused: BTreeMap::new(),
            recovery: RecoveryOptions::default(),
        }
    }

    fn generate(&self) -> Generated {
        generate(&Input {
            major: self.major,
            original: &self.original,
            paths: Paths {
                data_directory: Path::new("/t/s/data"),
                configuration_directory: Path::new("/v/s/conf"),
                socket_directory: Path::new("/v/s/socket"),
                wal_directory: Path::new("/t/s/wal"),
                original_main: Some(Path::new("/t/s/data/postgresql.conf")),
                original_automatic: None,
            },
            port: 5439,
            listen_addresses: "*",
            least: BTreeMap::from([("max_connections".into(), 250)]),
            memory_available_bytes: 4 << 30,
            shared_buffers_bytes: None,
            tls_files_readable: false,
            missing_libraries: &self.missing,
            settings: &self.settings,
            refused: &self.refused,
            copy_original: false,
            recovery: self.recovery,
        })
    }

    /// The value that holds in the generated text.
    fn value(&self, name: &str) -> Option<String> {
        let text = self.generate().text;
        let start = format!("{name} = ");
        let line = text.lines().rev().find_map(|l| l.strip_prefix(&start))?;
        Some(line.trim_matches('\'').to_owned())
    }
}

fn check(original: &[(&str, &str)], name: &str, expected: Option<&str>) {
    let case = Case::new(15, original);
    assert_eq!(case.value(name).as_deref(), expected, "{original:?} {name}");
}

#[test]
fn the_instance_cannot_harm_production() {
    let harmful = [
        ("archive_mode", "always"),
        ("archive_command", "cp %p /prod"),
        ("primary_conninfo", "host=prod"),
        ("primary_slot_name", "slot"),
        ("synchronous_standby_names", "*"),
    ];
    check(&harmful, "archive_mode", Some("off"));
    for (name, _) in harmful.into_iter().skip(1) {
        check(&harmful, name, Some(""));
    }
    check(&[], "max_logical_replication_workers", Some("0"));
    check(&[], "restore_command", Some("/bin/false"));
    check(
        &[("shared_preload_libraries", "pg_cron")],
        "cron.launch_active_jobs",
        Some("off"),
    );
}

#[test]
fn recovery_goes_as_far_as_was_asked_for() {
    use common::agent::hand::ArchiveOptions;
    let archive = |timeline| Some(ArchiveOptions { timeline });
    for (target, archive, expected) in [
        (RecoveryTarget::Latest, None, ("", "current")),
        (RecoveryTarget::Latest, archive(None), ("", "current")),
        (RecoveryTarget::Latest, archive(Some(3)), ("", "3")),
        (RecoveryTarget::Immediate, None, ("immediate", "current")),
        (
            RecoveryTarget::Immediate,
            archive(Some(3)),
            ("immediate", "current"),
        ),
    ] {
        let mut case = Case::new(15, &[("recovery_target_name", "x")]);
        case.recovery = RecoveryOptions { target, archive };
        let value = |name| case.value(name).unwrap();
        let found = (value("recovery_target"), value("recovery_target_timeline"));
        assert_eq!((&*found.0, &*found.1), expected);
        assert_eq!(value("recovery_target_name"), "");
        let takes_from_archive = value("restore_command").contains("/t/s/wal");
        assert_eq!(takes_from_archive, archive.is_some());
    }
}

#[test]
fn memory_fits_the_host() {
    for (value, expected) in [
        ("128MB", "131072kB"),
        ("16GB", "524288kB"),
        ("1000", "8000kB"),
    ] {
        check(
            &[("shared_buffers", value)],
            "shared_buffers",
            Some(expected),
        );
    }
    check(
        &[("maintenance_work_mem", "2GB")],
        "maintenance_work_mem",
        Some("262144kB"),
    );
    check(
        &[("maintenance_work_mem", "64MB")],
        "maintenance_work_mem",
        None,
    );
    check(&[("work_mem", "4MB")], "work_mem", None);
}

#[test]
fn limits_that_recovery_needs_are_never_lowered() {
    check(&[("max_connections", "20")], "max_connections", Some("250"));
    check(
        &[("max_connections", "900")],
        "max_connections",
        Some("900"),
    );
    check(&[], "max_worker_processes", Some("8"));
}

#[test]
fn a_published_instance_can_be_replicated_whatever_the_original_allowed() {
    let none = [
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("max_replication_slots", "0"),
        ("max_slot_wal_keep_size", "1GB"),
    ];
    check(&none, "wal_level", Some("replica"));
    check(&none, "max_wal_senders", Some("4"));
    check(&none, "max_replication_slots", Some("4"));
    check(&none, "max_slot_wal_keep_size", Some("-1"));
    check(&[("wal_level", "logical")], "wal_level", None);
    check(&[("max_wal_senders", "30")], "max_wal_senders", Some("30"));
}

#[test]
fn parameters_exist_only_in_the_versions_that_know_them() {
    for (name, from, to) in [
        ("archive_library", 15, 99),
        ("recovery_prefetch", 15, 17),
        ("maintenance_io_concurrency", 13, 17),
        ("recovery_init_sync_method", 14, 99),
        ("stats_temp_directory", 12, 14),
        ("promote_trigger_file", 12, 15),
        ("sync_replication_slots", 17, 99),
        ("effective_io_concurrency", 12, 17),
        ("min_dynamic_shared_memory", 14, 99),
        ("max_slot_wal_keep_size", 13, 99),
        ("idle_replication_slot_timeout", 18, 99),
    ] {
        for major in 12..=18 {
            let present = Case::new(major, &[]).value(name).is_some();
            assert_eq!(present, (from..=to).contains(&major), "{name} in {major}");
        }
    }
}

#[test]
fn missing_libraries_are_cut_and_named() {
    let mut case = Case::new(
        15,
        &[("shared_preload_libraries", "pg_stat_statements, gone")],
    );
    case.missing = vec!["gone".into()];
    assert_eq!(
        case.value("shared_preload_libraries").as_deref(),
        Some("pg_stat_statements")
    );
    assert!(case.generate().remarks.iter().any(|r| r.contains("gone")));
}

#[test]
fn the_original_is_included_unless_something_of_it_is_refused() {
    let mut case = Case::new(15, &[("old_one", "1"), ("jit", "off")]);
    assert!(
        case.generate()
            .text
            .contains("include = '/t/s/data/postgresql.conf'")
    );
    case.refused.insert("old_one".into(), "unrecognized".into());
    let generated = case.generate();
    assert!(!generated.text.contains("include") && !generated.text.contains("old_one"));
    assert!(generated.text.contains("jit = 'off'"));
    assert!(generated.remarks.iter().any(|r| r.contains("old_one")));
}

#[test]
fn wished_settings_win_but_reserved_ones_are_refused() {
    let mut case = Case::new(15, &[]);
    case.settings
        .insert("recovery_target_timeline".into(), "latest".into());
    assert_eq!(
        case.value("recovery_target_timeline").as_deref(),
        Some("latest")
    );
    for bad in [
        "Archive_Mode",
        "port",
        "include",
        "x y",
        "a=b",
        "x\narchive_mode",
    ] {
        let settings = BTreeMap::from([(bad.to_owned(), String::new())]);
        assert_eq!(
            check_settings(&settings).unwrap_err().code,
            ErrorCode::InvalidField,
            "{bad}"
        );
    }
    check_settings(&BTreeMap::from([("work_mem".into(), "1MB".into())])).unwrap();
}

#[test]
fn tls_is_off_when_its_files_cannot_be_read() {
    check(&[("ssl", "on")], "ssl", Some("off"));
    check(&[("ssl", "off")], "ssl", None);
}

#[test]
fn an_original_that_gives_up_durability_is_not_followed_unless_the_publisher_asks_for_it() {
    let mut case = Case::new(18, &[("fsync", "off"), ("full_page_writes", "off")]);
    for name in ["fsync", "full_page_writes"] {
        assert_eq!(case.value(name).as_deref(), Some("on"));
        let remark = format!("{name} is on: the original has it off");
        assert!(case.generate().remarks.contains(&remark));
    }
    case.settings.insert("fsync".into(), "off".into());
    assert_eq!(case.value("fsync").as_deref(), Some("off"));
}
