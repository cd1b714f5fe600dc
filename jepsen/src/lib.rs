//! Galoo under faults.
//!
//! - [`sim`]: three nodes in one thread on virtual time: the shipped Raft loop, state machines (shards and meta group)
//!   and router over a log, an engine and a network that fail as a seed says.
//! - [`process`]: a cluster of the real binary; [`history`]: what clients were told, and whether what is stored agrees.
//!   `tests/process.rs` kills and starts nodes and brings the two together; [`calls`]: what its clients ask.
//! - [`disk`]: what a power cut leaves of a node's folder. `tests/disk.rs` cuts a recorded node at every kind of write.
//!
//! Crash tests of one node live beside the server, in `server/tests`.

pub mod calls;
pub mod disk;
pub mod history;
pub mod process;
pub mod sim;
