//! The one program that runs on a target: the FUSE mount with its write cache, and a typed hand for PostgreSQL and host facts.

pub mod base;
pub mod cache;
pub mod fs;
pub mod hand;
mod own_program;
pub mod postgresql;
mod recovery;
pub mod supervisor;
pub mod sys;
pub mod worker;
