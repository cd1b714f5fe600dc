//! A rollup's mark: how far its cells are in a shard, in one row that is written with them.
//!
//! ```text
//! row   seq u64 | erased u64 | erased_to_ms i64 (big-endian)
//! ```

use galoo_proto::{Hlc, Keyspace, RollupId};

use crate::{
    Error, Result,
    engine::{Family, Reader},
    key,
    view::View,
};

/// How far a rollup's cells are in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The cells hold exactly the events with a seq at or below it (INV-S6), but for those that were taken out.
    pub seq: u64,
    /// Whom commands up to this stamp forgot was taken out, as the rollup declares ([`super::settle`]).
    pub erased: Hlc,
    /// Whom the next such command forgot was taken out of the buckets before it, Unix milliseconds.
    pub erased_to_ms: i64,
}

impl Mark {
    /// That of a rollup of which nothing is written yet.
    const NEW: Self = Self { seq: 0, erased: Hlc(0), erased_to_ms: i64::MIN };

    /// Reads a rollup's mark in a shard.
    pub fn of(view: &View, rollup: RollupId) -> Result<Self> {
        Self::read(view.reader(), view.keyspace(), rollup)
    }

    pub(super) fn read(reader: &dyn Reader, keyspace: Keyspace, rollup: RollupId) -> Result<Self> {
        let Some(bytes) = reader.get(Family::Rollups, &key::rollup_mark(keyspace, rollup))? else {
            return Ok(Self::NEW);
        };
        let mut rest = bytes.as_slice();
        let mut number = || key::take_u64(&mut rest);
        match (number(), number(), number()) {
            (Some(seq), Some(erased), Some(to_ms)) if rest.is_empty() => {
                Ok(Self { seq, erased: Hlc(erased), erased_to_ms: to_ms.cast_signed() })
            }
            _ => Err(Error::row("rollup mark", "not 24 bytes")),
        }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        [self.seq, self.erased.0, self.erased_to_ms.cast_unsigned()].map(u64::to_be_bytes).concat()
    }
}
