//! What the whole-system tests share: real brokers, processes and mounts that go away with the test.

pub mod broker;
