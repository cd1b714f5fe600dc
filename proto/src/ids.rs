//! Ids and units as types, so that a shard's number is never taken for a node's.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A game: a tenant and namespace. Never used again. Prints `g7`.
    GameId, "g"
);
id!(
    /// A shard: a token range of one game, one Raft group. Never used again. Prints `s7`.
    ShardId, "s"
);
id!(
    /// A node: one server process with its data folder. From 1. Prints `n7`.
    NodeId, "n"
);
id!(
    /// A node-local key prefix that holds a replica's data. Prints `k7`.
    Keyspace, "k"
);
id!(
    /// A chunk: a contiguous seq range of one shard, numbered from 1. Prints `c7`.
    ChunkId, "c"
);
id!(
    /// A segment file of a keyspace, numbered from 1, local to the replica. Prints `seg7`.
    SegmentId, "seg"
);
id!(
    /// A rollup of a game. Never used again in the cluster. Prints `r7`.
    RollupId, "r"
);
id!(
    /// An event's sequence number: dense in its shard, from 1. Prints `#7`.
    Seq, "#"
);

/// The hash of a player id that decides its shard: xxh3-64 of the id's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

impl Token {
    /// Returns the token of a player id (or of a producer group).
    pub fn of(player_id: &str) -> Self {
        Self(xxh3_64(player_id.as_bytes()))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Returns the group that a producer id belongs to, whose token decides the shard of its registration.
///
/// The sources of files, `file:NAME:BYTES:HASH`, share the group `file:NAME`, so that one shard can list the earlier
/// imports of a file. Any other producer is a group of its own.
pub fn producer_group(producer_id: &str) -> &str {
    if !producer_id.starts_with("file:") {
        return producer_id;
    }
    producer_id.rsplitn(3, ':').nth(2).filter(|group| group.len() > "file:".len()).unwrap_or(producer_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_their_kind() {
        assert_eq!(format!("{} {} {}", ShardId(7), NodeId(1), Seq(3)), "s7 n1 #3");
    }

    #[test]
    fn sources_of_one_file_share_a_group() {
        assert_eq!(producer_group("file:a:b.ndjson:12:00ff"), "file:a:b.ndjson");
        assert_eq!(producer_group("source:nightly"), "source:nightly");
        assert_eq!(producer_group("file:short"), "file:short");
    }
}
