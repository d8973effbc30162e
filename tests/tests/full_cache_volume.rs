//! A small disk of the write cache that fills up under load: whoever writes is told or PostgreSQL starts anew, nothing that was
//! acknowledged is lost, and all goes on when there is room again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus, Unpublish};
use tests::account::Account;
use tests::history::{self, History};
use tests::shop::{ACCOUNTS, Shop, balances_agree, is_sound, pgbench};
use tests::system::{FAST, SystemOptions, TestSystem};
use tests::volume::Volume;
use tests::wait;

const VOLUME_BYTES: u64 = 512 << 20;
/// What the filler leaves to the session: enough to be published and to work for a while.
const ROOM_BYTES: u64 = 260 << 20;
const LOAD_BYTES: usize = 40_000;
const LIMIT: Duration = Duration::from_secs(120);

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// What the instance's log says of a full volume.
fn complaints(system: &TestSystem, id: &str) -> usize {
    let logs = system.cache_root().join(id).join("log");
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    files
        .filter_map(|file| std::fs::read_to_string(file.path()).ok())
        .map(|text| text.matches("No space left on device").count())
        .sum()
}

/// The session as it is once there is room: published still, or again after a retry.
async fn published_again(system: &TestSystem, id: &str) -> Result<SessionDetail> {
    let answers = async || {
        let detail = system.session(id).await?.context("known")?;
        match detail.summary.status {
            SessionStatus::WaitingForManualRetry => {
                say("PostgreSQL ended; the session is tried again");
                let output = system.explorer(&["retry", id]).await?;
                ensure!(output.status.success(), "{output:?}");
                Ok(None)
            }
            // After a crash of its own PostgreSQL may be recovering still.
            _ => Ok(system
                .sql(&detail, "shop", "SELECT 1")
                .await
                .is_ok()
                .then_some(detail)),
        }
    };
    wait::find("the instance answers again", LIMIT, answers).await
}

#[tokio::test]
async fn a_cache_volume_filled_by_the_load_loses_nothing_and_goes_on_when_there_is_room()
-> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let options = SystemOptions {
        target_lines: "settings = { max_wal_size = \"64MB\", min_wal_size = \"32MB\" }".to_owned(),
        recovery_lines: FAST.to_owned(),
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(shop.path(), options).await?;
    let volume = Volume::mount(
        &system.path("volume.img"),
        &system.cache_root(),
        VOLUME_BYTES,
    )?;
    let filler = volume.fill_to(ROOM_BYTES)?;
    let history = History::open(&system).await?;
    let port = tests::system::free_port()?;
    let command = history::publish("monday", Some(port))?;
    let id = history.send(command).await?.to_string();
    let detail = system.reaches(&id, SessionStatus::Published).await?;

    let mut account = Account::open(&system, &detail, "shop").await?;
    let mut load = pgbench(&detail, "120")?.spawn()?;
    let mut work = account.work(&detail, LOAD_BYTES).await?;
    let filled = wait::until("the volume is full", LIMIT, async || {
        complaints(&system, &id) > 0 || !work.goes_on()
    })
    .await;
    load.kill().ok();
    load.wait()?;
    filled?;
    work.end().await?;
    say(&format!(
        "{} rows acknowledged, {} complaints, {} bytes free",
        account.count(),
        complaints(&system, &id),
        volume.free_bytes()?
    ));
    ensure!(complaints(&system, &id) > 0, "the volume was not full");
    ensure!(account.count() > 100, "{} rows only", account.count());

    std::fs::remove_file(filler)?;
    let detail = published_again(&system, &id).await?;
    account.is_kept(&system, &detail).await?;
    balances_agree(&system, &detail).await?;
    let status = pgbench(&detail, "2")?.status()?;
    ensure!(status.success(), "pgbench fails although there is room");
    balances_agree(&system, &detail).await?;
    let rows = "SELECT count(*) FROM pgbench_accounts";
    let rows = system.sql(&detail, "shop", rows).await?;
    ensure!(rows == ACCOUNTS, "{rows} rows of the backup");
    is_sound(&system, &detail).await?;
    history
        .send(Unpublish {
            session_id: id.parse()?,
        })
        .await?;
    history.until(&id, "completed").await?;
    system.nothing_is_left_of(&id)
}
