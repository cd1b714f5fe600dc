//! Covering: the next source behind a rollup's mark goes into its cells.

use std::sync::Arc;

use galoo_proto::{Hlc, Keyspace, RollupId, Seq};

use super::{Definition, cell::Cell, partial::Partial};
use crate::{
    Error, Result,
    engine::{Engine, Family, Reader, WriteBatch},
    key, shard,
    view::View,
};

/// Cells to write, made from one view, and the mark that they were made at.
#[derive(Clone, Debug)]
pub struct Cover {
    rollup: RollupId,
    mark: u64,
    /// Up to when players that were forgotten are left out.
    erased: Hlc,
    /// The mark behind it.
    pub through: u64,
    cells: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Cover {
    /// Cells that it writes.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }
}

/// Reads a rollup's mark: its cells hold exactly the events with a seq at or below it.
pub fn mark(reader: &dyn Reader, keyspace: Keyspace, rollup: RollupId) -> Result<u64> {
    let Some(bytes) = reader.get(Family::Rollups, &key::rollup_mark(keyspace, rollup))? else { return Ok(0) };
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::row("rollup mark", "not 8 bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Folds the first chunk or segment behind the rollup's mark that will not grow, and adds the cells that are there.
///
/// Returns `None` when there is none. Nothing is written: see [`commit`].
pub fn prepare(view: &View, definition: &Definition) -> Result<Option<Cover>> {
    let mark = mark(view.reader(), view.keyspace(), definition.id)?;
    let behind = view.sources_behind(Seq(mark))?;
    let Some(source) = behind.iter().find(|source| !view.grows(source)) else { return Ok(None) };
    let through = source.last_seq().0;
    let mut partial = Partial::default();
    partial.fold(definition, view, source, mark + 1..=through)?;
    let prefix = key::rollup_cells(view.keyspace(), definition.id).start;
    let mut cells = Vec::with_capacity(partial.len());
    for (place, cell) in partial.cells() {
        let key = [prefix.as_slice(), place].concat();
        let value = match view.reader().get(Family::Rollups, &key)? {
            None => cell.encode(),
            Some(bytes) => {
                let mut known = Cell::decode(&definition.aggregates, &bytes)?;
                known.merge(cell);
                known.encode()
            }
        };
        cells.push((key, value));
    }
    Ok(Some(Cover { rollup: definition.id, mark, erased: view.erased(), through, cells }))
}

/// Writes the cells and the mark in one batch.
///
/// Returns false, and changes nothing, when the rollup is gone, its mark has moved or a player was forgotten since. Runs on the thread that
/// applies, so that nothing else writes the shard.
pub fn commit(engine: &Arc<dyn Engine>, keyspace: Keyspace, cover: Cover) -> Result<bool> {
    let Cover { rollup, mark: expected, erased, through, cells } = cover;
    let defined = engine.get(Family::Meta, &key::rollup(keyspace, rollup))?.is_some();
    let state = shard::read_state(engine.as_ref(), keyspace)?.unwrap_or_default();
    if !defined || mark(engine.as_ref(), keyspace, rollup)? != expected || state.erased_hlc != erased.0 {
        return Ok(false);
    }
    assert!(through > expected, "INV-S6: the mark of {rollup} moves from {expected} to {through}");
    let mut batch = WriteBatch::default();
    for (key, value) in cells {
        batch.put(Family::Rollups, key, value);
    }
    batch.put(Family::Rollups, key::rollup_mark(keyspace, rollup), through.to_be_bytes().to_vec());
    engine.write(batch)?;
    Ok(true)
}
