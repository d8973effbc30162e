//! The agent's program as services use it: lines on standard input, and a socket.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::agent::hand::{PROTOCOL_VERSION, Request, RequestFrame, Response, ResponseFrame};
use common::problem::ErrorCode;

struct Agent(Child);

impl Agent {
    fn start(arguments: &[&str]) -> Self {
        // Asked for at run time: a shell as compiler wrapper drops variables whose names have a hyphen.
        let program = std::env::var_os("CARGO_BIN_EXE_pginstant-agent").unwrap();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ended already, or ended here.
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

fn line(id: u64, request: Request) -> String {
    serde_json::to_string(&RequestFrame { id, request }).unwrap() + "\n"
}

fn hello() -> Request {
    Request::Hello {
        protocol: PROTOCOL_VERSION,
    }
}

fn ask(writer: &mut impl Write, reader: &mut impl BufRead, text: &str) -> ResponseFrame {
    writer.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn bad_lines_are_answered_and_end_nothing() {
    let mut agent = Agent::start(&["serve"]);
    let (mut writer, reader) = (
        agent.0.stdin.take().unwrap(),
        agent.0.stdout.take().unwrap(),
    );
    let mut reader = BufReader::new(reader);
    let paths = vec!["/var/tmp".into()];
    let early = ask(
        &mut writer,
        &mut reader,
        &line(
            1,
            Request::HostFacts {
                paths: paths.clone(),
            },
        ),
    );
    assert_eq!(early.result.unwrap_err().code, ErrorCode::MalformedMessage);
    let greeted = ask(&mut writer, &mut reader, &line(2, hello()));
    assert!(matches!(greeted.result.unwrap(), Response::Hello { .. }));
    for bad in ["{\"id\":7,\"request\":\"Nonsense\"}\n", "\u{1}\n", "[]\n"] {
        let refused = ask(&mut writer, &mut reader, bad);
        assert_eq!(
            refused.result.unwrap_err().code,
            ErrorCode::MalformedMessage
        );
    }
    let long = "x".repeat(5 * 1024 * 1024) + "\n";
    let refused = ask(&mut writer, &mut reader, &long);
    assert_eq!(refused.result.unwrap_err().code, ErrorCode::MessageTooLarge);
    let facts = ask(
        &mut writer,
        &mut reader,
        &line(9, Request::HostFacts { paths }),
    );
    assert_eq!(facts.id, 9);
    assert!(matches!(facts.result.unwrap(), Response::HostFacts(_)));
    let other = ask(
        &mut writer,
        &mut reader,
        &line(10, Request::Hello { protocol: 999 }),
    );
    assert_eq!(other.result.unwrap_err().code, ErrorCode::AgentMismatch);
    drop(writer);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert!(agent.0.wait().unwrap().success());
}

#[test]
fn a_socket_serves_many_connections_is_private_and_cannot_be_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let text = socket.to_str().unwrap();
    let _agent = Agent::start(&["listen", "--socket", text]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let connect = || loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    drop(connect());
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut streams = [connect(), connect()];
    for stream in &mut streams {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let greeted = ask(stream, &mut reader, &line(1, hello()));
        assert!(greeted.result.is_ok());
    }
    let mut second = Agent::start(&["listen", "--socket", text]);
    assert!(!second.0.wait().unwrap().success());
    connect();
}
