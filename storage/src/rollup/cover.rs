//! Covering: the next source behind a rollup's mark goes into its cells.

use std::{
    collections::{HashMap, HashSet},
    ops::{ControlFlow, Range, RangeInclusive},
    sync::Arc,
};

use galoo_proto::{Hlc, Keyspace, RollupId, Seq, record::RollupMark};
use prost::Message;

use super::{
    Definition,
    bound::{Cells, add, surplus},
    cell::{BUCKET_BYTES, Cell, bucket_bytes, other_place},
    counted::Counted,
    expiry,
    fold::fold,
    mark,
    partial::Partial,
    settle::{self, Changes},
};
use crate::{
    Result,
    engine::{Direction, Engine, Family, WriteBatch},
    erasure::ALWAYS,
    key, shard,
    view::{EventFilter, Source, View},
};

/// Cells to write, made from one view, and the mark that they were made at.
#[derive(Clone, Debug)]
pub struct Cover {
    rollup: RollupId,
    mark: RollupMark,
    /// Of a rollup that names players: up to when those who were forgotten are left out. What another counts its mark says.
    erased: Option<Hlc>,
    /// The mark behind it.
    pub to: RollupMark,
    /// Keys with what is put there, or nothing where a cell goes.
    cells: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Cover {
    pub(super) fn new(
        definition: &Definition,
        view: &View,
        mark: RollupMark,
        to: RollupMark,
        changes: Changes,
    ) -> Self {
        let cells = changes.into_iter().map(|(key, cell)| (key, cell.map(|cell| cell.encode()))).collect();
        let erased = definition.groups_by_player().then(|| view.erased());
        Self { rollup: definition.id, mark, erased, to, cells }
    }

    /// The rollup.
    pub fn rollup(&self) -> RollupId {
        self.rollup
    }

    /// Cells that it writes.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }
}

/// What is done before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// What is behind the mark is added.
    Covering,
    /// What is in the cells, and should not be, is taken out.
    TakingOut,
}

/// How much is done at a time.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Cells that are settled or swept, about; if they are not all in one bucket of the widest tier, or one player's.
    pub cells: usize,
    /// What the cells of a part of a source take in memory, in the narrowest tier; if it is not one event's.
    pub bytes: usize,
}

impl Default for Piece {
    fn default() -> Self {
        Self { cells: 65_536, bytes: 64 << 20 }
    }
}

/// Works out what is next for the cells of rollups: each settles what it owes ([`settle`]), or lets go of cells that are too
/// old ([`expiry`]), or folds the first chunk or segment behind its mark that will not grow, or a part of it, and adds the cells
/// that are there. Either may be much: who does both in turn keeps neither waiting. Rollups with the same mark read the
/// events behind it in one pass.
///
/// `take` is given what was worked out or failed, by rollup, as soon as it is there, so that it does not pile up; nothing of a
/// rollup that has nothing to do. When it breaks, nothing more is worked out. Nothing is written: see [`commit`].
pub fn prepare(view: &View, definitions: &[Definition], first: First, piece: &Piece, take: Take<'_>) {
    let _ = prepare_each(view, definitions, first, piece, take);
}

/// As [`prepare`], of one rollup.
pub fn prepare_one(view: &View, definition: &Definition, first: First, piece: &Piece) -> Result<Option<Cover>> {
    let mut next = None;
    prepare(view, std::slice::from_ref(definition), first, piece, &mut |_, cover| {
        next = Some(cover);
        ControlFlow::Break(())
    });
    next.transpose()
}

/// Takes what is next for a rollup.
pub type Take<'t> = &'t mut dyn FnMut(RollupId, Result<Cover>) -> ControlFlow<()>;

/// A rollup with the shard as it counts it.
struct Behind<'d> {
    definition: &'d Definition,
    shard: Counted,
}

fn prepare_each(
    view: &View,
    definitions: &[Definition],
    first: First,
    piece: &Piece,
    take: Take<'_>,
) -> ControlFlow<()> {
    let mut rollups = Vec::new();
    for definition in definitions {
        match Counted::open(view, definition) {
            Ok(shard) => rollups.push(Behind { definition, shard }),
            Err(error) => take(definition.id, Err(error))?,
        }
    }
    match first {
        First::Covering => {
            let idle = cover(rollups, piece, take)?;
            take_out(idle, piece, take).map_continue(drop)
        }
        First::TakingOut => {
            let idle = take_out(rollups, piece, take)?;
            cover(idle, piece, take).map_continue(drop)
        }
    }
}

/// Settles and sweeps; goes on with the rollups that have nothing of either to do.
fn take_out<'d>(rollups: Vec<Behind<'d>>, piece: &Piece, take: Take<'_>) -> ControlFlow<(), Vec<Behind<'d>>> {
    let next = |Behind { definition, shard }: &Behind<'_>| match settle::prepare(shard, definition, piece)? {
        None => expiry::sweep(shard, definition, piece.cells),
        settled => Ok(settled),
    };
    each(rollups, next, take)
}

/// Does what is next for each rollup; goes on with those for which nothing is.
fn each<'d>(
    rollups: Vec<Behind<'d>>,
    next: impl Fn(&Behind<'_>) -> Result<Option<Cover>>,
    take: Take<'_>,
) -> ControlFlow<(), Vec<Behind<'d>>> {
    let mut idle = Vec::new();
    for rollup in rollups {
        match next(&rollup).transpose() {
            None => idle.push(rollup),
            Some(cover) => take(rollup.definition.id, cover)?,
        }
    }
    ControlFlow::Continue(idle)
}

/// Covers; goes on with the rollups behind which there is nothing to cover.
fn cover<'d>(mut rollups: Vec<Behind<'d>>, piece: &Piece, take: Take<'_>) -> ControlFlow<(), Vec<Behind<'d>>> {
    let mut idle = Vec::new();
    while let Some(next) = rollups.pop() {
        let (mut alike, others): (Vec<_>, Vec<_>) = rollups.into_iter().partition(|one| one.shard.is_like(&next.shard));
        rollups = others;
        alike.push(next);
        match cover_alike(&alike, piece.bytes) {
            Ok(covers) if covers.is_empty() => idle.append(&mut alike),
            Ok(covers) => covers.into_iter().try_for_each(|cover| take(cover.rollup, Ok(cover)))?,
            // One that fails by itself keeps none of the others waiting.
            Err(_) if alike.len() > 1 => {
                let alone = |rollup: &Behind<'_>| Ok(cover_alike(std::slice::from_ref(rollup), piece.bytes)?.pop());
                idle.append(&mut each(alike, alone, take)?);
            }
            Err(error) => take(alike[0].definition.id, Err(error))?,
        }
    }
    ControlFlow::Continue(idle)
}

/// Covers what is next behind the mark of rollups that count the same; nothing if nothing is.
fn cover_alike(rollups: &[Behind<'_>], bytes_max: usize) -> Result<Vec<Cover>> {
    let Some(Behind { shard, .. }) = rollups.first() else { return Ok(Vec::new()) };
    let (view, first) = (&shard.view, shard.mark.seq + 1);
    let behind = view.sources_behind(Seq(shard.mark.seq))?;
    let Some(source) = behind.iter().find(|source| !view.grows(source)) else { return Ok(Vec::new()) };
    let mut last = source.last_seq().0;
    loop {
        // One event is little enough, whatever it takes.
        let bytes_max = if last == first { usize::MAX } else { bytes_max };
        if let Some(partials) = fold_piece(rollups, source, first..=last, bytes_max)? {
            let covers = rollups.iter().zip(&partials);
            return covers.map(|(rollup, partial)| rollup.cover(partial, last)).collect();
        }
        last = first + (last - first) / 2;
    }
}

/// The partials of some events of a source; `None` if they take more than `bytes_max` in memory.
fn fold_piece(
    rollups: &[Behind<'_>],
    source: &Source,
    seqs: RangeInclusive<u64>,
    bytes_max: usize,
) -> Result<Option<Vec<Partial>>> {
    let Some(Behind { shard, .. }) = rollups.first() else { return Ok(None) };
    let mut partials = vec![Partial::default(); rollups.len()];
    let mut each: Vec<_> = rollups.iter().map(|rollup| rollup.definition).zip(&mut partials).collect();
    let filter = EventFilter { seqs, time_ms: ALWAYS, ..EventFilter::default() };
    let fits = fold(&mut each, &shard.events, source, filter, bytes_max)?;
    Ok(fits.then_some(partials))
}

impl Behind<'_> {
    /// Adds a partial of the events behind the mark, through a seq, to the cells.
    fn cover(&self, partial: &Partial, through: u64) -> Result<Cover> {
        let (Self { definition, shard }, mut changes) = (self, HashMap::new());
        for tier in 0..definition.tiers.len() {
            let stored = Stored::of(&shard.view, definition, tier);
            let mut changed = Cells::default();
            for (place, cell) in partial.of_tier(definition, tier).cells().filter(|(place, _)| shard.keeps(tier, place))
            {
                let mut cell = cell.clone();
                if let Some(known) = stored.cell(place)? {
                    cell.merge(&known);
                }
                changed.insert(place.clone(), cell);
            }
            let gone = match definition.groups_max {
                Some(groups_max) => stored.bound(&mut changed, groups_max)?,
                None => Vec::new(),
            };
            changes.extend(changed.into_iter().map(|(place, cell)| (stored.key(&place), Some(cell))));
            changes.extend(gone.into_iter().map(|place| (stored.key(&place), None)));
        }
        let (mark, to) = (shard.mark.clone(), RollupMark { seq: through, ..shard.mark.clone() });
        Ok(Cover::new(definition, &shard.view, mark, to, changes))
    }
}

/// A tier's cells that are there.
pub(super) struct Stored<'a> {
    view: &'a View,
    definition: &'a Definition,
    /// Before a place in its key.
    prefix: Vec<u8>,
}

impl<'a> Stored<'a> {
    pub(super) fn of(view: &'a View, definition: &'a Definition, tier: usize) -> Self {
        Self { view, definition, prefix: definition.cells(view.keyspace(), tier).start }
    }

    pub(super) fn key(&self, place: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), place].concat()
    }

    pub(super) fn cell(&self, place: &[u8]) -> Result<Option<Cell>> {
        let bytes = self.view.reader().get(Family::Rollups, &self.key(place))?;
        bytes.map(|bytes| Cell::decode(self.definition.parts_at(place), &bytes)).transpose()
    }

    /// Places of a bucket.
    fn places(&self, bucket: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.places_in(&key::prefix_range(self.key(bucket)))
    }

    /// Places of the buckets that begin at these times. The rollup does not group by player.
    pub(super) fn places_between(&self, start_ms: i64, end_ms: i64) -> Result<Vec<Vec<u8>>> {
        let at = |bucket_ms: i64| [self.prefix.as_slice(), &[0; 8], &bucket_bytes(bucket_ms)].concat();
        self.places_in(&(at(start_ms)..at(end_ms)))
    }

    fn places_in(&self, range: &Range<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let mut rows = self.view.reader().rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
        let mut places = Vec::new();
        while let Some((key, _)) = rows.next()? {
            places.push(key[self.prefix.len()..].to_vec());
        }
        Ok(places)
    }

    /// Folds groups that are too many for their bucket, with those that are there, into `other`; returns which of those go.
    fn bound(&self, changed: &mut Cells, groups_max: usize) -> Result<Vec<Vec<u8>>> {
        let mut buckets: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
        for place in changed.keys() {
            buckets.entry(place[..BUCKET_BYTES].to_vec()).or_default().push(place.clone());
        }
        let mut gone = Vec::new();
        for (bucket, mut new) in buckets {
            let mut places = self.places(&bucket)?;
            let known: HashSet<Vec<u8>> = places.iter().cloned().collect();
            new.retain(|place| !known.contains(place));
            places.extend(new);
            let other = other_place(&bucket);
            for place in surplus(places.iter().map(Vec::as_slice), groups_max) {
                let cell = match changed.remove(place) {
                    Some(cell) => Some(cell),
                    None => self.cell(place)?,
                };
                if !changed.contains_key(&other)
                    && let Some(known) = self.cell(&other)?
                {
                    changed.insert(other.clone(), known);
                }
                cell.into_iter().for_each(|cell| add(changed, other.clone(), cell));
                if known.contains(place) {
                    gone.push(place.to_vec());
                }
            }
        }
        Ok(gone)
    }
}

/// Writes the cells and the mark in one batch.
///
/// Returns false, and changes nothing, when the rollup is gone, its mark has moved, or it names players and one was forgotten
/// since. Runs on the thread that applies, so that nothing else writes the shard.
pub fn commit(engine: &Arc<dyn Engine>, keyspace: Keyspace, cover: Cover) -> Result<bool> {
    let Cover { rollup, mark, erased, to, cells } = cover;
    let defined = engine.get(Family::Meta, &key::rollup(keyspace, rollup))?.is_some();
    let state = shard::read_state(engine.as_ref(), keyspace)?.unwrap_or_default();
    let is_stale = erased.is_some_and(|erased| state.erased_hlc != erased.0);
    if !defined || mark::read(engine.as_ref(), keyspace, rollup)? != mark || is_stale {
        return Ok(false);
    }
    assert!(mark != to && mark.seq <= to.seq, "INV-S6: the mark of {rollup} moves from {mark:?} to {to:?}");
    let mut batch = WriteBatch::default();
    for (key, value) in cells {
        match value {
            Some(value) => batch.put(Family::Rollups, key, value),
            None => batch.delete(Family::Rollups, key),
        }
    }
    batch.put(Family::Rollups, key::rollup_mark(keyspace, rollup), to.encode_to_vec());
    engine.write(batch)?;
    Ok(true)
}
