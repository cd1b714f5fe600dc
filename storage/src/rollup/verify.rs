//! Proving a rollup: its cells compared with what the events give when they are folded anew.
//!
//! Each bucket has a sum of its own: the number of its events and the sum of their hashes, which does not depend on order. It
//! shows a bucket's events that were lost or counted twice also where no aggregate would, and a second number to compare
//! between clusters. Beyond it every cell is compared.

use std::{collections::BTreeSet, ops::Range};

use galoo_proto::Hlc;

use super::{
    accumulator::Accumulator,
    cache::{Limits, RollupCache},
    cell::{Cell, bucket_of, cell_bytes, is_sum},
    counted::{Counted, whole_from},
    partial::Partial,
    read::{CellRows, Slice},
};
use crate::{
    Error, Result,
    view::{EventFilter, View},
};

/// Buckets that are listed one by one when they differ.
const DIFFERENT_MAX: usize = 100;
/// What the cells that are compared may take in memory, those of the rollup and those of the events each; a slice with more is
/// refused.
pub const CELL_BYTES_MAX: usize = 256 << 20;

/// What a proof found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Starts of the buckets that were compared, Unix milliseconds: where all raw events are there.
    pub buckets_ms: Range<i64>,
    /// Buckets with events in the rollup.
    pub buckets: u64,
    /// Events that the rollup counted in them.
    pub events: u64,
    /// Sum of the events' hashes, modulo 2^64; 0 where groups name players of whom any was forgotten.
    pub hash: u64,
    /// Starts of buckets that differ from the raw events in any cell, Unix milliseconds: the first of them.
    pub different_ms: Vec<i64>,
    /// How many do.
    pub different: u64,
}

/// Compares a slice with the events that it was made of, over one cut of its shards.
///
/// Reads all events of the slice's time. Buckets of which retention dropped events are left out. A rollup that declares `keep`
/// still counts players that were forgotten after it was made, and differs once their events are gone.
///
/// # Errors
/// Cells of more than [`CELL_BYTES_MAX`].
pub fn verify(views: &[View], slice: &Slice) -> Result<Verified> {
    let width_ms = slice.definition.tiers[slice.tier].bucket_ms;
    // Buckets that begin before it may lack events, or still count forgotten players whose events are gone.
    let dropped_ms = views.iter().map(|view| view.state().events_from_ms).max().unwrap_or(0);
    let from_ms = slice.buckets_ms.start.max(whole_from(&slice.definition, dropped_ms));
    let shards = Counted::all(views, &slice.definition)?;
    let slice = Slice { buckets_ms: from_ms..slice.buckets_ms.end.max(from_ms), ..slice.clone() }.kept(&shards);
    let buckets_ms = slice.buckets_ms.clone();
    let too_many = Error::TooManyCells { bytes_max: CELL_BYTES_MAX };
    // What named a forgotten player went from groups at once, and stays in the sums.
    let has_sums = !(slice.definition.groups_by_player() && shards.iter().any(|shard| shard.view.erased() > Hlc(0)));
    let wanted = |place: &[u8]| slice.holds(place) && (has_sums || !is_sum(place));
    let (mut raw, mut kept) = (Partial::default(), Partial::default());
    for shard in &shards {
        for source in shard.view.sources()? {
            let time_ms = buckets_ms.start..buckets_ms.end.saturating_add(width_ms);
            let mut partial = Partial::default();
            let filter = EventFilter { time_ms, ..EventFilter::default() };
            let fits = partial.fold(&slice.definition, &shard.events, source, filter, CELL_BYTES_MAX)?;
            raw.merge(&partial.of_tier(&slice.definition, slice.tier), wanted);
            raw.bound(&slice.definition);
            if !fits || raw.memory_bytes() > CELL_BYTES_MAX {
                return Err(too_many);
            }
        }
    }
    // Nothing is remembered: what is compared is what the store holds.
    let nothing = RollupCache::new(Limits { bytes_max: 0, merged_bytes_max: 0 });
    let mut cells = CellRows::open(views, &slice, &nothing)?;
    let (mut made, mut kept_bytes) = ((Vec::new(), Cell::new(&[])), 0);
    while let Some((place, cell)) = cells.next(&mut made)? {
        if wanted(place) {
            kept_bytes += cell_bytes(place, cell);
            kept.insert(place.to_vec(), cell.clone());
        }
        if kept_bytes > CELL_BYTES_MAX {
            return Err(too_many);
        }
    }
    kept.bound(&slice.definition);
    let mut different = BTreeSet::new();
    let places = |cells: &Partial, others: &Partial| {
        let unlike = cells.cells().filter(|(place, cell)| others.get(place) != Some(cell));
        unlike.filter_map(|(place, _)| bucket_of(place)).collect::<Vec<_>>()
    };
    different.extend(places(&kept, &raw));
    different.extend(places(&raw, &kept));
    let mut verified = Verified { buckets_ms, different: different.len() as u64, ..Verified::default() };
    verified.different_ms = different.into_iter().take(DIFFERENT_MAX).collect();
    let mut buckets = BTreeSet::new();
    for (place, cell) in kept.cells().filter(|(place, _)| is_sum(place) == has_sums) {
        buckets.extend(bucket_of(place));
        verified.events += cell.events;
        if let ([Accumulator::Hash(hash)], true) = (cell.parts.as_slice(), has_sums) {
            verified.hash = verified.hash.wrapping_add(*hash);
        }
    }
    verified.buckets = buckets.len() as u64;
    Ok(verified)
}
