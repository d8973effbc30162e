//! Follows one session until its goal is reached: reads its events, fills gaps by asking, and tells when nobody reacts.

use std::time::Duration;

use common::bus::{IncomingMessage, PrivateQueue};
use common::ids::CommandId;
use common::messages::{Envelope, Event, EventBody, Limits, Reply, SessionQuery};
use common::problem::{ErrorCode, Problem};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::client::{Client, Service, read_reply};
use crate::exit::Failure;
use crate::follow::{End, Goal, SessionView};
use crate::output::Output;
use crate::output::progress::Progress;

/// The topic keys that a follower listens to.
const EVENT_KEYS: [&str; 2] = ["session.#", "command.rejected"];
/// How long a missing event may be on its way before it is asked for.
const GAP_PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing may happen before the session's owner is asked, in case its last event was lost.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long the services have for a first sign of life.
const REACTION_WAIT: Duration = Duration::from_secs(5);
/// How long sending one question may take.
const QUESTION_WAIT: Duration = Duration::from_secs(5);

/// What is followed and until when.
pub(crate) struct Follow<'a> {
    pub(crate) client: &'a Client,
    pub(crate) output: &'a Output,
    pub(crate) queue: PrivateQueue,
    pub(crate) view: SessionView,
    /// The command that was sent: a rejection of it ends the following.
    pub(crate) command_id: CommandId,
    pub(crate) goal: Goal,
    pub(crate) limit: Duration,
}

/// How the following ended.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) view: SessionView,
    pub(crate) end: End,
    pub(crate) took: Duration,
}

/// Opens the queue that a follower reads: before the command is sent, so that no event can be missed.
pub(crate) async fn listen(client: &Client) -> Result<PrivateQueue, Failure> {
    Ok(client.bus.private_queue(&EVENT_KEYS).await?)
}

struct State {
    base: u64,
    began: Instant,
    heard: Instant,
    gap_since: Option<Instant>,
    asked: Option<(CommandId, Instant)>,
    reconnects: u64,
    told_silence: bool,
    interrupts: u32,
}

impl Follow<'_> {
    /// Follows until the end, a rejection, the limit (exit 75) or the second Ctrl-C (exit 130).
    pub(crate) async fn run(mut self) -> Result<Followed, Failure> {
        let now = Instant::now();
        let mut state = State {
            base: self.view.last_sequence(),
            began: now,
            heard: now,
            gap_since: None,
            asked: None,
            reconnects: self.client.bus.health().reconnects,
            told_silence: false,
            interrupts: 0,
        };
        let mut progress = Progress::new(self.output);
        let mut tick = interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                delivery = self.queue.deliveries.recv() => {
                    let Some(delivery) = delivery else {
                        return Err(common::bus::BusError::Closed.into());
                    };
                    let message = delivery.message.clone();
                    // The queue is ours alone and short-lived: an ack that fails changes nothing.
                    drop(delivery.ack().await);
                    self.take(&message, &mut state)?;
                    progress.draw(&self.view);
                }
                _ = tick.tick() => self.look_after(&mut state, &progress).await?,
                signal = tokio::signal::ctrl_c() => {
                    signal?;
                    state.interrupts += 1;
                    if state.interrupts > 1 {
                        return Err(Failure::Interrupted);
                    }
                    progress.note(&self.goes_on());
                    progress.note("press Ctrl-C again to stop watching");
                }
            }
            if let Some(end) = self.view.end(self.goal, state.base) {
                progress.finish(&self.view);
                let took = state.began.elapsed();
                return Ok(Followed {
                    view: self.view,
                    end,
                    took,
                });
            }
            if state.began.elapsed() >= self.limit {
                progress.finish(&self.view);
                return Err(self.out_of_time(&state).await.into());
            }
        }
    }

    fn take(&mut self, message: &IncomingMessage, state: &mut State) -> Result<(), Failure> {
        if let Some((asked, _)) = state.asked
            && message.correlation_id.as_deref() == Some(asked.to_string().as_str())
            && message.exchange.is_empty()
        {
            state.asked = None;
            state.heard = Instant::now();
            // A refusal means that the owner does not know the session yet: its `accepted` is on its way.
            if let Ok(Reply::SessionDetail(detail)) = read_reply(Service::Recovery, &message.body) {
                self.view.resync(detail);
            }
            return Ok(());
        }
        // What cannot be read is another version's event: it shows up as a gap and is asked for.
        let Ok(envelope) = Envelope::<Event>::from_bytes(&message.body, Limits::REPLY_BYTES) else {
            return Ok(());
        };
        if let EventBody::CommandRejected(rejected) = &envelope.payload.body {
            let id = self.command_id.to_string();
            if rejected.command_id == Some(self.command_id) || envelope.subject == Some(id) {
                return Err(rejected.problem.clone().into());
            }
            return Ok(());
        }
        if self.view.apply(envelope) != crate::follow::Folded::Ignored {
            state.heard = Instant::now();
        }
        state.gap_since = match (self.view.has_gap(), state.gap_since) {
            (true, Some(since)) => Some(since),
            (true, None) => Some(Instant::now()),
            (false, _) => None,
        };
        Ok(())
    }

    /// Asks for what may have been missed, and tells when nobody reacts.
    async fn look_after(
        &mut self,
        state: &mut State,
        progress: &Progress<'_>,
    ) -> Result<(), Failure> {
        let reconnects = self.client.bus.health().reconnects;
        let gap = state
            .gap_since
            .is_some_and(|since| since.elapsed() > GAP_PATIENCE);
        let waits_for_answer = state
            .asked
            .is_some_and(|(_, since)| since.elapsed() < QUESTION_WAIT);
        let lost_touch = reconnects != state.reconnects || state.heard.elapsed() > SILENCE_MAX;
        if (gap || lost_touch) && !waits_for_answer {
            state.reconnects = reconnects;
            state.heard = Instant::now();
            self.ask(state).await;
        }
        let reacted = self.view.last_sequence() > state.base;
        if !reacted && !state.told_silence && state.began.elapsed() > REACTION_WAIT {
            state.told_silence = true;
            for service in [Service::Mount, Service::Recovery] {
                let problem = self.client.silent(service, REACTION_WAIT).await;
                progress.note(&format!("{}; {}", problem.message, problem.remedy));
            }
            progress.note("still waiting");
        }
        Ok(())
    }

    async fn ask(&self, state: &mut State) {
        let id = self.client.env.command_id();
        let session_id = self.view.session_id;
        let query = SessionQuery { session_id }.into();
        let sending = self
            .client
            .send_query(Service::Recovery, id, query, &self.queue.name);
        // When the question cannot be sent now, the next silence or gap asks again.
        if let Ok(Ok(())) = tokio::time::timeout(QUESTION_WAIT, sending).await {
            state.asked = Some((id, Instant::now()));
        }
    }

    fn goes_on(&self) -> String {
        let id = self.view.session_id;
        format!(
            "session {id} goes on; follow it with `explorer events --follow --session {id}`, give it up with `explorer cancel {id}`"
        )
    }

    async fn out_of_time(&self, state: &State) -> Problem {
        let id = self.view.session_id;
        let seconds = self.limit.as_secs();
        if self.view.last_sequence() > state.base || state.base > 0 {
            let status = self.view.status.map_or("unknown", |status| status.as_str());
            return Problem::new(
                ErrorCode::TimedOut,
                format!(
                    "session {id} is not done after {seconds} s (status: {status}) and goes on"
                ),
                format!("look at `explorer session {id}`, give it up with `explorer cancel {id}`"),
            );
        }
        let found = self.client.silent(Service::Mount, self.limit).await;
        Problem::new(
            ErrorCode::TimedOut,
            format!(
                "nothing was heard of session {id} within {seconds} s: {}",
                found.message
            ),
            format!("{}; the command stays in its queue", found.remedy),
        )
    }
}
