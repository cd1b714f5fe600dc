//! Chunks: events that are in no segment yet, as rows of the engine in the order in which they came.
//!
//! What an entry brings into a chunk is one row, a *run*: an insert costs the engine the same for one event as for a
//! hundred. A run's key names the seq of its first event; the others follow.
//!
//! ```text
//! run      0x01 | event*
//! event    event_time u64 | ingest HLC u64 | player length u32 | type length u32 | properties length u32
//!          | player | type | properties (JSON)                                        (integers big-endian)
//! ```
//!
//! One player's events are found through an [`index`], which is kept in memory and made when it is first asked for.

pub mod index;

use galoo_proto::{Hlc, Seq, value::Event};

use crate::{Error, Result, key};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 28;

/// An event of a chunk, its texts borrowed from its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRow<'a> {
    /// The player.
    pub player: &'a str,
    /// Unix milliseconds.
    pub time_ms: i64,
    /// The sequence number.
    pub seq: Seq,
    /// Commit HLC.
    pub ingest: Hlc,
    /// The event's type.
    pub event_type: &'a str,
    /// A JSON object, or empty.
    pub properties: &'a str,
}

impl EventRow<'_> {
    /// Bytes that the event takes in its run.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.player.len() + self.event_type.len() + self.properties.len()
    }
}

/// Puts an event behind the others of its run; an empty one is begun.
pub fn push(run: &mut Vec<u8>, ingest: Hlc, event: &Event) {
    let texts = [&event.player_id, &event.event_type, &event.properties];
    run.reserve(1 + HEADER_BYTES + texts.iter().map(|text| text.len()).sum::<usize>());
    if run.is_empty() {
        run.push(VERSION);
    }
    run.extend_from_slice(&event.event_time_ms.cast_unsigned().to_be_bytes());
    run.extend_from_slice(&ingest.0.to_be_bytes());
    for text in texts {
        let length = u32::try_from(text.len()).expect("a command is far smaller than 4 GiB");
        run.extend_from_slice(&length.to_be_bytes());
    }
    for text in texts {
        run.extend_from_slice(text.as_bytes());
    }
}

/// The events of a run, in order of seq.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    next: Seq,
    rest: &'a [u8],
}

impl<'a> Run<'a> {
    /// Takes a row of the chunk family.
    pub fn of(key: &[u8], value: &'a [u8]) -> Result<Self> {
        match (key::run_seq(key), value.split_first()) {
            (Some(next), Some((&VERSION, rest))) => Ok(Self { next, rest }),
            _ => Err(malformed()),
        }
    }

    /// The next event's seq; behind the last one, the seq that the next run begins with.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    fn parse(&mut self) -> Option<EventRow<'a>> {
        fn length(rest: &mut &[u8]) -> Option<usize> {
            let length = rest.split_off(..4)?.try_into().ok()?;
            usize::try_from(u32::from_be_bytes(length)).ok()
        }
        fn text<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a str> {
            std::str::from_utf8(rest.split_off(..length)?).ok()
        }
        let rest = &mut self.rest;
        let (time_ms, ingest) = (key::take_u64(rest)?.cast_signed(), Hlc(key::take_u64(rest)?));
        let [player, event_type, properties] = [length(rest)?, length(rest)?, length(rest)?];
        let (player, event_type, properties) = (text(rest, player)?, text(rest, event_type)?, text(rest, properties)?);
        let seq = self.next;
        self.next.0 += 1;
        Some(EventRow { player, time_ms, seq, ingest, event_type, properties })
    }
}

impl<'a> Iterator for Run<'a> {
    type Item = Result<EventRow<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.rest.is_empty()).then(|| self.parse().ok_or_else(malformed))
    }
}

fn malformed() -> Error {
    Error::row("run of events", "malformed")
}

/// A run that should be there is not.
pub(crate) fn missing(seq: Seq) -> Error {
    Error::row("chunk", format!("no run has {seq}"))
}

#[cfg(test)]
mod tests {
    use galoo_proto::{ChunkId, Keyspace};
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        (".{1,20}", 0i64..1 << 50, ".{1,9}", ".{0,20}").prop_map(
            |(player_id, event_time_ms, event_type, properties)| Event {
                player_id,
                event_time_ms,
                event_type,
                properties,
                ..Default::default()
            },
        )
    }

    proptest! {
        #[test]
        fn events_come_back(events in prop::collection::vec((event(), any::<u64>()), 1..5), first in 1u64..1 << 60) {
            let mut value = Vec::new();
            events.iter().for_each(|(event, hlc)| push(&mut value, Hlc(*hlc), event));
            let key = key::run(Keyspace(7), ChunkId(3), Seq(first));
            let found: Vec<_> = Run::of(&key, &value).expect("a run").map(|event| event.expect("parses")).collect();
            prop_assert_eq!(found.len(), events.len());
            for (place, (found, (event, hlc))) in found.iter().zip(&events).enumerate() {
                prop_assert_eq!((found.seq, found.ingest, found.time_ms), (Seq(first + place as u64), Hlc(*hlc), event.event_time_ms));
                let Event { player_id, event_type, properties, .. } = event;
                prop_assert_eq!((found.player, found.event_type, found.properties), (&**player_id, &**event_type, &**properties));
            }
            prop_assert_eq!(found.iter().map(EventRow::bytes).sum::<usize>() + 1, value.len());
            for end in 0..value.len() {
                let cut = Run::of(&key, &value[..end]).and_then(|run| run.collect::<Result<Vec<_>>>());
                prop_assert!(cut.is_err() || cut.is_ok_and(|cut| cut.len() < events.len()), "cut at {}", end);
            }
        }
    }
}
