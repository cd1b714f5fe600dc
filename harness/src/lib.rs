//! Real processes on this machine, for the demo, the chaos suite and the tests of the binary.
//!
//! - [`Process`]: one process with its lines and its log.
//! - [`Cluster`]: nodes of one cluster with a folder, ports and a log each: started, formed, killed, started again, moved.
//! - [`Galoo`]: the command line, run to its end.
//!
//! Every wait has an end, and no process outlives its handle. It knows the command line of the binary and nothing of its
//! insides.

mod cluster;
mod command;
mod process;

pub use self::{
    cluster::{Cluster, Node, Replica},
    command::{Galoo, output},
    process::{Process, free_addresses},
};
