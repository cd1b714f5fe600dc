//! A rollup's mark: how far its cells are in a shard, in one row that is written with them.

use galoo_proto::{Keyspace, RollupId, record::RollupMark};
use prost::Message;

use crate::{
    Error, Result,
    engine::{Family, Reader},
    key,
    view::View,
};

/// Reads a rollup's mark in a shard.
pub fn of(view: &View, rollup: RollupId) -> Result<RollupMark> {
    read(view.reader(), view.keyspace(), rollup)
}

pub(super) fn read(reader: &dyn Reader, keyspace: Keyspace, rollup: RollupId) -> Result<RollupMark> {
    let row = reader.get(Family::Rollups, &key::rollup_mark(keyspace, rollup))?;
    let mark = row.map(|row| RollupMark::decode(row.as_slice())).transpose();
    Ok(mark.map_err(|error| Error::row("rollup mark", error))?.unwrap_or_default())
}
