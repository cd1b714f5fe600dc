//! The layout of every key, byte by byte. All integers are big-endian, so that byte order is number order.
//!
//! ```text
//! every key   keyspace u64 | ...
//! meta        ... | 0x01                                              -> ShardState
//!             ... | 0x02 chunk u64                                    -> Chunk (sealed, its rows in the chunk family)
//!             ... | 0x03 segment u64                                  -> Segment
//!             ... | 0x04 property name                                -> Property
//!             ... | 0x05 family text, qualifier text                  -> kinds u8
//!             ... | 0x06 rollup u64                                   -> Rollup (definition)
//!             ... | 0x07 family text                                  -> FamilyDefinition
//!             ... | 0x08 player text                                  -> Erasure
//!             ... | 0x09                                              -> PropertyDeclarations
//! cells       ... | token u64, player text, 0x00                      -> header (see `cell`)
//!             ... | token u64, player text, 0x01, family text, qualifier text -> values that can be listed
//! history     ... | token u64, player text, 0x01, family text, qualifier text, !version u64 -> value that was
//! chunks      ... | chunk u64, first seq u64                          -> run of events (see `chunk`)
//! producers   ... | 0x01 producer text                                -> Producer
//!             ... | 0x02 producer text, number u64                    -> BatchOutcome
//!             ... | 0x03 log index u64, producer text                 -> nothing (order of eviction)
//!             ... | 0x04 group text, producer text                    -> registered_at u64
//!             ... | 0x05 slice u64, token u64, hash u128              -> HLC u64 (of the event with this id)
//! rollups     ... | 0x01 rollup u64                                   -> RollupMark
//!             ... | 0x02 rollup u64, tier u8, token u64, bucket u64, groups -> cell (see `rollup::cell`)
//! ```
//!
//! A `text` is escaped so that order is kept and no text is a prefix of another: 0x00 becomes 0x00 0xff, and 0x00 0x01
//! ends it. Versions are stored inverted: the newest comes first. Signed numbers have their sign bit flipped.
//!
//! A rollup's cell has the token of its player where the player is one of the groups, and 0 where not. Each group is
//! 0x00 (null), or 0x01 and a bool u8, an integer u64 or a text. In the place of groups, 0xfe stands for all that are not
//! kept by themselves, and 0xff for the bucket's own sum.

use std::{borrow::Cow, ops::Range};

use galoo_proto::{ChunkId, Hlc, Keyspace, RollupId, SegmentId, Seq, Token};

use crate::{Error, Result};

pub(crate) const STATE: u8 = 1;
pub(crate) const CHUNK: u8 = 2;
pub(crate) const SEGMENT: u8 = 3;
pub(crate) const PROPERTY: u8 = 4;
pub(crate) const QUALIFIER: u8 = 5;
pub(crate) const ROLLUP: u8 = 6;
pub(crate) const FAMILY: u8 = 7;
pub(crate) const ERASURE: u8 = 8;
pub(crate) const DECLARED: u8 = 9;

pub(crate) const ROW: u8 = 0;
const CELL: u8 = 1;

pub(crate) const PRODUCER: u8 = 1;
pub(crate) const OUTCOME: u8 = 2;
pub(crate) const EVICTION: u8 = 3;
pub(crate) const SOURCE: u8 = 4;
pub(crate) const EVENT_ID: u8 = 5;

pub(crate) const MARK: u8 = 1;
const ROLLUP_CELL: u8 = 2;

fn key(keyspace: Keyspace, capacity: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + capacity);
    key.extend_from_slice(&keyspace.0.to_be_bytes());
    key
}

fn tagged(keyspace: Keyspace, tag: u8) -> Vec<u8> {
    let mut key = key(keyspace, 1);
    key.push(tag);
    key
}

/// Ends a text.
const TEXT_END: [u8; 2] = [0, 1];

pub(crate) fn push_text(key: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        key.push(byte);
        if byte == 0 {
            key.push(0xff);
        }
    }
    key.extend_from_slice(&TEXT_END);
}

/// Reads an escaped text at the front of `bytes` and moves behind it.
pub(crate) fn take_text(bytes: &mut &[u8]) -> Option<String> {
    take_text_in_place(bytes).map(Cow::into_owned)
}

/// Reads an escaped text at the front of `bytes` and moves behind it; one without a zero byte is not copied.
pub(crate) fn take_text_in_place<'a>(bytes: &mut &'a [u8]) -> Option<Cow<'a, str>> {
    let (all, mut at) = (*bytes, 0);
    let mut text = Vec::new();
    loop {
        let zero = at + all.get(at..)?.iter().position(|byte| *byte == 0)?;
        let (piece, then) = (&all[at..zero], all.get(zero + 1)?);
        at = zero + 2;
        match then {
            1 => {
                *bytes = &all[at..];
                if text.is_empty() {
                    return std::str::from_utf8(piece).ok().map(Cow::Borrowed);
                }
                text.extend_from_slice(piece);
                return String::from_utf8(text).ok().map(Cow::Owned);
            }
            0xff => {
                text.extend_from_slice(piece);
                text.push(0);
            }
            _ => return None,
        }
    }
}

pub(crate) fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (head, tail) = bytes.split_first_chunk::<8>()?;
    *bytes = tail;
    Some(u64::from_be_bytes(*head))
}

/// Returns the least key behind every key that starts with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0xff; prefix.len() + 1]
}

/// Returns the range of all keys that start with `prefix`.
pub fn prefix_range(prefix: Vec<u8>) -> Range<Vec<u8>> {
    let end = prefix_end(&prefix);
    prefix..end
}

/// All keys of a keyspace, in any family.
pub fn keyspace_range(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(key(keyspace, 0))
}

/// The shard state's key.
pub fn state(keyspace: Keyspace) -> Vec<u8> {
    tagged(keyspace, STATE)
}

/// A sealed chunk's record.
pub fn chunk(keyspace: Keyspace, chunk: ChunkId) -> Vec<u8> {
    let mut key = tagged(keyspace, CHUNK);
    key.extend_from_slice(&chunk.0.to_be_bytes());
    key
}

/// Records of all sealed chunks, by id.
pub fn chunks(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, CHUNK))
}

/// A segment's record.
pub fn segment(keyspace: Keyspace, segment: SegmentId) -> Vec<u8> {
    let mut key = tagged(keyspace, SEGMENT);
    key.extend_from_slice(&segment.0.to_be_bytes());
    key
}

/// Records of all segments, by id.
pub fn segments(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, SEGMENT))
}

/// A property's entry in the catalog.
pub fn property(keyspace: Keyspace, name: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, PROPERTY);
    key.extend_from_slice(name.as_bytes());
    key
}

/// All properties, by name.
pub fn properties(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, PROPERTY))
}

/// What is declared of properties.
pub fn declared(keyspace: Keyspace) -> Vec<u8> {
    tagged(keyspace, DECLARED)
}

/// Returns the name in a key of [`property`].
pub fn property_name(key: &[u8]) -> Result<String> {
    let name = key.get(9..).map(<[u8]>::to_vec).and_then(|name| String::from_utf8(name).ok());
    name.ok_or_else(|| Error::row("property key", "not UTF-8"))
}

/// A qualifier's entry in the catalog.
pub fn qualifier(keyspace: Keyspace, family: &str, qualifier: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, QUALIFIER);
    push_text(&mut key, family.as_bytes());
    push_text(&mut key, qualifier.as_bytes());
    key
}

/// All qualifiers, by family and name.
pub fn qualifiers(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, QUALIFIER))
}

/// Returns the family and the name in a key of [`qualifier`].
pub fn qualifier_names(key: &[u8]) -> Result<(String, String)> {
    let mut rest = key.get(9..).unwrap_or_default();
    let names = take_text(&mut rest).and_then(|family| Some((family, take_text(&mut rest)?)));
    names.ok_or_else(|| Error::row("qualifier key", "malformed"))
}

/// A rollup's definition.
pub fn rollup(keyspace: Keyspace, rollup: RollupId) -> Vec<u8> {
    let mut key = tagged(keyspace, ROLLUP);
    key.extend_from_slice(&rollup.0.to_be_bytes());
    key
}

/// All rollups' definitions, by id.
pub fn rollups(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, ROLLUP))
}

/// A family's declaration.
pub fn family(keyspace: Keyspace, family: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, FAMILY);
    push_text(&mut key, family.as_bytes());
    key
}

/// All families' declarations, by name.
pub fn families(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, FAMILY))
}

/// A forgotten player's entry.
pub fn erasure(keyspace: Keyspace, player: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, ERASURE);
    push_text(&mut key, player.as_bytes());
    key
}

/// All forgotten players' entries.
pub fn erasures(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, ERASURE))
}

/// How far a rollup covers the shard's events.
pub fn rollup_mark(keyspace: Keyspace, rollup: RollupId) -> Vec<u8> {
    let mut key = tagged(keyspace, MARK);
    key.extend_from_slice(&rollup.0.to_be_bytes());
    key
}

/// All cells of a rollup.
pub fn rollup_cells(keyspace: Keyspace, rollup: RollupId) -> Range<Vec<u8>> {
    let mut key = tagged(keyspace, ROLLUP_CELL);
    key.extend_from_slice(&rollup.0.to_be_bytes());
    prefix_range(key)
}

/// The cells of a rollup's tier. What follows the range's start in a key is the cell's place: token, bucket, groups.
pub fn rollup_tier(keyspace: Keyspace, rollup: RollupId, tier: u8) -> Range<Vec<u8>> {
    let mut key = rollup_cells(keyspace, rollup).start;
    key.push(tier);
    prefix_range(key)
}

/// The cells of a tier of a rollup that groups by player, of players with this token.
pub fn rollup_cells_of(keyspace: Keyspace, rollup: RollupId, tier: u8, token: Token) -> Range<Vec<u8>> {
    let mut key = rollup_tier(keyspace, rollup, tier).start;
    key.extend_from_slice(&token.0.to_be_bytes());
    prefix_range(key)
}

/// Bytes before a cell's place in its key.
pub const ROLLUP_CELL_PREFIX_BYTES: usize = 18;

/// Which of a player's cells are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection<'a> {
    /// All.
    Row,
    /// Those of a family.
    Family(&'a str),
    /// One, by family and qualifier.
    Cell(&'a str, &'a str),
    /// Those of a family whose qualifier begins so.
    Prefix(&'a str, &'a str),
    /// Those of a family whose qualifier is in `[start, end)`; an empty end is open.
    Range(&'a str, Range<&'a str>),
}

fn player_prefix(keyspace: Keyspace, player: &str, capacity: usize) -> Vec<u8> {
    let mut key = key(keyspace, 8 + player.len() + 2 + capacity);
    key.extend_from_slice(&Token::of(player).0.to_be_bytes());
    push_text(&mut key, player.as_bytes());
    key
}

/// The header of a player's row.
pub fn row(keyspace: Keyspace, player: &str) -> Vec<u8> {
    let mut key = player_prefix(keyspace, player, 1);
    key.push(ROW);
    key
}

/// A player's row: its header and its cells.
pub fn player(keyspace: Keyspace, player: &str) -> Range<Vec<u8>> {
    prefix_range(player_prefix(keyspace, player, 0))
}

/// A player's cells that are selected.
pub fn cells(keyspace: Keyspace, player: &str, selection: &Selection<'_>) -> Range<Vec<u8>> {
    let mut key = player_prefix(keyspace, player, 64);
    key.push(CELL);
    let family = match selection {
        Selection::Row => return prefix_range(key),
        Selection::Family(family)
        | Selection::Cell(family, _)
        | Selection::Prefix(family, _)
        | Selection::Range(family, _) => family,
    };
    push_text(&mut key, family.as_bytes());
    let qualified = |qualifier: &str| {
        let mut key = key.clone();
        push_text(&mut key, qualifier.as_bytes());
        key
    };
    match selection {
        Selection::Row | Selection::Family(_) => prefix_range(key),
        Selection::Cell(_, qualifier) => prefix_range(qualified(qualifier)),
        Selection::Prefix(_, prefix) => {
            let mut key = qualified(prefix);
            key.truncate(key.len() - TEXT_END.len());
            prefix_range(key)
        }
        Selection::Range(_, qualifiers) => {
            let end = if qualifiers.end.is_empty() { prefix_end(&key) } else { qualified(qualifiers.end) };
            qualified(qualifiers.start)..end
        }
    }
}

/// A cell.
pub fn cell(keyspace: Keyspace, player: &str, family: &str, qualifier: &str) -> Vec<u8> {
    cells(keyspace, player, &Selection::Cell(family, qualifier)).start
}

/// A value that a cell had, by the cell's key and the value's version.
pub fn past(cell: &[u8], version: Hlc) -> Vec<u8> {
    let mut key = Vec::with_capacity(cell.len() + 8);
    key.extend_from_slice(cell);
    key.extend_from_slice(&(!version.0).to_be_bytes());
    key
}

/// Values that a cell had, those of this version and of earlier ones, the newest first.
pub fn pasts(cell: &[u8], version: Hlc) -> Range<Vec<u8>> {
    past(cell, version)..prefix_end(cell)
}

/// Returns the version in a key of [`past`].
pub fn past_version(key: &[u8]) -> Result<Hlc> {
    let version = key.last_chunk::<8>().ok_or_else(|| Error::row("history key", "too short"))?;
    Ok(Hlc(!u64::from_be_bytes(*version)))
}

/// What a key of the cell family names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellKey {
    /// The header of a player's row.
    Row {
        /// The player.
        player: String,
    },
    /// A cell.
    Cell {
        /// The player.
        player: String,
        /// The cell's family.
        family: String,
        /// The cell's name in the family.
        qualifier: String,
    },
}

/// Reads a key of the cell family.
pub fn parse_cell(key: &[u8]) -> Result<CellKey> {
    fn parse(key: &[u8]) -> Option<CellKey> {
        let mut rest = key.get(16..)?;
        let player = take_text(&mut rest)?;
        let (kind, mut rest) = rest.split_first()?;
        if *kind == ROW {
            return Some(CellKey::Row { player });
        }
        let family = take_text(&mut rest)?;
        let qualifier = take_text(&mut rest)?;
        Some(CellKey::Cell { player, family, qualifier })
    }
    parse(key).ok_or_else(|| Error::row("cell key", "malformed"))
}

/// All runs of a chunk.
pub fn chunk_rows(keyspace: Keyspace, chunk: ChunkId) -> Range<Vec<u8>> {
    let mut key = key(keyspace, 8);
    key.extend_from_slice(&chunk.0.to_be_bytes());
    prefix_range(key)
}

/// A chunk's run that begins with a seq.
pub fn run(keyspace: Keyspace, chunk: ChunkId, first: Seq) -> Vec<u8> {
    let mut key = key(keyspace, 16);
    key.extend_from_slice(&chunk.0.to_be_bytes());
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

/// A chunk's runs that begin with a seq or behind it.
pub fn runs(keyspace: Keyspace, chunk: ChunkId, first: Seq) -> Range<Vec<u8>> {
    run(keyspace, chunk, first)..chunk_rows(keyspace, chunk).end
}

/// Returns the seq that a run begins with, from its key.
pub fn run_seq(key: &[u8]) -> Option<Seq> {
    let seq = key.get(16..)?.try_into().ok()?;
    Some(Seq(u64::from_be_bytes(seq)))
}

/// A producer's record.
pub fn producer(keyspace: Keyspace, producer: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, PRODUCER);
    push_text(&mut key, producer.as_bytes());
    key
}

/// Outcomes of a producer's numbers `[numbers.start, numbers.end)`.
pub fn outcomes(keyspace: Keyspace, producer: &str, numbers: Range<u64>) -> Range<Vec<u8>> {
    outcome(keyspace, producer, numbers.start)..outcome(keyspace, producer, numbers.end)
}

/// The outcome of one number of a producer.
pub fn outcome(keyspace: Keyspace, producer: &str, number: u64) -> Vec<u8> {
    let mut key = tagged(keyspace, OUTCOME);
    push_text(&mut key, producer.as_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// All producers' outcomes.
pub fn all_outcomes(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, OUTCOME))
}

/// A producer's place in the order of eviction.
pub fn eviction(keyspace: Keyspace, used_index: u64, producer: &str) -> Vec<u8> {
    let mut key = tagged(keyspace, EVICTION);
    key.extend_from_slice(&used_index.to_be_bytes());
    push_text(&mut key, producer.as_bytes());
    key
}

/// The producer of a place in the order of eviction.
pub fn evicted_producer(key: &[u8]) -> Result<String> {
    let parse = |key: &[u8]| take_text(&mut key.get(evictions(Keyspace(0)).start.len() + 8..)?);
    parse(key).ok_or_else(|| Error::row("eviction", "malformed"))
}

/// The order of eviction.
pub fn evictions(keyspace: Keyspace) -> Range<Vec<u8>> {
    prefix_range(tagged(keyspace, EVICTION))
}

/// An event's id, by its hash.
pub fn event_id(keyspace: Keyspace, slice: u64, token: Token, hash: u128) -> Vec<u8> {
    let mut key = event_id_slice(keyspace, slice);
    key.extend_from_slice(&token.0.to_be_bytes());
    key.extend_from_slice(&hash.to_be_bytes());
    key
}

/// The ids of events in slices `[slices.start, slices.end)`.
pub fn event_id_slices(keyspace: Keyspace, slices: Range<u64>) -> Range<Vec<u8>> {
    event_id_slice(keyspace, slices.start)..event_id_slice(keyspace, slices.end)
}

fn event_id_slice(keyspace: Keyspace, slice: u64) -> Vec<u8> {
    let mut key = tagged(keyspace, EVENT_ID);
    key.extend_from_slice(&slice.to_be_bytes());
    key
}

/// A named source's registration.
pub fn source(keyspace: Keyspace, group: &str, producer: &str) -> Vec<u8> {
    let mut key = sources(keyspace, group).start;
    push_text(&mut key, producer.as_bytes());
    key
}

/// Registrations of one group.
pub fn sources(keyspace: Keyspace, group: &str) -> Range<Vec<u8>> {
    let mut key = tagged(keyspace, SOURCE);
    push_text(&mut key, group.as_bytes());
    prefix_range(key)
}

/// Returns the producer id in a key of [`source`].
pub fn source_producer(key: &[u8]) -> Result<String> {
    let mut rest = key.get(9..).unwrap_or_default();
    let producer = take_text(&mut rest).and_then(|_group| take_text(&mut rest));
    producer.ok_or_else(|| Error::row("source key", "malformed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const K: Keyspace = Keyspace(7);

    proptest! {
        #[test]
        fn texts_keep_their_order_and_come_back(a in "[\0-\u{2}a]{0,6}", b in "[\0-\u{2}a]{0,6}") {
            let escaped = |text: &str| {
                let mut bytes = Vec::new();
                push_text(&mut bytes, text.as_bytes());
                bytes
            };
            prop_assert_eq!(a.cmp(&b), escaped(&a).cmp(&escaped(&b)));
            let mut bytes = escaped(&a);
            bytes.push(9);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(take_text(&mut rest), Some(a));
            prop_assert_eq!(rest, &[9]);
        }

        #[test]
        fn a_cell_comes_back_and_newer_versions_come_first(player in ".{1,9}", family in ".{1,9}", qualifier in ".{1,9}", a: u64, b: u64) {
            let key = cell(K, &player, &family, &qualifier);
            let parsed = parse_cell(&key).expect("parses");
            prop_assert_eq!(parsed, CellKey::Cell { player: player.clone(), family: family.clone(), qualifier: qualifier.clone() });
            let (a, b) = (Hlc(a), Hlc(b));
            prop_assert_eq!(a.cmp(&b), past(&key, b).cmp(&past(&key, a)));
            prop_assert_eq!(past_version(&past(&key, a)).expect("parses"), a);
            prop_assert_eq!(pasts(&key, a).contains(&past(&key, b)), b <= a);
        }

        #[test]
        fn selections_hold_their_cells_and_no_others(
            (family, other) in ("[\0\u{1}a]{1,2}", "[\0\u{1}a]{1,2}"), qualifier in "[\0-\u{2}a]{1,4}",
            part in "[\0-\u{2}a]{0,2}", end in "[\0-\u{2}a]{0,2}",
        ) {
            let key = cell(K, "p", &family, &qualifier);
            let holds = |selection| cells(K, "p", &selection).contains(&key);
            let same = family == other;
            prop_assert!(holds(Selection::Row) && !cells(K, "q", &Selection::Row).contains(&key));
            prop_assert_eq!(holds(Selection::Family(&other)), same);
            prop_assert_eq!(holds(Selection::Cell(&other, &part)), same && qualifier == part);
            prop_assert_eq!(holds(Selection::Prefix(&other, &part)), same && qualifier.starts_with(&part));
            let inside = part <= qualifier && (end.is_empty() || qualifier < end);
            prop_assert_eq!(holds(Selection::Range(&other, part.as_str()..&end)), same && inside);
        }
    }

    #[test]
    fn a_prefix_ends_before_the_next() {
        assert_eq!(prefix_end(&[1, 0xff]), vec![2]);
        assert!(prefix_end(&[0xff, 0xff]) > vec![0xff, 0xff, 0xff - 1]);
    }
}
