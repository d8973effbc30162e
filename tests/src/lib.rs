//! What whole-system tests are made of: real PostgreSQL clusters and the backups of them.

pub mod postgres;
