//! Reading a rollup: the cells of all shards and what lies behind their marks, merged, in order of place.
//!
//! Two ways lead to the same rows. As a rule the cells of all shards are kept merged in memory ([`super::merged`]), and only
//! what lies behind *their* marks is added: the open chunks. A rollup with too many cells for that, and a view that is older
//! than what is kept, is streamed from the store, shard by shard and page by page, with what lies behind the store's marks.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
    vec,
};

use galoo_proto::Seq;

use super::{
    Definition,
    accumulator::SumTooLarge,
    cache::RollupCache,
    cell::{Cell, Value, bucket_bytes, bucket_of, groups_of, is_other, is_sum},
    counted::Counted,
    merged::Merged,
    partial::Partial,
};
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key,
    view::View,
};

/// Cells that are read from one shard at a time.
const PAGE_CELLS: usize = 4_096;

/// A part of a rollup: some buckets of a tier.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The rollup.
    pub definition: Arc<Definition>,
    /// Which of its tiers.
    pub tier: usize,
    /// Starts of the buckets, Unix milliseconds.
    pub buckets_ms: Range<i64>,
}

impl Slice {
    /// What all shards keep of it.
    pub(super) fn kept(&self, shards: &[Counted]) -> Self {
        let kept_from = shards.iter().filter_map(|shard| shard.kept_from[self.tier]).max().unwrap_or(i64::MIN);
        let start_ms = self.buckets_ms.start.max(kept_from);
        Self { buckets_ms: start_ms..self.buckets_ms.end.max(start_ms), ..self.clone() }
    }

    /// Whether a place is in it.
    pub(super) fn holds(&self, place: &[u8]) -> bool {
        bucket_of(place).is_some_and(|bucket| self.buckets_ms.contains(&bucket))
    }

    /// Keys of a shard's cells that are in it, and perhaps others.
    pub(super) fn keys(&self, view: &View) -> Range<Vec<u8>> {
        let range = self.definition.cells(view.keyspace(), self.tier);
        if self.definition.groups_by_player() {
            return range;
        }
        let at = |bucket: i64| [range.start.as_slice(), &[0; 8], &bucket_bytes(bucket)].concat();
        at(self.buckets_ms.start)..at(self.buckets_ms.end)
    }

    /// Adds what lies behind a shard's mark to `folded`.
    fn fold_behind(&self, folded: &mut Partial, shard: &Counted, mark: u64, cache: &RollupCache) -> Result<()> {
        for source in shard.view.sources_behind(Seq(mark))? {
            let partial = cache.partial(&self.definition, shard, &source, source.first_seq().0.max(mark + 1))?;
            folded.merge(&partial.of_tier(&self.definition, self.tier), |place| self.holds(place));
            folded.bound(&self.definition);
        }
        Ok(())
    }
}

/// A row of a rollup.
#[derive(Clone, Copy, Debug)]
pub struct RollupRow<'a> {
    definition: &'a Definition,
    place: &'a [u8],
    cell: &'a Cell,
}

impl<'a> RollupRow<'a> {
    /// The bucket's start, Unix milliseconds.
    pub fn bucket_ms(&self) -> Result<i64> {
        bucket_of(self.place).ok_or_else(|| Error::row("rollup cell key", "malformed"))
    }

    /// The groups, in the order of the definition.
    pub fn groups(&self) -> Result<Vec<Value<'a>>> {
        groups_of(self.definition, self.place)
    }

    /// An aggregate's value, by its place in the definition.
    ///
    /// # Errors
    /// A sum of integers beyond 64 bits.
    pub fn value(&self, aggregate: usize) -> Result<Value<'a>, SumTooLarge> {
        self.cell.value(self.definition, aggregate)
    }

    /// Whether it stands for all groups of its bucket that are not kept by themselves.
    pub fn is_other(&self) -> bool {
        is_other(self.place)
    }
}

/// Rows of a slice over one cut of its shards, by place (player's token, bucket, groups; `other` behind the groups).
pub struct RollupRows {
    definition: Arc<Definition>,
    cells: CellRows,
    /// Rows of the bucket that is being read, of a rollup that bounds its groups.
    bucket: vec::IntoIter<(Vec<u8>, Cell)>,
    /// The row that was given last, if it is not kept.
    made: (Vec<u8>, Cell),
}

impl RollupRows {
    /// Opens a read. The views are of all shards, one each.
    pub fn open(views: &[View], slice: &Slice, cache: &RollupCache) -> Result<Self> {
        let cells = CellRows::open(views, slice, cache)?;
        let made = (Vec::new(), Cell::new(&[]));
        Ok(Self { definition: slice.definition.clone(), cells, bucket: Vec::new().into_iter(), made })
    }

    /// Returns the next row; it is valid until the next call.
    #[expect(clippy::should_implement_trait, reason = "a row borrows from the rows")]
    pub fn next(&mut self) -> Result<Option<RollupRow<'_>>> {
        let row = match self.definition.groups_max {
            Some(_) => {
                if self.bucket.as_slice().is_empty() {
                    self.bucket = self.cells.next_bucket(&self.definition)?.into_iter();
                }
                match self.bucket.next() {
                    Some(made) => {
                        self.made = made;
                        Some((self.made.0.as_slice(), &self.made.1))
                    }
                    None => None,
                }
            }
            None => self.cells.next_group(&mut self.made)?,
        };
        Ok(row.map(|(place, cell)| RollupRow { definition: &self.definition, place, cell }))
    }
}

/// Cells of a slice over one cut of its shards, by place.
pub(super) enum CellRows {
    /// From what is kept in memory.
    Kept(Kept),
    /// From the store.
    Streamed(Streamed),
}

impl CellRows {
    pub(super) fn open(views: &[View], slice: &Slice, cache: &RollupCache) -> Result<Self> {
        let shards = Counted::all(views, &slice.definition)?;
        let slice = &slice.kept(&shards);
        Ok(match cache.merged(slice, &shards)? {
            Some(merged) => Self::Kept(Kept::open(merged, &shards, slice, cache)?),
            None => Self::Streamed(Streamed::open(&shards, slice, cache)?),
        })
    }

    /// Returns the next cell; it is in `made` unless it is kept.
    pub(super) fn next<'a>(&'a mut self, made: &'a mut (Vec<u8>, Cell)) -> Result<Option<(&'a [u8], &'a Cell)>> {
        match self {
            Self::Kept(kept) => Ok(kept.next(made)),
            Self::Streamed(streamed) => {
                let Some(next) = streamed.next()? else { return Ok(None) };
                *made = next;
                Ok(Some((made.0.as_slice(), &made.1)))
            }
        }
    }

    /// Returns the next cell that is no bucket's sum.
    fn next_group<'a>(&'a mut self, made: &'a mut (Vec<u8>, Cell)) -> Result<Option<(&'a [u8], &'a Cell)>> {
        match self {
            Self::Kept(kept) => Ok(kept.next_group(made)),
            Self::Streamed(streamed) => {
                while let Some(next) = streamed.next()? {
                    if !is_sum(&next.0) {
                        *made = next;
                        return Ok(Some((made.0.as_slice(), &made.1)));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Returns the cells of the next bucket, bounded; none at the end.
    fn next_bucket(&mut self, definition: &Definition) -> Result<Vec<(Vec<u8>, Cell)>> {
        let (mut cells, mut made) = (Partial::default(), (Vec::new(), Cell::new(&[])));
        // A bucket's sum is its last cell, and every bucket has one.
        while let Some((place, cell)) = self.next(&mut made)? {
            if is_sum(place) {
                break;
            }
            cells.insert(place.to_vec(), cell.clone());
            if cells.len() > 2 * definition.groups_max.unwrap_or(usize::MAX / 2) {
                cells.bound(definition);
            }
        }
        cells.bound(definition);
        Ok(cells.into_sorted())
    }
}

type Folded = vec::IntoIter<(Vec<u8>, Cell)>;

/// Cells that are kept merged, and what lies behind their marks.
pub(super) struct Kept {
    merged: Arc<Merged>,
    positions: Range<usize>,
    slice: Slice,
    behind: std::iter::Peekable<Folded>,
}

impl Kept {
    fn open(merged: Arc<Merged>, shards: &[Counted], slice: &Slice, cache: &RollupCache) -> Result<Self> {
        let mut behind = Partial::default();
        for (mark, shard) in merged.marks().iter().zip(shards) {
            slice.fold_behind(&mut behind, shard, *mark, cache)?;
        }
        let positions = merged.positions(slice);
        Ok(Self { merged, positions, slice: slice.clone(), behind: behind.into_sorted().into_iter().peekable() })
    }

    fn next_group<'a>(&'a mut self, made: &'a mut (Vec<u8>, Cell)) -> Option<(&'a [u8], &'a Cell)> {
        while self.next_place().is_some_and(is_sum) {
            self.next(made);
        }
        self.next(made)
    }

    /// The position of the next cell that is kept.
    fn next_position(&mut self) -> Option<usize> {
        while let Some(position) = self.positions.clone().next() {
            if self.slice.holds(self.merged.cell(position).0) {
                return Some(position);
            }
            self.positions.start += 1;
        }
        None
    }

    /// The place of the next cell.
    fn next_place(&mut self) -> Option<&[u8]> {
        let kept = self.next_position().map(|position| self.merged.cell(position).0);
        let behind = self.behind.peek().map(|(place, _)| place.as_slice());
        kept.into_iter().chain(behind).min()
    }

    fn next<'a>(&'a mut self, made: &'a mut (Vec<u8>, Cell)) -> Option<(&'a [u8], &'a Cell)> {
        let position = self.next_position();
        let order = match (position, self.behind.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(position), Some((place, _))) => self.merged.cell(position).0.cmp(place),
        };
        if order.is_le() {
            self.positions.start += 1;
        }
        if order == Ordering::Less {
            return position.map(|position| self.merged.cell(position));
        }
        *made = self.behind.next()?;
        if let Some(position) = position.filter(|_| order == Ordering::Equal) {
            made.1.merge(self.merged.cell(position).1);
        }
        Some((&made.0, &made.1))
    }
}

/// Cells of each shard as they are read, and what lies behind its mark.
pub(super) struct Streamed {
    definition: Arc<Definition>,
    inputs: Vec<Input>,
    /// The next place of each input.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Streamed {
    fn open(shards: &[Counted], slice: &Slice, cache: &RollupCache) -> Result<Self> {
        let definition = slice.definition.clone();
        let mut streamed = Self { definition, inputs: Vec::new(), heads: BinaryHeap::new() };
        for shard in shards {
            streamed.add(InputCells::Stored(CellPages::new(&shard.view, slice)))?;
            let mut behind = Partial::default();
            slice.fold_behind(&mut behind, shard, shard.mark.seq, cache)?;
            streamed.add(InputCells::Folded(behind.into_sorted().into_iter()))?;
        }
        Ok(streamed)
    }

    fn add(&mut self, cells: InputCells) -> Result<()> {
        self.inputs.push(Input { cells, current: None });
        self.advance(self.inputs.len() - 1)?;
        Ok(())
    }

    /// Moves an input to its next cell and returns the one that it stood at.
    fn advance(&mut self, place: usize) -> Result<Option<Cell>> {
        let input = &mut self.inputs[place];
        let next = match &mut input.cells {
            InputCells::Stored(pages) => pages.next(&self.definition)?,
            InputCells::Folded(cells) => cells.next(),
        };
        let (at, next) = next.unzip();
        self.heads.extend(at.map(|at| Reverse((at, place))));
        Ok(std::mem::replace(&mut input.current, next))
    }

    fn next(&mut self) -> Result<Option<(Vec<u8>, Cell)>> {
        let Some(Reverse((place, input))) = self.heads.pop() else { return Ok(None) };
        let mut merged = self.advance(input)?;
        while let Some(Reverse((next, _))) = self.heads.peek() {
            if *next != place {
                break;
            }
            let Some(Reverse((_, input))) = self.heads.pop() else { break };
            let more = self.advance(input)?;
            match (&mut merged, more) {
                (Some(merged), Some(more)) => merged.merge(&more),
                (merged, more) => *merged = more,
            }
        }
        Ok(merged.map(|cell| (place, cell)))
    }
}

/// A stream of cells by place, and the one that it stands at.
struct Input {
    cells: InputCells,
    current: Option<Cell>,
}

enum InputCells {
    /// What is covered, of one shard.
    Stored(CellPages),
    /// What is not.
    Folded(Folded),
}

/// A shard's cells, page by page, so that no iterator pins memory between them.
struct CellPages {
    view: View,
    slice: Slice,
    /// Keys that are left to read; `None` at the end.
    left: Option<Range<Vec<u8>>>,
    page: VecDeque<(Vec<u8>, Cell)>,
}

impl CellPages {
    fn new(view: &View, slice: &Slice) -> Self {
        Self { view: view.clone(), slice: slice.clone(), left: Some(slice.keys(view)), page: VecDeque::new() }
    }

    fn next(&mut self, definition: &Definition) -> Result<Option<(Vec<u8>, Cell)>> {
        while self.page.is_empty() {
            let Some(range) = self.left.take() else { return Ok(None) };
            let reader = self.view.reader();
            let mut rows = reader.rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                let place = &key[key::ROLLUP_CELL_PREFIX_BYTES..];
                if self.slice.holds(place) {
                    self.page.push_back((place.to_vec(), Cell::decode(definition.parts_at(place), value)?));
                }
                if self.page.len() >= PAGE_CELLS {
                    let behind = [key, &[0]].concat();
                    self.left = Some(behind..range.end);
                    break;
                }
            }
        }
        Ok(self.page.pop_front())
    }
}
