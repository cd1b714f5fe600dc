//! Who holds which token: token ranges and the ranges of a game's shards.
//!
//! The shards of a game cover the whole ring `[0, 2^64)` without gap or overlap (INV-M1); lookup is a binary search.

use std::fmt;

use crate::{ShardId, ids::Token};

/// A half-open token range `[start, end)`; `end` 0 stands for 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenRange {
    /// First token.
    pub start: u64,
    /// Token behind the last; 0 stands for 2^64.
    pub end: u64,
}

impl TokenRange {
    /// The whole ring.
    pub const FULL: Self = Self { start: 0, end: 0 };

    /// Returns whether the range holds a token.
    pub fn contains(&self, token: Token) -> bool {
        self.start <= token.0 && (self.end == 0 || token.0 < self.end)
    }

    /// Cuts the ring into `count` ranges that differ by at most one token in length.
    ///
    /// `count` is at least 1.
    pub fn cut(count: u32) -> Vec<Self> {
        assert!(count >= 1, "a ring is cut into at least one range");
        let bound = |i: u32| ((u128::from(i) << 64) / u128::from(count)) as u64;
        (0..count).map(|i| Self { start: bound(i), end: if i + 1 == count { 0 } else { bound(i + 1) } }).collect()
    }
}

impl fmt::Display for TokenRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:016x}, {:016x})", self.start, self.end)
    }
}

impl From<TokenRange> for crate::command::TokenRange {
    fn from(range: TokenRange) -> Self {
        Self { start: range.start, end: range.end }
    }
}

impl From<crate::command::TokenRange> for TokenRange {
    fn from(range: crate::command::TokenRange) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// The shards of one game in token order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRanges(Vec<(TokenRange, ShardId)>);

impl ShardRanges {
    /// Takes the shards of a game.
    ///
    /// Returns `None` when they do not cover the ring exactly once.
    pub fn new(mut shards: Vec<(TokenRange, ShardId)>) -> Option<Self> {
        shards.sort_unstable();
        let first = shards.first()?.0.start == 0;
        let last = shards.last()?.0.end == 0;
        let joined = shards.windows(2).all(|pair| pair[0].0.end == pair[1].0.start && pair[0].0.end != 0);
        (first && last && joined).then_some(Self(shards))
    }

    /// Returns the shard that holds a token, and its range.
    pub fn find(&self, token: Token) -> (ShardId, TokenRange) {
        let behind = self.0.partition_point(|(range, _)| range.start <= token.0);
        let (range, shard) = self.0[behind - 1];
        assert!(range.contains(token), "INV-M1: {range} of {shard} does not hold {token}");
        (shard, range)
    }

    /// Returns the shards in token order.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, TokenRange)> + '_ {
        self.0.iter().map(|(range, shard)| (*shard, *range))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cut_ring_holds_every_token_once(count in 1u32..200, token: u64) {
            let ranges = TokenRange::cut(count);
            prop_assert_eq!(ranges.iter().filter(|range| range.contains(Token(token))).count(), 1);
            let shards = (0..).map(ShardId);
            let map = ShardRanges::new(ranges.into_iter().zip(shards).collect()).expect("covers the ring");
            prop_assert!(map.find(Token(token)).1.contains(Token(token)));
        }
    }

    #[test]
    fn gaps_and_overlaps_are_refused() {
        let range = |start, end| TokenRange { start, end };
        assert!(ShardRanges::new(vec![]).is_none());
        assert!(ShardRanges::new(vec![(range(0, 5), ShardId(1)), (range(6, 0), ShardId(2))]).is_none());
        assert!(ShardRanges::new(vec![(range(0, 7), ShardId(1)), (range(6, 0), ShardId(2))]).is_none());
        assert!(ShardRanges::new(vec![(range(0, 0), ShardId(1)), (range(0, 0), ShardId(2))]).is_none());
        assert!(ShardRanges::new(vec![(range(5, 0), ShardId(2)), (range(0, 5), ShardId(1))]).is_some());
    }
}
