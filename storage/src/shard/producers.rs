//! Exactly once: the table of producers and the outcomes of their batches.
//!
//! A batch's number always names the same content. From a producer's *floor* up, at most [`PRODUCER_WINDOW`] numbers,
//! the first outcome is kept and a repeat is answered with it; below the floor a repeat is a duplicate; further above it
//! is refused. Only the client's word that all numbers below are answered moves the floor. The table is bounded: the
//! producer whose use lies furthest back in the log is evicted and lifts a watermark, and an unknown producer that
//! registered at or below it is refused, never taken for a new one.
//!
//! Outcomes are bounded in bytes too: those of one producer, which is refused until it says that it has some of them, and
//! all of a shard's, beyond which producers are evicted. Each outcome is a row of its own: runs of them in one row would
//! be shorter, and written anew with each batch.
//!
//! A producer is one row with the outcome that it got last. Only outcomes that a later one pushes out while they are still
//! wanted become rows of their own, so that a producer that awaits each answer costs one row a batch.

use std::borrow::Cow;

use galoo_proto::{
    Hlc,
    command::{Appended, BatchId, Mutated, Outcome, outcome, rejection::Reason},
    ids::producer_group,
    limits::{
        EVICTIONS_MAX, OUTCOME_BYTES_MAX, PRODUCER_OUTCOME_BYTES_MAX, PRODUCER_WINDOW, PRODUCERS_MAX, SOURCES_MAX,
    },
    record,
    value::Event,
};
use prost::Message;

use super::{events::content_hash, registered, rejected, turn::Turn};
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
        let Some(producer) = self.producer(&batch.producer_id)? else {
            if batch.registered_at <= self.state.producers_watermark {
                let detail = format!("producer {:?} is no longer known; register it again", batch.producer_id);
                return Ok(Admission::Refused(rejected(Reason::ProducerExpired, 0, detail)));
            }
            if batch.number >= batch.acked_below.saturating_add(PRODUCER_WINDOW) {
                return Ok(Admission::Refused(too_far(batch, batch.acked_below)));
            }
            return Ok(Admission::New);
        };
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
        if let Some(last) = producer.last.as_ref().filter(|_| producer.last_number == batch.number) {
            return Ok(Admission::Known(last.clone()));
        }
        if (producer.rows_start..producer.rows_end).contains(&batch.number) {
            let outcome = key::outcome(self.shard.keyspace, &batch.producer_id, batch.number);
            if let Some(first) = self.get(Family::Producers, &outcome)? {
                let first = record::BatchOutcome::decode(first.as_slice());
                return Ok(Admission::Known(first.map_err(|error| Error::row("batch outcome", error))?));
            }
        }
        // Without the number at the floor, its producer could never say that it has the answers behind it.
        if producer.outcome_bytes < PRODUCER_OUTCOME_BYTES_MAX || batch.number == floor {
            return Ok(Admission::New);
        }
        // What the batch says that its producer has counts, also if there is no room for it yet.
        let mut producer = producer.into_owned();
        self.forget_outcomes(&batch.producer_id, &mut producer, floor)?;
        let (bytes, limit) = (producer.outcome_bytes, PRODUCER_OUTCOME_BYTES_MAX);
        self.producers.insert(batch.producer_id.clone(), Some(producer));
        if bytes < limit {
            return Ok(Admission::New);
        }
        let detail = format!("answers to producer {:?} from number {floor} on have {bytes} bytes", batch.producer_id);
        Ok(Admission::Refused(rejected(Reason::OutcomesFull, limit, detail)))
    }

    /// The producer as the commands before this one left it.
    fn producer(&self, id: &str) -> Result<Option<Cow<'_, record::Producer>>> {
        if let Some(changed) = self.producers.get(id) {
            return Ok(changed.as_ref().map(Cow::Borrowed));
        }
        if let Some(known) = self.shard.producers.get(id) {
            return Ok(Some(Cow::Borrowed(known)));
        }
        let bytes = self.shard.engine.get(Family::Producers, &key::producer(self.shard.keyspace, id))?;
        let decode = |bytes: Vec<u8>| record::Producer::decode(bytes.as_slice());
        let producer = bytes.map(decode).transpose().map_err(|error| Error::row("producer", error))?;
        Ok(producer.map(Cow::Owned))
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
        let id = batch.producer_id.as_str();
        let known = self.producer(id)?.map(Cow::into_owned);
        let is_new = known.is_none();
        let new = || record::Producer { registered_at: batch.registered_at, ..Default::default() };
        let mut producer = known.unwrap_or_else(new);
        for _ in 0..EVICTIONS_MAX {
            let is_full = is_new && self.state.producers >= PRODUCERS_MAX;
            let evicts = is_full || self.state.outcome_bytes >= OUTCOME_BYTES_MAX;
            if !evicts || !self.evict_producer(id)? {
                break;
            }
        }
        if is_new {
            self.state.producers += 1;
        }
        if is_new || self.index - producer.used_index > USED_INDEX_SLACK {
            if !is_new {
                self.unset(Family::Producers, key::eviction(keyspace, producer.used_index, id));
            }
            producer.used_index = self.index;
            self.set(Family::Producers, key::eviction(keyspace, self.index, id), Vec::new());
        }
        producer.epoch = batch.epoch;
        let floor = producer.floor.max(batch.acked_below.min(batch.number));
        self.forget_outcomes(id, &mut producer, floor)?;
        let kept = record::BatchOutcome {
            content_hash,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            may_grow: batch.may_grow,
            outcome: Some(outcome.clone()),
        };
        self.count_outcome(&mut producer, kept.encoded_len(), 0);
        let number = std::mem::replace(&mut producer.last_number, batch.number);
        if let Some(before) = producer.last.replace(kept) {
            // A batch that has grown takes the place of what it was before.
            if number >= floor && number != batch.number {
                let empty = producer.rows_start == producer.rows_end;
                producer.rows_start = if empty { number } else { producer.rows_start.min(number) };
                producer.rows_end = if empty { number + 1 } else { producer.rows_end.max(number + 1) };
                self.set(Family::Producers, key::outcome(keyspace, id, number), before.encode_to_vec());
            } else {
                self.count_outcome(&mut producer, 0, before.encoded_len());
            }
        }
        self.producers.insert(batch.producer_id.clone(), Some(producer));
        Ok(())
    }

    /// Keeps count of the bytes of a producer's outcomes, and of the shard's.
    fn count_outcome(&mut self, producer: &mut record::Producer, added: usize, removed: usize) {
        for bytes in [&mut producer.outcome_bytes, &mut self.state.outcome_bytes] {
            *bytes = *bytes + added as u64 - removed as u64;
        }
    }

    /// Moves a producer's floor: what lies below is answered everywhere, and its outcomes go.
    fn forget_outcomes(&mut self, id: &str, producer: &mut record::Producer, floor: u64) -> Result<()> {
        let keyspace = self.shard.keyspace;
        producer.floor = floor;
        let forgotten = producer.rows_start..producer.rows_end.min(floor);
        if forgotten.is_empty() {
            return Ok(());
        }
        let singly = forgotten.end - forgotten.start <= FORGET_SINGLY_MAX;
        for number in forgotten.clone() {
            let key = key::outcome(keyspace, id, number);
            if let Some(outcome) = self.get(Family::Producers, &key)? {
                self.count_outcome(producer, 0, outcome.len());
            }
            if singly {
                self.delete(Family::Producers, key);
            }
        }
        if !singly {
            self.delete_range(Family::Producers, key::outcomes(keyspace, id, forgotten.clone()));
        }
        producer.rows_start = forgotten.end;
        if producer.rows_start >= producer.rows_end {
            (producer.rows_start, producer.rows_end) = (0, 0);
        }
        Ok(())
    }

    /// Lets go of the producer whose use lies furthest back, but not of the one that is at it.
    fn evict_producer(&mut self, at_it: &str) -> Result<bool> {
        let keyspace = self.shard.keyspace;
        let its_place = self.producer(at_it)?.map(|known| key::eviction(keyspace, known.used_index, at_it));
        let range = key::evictions(keyspace);
        let mut places = self.shard.engine.rows(Family::Producers, &range.start..&range.end, Direction::Forward)?;
        let mut first = None;
        while first.is_none()
            && let Some((place, _)) = places.next()?
        {
            // Not one that the commands before this one have moved or evicted.
            let stays = self.is_unset(Family::Producers, place) || its_place.as_deref() == Some(place);
            first = (!stays).then(|| place.to_vec());
        }
        drop(places);
        // Places of this turn lie behind those in the engine: they are later in the log.
        let set = self.set_rows(Family::Producers, &range).map(|(place, _)| place);
        let first_set = || set.filter(|place| its_place.as_ref() != Some(*place)).min().cloned();
        let Some(place) = first.or_else(first_set) else { return Ok(false) };
        let id = key::evicted_producer(&place)?;
        self.unset(Family::Producers, place);
        if let Some(producer) = self.producer(&id)?.map(Cow::into_owned) {
            self.state.producers_watermark = self.state.producers_watermark.max(producer.registered_at);
            let rows = producer.rows_start..producer.rows_end;
            self.state.outcome_bytes -= producer.outcome_bytes;
            if !rows.is_empty() {
                self.delete_range(Family::Producers, key::outcomes(keyspace, &id, rows));
            }
            // Nothing that was removed of it in this turn may be found by one of its name that comes back.
            self.write_now();
        }
        self.producers.insert(id, None);
        self.state.producers -= 1;
        Ok(true)
    }

    /// Stamps a producer's registration; that of a named source (`file:`, `source:`) is kept and answered again.
    pub(super) fn register(&mut self, producer_id: &str) -> Result<Outcome> {
        if !producer_id.starts_with("file:") && !producer_id.starts_with("source:") {
            return Ok(registered(self.hlc));
        }
        let key = key::source(self.shard.keyspace, producer_group(producer_id), producer_id);
        if let Some(bytes) = self.get(Family::Producers, &key)? {
            let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::row("source registration", "not 8 bytes"))?;
            return Ok(registered(Hlc(u64::from_be_bytes(bytes))));
        }
        if self.state.sources >= SOURCES_MAX {
            let detail = format!("{SOURCES_MAX} sources are registered already");
            return Ok(rejected(Reason::TooManySources, SOURCES_MAX, detail));
        }
        self.state.sources += 1;
        self.set(Family::Producers, key, self.hlc.0.to_be_bytes().to_vec());
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
