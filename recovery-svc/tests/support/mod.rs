//! Doubles for the driver tests: a bus in memory, a scripted hand, a mount service that answers. The real parts are tested together elsewhere;
//! these are here because they fail on demand, at an exact step.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this module"
)]

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::agent::hand::*;
use common::bus::*;
use common::config::TargetConfig;
use common::env::Env;
use common::ids::*;
use common::messages::*;
use common::problem::{ErrorCode, Problem};
use recovery_svc::hand::{Hand, Hands};
use recovery_svc::{Config, Parts, Running};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
struct Queues {
    waiting: BTreeMap<String, VecDeque<IncomingMessage>>,
    events: Vec<Envelope<Event>>,
    acked: u64,
}

/// A bus in memory: queues by name, events in a list. Unsettled deliveries come again when their consumer ends.
#[derive(Debug, Clone, Default)]
pub struct TestBus {
    queues: Arc<Mutex<Queues>>,
    arrived: Arc<Notify>,
}

struct TestSettle {
    bus: TestBus,
    queue: String,
    message: IncomingMessage,
}

#[async_trait]
impl Settle for TestSettle {
    async fn ack(self: Box<Self>) -> Result<(), NotSettled> {
        self.bus.queues.lock().unwrap().acked += 1;
        Ok(())
    }
    async fn requeue(mut self: Box<Self>) -> Result<(), NotSettled> {
        let count = self.message.delivery_count.unwrap_or(0) + 1;
        self.message.delivery_count = Some(count);
        self.message.redelivered = true;
        self.bus.put(&self.queue.clone(), self.message.clone());
        Ok(())
    }
}

impl TestBus {
    pub fn put(&self, queue: &str, message: IncomingMessage) {
        let mut queues = self.queues.lock().unwrap();
        queues
            .waiting
            .entry(queue.to_owned())
            .or_default()
            .push_back(message);
        drop(queues);
        self.arrived.notify_waiters();
    }

    pub fn pop(&self, queue: &str) -> Option<IncomingMessage> {
        let mut queues = self.queues.lock().unwrap();
        queues.waiting.get_mut(queue)?.pop_front()
    }

    pub fn events(&self) -> Vec<Envelope<Event>> {
        self.queues.lock().unwrap().events.clone()
    }

    pub fn acked(&self) -> u64 {
        self.queues.lock().unwrap().acked
    }

    pub fn send<P: Payload>(&self, queue: &str, id: EventId, payload: P) {
        self.put(queue, incoming(&envelope(id, payload), queue));
    }
}

pub fn envelope<P: Payload>(id: EventId, payload: P) -> Envelope<P> {
    Envelope {
        id: id.uuid(),
        source: "/test".to_owned(),
        subject: None,
        time: None,
        sequence: None,
        traceparent: None,
        tracestate: None,
        payload,
    }
}

pub fn incoming<P: Payload>(envelope: &Envelope<P>, queue: &str) -> IncomingMessage {
    IncomingMessage {
        message_id: Some(envelope.id.to_string()),
        type_name: Some(envelope.payload.type_name().to_owned()),
        correlation_id: None,
        reply_to: None,
        exchange: String::new(),
        routing_key: queue.to_owned(),
        redelivered: false,
        delivery_count: None,
        headers: BTreeMap::new(),
        stream_offset: None,
        body: envelope.to_bytes(),
    }
}

#[async_trait]
impl Bus for TestBus {
    async fn publish(&self, message: OutgoingMessage) -> Result<(), PublishError> {
        match &message.destination {
            Destination::Queue(queue) => {
                let incoming = IncomingMessage {
                    message_id: Some(message.message_id.clone()),
                    type_name: Some(message.type_name.clone()),
                    correlation_id: message.correlation_id.clone(),
                    reply_to: message.reply_to.clone(),
                    exchange: String::new(),
                    routing_key: queue.clone(),
                    redelivered: false,
                    delivery_count: None,
                    headers: message.headers.clone(),
                    stream_offset: None,
                    body: message.body.clone(),
                };
                self.put(queue, incoming);
            }
            Destination::Events { .. } => {
                let event = Envelope::from_bytes(&message.body, Limits::REPLY_BYTES).unwrap();
                self.queues.lock().unwrap().events.push(event);
            }
            Destination::Commands { .. } => panic!("a service sends no commands"),
        }
        Ok(())
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Deliveries, BusError> {
        let (sender, receiver) = mpsc::channel(usize::from(prefetch));
        let (bus, queue) = (self.clone(), queue.to_owned());
        // The task ends with its receiver.
        #[expect(clippy::disallowed_methods, reason = "it ends with its receiver")]
        tokio::spawn(async move {
            loop {
                let arrived = bus.arrived.notified();
                if sender.is_closed() {
                    return;
                }
                let Some(message) = bus.pop(&queue) else {
                    tokio::select! {
                        () = arrived => {}
                        () = tokio::time::sleep(Duration::from_millis(20)) => {}
                    }
                    continue;
                };
                let settle = TestSettle {
                    bus: bus.clone(),
                    queue: queue.clone(),
                    message: message.clone(),
                };
                let delivery = Delivery::new(message.clone(), Box::new(settle));
                if sender.send(delivery).await.is_err() {
                    bus.put(&queue, message);
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn private_queue(&self, _event_keys: &[&str]) -> Result<PrivateQueue, BusError> {
        Err(BusError::Closed)
    }
    async fn read_events(&self, _from: StreamFrom) -> Result<Deliveries, BusError> {
        Err(BusError::Closed)
    }
    async fn take(&self, _queue: &str) -> Result<Option<Delivery>, BusError> {
        Err(BusError::Closed)
    }
    async fn depth(&self, queue: &str) -> Result<u64, BusError> {
        let queues = self.queues.lock().unwrap();
        Ok(queues.waiting.get(queue).map_or(0, |q| q.len() as u64))
    }
    fn health(&self) -> BusHealth {
        BusHealth {
            connected: true,
            ..BusHealth::default()
        }
    }
    async fn close(&self) {}
}

/// What is on the target, and which requests are to fail.
#[derive(Debug, Default)]
pub struct Target {
    pub mounted: bool,
    pub cache: bool,
    pub running: bool,
    pub requests: Vec<&'static str>,
    /// Requests by name that fail with this problem, as often as said.
    pub fail: BTreeMap<&'static str, (ErrorCode, u32)>,
    /// Requests by name that are not answered until they are taken out.
    pub hang: Vec<&'static str>,
    pub leftovers: Vec<FoundSession>,
}

#[derive(Debug, Clone, Default)]
pub struct ScriptedHands(pub Arc<Mutex<Target>>);

fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello { .. } => "hello",
        Request::HostFacts { .. } => "host_facts",
        Request::CheckOsUser { .. } => "check_os_user",
        Request::ListPostgresql { .. } => "list",
        Request::FindPostgresql { .. } => "find",
        Request::CheckPort { .. } => "check_port",
        Request::Prepare { .. } => "prepare",
        Request::StartInstance { .. } => "start",
        Request::InstanceStatus { .. } => "status",
        Request::StopInstance { .. } => "stop",
        Request::MountStatus { .. } => "mount_status",
        Request::ListSessions { .. } => "list_sessions",
        _ => "other",
    }
}

fn installation() -> PostgresqlInstallation {
    PostgresqlInstallation {
        major: 15,
        version: "15.18".to_owned(),
        program_directory: PathBuf::from("/usr/lib/postgresql/15/bin"),
        library_directory: None,
    }
}

const SPACE: VolumeFacts = VolumeFacts {
    total_bytes: 100 << 30,
    free_bytes: 90 << 30,
};

#[async_trait]
impl Hand for ScriptedHands {
    async fn request(&self, request: Request, _timeout: Duration) -> Result<Response, Problem> {
        let name = name(&request);
        loop {
            if !self.0.lock().unwrap().hang.contains(&name) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut target = self.0.lock().unwrap();
        target.requests.push(name);
        if let Some((code, left)) = target.fail.get_mut(name)
            && *left > 0
        {
            *left -= 1;
            return Err(Problem::new(
                *code,
                format!("{name} was told to fail"),
                "none",
            ));
        }
        Ok(match request {
            Request::Hello { protocol } => Response::Hello {
                protocol,
                version: "test".to_owned(),
            },
            Request::HostFacts { paths } => Response::HostFacts(HostFacts {
                host_name: "h".to_owned(),
                kernel: "6.12".to_owned(),
                fuse: Ok(()),
                passthrough: Ok(()),
                memory_available_bytes: 1 << 30,
                memory_total_bytes: 2 << 30,
                volumes: paths.into_iter().map(|path| (path, SPACE)).collect(),
            }),
            Request::ListPostgresql { .. } => Response::PostgresqlList(vec![installation()]),
            Request::FindPostgresql { .. } => Response::Postgresql(installation()),
            Request::Prepare { .. } => Response::Prepared(Prepared {
                missing_libraries: vec![],
                remarks: vec!["archive_mode is off".to_owned()],
            }),
            Request::CheckPort { port, .. } if target.running => {
                return Err(Problem::new(
                    ErrorCode::PortInUse,
                    format!("{port} is in use"),
                    "none",
                ));
            }
            Request::StartInstance { .. } => {
                assert!(target.mounted, "started without a mount");
                target.running = true;
                Response::Done
            }
            Request::InstanceStatus { .. } => Response::Instance(if target.running {
                InstanceStatus::Ready {
                    version: "15.18".to_owned(),
                    timeline: 2,
                    reached_lsn: "0/3000100".to_owned(),
                    reached_at: None,
                }
            } else {
                InstanceStatus::Stopped {
                    last_log_lines: vec!["it ended".to_owned()],
                }
            }),
            Request::StopInstance { .. } => {
                target.running = false;
                Response::Done
            }
            Request::MountStatus { .. } => {
                Response::MountStatus(target.mounted.then(|| MountStatus {
                    supervisor_pid: 1,
                    worker_ready: true,
                    worker_starts: 1,
                    passthrough: Ok(()),
                    base_attached: true,
                    base_waiting_s: None,
                    cache_bytes: 0,
                    cache_volume: SPACE,
                    counters: BTreeMap::new(),
                    statistics: Default::default(),
                }))
            }
            Request::ListSessions { .. } => Response::Sessions(target.leftovers.clone()),
            _ => Response::Done,
        })
    }
}

#[async_trait]
impl Hands for ScriptedHands {
    async fn open(
        &self,
        _name: &TargetName,
        _target: &TargetConfig,
    ) -> Result<Arc<dyn Hand>, Problem> {
        Ok(Arc::new(self.clone()))
    }
}

/// One service on a state directory, with its doubles; it can be ended and started again.
pub struct Stage {
    pub directory: tempfile::TempDir,
    pub bus: TestBus,
    pub hands: ScriptedHands,
    pub env: Env,
    pub automatic_max: u32,
    /// Interval of retries in seconds, if it is not the queue's.
    pub every_s: Option<u32>,
    /// How long mount-svc may say nothing, in seconds.
    pub mount_answer_s: u64,
    mount_service: CancellationToken,
    pub stop: CancellationToken,
    pub running: Option<Running>,
}

pub const QUEUE: &str = "recovery.test";
pub const MOUNT_QUEUE: &str = "mount.test";
pub const RETRY_QUEUE: &str = "recovery.test.retry";

impl Stage {
    pub async fn new(automatic_max: u32) -> Self {
        Self::with_retries(automatic_max, None).await
    }

    pub async fn with_retries(automatic_max: u32, every_s: Option<u32>) -> Self {
        Self::with(automatic_max, every_s, 20).await
    }

    pub async fn with_mount_answer(mount_answer_s: u64) -> Self {
        Self::with(0, None, mount_answer_s).await
    }

    async fn with(automatic_max: u32, every_s: Option<u32>, mount_answer_s: u64) -> Self {
        let mut stage = Self {
            directory: tempfile::tempdir().unwrap(),
            bus: TestBus::default(),
            hands: ScriptedHands::default(),
            env: Env::system(),
            automatic_max,
            every_s,
            mount_answer_s,
            mount_service: CancellationToken::new(),
            stop: CancellationToken::new(),
            running: None,
        };
        stage.run_mount_service();
        stage.start().await;
        stage
    }

    pub fn target(&self) -> std::sync::MutexGuard<'_, Target> {
        self.hands.0.lock().unwrap()
    }

    fn config(&self) -> Config {
        let text = format!(
            r#"{{"server":"test","state_directory":{:?},"http_listen":"127.0.0.1:0",
                "broker":{{"user":"u","password_file":"/p"}},
                "targets":{{"local":{{"agent_program":"/a","default_port":5999}}}},
                "retry":{{"publish":{{"automatic_max":{},"every_s":{}}}}},
                "limits":{{"watch_every_ms":30,"recovery_poll_every_ms":10,"retry_queue_ms":5000,"retry_jitter_ms":1,"mount_answer_s":{}}}}}"#,
            self.directory.path(),
            self.automatic_max,
            self.every_s.map_or("null".to_owned(), |s| s.to_string()),
            self.mount_answer_s,
        );
        serde_json::from_str(&text).unwrap()
    }

    pub async fn start(&mut self) {
        self.stop = CancellationToken::new();
        let parts = Parts {
            bus: Arc::new(self.bus.clone()),
            hands: Arc::new(self.hands.clone()),
            env: self.env.clone(),
        };
        let config = self.config();
        config.validate().unwrap();
        self.running = Some(
            recovery_svc::start(config, parts, self.stop.clone())
                .await
                .unwrap(),
        );
    }

    pub async fn end(&mut self) {
        self.target().hang.clear();
        if let Some(running) = self.running.take() {
            running.end().await;
        }
    }

    /// A mount service that makes and releases at once, and says everything twice.
    fn run_mount_service(&self) {
        let (bus, hands, stop) = (
            self.bus.clone(),
            self.hands.clone(),
            self.mount_service.clone(),
        );
        let env = self.env.clone();
        #[expect(clippy::disallowed_methods, reason = "it ends with the stage's token")]
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                let hangs = hands.0.lock().unwrap().hang.contains(&"mount");
                let message = if hangs { None } else { bus.pop(MOUNT_QUEUE) };
                let Some(message) = message else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let envelope: Envelope<Internal> =
                    Envelope::from_bytes(&message.body, Limits::COMMAND_BYTES).unwrap();
                let answer = answer(&mut hands.0.lock().unwrap(), envelope.payload);
                for _ in 0..2 {
                    bus.send(QUEUE, env.event_id(), answer.clone());
                }
            }
        });
    }

    pub fn publish(&self) -> SessionId {
        let id = self.env.command_id();
        self.command(
            id,
            Publish {
                repository: RepositoryName::new("r").unwrap(),
                backup: None,
                target: TargetName::new("local").unwrap(),
                port: None,
                hydrate: None,
                recovery_target: RecoveryTarget::Latest,
                reason: None,
            },
        );
        SessionId::from(id)
    }

    /// Sends a command twice.
    pub fn command(&self, id: CommandId, command: impl Into<Command>) {
        let command = command.into();
        let id = EventId::new(id.uuid()).unwrap();
        self.bus.send(QUEUE, id, command.clone());
        self.bus.send(QUEUE, id, command);
    }

    pub fn new_command(&self, command: impl Into<Command>) {
        self.command(self.env.command_id(), command);
    }

    pub fn status(&self, session_id: SessionId) -> Option<SessionStatus> {
        let key = Some(session_id.to_string());
        self.bus
            .events()
            .iter()
            .rfind(|event| event.subject == key)
            .and_then(|event| event.payload.head.status)
    }

    pub fn phases(&self, session_id: SessionId) -> Vec<&'static str> {
        let key = Some(session_id.to_string());
        self.bus
            .events()
            .iter()
            .filter(|event| event.subject == key)
            .map(|event| event.payload.body.phase())
            .collect()
    }

    pub async fn until_status(&self, session_id: SessionId, wanted: SessionStatus) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while self.status(session_id) != Some(wanted) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{wanted:?} is missing: {:?} {:?} requests {:?}",
                self.status(session_id),
                self.phases(session_id),
                self.target()
                    .requests
                    .iter()
                    .rev()
                    .take(10)
                    .collect::<Vec<_>>(),
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !condition(self) {
            assert!(tokio::time::Instant::now() < deadline, "missing: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every session's events are numbered from 1 without gaps, and nothing follows the end.
    pub fn check_sequences(&self) {
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for event in self.bus.events() {
            let (Some(subject), Some(sequence)) = (event.subject, event.sequence) else {
                continue;
            };
            let before = last.insert(subject.clone(), sequence).unwrap_or(0);
            // A relay that was ended between publishing and noting it publishes again.
            assert!(
                sequence == before + 1 || sequence <= before,
                "{subject}: {sequence} follows {before}"
            );
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.mount_service.cancel();
        self.stop.cancel();
    }
}

fn answer(target: &mut Target, message: Internal) -> Internal {
    match message {
        Internal::MountRequest(request) => {
            if let Some((code, left)) = target.fail.get_mut("mount")
                && *left > 0
            {
                *left -= 1;
                return MountFailed {
                    session_id: request.session_id,
                    epoch: request.epoch,
                    problem: Problem::new(*code, "mount was told to fail", "none"),
                }
                .into();
            }
            target.mounted = true;
            target.cache = true;
            let mount_point = PathBuf::from(format!("/tmp/pginstant/{}", request.session_id));
            MountReady {
                session_id: request.session_id,
                epoch: request.epoch,
                backup: BackupLabel::new("20260101").unwrap(),
                data_directory: mount_point.join("data"),
                mount_point,
                postgresql_major: 15,
                end_lsn: Some("0/3000100".to_owned()),
                wal: None,
                size_bytes: 1 << 20,
                tablespaces: Default::default(),
                passthrough: true,
                passthrough_reason: None,
            }
            .into()
        }
        Internal::MountRelease(release) => {
            assert!(!target.running, "released under a running instance");
            target.mounted = false;
            target.cache = false;
            MountReleased {
                session_id: release.session_id,
                epoch: release.epoch,
                problem: None,
            }
            .into()
        }
        other => panic!("not for mount-svc: {other:?}"),
    }
}
