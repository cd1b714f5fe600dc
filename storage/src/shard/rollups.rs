//! Rollups as commands: a definition enters the shard's log, so that every replica has the same ones.
//!
//! Cells are not made here: covering is each replica's own work ([`crate::rollup`]), and what a rollup answers never
//! depends on how far that is.

use galoo_proto::{
    RollupId,
    command::{Outcome, RollupChanged, outcome, rejection::Reason},
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
            let kept = Rollup { events_from_ms, defined_hlc, ..rollup.clone() };
            self.set(Family::Meta, key, kept.encode_to_vec());
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
