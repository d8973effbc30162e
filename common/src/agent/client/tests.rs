//! The peer here is a script: the real agent cannot be late, silent or of another version on demand.

use super::*;
use crate::agent::hand::CacheAfterwards;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// What the peer does with the n-th request after the greeting.
#[derive(Debug, Clone, Copy)]
enum Move {
    Answer,
    Late(Duration),
    HangUp,
    Echo,
}

async fn peer(listener: UnixListener, protocol: u32, moves: Vec<Move>) {
    let (stream, _) = listener.accept().await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut moves = std::iter::once(Move::Answer).chain(moves);
    let mut line = String::new();
    while reader.read_line(&mut line).await.unwrap() > 0 {
        let frame: RequestFrame = serde_json::from_str(&line).unwrap();
        line.clear();
        let response = match frame.request {
            Request::Hello { .. } => Response::Hello {
                protocol,
                version: "1.2.3".into(),
            },
            _ => Response::Done,
        };
        let step = moves.next().unwrap();
        match step {
            Move::Late(time) => tokio::time::sleep(time).await,
            Move::HangUp => return,
            Move::Answer | Move::Echo => {}
        }
        let answer = ResponseFrame {
            id: frame.id,
            result: Ok(response),
        };
        let answer = serde_json::to_string(&answer).unwrap() + "\n";
        writer.write_all(answer.as_bytes()).await.unwrap();
        if matches!(step, Move::Echo) {
            tokio::io::copy_buf(&mut reader, &mut writer).await.unwrap();
            return;
        }
    }
}

async fn open(protocol: u32, moves: Vec<Move>) -> (Result<AgentConnection, Problem>, JoinSet<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let mut peers = JoinSet::new();
    peers.spawn(peer(UnixListener::bind(&path).unwrap(), protocol, moves));
    (
        AgentConnection::open(&TargetConnection::Socket { path }).await,
        peers,
    )
}

fn place() -> SessionPlace {
    SessionPlace {
        session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
        mount_root: "/tmp/pginstant".into(),
        cache_root: "/var/tmp/pginstant".into(),
        os_user: crate::ids::OsUser::new("postgres").unwrap(),
    }
}

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
    let (connection, _peers) =
        open(PROTOCOL_VERSION, vec![Move::Late(SHORT * 4), Move::Answer]).await;
    let mut connection = connection.unwrap();
    assert_eq!(connection.version(), "1.2.3");
    let unmount = Request::Unmount {
        place: place(),
        cache: CacheAfterwards::Kept,
    };
    let late = connection.done(unmount, SHORT).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::TimedOut);
    assert!(connection.hello().await.is_ok() && !connection.is_broken());
}

#[tokio::test]
async fn a_connection_that_ends_is_an_unreachable_target_from_then_on() {
    let (connection, _peers) = open(PROTOCOL_VERSION, vec![Move::HangUp]).await;
    let mut connection = connection.unwrap();
    for _ in 0..2 {
        let problem = connection.hello().await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::TargetUnreachable);
        assert!(connection.is_broken());
    }
}

#[tokio::test]
async fn an_agent_of_another_version_and_one_that_is_not_there_are_told_apart() {
    let (connection, _peers) = open(PROTOCOL_VERSION + 1, vec![]).await;
    assert_eq!(connection.unwrap_err().code, ErrorCode::AgentMismatch);
    for target in [
        TargetConnection::Socket {
            path: "/nowhere/agent.sock".into(),
        },
        TargetConnection::Local {
            program: "/nowhere/pginstant-agent".into(),
        },
        TargetConnection::Local {
            program: "/bin/true".into(),
        },
    ] {
        let problem = AgentConnection::open(&target).await.unwrap_err();
        assert_eq!(problem.code, ErrorCode::TargetUnreachable, "{target}");
    }
}

#[tokio::test]
async fn after_an_attach_the_connection_carries_bytes() {
    let (connection, _peers) = open(PROTOCOL_VERSION, vec![Move::Echo]).await;
    let mut stream = connection.unwrap().attach(place(), LONG).await.unwrap();
    stream.write_all(b"\x00frame\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut back = [0; 7];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"\x00frame\n");
}
