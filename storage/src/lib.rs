//! Galoo's storage: the state machine of a shard, and the tiers that hold its data.
//!
//! A [`shard::Shard`] applies committed commands in log order and is deterministic in (state, command): no clock, no
//! chance, no thread. State cells, events, the producer table and the applied index change in one atomic write of the
//! [`engine`], so that a crash leaves a prefix of the log. Events live first in the rows of a **chunk**; a sealed chunk
//! becomes part of a **segment**, an immutable Parquet file. A [`view::View`] reads both tiers as one, at one moment.
//!
//! Storage knows no Raft, no network and no SQL. `engine/rocks.rs` alone names RocksDB, `segment/blocks.rs` alone maps
//! files into memory.

pub mod cell;
pub mod chunk;
pub mod compaction;
pub mod engine;
pub mod erasure;
pub mod error;
pub mod inspect;
pub mod key;
mod lru;
pub mod properties;
pub mod rollup;
pub mod segment;
pub mod shard;
pub mod snapshot;
pub mod view;

pub use error::{Error, Result};
