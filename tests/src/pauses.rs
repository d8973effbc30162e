//! How long clients of a server get no answer: one commits, one reads, both again and again, and connect anew whenever they must.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use crate::wait;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS pauses (at timestamptz)";
const AGAIN_AFTER: Duration = Duration::from_millis(10);
/// A connection that says nothing for so long is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Seen {
    last_at: Option<Instant>,
    longest: Duration,
}

impl Seen {
    fn answered(&mut self) {
        let now = Instant::now();
        if let Some(last_at) = self.last_at {
            self.longest = self.longest.max(now - last_at);
        }
        self.last_at = Some(now);
    }
}

type Watched = Arc<Mutex<Seen>>;

fn lock(seen: &Watched) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two clients; they end when it is dropped.
#[derive(Debug)]
pub struct Pauses {
    writes: Watched,
    reads: Watched,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Pauses {
    /// Begins, over TCP; returns when both have had an answer.
    pub async fn open(port: u16, database: &str) -> Result<Self> {
        let connection =
            format!("host=127.0.0.1 port={port} user=postgres dbname={database} connect_timeout=2");
        let (client, _driver) = connect(&connection)
            .await
            .context("connect to the server")?;
        client.batch_execute(TABLE).await?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut begin = |sql: &'static str| {
            let seen = Arc::new(Mutex::new(Seen {
                last_at: None,
                longest: Duration::ZERO,
            }));
            tasks.spawn(ask(
                connection.clone(),
                sql,
                Arc::clone(&seen),
                stop.clone(),
            ));
            seen
        };
        let writes = begin("INSERT INTO pauses VALUES (clock_timestamp())");
        let reads = begin("SELECT 1");
        let all = Self {
            writes,
            reads,
            stop,
            tasks,
        };
        all.answered_since(Instant::now()).await?;
        Ok(all)
    }

    /// Forgets the pauses so far.
    pub fn begin_anew(&self) {
        for seen in [&self.writes, &self.reads] {
            lock(seen).longest = Duration::ZERO;
        }
    }

    async fn answered_since(&self, since: Instant) -> Result<()> {
        wait::until(
            "both clients have an answer",
            FIRST_ANSWER_LIMIT,
            async || {
                [&self.writes, &self.reads]
                    .iter()
                    .all(|seen| lock(seen).last_at.is_some_and(|at| at > since))
            },
        )
        .await
    }

    /// Ends when both have had another answer; gives the longest pauses of writes and of reads.
    pub async fn close(mut self) -> Result<(Duration, Duration)> {
        self.answered_since(Instant::now()).await?;
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let longest = (lock(&self.writes).longest, lock(&self.reads).longest);
        Ok(longest)
    }
}

/// A client, and the task that drives its connection.
async fn connect(connection: &str) -> Result<(Client, JoinSet<()>)> {
    let connecting = tokio_postgres::connect(connection, NoTls);
    let (client, driver) = tokio::time::timeout(ANSWER_LIMIT, connecting).await??;
    let mut drivers = JoinSet::new();
    drivers.spawn(async move {
        // It ends with the connection, about which the client says all there is.
        driver.await.ok();
    });
    Ok((client, drivers))
}

async fn ask(connection: String, sql: &'static str, seen: Watched, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Ok((client, _driver)) = connect(&connection).await {
            while !stop.is_cancelled() {
                let answer = tokio::time::timeout(ANSWER_LIMIT, client.batch_execute(sql)).await;
                if !matches!(answer, Ok(Ok(()))) {
                    break;
                }
                lock(&seen).answered();
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}
