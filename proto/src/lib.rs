//! Galoo's vocabulary: messages, ids, limits, the token ring and the shard map.
//!
//! Everything that more than one room must agree on lives here, and nothing that does I/O: the crate knows no disk, no
//! network, no clock and no thread. The `.proto` files under `proto/` own the formats; the modules here own what a
//! message cannot say, which is ids and units as types ([`ids`]), the public limits and the one check of each
//! ([`limits`], [`validate`]), time stamps ([`hlc`]) and who holds which token ([`shard_map`]).

pub mod hlc;
pub mod ids;
pub mod limits;
pub mod shard_map;
pub mod tables;
pub mod validate;

pub use hlc::Hlc;
pub use ids::{ChunkId, GameId, Keyspace, NodeId, RollupId, SegmentId, Seq, ShardId, Token};
pub use shard_map::TokenRange;

/// What prost and tonic make of the `.proto` files, in the modules that their packages name.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, reason = "generated; the .proto files hold the docs")]
mod galoo {
    pub mod value {
        pub mod v1 {
            tonic::include_proto!("galoo.value.v1");
        }
    }
    pub mod rollup {
        pub mod v1 {
            tonic::include_proto!("galoo.rollup.v1");
        }
    }
    pub mod command {
        pub mod v1 {
            tonic::include_proto!("galoo.command.v1");
        }
    }
    pub mod record {
        pub mod v1 {
            tonic::include_proto!("galoo.record.v1");
        }
    }
    pub mod data {
        pub mod v1 {
            tonic::include_proto!("galoo.data.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("galoo.admin.v1");
        }
    }
    pub mod meta {
        pub mod v1 {
            tonic::include_proto!("galoo.meta.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("galoo.peer.v1");
        }
    }
}

/// Operators to nodes (`admin.proto`).
pub use galoo::admin::v1 as admin;
/// What enters a data shard's replicated log (`command.proto`).
pub use galoo::command::v1 as command;
/// Clients to nodes (`data.proto`).
pub use galoo::data::v1 as data;
/// What enters the meta group's replicated log (`meta.proto`).
pub use galoo::meta::v1 as meta;
/// Nodes to nodes (`peer.proto`).
pub use galoo::peer::v1 as peer;
/// What a shard keeps about itself in RocksDB (`record.proto`).
pub use galoo::record::v1 as record;
/// What a rollup is (`rollup.proto`).
pub use galoo::rollup::v1 as rollup;
/// Events, cells and their changes (`value.proto`).
pub use galoo::value::v1 as value;

/// The encoded descriptors of all `.proto` files, for gRPC reflection.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/galoo.descriptors"));
