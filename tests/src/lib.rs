//! What the whole-system tests share: real brokers, processes and mounts that go away with the test; and the files that are
//! generated from the code.

pub mod broker;
pub mod generated;
