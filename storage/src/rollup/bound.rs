//! The bound on a bucket's groups: those with the smallest hashes are kept by themselves, all others are one, `other`.
//!
//! A group that is among the smallest of all is among the smallest of any part of the events, so it is never folded into
//! `other` anywhere, and what is kept of it is complete; this holds in whatever order parts are merged, and for wider
//! buckets that are made of narrower ones. So it is enough to bound whatever was merged.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::cell::{BUCKET_BYTES, Cell, is_group, other_place};

/// Returns those of one bucket's places that are not kept; of places that are no group it says nothing.
pub(super) fn surplus<'p>(places: impl Iterator<Item = &'p [u8]>, groups_max: usize) -> Vec<&'p [u8]> {
    let mut hashed: Vec<_> = places.filter(|place| is_group(place)).map(|place| (hash(place), place)).collect();
    if hashed.len() <= groups_max {
        return Vec::new();
    }
    hashed.sort_unstable();
    hashed.drain(groups_max..).map(|(_, place)| place).collect()
}

fn hash(place: &[u8]) -> u64 {
    xxh3_64(&place[BUCKET_BYTES..])
}

/// Cells by place. A fold looks one up for every event.
pub(super) type Cells = HashMap<Vec<u8>, Cell, foldhash::fast::RandomState>;

/// Adds a cell to what is there.
pub(super) fn add(cells: &mut Cells, place: Vec<u8>, cell: Cell) {
    match cells.get_mut(&place) {
        Some(known) => known.merge(&cell),
        None => drop(cells.insert(place, cell)),
    }
}

/// Folds what is too much of every bucket into its `other`.
pub(super) fn bound(cells: &mut Cells, groups_max: usize) {
    let mut buckets: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for place in cells.keys() {
        buckets.entry(&place[..BUCKET_BYTES]).or_default().push(place.as_slice());
    }
    let surplus = buckets.into_values().flat_map(|places| surplus(places.into_iter(), groups_max));
    let surplus: Vec<Vec<u8>> = surplus.map(<[u8]>::to_vec).collect();
    for place in surplus {
        if let Some(cell) = cells.remove(&place) {
            add(cells, other_place(&place), cell);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rollup::cell::{push_int, start_place};

    fn cells(groups: &[(i64, i64)]) -> Cells {
        let mut cells = Cells::default();
        for (bucket, group) in groups {
            let mut place = Vec::new();
            start_place(&mut place, 0, *bucket);
            push_int(&mut place, *group);
            add(&mut cells, place, Cell { events: 1, parts: Vec::new() });
        }
        cells
    }

    proptest! {
        /// Bounded in parts and merged, or bounded at the end: the same groups, each complete.
        #[test]
        fn the_same_groups_are_kept_in_any_order(
            parts in prop::collection::vec(prop::collection::vec((0i64..3, 0i64..12), 0..20), 1..6),
            groups_max in 1usize..6,
        ) {
            let all: Vec<_> = parts.concat();
            let mut expected = cells(&all);
            bound(&mut expected, groups_max);
            let mut merged = Cells::default();
            for part in parts.iter().rev() {
                let mut part = cells(part);
                bound(&mut part, groups_max);
                part.into_iter().for_each(|(place, cell)| add(&mut merged, place, cell));
                bound(&mut merged, groups_max);
            }
            prop_assert_eq!(&merged, &expected);
            prop_assert_eq!(merged.values().map(|cell| cell.events).sum::<u64>(), all.len() as u64);
        }
    }
}
