//! Galoo's decisions over many nodes, and the state machines that a node replicates.
//!
//! The meta group replicates one state machine, [`meta::MetaState`]: games, their shards and where these live, and the
//! nodes. [`router`] turns it into who must be asked for a player. Both are functions of what they are given, without
//! I/O. [`machine`] puts the meta group's state and the shards' on an engine, as [`galoo_consensus::StateMachine`]. There
//! is no clock, no thread and no network, and the engine is the caller's: the simulator links the same code as the
//! server.

pub mod machine;
pub mod meta;
pub mod router;

use galoo_proto::ShardId;

/// The meta group's number: a shard's group has the shard's number, and shards are numbered from 2.
pub const META_GROUP: u64 = 1;
/// The first shard's id.
pub const FIRST_SHARD: ShardId = ShardId(META_GROUP + 1);
