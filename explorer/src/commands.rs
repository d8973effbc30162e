//! One file a command; this one opens what they share and hands over.

mod backups;
mod begin;
mod completions;
mod doctor;
mod end;
mod events;
mod parked;
mod session;
mod sessions;
mod topology;

use common::env::Env;
use common::ids::{CommandId, ServerName};
use common::messages::{
    Command as Message, MountFiles, Publish, Recover, RecoverSession, SessionsQuery,
};

use crate::cli::{Cli, Command, Global};
use crate::client::Client;
use crate::config::ExplorerConfig;
use crate::exit::{Answer, Failure};
use crate::output::Output;
use crate::session_ref::SessionRef;

/// What a command works with.
pub(crate) struct Context<'a> {
    pub(crate) output: &'a Output,
    pub(crate) client: Client,
}

/// Carries out one command line.
pub(crate) async fn run(cli: Cli, output: &Output) -> Answer {
    // What needs no broker, or must say something when there is none, comes first.
    match &cli.command {
        Command::Completions { shell } => return completions::run(*shell, output),
        Command::Topology(what) => {
            let (config, server) = configuration(&cli.global)?;
            return topology::run(*what, &config, &server, output).await;
        }
        Command::Doctor { target } => {
            let (config, server) = configuration(&cli.global)?;
            return doctor::run(target.clone(), &config, server, output).await;
        }
        _ => {}
    }
    let (config, server) = configuration(&cli.global)?;
    let client = open(&config, server).await?;
    let context = Context { output, client };
    let answer = with_broker(cli.command, &context).await;
    context.client.bus.close().await;
    answer
}

fn configuration(global: &Global) -> Result<(ExplorerConfig, ServerName), Failure> {
    let config = ExplorerConfig::load(global.config.as_deref())?;
    let server = config.server(global.server.as_ref())?;
    Ok((config, server))
}

async fn open(config: &ExplorerConfig, server: ServerName) -> Result<Client, Failure> {
    let env = Env::system();
    let bus = crate::connect::open(config, &server, &env).await?;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    Ok(Client {
        bus,
        env,
        server,
        source: format!("/hosts/{}/explorer", host.replace(' ', "_")),
    })
}

async fn with_broker(command: Command, context: &Context<'_>) -> Answer {
    match command {
        Command::Backups { repository } => backups::run(repository, context).await,
        Command::Publish {
            what,
            port,
            to,
            wait,
        } => {
            let message = Message::from(Publish {
                repository: what.repository,
                backup: what.backup,
                target: what.target,
                port,
                hydrate: what.hydrate,
                recovery_target: to,
                reason: what.reason,
            });
            begin::run(message, wait.limit(), context).await
        }
        Command::Recover {
            repository,
            backup,
            target,
            port,
            to,
            reason,
            from_session,
            location,
            wait,
        } => {
            let location = location.into();
            let message = match (from_session, repository, target) {
                (Some(session), ..) => Message::from(RecoverSession {
                    session_id: resolve(&session, context).await?,
                    location,
                }),
                (None, Some(repository), Some(target)) => Message::from(Recover {
                    repository,
                    backup,
                    target,
                    port,
                    location,
                    recovery_target: to.unwrap_or_default(),
                    reason,
                }),
                (None, ..) => unreachable!("clap requires both"),
            };
            begin::run(message, wait.limit(), context).await
        }
        Command::Switchover {
            session,
            order,
            wait,
        } => {
            let which = crate::cli::Which {
                session: Some(session),
                all: false,
            };
            let action = end::Action::Switchover(order.into());
            end::run(action, which, wait.limit(), context).await
        }
        Command::Mount { what, wait } => {
            let message = Message::from(MountFiles {
                repository: what.repository,
                backup: what.backup,
                target: what.target,
                hydrate: what.hydrate,
                reason: what.reason,
            });
            begin::run(message, wait.limit(), context).await
        }
        Command::Unpublish { which, wait } => {
            end::run(end::Action::Unpublish, which, wait.limit(), context).await
        }
        Command::Cancel { session, wait } => {
            let which = crate::cli::Which {
                session: Some(session),
                all: false,
            };
            end::run(end::Action::Cancel, which, wait.limit(), context).await
        }
        Command::Retry { which, wait } => {
            end::run(end::Action::Retry, which, wait.limit(), context).await
        }
        Command::Sessions { watch, all } => sessions::run(watch, all, context).await,
        Command::Session { session } => session::run(&session, context).await,
        Command::Events {
            follow,
            since,
            session,
        } => events::run(follow, since, session, context).await,
        Command::Parked(command) => parked::run(command, context).await,
        // Carried out before a broker was needed.
        Command::Topology(_) | Command::Doctor { .. } | Command::Completions { .. } => {
            Ok(crate::exit::SUCCESS)
        }
    }
}

/// Finds the session that is meant; a whole id needs no question.
async fn resolve(
    session: &SessionRef,
    context: &Context<'_>,
) -> Result<common::ids::SessionId, Failure> {
    if let Some(id) = session.whole() {
        return Ok(id);
    }
    let query = SessionsQuery {
        include_ended: true,
    };
    let list = context.client.sessions(query).await?;
    Ok(session.resolve(&list.sessions)?)
}

/// What a command that nobody waits for leaves behind.
#[derive(Debug, serde::Serialize)]
struct SentJson {
    command_id: CommandId,
    session_id: common::ids::SessionId,
}

impl SentJson {
    fn text(&self) -> String {
        let id = self.session_id;
        format!("sent; session {id}\n  next       explorer session {id}\n")
    }
}
