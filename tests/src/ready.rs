//! A recovery that is ready for its switchover, with clients at work: what tests of switchovers begin with.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::{SessionDetail, SessionStatus, Step};

use crate::history::{Heard, History};
use crate::ledger::Ledger;
use crate::postgres::{as_postgres, run};
use crate::recoverable::{DATABASE, World};
use crate::wait;

const CLIENTS: u8 = 3;

/// A world with a recovery that is ready, its clients at work, and what it tells.
#[derive(Debug)]
pub struct Ready {
    /// What it tells.
    pub history: History,
    /// The clients' account.
    pub ledger: Ledger,
    /// The session.
    pub id: String,
    /// How it was when it became ready, or online.
    pub detail: SessionDetail,
    /// The world; last, since it takes the ground away from the others.
    pub world: World,
}

impl Ready {
    /// With PostgreSQL 15 and a system as usual.
    pub async fn new() -> Result<Self> {
        Self::of(World::new(15).await?).await
    }

    /// In a world; it is switched over when someone says so.
    pub async fn of(world: World) -> Result<Self> {
        let mut ready = Self::to_be(world).await?;
        let system = &ready.world.system;
        ready.detail = system
            .reaches(&ready.id, SessionStatus::ReadyForSwitchover)
            .await?;
        Ok(ready)
    }

    /// In a world; it is online, and its clients work already.
    pub async fn to_be(world: World) -> Result<Self> {
        let history = History::open(&world.system).await?;
        let id = world.recover("manual").await?;
        let detail = world.is_online(&id).await?;
        let ledger = Ledger::open(world.original.port(), DATABASE, CLIENTS);
        wait::until("clients work", Duration::from_secs(30), async || {
            ledger.acknowledged() > 50
        })
        .await?;
        Ok(Self {
            history,
            ledger,
            id,
            detail,
            world,
        })
    }

    /// SQL as the OS user; the sockets' directory is common to the published instance and the standby.
    pub fn psql(&self, port: u16, sql: &str) -> Result<String> {
        let published = self.detail.published.as_ref().context("published")?;
        let output = run(as_postgres(&self.world.installation.bin.join("psql"))
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", sql])
            .arg("-h")
            .arg(&published.socket_directory)
            .args(["-p", &port.to_string()]))?;
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// The port in the name of the standby's socket.
    pub fn standby_port(&self) -> Result<u16> {
        let published = self.detail.published.as_ref().context("published")?;
        std::fs::read_dir(&published.socket_directory)?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                name.strip_prefix(".s.PGSQL.")?.parse().ok()
            })
            .find(|port| *port != published.port)
            .context("the standby has no socket")
    }

    /// Where the standby is, and then the instance that stays.
    pub fn final_directory(&self) -> PathBuf {
        self.world.original.data_directory()
    }

    /// The postmaster of the standby or, later, of the instance that stays.
    pub fn final_postmaster(&self) -> Result<u32> {
        let text = std::fs::read_to_string(self.final_directory().join("postmaster.pid"))?;
        Ok(text.lines().next().context("a pid")?.parse()?)
    }

    /// Waits until clients have had some more commits acknowledged.
    pub async fn goes_on(&self) -> Result<()> {
        let before = self.ledger.acknowledged();
        wait::until("clients go on", Duration::from_secs(60), async || {
            self.ledger.acknowledged() > before + 20
        })
        .await
        .with_context(|| self.story())
    }

    /// What the session has told, and its problems: for failures.
    pub fn story(&self) -> String {
        let heard = self.history.of(&self.id);
        let problems: Vec<_> = heard.iter().filter_map(Heard::problem).collect();
        let words: Vec<_> = heard.iter().map(Heard::word).collect();
        format!("{words:?}\n{problems:#?}")
    }

    /// Orders the switchover and does not wait for it.
    pub async fn order(&self) -> Result<()> {
        let order = ["switchover", &self.id, "--no-wait"];
        let output = self.world.system.explorer(&order).await?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// Waits until the step that began last is this one.
    pub async fn is_in(&self, step: Step) -> Result<()> {
        let wanted = format!("step_started {step}");
        wait::until(&wanted, Duration::from_secs(30), async || {
            let heard = self.history.of(&self.id);
            let last = heard
                .iter()
                .rfind(|heard| heard.phase() == "step_started")
                .map(|heard| heard.word());
            last.as_ref() == Some(&wanted)
        })
        .await
        .with_context(|| self.story())
    }

    /// Waits until it is ready again, and clients work.
    pub async fn is_ready_again(&self) -> Result<()> {
        let is =
            |detail: &SessionDetail| detail.summary.status == SessionStatus::ReadyForSwitchover;
        // It may wait for an automatic retry meanwhile.
        let what = format!("session {} is ready again", self.id);
        let found = wait::find(&what, Duration::from_secs(120), async || {
            Ok(self.world.system.session(&self.id).await?.filter(is))
        });
        found.await.with_context(|| self.story())?;
        self.goes_on().await
    }

    /// The switchover is ordered again and completes; the account agrees.
    pub async fn completes(self) -> Result<()> {
        let output = self
            .world
            .system
            .explorer(&["switchover", &self.id])
            .await?;
        ensure!(output.status.success(), "{output:?}");
        self.ends_well().await
    }

    /// It completes; the account agrees, and the instance is as the original was.
    pub async fn ends_well(self) -> Result<()> {
        self.goes_on().await?;
        let detail = self
            .world
            .system
            .reaches(&self.id, SessionStatus::Completed)
            .await?;
        self.history.is_gapless(&self.id)?;
        self.history.tells_the_outage(&self.id)?;
        self.ledger.close().await?;
        self.world.system.nothing_is_left_of(&self.id)?;
        let switched_over = detail.recovery.and_then(|recovery| recovery.switched_over);
        self.world
            .is_the_original_again(switched_over.context("switched over")?.timeline)
    }
}
