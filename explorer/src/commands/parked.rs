//! `explorer parked`: messages that no service could take.

use common::bus::Delivery;
use common::problem::{ErrorCode, Problem};

use super::Context;
use crate::cli::Parked;
use crate::exit::{Answer, Failure, SUCCESS};
use crate::output::parked as render;
use crate::parked::{ParkedMessage, QUEUE, back_to_origin};

/// Most messages that are looked at: they are all held until the end and then given back.
const LOOK_MAX: usize = 500;

/// Lists, shows, sends back or throws away.
pub(super) async fn run(command: Parked, context: &Context<'_>) -> Answer {
    match command {
        Parked::List => list(context).await,
        Parked::Show { message } => {
            let (found, others) = find(&message, context).await?;
            let shown = ParkedMessage::of(&found.message);
            give_back(others.into_iter().chain([found]), context).await;
            context.output.result(&shown, |_| render::whole(&shown))?;
            Ok(SUCCESS)
        }
        Parked::Retry { message } => {
            let (found, others) = find(&message, context).await?;
            give_back(others, context).await;
            retry(found, context).await
        }
        Parked::Discard { message } => {
            let (found, others) = find(&message, context).await?;
            give_back(others, context).await;
            settle(found, &message, context).await?;
            said(&message, "discarded", context)
        }
    }
}

async fn list(context: &Context<'_>) -> Answer {
    let held = take_all(context).await?;
    let messages: Vec<_> = held.iter().map(|d| ParkedMessage::of(&d.message)).collect();
    let truncated = held.len() == LOOK_MAX;
    give_back(held, context).await;
    let value = serde_json::json!({ "messages": messages, "truncated": truncated });
    context
        .output
        .result(&value, |_| render::list(&messages, truncated))?;
    Ok(SUCCESS)
}

/// Published first and acknowledged second: a crash between the two leaves it twice, never lost; the services know it by its id.
async fn retry(found: Delivery, context: &Context<'_>) -> Answer {
    let shown = ParkedMessage::of(&found.message);
    let outgoing = match back_to_origin(&found.message) {
        Ok(outgoing) => outgoing,
        Err(problem) => {
            give_back([found], context).await;
            return Err(problem.into());
        }
    };
    if let Err(error) = context.client.bus.publish(outgoing).await {
        give_back([found], context).await;
        return Err(error.into());
    }
    let name = shown.handle(0);
    settle(found, &name, context).await?;
    said(
        &name,
        &format!("sent back to {}", shown.routing_key),
        context,
    )
}

fn said(message: &str, what: &str, context: &Context<'_>) -> Answer {
    let value = serde_json::json!({ "message": message, "done": what });
    context
        .output
        .result(&value, |_| format!("message {message} is {what}\n"))?;
    Ok(SUCCESS)
}

async fn take_all(context: &Context<'_>) -> Result<Vec<Delivery>, Failure> {
    let mut held = Vec::new();
    while held.len() < LOOK_MAX {
        match context.client.bus.take(QUEUE).await? {
            Some(delivery) => held.push(delivery),
            None => break,
        }
    }
    Ok(held)
}

async fn find(wanted: &str, context: &Context<'_>) -> Result<(Delivery, Vec<Delivery>), Failure> {
    let mut others = take_all(context).await?;
    let called = |(place, delivery): &(usize, &Delivery)| {
        ParkedMessage::of(&delivery.message).is_called(wanted, *place)
    };
    let places: Vec<usize> = others
        .iter()
        .enumerate()
        .filter(called)
        .map(|(place, _)| place)
        .collect();
    if let [place] = places.as_slice() {
        let found = others.remove(*place);
        return Ok((found, others));
    }
    give_back(others, context).await;
    let problem = match places.len() {
        0 => Problem::new(
            ErrorCode::InvalidField,
            format!("no parked message is called {wanted}"),
            "look at `explorer parked list`",
        ),
        count => Problem::new(
            ErrorCode::InvalidField,
            format!("{count} parked messages are called {wanted}"),
            "give more characters of the id",
        ),
    };
    Err(problem.into())
}

async fn give_back(held: impl IntoIterator<Item = Delivery>, context: &Context<'_>) {
    for delivery in held {
        // What cannot be given back now goes back by itself when the connection ends.
        if let Err(error) = delivery.requeue().await {
            context.output.note(&error.to_string());
        }
    }
}

async fn settle(delivery: Delivery, name: &str, _context: &Context<'_>) -> Result<(), Failure> {
    delivery.ack().await.map_err(|error| {
        Problem::new(
            ErrorCode::BrokerUnavailable,
            format!("message {name} is still parked: {error}"),
            "run the command again",
        )
        .into()
    })
}
