//! Files of a published instance that were opened before they were wholly in the write cache: recovery-svc has PostgreSQL open
//! them anew, and the kernel serves them then, while a session that holds them goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{CacheStatistics, SessionDetail, SessionStatus};
use tests::account::Account;
use tests::history::History;
use tests::shop::{ACCOUNTS, Shop};
use tests::system::{FAST, SystemOptions, TestSystem};
use tests::wait;
use tokio_postgres::{Client, NoTls};

/// Slow enough that the session opens its files before they are complete.
const TARGET: &str = "hydrate = \"all\"\nhydrate_mib_per_s = 4\n";
const NEVER: &str = "reopen_every_s = 0\n";
const OFTEN: &str = "reopen_every_s = 1\n";
const LIMIT: Duration = Duration::from_secs(90);
const LOAD_BYTES: usize = 200;
/// What recovery-svc says when it has done so.
const SAYS: &str = "PostgreSQL opens its files anew";

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Files with content below the directory.
fn count_files(directory: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        count += match entry.file_type()?.is_dir() {
            true => count_files(&entry.path())?,
            false => u64::from(entry.metadata()?.len() > 0),
        };
    }
    Ok(count)
}

async fn statistics_when(
    system: &TestSystem,
    id: &str,
    (what, holds): (&str, impl Fn(&CacheStatistics) -> bool),
) -> Result<CacheStatistics> {
    let mut last = None;
    let found = wait::find(what, LIMIT, async || {
        // There are none until the service has looked.
        last = system.session(id).await?.context("it is known")?.cache;
        Ok(last.clone().filter(|seen| holds(seen)))
    })
    .await;
    found.with_context(|| format!("{last:?}\n{}", system.log("recovery-svc")))
}

/// A session in the middle of reading a table.
async fn open_session(detail: &SessionDetail) -> Result<(Client, tokio::task::JoinSet<()>)> {
    let published = detail.published.as_ref().context("not published")?;
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(&published.socket_directory)
        .port(published.port)
        .user("postgres")
        .dbname("shop")
        .connect(NoTls)
        .await?;
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move {
        // It ends with the session, which says all there is.
        connection.await.ok();
    });
    client
        .batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT aid FROM pgbench_accounts; MOVE 10 IN c")
        .await?;
    Ok((client, driver))
}

#[tokio::test]
async fn recovery_svc_has_open_files_served_by_the_kernel_once_all_is_copied_and_no_session_notices()
-> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let options = SystemOptions {
        target_lines: format!("{TARGET}{NEVER}"),
        recovery_lines: FAST.to_owned(),
        ..SystemOptions::default()
    };
    let mut system = TestSystem::start_with(shop.path(), options).await?;
    let (id, detail) = system.publish(&["--backup", "monday"]).await?;
    let (client, _driver) = open_session(&detail).await?;
    let mut account = Account::open(&system, &detail, "shop").await?;
    let mut work = account.work(&detail, LOAD_BYTES).await?;

    // What is left out: empty files, and the few of the original's host that preparing removes.
    let wanted = count_files(&shop.path().join("monday"))? * 9 / 10;
    let what = "everything is copied";
    let is_copied =
        |seen: &CacheStatistics| seen.files_partial == 0 && seen.files_complete > wanted;
    let copied = statistics_when(&system, &id, (what, is_copied)).await?;
    ensure!(copied.open_upgradable > 0, "nothing to gain: {copied:?}");
    ensure!(!system.log("recovery-svc").contains(SAYS), "{NEVER}");

    // As one that was killed in the middle leaves it.
    let left = format!("pginstant_reopen_{}", id.replace('-', ""));
    let sql = format!("CREATE DATABASE {left} TEMPLATE template0");
    system.sql(&detail, "shop", &sql).await?;
    let what = "the worker serves what the kernel could";
    let before = statistics_when(&system, &id, (what, |seen| seen.open_upgradable > 0)).await?;
    system.recovery_svc.stop().await?;
    let file = system.path("recovery-svc.toml");
    let configuration = std::fs::read_to_string(&file)?;
    ensure!(configuration.contains(NEVER), "{configuration}");
    std::fs::write(&file, configuration.replace(NEVER, OFTEN))?;
    system.recovery_svc.start_again()?;
    system.ready().await?;
    let what = "everybody has closed what the worker served";
    let closed = statistics_when(&system, &id, (what, |seen| seen.open_upgradable == 0)).await?;
    ensure!(system.log("recovery-svc").contains(SAYS), "nobody did it");

    // The session was in a transaction all the time; it reads on, and now by the kernel.
    let rest = client.query("FETCH ALL IN c", &[]).await?;
    ensure!((rest.len() + 10).to_string() == ACCOUNTS, "{}", rest.len());
    let what = "the kernel serves what the session reads";
    let is_served = |seen: &CacheStatistics| {
        seen.open_upgradable == 0 && seen.open_passthrough > closed.open_passthrough
    };
    let after = statistics_when(&system, &id, (what, is_served)).await?;
    for (when, seen) in [("before", before), ("closed", closed), ("after", after)] {
        say(&format!(
            "open files, {when}: {} by the kernel, {} by the worker, {} of them for nothing",
            seen.open_passthrough, seen.open_cached, seen.open_upgradable
        ));
    }
    client.batch_execute("COMMIT").await?;
    let sum = "UPDATE pgbench_accounts SET abalance = 1 WHERE aid % 100 = 0";
    ensure!(client.execute(sum, &[]).await? == 2000);
    ensure!(work.goes_on(), "a client was thrown out");
    work.end().await?;
    account.is_kept(&system, &detail).await?;
    let databases = "SELECT count(*) FROM pg_database WHERE datname LIKE 'pginstant%'";
    let none_is_left = async || {
        let count = system.sql(&detail, "shop", databases).await;
        count.is_ok_and(|count| count == "0")
    };
    wait::until("the throw-away database is gone", LIMIT, none_is_left).await?;
    let history = History::open(&system).await?;
    for word in ["waiting", "retrying"] {
        ensure!(history.count(&id, word) == 0, "{:?}", history.words());
    }
    let unpublished = system.explorer(&["unpublish", &id]).await?;
    ensure!(unpublished.status.success(), "{unpublished:?}");
    system.reaches(&id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(&id)
}
