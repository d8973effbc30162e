//! The real program where no broker is needed: usage, completions, configuration, a broker that is not there.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn explorer(args: &[&str]) -> Ran {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_explorer"))
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .expect("the program can be started");
    Ran {
        code: status.code(),
        stdout: String::from_utf8(stdout).expect("text"),
        stderr: String::from_utf8(stderr).expect("text"),
    }
}

fn configuration(directory: &Path, port: u16) -> String {
    let password = directory.join("password");
    std::fs::write(&password, "secret\n").expect("the directory takes files");
    let path = directory.join("explorer.toml");
    let text = format!(
        "server = \"backup1\"\n[broker]\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"explorer\"\npassword_file = {password:?}\n"
    );
    std::fs::write(&path, text).expect("the directory takes files");
    path.to_str().expect("a plain path").to_owned()
}

#[test]
fn help_goes_to_standard_output_and_a_mistake_is_one_line_with_exit_code_64() {
    let help = explorer(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.contains("Exit codes:"), "{}", help.stdout);
    assert_eq!(explorer(&["--version"]).code, Some(0));
    for args in [
        &["publish", "--repository", "main"][..],
        &["publsh"],
        &["cancel", "abc"],
        &["sessions", "--output", "xml"],
    ] {
        let ran = explorer(args);
        assert_eq!(ran.code, Some(64), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.starts_with("explorer: "), "{}", ran.stderr);
        assert!(ran.stderr.ends_with(" [invalid_field]\n"), "{}", ran.stderr);
    }
    assert_eq!(explorer(&[]).code, Some(64));
}

#[test]
fn completions_need_neither_configuration_nor_broker() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = explorer(&["completions", shell]);
        assert_eq!(ran.code, Some(0), "{shell}: {}", ran.stderr);
        assert!(ran.stdout.contains("unpublish"), "{shell}");
    }
}

#[test]
fn a_configuration_that_is_missing_or_wrong_ends_with_78() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.toml");
    std::fs::write(&bad, "server = \"a/b\"\n").unwrap();
    for file in ["/nowhere/explorer.toml", bad.to_str().unwrap()] {
        let ran = explorer(&["sessions", "--config", file]);
        assert_eq!(ran.code, Some(78), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(file), "{}", ran.stderr);
    }
}

#[test]
fn a_broker_that_is_not_there_or_says_nothing_ends_with_69_within_ten_seconds() {
    let directory = tempfile::tempdir().unwrap();
    // One that accepts and never answers, and a port where nobody listens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = [&silent, &gone].map(|listener| listener.local_addr().unwrap().port());
    drop(gone);
    for port in ports {
        let config = configuration(directory.path(), port);
        let began = Instant::now();
        let ran = explorer(&["sessions", "--config", &config]);
        assert_eq!(ran.code, Some(69), "{}", ran.stderr);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(&port.to_string()), "{}", ran.stderr);
    }
}

#[test]
fn the_doctor_says_what_to_do_about_a_broker_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let config = configuration(directory.path(), port);
    let ran = explorer(&["doctor", "--config", &config]);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stdout.contains("BAD"), "{}", ran.stdout);
    let ran = explorer(&["doctor", "--config", &config, "--output", "json"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stdout.contains("\"state\":\"bad\""), "{}", ran.stdout);
}
