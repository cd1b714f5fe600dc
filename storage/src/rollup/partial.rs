//! Partials: the aggregate of a part of one chunk or segment, in memory, by buckets of the narrowest tier.

use std::borrow::Cow;

use super::{
    Definition,
    bound::{Cells, add, bound},
    bucket_start,
    cell::{Cell, bucket_of, cell_bytes, moved},
    fold::fold,
};
use crate::{
    Result,
    view::{EventFilter, Source, View},
};

/// Cells by place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    pub(super) cells: Cells,
}

impl Partial {
    /// Adds events of a source, as [`fold`] does.
    pub(super) fn fold(
        &mut self,
        definition: &Definition,
        counted: &View,
        source: &Source,
        filter: EventFilter,
        bytes_max: usize,
    ) -> Result<bool> {
        fold(&mut [(definition, self)], counted, source, filter, bytes_max)
    }

    /// Folds groups that are too many for their bucket into one.
    pub(super) fn bound(&mut self, definition: &Definition) {
        if let Some(groups_max) = definition.groups_max {
            bound(&mut self.cells, groups_max);
        }
    }

    /// Its cells in the buckets of a tier.
    pub(super) fn of_tier(&self, definition: &Definition, tier: usize) -> Cow<'_, Self> {
        if tier == 0 {
            return Cow::Borrowed(self);
        }
        let bucket_ms = definition.tiers[tier].bucket_ms;
        let mut wider = Self::default();
        for (place, cell) in &self.cells {
            let bucket = bucket_start(bucket_of(place).unwrap_or_default(), bucket_ms);
            add(&mut wider.cells, moved(place, bucket), cell.clone());
        }
        wider.bound(definition);
        Cow::Owned(wider)
    }

    /// Adds cells of another partial: those whose place is `wanted`.
    pub(super) fn merge(&mut self, other: &Self, wanted: impl Fn(&[u8]) -> bool) {
        let others = other.cells.iter().filter(|(place, _)| wanted(place));
        others.for_each(|(place, cell)| add(&mut self.cells, place.clone(), cell.clone()));
    }

    /// Its cells, by place.
    pub(super) fn into_sorted(self) -> Vec<(Vec<u8>, Cell)> {
        let mut cells: Vec<_> = self.cells.into_iter().collect();
        cells.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        cells
    }

    /// Holds cells of different places.
    pub(super) fn of(cells: Vec<(Vec<u8>, Cell)>) -> Self {
        Self { cells: cells.into_iter().collect() }
    }

    /// Puts a cell that is not there yet.
    pub(super) fn insert(&mut self, place: Vec<u8>, cell: Cell) {
        self.cells.insert(place, cell);
    }

    /// The cell of a place.
    pub(super) fn get(&self, place: &[u8]) -> Option<&Cell> {
        self.cells.get(place)
    }

    /// Its cells, in no order.
    pub fn cells(&self) -> impl Iterator<Item = (&Vec<u8>, &Cell)> {
        self.cells.iter()
    }

    /// Bytes that it takes in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.cells.iter().map(|(place, cell)| cell_bytes(place, cell)).sum()
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}
