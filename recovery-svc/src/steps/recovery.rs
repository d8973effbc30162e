//! What the steps of an instant recovery share: requests to the agent about the final place.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use common::agent::hand::{
    FinalPlace, RecoveryAction, RecoveryRequest, RecoveryResponse, Request, Response,
};
use common::problem::{ErrorCode, Problem};
use common::session::{RecoverySpec, SessionState, StepOutcome};

use super::Grip;
use crate::hand::unexpected;

/// Where the instance is to stay; tablespaces that nobody named stay where they were on the original.
pub(crate) fn final_place(state: &SessionState) -> Result<FinalPlace, Problem> {
    let recovery = spec(state)?;
    let known: BTreeMap<u32, PathBuf> = match &state.mount {
        Some(mount) => mount.tablespaces.clone(),
        None => BTreeMap::new(),
    };
    if state.mount.is_some()
        && let Some(oid) = recovery
            .tablespaces
            .keys()
            .find(|oid| !known.contains_key(oid))
    {
        let there: Vec<String> = known
            .iter()
            .map(|(oid, path)| format!("{oid} ({})", path.display()))
            .collect();
        return Err(Problem::new(
            ErrorCode::InvalidField,
            format!("the backup has no tablespace {oid}"),
            match there.is_empty() {
                true => "leave tablespaces out: the backup has none".to_owned(),
                false => format!("name tablespaces by oid: {}", there.join(", ")),
            },
        ));
    }
    let mut tablespaces = known;
    tablespaces.extend(recovery.tablespaces.clone());
    Ok(FinalPlace {
        data_directory: recovery.data_directory.clone(),
        tablespaces,
        replace: recovery.replace,
    })
}

/// What only recoveries were asked.
pub(crate) fn spec(state: &SessionState) -> Result<&RecoverySpec, Problem> {
    state.spec.recovery.as_ref().ok_or_else(|| {
        Problem::new(
            ErrorCode::Internal,
            "the session is no recovery",
            "report this as a bug",
        )
    })
}

/// How long an answer may take beside the work: the agent says itself when it could not finish.
const ANSWER_FOR: Duration = Duration::from_secs(15);

/// Asks for something about the final place.
pub(crate) async fn ask(
    hand: &Grip<'_>,
    state: &SessionState,
    action: RecoveryAction,
) -> Result<RecoveryResponse, Problem> {
    let limit = action.limit() + ANSWER_FOR;
    let request = RecoveryRequest {
        place: state.spec.place.clone(),
        final_place: final_place(state)?,
        action,
    };
    match hand
        .ask(Request::Recovery(Box::new(request)), limit)
        .await?
    {
        Response::Recovery(response) => Ok(response),
        other => Err(unexpected("a request of a recovery", &other)),
    }
}

/// Asks for something whose answer is `done`.
pub(crate) async fn act(
    hand: &Grip<'_>,
    state: &SessionState,
    action: RecoveryAction,
) -> Result<StepOutcome, Problem> {
    match ask(hand, state, action).await? {
        RecoveryResponse::Done => Ok(StepOutcome::Done),
        other => Err(unfitting(&other)),
    }
}

/// The answer is of another kind than was asked for: a mistake of ours.
pub(crate) fn unfitting(response: &RecoveryResponse) -> Problem {
    unexpected(
        "a request of a recovery",
        &Response::Recovery(response.clone()),
    )
}

/// The last lines of a log, for a sentence.
pub(crate) fn last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        return "its log is empty".to_owned();
    }
    let text = lines.join(" | ");
    // The end matters most, and a problem's text is cut at its end.
    let skip = text.chars().count().saturating_sub(800);
    text.chars().skip(skip).collect()
}
