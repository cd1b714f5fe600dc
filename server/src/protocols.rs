//! The fronts of a node: each turns its clients' words into calls of [`crate::node::Node`].

pub mod grpc;
pub mod http;
mod raft;
