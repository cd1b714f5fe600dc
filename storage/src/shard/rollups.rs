//! Rollups as commands: a definition enters the shard's log, so that every replica has the same ones.
//!
//! Cells are not made here: covering is each replica's own work ([`crate::rollup`]), and what a rollup answers does not
//! depend on how far that is; but for players who were forgotten, who are in it until the replica has taken them out.

use galoo_proto::{
    RollupId,
    command::{DropBuckets, Outcome, RollupChanged, outcome, rejection::Reason},
    rollup::Rollup,
};
use prost::Message;

use super::{rejected, turn::Turn};
use crate::{Error, Result, engine::Family, key, rollup};

impl Turn<'_> {
    pub(super) fn define_rollup(&mut self, rollup: &Rollup) -> Result<Outcome> {
        if rollup.version > rollup::FORMAT_VERSION {
            let known = rollup::FORMAT_VERSION;
            return Err(Error::NewerFormat { what: "rollup", found: rollup.version, known });
        }
        if let Err(reason) = rollup::Definition::parse(rollup) {
            return Ok(rejected(Reason::InvalidRollup, 0, reason.to_string()));
        }
        let key = key::rollup(self.shard.keyspace, RollupId(rollup.id));
        let changed = self.get(Family::Meta, &key)?.is_none();
        if changed {
            // What goes from here on is in its cells first; what went before never is.
            let (events_from_ms, defined_hlc) = (self.state.events_from_ms, self.hlc.0);
            let mut kept = Rollup { events_from_ms, defined_hlc, ..rollup.clone() };
            for tier in kept.tiers.iter_mut().filter(|tier| tier.retention_ms > 0) {
                tier.from_ms = rollup::expiry::kept_from(self.hlc, tier.retention_ms, tier.bucket_ms);
            }
            self.set(Family::Meta, key, kept.encode_to_vec());
        }
        Ok(rollup_changed(changed))
    }

    /// Moves the first bucket that a tier keeps; never back.
    pub(super) fn drop_buckets(&mut self, drop: &DropBuckets) -> Result<Outcome> {
        let (keyspace, id) = (self.shard.keyspace, RollupId(drop.rollup));
        let key = key::rollup(keyspace, id);
        let Some(row) = self.get(Family::Meta, &key)? else { return Ok(rollup_changed(false)) };
        let mut rollup = Rollup::decode(row.as_slice()).map_err(|error| Error::row("rollup", error))?;
        let Some(tier) = usize::try_from(drop.tier).ok().and_then(|place| rollup.tiers.get_mut(place)) else {
            return Ok(rollup_changed(false));
        };
        let from_ms = rollup::bucket_start(drop.before_ms, tier.bucket_ms);
        let changed = tier.from_ms.is_none_or(|known| known < from_ms);
        if changed {
            tier.from_ms = Some(from_ms);
            // Cells that follow players are swept later.
            self.delete_range(Family::Rollups, rollup::expiry::cells_before(keyspace, id, drop.tier, from_ms));
            self.set(Family::Meta, key, rollup.encode_to_vec());
        }
        Ok(rollup_changed(changed))
    }

    pub(super) fn drop_rollup(&mut self, id: RollupId) -> Result<Outcome> {
        let keyspace = self.shard.keyspace;
        let key = key::rollup(keyspace, id);
        let changed = self.get(Family::Meta, &key)?.is_some();
        if changed {
            self.unset(Family::Meta, key);
            self.delete(Family::Rollups, key::rollup_mark(keyspace, id));
            self.delete_range(Family::Rollups, key::rollup_cells(keyspace, id));
        }
        Ok(rollup_changed(changed))
    }
}

fn rollup_changed(changed: bool) -> Outcome {
    Outcome { result: Some(outcome::Result::RollupChanged(RollupChanged { changed })) }
}
