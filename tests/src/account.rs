//! Clients that insert rows one by one and keep account of those that the server acknowledged: what must be there whatever
//! befalls the server.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::SessionDetail;
use tokio::task::JoinSet;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Connection, NoTls, Socket};
use tokio_util::sync::CancellationToken;

use crate::system::TestSystem;
use crate::wait;

const CLIENTS: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

/// A row: who inserted it and its number.
type Row = (usize, u64);

/// The account of a session, over all its lives.
#[derive(Debug)]
pub struct Account {
    database: String,
    acknowledged: Arc<Mutex<BTreeSet<Row>>>,
    next: u64,
}

/// Clients at work; dropped, they end.
#[derive(Debug)]
pub struct Work {
    stop: CancellationToken,
    clients: JoinSet<()>,
}

impl Work {
    /// Whether a client is still at work: each ends with the server's connection.
    pub fn goes_on(&mut self) -> bool {
        while self.clients.try_join_next().is_some() {}
        !self.clients.is_empty()
    }

    /// Stops the clients and waits for them.
    pub async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        let all = async { while self.clients.join_next().await.is_some() {} };
        tokio::time::timeout(LIMIT, all)
            .await
            .context("a client hangs on the server")
    }
}

impl Account {
    /// Makes the table.
    pub async fn open(system: &TestSystem, detail: &SessionDetail, database: &str) -> Result<Self> {
        // Not compressed, so that a row takes the room that it says.
        let sql = "CREATE TABLE account (client int, number bigint, load text); \
             ALTER TABLE account ALTER load SET STORAGE EXTERNAL";
        system.sql(detail, database, sql).await?;
        Ok(Self {
            database: database.to_owned(),
            acknowledged: Arc::default(),
            next: 0,
        })
    }

    /// How many rows were acknowledged.
    pub fn count(&self) -> usize {
        self.rows().len()
    }

    fn rows(&self) -> std::sync::MutexGuard<'_, BTreeSet<Row>> {
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets clients insert rows of so many bytes, until their connection or the work ends. A refused row is not counted.
    pub async fn work(&mut self, detail: &SessionDetail, load_bytes: usize) -> Result<Work> {
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        // No number comes twice: a row that was not acknowledged may be there.
        self.next += 1 << 32;
        for number in 0..CLIENTS {
            let (client, connection) = connect(detail, &self.database).await?;
            let (account, stop, first) = (self.acknowledged.clone(), stop.clone(), self.next);
            clients.spawn(async move {
                // The server's end is the client's, also in the middle of an insert.
                tokio::select! {
                    _ = connection => {}
                    () = insert(&client, number, first, load_bytes, &account) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        Ok(Work { stop, clients })
    }

    /// Waits until so many rows more were acknowledged.
    pub async fn grows_by(&self, count: usize) -> Result<()> {
        let wanted = self.count() + count;
        let what = format!("{wanted} acknowledged rows");
        wait::until(&what, LIMIT, async || self.count() >= wanted).await
    }

    /// Fails unless every acknowledged row is there, once.
    pub async fn is_kept(&self, system: &TestSystem, detail: &SessionDetail) -> Result<()> {
        let sql = "SELECT client, number FROM account";
        let text = system.sql(detail, &self.database, sql).await?;
        let mut found = BTreeSet::new();
        for line in text.lines() {
            let (client, number) = line.split_once('|').context("two columns")?;
            let is_new = found.insert((client.parse::<usize>()?, number.parse::<u64>()?));
            ensure!(is_new, "the row {line} is there twice");
        }
        let lost: Vec<Row> = self.rows().difference(&found).copied().take(10).collect();
        ensure!(
            lost.is_empty(),
            "acknowledged and not there, of {} rows: {lost:?} …",
            self.count()
        );
        Ok(())
    }
}

async fn insert(
    client: &Client,
    number: usize,
    first: u64,
    load_bytes: usize,
    account: &Mutex<BTreeSet<Row>>,
) {
    for row in first.. {
        let sql = format!(
            "INSERT INTO account VALUES ({number}, {row}, repeat(md5('{number}.{row}'), {}))",
            load_bytes / 32
        );
        match client.batch_execute(&sql).await {
            Ok(()) => {
                let mut account = account.lock().unwrap_or_else(PoisonError::into_inner);
                account.insert((number, row));
            }
            Err(_) if client.is_closed() => return,
            // A refusal, as for want of room: it tries on, a little later.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connect(
    detail: &SessionDetail,
    database: &str,
) -> Result<(Client, Connection<Socket, NoTlsStream>)> {
    let published = detail.published.as_ref().context("not published")?;
    let connected = tokio_postgres::Config::new()
        .host_path(&published.socket_directory)
        .port(published.port)
        .user("postgres")
        .dbname(database)
        .connect(NoTls)
        .await?;
    Ok(connected)
}
