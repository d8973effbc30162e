//! `explorer unpublish`, `cancel`, `retry` and `switchover`: what is done to a session that exists.

use std::time::Duration;

use common::ids::SessionId;
use common::messages::{
    Cancel, Command, Retry, SessionDetail, SessionStatus, SessionSummary, SessionsQuery,
    Switchover, SwitchoverOrder, Unpublish,
};
use common::problem::{ErrorCode, Problem};

use super::begin::report;
use super::{Context, SentJson, resolve};
use crate::cli::Which;
use crate::exit::{Answer, Failure, SUCCESS};
use crate::follow::{Goal, SessionView};
use crate::watch::{Follow, listen};

/// What can be done to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Unpublish,
    Cancel,
    Retry,
    Switchover(SwitchoverOrder),
}

impl Action {
    fn command(self, session_id: SessionId) -> Command {
        match self {
            Action::Unpublish => Unpublish { session_id }.into(),
            Action::Cancel => Cancel { session_id }.into(),
            Action::Retry => Retry { session_id }.into(),
            Action::Switchover(order) => Switchover { session_id, order }.into(),
        }
    }

    fn goal(self) -> Goal {
        match self {
            Action::Unpublish | Action::Cancel => Goal::Gone,
            Action::Retry => Goal::Ready,
            Action::Switchover(_) => Goal::SwitchedOver,
        }
    }

    /// Whether there is something to wait for; a switchover that is only ordered for later is not.
    fn is_followed(self) -> bool {
        match self {
            Action::Switchover(order) => order == SwitchoverOrder::Now,
            Action::Unpublish | Action::Cancel | Action::Retry => true,
        }
    }

    /// The status after which there is nothing left to do.
    fn is_done_by(self, status: SessionStatus) -> bool {
        match self {
            Action::Unpublish | Action::Switchover(_) => status == SessionStatus::Completed,
            Action::Cancel => status == SessionStatus::Cancelled,
            Action::Retry => false,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Action::Unpublish => "unpublish",
            Action::Cancel => "cancel",
            Action::Retry => "retry",
            Action::Switchover(_) => "switch over",
        }
    }

    /// Which sessions `--all` means.
    fn fits(self, session: &SessionSummary) -> bool {
        use SessionStatus::*;
        match self {
            Action::Unpublish => matches!(session.status, Published | Mounted),
            Action::Retry => matches!(session.status, WaitingForRetry | WaitingForManualRetry),
            Action::Cancel | Action::Switchover(_) => false,
        }
    }
}

/// Does it to one session, or one after the other to all that it fits; the worst exit code counts.
pub(super) async fn run(
    action: Action,
    which: Which,
    limit: Option<Duration>,
    context: &Context<'_>,
) -> Answer {
    if let Some(session) = &which.session {
        let id = resolve(session, context).await?;
        return one(action, id, limit, context).await;
    }
    let query = SessionsQuery {
        include_ended: false,
    };
    let list = context.client.sessions(query).await?;
    let fitting: Vec<_> = list.sessions.iter().filter(|s| action.fits(s)).collect();
    if fitting.is_empty() {
        context
            .output
            .note(&format!("no session to {}", action.word()));
    }
    let mut worst = SUCCESS;
    for session in fitting {
        let code = match one(action, session.session_id, limit, context).await {
            Ok(code) => code,
            // One session's trouble must not keep the others waiting.
            Err(Failure::Problem(problem)) => {
                context.output.refusal(&problem);
                problem.code.exit_code()
            }
            Err(failure) => return Err(failure),
        };
        worst = worst.max(code);
    }
    Ok(worst)
}

async fn one(
    action: Action,
    session_id: SessionId,
    limit: Option<Duration>,
    context: &Context<'_>,
) -> Answer {
    let client = &context.client;
    // The queue comes first and the state second, so that nothing can happen between them unseen.
    let queue = listen(client).await?;
    let detail = client.session(session_id).await?;
    if let Some(answer) = nothing_to_do(action, &detail) {
        context.output.note(&answer?);
        return Ok(SUCCESS);
    }
    let command_id = client.env.command_id();
    client.send(command_id, action.command(session_id)).await?;
    let Some(limit) = limit.filter(|_| action.is_followed()) else {
        let sent = SentJson {
            command_id,
            session_id,
        };
        context.output.result(&sent, |_| sent.text())?;
        return Ok(SUCCESS);
    };
    let mut view = SessionView::new(session_id);
    view.resync(detail);
    let follow = Follow {
        client,
        output: context.output,
        queue,
        view,
        command_id,
        goal: action.goal(),
        limit,
    };
    report(&follow.run().await?, context)
}

/// What is said instead of sending a command to a session that has ended.
fn nothing_to_do(action: Action, detail: &SessionDetail) -> Option<Result<String, Problem>> {
    let status = detail.summary.status;
    let id = detail.summary.session_id;
    if !status.is_final() {
        return None;
    }
    if action.is_done_by(status) {
        return Some(Ok(format!("session {id} is {status} already")));
    }
    Some(Err(Problem::new(
        ErrorCode::NotPossibleNow,
        format!(
            "session {id} has ended ({status}), there is nothing to {}",
            action.word()
        ),
        "look at `explorer sessions` for those that go on",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn all_means_the_sessions_that_it_fits() {
        let sessions = samples::sessions();
        let fitting = |action: Action| -> Vec<String> {
            let fitting = sessions.iter().filter(|s| action.fits(s));
            fitting.map(|s| s.session_id.to_string()).collect()
        };
        assert_eq!(fitting(Action::Unpublish), [samples::ID]);
        assert_eq!(fitting(Action::Retry), [samples::OTHER_ID]);
        assert!(fitting(Action::Cancel).is_empty());
    }

    #[test]
    fn a_session_that_has_ended_is_left_alone() {
        let [mut summary, _] = <[_; 2]>::try_from(samples::sessions()).unwrap();
        let mut said = |action, status| {
            summary.status = status;
            let detail = SessionDetail {
                summary: summary.clone(),
                steps: Vec::new(),
                published: None,
                mounted: None,
                recovery: None,
                waiting: None,
                cache: None,
                warnings: Vec::new(),
                reason: None,
                log: Vec::new(),
            };
            nothing_to_do(action, &detail).map(|said| said.map_err(|problem| problem.code))
        };
        assert_eq!(said(Action::Unpublish, SessionStatus::Published), None);
        assert_eq!(
            said(Action::Unpublish, SessionStatus::Completed),
            Some(Ok(format!("session {} is Completed already", samples::ID)))
        );
        assert_eq!(
            said(Action::Retry, SessionStatus::Failed),
            Some(Err(ErrorCode::NotPossibleNow))
        );
    }
}
