//! The services die at every step of a publish and of an unpublish, and nobody notices but by the wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus, Unpublish};
use tests::history::{self, History};
use tests::shop::{ACCOUNTS, Shop};
use tests::system::TestSystem;
use tests::wait;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Recovery,
    Mount,
    Both,
}

/// The words of events after which a publish is hit.
const PUBLISH_POINTS: [&str; 7] = [
    "accepted",
    "step_started validate",
    "step_started mount",
    "step_started prepare",
    "step_started start",
    "step_started recover",
    "published",
];

/// What an unpublish is doing when it is hit: words of recovery-svc's log, or nothing for its event.
const UNPUBLISH_POINTS: [Option<&str>; 3] = [
    None,
    Some(r#""what":"StopInstance""#),
    Some(r#""what":"ReleaseMount""#),
];

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

fn kill(system: &mut TestSystem, victim: Victim) {
    if victim != Victim::Mount {
        system.recovery_svc.kill();
    }
    if victim != Victim::Recovery {
        system.mount_svc.kill();
    }
}

async fn start_again(system: &mut TestSystem, victim: Victim) -> Result<()> {
    if victim != Victim::Mount {
        system.recovery_svc.start_again()?;
    }
    if victim != Victim::Recovery {
        system.mount_svc.start_again()?;
    }
    system.ready().await
}

/// Waits for a word in what recovery-svc logged after a position.
async fn logged(system: &TestSystem, from: usize, word: &str) -> Result<()> {
    let began = std::time::Instant::now();
    while !system
        .log("recovery-svc")
        .get(from..)
        .is_some_and(|log| log.contains(word))
    {
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "{word:?} is not logged"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn one_round(
    system: &mut TestSystem,
    history: &History,
    victim: Victim,
    (at, on_the_way_back): (&str, Option<&str>),
) -> Result<()> {
    let id = history
        .send(history::publish("monday", None)?)
        .await?
        .to_string();
    history.until(&id, at).await?;
    kill(system, victim);
    start_again(system, victim).await?;
    let detail = system.reaches(&id, SessionStatus::Published).await?;
    ensure!(
        detail.summary.attempt == 1,
        "attempt {}",
        detail.summary.attempt
    );
    let rows = system
        .sql(&detail, "shop", "SELECT count(*) FROM pgbench_accounts")
        .await?;
    ensure!(rows == ACCOUNTS, "{rows} rows");

    let position = system.log("recovery-svc").len();
    history
        .send(Unpublish {
            session_id: id.parse()?,
        })
        .await?;
    match on_the_way_back {
        None => drop(history.until(&id, "unpublishing").await?),
        Some(word) => logged(system, position, word).await?,
    }
    kill(system, victim);
    start_again(system, victim).await?;
    history.until(&id, "completed").await?;
    system.nothing_is_left_of(&id)?;
    history.went_straight(&id)?;
    for word in ["unpublishing", "completed"] {
        let found = history.count(&id, word);
        ensure!(found == 1, "{word} {found} times");
    }
    Ok(())
}

async fn every_step(victim: Victim) -> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let mut system = TestSystem::start(shop.path()).await?;
    let history = History::open(&system).await?;
    for (at, back) in PUBLISH_POINTS.iter().zip(UNPUBLISH_POINTS.iter().cycle()) {
        let began = std::time::Instant::now();
        one_round(&mut system, &history, victim, (at, *back))
            .await
            .with_context(|| format!("kill -9 {victim:?} at {at:?}, then at {back:?}"))?;
        say(&format!(
            "kill -9 {victim:?} at {at:?} of the publish and at {:?} of the unpublish: straight on, {} ms",
            back.unwrap_or("unpublishing"),
            began.elapsed().as_millis()
        ));
    }
    Ok(())
}

#[tokio::test]
async fn recovery_svc_killed_at_any_step_goes_on_where_it_was() -> Result<()> {
    every_step(Victim::Recovery).await
}

#[tokio::test]
async fn mount_svc_killed_at_any_step_goes_on_where_it_was() -> Result<()> {
    every_step(Victim::Mount).await
}

#[tokio::test]
async fn both_services_killed_at_any_step_go_on_where_they_were() -> Result<()> {
    every_step(Victim::Both).await
}

/// pgbench on a published instance, until its time is over.
fn load(detail: &SessionDetail, seconds: u32) -> Result<std::process::Child> {
    let published = detail.published.as_ref().context("not published")?;
    let program = "/usr/lib/postgresql/15/bin/pgbench";
    Ok(std::process::Command::new(program)
        .args([
            "-n",
            "-c",
            "4",
            "-j",
            "1",
            "-T",
            &seconds.to_string(),
            "-U",
            "postgres",
        ])
        .arg("-h")
        .arg(&published.socket_directory)
        .args(["-p", &published.port.to_string(), "shop"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?)
}

#[tokio::test]
async fn a_published_instance_under_load_does_not_notice_its_services_die_or_stop() -> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let mut system = TestSystem::start(shop.path()).await?;
    let history = History::open(&system).await?;
    let (id, detail) = system.publish(&["--backup", "monday"]).await?;
    let pgbench = load(&detail, 25)?;
    for victim in [Victim::Both, Victim::Recovery, Victim::Mount] {
        kill(&mut system, victim);
        start_again(&mut system, victim).await?;
        say(&format!("kill -9 {victim:?} under load"));
    }
    for _ in 0..2 {
        let ended = system.recovery_svc.stop().await?;
        ensure!(ended.success(), "recovery-svc ended with {ended}");
        let ended = system.mount_svc.stop().await?;
        ensure!(ended.success(), "mount-svc ended with {ended}");
        start_again(&mut system, Victim::Both).await?;
        say("SIGTERM to both under load");
    }
    let output = tokio::task::spawn_blocking(move || pgbench.wait_with_output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{text}{complaints}");
    ensure!(
        text.contains("number of failed transactions: 0 (0.000%)"),
        "{text}{complaints}"
    );
    let done = text
        .lines()
        .find(|line| line.contains("actually processed"));
    say(&format!("pgbench through it all: {done:?}, 0 failed"));
    let still = system.session(&id).await?.context("known")?;
    ensure!(still.summary.status == SessionStatus::Published);
    history.went_straight(&id)?;
    let rows = system
        .sql(&detail, "shop", "SELECT count(*) FROM pgbench_history")
        .await?;
    ensure!(
        done.is_some_and(|line| line.contains(&rows)),
        "{rows} rows of history: {text}"
    );
    history
        .send(Unpublish {
            session_id: id.parse()?,
        })
        .await?;
    history.until(&id, "completed").await?;
    system.nothing_is_left_of(&id)
}

#[tokio::test]
async fn services_that_are_stopped_in_the_middle_of_a_publish_finish_it_afterwards() -> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let mut system = TestSystem::start(shop.path()).await?;
    let history = History::open(&system).await?;
    for at in ["step_started mount", "step_started recover"] {
        let id = history
            .send(history::publish("monday", None)?)
            .await?
            .to_string();
        history.until(&id, at).await?;
        let ended = system.recovery_svc.stop().await?;
        ensure!(ended.success(), "recovery-svc ended with {ended}");
        let ended = system.mount_svc.stop().await?;
        ensure!(ended.success(), "mount-svc ended with {ended}");
        start_again(&mut system, Victim::Both).await?;
        system.reaches(&id, SessionStatus::Published).await?;
        history.went_straight(&id)?;
        say(&format!("SIGTERM to both at {at:?}: straight on"));
        history
            .send(Unpublish {
                session_id: id.parse()?,
            })
            .await?;
        history.until(&id, "completed").await?;
        system.nothing_is_left_of(&id)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_recovery_svc_on_the_same_state_directory_is_refused() -> Result<()> {
    let shop = Shop::open(&["monday"])?;
    let system = TestSystem::start(shop.path()).await?;
    let config = std::fs::read_to_string(system.path("recovery-svc.toml"))?;
    let own_port = system.http_port("recovery-svc")?;
    let other_port = tests::system::free_port()?;
    let second = system.path("second.toml");
    std::fs::write(
        &second,
        config.replace(&own_port.to_string(), &other_port.to_string()),
    )?;
    let mut child = std::process::Command::new(tests::programs::program("recovery-svc")?)
        .arg("--config")
        .arg(&second)
        .stderr(std::fs::File::create(system.path("second.log"))?)
        .spawn()?;
    let mut status = None;
    let ended = wait::until(
        "the second recovery-svc ends",
        Duration::from_secs(30),
        async || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        },
    )
    .await;
    child.kill().ok();
    child.wait()?;
    let log = std::fs::read_to_string(system.path("second.log"))?;
    ended.with_context(|| log.clone())?;
    ensure!(
        status.is_some_and(|status| !status.success()),
        "{status:?}: {log}"
    );
    say(&format!(
        "the second one: {status:?}: {}",
        log.lines().last().unwrap_or_default()
    ));
    let (id, _) = system.publish(&["--backup", "monday"]).await?;
    let output = system.explorer(&["unpublish", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
