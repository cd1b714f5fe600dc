//! Galoo under faults.
//!
//! [`sim`] runs three nodes in one thread on virtual time: the shipped Raft loop and shard state machine over a log, an
//! engine and a network that fail as a seed says. Real processes are killed in `tests/`.

pub mod sim;
