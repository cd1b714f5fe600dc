//! Exactly once: the table of producers and the outcomes of their batches.
//!
//! A batch's number always names the same content. From a producer's *floor* up, at most [`PRODUCER_WINDOW`] numbers,
//! the first outcome is kept and a repeat is answered with it; below the floor a repeat is a duplicate; further above it
//! is refused. Only the client's word that all numbers below are answered moves the floor. The table is bounded: the
//! producer whose use lies furthest back in the log is evicted and lifts a watermark, and an unknown producer that
//! registered at or below it is refused, never taken for a new one.

use galoo_proto::{
    Hlc,
    command::{Appended, BatchId, Mutated, Outcome, outcome, rejection::Reason},
    ids::producer_group,
    limits::{PRODUCER_WINDOW, PRODUCERS_MAX, SOURCES_MAX},
    record,
    value::Event,
};
use prost::Message;

use super::{Turn, events::content_hash, registered, rejected};
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key,
};

/// A producer's place in the order of eviction moves when its last use lies more than this many entries back.
const USED_INDEX_SLACK: u64 = 1_024;
/// Outcomes are forgotten one by one up to this many, and beyond by a range.
const FORGET_SINGLY_MAX: u64 = 64;

/// What the table knows of a batch's number.
pub(super) enum Repeat {
    /// Nothing: store all of it.
    New,
    /// Its first `count` events: store the rest.
    Grown {
        /// Events stored before.
        count: usize,
    },
    /// It needs no storing; this is the answer.
    Answered(Outcome),
}

impl Turn<'_> {
    pub(super) fn repeat_of_events(&mut self, batch: &BatchId, events: &[Event]) -> Result<Repeat> {
        let first = match self.admit(batch)? {
            Admission::Refused(outcome) => return Ok(Repeat::Answered(outcome)),
            Admission::BelowFloor => {
                return Ok(Repeat::Answered(duplicate(Outcome {
                    result: Some(outcome::Result::Appended(Appended::default())),
                })));
            }
            Admission::New => return Ok(Repeat::New),
            Admission::Known(first) => first,
        };
        let count = first.count as usize;
        let same = count <= events.len() && content_hash(&events[..count]) == first.content_hash;
        if same && count == events.len() {
            return Ok(Repeat::Answered(duplicate(first.outcome.unwrap_or_default())));
        }
        if same && first.may_grow {
            return Ok(Repeat::Grown { count });
        }
        Ok(Repeat::Answered(conflict(batch)))
    }

    pub(super) fn repeat_of_mutation(&mut self, batch: &BatchId, content_hash: u64) -> Result<Option<Outcome>> {
        Ok(match self.admit(batch)? {
            Admission::Refused(outcome) => Some(outcome),
            Admission::BelowFloor => {
                Some(duplicate(Outcome { result: Some(outcome::Result::Mutated(Mutated::default())) }))
            }
            Admission::New => None,
            Admission::Known(first) if first.content_hash == content_hash => {
                Some(duplicate(first.outcome.unwrap_or_default()))
            }
            Admission::Known(_) => Some(conflict(batch)),
        })
    }

    fn admit(&mut self, batch: &BatchId) -> Result<Admission> {
        let keyspace = self.shard.keyspace;
        let known = self.shard.engine.get(Family::Producers, &key::producer(keyspace, &batch.producer_id))?;
        let Some(known) = known else {
            if batch.registered_at <= self.state.producers_watermark {
                let detail = format!("producer {:?} is no longer known; register it again", batch.producer_id);
                return Ok(Admission::Refused(rejected(Reason::ProducerExpired, 0, detail)));
            }
            if batch.number >= batch.acked_below.saturating_add(PRODUCER_WINDOW) {
                return Ok(Admission::Refused(too_far(batch, batch.acked_below)));
            }
            return Ok(Admission::New);
        };
        let producer = record::Producer::decode(known.as_slice()).map_err(|error| Error::row("producer", error))?;
        if batch.epoch < producer.epoch {
            let detail = format!("producer {:?} has epoch {}, not {}", batch.producer_id, producer.epoch, batch.epoch);
            return Ok(Admission::Refused(rejected(Reason::ProducerFenced, producer.epoch, detail)));
        }
        if batch.number < producer.floor {
            return Ok(Admission::BelowFloor);
        }
        let floor = producer.floor.max(batch.acked_below.min(batch.number));
        if batch.number >= floor.saturating_add(PRODUCER_WINDOW) {
            return Ok(Admission::Refused(too_far(batch, floor)));
        }
        self.producer = Some(producer);
        let outcome = key::outcome(keyspace, &batch.producer_id, batch.number);
        let Some(first) = self.shard.engine.get(Family::Producers, &outcome)? else { return Ok(Admission::New) };
        let first =
            record::BatchOutcome::decode(first.as_slice()).map_err(|error| Error::row("batch outcome", error))?;
        Ok(Admission::Known(first))
    }

    /// Keeps the outcome of a batch that was admitted, moves the producer's floor and its place in the order of eviction.
    pub(super) fn remember(
        &mut self,
        batch: &BatchId,
        content_hash: u64,
        count: usize,
        outcome: &Outcome,
    ) -> Result<()> {
        let keyspace = self.shard.keyspace;
        let producer_key = key::producer(keyspace, &batch.producer_id);
        let known = self.producer.take();
        let is_new = known.is_none();
        let new = || record::Producer { registered_at: batch.registered_at, ..Default::default() };
        let mut producer = known.unwrap_or_else(new);
        if is_new && self.state.producers >= PRODUCERS_MAX {
            self.evict_producer()?;
        }
        if is_new {
            self.state.producers += 1;
        }
        if is_new || self.index - producer.used_index > USED_INDEX_SLACK {
            if !is_new {
                self.batch.delete(Family::Producers, key::eviction(keyspace, producer.used_index));
            }
            producer.used_index = self.index;
            let place = key::eviction(keyspace, self.index);
            self.batch.put(Family::Producers, place, batch.producer_id.clone().into_bytes());
        }
        producer.epoch = batch.epoch;
        let floor = producer.floor.max(batch.acked_below.min(batch.number));
        if floor - producer.floor <= FORGET_SINGLY_MAX {
            for number in producer.floor..floor {
                self.batch.delete(Family::Producers, key::outcome(keyspace, &batch.producer_id, number));
            }
        } else {
            let forgotten = key::outcomes(keyspace, &batch.producer_id, producer.floor..floor);
            self.batch.delete_range(Family::Producers, forgotten);
        }
        producer.floor = floor;
        self.batch.put(Family::Producers, producer_key, producer.encode_to_vec());
        let kept = record::BatchOutcome {
            content_hash,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            may_grow: batch.may_grow,
            outcome: Some(outcome.clone()),
        };
        let key = key::outcome(keyspace, &batch.producer_id, batch.number);
        self.batch.put(Family::Producers, key, kept.encode_to_vec());
        Ok(())
    }

    fn evict_producer(&mut self) -> Result<()> {
        let keyspace = self.shard.keyspace;
        let range = key::evictions(keyspace);
        let mut places = self.shard.engine.rows(Family::Producers, &range.start..&range.end, Direction::Forward)?;
        let Some((place, id)) = places.next()? else { return Ok(()) };
        let id = String::from_utf8(id.to_vec()).map_err(|error| Error::row("eviction", error))?;
        self.batch.delete(Family::Producers, place.to_vec());
        drop(places);
        let producer_key = key::producer(keyspace, &id);
        if let Some(bytes) = self.shard.engine.get(Family::Producers, &producer_key)? {
            let producer = record::Producer::decode(bytes.as_slice()).map_err(|error| Error::row("producer", error))?;
            self.state.producers_watermark = self.state.producers_watermark.max(producer.registered_at);
        }
        self.batch.delete(Family::Producers, producer_key);
        self.batch.delete_range(Family::Producers, key::outcomes(keyspace, &id, 0..u64::MAX));
        self.state.producers -= 1;
        Ok(())
    }

    /// Stamps a producer's registration; that of a named source (`file:`, `source:`) is kept and answered again.
    pub(super) fn register(&mut self, producer_id: &str) -> Result<Outcome> {
        if !producer_id.starts_with("file:") && !producer_id.starts_with("source:") {
            return Ok(registered(self.hlc));
        }
        let key = key::source(self.shard.keyspace, producer_group(producer_id), producer_id);
        if let Some(bytes) = self.shard.engine.get(Family::Producers, &key)? {
            let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::row("source registration", "not 8 bytes"))?;
            return Ok(registered(Hlc(u64::from_be_bytes(bytes))));
        }
        if self.state.sources >= SOURCES_MAX {
            let detail = format!("{SOURCES_MAX} sources are registered already");
            return Ok(rejected(Reason::TooManySources, SOURCES_MAX, detail));
        }
        self.state.sources += 1;
        self.batch.put(Family::Producers, key, self.hlc.0.to_be_bytes().to_vec());
        Ok(registered(self.hlc))
    }
}

enum Admission {
    Refused(Outcome),
    BelowFloor,
    New,
    Known(record::BatchOutcome),
}

fn too_far(batch: &BatchId, floor: u64) -> Outcome {
    let end = floor.saturating_add(PRODUCER_WINDOW);
    rejected(Reason::BatchTooFar, end, format!("number {} is not below {end}", batch.number))
}

fn conflict(batch: &BatchId) -> Outcome {
    let detail = format!("number {} of producer {:?} named other content before", batch.number, batch.producer_id);
    rejected(Reason::BatchConflict, 0, detail)
}

fn duplicate(mut outcome: Outcome) -> Outcome {
    match &mut outcome.result {
        Some(outcome::Result::Appended(appended)) => appended.duplicate = true,
        Some(outcome::Result::Mutated(mutated)) => mutated.duplicate = true,
        _ => {}
    }
    outcome
}
