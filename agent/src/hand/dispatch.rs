//! From a request to the part that answers it.

use std::sync::Arc;
use std::time::Duration;

use common::agent::hand::{InstanceOptions, PROTOCOL_VERSION, Request, Response, SessionPlace};
use common::problem::{ErrorCode, Problem};

use super::mounts::{MountKeeper, TreeChunk};
use super::{host, os_user, port, session, turn};
use crate::postgresql::instance::{Instance, running};
use crate::postgresql::query::Asked;
use crate::postgresql::{find, prepare, query};
use crate::recovery;

/// Answers requests; cheap to clone.
#[derive(Clone)]
pub struct Hand {
    mounts: Arc<dyn MountKeeper>,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Hand {
    /// A hand over these mounts.
    pub fn new(mounts: impl MountKeeper) -> Self {
        Self {
            mounts: Arc::new(mounts),
        }
    }

    /// The FUSE side.
    pub fn mounts(&self) -> &dyn MountKeeper {
        &*self.mounts
    }

    /// Answers one request; blocks, but not for longer than its deadline.
    pub fn answer(
        &self,
        request: Request,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Response, Problem> {
        let done = |()| Response::Done;
        let _turn = turn::take(&request, deadline(&request))?;
        match request {
            Request::Hello { protocol } => hello(protocol),
            Request::HostFacts { paths } => host::facts(&paths).map(Response::HostFacts),
            Request::CheckOsUser { user, roots } => {
                let account = os_user::look_up(&user)?;
                account.check_we_may_act()?;
                roots
                    .iter()
                    .try_for_each(|root| account.check_can_enter(root))?;
                Ok(Response::Done)
            }
            Request::FindPostgresql {
                major,
                extra_directories,
            } => find::find(major, &extra_directories).map(Response::Postgresql),
            Request::ListPostgresql { extra_directories } => {
                Ok(Response::PostgresqlList(find::list(&extra_directories)))
            }
            Request::CheckPort {
                port,
                listen_addresses,
            } => port::check(port, &listen_addresses).map(done),
            Request::CreateSession { place } => {
                session::create(&place, &os_user::look_up(&place.os_user)?).map(done)
            }
            Request::WriteTree {
                place,
                chunk,
                entries,
                finish,
            } => self
                .mounts
                .write_tree(
                    &place,
                    TreeChunk {
                        number: chunk,
                        entries,
                        finish,
                    },
                )
                .map(done),
            Request::Mount { place, options } => {
                self.mounts.start(&place, &options).map(Response::Mounted)
            }
            Request::MountStatus { place } => self.mounts.status(&place).map(Response::MountStatus),
            Request::Unmount { place, cache } => self.mounts.stop(&place, cache).map(done),
            Request::RemoveSession { place } => {
                let account = os_user::look_up(&place.os_user)?;
                if let Some(why) = recovery::holds_what_must_stay(&place) {
                    return Err(Problem::new(
                        ErrorCode::CacheInUse,
                        format!("session {} cannot be removed: {why}", place.session_id),
                        "remove the standby and put the original back first",
                    ));
                }
                let runs = running(&place, &account).is_some();
                session::remove(&place, self.mounts(), runs).map(done)
            }
            Request::ListSessions {
                mount_root,
                cache_root,
            } => session::list(&mount_root, &cache_root, self.mounts()).map(Response::Sessions),
            Request::Attach { .. } | Request::AttachDirectly { .. } => Err(Problem::new(
                ErrorCode::Internal,
                "an attach is answered by the connection itself",
                "report this",
            )),
            Request::Recovery(asked) => recovery::answer(&asked, runtime).map(Response::Recovery),
            Request::Prepare { place, instance } => prepare_instance(&place, &instance),
            Request::StartInstance { place, instance } => {
                let major = major(&instance)?;
                with_instance(&place, &instance, |i| i.start(major)).map(done)
            }
            Request::InstanceStatus { place, instance } => {
                with_instance(&place, &instance, |i| i.status(runtime)).map(Response::Instance)
            }
            Request::StopInstance {
                place,
                instance,
                timeout_s,
            } => {
                let timeout = Duration::from_secs(timeout_s.into());
                with_instance(&place, &instance, |i| i.stop(timeout)).map(done)
            }
            Request::Query {
                place,
                instance,
                database,
                sql,
            } => {
                let socket = place.socket_directory();
                let asked = Asked {
                    socket_directory: &socket,
                    port: instance.port,
                    user: &instance.superuser,
                };
                runtime
                    .block_on(query::rows(&asked, &database, &sql))
                    .map(Response::Rows)
            }
        }
    }
}

/// How long a request may take before the asker is told that it has not ended.
pub(super) fn deadline(request: &Request) -> Duration {
    let seconds = match request {
        Request::Hello { .. } => 10,
        Request::Recovery(asked) => return asked.action.limit(),
        Request::StopInstance { timeout_s, .. } => 60 + u64::from(*timeout_s),
        // These read from the mount, which waits for the mount server.
        Request::Prepare { .. } | Request::StartInstance { .. } => 300,
        Request::RemoveSession { .. } => 600,
        Request::Mount { .. } | Request::Unmount { .. } | Request::Query { .. } => 120,
        _ => 60,
    };
    Duration::from_secs(seconds)
}

fn hello(protocol: u32) -> Result<Response, Problem> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    if protocol == PROTOCOL_VERSION {
        return Ok(Response::Hello { protocol, version });
    }
    Err(Problem::new(
        ErrorCode::AgentMismatch,
        format!("the agent {version} speaks protocol {PROTOCOL_VERSION}, the service {protocol}"),
        "install the same version of pginstant on mount server and target",
    ))
}

fn with_instance<T>(
    place: &SessionPlace,
    options: &InstanceOptions,
    work: impl FnOnce(&Instance<'_>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let account = os_user::look_up(&place.os_user)?;
    work(&Instance {
        place,
        options,
        account: &account,
    })
}

fn prepare_instance(place: &SessionPlace, options: &InstanceOptions) -> Result<Response, Problem> {
    let account = os_user::look_up(&place.os_user)?;
    if running(place, &account).is_some() {
        return Err(Problem::new(
            ErrorCode::NotPossibleNow,
            format!("PostgreSQL of session {} runs", place.session_id),
            "stop it before it is prepared anew",
        ));
    }
    let prepared = prepare::prepare(place, options, &account)?;
    recovery::keep_clear(place, options, &account)?;
    Ok(Response::Prepared(prepared))
}

fn major(options: &InstanceOptions) -> Result<u32, Problem> {
    find::inspect(&options.program_directory)
        .map(|installation| installation.major)
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::PostgresqlNotFound,
                format!(
                    "{} holds no PostgreSQL programs",
                    options.program_directory.display()
                ),
                "name the directory that holds the program postgres",
            )
        })
}
