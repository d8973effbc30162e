//! Clients that commit one transaction after the other and note, with each acknowledgement, how far the disk's log was.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio_postgres::NoTls;

use crate::loop_disk::Position;

/// What the clients need, to be made before the backup.
pub(crate) const TABLES: &str = "CREATE TABLE commits (client int, number bigint, PRIMARY KEY (client, number)); \
     CREATE TABLE totals (client int PRIMARY KEY, total bigint); \
     INSERT INTO totals SELECT client, 0 FROM generate_series(0, 9) client";

/// Clients that only insert; one more makes and drops tables.
const INSERTERS: i32 = 2;
const MAKER: i32 = 9;
/// How many tables there are at a time, and the rows of each.
const MADE: i64 = 4;
const MADE_ROWS: &str = "300";

#[derive(Debug, Clone, Copy)]
struct Commit {
    client: i32,
    number: i64,
    // The log's length when the acknowledgement had come: any cut from there on must leave it.
    position: usize,
}

/// The clients at work.
pub(crate) struct Commits {
    acknowledged: Arc<Mutex<Vec<Commit>>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

/// All that was acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledged(Vec<Commit>);

fn transaction(client: i32, number: i64) -> String {
    let mut work = String::new();
    if client == MAKER {
        work = format!(
            "CREATE TABLE made_{number} AS SELECT g AS number, md5(g::text) AS text FROM generate_series(1, {MADE_ROWS}) g; \
             CREATE INDEX ON made_{number} (number); DROP TABLE IF EXISTS made_{};",
            (number - MADE).max(0)
        );
    }
    format!(
        "BEGIN; {work} INSERT INTO commits VALUES ({client}, {number}); \
         UPDATE totals SET total = total + {number} WHERE client = {client}; COMMIT"
    )
}

impl Commits {
    /// Sets the clients to work, after what they did before.
    pub(crate) fn begin(
        (socket_directory, port): (&Path, u16),
        position: &Position,
        before: Acknowledged,
    ) -> Self {
        let last = |client| {
            before
                .0
                .iter()
                .filter(move |commit| commit.client == client)
        };
        let last = |client| last(client).map(|commit| commit.number).max().unwrap_or(0);
        let lasts: Vec<(i32, i64)> = (0..INSERTERS)
            .chain([MAKER])
            .map(|client| (client, last(client)))
            .collect();
        let acknowledged = Arc::new(Mutex::new(before.0));
        let stop = Arc::new(AtomicBool::new(false));
        let clients = lasts.into_iter().map(|(client, last)| {
            let mut config = tokio_postgres::Config::new();
            config
                .host_path(socket_directory)
                .port(port)
                .user("postgres")
                .dbname("postgres");
            let (position, stop) = (position.clone(), stop.clone());
            let acknowledged = acknowledged.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let (connected, connection) = config.connect(NoTls).await.unwrap();
                    let mut driver = tokio::task::JoinSet::new();
                    driver.spawn(connection);
                    let mut number = last;
                    while !stop.load(Ordering::Relaxed) {
                        number += 1;
                        let sql = transaction(client, number);
                        connected.batch_execute(&sql).await.unwrap();
                        let commit = Commit {
                            client,
                            number,
                            position: position.now(),
                        };
                        acknowledged.lock().unwrap().push(commit);
                    }
                    drop(connected);
                    driver.join_next().await.unwrap().unwrap().unwrap();
                });
            })
        });
        Self {
            clients: clients.collect(),
            acknowledged,
            stop,
        }
    }

    pub(crate) fn end(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
        Acknowledged(std::mem::take(&mut *self.acknowledged.lock().unwrap()))
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Acknowledged {
    pub(crate) fn count(&self, cut: usize) -> usize {
        self.before(cut).count()
    }

    fn before(&self, cut: usize) -> impl Iterator<Item = &Commit> {
        self.0.iter().filter(move |commit| commit.position <= cut)
    }

    /// Says what is missing after a cut before this entry of the log.
    pub(crate) fn check(&self, cut: usize, ask: impl Fn(&str) -> String) -> Result<(), String> {
        let mut found = BTreeSet::new();
        for line in ask("SELECT client, number FROM commits").lines() {
            let (client, number) = line.split_once('|').unwrap();
            let key = (client.parse().unwrap(), number.parse().unwrap());
            if !found.insert(key) {
                return Err(format!("{line} is there twice"));
            }
        }
        let keys = self
            .before(cut)
            .map(|commit| (commit.client, commit.number));
        let lost: Vec<(i32, i64)> = keys.filter(|key| !found.contains(key)).take(5).collect();
        if !lost.is_empty() {
            let count = self.count(cut);
            return Err(format!(
                "acknowledged and not there, of {count}: {lost:?} …"
            ));
        }
        let wrong = ask("SELECT count(*) FROM totals t WHERE total <> \
             (SELECT coalesce(sum(number), 0) FROM commits c WHERE c.client = t.client)");
        if wrong != "0" {
            return Err(format!("{wrong} totals do not fit the commits"));
        }
        let made = self.before(cut).filter(|commit| commit.client == MAKER);
        let Some(last) = made.map(|commit| commit.number).max() else {
            return Ok(());
        };
        let rows = ask(&format!(
            "SELECT count(*) FROM made_{last} WHERE number > 0"
        ));
        match rows == MADE_ROWS {
            true => Ok(()),
            false => Err(format!("{rows} rows in the table of commit {last}")),
        }
    }
}
