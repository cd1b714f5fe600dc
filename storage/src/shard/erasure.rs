//! Forgetting a player: state and what names the player in rollups go, events are hidden ([`crate::erasure`]).

use galoo_proto::{
    Token,
    command::{ForgetPlayer, Outcome, PlayerForgotten, outcome, rejection::Reason},
    record::{self, erasure::Time},
    rollup::Rollup,
};
use prost::Message;

use super::{rejected, turn::Turn};
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key,
    rollup::{self, Definition},
};

impl Turn<'_> {
    pub(super) fn forget(&mut self, forget: &ForgetPlayer) -> Result<Outcome> {
        let (keyspace, player) = (self.shard.keyspace, forget.player_id.as_str());
        if !self.owns(Token::of(player)) {
            return Ok(rejected(Reason::Reroute, 0, format!("player {player:?} is not in the shard's range")));
        }
        // Each replica takes the row away when its own files are clean: no answer may depend on what is in it.
        let key = key::erasure(keyspace, player);
        let known = self.get(Family::Meta, &key)?;
        let known = known.map(|row| record::Erasure::decode(row.as_slice())).transpose();
        let mut erasure = known.map_err(|error| Error::row("erasure", error))?.unwrap_or_default();
        for family in [Family::Cells, Family::History] {
            self.delete_range(family, key::player(keyspace, player));
        }
        for cell in self.rollup_cells_of(player)? {
            self.delete(Family::Rollups, cell);
        }
        erasure.player_id = player.to_owned();
        let (through_seq, events_from_ms) = (self.state.last_seq, self.state.events_from_ms);
        let time = Time { hlc: self.hlc.0, through_seq, events_from_ms };
        erasure.times.push(time);
        self.set(Family::Meta, key, erasure.encode_to_vec());
        self.state.erased_hlc = time.hlc;
        // What comes behind must not see what went.
        self.write_now();
        let forgotten = PlayerForgotten { hlc: time.hlc, through_seq: time.through_seq };
        Ok(Outcome { result: Some(outcome::Result::PlayerForgotten(forgotten)) })
    }

    /// Keys of the cells of rollups that name a player. They are this replica's own, as far as it has covered.
    fn rollup_cells_of(&self, player: &str) -> Result<Vec<Vec<u8>>> {
        let (engine, keyspace) = (&self.shard.engine, self.shard.keyspace);
        let range = key::rollups(keyspace);
        let mut rollups = Vec::new();
        let mut rows = engine.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
        while let Some((_, value)) = rows.next()? {
            let rollup = Rollup::decode(value).map_err(|error| Error::row("rollup", error))?;
            rollups.push(Definition::of_row(&rollup)?);
        }
        drop(rows);
        let mut cells = Vec::new();
        for definition in rollups.iter().filter(|definition| definition.groups_by_player()) {
            for tier in 0..definition.tiers.len() {
                let range = definition.cells_of(keyspace, tier, Token::of(player));
                let mut rows = engine.rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
                while let Some((key, _)) = rows.next()? {
                    if rollup::cell::names(definition, &key[key::ROLLUP_CELL_PREFIX_BYTES..], player)? {
                        cells.push(key.to_vec());
                    }
                }
            }
        }
        Ok(cells)
    }
}
