//! What the whole-system tests share: real brokers, servers, processes and mounts that go away with the test; and the files that
//! are generated from the code.

pub mod account;
pub mod azure_server;
pub mod barman;
pub mod bench;
pub mod broker;
pub mod gate;
pub mod generated;
pub mod google_front;
pub mod history;
pub mod ledger;
pub mod leftovers;
pub mod pauses;
pub mod pgbackrest;
pub mod postgres;
pub mod programs;
pub mod ready;
pub mod recoverable;
pub mod s3_server;
pub mod same_backups;
pub mod same_files;
pub mod shop;
pub mod small_repository;
pub mod system;
pub mod tls_front;
pub mod tree_hash;
pub mod victims;
pub mod volume;
pub mod wait;
