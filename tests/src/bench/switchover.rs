//! What users notice of the switchover of an instant recovery under load, against stopping, copying and starting the same data.
//!
//! Two clients look the whole time: one commits, one reads; the longest time that each was without an answer is its pause. Both
//! sides have pgbench's TPC-B load beside them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionStatus, SwitchedOver};
use tempfile::TempDir;

use super::line::Ledger;
use super::server::DATABASE;
use super::stage::Stage;
use crate::pauses::Pauses;
use crate::postgres::{OS_USER, as_postgres, free_port, give_to_postgres, run};
use crate::system::TestSystem;
use crate::wait;

/// The longest that a recovery may take.
const LIMIT: Duration = Duration::from_secs(1800);

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let scale = stage.sizes.load_scale;
    stage.source(scale)?;
    let label = Stage::label(scale, "directory");
    let system = stage.system().await?;
    for round in 1..=stage.sizes.rounds {
        stage.say(&format!("round {round}: switchover under load"));
        let (pauses, reported) = recover(stage, &system, &label).await?;
        ledger.ours("switchover/writes-pause", pauses.0.as_secs_f64());
        ledger.ours("switchover/service-pause", pauses.1.as_secs_f64());
        let seconds = |milliseconds: u64| Duration::from_millis(milliseconds).as_secs_f64();
        ledger.ours(
            "switchover/writes-pause-reported",
            seconds(reported.without_writes_ms),
        );
        ledger.ours(
            "switchover/service-pause-reported",
            seconds(reported.without_service_ms),
        );
        stage.say(&format!("round {round}: stop, copy and start under load"));
        let pauses = move_by_hand(stage, &label).await?;
        ledger.peer("switchover/writes-pause", pauses.0.as_secs_f64());
        ledger.peer("switchover/service-pause", pauses.1.as_secs_f64());
    }
    Ok(())
}

/// The longest pauses of writes and of reads.
type Longest = (Duration, Duration);

/// Online from the backup, replicated to its final place, and switched over.
async fn recover(
    stage: &Stage,
    system: &TestSystem,
    label: &str,
) -> Result<(Longest, SwitchedOver)> {
    let place = Place::new(stage, free_port()?)?;
    let lines = system
        .explorer_json(&[
            "recover",
            "--repository",
            "main",
            "--target",
            "here",
            "--backup",
            label,
            "--data-directory",
            place.data.to_str().context("a path in UTF-8")?,
            "--port",
            &place.port.to_string(),
            "--switchover",
            "manual",
            "--no-wait",
        ])
        .await?;
    let id = lines
        .iter()
        .find_map(|line| line.get("session_id").and_then(|id| id.as_str()))
        .with_context(|| format!("no session id in {lines:?}"))?
        .to_owned();
    reaches(system, &id, SessionStatus::ReadyForSwitchover).await?;
    let load = Load::start(&place)?;
    let pauses = Pauses::open(place.port, DATABASE).await?;
    load.works_for(stage.sizes.load_s).await;
    // What was before is no matter.
    pauses.begin_anew();
    let output = system.explorer(&["switchover", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    let detail = system.session(&id).await?.context("known")?;
    let recovery = detail.recovery.context("a recovery")?;
    let reported = recovery.switched_over.context("switched over")?;
    let longest = pauses.close().await?;
    Ok((longest, reported))
}

/// The same without us: the instance that runs from the copy of the backup is stopped, copied to its final place, and started there.
async fn move_by_hand(stage: &Stage, label: &str) -> Result<Longest> {
    let native = stage.restore(label)?;
    let place = Place::new(stage, free_port()?)?;
    let mut before = Place::new(stage, place.port)?;
    before.data = native.data_directory();
    before.start()?;
    let load = Load::start(&before)?;
    let pauses = Pauses::open(place.port, DATABASE).await?;
    load.works_for(stage.sizes.load_s).await;
    pauses.begin_anew();
    before.stop()?;
    run(Command::new("cp")
        .arg("-a")
        .arg(&before.data)
        .arg(&place.data))?;
    rustix::fs::sync();
    place.start()?;
    pauses.close().await
}

async fn reaches(system: &TestSystem, id: &str, status: SessionStatus) -> Result<()> {
    wait::find(&format!("session {id} is {status}"), LIMIT, async || {
        let Some(detail) = system.session(id).await? else {
            return Ok(None);
        };
        let now = detail.summary.status;
        ensure!(!now.is_final(), "the session is {now}");
        Ok((now == status).then_some(()))
    })
    .await
}

/// A data directory and its server, ended when dropped.
struct Place {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
    // For the socket and the log; also for `data`, where that is made anew.
    directory: TempDir,
}

impl Place {
    fn new(stage: &Stage, port: u16) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("final-")
            .tempdir_in(stage.path(""))?;
        give_to_postgres(directory.path())?;
        Ok(Self {
            bin: stage.bin().to_owned(),
            data: directory.path().join("data"),
            port,
            directory,
        })
    }

    fn control(&self, arguments: &[&str]) -> Result<()> {
        let mut program = as_postgres(&self.bin.join("pg_ctl"));
        program.args(arguments).arg("-D").arg(&self.data);
        program.arg("-l").arg(self.directory.path().join("log"));
        run(&mut program).map(drop)
    }

    fn start(&self) -> Result<()> {
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=on",
            self.port,
            self.directory.path().display()
        );
        self.control(&["start", "-s", "-w", "-t", "900", "-o", &options])
    }

    fn stop(&self) -> Result<()> {
        self.control(&["stop", "-s", "-w", "-t", "120", "-m", "fast"])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            // What is still there, ./bench ends and removes.
            self.control(&["stop", "-s", "-w", "-m", "immediate"]).ok();
        }
    }
}

/// pgbench, until it is dropped or its server has ended.
struct Load(Child);

impl Load {
    fn start(place: &Place) -> Result<Self> {
        // Not by runuser: its child would outlive it.
        let child = Command::new(place.bin.join("pgbench"))
            .args(["-n", "-c", "4", "-j", "2", "-T", "3600", "-U", OS_USER])
            .args(["-h", "127.0.0.1", "-p", &place.port.to_string(), DATABASE])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    async fn works_for(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Its server's end was its own already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
