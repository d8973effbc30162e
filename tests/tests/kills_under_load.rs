//! What a client was told is committed is there, whoever of a session is killed under load.

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus, Unpublish};
use tests::account::Account;
use tests::history::{self, History};
use tests::postgres::Load;
use tests::shop::{ACCOUNTS, Shop, balances_agree, is_sound, pgbench};
use tests::system::TestSystem;
use tests::victims;

/// Who is killed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Postmaster,
    Server,
    Supervisor,
    SupervisorAndWorker,
    Everything,
}

const ORDER: [Victim; 5] = [
    Victim::Postmaster,
    Victim::Server,
    Victim::Supervisor,
    Victim::SupervisorAndWorker,
    Victim::Everything,
];
/// Enough rows for several pages and WAL of several checkpoints' worth of first changes.
const LOAD_BYTES: usize = 2_000;
const ROWS: usize = 300;

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

fn strike(system: &mut TestSystem, id: &str, detail: &SessionDetail, victim: Victim) -> Result<()> {
    let server = match victim {
        Victim::Postmaster => vec![victims::postmaster(detail)?],
        Victim::Server | Victim::Everything => victims::server(detail)?,
        Victim::Supervisor | Victim::SupervisorAndWorker => Vec::new(),
    };
    let words: &[&str] = match victim {
        Victim::Postmaster | Victim::Server => &[],
        Victim::Supervisor => &["supervise"],
        Victim::SupervisorAndWorker | Victim::Everything => &["supervise", "worker"],
    };
    let mut pids = server;
    for word in words {
        pids.push(victims::agent(id, word)?);
    }
    if victim == Victim::Everything {
        system.recovery_svc.kill();
        system.mount_svc.kill();
    }
    for pid in pids {
        // A child may have ended with its parent.
        victims::kill(pid).ok();
    }
    Ok(())
}

async fn one_round(
    system: &mut TestSystem,
    history: &History,
    account: &mut Account,
    (id, victim, round): (&str, Victim, usize),
) -> Result<()> {
    let detail = system.reaches(id, SessionStatus::Published).await?;
    let load = Load::start(&mut pgbench(&detail, "120")?)?;
    let work = account.work(&detail, LOAD_BYTES).await?;
    account.grows_by(ROWS).await?;
    strike(system, id, &detail, victim)?;
    work.end().await?;
    drop(load);
    if victim == Victim::Everything {
        system.recovery_svc.start_again()?;
        system.mount_svc.start_again()?;
        system.ready().await?;
    }
    history.until_count(id, "waiting", round).await?;
    let output = system.explorer(&["retry", id]).await?;
    ensure!(
        output.status.success(),
        "{output:?}\n{}",
        system.log("recovery-svc")
    );
    let detail = system.reaches(id, SessionStatus::Published).await?;
    account.is_kept(system, &detail).await?;
    balances_agree(system, &detail).await?;
    is_sound(system, &detail).await?;
    say(&format!(
        "kill -9 {victim:?} under load, then a retry: all {} acknowledged rows are there, balances agree, amcheck is content",
        account.count()
    ));
    Ok(())
}

#[tokio::test]
async fn every_acknowledged_row_is_there_after_a_retry_whoever_was_killed_under_load() -> Result<()>
{
    let shop = Shop::open(&["monday"])?;
    let mut system = TestSystem::start(shop.path()).await?;
    let history = History::open(&system).await?;
    let port = tests::system::free_port()?;
    let command = history::publish("monday", Some(port))?;
    let id = history.send(command).await?.to_string();
    let detail = system.reaches(&id, SessionStatus::Published).await?;
    let fsync = system.sql(&detail, "shop", "SHOW fsync").await?;
    ensure!(fsync == "on", "fsync is {fsync}: nothing would be promised");
    let mut account = Account::open(&system, &detail, "shop").await?;
    for (round, victim) in ORDER.into_iter().enumerate() {
        one_round(
            &mut system,
            &history,
            &mut account,
            (&id, victim, round + 1),
        )
        .await
        .with_context(|| format!("kill -9 {victim:?}"))?;
    }
    let detail = system.reaches(&id, SessionStatus::Published).await?;
    let rows = "SELECT count(*) FROM pgbench_accounts";
    let rows = system.sql(&detail, "shop", rows).await?;
    ensure!(rows == ACCOUNTS, "{rows} rows of the backup");
    history
        .send(Unpublish {
            session_id: id.parse()?,
        })
        .await?;
    history.until(&id, "completed").await?;
    system.nothing_is_left_of(&id)
}
