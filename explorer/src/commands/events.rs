//! `explorer events`: what happened, from the stream of events.

use std::time::Duration;

use common::bus::{Deliveries, StreamFrom};
use common::ids::SessionId;
use common::messages::{Limits, RawEnvelope};
use tokio::time::timeout;

use super::{Context, resolve};
use crate::exit::{Answer, Failure, SUCCESS};
use crate::output::{Format, events};
use crate::session_ref::SessionRef;
use crate::time_args::Since;

/// How far back it begins when nobody says and nothing is followed.
const SINCE_DEFAULT: Since = Since::Ago(Duration::from_secs(86_400));
/// How long the stream may be silent before its end is taken to be reached: the broker does not say where it is.
const QUIET: Duration = Duration::from_millis(1_500);
/// How long the first event may take: the broker opens files.
const FIRST_WAIT: Duration = Duration::from_secs(4);

/// Which events are wanted.
struct Wanted {
    earliest: Option<jiff::Timestamp>,
    session: Option<SessionId>,
}

impl Wanted {
    fn takes(&self, raw: &RawEnvelope) -> bool {
        let late_enough = match (self.earliest, raw.time) {
            (Some(earliest), Some(at)) => at >= earliest,
            _ => true,
        };
        let subject = self.session.map(|id| id.to_string());
        late_enough && (subject.is_none() || raw.subject == subject)
    }
}

/// Prints events, oldest first.
pub(super) async fn run(
    follow: bool,
    since: Option<Since>,
    session: Option<SessionRef>,
    context: &Context<'_>,
) -> Answer {
    let session = match session {
        Some(session) => Some(resolve(&session, context).await?),
        None => None,
    };
    let now = context.client.env.now();
    let since = since.or((!follow).then_some(SINCE_DEFAULT));
    let from = since.map_or(StreamFrom::Next, |since| since.stream_from(now));
    let wanted = Wanted {
        earliest: since.and_then(|since| since.earliest(now)),
        session,
    };
    let deliveries = context.client.bus.read_events(from).await?;
    tokio::select! {
        answer = print(deliveries, &wanted, follow, context) => answer,
        signal = tokio::signal::ctrl_c() => signal.map_err(Failure::from).and(Err(Failure::Interrupted)),
    }
}

async fn print(
    mut deliveries: Deliveries,
    wanted: &Wanted,
    follow: bool,
    context: &Context<'_>,
) -> Answer {
    let mut patience = FIRST_WAIT;
    loop {
        let next = match follow {
            true => deliveries.recv().await,
            false => match timeout(patience, deliveries.recv()).await {
                Ok(next) => next,
                Err(_) => return Ok(SUCCESS),
            },
        };
        let Some(delivery) = next else {
            return Err(common::bus::BusError::Closed.into());
        };
        patience = QUIET;
        // Reading a stream takes nothing out of it; the ack only asks for more.
        let body = delivery.message.body.clone();
        drop(delivery.ack().await);
        let Ok(raw) = RawEnvelope::from_bytes(&body, Limits::REPLY_BYTES) else {
            context
                .output
                .note("an event cannot be read and is left out");
            continue;
        };
        if !wanted.takes(&raw) {
            continue;
        }
        match context.output.format {
            Format::Json => context.output.result(&raw, |_| String::new())?,
            Format::Table => {
                let line = events::line(&raw, &context.output.zone);
                context.output.result(&(), |_| line)?;
            }
        }
    }
}
