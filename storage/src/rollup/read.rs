//! Reading a rollup: the cells of all shards and what lies behind their marks, merged, in order of place.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, btree_map},
    ops::Range,
    sync::{Arc, Mutex},
};

use galoo_proto::{Keyspace, RollupId};

use super::{
    Definition,
    cell::{Cell, GroupValue, bucket_bytes, bucket_of, parse_place},
    cover::mark,
    partial::Partial,
};
use crate::{
    Result,
    engine::{Direction, Family},
    key,
    view::{Source, View},
};

/// Cells that are read from one shard at a time.
const PAGE_CELLS: usize = 4_096;
/// Cells of all partials that a cache keeps; the ones that were used longest ago go first.
const CACHE_CELLS_MAX: usize = 500_000;

/// A row of a rollup.
#[derive(Clone, Debug, PartialEq)]
pub struct RollupRow {
    /// The bucket's start, Unix milliseconds.
    pub bucket_ms: i64,
    /// The groups, in the order of the definition.
    pub groups: Vec<GroupValue>,
    /// The aggregates, in the order of the definition.
    pub cell: Cell,
}

/// A partial's source: its keyspace, the rollup, and the first seq that is in it.
type CacheKey = (Keyspace, RollupId, u64);

/// Partials of what is not covered, kept between reads: a dashboard that refreshes folds only what is new.
///
/// Bounded by cells. What is not in it is folded anew.
#[derive(Debug, Default)]
pub struct PartialCache {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// With the last seq that is in the partial, and when it was used.
    partials: HashMap<CacheKey, (u64, Arc<Partial>, u64)>,
    cells: usize,
    uses: u64,
}

impl PartialCache {
    fn get(&self, key: CacheKey) -> Option<(u64, Arc<Partial>)> {
        let mut kept = self.kept.lock().expect("nobody panics with the cache in hand");
        kept.uses += 1;
        let now = kept.uses;
        let (through, partial, used) = kept.partials.get_mut(&key)?;
        *used = now;
        Some((*through, partial.clone()))
    }

    fn put(&self, key: CacheKey, through: u64, partial: Arc<Partial>) {
        let mut kept = self.kept.lock().expect("nobody panics with the cache in hand");
        if kept.partials.get(&key).is_some_and(|(known, ..)| *known >= through) {
            return;
        }
        kept.cells += partial.len() + 1;
        let now = kept.uses;
        if let Some((_, old, _)) = kept.partials.insert(key, (through, partial, now)) {
            kept.cells -= old.len() + 1;
        }
        while kept.cells > CACHE_CELLS_MAX {
            let oldest = kept.partials.iter().min_by_key(|(_, (.., used))| *used).map(|(key, _)| *key);
            let Some((_, old, _)) = oldest.and_then(|oldest| kept.partials.remove(&oldest)) else { return };
            kept.cells -= old.len() + 1;
        }
    }

    /// Returns the partial of a source's events from `from` on, all that the view holds.
    fn partial(&self, definition: &Definition, view: &View, source: &Source, from: u64) -> Result<Arc<Partial>> {
        let (key, last) = ((view.keyspace(), definition.id, from), source.last_seq().0);
        let known = self.get(key).filter(|(through, _)| *through <= last);
        let (through, known) = known.unwrap_or_else(|| (from - 1, Arc::default()));
        if through == last {
            return Ok(known);
        }
        let mut partial = Partial::clone(&known);
        partial.fold(definition, view, source, through + 1..=last)?;
        let partial = Arc::new(partial);
        self.put(key, last, partial.clone());
        Ok(partial)
    }
}

/// Rows of a rollup over one cut of its shards, by place (player's token, bucket, groups).
pub struct RollupRows {
    definition: Arc<Definition>,
    inputs: Vec<Input>,
    /// The next place of each input.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl RollupRows {
    /// Opens a read of the buckets that start in `buckets_ms`. The views are of all shards, one each.
    pub fn open(
        views: &[View],
        definition: &Arc<Definition>,
        buckets_ms: &Range<i64>,
        cache: &PartialCache,
    ) -> Result<Self> {
        let mut rows = Self { definition: definition.clone(), inputs: Vec::new(), heads: BinaryHeap::new() };
        for view in views {
            rows.add(Cells::Stored(CellPages::new(view, definition, buckets_ms)))?;
            let mark = mark(view.reader(), view.keyspace(), definition.id)?;
            let mut behind: BTreeMap<Vec<u8>, Cell> = BTreeMap::new();
            for source in view.sources()?.iter().filter(|source| source.last_seq().0 > mark) {
                let partial = cache.partial(definition, view, source, source.first_seq().0.max(mark + 1))?;
                for (place, cell) in partial.cells() {
                    if !bucket_of(place).is_some_and(|bucket| buckets_ms.contains(&bucket)) {
                        continue;
                    }
                    match behind.get_mut(place) {
                        Some(known) => known.merge(cell),
                        None => {
                            behind.insert(place.clone(), cell.clone());
                        }
                    }
                }
            }
            rows.add(Cells::Folded(behind.into_iter()))?;
        }
        Ok(rows)
    }

    fn add(&mut self, cells: Cells) -> Result<()> {
        self.inputs.push(Input { cells, current: None });
        self.advance(self.inputs.len() - 1)?;
        Ok(())
    }

    /// Moves an input to its next cell and returns the one that it stood at.
    fn advance(&mut self, place: usize) -> Result<Option<Cell>> {
        let input = &mut self.inputs[place];
        let next = match &mut input.cells {
            Cells::Stored(pages) => pages.next(&self.definition)?,
            Cells::Folded(cells) => cells.next(),
        };
        let (at, next) = next.unzip();
        self.heads.extend(at.map(|at| Reverse((at, place))));
        Ok(std::mem::replace(&mut input.current, next))
    }

    fn next_row(&mut self) -> Result<Option<RollupRow>> {
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
        let Some(cell) = merged else { return Ok(None) };
        let (bucket_ms, groups) = parse_place(&self.definition, &place)?;
        Ok(Some(RollupRow { bucket_ms, groups, cell }))
    }
}

impl Iterator for RollupRows {
    type Item = Result<RollupRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// A stream of cells by place, and the one that it stands at.
struct Input {
    cells: Cells,
    current: Option<Cell>,
}

enum Cells {
    /// What is covered, of one shard.
    Stored(CellPages),
    /// What is not.
    Folded(btree_map::IntoIter<Vec<u8>, Cell>),
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
        let mut range = key::rollup_cells(view.keyspace(), definition.id);
        if !definition.groups_by_player() {
            let at = |bucket: i64| [range.start.as_slice(), &[0; 8], &bucket_bytes(bucket)].concat();
            range = at(buckets_ms.start)..at(buckets_ms.end);
        }
        Self { view: view.clone(), buckets_ms: buckets_ms.clone(), left: Some(range), page: VecDeque::new() }
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
