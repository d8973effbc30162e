//! `explorer session`: one session, whole.

use super::{Context, resolve};
use crate::exit::{Answer, SUCCESS};
use crate::output::session;
use crate::session_ref::SessionRef;

/// Shows the session.
pub(super) async fn run(named: &SessionRef, context: &Context<'_>) -> Answer {
    let id = resolve(named, context).await?;
    let detail = context.client.session(id).await?;
    context
        .output
        .result(&detail, |zone| session::detail(&detail, zone))?;
    Ok(SUCCESS)
}
