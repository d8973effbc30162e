//! Makes and releases one mount through the hand of the target's agent. Each operation is idempotent.

use std::time::Duration;

use common::agent::client::{AgentConnection, PageStream};
use common::agent::hand::{
    CacheAfterwards, MountOptions, MountStatus, Request, Response, SessionPlace,
    TREE_CHUNK_ENTRIES_MAX, TreeEntry, TreeFinish,
};
use common::config::TargetConfig;
use common::problem::{ErrorCode, Problem};

/// How long the agent may take for a small request.
const SHORT: Duration = Duration::from_secs(20);
/// How long the agent may take to mount or unmount.
const LONG: Duration = Duration::from_secs(90);

/// The hand of one target, and the place of one session on it.
#[derive(Debug)]
pub struct Maker {
    hand: AgentConnection,
    place: SessionPlace,
    options: MountOptions,
}

/// Where a session lives on a target.
pub fn place(target: &TargetConfig, session_id: common::ids::SessionId) -> SessionPlace {
    SessionPlace {
        session_id,
        mount_root: target.mount_root.clone(),
        cache_root: target.cache_root.clone(),
        os_user: target.os_user.clone(),
    }
}

impl Maker {
    /// Connects to the target's agent.
    pub async fn connect(target: &TargetConfig, place: SessionPlace) -> Result<Self, Problem> {
        let hand = AgentConnection::open(&target.endpoint()).await?;
        let options = MountOptions {
            base_wait_s: target.base_wait_s,
            ..MountOptions::default()
        };
        Ok(Self {
            hand,
            place,
            options,
        })
    }

    /// Makes the session's directories, hands the tree over, and mounts.
    pub async fn make(
        &mut self,
        tree: &[TreeEntry],
        finish: TreeFinish,
    ) -> Result<MountStatus, Problem> {
        self.done(
            Request::CreateSession {
                place: self.place.clone(),
            },
            SHORT,
        )
        .await?;
        self.write_tree(tree, finish).await?;
        let request = Request::Mount {
            place: self.place.clone(),
            options: self.options.clone(),
        };
        match self.hand.request(request, LONG).await? {
            Response::Mounted(status) => Ok(status),
            other => Err(unexpected("Mount", &other)),
        }
    }

    async fn write_tree(&mut self, tree: &[TreeEntry], finish: TreeFinish) -> Result<(), Problem> {
        // The layout always has its two roots, so there is at least one chunk and the last one carries the end.
        let chunks = tree.chunks(TREE_CHUNK_ENTRIES_MAX);
        let last = chunks.len().saturating_sub(1);
        for (number, entries) in chunks.enumerate() {
            let request = Request::WriteTree {
                place: self.place.clone(),
                chunk: u32::try_from(number).unwrap_or(u32::MAX),
                entries: entries.to_vec(),
                finish: (number == last).then_some(finish),
            };
            self.done(request, LONG).await?;
        }
        Ok(())
    }

    /// How the mount is; `None` when there is none.
    pub async fn status(&mut self) -> Result<Option<MountStatus>, Problem> {
        match self
            .hand
            .request(
                Request::MountStatus {
                    place: self.place.clone(),
                },
                SHORT,
            )
            .await?
        {
            Response::MountStatus(status) => Ok(status),
            other => Err(unexpected("MountStatus", &other)),
        }
    }

    /// Turns a connection of its own into the page channel.
    pub async fn attach(target: &TargetConfig, place: SessionPlace) -> Result<PageStream, Problem> {
        AgentConnection::open(&target.endpoint())
            .await?
            .attach(place, SHORT)
            .await
    }

    /// Unmounts.
    pub async fn unmount(&mut self, cache: CacheAfterwards) -> Result<(), Problem> {
        self.done(
            Request::Unmount {
                place: self.place.clone(),
                cache,
            },
            LONG,
        )
        .await
    }

    /// Removes the session's directories, write cache included.
    pub async fn remove(&mut self) -> Result<(), Problem> {
        self.done(
            Request::RemoveSession {
                place: self.place.clone(),
            },
            LONG,
        )
        .await
    }

    /// The data directory in the mount.
    pub fn data_directory(&self) -> std::path::PathBuf {
        self.place.data_directory()
    }

    /// The mount point.
    pub fn mount_point(&self) -> std::path::PathBuf {
        self.place.mount_point()
    }

    async fn done(&mut self, request: Request, limit: Duration) -> Result<(), Problem> {
        match self.hand.request(request, limit).await? {
            Response::Done => Ok(()),
            other => Err(unexpected("a request", &other)),
        }
    }
}

fn unexpected(request: &str, response: &Response) -> Problem {
    let text: String = format!("{response:?}").chars().take(200).collect();
    Problem::new(
        ErrorCode::AgentMismatch,
        format!("the agent answered {request} with {text}"),
        "use services and agent of the same version",
    )
}
