use super::*;
use crate::postgresql::settings_file::Setting;

struct Case {
    main: String,
    original: String,
    published: String,
    control: String,
    refused: Vec<(String, String)>,
}

impl Case {
    fn new(main: &str) -> Self {
        Self {
            main: main.into(),
            original: String::new(),
            published: String::new(),
            control: String::new(),
            refused: Vec::new(),
        }
    }

    fn decide(&self) -> Decision {
        let main = SettingsFile::of_text(&self.main);
        let original = SettingsFile::of_text(&self.original);
        let published = SettingsFile::of_text(&self.published);
        let sources = Sources {
            main: &main,
            generated: false,
            automatic: [&original, &published],
            refused: &self.refused,
            port: 5439,
            data_directory: Path::new("/d"),
            control: &ControlData::parse(&self.control),
        };
        decide(&sources, &host())
    }

    fn lasting(&self) -> Vec<Setting> {
        let decision = self.decide();
        let lasting = decision.lasting.into_iter();
        lasting
            .map(|(name, value)| Setting { name, value })
            .collect()
    }

    /// What stays in `postgresql.auto.conf`, as `name=value`.
    fn check(&self, expected: &[&str]) {
        let lasting = self.lasting();
        let found: Vec<String> = lasting
            .iter()
            .map(|s| format!("{}={}", s.name, s.value))
            .collect();
        assert_eq!(found, expected, "{}", self.main);
    }

    fn remarked(&self, words: &str) {
        let remarks = self.decide().remarks;
        assert!(
            remarks.iter().any(|r| r.contains(words)),
            "{words}: {remarks:?}"
        );
    }
}

fn host() -> Host<'static> {
    Host {
        readable: &|path| !path.starts_with("/gone"),
        writable: &|path| !path.starts_with("/gone"),
        missing_libraries: &|names, _| names.retain(|name| name.starts_with("no_")),
        tls_usable: &|_| false,
    }
}

#[test]
fn what_alter_system_set_before_and_after_publishing_is_kept_and_the_guard_is_not() {
    let mut case = Case::new("port = 5439\nwork_mem = '1MB'");
    case.original = "work_mem = '5MB'\njit = off".into();
    case.published =
        "work_mem = '6MB'\nunix_socket_directories = '\"/nowhere/pginstant-1-is-at-work-here\"'"
            .into();
    case.check(&["jit=off", "work_mem=6MB"]);
}

#[test]
fn the_port_is_the_sessions() {
    Case::new("port = 5439").check(&[]);
    let case = Case::new("port = 5432");
    case.check(&["port=5439"]);
    case.remarked("the original has 5432");
    Case::new("").check(&["port=5439"]);
}

#[test]
fn what_this_host_does_not_have_is_left_out_by_name() {
    let case = Case::new(
        "port = 5439\nshared_preload_libraries = 'here, no_such'\nhba_file = '/gone/hba'\nssl = on\n\
         logging_collector = on\nlog_directory = '/gone/log'",
    );
    case.check(&[
        "shared_preload_libraries=here",
        "hba_file=/d/pg_hba.conf",
        "ssl=off",
        "log_directory=log",
    ]);
    for words in ["no_such", "/gone/hba", "TLS", "/gone/log"] {
        case.remarked(words);
    }
    let mut decision = case.decide();
    decision.use_sockets("/gone/a, /there", &host());
    assert!(
        decision
            .lasting
            .contains(&("unix_socket_directories".into(), "/there".into()))
    );
    decision.use_sockets("/gone/a", &host());
    assert!(
        decision
            .lasting
            .contains(&("unix_socket_directories".into(), "/tmp".into()))
    );
}

#[test]
fn a_data_directory_of_the_originals_host_is_noticed() {
    assert!(
        Case::new("data_directory = '/old'")
            .decide()
            .data_directory_differs
    );
    assert!(
        !Case::new("data_directory = '/d'")
            .decide()
            .data_directory_differs
    );
}

#[test]
fn the_first_start_ends_recovery_at_once_and_takes_nothing_but_histories_from_the_archive() {
    let temporary = |case: &Case| case.decide().temporary;
    let current = ("recovery_target_timeline".to_owned(), "current".to_owned());
    let command = |text: &str| ("restore_command".to_owned(), text.to_owned());
    assert_eq!(
        temporary(&Case::new("archive_mode = on")),
        [command("/bin/false"), current.clone()]
    );
    let case = Case::new("restore_command = 'get ''%f'' %p'");
    let histories = "case %f in *.history) timeout -k 1 20 sh -c 'get '\\''%f'\\'' %p' || exit 1 ;; *) exit 1 ;; esac";
    assert_eq!(temporary(&case), [command(histories), current]);
    let case = Case::new(
        "recovery_target_time = 'yesterday'\nrecovery_end_command = 'boom'\nrecovery_target_timeline = '1'",
    );
    let names: Vec<String> = temporary(&case).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "restore_command",
            "recovery_target_time",
            "recovery_end_command",
            "recovery_target_timeline"
        ]
    );
}

#[test]
fn limits_lower_than_the_published_instances_keep_hot_standby_off_at_the_first_start() {
    let off = ("hot_standby".to_owned(), "off".to_owned());
    let mut case = Case::new("max_connections = 50");
    case.control = "max_connections setting: 100".into();
    assert!(case.decide().temporary.contains(&off));
    case.main = "max_connections = 100".into();
    assert!(!case.decide().temporary.contains(&off));
}

#[test]
fn refused_settings_are_left_out_with_the_reason() {
    let mut case = Case::new("port = 5439");
    case.original = "old_one = 1".into();
    case.refused = vec![("old_one".into(), "unrecognized".into())];
    case.check(&[]);
    case.remarked("old_one was left out: unrecognized");
}

#[test]
fn a_port_among_the_originals_arguments_is_left_out() {
    for given in [
        vec!["-p", "5432", "-k", "/s"],
        vec!["-p5432", "-k", "/s"],
        vec!["-c", "port=5432", "-k", "/s"],
        vec!["--port=5432", "-k", "/s"],
    ] {
        let given: Vec<String> = given.into_iter().map(str::to_owned).collect();
        assert_eq!(without_port(&given), ["-k", "/s"]);
    }
}
