//! Cells of a rollup: where they are and what they hold.
//!
//! A cell's **place** is what follows the tier's number in its key: token, bucket and groups (see [`crate::key`]); its
//! order is the order of the rollup's rows in every shard. Two places of a bucket are no group: `other`, for all groups that
//! are not kept by themselves ([`super::bound`]), and the bucket's own sum, with all its events ([`super::verify`]).
//!
//! ```text
//! cell   0x01 | events varint | what is kept of each part of the definition, in its order (see `accumulator`)
//! ```

use std::borrow::Cow;

use super::{
    Definition, Operand, Width,
    accumulator::{Accumulator, SumTooLarge},
    definition::{Group, Part},
    float_range_start,
};
use crate::{Error, Result, key, properties::ColumnType};

const CELL_VERSION: u8 = 1;
const SIGN: u64 = 1 << 63;

/// Bytes of a place before its groups: token and bucket.
pub(super) const BUCKET_BYTES: usize = 16;
/// In the place of groups: all that are not kept by themselves.
const OTHER: u8 = 0xfe;
/// In the place of groups: all events of the bucket.
const SUM: u8 = 0xff;

/// What is kept of one bucket and group.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Events.
    pub events: u64,
    /// In the order of the definition's parts.
    pub(super) parts: Vec<Accumulator>,
}

/// The value of a group or an aggregate.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Absent or null.
    Null,
    /// true or false.
    Bool(bool),
    /// An integer, or a time in Unix milliseconds.
    Int(i64),
    /// A float.
    Float(f64),
    /// A text.
    Text(Cow<'a, str>),
}

impl Value<'_> {
    /// The value with a text of its own.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
        }
    }

    /// Bytes that it takes beside its own.
    pub(super) fn heap_bytes(&self) -> usize {
        if let Self::Text(text) = self { text.len() } else { 0 }
    }

    /// Appends the value (see `accumulator`).
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0),
            Self::Bool(value) => out.extend_from_slice(&[1, u8::from(*value)]),
            Self::Int(value) => {
                out.push(2);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Self::Float(value) => {
                out.push(3);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Self::Text(text) => {
                out.push(4);
                push_varint(out, text.len() as u64);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// Reads a value at the front of `bytes` and moves behind it.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<Value<'static>> {
        let (kind, mut rest) = bytes.split_first()?;
        let value = match kind {
            0 => Value::Null,
            1 => {
                let (value, tail) = rest.split_first()?;
                rest = tail;
                Value::Bool(*value != 0)
            }
            2 | 3 => {
                let (value, tail) = rest.split_first_chunk::<8>()?;
                rest = tail;
                if *kind == 2 {
                    Value::Int(i64::from_le_bytes(*value))
                } else {
                    Value::Float(f64::from_le_bytes(*value))
                }
            }
            4 => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                let (text, tail) = rest.split_at_checked(length)?;
                rest = tail;
                Value::Text(Cow::Owned(String::from_utf8(text.to_vec()).ok()?))
            }
            _ => return None,
        };
        *bytes = rest;
        Some(value)
    }
}

impl Cell {
    /// An empty cell.
    pub(super) fn new(parts: &[Part]) -> Self {
        Self { events: 0, parts: parts.iter().map(Accumulator::new).collect() }
    }

    /// Adds another cell of the same place.
    pub fn merge(&mut self, other: &Self) {
        self.events += other.events;
        self.parts.iter_mut().zip(&other.parts).for_each(|(mine, more)| mine.merge(more));
    }

    /// Takes out a cell of some of its events; returns false, and has changed, when it does not hold them.
    pub(super) fn subtract(&mut self, other: &Self) -> bool {
        let Some(events) = self.events.checked_sub(other.events) else { return false };
        self.events = events;
        self.parts.iter_mut().zip(&other.parts).all(|(mine, out)| mine.subtract(out))
    }

    /// Adds an encoded cell of the same place.
    pub(super) fn merge_encoded(&mut self, parts: &[Part], bytes: &[u8]) -> Result<()> {
        self.merge(&Self::decode(parts, bytes)?);
        Ok(())
    }

    /// Reads an aggregate out, by its place in the definition.
    ///
    /// # Errors
    /// A sum of integers beyond 64 bits.
    pub fn value(&self, definition: &Definition, aggregate: usize) -> Result<Value<'_>, SumTooLarge> {
        match definition.part_places[aggregate] {
            Some(part) => self.parts[part].value(&definition.aggregates[aggregate]),
            None => Ok(Value::Int(self.events.cast_signed())),
        }
    }

    /// Encodes the cell as above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![CELL_VERSION];
        push_varint(&mut bytes, self.events);
        self.parts.iter().for_each(|accumulator| accumulator.encode(&mut bytes));
        bytes
    }

    /// Decodes a cell with these parts.
    pub(super) fn decode(parts: &[Part], bytes: &[u8]) -> Result<Self> {
        let malformed = || Error::row("rollup cell", "malformed");
        let (version, mut rest) = bytes.split_first().ok_or_else(malformed)?;
        if *version > CELL_VERSION {
            return Err(Error::NewerFormat { what: "rollup cell", found: (*version).into(), known: 1 });
        }
        let events = take_varint(&mut rest).ok_or_else(malformed)?;
        let parts = parts.iter().map(|part| Accumulator::decode(part, &mut rest));
        let parts = parts.collect::<Option<Vec<_>>>().filter(|_| rest.is_empty()).ok_or_else(malformed)?;
        Ok(Self { events, parts })
    }
}

/// Bytes that a cell takes in a table in memory, about.
pub(super) fn cell_bytes(place: &[u8], cell: &Cell) -> usize {
    let heap = cell.parts.iter().map(Accumulator::heap_bytes).sum::<usize>();
    size_of::<(Vec<u8>, Cell)>() + place.len() + cell.parts.len() * size_of::<Accumulator>() + heap
}

/// Whether a place is that of a bucket's own sum.
pub(super) fn is_sum(place: &[u8]) -> bool {
    place.get(BUCKET_BYTES) == Some(&SUM)
}

/// Whether a place is that of all groups which are not kept by themselves.
pub(super) fn is_other(place: &[u8]) -> bool {
    place.get(BUCKET_BYTES) == Some(&OTHER)
}

/// Whether a place is that of one group.
pub(super) fn is_group(place: &[u8]) -> bool {
    !is_sum(place) && !is_other(place)
}

/// The place of a bucket's own sum. It is none of a player's, also where groups are.
pub(super) fn sum_place(bucket_ms: i64) -> Vec<u8> {
    let mut place = Vec::with_capacity(BUCKET_BYTES + 1);
    start_place(&mut place, 0, bucket_ms);
    place.push(SUM);
    place
}

/// The place of all that is not kept by itself in the bucket of a place.
pub(super) fn other_place(place: &[u8]) -> Vec<u8> {
    [&place[..BUCKET_BYTES], &[OTHER]].concat()
}

/// The same place in another bucket.
pub(super) fn moved(place: &[u8], bucket_ms: i64) -> Vec<u8> {
    let mut place = place.to_vec();
    place[8..BUCKET_BYTES].copy_from_slice(&bucket_bytes(bucket_ms));
    place
}

/// Starts a place: the token, 0 for a rollup that does not group by player, and the bucket.
pub(super) fn start_place(place: &mut Vec<u8>, token: u64, bucket_ms: i64) {
    place.clear();
    place.extend_from_slice(&token.to_be_bytes());
    place.extend_from_slice(&bucket_bytes(bucket_ms));
}

/// A bucket's start as it stands in a place.
pub(super) fn bucket_bytes(bucket_ms: i64) -> [u8; 8] {
    (bucket_ms.cast_unsigned() ^ SIGN).to_be_bytes()
}

/// Returns the bucket's start of a place.
pub(super) fn bucket_of(place: &[u8]) -> Option<i64> {
    let mut rest = place.get(8..)?;
    key::take_u64(&mut rest).map(|bucket| (bucket ^ SIGN).cast_signed())
}

pub(super) fn push_null(place: &mut Vec<u8>) {
    place.push(0);
}

pub(super) fn push_bool(place: &mut Vec<u8>, value: bool) {
    place.extend_from_slice(&[1, u8::from(value)]);
}

pub(super) fn push_int(place: &mut Vec<u8>, value: i64) {
    place.push(1);
    place.extend_from_slice(&(value.cast_unsigned() ^ SIGN).to_be_bytes());
}

pub(super) fn push_text(place: &mut Vec<u8>, value: &str) {
    place.push(1);
    key::push_text(place, value.as_bytes());
}

/// Reads the groups of a place, in the order of the definition; for `other` all are null.
pub(super) fn groups_of<'a>(definition: &Definition, place: &'a [u8]) -> Result<Vec<Value<'a>>> {
    fn value<'a>(group: &Group, rest: &mut &'a [u8]) -> Option<Value<'a>> {
        let (there, tail) = rest.split_first()?;
        *rest = tail;
        if *there == 0 {
            return Some(Value::Null);
        }
        Some(match group.operand.column_type() {
            Some(ColumnType::Bool) => {
                let (value, tail) = rest.split_first()?;
                *rest = tail;
                Value::Bool(*value != 0)
            }
            Some(ColumnType::Int | ColumnType::Float) => {
                let number = (key::take_u64(rest)? ^ SIGN).cast_signed();
                match group.width {
                    Some(Width::Float(width)) => Value::Float(float_range_start(number, width)),
                    _ => Value::Int(number),
                }
            }
            _ => Value::Text(key::take_text_in_place(rest)?),
        })
    }
    if is_other(place) {
        return Ok(definition.groups.iter().map(|_| Value::Null).collect());
    }
    let malformed = || Error::row("rollup cell key", "malformed");
    let mut rest = place.get(BUCKET_BYTES..).ok_or_else(malformed)?;
    let groups = definition.groups.iter().map(|group| value(group, &mut rest)).collect::<Option<Vec<_>>>();
    groups.filter(|_| rest.is_empty()).ok_or_else(malformed)
}

/// What the key and the value of a cell say.
pub(crate) fn describe(
    definition: &Definition,
    place: &[u8],
    value: &[u8],
) -> Result<(Vec<(&'static str, String)>, String)> {
    let malformed = || Error::row("rollup cell key", "malformed");
    let bucket = bucket_of(place).ok_or_else(malformed)?;
    let mut fields = vec![("bucket_ms", bucket.to_string())];
    match place.get(BUCKET_BYTES..) {
        Some([SUM]) => fields.push(("groups", "sum of the bucket".to_owned())),
        Some([OTHER]) => fields.push(("groups", "all others".to_owned())),
        _ => fields.push(("groups", format!("{:?}", groups_of(definition, place)?))),
    }
    let cell = Cell::decode(definition.parts_at(place), value)?;
    Ok((fields, format!("{} events, {:?}", cell.events, cell.parts)))
}

/// Whether a place names a player.
pub(crate) fn names(definition: &Definition, place: &[u8], player: &str) -> Result<bool> {
    if !is_group(place) {
        return Ok(false);
    }
    let groups = groups_of(definition, place)?;
    let mut named = definition.groups.iter().zip(groups);
    Ok(named.any(|(group, value)| {
        group.operand == Operand::PlayerId && matches!(value, Value::Text(named) if named == player)
    }))
}

/// Appends a number in groups of 7 bits, the lowest first (as protobuf).
pub(super) fn push_varint(out: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, out);
}

/// Reads such a number at the front of `bytes` and moves behind it.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}
