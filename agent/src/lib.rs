//! The program that runs on the target host: the FUSE file system with its write cache, and the hand
//! that controls PostgreSQL.

pub mod base;
pub mod cache;
pub mod fs;
pub mod supervisor;
pub mod sys;
pub mod worker;
