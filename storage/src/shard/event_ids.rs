//! Ids that clients give to events: a player's event whose id was stored within the game's window is not stored again,
//! whoever sends it.
//!
//! Of an id 128 bits of hash are kept, with the stamp under which its event was stored: it counts as known for the window
//! from there. Rows lie in *slices*. A new slice begins once the newest one is as old as the window, and the slices
//! before the one that it follows go as a range: so an id is looked for in two slices, however long the window, and takes
//! its 41 bytes of key and value for two windows at most. Forgetting a player leaves the hashes until then: what is sent
//! again late must not bring the player back.

use galoo_proto::{
    Hlc, Token,
    command::{EventIdWindowSet, Outcome, outcome},
    limits::EVENT_ID_WINDOW_MS_DEFAULT,
    record,
    value::Event,
};
use xxhash_rust::xxh3::Xxh3;

use super::turn::Turn;
use crate::{Error, Result, engine::Family, key};

/// For how long an id is known, in milliseconds.
fn window_ms(ids: &record::EventIds) -> u64 {
    if ids.window_ms == 0 { EVENT_ID_WINDOW_MS_DEFAULT } else { ids.window_ms }
}

/// Returns what stands for an event's id: two players' ids are never the same.
fn hash(event: &Event) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&(event.player_id.len() as u64).to_le_bytes());
    hash.update(event.player_id.as_bytes());
    hash.update(event.event_id.as_bytes());
    hash.digest128()
}

impl Turn<'_> {
    /// Finds the events of a batch whose ids are known, or stand further in front in the batch, and keeps the other ids:
    /// true in an event's place when it is not to be stored. Empty when no event has an id.
    pub(super) fn repeated(&mut self, events: &[Event]) -> Result<Vec<bool>> {
        let named: Vec<_> = (0..events.len()).filter(|place| !events[*place].event_id.is_empty()).collect();
        if named.is_empty() {
            return Ok(Vec::new());
        }
        let (keyspace, slice) = (self.shard.keyspace, self.slice());
        let ids: Vec<_> =
            named.iter().map(|place| (Token::of(&events[*place].player_id), hash(&events[*place]))).collect();
        let keys = |slice| ids.iter().map(move |(token, id)| key::event_id(keyspace, slice, *token, *id));
        let found =
            self.shard.engine.get_many(Family::Producers, &keys(slice).chain(keys(slice - 1)).collect::<Vec<_>>())?;
        let (newest, before) = found.split_at(ids.len());
        let window_ms = window_ms(&self.state.event_ids.unwrap_or_default());
        let mut repeated = vec![false; events.len()];
        for (at, place) in named.iter().enumerate() {
            let stored = match self.event_ids.get(&ids[at].1) {
                Some(stored) => Some(*stored),
                None => newest[at].as_ref().or(before[at].as_ref()).map(|row| stored_at(row)).transpose()?,
            };
            if stored.is_some_and(|stored| self.hlc.millis().saturating_sub(stored.millis()) < window_ms) {
                repeated[*place] = true;
                continue;
            }
            self.event_ids.insert(ids[at].1, self.hlc);
            let (token, id) = ids[at];
            self.put(Family::Producers, key::event_id(keyspace, slice, token, id), self.hlc.0.to_be_bytes().to_vec());
        }
        let count = repeated.iter().filter(|repeated| **repeated).count();
        self.state.event_ids.get_or_insert_default().repeated += count as u64;
        Ok(repeated)
    }

    /// Returns the slice that ids are written into, after beginning one and letting older ones go if it is time.
    fn slice(&mut self) -> u64 {
        let (hlc, keyspace) = (self.hlc, self.shard.keyspace);
        let ids = self.state.event_ids.get_or_insert_default();
        let begins = ids.slice == 0 || hlc.millis() - Hlc(ids.began_hlc).millis() >= window_ms(ids);
        if begins {
            // What this turn knows of slices that go is forgotten with their rows: however commands are put into turns.
            let kept_from = ids.began_hlc;
            self.event_ids.retain(|_, stored| stored.0 >= kept_from);
            (ids.slice, ids.began_hlc) = (ids.slice + 1, hlc.0);
        }
        let slice = ids.slice;
        if begins && slice > 2 {
            self.delete_range(Family::Producers, key::event_id_slices(keyspace, 0..slice - 1));
        }
        slice
    }

    /// Changes for how long ids are known: those that are kept, and those that come.
    pub(super) fn set_event_id_window(&mut self, window_ms: u64) -> Outcome {
        self.state.event_ids.get_or_insert_default().window_ms = window_ms;
        Outcome { result: Some(outcome::Result::EventIdWindowSet(EventIdWindowSet { window_ms })) }
    }
}

fn stored_at(row: &[u8]) -> Result<Hlc> {
    let bytes = row.try_into().map_err(|_| Error::row("event id", "not 8 bytes"))?;
    Ok(Hlc(u64::from_be_bytes(bytes)))
}
