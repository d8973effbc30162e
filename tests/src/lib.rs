//! What the whole-system tests share: real brokers, servers, processes and mounts that go away with the test.

pub mod broker;
pub mod leftovers;
pub mod postgres;
pub mod programs;
pub mod system;
pub mod wait;
