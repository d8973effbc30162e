//! The one task that publishes, on a channel that nobody else has.
//!
//! Messages are sent in groups: everything that waits is sent, then every confirm of the group is awaited, then each sender
//! gets its answer. lapin hands a returned message to any confirm that the broker resolved together with it, so only when
//! the whole group is resolved is it certain, by message id, which message was returned and which was stored.
//! What has no answer when the channel breaks is sent again on the next one, in order and with the same id.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::health::Health;
use super::link::{Link, backoff};
use super::message::{address, bus_error, properties};
use crate::bus::{BusError, OutgoingMessage, PublishError};
use crate::env::Env;

/// Most messages sent without a confirm; also how many may wait behind them.
pub(super) const GROUP_MAX: usize = 256;
const CHANNEL_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A message and whoever waits for its confirm. The waiting side keeps the time limit: when it goes away, the message is
/// no longer sent.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) message: OutgoingMessage,
    pub(super) timestamp_s: u64,
    pub(super) answer: oneshot::Sender<Result<(), PublishError>>,
}

impl Item {
    fn destination(&self) -> String {
        address(&self.message.destination).1.to_owned()
    }

    fn is_wanted(&self) -> bool {
        !self.answer.is_closed()
    }

    fn answer(self, result: Result<(), PublishError>) {
        // The asker may have left at its limit in this very moment.
        if self.answer.send(result).is_err() {
            debug!("a confirm came after its publisher had left");
        }
    }
}

/// What the broker said about one message of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Unknown,
    Stored,
    Refused,
    Returned,
}

#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) items: mpsc::Receiver<Item>,
    pub(super) link: Link,
    pub(super) health: Arc<Health>,
    pub(super) env: Env,
    pub(super) app_id: String,
    pub(super) cancel: CancellationToken,
}

impl Publisher {
    /// Runs until cancelled, then sends what still waits, at most 5 s.
    pub(super) async fn run(mut self) {
        let cancel = self.cancel.clone();
        let give_up = async {
            cancel.cancelled().await;
            sleep(DRAIN_LIMIT).await;
        };
        tokio::select! {
            () = self.publish_until_closed() => {}
            () = give_up => {}
        }
    }

    async fn publish_until_closed(&mut self) {
        let mut waiting: VecDeque<Item> = VecDeque::new();
        let mut channel: Option<Channel> = None;
        let mut failures = 0;
        // After a channel broke under a group, its messages go one by one: the one that breaks channels is found, and the
        // others do not suffer with it.
        let mut one_by_one: usize = 0;
        loop {
            if waiting.is_empty() && !self.wait_for_item(&mut waiting).await {
                return;
            }
            while waiting.len() < GROUP_MAX {
                match self.items.try_recv() {
                    Ok(item) => waiting.push_back(item),
                    Err(_) => break,
                }
            }
            waiting.retain(Item::is_wanted);
            if waiting.is_empty() {
                continue;
            }
            let open = match channel.take().filter(|open| open.status().connected()) {
                Some(open) => open,
                None => match self.open_channel().await {
                    Ok(open) => open,
                    Err(error) => {
                        self.health.error(error);
                        sleep(backoff(&self.env, failures)).await;
                        failures = failures.saturating_add(1);
                        continue;
                    }
                },
            };
            let size = match one_by_one {
                0 => waiting.len(),
                left => {
                    one_by_one = left - 1;
                    1
                }
            };
            let group: Vec<Item> = waiting.drain(..size).collect();
            let (unanswered, fault) = self.send_group(&open, group).await;
            match fault {
                None if unanswered.is_empty() => {
                    failures = 0;
                    channel = Some(open);
                }
                fault => {
                    if let Some(fault) = fault {
                        self.health.error(fault);
                    }
                    if unanswered.len() > 1 {
                        one_by_one = unanswered.len();
                    }
                    for item in unanswered.into_iter().rev() {
                        waiting.push_front(item);
                    }
                    sleep(backoff(&self.env, failures)).await;
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Waits for something to publish; `false` when there will be nothing more.
    async fn wait_for_item(&mut self, waiting: &mut VecDeque<Item>) -> bool {
        let item = tokio::select! {
            item = self.items.recv() => item,
            () = self.cancel.cancelled() => {
                self.items.close();
                self.items.recv().await
            }
        };
        match item {
            Some(item) => {
                waiting.push_back(item);
                true
            }
            None => false,
        }
    }

    async fn open_channel(&mut self) -> Result<Channel, BusError> {
        let live = self.link.ready().await.ok_or(BusError::Closed)?;
        let open = async {
            let channel = live.connection.create_channel().await?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await?;
            Ok(channel)
        };
        match timeout(CHANNEL_LIMIT, open).await {
            Ok(result) => result.map_err(bus_error),
            Err(_) => Err(BusError::Unreachable(
                "no channel was opened within 5 s".to_owned(),
            )),
        }
    }

    /// Sends a group and answers whom it can. Gives back those that must be sent again, and why.
    async fn send_group(
        &self,
        channel: &Channel,
        group: Vec<Item>,
    ) -> (Vec<Item>, Option<BusError>) {
        let mut verdicts = vec![Verdict::Unknown; group.len()];
        // A blocked connection takes no frames and a frozen broker answers none: both ends of waiting are here.
        let result = tokio::select! {
            result = self.confirm_group(channel, &group, &mut verdicts) => result,
            () = nobody_waits(channel, &group) => Ok(()),
        };
        let alone = group.len() == 1;
        let broke_channel = result.as_ref().err().and_then(soft_error);
        let mut unanswered = Vec::new();
        for (item, verdict) in group.into_iter().zip(verdicts) {
            let destination = item.destination();
            match (verdict, &broke_channel) {
                (Verdict::Stored, _) => item.answer(Ok(())),
                (Verdict::Refused, _) => {
                    item.answer(Err(PublishError::Refused { destination }));
                }
                (Verdict::Returned, _) => {
                    item.answer(Err(PublishError::Returned { destination }));
                }
                (Verdict::Unknown, Some(AMQPSoftError::NOTFOUND)) if alone => {
                    item.answer(Err(PublishError::Returned { destination }));
                }
                (Verdict::Unknown, Some(_)) if alone => {
                    item.answer(Err(PublishError::Refused { destination }));
                }
                (Verdict::Unknown, _) => unanswered.push(item),
            }
        }
        (unanswered, result.err().map(bus_error))
    }

    async fn confirm_group(
        &self,
        channel: &Channel,
        group: &[Item],
        verdicts: &mut [Verdict],
    ) -> lapin::Result<()> {
        let mut fault = None;
        let mut confirms = FuturesUnordered::new();
        for (item, verdict) in group.iter().zip(verdicts.iter_mut()) {
            match self.send(channel, item).await {
                Ok(Some(confirm)) => confirms.push(async move { (verdict, confirm.await) }),
                // No broker can have a destination of that name.
                Ok(None) => *verdict = Verdict::Returned,
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        let mut returned: Vec<(String, String)> = Vec::new();
        while let Some((verdict, confirmation)) = confirms.next().await {
            let message = match confirmation {
                Ok(Confirmation::Ack(message)) => {
                    *verdict = Verdict::Stored;
                    message
                }
                Ok(Confirmation::Nack(message)) => {
                    *verdict = Verdict::Refused;
                    message
                }
                // Confirms are off: a mistake of ours, and nothing is known about the message.
                Ok(Confirmation::NotRequested) => None,
                Err(error) => {
                    fault = Some(error);
                    None
                }
            };
            returned.extend(message.map(|message| {
                let id = message.properties.message_id().as_ref();
                let id = id.map(ShortString::to_string).unwrap_or_default();
                (id, message.routing_key.to_string())
            }));
        }
        drop(confirms);
        for (id, key) in returned {
            let of = group
                .iter()
                .zip(verdicts.iter_mut())
                .find(|(item, verdict)| {
                    item.message.message_id == id
                        && address(&item.message.destination).1 == key
                        && **verdict != Verdict::Returned
                });
            if let Some((_, verdict)) = of {
                *verdict = Verdict::Returned;
            }
        }
        fault.map_or(Ok(()), Err)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this task is the one place that publishes: it alone owns the channel"
    )]
    async fn send(
        &self,
        channel: &Channel,
        item: &Item,
    ) -> lapin::Result<Option<PublisherConfirm>> {
        let (exchange, routing_key) = address(&item.message.destination);
        let Ok(routing_key) = ShortString::try_new(routing_key) else {
            return Ok(None);
        };
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let properties = properties(&item.message, &self.app_id, item.timestamp_s);
        channel
            .basic_publish(
                exchange.into(),
                routing_key,
                options,
                &item.message.body,
                properties,
            )
            .await
            .map(Some)
    }
}

/// Ends when the channel is gone or all askers have left.
async fn nobody_waits(channel: &Channel, group: &[Item]) {
    while group.iter().any(Item::is_wanted) {
        sleep(LOOK_EVERY).await;
        if !channel.status().connected() {
            // The confirms fail in the same moment; this is for the case that one does not.
            sleep(LOOK_EVERY).await;
            return;
        }
    }
}

/// The error with which the broker closed the channel and not the connection, if it did.
fn soft_error(error: &lapin::Error) -> Option<AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft.clone()),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}
