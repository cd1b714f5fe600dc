//! A rollup's cells of all shards of a cut, merged and kept in memory, with marks of their own.
//!
//! The store has a cell a shard, bucket and group; a row needs them of all shards. Here they are merged once, and go on from
//! there without the store: for each shard a mark says which events are in the cells, exactly those with a seq at or below
//! it (INV-S6 holds here as it does in the store), and [`Merged::advance`] adds the partials of chunks that will not grow any
//! more, in order of seq, and moves the mark. So covering invalidates nothing: how far the store's mark is does not matter to a
//! reader who adds what lies behind the marks here, in its own view.

use std::{collections::HashMap, ops::Range};

use galoo_proto::Seq;

use super::{
    cache::RollupCache,
    cell::{Cell, bucket_of, cell_bytes},
    counted::Counted,
    partial::Partial,
    read::Slice,
};
use crate::{
    Result,
    engine::{Direction, Family},
    key,
    view::Source,
};

/// The merged cells of a range of buckets.
#[derive(Clone)]
pub(super) struct Merged {
    slice: Slice,
    /// For each shard, in the order of the views: the cells hold exactly the events with a seq at or below it.
    marks: Vec<u64>,
    /// By place.
    cells: Vec<(Vec<u8>, Cell)>,
    /// Cells of the store that they were made from.
    read: u64,
    memory_bytes: usize,
}

impl Merged {
    /// Reads the cells of these buckets from the store, at its marks.
    ///
    /// Returns `None` when they take more than `bytes_max`.
    pub(super) fn read(slice: Slice, shards: &[Counted], bytes_max: usize) -> Result<Option<Self>> {
        let definition = &slice.definition;
        let mut cells: HashMap<Vec<u8>, Cell> = HashMap::new();
        let (mut marks, mut read, mut memory_bytes) = (Vec::with_capacity(shards.len()), 0, 0);
        for Counted { view, mark, .. } in shards {
            marks.push(mark.seq);
            let range = slice.keys(view);
            let mut rows = view.reader().rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                let place = &key[key::ROLLUP_CELL_PREFIX_BYTES..];
                if !slice.holds(place) {
                    continue;
                }
                read += 1;
                match cells.get_mut(place) {
                    Some(cell) => cell.merge_encoded(definition.parts_at(place), value)?,
                    None => {
                        let cell = Cell::decode(definition.parts_at(place), value)?;
                        memory_bytes += cell_bytes(place, &cell);
                        cells.insert(place.to_vec(), cell);
                    }
                }
                if memory_bytes > bytes_max {
                    return Ok(None);
                }
            }
        }
        let mut cells: Vec<_> = cells.into_iter().collect();
        cells.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        let mut merged = Self { slice, marks, cells, read, memory_bytes };
        merged.bound();
        merged.count_bytes();
        Ok(Some(merged).filter(|merged| merged.memory_bytes <= bytes_max))
    }

    fn count_bytes(&mut self) {
        self.memory_bytes = self.cells.iter().map(|(place, cell)| cell_bytes(place, cell)).sum();
    }

    /// Bytes that it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// For each shard, the seq up to which its events are in the cells.
    pub(super) fn marks(&self) -> &[u64] {
        &self.marks
    }

    /// Whether the cells of all these buckets are here.
    pub(super) fn holds(&self, buckets_ms: &Range<i64>) -> bool {
        self.slice.buckets_ms.start <= buckets_ms.start && buckets_ms.end <= self.slice.buckets_ms.end
    }

    /// These buckets and those that are here, and all between.
    pub(super) fn with_buckets(&self, buckets_ms: &Range<i64>) -> Range<i64> {
        self.slice.buckets_ms.start.min(buckets_ms.start)..self.slice.buckets_ms.end.max(buckets_ms.end)
    }

    /// Whether every view has all events that are in the cells: an older one must not see them.
    pub(super) fn is_reached_by(&self, shards: &[Counted]) -> bool {
        self.marks.iter().zip(shards).all(|(mark, shard)| *mark <= shard.view.state().last_seq)
    }

    /// Whether it holds as many buckets and, of some shard, more events.
    pub(super) fn is_ahead_of(&self, other: &Self) -> bool {
        self.holds(&other.slice.buckets_ms) && self.marks.iter().zip(&other.marks).any(|(mine, other)| mine > other)
    }

    /// Whether all that lies behind the marks will still grow.
    pub(super) fn is_complete(&self, shards: &[Counted]) -> Result<bool> {
        for (mark, Counted { view, .. }) in self.marks.iter().zip(shards) {
            if view.sources_behind(Seq(*mark))?.iter().any(|source| !view.grows(source)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the store's cells are to be read anew: because some events between these marks and the store's were dropped,
    /// or because that costs less than folding them.
    ///
    /// An event costs about as much to fold as a cell to read.
    pub(super) fn is_far_behind(&self, shards: &[Counted]) -> Result<bool> {
        let mut events = 0;
        for (mine, Counted { view, mark, .. }) in self.marks.iter().zip(shards) {
            let stored = mark.seq;
            let is_covered = |source: &Source| source.gone() > 0 && source.first_seq().0 <= stored;
            if *mine < stored && view.sources_behind(Seq(*mine))?.iter().any(is_covered) {
                return Ok(true);
            }
            events += stored.saturating_sub(*mine);
        }
        Ok(events > self.read.max(self.cells.len() as u64))
    }

    /// Adds all chunks and segments behind the marks that will not grow.
    ///
    /// Returns `None` when the cells take more than `bytes_max` then.
    pub(super) fn advance(mut self, shards: &[Counted], cache: &RollupCache, bytes_max: usize) -> Result<Option<Self>> {
        for (place, shard) in shards.iter().enumerate() {
            let (view, behind) = (&shard.view, shard.view.sources_behind(Seq(self.marks[place]))?);
            for source in behind.iter().take_while(|source| !view.grows(source)) {
                let from = source.first_seq().0.max(self.marks[place] + 1);
                let partial = cache.partial(&self.slice.definition, shard, source, from)?;
                self.add(place, &partial, from..source.last_seq().0 + 1);
                if self.memory_bytes > bytes_max {
                    return Ok(None);
                }
            }
        }
        Ok(Some(self))
    }

    /// Folds groups that are too many for their bucket into one.
    fn bound(&mut self) {
        if self.slice.definition.groups_max.is_some() {
            let mut cells = Partial::of(std::mem::take(&mut self.cells));
            cells.bound(&self.slice.definition);
            self.cells = cells.into_sorted();
        }
    }

    /// Adds the partial of a shard's events with these sequence numbers, and moves the shard's mark behind them.
    fn add(&mut self, shard: usize, partial: &Partial, seqs: Range<u64>) {
        let mark = &mut self.marks[shard];
        assert!(seqs.start == *mark + 1, "INV-S6: #{} is added to merged cells at mark {mark}", seqs.start);
        *mark = seqs.end - 1;
        let mut more = Partial::default();
        more.merge(&partial.of_tier(&self.slice.definition, self.slice.tier), |place| self.slice.holds(place));
        let mut known = std::mem::take(&mut self.cells).into_iter().peekable();
        self.cells = Vec::with_capacity(known.len() + more.len());
        for (place, cell) in more.into_sorted() {
            while let Some(before) = known.next_if(|(before, _)| *before < place) {
                self.cells.push(before);
            }
            match known.next_if(|(same, _)| *same == place) {
                Some((place, mut merged)) => {
                    merged.merge(&cell);
                    self.cells.push((place, merged));
                }
                None => self.cells.push((place, cell)),
            }
        }
        self.cells.extend(known);
        self.bound();
        self.count_bytes();
    }

    /// The places, in order, and cells of these buckets, as a range of positions that [`Self::cell`] takes.
    pub(super) fn positions(&self, wanted: &Slice) -> Range<usize> {
        if wanted.definition.groups_by_player() {
            return 0..self.cells.len();
        }
        let first =
            |from: i64| self.cells.partition_point(|(place, _)| bucket_of(place).is_some_and(|bucket| bucket < from));
        first(wanted.buckets_ms.start)..first(wanted.buckets_ms.end)
    }

    /// The place and the cell at a position.
    pub(super) fn cell(&self, position: usize) -> (&[u8], &Cell) {
        let (place, cell) = &self.cells[position];
        (place, cell)
    }
}
