//! `explorer publish`, `recover` and `mount`: begin a session and follow it.

use std::time::Duration;

use common::ids::SessionId;
use common::messages::Command;

use super::{Context, SentJson};
use crate::exit::{Answer, Failure, SUCCESS};
use crate::follow::{End, Goal, SessionView};
use crate::output::session::{OutcomeJson, outcome};
use crate::watch::{Follow, Followed, listen};

/// Sends the command, then follows the session that it begins, at most `limit`; without one it ends at once.
pub(super) async fn run(
    command: Command,
    limit: Option<Duration>,
    context: &Context<'_>,
) -> Answer {
    let client = &context.client;
    client.check_server().await?;
    let command_id = client.env.command_id();
    // A command about a session that exists goes on with that one.
    let session_id = command
        .session()
        .unwrap_or_else(|| SessionId::from(command_id));
    let Some(limit) = limit else {
        client.send(command_id, command).await?;
        let sent = SentJson {
            command_id,
            session_id,
        };
        context.output.result(&sent, |_| sent.text())?;
        return Ok(SUCCESS);
    };
    let queue = listen(client).await?;
    let mut view = SessionView::new(session_id);
    if command.session().is_some() {
        view.resync(client.session(session_id).await?);
    }
    client.send(command_id, command).await?;
    context.output.note(&format!("session {session_id}"));
    let follow = Follow {
        client,
        output: context.output,
        queue,
        view,
        command_id,
        goal: Goal::Ready,
        limit,
    };
    report(&follow.run().await?, context)
}

/// Writes how the following came out.
pub(super) fn report(followed: &Followed, context: &Context<'_>) -> Answer {
    let json = OutcomeJson::of(followed);
    context
        .output
        .result(&json, |zone| outcome(followed, zone))?;
    match &followed.end {
        End::Failed(Some(problem)) => Err(Failure::Problem(problem.clone())),
        end => Ok(end.exit_code()),
    }
}
