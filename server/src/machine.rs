//! The state machines that this node replicates.

pub use galoo_cluster::machine::{Answer, META_KEYSPACE, Machine, MachineError, MetaMachine};
