//! Galoo under faults.
//!
//! - [`sim`]: three nodes in one thread on virtual time: the shipped Raft loop, state machines (shards and meta group)
//!   and router over a log, an engine and a network that fail as a seed says.
//! - [`process`]: a cluster of the real binary; [`history`]: what clients were told, and whether what is stored agrees.
//!   `tests/process.rs` kills and starts nodes and brings the two together.
//!
//! Crash tests of one node live beside the server, in `server/tests`.

pub mod history;
pub mod process;
pub mod sim;
