//! mount-svc: takes commands from the queue, delegates them, opens repositories, makes and keeps mounts, and serves pages to agents.
//!
//! A message is decided about in [`intake`], carried out in one journal transaction by [`service`], and a [`keeper`] task per mount
//! brings the mount to what its [`record`] wants.

pub mod backup_source;
pub mod config;
pub mod intake;
pub mod keeper;
pub mod layout;
pub mod maker;
pub mod metrics;
pub mod opening;
pub mod page_server;
pub mod record;
pub mod repositories;
pub mod run;
pub mod service;
pub mod store;
