//! `explorer sessions`: the list, once or as it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use common::ids::SessionId;
use common::messages::{SessionList, SessionSummary, SessionsQuery};
use tokio::time::{Instant, sleep_until};

use super::Context;
use crate::exit::{Answer, Failure, SUCCESS};
use crate::output::{Format, lists};

/// Shortest time between two pictures.
const REDRAW_EVERY: Duration = Duration::from_secs(1);
/// Longest time between two, in case an event was lost.
const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// Shows the sessions.
pub(super) async fn run(watch: bool, include_ended: bool, context: &Context<'_>) -> Answer {
    let query = SessionsQuery { include_ended };
    if watch {
        return tokio::select! {
            answer = follow(query, context) => answer,
            signal = tokio::signal::ctrl_c() => signal.map_err(Failure::from).and(Err(Failure::Interrupted)),
        };
    }
    let list = context.client.sessions(query).await?;
    context
        .output
        .result(&list, |zone| lists::sessions(&list, zone))?;
    Ok(SUCCESS)
}

async fn follow(query: SessionsQuery, context: &Context<'_>) -> Answer {
    let bus = &context.client.bus;
    let mut queue = bus.private_queue(&["session.#"]).await?;
    let mut known = BTreeMap::new();
    let mut first = true;
    loop {
        match context.client.sessions(query.clone()).await {
            Ok(list) => {
                show(&list, &mut known, first, context)?;
                first = false;
            }
            Err(Failure::Problem(problem)) if !first && !problem.is_permanent() => {
                context.output.refusal(&problem);
            }
            Err(failure) => return Err(failure),
        }
        let now = Instant::now();
        tokio::select! {
            delivery = queue.deliveries.recv() => {
                let Some(delivery) = delivery else {
                    return Err(common::bus::BusError::Closed.into());
                };
                // Which event it is does not matter: the list is asked for anew.
                drop(delivery.ack().await);
                sleep_until(now + REDRAW_EVERY).await;
                while let Ok(more) = queue.deliveries.try_recv() {
                    drop(more.ack().await);
                }
            }
            () = sleep_until(now + REFRESH_EVERY) => {}
        }
    }
}

/// People get the whole list again when it has changed, programs each session that has changed.
fn show(
    list: &SessionList,
    known: &mut BTreeMap<SessionId, SessionSummary>,
    first: bool,
    context: &Context<'_>,
) -> Result<(), Failure> {
    let changed: Vec<&SessionSummary> = list
        .sessions
        .iter()
        .filter(|session| known.get(&session.session_id) != Some(session))
        .collect();
    let gone = known.len() != list.sessions.len();
    match context.output.format {
        Format::Json => {
            for session in &changed {
                context.output.result(session, |_| String::new())?;
            }
        }
        Format::Table if first || gone || !changed.is_empty() => {
            let text = lists::sessions(list, &context.output.zone);
            context.output.redraw(&text)?;
        }
        Format::Table => {}
    }
    *known = list
        .sessions
        .iter()
        .map(|session| (session.session_id, session.clone()))
        .collect();
    Ok(())
}
