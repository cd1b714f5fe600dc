//! Reading a rollup: the cells of all shards and what lies behind their marks, merged, in order of place.
//!
//! Two ways lead to the same rows. As a rule the cells of all shards are kept merged in memory ([`super::merged`]), and only
//! what lies behind *their* marks is added: the open chunks. A rollup with too many cells for that, and a view that is older
//! than what is kept, is streamed from the store, shard by shard and page by page, with what lies behind the store's marks.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque, btree_map},
    ops::Range,
    sync::Arc,
};

use galoo_proto::Seq;

use super::{
    Definition,
    cache::RollupCache,
    cell::{Cell, GroupValue, bucket_bytes, bucket_of, groups_of},
    cover::mark,
    merged::Merged,
};
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key,
    view::View,
};

/// Cells that are read from one shard at a time.
const PAGE_CELLS: usize = 4_096;

/// A row of a rollup.
#[derive(Clone, Copy, Debug)]
pub struct RollupRow<'a> {
    definition: &'a Definition,
    place: &'a [u8],
    /// The aggregates, in the order of the definition.
    pub cell: &'a Cell,
}

impl<'a> RollupRow<'a> {
    /// The bucket's start, Unix milliseconds.
    pub fn bucket_ms(&self) -> Result<i64> {
        bucket_of(self.place).ok_or_else(|| Error::row("rollup cell key", "malformed"))
    }

    /// The groups, in the order of the definition.
    pub fn groups(&self) -> Result<Vec<GroupValue<'a>>> {
        groups_of(self.definition, self.place)
    }
}

/// Rows of a rollup over one cut of its shards, by place (player's token, bucket, groups).
pub struct RollupRows {
    definition: Arc<Definition>,
    cells: Cells,
    /// The row of more than one cell that was made last.
    made: (Vec<u8>, Cell),
}

enum Cells {
    Kept(Kept),
    Streamed(Streamed),
}

type Folded = btree_map::IntoIter<Vec<u8>, Cell>;

impl RollupRows {
    /// Opens a read of the buckets that start in `buckets_ms`. The views are of all shards, one each.
    pub fn open(
        views: &[View],
        definition: &Arc<Definition>,
        buckets_ms: &Range<i64>,
        cache: &RollupCache,
    ) -> Result<Self> {
        let cells = match cache.merged(definition, views, buckets_ms)? {
            Some(merged) => Cells::Kept(Kept::open(merged, views, definition, buckets_ms, cache)?),
            None => Cells::Streamed(Streamed::open(views, definition, buckets_ms, cache)?),
        };
        Ok(Self { definition: definition.clone(), cells, made: (Vec::new(), Cell(Vec::new())) })
    }

    /// Returns the next row; it is valid until the next call.
    #[expect(clippy::should_implement_trait, reason = "a row borrows from the rows")]
    pub fn next(&mut self) -> Result<Option<RollupRow<'_>>> {
        let cell = match &mut self.cells {
            Cells::Kept(kept) => kept.next(&mut self.made),
            Cells::Streamed(streamed) => match streamed.next(&self.definition)? {
                Some(made) => {
                    self.made = made;
                    Some((self.made.0.as_slice(), &self.made.1))
                }
                None => None,
            },
        };
        Ok(cell.map(|(place, cell)| RollupRow { definition: &self.definition, place, cell }))
    }
}

/// Folds what lies behind a shard's mark into `folded`.
fn fold_behind(
    folded: &mut BTreeMap<Vec<u8>, Cell>,
    view: &View,
    mark: u64,
    definition: &Definition,
    buckets_ms: &Range<i64>,
    cache: &RollupCache,
) -> Result<()> {
    for source in view.sources_behind(Seq(mark))? {
        let partial = cache.partial(definition, view, &source, source.first_seq().0.max(mark + 1))?;
        for (place, cell) in partial.cells() {
            if !bucket_of(place).is_some_and(|bucket| buckets_ms.contains(&bucket)) {
                continue;
            }
            match folded.get_mut(place) {
                Some(known) => known.merge(cell),
                None => {
                    folded.insert(place.clone(), cell.clone());
                }
            }
        }
    }
    Ok(())
}

/// Keys of a shard's cells that hold these buckets, and perhaps others.
pub(super) fn cells_range(view: &View, definition: &Definition, buckets_ms: &Range<i64>) -> Range<Vec<u8>> {
    let range = key::rollup_cells(view.keyspace(), definition.id);
    if definition.groups_by_player() {
        return range;
    }
    let at = |bucket: i64| [range.start.as_slice(), &[0; 8], &bucket_bytes(bucket)].concat();
    at(buckets_ms.start)..at(buckets_ms.end)
}

/// Cells that are kept merged, and what lies behind their marks.
struct Kept {
    merged: Arc<Merged>,
    positions: Range<usize>,
    buckets_ms: Range<i64>,
    behind: std::iter::Peekable<Folded>,
}

impl Kept {
    fn open(
        merged: Arc<Merged>,
        views: &[View],
        definition: &Definition,
        buckets_ms: &Range<i64>,
        cache: &RollupCache,
    ) -> Result<Self> {
        let mut behind = BTreeMap::new();
        for (mark, view) in merged.marks().iter().zip(views) {
            fold_behind(&mut behind, view, *mark, definition, buckets_ms, cache)?;
        }
        let positions = merged.positions(definition, buckets_ms);
        Ok(Self { merged, positions, buckets_ms: buckets_ms.clone(), behind: behind.into_iter().peekable() })
    }

    fn next<'a>(&'a mut self, made: &'a mut (Vec<u8>, Cell)) -> Option<(&'a [u8], &'a Cell)> {
        let outside = |position: &usize| {
            !bucket_of(self.merged.cell(*position).0).is_some_and(|bucket| self.buckets_ms.contains(&bucket))
        };
        let position = self.positions.by_ref().find(|position| !outside(position));
        let order = match (position, self.behind.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(position), Some((place, _))) => self.merged.cell(position).0.cmp(place),
        };
        if order == Ordering::Less {
            return position.map(|position| self.merged.cell(position));
        }
        *made = self.behind.next()?;
        match position {
            Some(position) if order == Ordering::Equal => made.1.merge(self.merged.cell(position).1),
            // It is looked at again.
            Some(position) => self.positions.start = position,
            None => {}
        }
        Some((&made.0, &made.1))
    }
}

/// Cells of each shard as they are read, and what lies behind its mark.
struct Streamed {
    inputs: Vec<Input>,
    /// The next place of each input.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Streamed {
    fn open(views: &[View], definition: &Definition, buckets_ms: &Range<i64>, cache: &RollupCache) -> Result<Self> {
        let mut streamed = Self { inputs: Vec::new(), heads: BinaryHeap::new() };
        for view in views {
            streamed.add(definition, InputCells::Stored(CellPages::new(view, definition, buckets_ms)))?;
            let mark = mark(view.reader(), view.keyspace(), definition.id)?;
            let mut behind = BTreeMap::new();
            fold_behind(&mut behind, view, mark, definition, buckets_ms, cache)?;
            streamed.add(definition, InputCells::Folded(behind.into_iter()))?;
        }
        Ok(streamed)
    }

    fn add(&mut self, definition: &Definition, cells: InputCells) -> Result<()> {
        self.inputs.push(Input { cells, current: None });
        self.advance(definition, self.inputs.len() - 1)?;
        Ok(())
    }

    /// Moves an input to its next cell and returns the one that it stood at.
    fn advance(&mut self, definition: &Definition, place: usize) -> Result<Option<Cell>> {
        let input = &mut self.inputs[place];
        let next = match &mut input.cells {
            InputCells::Stored(pages) => pages.next(definition)?,
            InputCells::Folded(cells) => cells.next(),
        };
        let (at, next) = next.unzip();
        self.heads.extend(at.map(|at| Reverse((at, place))));
        Ok(std::mem::replace(&mut input.current, next))
    }

    fn next(&mut self, definition: &Definition) -> Result<Option<(Vec<u8>, Cell)>> {
        let Some(Reverse((place, input))) = self.heads.pop() else { return Ok(None) };
        let mut merged = self.advance(definition, input)?;
        while let Some(Reverse((next, _))) = self.heads.peek() {
            if *next != place {
                break;
            }
            let Some(Reverse((_, input))) = self.heads.pop() else { break };
            let more = self.advance(definition, input)?;
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
    buckets_ms: Range<i64>,
    /// Keys that are left to read; `None` at the end.
    left: Option<Range<Vec<u8>>>,
    page: VecDeque<(Vec<u8>, Cell)>,
}

impl CellPages {
    fn new(view: &View, definition: &Definition, buckets_ms: &Range<i64>) -> Self {
        let left = Some(cells_range(view, definition, buckets_ms));
        Self { view: view.clone(), buckets_ms: buckets_ms.clone(), left, page: VecDeque::new() }
    }

    fn next(&mut self, definition: &Definition) -> Result<Option<(Vec<u8>, Cell)>> {
        while self.page.is_empty() {
            let Some(range) = self.left.take() else { return Ok(None) };
            let reader = self.view.reader();
            let mut rows = reader.rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                let place = &key[key::ROLLUP_CELL_PREFIX_BYTES..];
                if bucket_of(place).is_some_and(|bucket| self.buckets_ms.contains(&bucket)) {
                    self.page.push_back((place.to_vec(), Cell::decode(&definition.aggregates, value)?));
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
