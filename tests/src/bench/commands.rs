//! Commands through the broker: from sending one to the event that says it is in the journal.
//!
//! The target of these commands cannot be reached, so that each session waits at its first step and the number is about the
//! broker, the delegation and the journals.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::bus::amqp::AmqpBus;
use common::bus::{Bus, Deliveries, Destination, OutgoingMessage};
use common::env::Env;
use common::ids::CommandId;
use common::messages::{Envelope, Event, Limits, Publish, RecoveryTarget};
use common::topology::{self, Role};
use futures::StreamExt;

use super::line::Ledger;
use super::stage::Stage;
use crate::broker;
use crate::system::{SystemOptions, TestSystem};

/// Confirms that are waited for at a time.
const IN_FLIGHT: usize = 64;
const ACCEPT_LIMIT: Duration = Duration::from_secs(120);

pub(super) async fn measure(stage: &mut Stage, ledger: &mut Ledger) -> Result<()> {
    let nobody = stage.path("nobody-listens.sock");
    for round in 1..=stage.sizes.rounds {
        stage.say(&format!("round {round}: commands"));
        let options = SystemOptions {
            target_lines: format!("connection = \"socket:{}\"", nobody.display()),
            recovery_lines: "[limits]\nsessions_max = 10000\n".to_owned(),
            directory_prefix: stage.path("system-"),
            ..SystemOptions::default()
        };
        // A system of its own for each round: the journal of each begins empty.
        let system = TestSystem::start_with(&stage.path("backups"), options).await?;
        let mut client = Client::open(&system).await?;
        let p99 = client.accepted_p99(stage.sizes.single_commands).await?;
        ledger.ours("commands/accepted-p99", p99);
        let rate = client.rate(stage.sizes.burst_commands).await?;
        ledger.ours("commands/rate", rate);
    }
    Ok(())
}

struct Client {
    bus: std::sync::Arc<AmqpBus>,
    accepted: Deliveries,
}

impl Client {
    async fn open(system: &TestSystem) -> Result<Self> {
        let bus = system.bus(Role::Explorer).await?;
        let queue = bus.private_queue(&["session.publish.accepted"]).await?;
        Ok(Self {
            bus,
            accepted: queue.deliveries,
        })
    }

    async fn send(&self) -> Result<CommandId> {
        let id = Env::system().command_id();
        let envelope = Envelope {
            id: id.uuid(),
            source: "/bench".to_owned(),
            subject: None,
            time: None,
            sequence: None,
            traceparent: None,
            tracestate: None,
            payload: common::messages::Command::from(Publish {
                repository: "main".parse()?,
                backup: Some("no-matter".parse()?),
                target: "here".parse()?,
                port: None,
                hydrate: None,
                recovery_target: RecoveryTarget::Latest,
                reason: None,
            }),
        };
        let destination = Destination::Commands {
            routing_key: topology::mount_queue(&broker::server()),
        };
        self.bus
            .publish(OutgoingMessage::new(destination, &envelope))
            .await?;
        Ok(id)
    }

    /// The session that the next event is about.
    async fn next_accepted(&mut self) -> Result<String> {
        let delivery = tokio::time::timeout(ACCEPT_LIMIT, self.accepted.recv())
            .await
            .context("a command was not accepted")?
            .context("the bus ended")?;
        let event = Envelope::<Event>::from_bytes(&delivery.message.body, Limits::REPLY_BYTES)?;
        delivery.ack().await?;
        event.subject.context("an event without subject")
    }

    /// Milliseconds that 99 of 100 commands, sent one after the other, stay below.
    async fn accepted_p99(&mut self, count: usize) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..count {
            let began = Instant::now();
            let id = self.send().await?.to_string();
            while self.next_accepted().await? != id {}
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
        times.get(at).copied().context("no command was sent")
    }

    /// Commands per second, from sending the first to the acceptance of the last.
    async fn rate(&mut self, count: usize) -> Result<f64> {
        let began = Instant::now();
        let sent: Vec<Result<CommandId>> = futures::stream::iter(0..count)
            .map(|_| self.send())
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        let mut missing: BTreeSet<String> = BTreeSet::new();
        for id in sent {
            missing.insert(id?.to_string());
        }
        while !missing.is_empty() {
            missing.remove(&self.next_accepted().await?);
        }
        let count = u32::try_from(count)?;
        Ok(f64::from(count) / began.elapsed().as_secs_f64())
    }
}
