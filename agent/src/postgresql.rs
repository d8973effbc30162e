//! PostgreSQL on the target: finding it, writing its configuration, starting, watching and stopping it.
//!
//! A published instance must never harm production: it archives nothing, follows nobody, and runs on its own timeline.

pub mod configuration;
pub mod control_data;
pub mod find;
pub mod host_based_authentication;
pub mod host_files;
pub mod instance;
pub mod log;
pub mod prepare;
pub mod process;
pub mod query;
pub mod restore_command;
pub mod server;
pub mod settings_file;
