//! Cells of a rollup: where they are and what they hold.
//!
//! A cell's **place** is what follows the rollup's number in its key: token, bucket and groups (see [`crate::key`]); its
//! order is the order of the rollup's rows in every shard.
//!
//! ```text
//! cell   0x01 | the aggregates' accumulators in the order of the definition (see `accumulator`)
//! ```

use std::borrow::Cow;

use super::{Aggregate, Definition, Operand, accumulator::Accumulator};
use crate::{Error, Result, key, properties::ColumnType};

const CELL_VERSION: u8 = 1;
const SIGN: u64 = 1 << 63;

/// The accumulators of one bucket and group, in the order of the definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell(pub Vec<Accumulator>);

/// The value of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupValue<'a> {
    /// Absent or null.
    Null,
    /// true or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A text.
    Text(Cow<'a, str>),
}

impl Cell {
    /// An empty cell of a rollup.
    pub fn new(aggregates: &[Aggregate]) -> Self {
        Self(aggregates.iter().map(Accumulator::new).collect())
    }

    /// Adds another cell of the same place.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, more)| mine.merge(more));
    }

    /// Adds an encoded cell of the same place.
    pub(super) fn merge_encoded(&mut self, aggregates: &[Aggregate], bytes: &[u8]) -> Result<()> {
        self.merge(&Self::decode(aggregates, bytes)?);
        Ok(())
    }

    /// Encodes the cell as above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![CELL_VERSION];
        self.0.iter().for_each(|accumulator| accumulator.encode(&mut bytes));
        bytes
    }

    /// Decodes a cell of a rollup with these aggregates.
    pub fn decode(aggregates: &[Aggregate], bytes: &[u8]) -> Result<Self> {
        let malformed = || Error::row("rollup cell", "malformed");
        let (version, mut rest) = bytes.split_first().ok_or_else(malformed)?;
        if *version > CELL_VERSION {
            return Err(Error::NewerFormat { what: "rollup cell", found: (*version).into(), known: 1 });
        }
        let cell = aggregates.iter().map(|aggregate| Accumulator::decode(aggregate, &mut rest));
        let cell = cell.collect::<Option<Vec<_>>>().filter(|_| rest.is_empty()).ok_or_else(malformed)?;
        Ok(Self(cell))
    }
}

/// Bytes that a cell takes in a table in memory, about.
pub(super) fn cell_bytes(place: &[u8], cell: &Cell) -> usize {
    let heap = cell.0.iter().map(Accumulator::heap_bytes).sum::<usize>();
    size_of::<(Vec<u8>, Cell)>() + place.len() + cell.0.len() * size_of::<Accumulator>() + heap
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

/// Reads the groups of a place, in the order of the definition.
pub(super) fn groups_of<'a>(definition: &Definition, place: &'a [u8]) -> Result<Vec<GroupValue<'a>>> {
    fn group<'a>(operand: &Operand, rest: &mut &'a [u8]) -> Option<GroupValue<'a>> {
        let (there, tail) = rest.split_first()?;
        *rest = tail;
        if *there == 0 {
            return Some(GroupValue::Null);
        }
        Some(match operand.column_type() {
            Some(ColumnType::Bool) => {
                let (value, tail) = rest.split_first()?;
                *rest = tail;
                GroupValue::Bool(*value != 0)
            }
            Some(ColumnType::Int) => GroupValue::Int((key::take_u64(rest)? ^ SIGN).cast_signed()),
            _ => GroupValue::Text(key::take_text_in_place(rest)?),
        })
    }
    let malformed = || Error::row("rollup cell key", "malformed");
    let mut rest = place.get(16..).ok_or_else(malformed)?;
    let groups = definition.groups.iter().map(|operand| group(operand, &mut rest)).collect::<Option<Vec<_>>>();
    groups.filter(|_| rest.is_empty()).ok_or_else(malformed)
}

/// Whether a place names a player.
pub(crate) fn names(definition: &Definition, place: &[u8], player: &str) -> Result<bool> {
    let groups = groups_of(definition, place)?;
    let mut named = definition.groups.iter().zip(groups);
    Ok(named.any(|(operand, group)| {
        *operand == Operand::PlayerId && matches!(group, GroupValue::Text(named) if named == player)
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
