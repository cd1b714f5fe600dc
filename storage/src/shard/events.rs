//! Appends: events into the open chunk, new properties into the catalog.

use std::collections::HashMap;

use galoo_proto::{
    ChunkId, Keyspace, Seq, Token,
    command::{AppendEvents, Appended, Outcome, PropertyKinds, outcome},
    limits::PROPERTIES_MAX,
    validate::event_bytes,
    value::Event,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    producers::Repeat,
    rejected,
    turn::{Run, Turn},
};
use crate::{
    Error, Result, chunk,
    engine::{Direction, Family, Reader},
    key,
    properties::Kinds,
};

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
        let first_seq = self.state.last_seq + 1;
        let new = &append.events[stored_before..];
        for event in new {
            self.store(event);
        }
        let appended = Appended {
            first_seq,
            count: u32::try_from(new.len()).unwrap_or(u32::MAX),
            hlc: self.hlc.0,
            duplicate: false,
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
        open.bytes += event_bytes(event) as u64;
        open.time_min_ms = open.time_min_ms.min(event.event_time_ms);
        open.time_max_ms = open.time_max_ms.max(event.event_time_ms);
        let chunk = ChunkId(open.id);
        let run = self.run.get_or_insert_with(|| Run { chunk, first: seq, bytes: Vec::new() });
        chunk::push(&mut run.bytes, self.hlc, event);
    }

    /// Adds new names and kinds to the catalog. Beyond its limit a name gets no column; its values are kept all the same.
    pub(super) fn learn_properties(&mut self, properties: Vec<PropertyKinds>) {
        for PropertyKinds { name, kinds } in properties {
            let known = self.new_properties.get(&name).or_else(|| self.shard.properties.get(&name)).copied();
            let all = known.unwrap_or_default().with(Kinds(kinds as u8));
            if known == Some(all) || (known.is_none() && self.state.properties >= PROPERTIES_MAX) {
                continue;
            }
            self.state.properties += u64::from(known.is_none());
            self.put(Family::Meta, key::property(self.shard.keyspace, &name), vec![all.0]);
            self.new_properties.insert(name, all);
        }
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
    }
    hash.digest()
}

/// Reads a shard's catalog of properties.
pub(crate) fn read_properties(reader: &dyn Reader, keyspace: Keyspace) -> Result<HashMap<String, Kinds>> {
    let range = key::properties(keyspace);
    let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
    let mut properties = HashMap::new();
    while let Some((key, value)) = rows.next()? {
        let kinds = value.first().ok_or_else(|| Error::row("property", "empty"))?;
        properties.insert(key::property_name(key)?, Kinds(*kinds));
    }
    Ok(properties)
}
