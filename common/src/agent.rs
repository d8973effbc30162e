//! What services and the agent say to each other on a connection to the agent's hand.
//!
//! A connection (the hand's standard input and output, or its socket) begins as JSON lines: one [`hand::RequestFrame`] a line to the agent,
//! one [`hand::ResponseFrame`] a line back, one at a time. After a granted [`hand::Request::Attach`] the same connection
//! carries the binary frames of [`pages`], in which the agent asks for pages of the backup.

pub mod buffers;
#[cfg(feature = "service")]
pub mod client;
pub mod hand;
pub mod pages;
pub mod passing;
