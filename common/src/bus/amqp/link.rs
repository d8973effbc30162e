//! One supervised connection: connected, checked, watched, thrown away whole at any fault and made anew.
//!
//! lapin's own recovery stays off: with it on, consumers and connections can die in silence; with it off every fault arrives
//! as an error, at once for a killed broker and after two heartbeats for a frozen one.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::AmqpOptions;
use super::health::{Health, Purpose};
use super::message::bus_error;
use crate::bus::BusError;
use crate::env::Env;
use crate::topology;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const WATCH_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 5_000;
/// The header with which a client of AMQP 0-9-1 opens.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

/// How long to wait before the attempt after `failures` failed ones: doubling, and anywhere in the upper half, so that the
/// clients of a broker that returns do not all knock at once.
pub(super) fn backoff(env: &Env, failures: u32) -> Duration {
    let whole = BACKOFF_FIRST_MS
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MAX_MS);
    Duration::from_millis(whole / 2 + env.random() % (whole / 2))
}

/// A connection that was up and checked when it was handed out.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: Arc<Connection>,
    pub(super) generation: u64,
}

/// The present connection, if there is one.
#[derive(Debug, Clone)]
pub(super) struct Link {
    live: watch::Receiver<Option<Live>>,
}

impl Link {
    /// The connection, if it is up now.
    pub(super) fn now(&self) -> Option<Live> {
        self.live.borrow().clone()
    }

    /// The connection as soon as there is one; `None` when there will be none again.
    pub(super) async fn ready(&mut self) -> Option<Live> {
        self.live
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|live| live.clone())
    }
}

/// The task that keeps a [`Link`] connected.
#[derive(Debug)]
pub(super) struct Supervisor {
    purpose: Purpose,
    options: AmqpOptions,
    env: Env,
    health: Arc<Health>,
    cancel: CancellationToken,
    live: watch::Sender<Option<Live>>,
}

impl Supervisor {
    pub(super) fn new(
        purpose: Purpose,
        options: AmqpOptions,
        env: Env,
        health: Arc<Health>,
        cancel: CancellationToken,
    ) -> (Self, Link) {
        let (sender, receiver) = watch::channel(None);
        let supervisor = Self {
            purpose,
            options,
            env,
            health,
            cancel,
            live: sender,
        };
        (supervisor, Link { live: receiver })
    }

    /// Runs until cancelled. `first` is what the first attempt to connect came to.
    pub(super) async fn run(self, first: Result<Connection, BusError>) {
        let mut attempt = Some(first);
        let mut failures = 0;
        let mut generation = 0;
        loop {
            let result = match attempt.take() {
                Some(result) => result,
                None => tokio::select! {
                    () = self.cancel.cancelled() => return,
                    result = self.reconnect() => result,
                },
            };
            match result {
                Ok(connection) => {
                    failures = 0;
                    generation += 1;
                    let lost = self.serve(connection, generation).await;
                    let Some(reason) = lost else {
                        self.health.connection_down(self.purpose, BusError::Closed);
                        return;
                    };
                    warn!(connection = self.purpose.as_str(), error = %reason, "lost the broker");
                    self.health.connection_down(self.purpose, reason);
                }
                Err(error) => {
                    // Once, not at every attempt: an outage is one thing to read about.
                    if failures == 0 {
                        warn!(connection = self.purpose.as_str(), %error, "cannot use the broker");
                    }
                    self.health.connection_down(self.purpose, error);
                    failures += 1;
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = sleep(backoff(&self.env, failures)) => {}
            }
        }
    }

    async fn reconnect(&self) -> Result<Connection, BusError> {
        // lapin keeps the thread and socket of a handshake that nobody waits for any more; a frozen broker would
        // collect one at each attempt. So look first, with a socket of our own, whether somebody answers.
        probe(&self.options).await?;
        connect(&self.options, self.purpose).await
    }

    /// Lends the connection out until it is lost (the reason) or the bus is closed (`None`).
    async fn serve(&self, connection: Connection, generation: u64) -> Option<BusError> {
        let mut events = Box::pin(connection.events_listener());
        let connection = Arc::new(connection);
        info!(
            connection = self.purpose.as_str(),
            generation, "connected to the broker"
        );
        self.health.connection_up(self.purpose, generation);
        self.live.send_replace(Some(Live {
            connection: Arc::clone(&connection),
            generation,
        }));
        let lost = loop {
            tokio::select! {
                () = self.cancel.cancelled() => break None,
                event = events.next() => match event {
                    Some(Event::Error(error)) => break Some(bus_error(error)),
                    Some(Event::ConnectionBlocked(reason)) => {
                        warn!(%reason, "the broker has blocked publishing");
                        self.health.blocked(true);
                    }
                    Some(Event::ConnectionUnblocked) => {
                        info!("the broker has unblocked publishing");
                        self.health.blocked(false);
                    }
                    Some(_) => {}
                    None => break Some(BusError::Unreachable("the connection ended".to_owned())),
                },
                () = sleep(WATCH_EVERY) => {}
            }
            if !connection.status().connected() {
                break Some(BusError::Unreachable(
                    "the connection was closed".to_owned(),
                ));
            }
        };
        self.live.send_replace(None);
        // A connection that is gone answers at once with an error, which says nothing new.
        match timeout(CLOSE_LIMIT, connection.close(200, "bye".into())).await {
            Ok(Ok(())) | Ok(Err(_)) | Err(_) => lost,
        }
    }
}

/// Whether somebody who speaks AMQP answers at the broker's address.
async fn probe(options: &AmqpOptions) -> Result<(), BusError> {
    let knock = async {
        let mut socket = TcpStream::connect((options.host.as_str(), options.port)).await?;
        socket.write_all(PROTOCOL_HEADER).await?;
        socket.read_u8().await
    };
    match timeout(CONNECT_LIMIT, knock).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(unreachable(options, &error.to_string())),
        Err(_) => Err(unreachable(options, "no answer within 5 s")),
    }
}

fn unreachable(options: &AmqpOptions, why: &str) -> BusError {
    BusError::Unreachable(format!("{}:{}: {why}", options.host, options.port))
}

/// Connects and checks the topology for the role, within 5 s.
pub(super) async fn connect(
    options: &AmqpOptions,
    purpose: Purpose,
) -> Result<Connection, BusError> {
    let work = async {
        let connection = log_in(options, purpose.as_str()).await?;
        topology::check(&connection, &options.topology, options.role).await?;
        Ok(connection)
    };
    timeout(CONNECT_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(unreachable(options, "no answer within 5 s")))
}

/// Connects and logs in, nothing else.
pub(super) async fn log_in(options: &AmqpOptions, purpose: &str) -> Result<Connection, BusError> {
    let uri = AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: options.user.clone(),
                password: options.password.expose().to_owned(),
            },
            host: options.host.clone(),
            port: options.port,
        },
        vhost: options.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(options.heartbeat_s),
            ..Default::default()
        },
    };
    let name = format!("{} {purpose}", options.connection_name);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    match Connection::connect_uri(uri, properties).await {
        Ok(connection) => Ok(connection),
        Err(error) => Err(match bus_error(error) {
            BusError::Unreachable(why) => unreachable(options, &why),
            BusError::Forbidden(why) => BusError::Forbidden(format!(
                "user {} on {}:{}{}: {why}",
                options.user, options.host, options.port, options.vhost
            )),
            other => other,
        }),
    }
}
