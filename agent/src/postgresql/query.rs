//! SQL over the session's private socket.

use std::path::Path;
use std::time::Duration;

use common::problem::{ErrorCode, Problem};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Most rows that a query brings back.
const ROWS_MAX: usize = 1_000;

/// Most bytes of text that a query brings back.
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// How long a connection may take, and a question about the state.
const ANSWER_FOR: Duration = Duration::from_secs(10);

/// How long a query may run.
pub const QUERY_FOR: Duration = Duration::from_secs(60);

/// Whom to ask.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Directory of the private socket.
    pub socket_directory: &'a Path,
    /// The port, part of the socket's name.
    pub port: u16,
    /// Role.
    pub user: &'a str,
}

/// What the server says of its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It takes no connections yet.
    NotYet,
    /// It answers reads and is still recovering.
    Recovering {
        /// Replayed so far.
        replayed_lsn: Option<String>,
    },
    /// It takes reads and writes.
    Ready {
        /// `server_version`.
        version: String,
        /// The timeline it writes.
        timeline: u32,
        /// The timeline's history file, if it has one.
        history: Option<String>,
    },
}

/// Asks the server how far it is.
pub async fn state(asked: &Asked<'_>) -> Result<Answer, Problem> {
    let connected = match connect(asked, "postgres").await {
        Err(ConnectFailure::Refused(error))
            if error.code() == Some(&SqlState::UNDEFINED_DATABASE) =>
        {
            connect(asked, "template1").await
        }
        other => other,
    };
    let session = match connected {
        Ok(session) => session,
        Err(ConnectFailure::NotYet) => return Ok(Answer::NotYet),
        Err(ConnectFailure::Refused(error)) => return Err(refused(&error)),
    };
    let state = async {
        let client = &session.client;
        let row = single(
            client,
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text END, \
             pg_is_in_recovery(), current_setting('server_version')",
        )
        .await?;
        let [replayed_lsn, recovering, version] = take(row)?;
        if recovering.as_deref() == Some("t") {
            return Ok(Answer::Recovering { replayed_lsn });
        }
        let row = single(
            client,
            "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
        )
        .await?;
        let [timeline] = take(row)?;
        let timeline = timeline.unwrap_or_default();
        // A role that is no superuser may not read files; then the log must tell.
        let history = single(
            client,
            &format!("SELECT pg_read_file('pg_wal/{timeline}.history', 0, 1000000, true)"),
        )
        .await
        .ok()
        .and_then(|row| row.into_iter().next().flatten());
        Ok(Answer::Ready {
            version: version.unwrap_or_default(),
            timeline: u32::from_str_radix(&timeline, 16).map_err(|_| unexpected(&timeline))?,
            history,
        })
    };
    let result = tokio::time::timeout(ANSWER_FOR, state).await;
    session.close().await;
    result.unwrap_or_else(|_| {
        Err(Problem::new(
            ErrorCode::TimedOut,
            "PostgreSQL takes connections but does not answer",
            "look at its log and at the mount's state",
        ))
    })
}

/// Runs one statement and brings back its rows as text.
pub async fn rows(
    asked: &Asked<'_>,
    database: &str,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>, Problem> {
    rows_within(asked, database, sql, QUERY_FOR).await
}

/// Runs one statement that may take this long.
pub async fn rows_within(
    asked: &Asked<'_>,
    database: &str,
    sql: &str,
    query_for: Duration,
) -> Result<Vec<Vec<Option<String>>>, Problem> {
    let session = match connect(asked, database).await {
        Ok(session) => session,
        Err(ConnectFailure::NotYet) => {
            return Err(Problem::new(
                ErrorCode::InstanceFailed,
                "PostgreSQL takes no connections",
                "wait until the instance is ready",
            ));
        }
        Err(ConnectFailure::Refused(error)) => return Err(refused(&error)),
    };
    let limit_ms = query_for.as_millis();
    let work = async {
        let client = &session.client;
        let limit = format!("SET statement_timeout = {limit_ms}");
        client
            .batch_execute(&limit)
            .await
            .map_err(|e| refused(&e))?;
        collect(client, sql).await
    };
    let result = tokio::time::timeout(query_for + ANSWER_FOR, work).await;
    session.close().await;
    result.unwrap_or_else(|_| {
        Err(Problem::new(
            ErrorCode::TimedOut,
            format!("the statement took longer than {} s", query_for.as_secs()),
            "ask for less",
        ))
    })
}

struct Session {
    client: Client,
    drivers: tokio::task::JoinSet<()>,
}

impl Session {
    /// Ends the connection and its driver.
    async fn close(mut self) {
        drop(self.client);
        let ended = tokio::time::timeout(Duration::from_secs(2), self.drivers.join_next()).await;
        if ended.is_err() {
            self.drivers.shutdown().await;
        }
    }
}

enum ConnectFailure {
    NotYet,
    Refused(tokio_postgres::Error),
}

async fn connect(asked: &Asked<'_>, database: &str) -> Result<Session, ConnectFailure> {
    let mut config = Config::new();
    config
        .host_path(asked.socket_directory)
        .port(asked.port)
        .user(asked.user)
        .dbname(database)
        .application_name("pginstant")
        .connect_timeout(ANSWER_FOR);
    let connecting = tokio::time::timeout(ANSWER_FOR, config.connect(NoTls));
    match connecting.await {
        // A backend that is slow to start behaves like one that is not there yet.
        Err(_) => Err(ConnectFailure::NotYet),
        Ok(Err(error)) => {
            let not_yet = error.code() == Some(&SqlState::CANNOT_CONNECT_NOW)
                || error.as_db_error().is_none();
            Err(if not_yet {
                ConnectFailure::NotYet
            } else {
                ConnectFailure::Refused(error)
            })
        }
        Ok(Ok((client, connection))) => {
            let mut drivers = tokio::task::JoinSet::new();
            drivers.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to PostgreSQL ended");
                }
            });
            Ok(Session { client, drivers })
        }
    }
}

async fn single(client: &Client, sql: &str) -> Result<Vec<Option<String>>, Problem> {
    let mut rows = collect(client, sql).await?;
    rows.pop().ok_or_else(|| unexpected("no row"))
}

async fn collect(client: &Client, sql: &str) -> Result<Vec<Vec<Option<String>>>, Problem> {
    let messages = client
        .simple_query_raw(sql)
        .await
        .map_err(|e| refused(&e))?;
    let mut messages = std::pin::pin!(messages);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(message) = futures::StreamExt::next(&mut messages).await {
        if let SimpleQueryMessage::Row(row) = message.map_err(|e| refused(&e))? {
            let row: Vec<Option<String>> = (0..row.len())
                .map(|column| row.try_get(column).ok().flatten().map(str::to_owned))
                .collect();
            bytes += row.iter().flatten().map(String::len).sum::<usize>();
            if rows.len() == ROWS_MAX || bytes > BYTES_MAX {
                break;
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

fn take<const N: usize>(row: Vec<Option<String>>) -> Result<[Option<String>; N], Problem> {
    row.try_into()
        .map_err(|_| unexpected("another number of columns"))
}

fn unexpected(what: &str) -> Problem {
    Problem::new(
        ErrorCode::Internal,
        format!("PostgreSQL answered unexpectedly: {what}"),
        "report this with the PostgreSQL version",
    )
}

fn refused(error: &tokio_postgres::Error) -> Problem {
    let message = match error.as_db_error() {
        Some(refusal) => format!("PostgreSQL refused: {}", refusal.message()),
        None => format!("the connection to PostgreSQL failed: {error}"),
    };
    let remedy = match error.code() {
        Some(&SqlState::UNDEFINED_OBJECT | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            "name an existing superuser of the original for this publish"
        }
        _ => "look at the instance's log",
    };
    Problem::new(ErrorCode::InstanceFailed, message, remedy)
}
