//! Clients that never stop working: they reconnect whatever happens, and keep account of every commit that was acknowledged.
//!
//! Each transaction writes one line into `ledger` under a number that is never used again, and adds its amount to `totals`. A commit
//! whose answer was lost counts as unknown: it may be there, once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// What the clients need, to be made in the database before its backup.
pub const TABLES: &str = "CREATE TABLE ledger (client int, number bigint, amount int); \
    CREATE TABLE totals (client int PRIMARY KEY, total bigint); \
    INSERT INTO totals SELECT client, 0 FROM generate_series(0, 15) client";

const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// A connection that says nothing for so long is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: BTreeSet<(i32, i64)>,
    unknown: BTreeSet<(i32, i64)>,
    last_at: Option<Instant>,
    longest_pause: Duration,
}

/// The clients; they end when it is dropped.
#[derive(Debug)]
pub struct Ledger {
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    connection: String,
}

/// What the account says at the end.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Commits that were acknowledged; every one of them is there.
    pub acknowledged: usize,
    /// Commits whose answer was lost.
    pub unknown: usize,
    /// Of these, how many are there.
    pub unknown_there: usize,
    /// The longest time without any acknowledged commit.
    pub longest_pause: Duration,
}

impl Ledger {
    /// Sets clients to work on a database, over TCP.
    pub fn open(port: u16, database: &str, clients: u8) -> Self {
        let connection = format!(
            "host=127.0.0.1 port={port} user=postgres dbname={database} connect_timeout=2 application_name=ledger"
        );
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for client in 0..i32::from(clients) {
            let stop = stop.clone();
            tasks.spawn(work(client, connection.clone(), Arc::clone(&seen), stop));
        }
        Self {
            seen,
            stop,
            tasks,
            connection,
        }
    }

    /// How many commits were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.lock().acknowledged.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the clients and compares the account with what the database holds; fails when a commit was lost or doubled.
    pub async fn close(mut self) -> Result<Report> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let (client, _driver) = connect(&self.connection)
            .await
            .context("connect to the database for the account")?;
        let rows = client
            .query(
                "SELECT client, number, count(*) FROM ledger GROUP BY 1, 2",
                &[],
            )
            .await?;
        let mut there = BTreeSet::new();
        for row in rows {
            let key: (i32, i64) = (row.get(0), row.get(1));
            let count: i64 = row.get(2);
            ensure!(count == 1, "commit {key:?} is there {count} times");
            there.insert(key);
        }
        let report = self.compare(&there)?;
        let wrong: i64 = client
            .query_one(
                "SELECT count(*) FROM totals t WHERE total <> \
                 (SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.client = t.client)",
                &[],
            )
            .await?
            .get(0);
        ensure!(wrong == 0, "{wrong} totals do not fit the ledger");
        Ok(report)
    }

    fn compare(&self, there: &BTreeSet<(i32, i64)>) -> Result<Report> {
        let seen = self.lock();
        let lost: Vec<_> = seen.acknowledged.difference(there).take(5).collect();
        ensure!(
            lost.is_empty(),
            "of {} acknowledged commits these are not there: {lost:?}",
            seen.acknowledged.len()
        );
        let known: BTreeSet<_> = seen.acknowledged.union(&seen.unknown).copied().collect();
        let strange: Vec<_> = there.difference(&known).take(5).collect();
        ensure!(strange.is_empty(), "nobody made these: {strange:?}");
        Ok(Report {
            acknowledged: seen.acknowledged.len(),
            unknown: seen.unknown.len(),
            unknown_there: seen.unknown.intersection(there).count(),
            longest_pause: seen.longest_pause,
        })
    }
}

/// A client, and the task that drives its connection.
async fn connect(connection: &str) -> Result<(Client, JoinSet<()>)> {
    let (client, driver) =
        tokio::time::timeout(ANSWER_LIMIT, tokio_postgres::connect(connection, NoTls)).await??;
    let mut drivers = JoinSet::new();
    drivers.spawn(async move {
        // It ends with the connection, about which the client says all there is.
        driver.await.ok();
    });
    Ok((client, drivers))
}

/// Ends between two transactions: one that is under way is waited for, so that its outcome is known.
async fn work(
    client_number: i32,
    connection: String,
    seen: Arc<Mutex<Seen>>,
    stop: CancellationToken,
) {
    let mut number = 0_i64;
    while !stop.is_cancelled() {
        let Ok((mut client, _driver)) = connect(&connection).await else {
            tokio::time::sleep(CONNECT_AGAIN).await;
            continue;
        };
        while !stop.is_cancelled() {
            number += 1;
            let key = (client_number, number);
            let done = tokio::time::timeout(ANSWER_LIMIT, transaction(&mut client, key)).await;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok(Ok(())) => {
                    seen.acknowledged.insert(key);
                    let now = Instant::now();
                    if let Some(last_at) = seen.last_at {
                        seen.longest_pause = seen.longest_pause.max(now - last_at);
                    }
                    seen.last_at = Some(now);
                }
                Ok(Err(_)) | Err(_) => {
                    seen.unknown.insert(key);
                    break;
                }
            }
        }
        // A server that refuses writes must not be asked thousands of times a second.
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

async fn transaction(
    client: &mut Client,
    (number_of_client, number): (i32, i64),
) -> Result<(), tokio_postgres::Error> {
    let amount = i32::try_from(number % 1_000).unwrap_or(0);
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "INSERT INTO ledger VALUES ($1, $2, $3)",
            &[&number_of_client, &number, &amount],
        )
        .await?;
    transaction
        .execute(
            "UPDATE totals SET total = total + $2::int WHERE client = $1",
            &[&number_of_client, &amount],
        )
        .await?;
    transaction.commit().await
}
