//! Each service's small HTTP door, on loopback by default: `/healthz` (the process lives), `/readyz` (bus and journal work)
//! and `/metrics` (Prometheus text).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::problem::{ErrorCode, Problem};

/// Says whether the service can work: `Err` is a sentence about what is missing.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
struct Door {
    readiness: Readiness,
    registry: Registry,
}

/// A bound door; [`HttpDoor::serve`] opens it.
#[derive(Debug)]
pub struct HttpDoor {
    listener: TcpListener,
}

impl HttpDoor {
    /// Takes the address, so that an address in use is found at start.
    pub async fn bind(address: SocketAddr) -> Result<Self, Problem> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Problem::new(
                ErrorCode::InvalidConfiguration,
                format!("http_listen {address} cannot be used: {error}"),
                "choose a free address and port",
            )
        })?;
        Ok(Self { listener })
    }

    /// The address that was taken (of interest when port 0 was asked for).
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until the token is cancelled.
    pub async fn serve(self, readiness: Readiness, registry: Registry, stop: CancellationToken) {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Door {
                readiness,
                registry,
            });
        let served =
            axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the HTTP door closed");
        }
    }
}

async fn readyz(State(door): State<Door>) -> (StatusCode, String) {
    match (door.readiness)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(missing) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {missing}\n"),
        ),
    }
}

async fn metrics(State(door): State<Door>) -> (StatusCode, Vec<u8>) {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&door.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string().into_bytes(),
        ),
    }
}
