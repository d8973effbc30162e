//! mount-svc: takes commands from the queue, delegates them, opens repositories, makes and keeps mounts, and serves pages to agents.

pub mod config;
pub mod layout;
pub mod page_server;
pub mod record;
