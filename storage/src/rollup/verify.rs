//! Proving a rollup: its cells compared with what the events give when they are folded anew.
//!
//! Each bucket has a sum of its own: the number of its events and the sum of their hashes, which does not depend on order. It
//! shows a bucket's events that were lost or counted twice also where no aggregate would, and a second number to compare
//! between clusters. Beyond it every cell is compared.

use std::{collections::BTreeSet, ops::Range};

use super::{
    accumulator::Accumulator,
    cache::{Limits, RollupCache},
    cell::{Cell, bucket_of, is_sum},
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
/// Cells that are compared at a time; a slice with more is refused.
pub const CELLS_MAX: usize = 2_000_000;

/// What a proof found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Starts of the buckets that were compared, Unix milliseconds: where all raw events are there.
    pub buckets_ms: Range<i64>,
    /// Buckets with events in the rollup.
    pub buckets: u64,
    /// Events that the rollup counted in them.
    pub events: u64,
    /// Sum of the events' hashes, modulo 2^64.
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
/// More than [`CELLS_MAX`] cells.
pub fn verify(views: &[View], slice: &Slice) -> Result<Verified> {
    let width_ms = slice.definition.tiers[slice.tier].bucket_ms;
    // Buckets that begin before it may lack events, or still count forgotten players whose events are gone.
    let dropped_ms = views.iter().map(|view| view.state().events_from_ms).max().unwrap_or(0);
    let from_ms = slice.buckets_ms.start.max(whole_from(&slice.definition, dropped_ms));
    let shards = Counted::all(views, &slice.definition)?;
    let slice = Slice { buckets_ms: from_ms..slice.buckets_ms.end.max(from_ms), ..slice.clone() }.kept(&shards);
    let buckets_ms = slice.buckets_ms.clone();
    let too_many = |cells: &Partial| match cells.len() {
        ..=CELLS_MAX => Ok(()),
        _ => Err(Error::TooManyCells { cells_max: CELLS_MAX }),
    };
    let (mut raw, mut kept) = (Partial::default(), Partial::default());
    for shard in &shards {
        for source in shard.view.sources()? {
            let time_ms = buckets_ms.start..buckets_ms.end.saturating_add(width_ms);
            let mut partial = Partial::default();
            partial.fold(
                &slice.definition,
                &shard.events,
                source,
                EventFilter { time_ms, ..EventFilter::default() },
            )?;
            raw.merge(&partial.of_tier(&slice.definition, slice.tier), |place| slice.holds(place));
            too_many(&raw)?;
        }
    }
    // Nothing is remembered: what is compared is what the store holds.
    let nothing = RollupCache::new(Limits { bytes_max: 0, merged_bytes_max: 0 });
    let mut cells = CellRows::open(views, &slice, &nothing)?;
    let mut made = (Vec::new(), Cell::new(&[]));
    while let Some((place, cell)) = cells.next(&mut made)? {
        kept.insert(place.to_vec(), cell.clone());
        too_many(&kept)?;
    }
    raw.bound(&slice.definition);
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
    for (_, sum) in kept.cells().filter(|(place, _)| is_sum(place)) {
        verified.buckets += 1;
        verified.events += sum.events;
        if let [Accumulator::Hash(hash)] = sum.parts.as_slice() {
            verified.hash = verified.hash.wrapping_add(*hash);
        }
    }
    Ok(verified)
}
