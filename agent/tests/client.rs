//! The services' client against the real agent.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use agent::hand::Hand;
use agent::hand::listen::{self, Access};
use agent::hand::mounts::{MountKeeper, NoMounts, TreeChunk};
use common::agent::client::{AgentConnection, TargetConnection};
use common::agent::hand::{
    CacheAfterwards, MountOptions, MountStatus, Request, Response, SessionPlace,
};
use common::ids::OsUser;
use common::problem::{ErrorCode, Problem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

fn place(root: &std::path::Path) -> SessionPlace {
    SessionPlace {
        session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
        mount_root: root.join("m"),
        cache_root: root.join("c"),
        os_user: OsUser::new("postgres").unwrap(),
    }
}

#[tokio::test]
async fn a_local_agent_answers_and_ends_with_its_connection() {
    let program = PathBuf::from(std::env::var_os("CARGO_BIN_EXE_pginstant-agent").unwrap());
    let target = TargetConnection::Local { program };
    let mut connection = AgentConnection::open(&target).await.unwrap();
    let facts = connection
        .host_facts(vec!["/tmp".into()], LIMIT)
        .await
        .unwrap();
    assert!(facts.volumes.contains_key(std::path::Path::new("/tmp")));
    let find = Request::FindPostgresql {
        major: 15,
        extra_directories: vec![],
    };
    let found = connection.request(find, LIMIT).await.unwrap();
    assert!(matches!(found, Response::Postgresql(found) if found.major == 15));
    let attach = connection
        .attach(place(std::path::Path::new("/var/tmp/nowhere")), LIMIT)
        .await;
    assert_eq!(attach.unwrap_err().code, ErrorCode::MountFailed);
}

/// Mounts whose worker sends back what it gets.
struct EchoingWorker;

impl MountKeeper for EchoingWorker {
    fn start(&self, place: &SessionPlace, options: &MountOptions) -> Result<MountStatus, Problem> {
        NoMounts.start(place, options)
    }
    fn status(&self, place: &SessionPlace) -> Result<Option<MountStatus>, Problem> {
        NoMounts.status(place)
    }
    fn stop(&self, place: &SessionPlace, cache: CacheAfterwards) -> Result<(), Problem> {
        NoMounts.stop(place, cache)
    }
    fn connect_pages(&self, place: &SessionPlace) -> std::io::Result<UnixStream> {
        std::fs::create_dir_all(place.session_directory())?;
        let listener = UnixListener::bind(place.agent_socket())?;
        let ours = UnixStream::connect(place.agent_socket())?;
        let (mut theirs, _) = listener.accept()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = theirs.read(&mut buffer) {
                theirs.write_all(buffer.get(..read).unwrap()).unwrap();
            }
        });
        Ok(ours)
    }
    fn write_tree(&self, place: &SessionPlace, chunk: TreeChunk) -> Result<(), Problem> {
        NoMounts.write_tree(place, chunk)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_attach_both_ends_exchange_bytes_with_the_worker() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = listen::bind(&path, &Access::default()).unwrap();
    let shutdown = CancellationToken::new();
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(listen::run(
        Hand::new(EchoingWorker),
        listener,
        shutdown.clone(),
    ));
    let target = TargetConnection::Socket { path };
    let connection = AgentConnection::open(&target).await.unwrap();
    let stream = connection
        .attach(place(directory.path()), LIMIT)
        .await
        .unwrap();
    let sent: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut back = vec![0; sent.len()];
    let exchange = async {
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.flush().await.unwrap();
        };
        tokio::join!(write, reader.read_exact(&mut back)).1.unwrap();
    };
    tokio::time::timeout(LIMIT, exchange).await.unwrap();
    assert!(back == sent);
    shutdown.cancel();
    tokio::time::timeout(LIMIT, servers.join_all())
        .await
        .unwrap();
}
