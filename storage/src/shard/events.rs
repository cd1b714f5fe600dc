//! Appends: events into the open chunk.

use galoo_proto::{
    ChunkId, Seq, Token,
    command::{AppendEvents, Appended, Outcome, outcome},
    validate::event_bytes,
    value::Event,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    producers::Repeat,
    rejected,
    turn::{Run, Turn},
};
use crate::{Result, chunk};

impl Turn<'_> {
    pub(super) fn append(&mut self, append: AppendEvents) -> Result<Outcome> {
        if let Some(event) = append.events.iter().find(|event| !self.owns(Token::of(&event.player_id))) {
            let detail = format!("player {:?} is not in the shard's range", event.player_id);
            return Ok(rejected(galoo_proto::command::rejection::Reason::Reroute, 0, detail));
        }
        let stored_before = match &append.batch {
            None => 0,
            Some(batch) => match self.repeat_of_events(batch, &append.events)? {
                Repeat::New => 0,
                Repeat::Grown { count } => count,
                Repeat::Answered(outcome) => return Ok(outcome),
            },
        };
        self.learn_properties(append.properties);
        let next_seq = self.state.last_seq + 1;
        let new = &append.events[stored_before..];
        let repeated = self.repeated(new)?;
        for (place, event) in new.iter().enumerate() {
            if !repeated.get(place).is_some_and(|repeated| *repeated) {
                self.store(event);
            }
        }
        let count = u32::try_from(self.state.last_seq + 1 - next_seq).unwrap_or(u32::MAX);
        let appended = Appended {
            first_seq: if count == 0 { 0 } else { next_seq },
            count,
            hlc: self.hlc.0,
            duplicate: false,
            repeated: u32::try_from(new.len()).unwrap_or(u32::MAX) - count,
        };
        let outcome = Outcome { result: Some(outcome::Result::Appended(appended)) };
        if let Some(batch) = &append.batch {
            self.remember(batch, content_hash(&append.events), append.events.len(), &outcome)?;
        }
        Ok(outcome)
    }

    pub(super) fn store(&mut self, event: &Event) {
        self.state.last_seq += 1;
        self.state.events += 1;
        let seq = Seq(self.state.last_seq);
        let open = self.state.open.get_or_insert_default();
        if open.last_seq < open.first_seq {
            open.opened_hlc = self.hlc.0;
            open.time_min_ms = event.event_time_ms;
            open.time_max_ms = event.event_time_ms;
        }
        assert!(seq.0 == open.last_seq + 1, "INV-S3: {seq} stored behind #{} of c{}", open.last_seq, open.id);
        open.last_seq = seq.0;
        open.bytes += (event_bytes(event) - event.event_id.len()) as u64;
        open.time_min_ms = open.time_min_ms.min(event.event_time_ms);
        open.time_max_ms = open.time_max_ms.max(event.event_time_ms);
        let chunk = ChunkId(open.id);
        let run = self.run.get_or_insert_with(|| Run { chunk, first: seq, bytes: Vec::new() });
        chunk::push(&mut run.bytes, self.hlc, event);
    }
}

/// Returns the hash of a list of events that stands for its content.
pub(super) fn content_hash(events: &[Event]) -> u64 {
    let mut hash = Xxh3::new();
    for event in events {
        for text in [&event.player_id, &event.event_type, &event.properties] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&event.event_time_ms.to_le_bytes());
        if !event.event_id.is_empty() {
            // No text is as long: no next event looks like an id.
            hash.update(&u64::MAX.to_le_bytes());
            hash.update(&(event.event_id.len() as u64).to_le_bytes());
            hash.update(event.event_id.as_bytes());
        }
    }
    hash.digest()
}
