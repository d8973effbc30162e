//! `explorer backups`: what can be published.

use common::ids::RepositoryName;
use common::messages::BackupsQuery;

use super::Context;
use crate::exit::{Answer, NOT_FULFILLED, SUCCESS};
use crate::output::lists;

/// Lists the backups; exit code 2 when something could not be read.
pub(super) async fn run(repository: Option<RepositoryName>, context: &Context<'_>) -> Answer {
    let list = context.client.backups(BackupsQuery { repository }).await?;
    context
        .output
        .result(&list, |zone| lists::backups(&list, zone))?;
    match list.problems.is_empty() {
        true => Ok(SUCCESS),
        false => Ok(NOT_FULFILLED),
    }
}
