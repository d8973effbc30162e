//! The hands of real agents.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use common::agent::client::AgentConnection;
use common::agent::hand::{Request, Response};
use common::config::TargetConfig;
use common::ids::TargetName;
use common::problem::Problem;
use tokio::sync::Mutex;

use crate::hand::{Hand, Hands};

/// Opens connections as the targets' configuration says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Agents;

#[async_trait]
impl Hands for Agents {
    async fn open(
        &self,
        _name: &TargetName,
        target: &TargetConfig,
    ) -> Result<Arc<dyn Hand>, Problem> {
        let connection = AgentConnection::open(&target.endpoint()).await?;
        Ok(Arc::new(AgentHand {
            connection: Mutex::new(connection),
        }))
    }
}

struct AgentHand {
    // Held over a request: the agent answers one at a time.
    connection: Mutex<AgentConnection>,
}

#[async_trait]
impl Hand for AgentHand {
    async fn request(&self, request: Request, timeout: Duration) -> Result<Response, Problem> {
        self.connection.lock().await.request(request, timeout).await
    }
}
