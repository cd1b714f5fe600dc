//! Covering: the next source behind a rollup's mark goes into its cells.

use std::{collections::HashSet, sync::Arc};

use galoo_proto::{Hlc, Keyspace, RollupId, Seq};

use super::{
    Definition,
    bound::{Cells, add, surplus},
    cell::{BUCKET_BYTES, Cell, other_place},
    partial::Partial,
};
use crate::{
    Error, Result,
    engine::{Direction, Engine, Family, Reader, WriteBatch},
    key, shard,
    view::View,
};

/// Cells to write, made from one view, and the mark that they were made at.
#[derive(Clone, Debug)]
pub struct Cover {
    rollup: RollupId,
    mark: u64,
    /// Of a rollup that names players: up to when those who were forgotten are left out. What another counts does not change.
    erased: Option<Hlc>,
    /// The mark behind it.
    pub through: u64,
    /// Keys with what is put there, or nothing where a cell goes.
    cells: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Cover {
    /// Cells that it writes.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }
}

/// Reads a rollup's mark in a shard: its cells hold exactly the events with a seq at or below it.
pub fn mark(view: &View, rollup: RollupId) -> Result<u64> {
    read_mark(view.reader(), view.keyspace(), rollup)
}

fn read_mark(reader: &dyn Reader, keyspace: Keyspace, rollup: RollupId) -> Result<u64> {
    let Some(bytes) = reader.get(Family::Rollups, &key::rollup_mark(keyspace, rollup))? else { return Ok(0) };
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::row("rollup mark", "not 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Folds the first chunk or segment behind the rollup's mark that will not grow, and adds the cells that are there.
///
/// Returns `None` when there is none. Nothing is written: see [`commit`].
pub fn prepare(view: &View, definition: &Definition) -> Result<Option<Cover>> {
    let mark = mark(view, definition.id)?;
    let behind = view.sources_behind(Seq(mark))?;
    let Some(source) = behind.iter().find(|source| !view.grows(source)) else { return Ok(None) };
    let through = source.last_seq().0;
    let mut partial = Partial::default();
    partial.fold(definition, view, source, mark + 1..=through, i64::MIN..i64::MAX)?;
    let mut cells = Vec::new();
    for tier in 0..definition.tiers.len() {
        let stored = Stored { view, definition, prefix: definition.cells(view.keyspace(), tier).start };
        let mut changed = Cells::new();
        for (place, cell) in partial.of_tier(definition, tier).cells() {
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
        cells.extend(changed.into_iter().map(|(place, cell)| (stored.key(&place), Some(cell.encode()))));
        cells.extend(gone.into_iter().map(|place| (stored.key(&place), None)));
    }
    let erased = definition.groups_by_player().then(|| view.erased());
    Ok(Some(Cover { rollup: definition.id, mark, erased, through, cells }))
}

/// A tier's cells that are there.
struct Stored<'a> {
    view: &'a View,
    definition: &'a Definition,
    /// Before a place in its key.
    prefix: Vec<u8>,
}

impl Stored<'_> {
    fn key(&self, place: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), place].concat()
    }

    fn cell(&self, place: &[u8]) -> Result<Option<Cell>> {
        let bytes = self.view.reader().get(Family::Rollups, &self.key(place))?;
        bytes.map(|bytes| Cell::decode(self.definition.parts_at(place), &bytes)).transpose()
    }

    /// Places of the bucket of a place.
    fn places(&self, bucket: &[u8]) -> Result<Vec<Vec<u8>>> {
        let range = key::prefix_range(self.key(bucket));
        let mut rows = self.view.reader().rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
        let mut places = Vec::new();
        while let Some((key, _)) = rows.next()? {
            places.push(key[self.prefix.len()..].to_vec());
        }
        Ok(places)
    }

    /// Folds groups that are too many for their bucket, with those that are there, into `other`; returns which of those go.
    fn bound(&self, changed: &mut Cells, groups_max: usize) -> Result<Vec<Vec<u8>>> {
        let mut buckets: Vec<Vec<u8>> = changed.keys().map(|place| place[..BUCKET_BYTES].to_vec()).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let mut gone = Vec::new();
        for bucket in buckets {
            let mut places = self.places(&bucket)?;
            let known: HashSet<Vec<u8>> = places.iter().cloned().collect();
            let new = changed.keys().filter(|place| place.starts_with(&bucket) && !known.contains(*place));
            places.extend(new.cloned());
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
    let Cover { rollup, mark: expected, erased, through, cells } = cover;
    let defined = engine.get(Family::Meta, &key::rollup(keyspace, rollup))?.is_some();
    let state = shard::read_state(engine.as_ref(), keyspace)?.unwrap_or_default();
    let is_stale = erased.is_some_and(|erased| state.erased_hlc != erased.0);
    if !defined || read_mark(engine.as_ref(), keyspace, rollup)? != expected || is_stale {
        return Ok(false);
    }
    assert!(through > expected, "INV-S6: the mark of {rollup} moves from {expected} to {through}");
    let mut batch = WriteBatch::default();
    for (key, value) in cells {
        match value {
            Some(value) => batch.put(Family::Rollups, key, value),
            None => batch.delete(Family::Rollups, key),
        }
    }
    batch.put(Family::Rollups, key::rollup_mark(keyspace, rollup), through.to_be_bytes().to_vec());
    engine.write(batch)?;
    Ok(true)
}
