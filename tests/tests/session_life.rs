//! The life of sessions side by side: what befalls one is undone or mended for that one, and no other notices.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{Cancel, EventBody, SessionDetail, SessionStatus, Unpublish, WarningCode};
use common::problem::ErrorCode;
use tests::history::{self, Heard, History};
use tests::leftovers;
use tests::shop::{ACCOUNTS, Shop};
use tests::system::{FAST, SystemOptions, TestSystem};
use tests::victims::{agent, kill, postmaster};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(60);

fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// A system over backups, and what it tells.
struct World {
    // The history first: it ends before the broker does.
    history: History,
    system: TestSystem,
    _shop: Shop,
}

impl World {
    async fn new(labels: &[&str], options: SystemOptions) -> Result<Self> {
        let shop = Shop::open(labels)?;
        let system = TestSystem::start_with(shop.path(), options).await?;
        Ok(Self {
            history: History::open(&system).await?,
            system,
            _shop: shop,
        })
    }

    async fn begin(&self, backup: &str) -> Result<String> {
        let port = tests::system::free_port()?;
        let command = history::publish(backup, Some(port))?;
        Ok(self.history.send(command).await?.to_string())
    }

    async fn published(&self, id: &str) -> Result<SessionDetail> {
        self.system.reaches(id, SessionStatus::Published).await
    }

    async fn sql(&self, detail: &SessionDetail, sql: &str) -> Result<String> {
        self.system.sql(detail, "shop", sql).await
    }

    async fn unpublish(&self, id: &str) -> Result<()> {
        let session_id = id.parse()?;
        self.history.send(Unpublish { session_id }).await?;
        self.history.until(id, "completed").await?;
        self.history.is_gapless(id)?;
        self.nothing_is_left_of(id)
    }

    fn nothing_is_left_of(&self, id: &str) -> Result<()> {
        let processes = leftovers::processes(Path::new(id));
        ensure!(processes.is_empty(), "still there: {processes:?}");
        self.system.nothing_is_left_of(id)
    }

    /// `explorer retry`, which waits until the session is published.
    async fn retry(&self, id: &str) -> Result<SessionDetail> {
        let output = self.system.explorer(&["retry", id]).await?;
        ensure!(
            output.status.success(),
            "{output:?}\n{}",
            self.system.log("recovery-svc")
        );
        self.published(id).await
    }
}

fn waiting_code(heard: &Heard) -> Option<ErrorCode> {
    match &heard.event.body {
        EventBody::Waiting(waiting) => Some(waiting.problem.code),
        _ => None,
    }
}

fn timeline(detail: &SessionDetail) -> Option<u32> {
    detail
        .published
        .as_ref()
        .map(|published| published.timeline)
}

#[tokio::test]
async fn instances_of_the_same_and_of_different_backups_live_side_by_side() -> Result<()> {
    let world = World::new(&["monday", "tuesday"], SystemOptions::default()).await?;
    let mut all = Vec::new();
    for backup in ["monday", "tuesday", "monday"] {
        all.push((backup, world.begin(backup).await?));
    }
    let mut details = Vec::new();
    for (backup, id) in &all {
        let detail = world.published(id).await?;
        world
            .sql(&detail, &format!("INSERT INTO marks VALUES ('{id}')"))
            .await?;
        details.push((*backup, id.clone(), detail));
    }
    for (backup, id, detail) in &details {
        let marks = world
            .sql(detail, "SELECT string_agg(mark, ',') FROM marks")
            .await?;
        let from_backup = if *backup == "monday" {
            "monday"
        } else {
            "monday,tuesday"
        };
        ensure!(
            marks == format!("{from_backup},{id}"),
            "{id} of {backup} has {marks}"
        );
    }
    // One ends; the others neither end nor change.
    let (_, first, _) = &details[0];
    world.unpublish(first).await?;
    for (_, id, detail) in &details[1..] {
        let rows = world
            .sql(detail, "SELECT count(*) FROM pgbench_accounts")
            .await?;
        ensure!(rows == ACCOUNTS, "{rows} rows");
        world.history.went_straight(id)?;
        world.unpublish(id).await?;
    }
    say("three instances of two backups side by side, each with its own changes");
    Ok(())
}

#[tokio::test]
async fn a_cancel_at_any_step_undoes_that_session_and_nothing_else() -> Result<()> {
    let world = World::new(&["monday"], SystemOptions::default()).await?;
    let neighbour = world.begin("monday").await?;
    let detail = world.published(&neighbour).await?;
    world
        .sql(&detail, "INSERT INTO marks VALUES ('mine')")
        .await?;
    for at in [
        "accepted",
        "step_started validate",
        "step_started mount",
        "step_finished mount",
        "step_started prepare",
        "step_started start",
        "step_started recover",
        "published",
    ] {
        let id = world.begin("monday").await?;
        world.history.until(&id, at).await?;
        let session_id = id.parse()?;
        world.history.send(Cancel { session_id }).await?;
        world.history.until(&id, "cancelled").await?;
        world.history.is_gapless(&id)?;
        world
            .nothing_is_left_of(&id)
            .with_context(|| format!("cancelled at {at:?}"))?;
        say(&format!("cancelled at {at:?}: nothing is left"));
    }
    let marks = world
        .sql(&detail, "SELECT string_agg(mark, ',') FROM marks")
        .await?;
    ensure!(marks == "monday,mine", "{marks}");
    world.history.went_straight(&neighbour)?;
    world.unpublish(&neighbour).await
}

#[tokio::test]
async fn a_killed_postgresql_waits_for_a_retry_and_keeps_every_committed_row() -> Result<()> {
    let world = World::new(&["monday"], SystemOptions::default()).await?;
    let id = world.begin("monday").await?;
    let mut detail = world.published(&id).await?;
    for life in 1..=2_usize {
        let before = timeline(&detail);
        for number in 1..=20 {
            world
                .sql(
                    &detail,
                    &format!("INSERT INTO marks VALUES ('{life}-{number}')"),
                )
                .await?;
        }
        kill(postmaster(&detail)?)?;
        let waiting = world.history.until_count(&id, "waiting", life).await?;
        ensure!(
            waiting_code(&waiting) == Some(ErrorCode::InstanceFailed),
            "{waiting:?}"
        );
        let status = world.system.session(&id).await?.context("known")?;
        ensure!(status.summary.status == SessionStatus::WaitingForManualRetry);
        detail = world.retry(&id).await?;
        let rows = world.sql(&detail, "SELECT count(*) FROM marks").await?;
        ensure!(rows == (1 + 20 * life).to_string(), "{rows} rows");
        ensure!(
            timeline(&detail) == before,
            "{before:?} became {:?}",
            timeline(&detail)
        );
        say(&format!(
            "kill -9 of PostgreSQL, retry number {life}: every row is there, timeline {before:?}"
        ));
    }
    world.unpublish(&id).await
}

#[tokio::test]
async fn a_killed_supervisor_waits_for_a_retry_that_mounts_the_same_cache() -> Result<()> {
    let world = World::new(&["monday"], SystemOptions::default()).await?;
    let id = world.begin("monday").await?;
    let detail = world.published(&id).await?;
    let before = timeline(&detail);
    for number in 1..=20 {
        world
            .sql(&detail, &format!("INSERT INTO marks VALUES ('{number}')"))
            .await?;
    }
    kill(agent(&id, "supervise")?)?;
    let waiting = world.history.until(&id, "waiting").await?;
    say(&format!(
        "kill -9 of the supervisor: {:?}",
        waiting.event.body
    ));
    let detail = world.retry(&id).await?;
    let rows = world.sql(&detail, "SELECT count(*) FROM marks").await?;
    ensure!(rows == "21", "{rows} rows");
    ensure!(timeline(&detail) == before);
    let rows = world
        .sql(&detail, "SELECT count(*) FROM pgbench_accounts")
        .await?;
    ensure!(rows == ACCOUNTS, "{rows} rows");
    world.unpublish(&id).await
}

#[tokio::test]
async fn a_killed_worker_is_not_noticed_by_the_instance() -> Result<()> {
    let world = World::new(&["monday"], SystemOptions::default()).await?;
    let id = world.begin("monday").await?;
    let detail = world.published(&id).await?;
    for round in 1..=3 {
        let worker = agent(&id, "worker")?;
        kill(worker)?;
        let sql = "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 5000";
        world.sql(&detail, sql).await?;
        world.sql(&detail, "CHECKPOINT").await?;
        let again = agent(&id, "worker")?;
        ensure!(again != worker, "the worker was not started again");
        let sum = world
            .sql(&detail, "SELECT sum(abalance) FROM pgbench_accounts")
            .await?;
        ensure!(
            sum == (5000 * round).to_string(),
            "{sum} after {round} rounds"
        );
        say(&format!("kill -9 of the worker {worker}, {again} goes on"));
    }
    world.history.went_straight(&id)?;
    world.unpublish(&id).await
}

#[tokio::test]
async fn automatic_retries_are_counted_end_with_a_critical_event_and_an_outage_spends_none()
-> Result<()> {
    let socket = std::env::temp_dir().join(format!("pginstant-test-{}.sock", std::process::id()));
    let options = SystemOptions {
        target_lines: format!("connection = \"socket:{}\"", socket.display()),
        recovery_lines: format!("{FAST}[retry.publish]\nautomatic_max = 3\n"),
        ..SystemOptions::default()
    };
    let mut world = World::new(&["monday"], options).await?;
    let id = world.begin("monday").await?;
    world.history.until(&id, "waiting").await?;
    // Now the next attempt lies in the retry queue.
    world.system.broker.kill().await?;
    world.system.broker.boot().await?;
    let heard = world.history.until(&id, "retries_exhausted").await?;
    let critical = heard.event.head.severity == common::messages::Severity::Critical;
    ensure!(critical, "{heard:?}");
    world.history.until_count(&id, "waiting", 4).await?;
    let (retrying, exhausted) = (
        world.history.count(&id, "retrying"),
        world.history.count(&id, "retries_exhausted"),
    );
    ensure!(
        (retrying, exhausted) == (3, 1),
        "{retrying} retries, {exhausted} times exhausted"
    );
    let detail = world.system.session(&id).await?.context("known")?;
    ensure!(detail.summary.status == SessionStatus::WaitingForManualRetry);
    ensure!(
        detail.summary.attempt == 4,
        "attempt {}",
        detail.summary.attempt
    );
    let code = detail.summary.problem.map(|problem| problem.code);
    ensure!(code == Some(ErrorCode::TargetUnreachable), "{code:?}");
    world.history.is_gapless(&id)?;
    say("kill -9 of the broker while a retry waited in its queue: 3 retries, 1 exhausted");
    // The agent comes; someone asks for a retry.
    let mut agent = std::process::Command::new(tests::programs::program("pginstant-agent")?)
        .args(["listen", "--socket"])
        .arg(&socket)
        .stderr(std::fs::File::create(world.system.path("agent.log"))?)
        .spawn()?;
    let ended = async {
        wait::until("the agent listens", LIMIT, async || socket.exists()).await?;
        world.retry(&id).await?;
        world.unpublish(&id).await
    }
    .await;
    agent.kill().ok();
    agent.wait()?;
    std::fs::remove_file(&socket).ok();
    ended
}

#[tokio::test]
async fn a_cache_volume_that_fills_up_is_told_and_so_is_its_end() -> Result<()> {
    let world = World::new(&["monday"], SystemOptions::default()).await?;
    let volume = world.system.cache_root();
    std::fs::create_dir_all(&volume)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512m,mode=755", "cache-of-a-test"])
        .arg(&volume)
        .status()?;
    ensure!(mounted.success(), "mount a small volume: {mounted}");
    let id = world.begin("monday").await?;
    world.published(&id).await?;
    let ballast = volume.join("ballast");
    let fill_to = |percent: u64| -> Result<()> {
        let statistics = rustix::fs::statvfs(&volume)?;
        let total = statistics.f_blocks * statistics.f_frsize;
        let used = total - statistics.f_bavail * statistics.f_frsize;
        let own = ballast.metadata().map_or(0, |metadata| metadata.len());
        let wanted = (total / 100 * percent).saturating_sub(used - own);
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&ballast)?;
        file.set_len(own.min(wanted))?;
        let more = usize::try_from(wanted.saturating_sub(own))?;
        std::io::Write::write_all(&mut &file, &vec![1; more])?;
        Ok(())
    };
    let until = async |what: &str, wanted: &[WarningCode]| -> Result<()> {
        wait::until(what, LIMIT, async || {
            let Ok(Some(detail)) = world.system.session(&id).await else {
                return false;
            };
            let space = [WarningCode::CacheSpaceLow, WarningCode::CacheSpaceCritical];
            let mut held: Vec<WarningCode> = detail.warnings.iter().map(|w| w.code).collect();
            held.retain(|code| space.contains(code));
            held == wanted
        })
        .await
    };
    use WarningCode::{CacheSpaceCritical, CacheSpaceLow};
    until("no warning at first", &[]).await?;
    fill_to(82)?;
    until("a warning at 82 %", &[CacheSpaceLow]).await?;
    fill_to(96)?;
    until(
        "both warnings at 96 %",
        &[CacheSpaceLow, CacheSpaceCritical],
    )
    .await?;
    fill_to(60)?;
    until("no warning any more", &[]).await?;
    let told = (
        world.history.count(&id, "warning"),
        world.history.count(&id, "warning_cleared"),
    );
    say(&format!(
        "a volume filled to 82 %, 96 % and emptied: {told:?} warnings and clearings"
    ));
    std::fs::remove_file(&ballast)?;
    world.unpublish(&id).await?;
    let unmounted = std::process::Command::new("umount").arg(&volume).status()?;
    ensure!(unmounted.success(), "something still uses the volume");
    Ok(())
}

#[tokio::test]
async fn reads_of_untouched_pages_wait_for_mount_svc_and_go_on_when_it_is_back() -> Result<()> {
    let mut world = World::new(&["monday"], SystemOptions::default()).await?;
    let id = world.begin("monday").await?;
    let detail = world.published(&id).await?;
    // Fetches every page that the same insert needs later.
    world.sql(&detail, "CREATE TABLE local (one int)").await?;
    world.sql(&detail, "INSERT INTO local VALUES (0)").await?;
    world.system.mount_svc.kill();
    // What is in the cache goes on.
    world.sql(&detail, "INSERT INTO local VALUES (1)").await?;
    let outcome = {
        let sum = "SELECT count(*), sum(abalance) FROM pgbench_accounts";
        let read = world.sql(&detail, sum);
        let mut read = std::pin::pin!(read);
        let early = tokio::time::timeout(Duration::from_secs(3), &mut read).await;
        ensure!(early.is_err(), "the read did not wait: {early:?}");
        // The system is borrowed by the read, so the service is started beside it.
        let config = world.system.path("mount-svc.toml");
        let log = world.system.path("mount-svc.log");
        let arguments = ["--config".as_ref(), config.as_os_str()];
        let _again = tests::programs::Service::start("mount-svc", &arguments, &log)?;
        tokio::time::timeout(LIMIT, &mut read)
            .await
            .context("the read still waits")??
    };
    ensure!(outcome == format!("{ACCOUNTS}|0"), "{outcome}");
    say("mount-svc away for 3 s: the read waited, then went on");
    world.system.mount_svc.start_again()?;
    world.system.ready().await?;
    world.history.went_straight(&id)?;
    world.unpublish(&id).await
}
