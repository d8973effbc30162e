//! The hand on a target, as this service sees it: typed requests with a limit on how long each may take.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::agent::hand::{PROTOCOL_VERSION, Request, Response};
use common::config::TargetConfig;
use common::ids::TargetName;
use common::problem::{ErrorCode, Problem};

/// A connection to the agent on a target.
#[async_trait]
pub trait Hand: Send + Sync {
    /// Asks for something; fails with `timed_out` or `target_unreachable` when no answer comes.
    async fn request(&self, request: Request, timeout: Duration) -> Result<Response, Problem>;
}

/// Opens connections to agents.
#[async_trait]
pub trait Hands: Send + Sync {
    /// A new connection to a target's agent.
    async fn open(
        &self,
        name: &TargetName,
        target: &TargetConfig,
    ) -> Result<Arc<dyn Hand>, Problem>;
}

/// Limit of a request that only looks.
pub(crate) const LOOK_FOR: Duration = Duration::from_secs(30);
/// Limit of a request that changes something.
pub(crate) const ACT_FOR: Duration = Duration::from_secs(120);

/// Greets the agent: another version of the protocol cannot be worked with.
pub(crate) async fn greet(hand: &dyn Hand) -> Result<String, Problem> {
    let hello = Request::Hello {
        protocol: PROTOCOL_VERSION,
    };
    match hand.request(hello, LOOK_FOR).await? {
        Response::Hello { protocol, version } if protocol == PROTOCOL_VERSION => Ok(version),
        Response::Hello { protocol, version } => Err(Problem::new(
            ErrorCode::AgentMismatch,
            format!(
                "the agent {version} speaks protocol {protocol}, this service {PROTOCOL_VERSION}"
            ),
            "install the agent and the services of one release",
        )),
        other => Err(unexpected("hello", &other)),
    }
}

/// The answer is of another kind than was asked for: a mistake of ours.
pub(crate) fn unexpected(asked: &str, response: &Response) -> Problem {
    let mut text = format!("{response:?}");
    text.truncate(
        text.char_indices()
            .nth(200)
            .map_or(text.len(), |(at, _)| at),
    );
    Problem::new(
        ErrorCode::Internal,
        format!("the agent answered {asked} with {text}"),
        "report this as a bug",
    )
}

/// Asks for something whose answer is `done`.
pub(crate) async fn done(
    hand: &dyn Hand,
    request: Request,
    timeout: Duration,
) -> Result<(), Problem> {
    match hand.request(request, timeout).await? {
        Response::Done => Ok(()),
        other => Err(unexpected("a request", &other)),
    }
}
