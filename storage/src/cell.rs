//! Players' state as rows of the engine, byte by byte.
//!
//! ```text
//! cells     0x00 version u64 cells u32 bytes u64   a row's header: its last change, its cells that are not deleted, and
//!                                                  the bytes of their keys and rows
//!           0x01 version u64 Value                 a cell's newest value
//!           0x02 version u64                       a cell that was deleted
//! history   0x01 until u64 Value                   a value that was replaced or deleted at `until`; its version is in
//!                                                  the key
//! ```
//!
//! Integers are big-endian; a `Value` is protobuf. A cell's newest value stands under a key without a version, so that one
//! lookup finds it; what it replaces moves to the history. A history row says by itself between which times it could be
//! read, so that whether it can be dropped depends on no other row ([`is_readable`]).

use galoo_proto::{Hlc, value::Value};
use prost::Message;

use crate::{Error, Result, engine::Family};

const HEADER: u8 = 0;
const VALUE: u8 = 1;
const DELETED: u8 = 2;

/// The header of a player's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The last change.
    pub version: Hlc,
    /// Cells that are not deleted.
    pub cells: u32,
    /// Bytes of their keys and rows.
    pub bytes: u64,
}

impl Header {
    /// Returns the header as a row.
    pub fn encode(self) -> Vec<u8> {
        let mut row = stamped(HEADER, self.version, 12);
        row.extend_from_slice(&self.cells.to_be_bytes());
        row.extend_from_slice(&self.bytes.to_be_bytes());
        row
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self> {
        let parse = |row| {
            let (version, rest) = take(HEADER, row)?;
            let (cells, bytes) = rest.split_first_chunk::<4>()?;
            Some(Self { version, cells: u32::from_be_bytes(*cells), bytes: u64::from_be_bytes(bytes.try_into().ok()?) })
        };
        parse(row).ok_or_else(|| Error::row("row header", "malformed"))
    }
}

/// A cell as its row says: the last change, and the value that it left.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    /// The last change.
    pub version: Hlc,
    /// `None`: deleted.
    pub value: Option<Value>,
}

impl Newest {
    /// Returns the cell as a row.
    pub fn encode(&self) -> Vec<u8> {
        match &self.value {
            Some(value) => with_value(self.version, value),
            None => stamped(DELETED, self.version, 0),
        }
    }

    /// Bytes of the row that a value makes.
    pub fn row_bytes(value: &Value) -> usize {
        STAMP_BYTES + value.encoded_len()
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self> {
        if let Some((version, [])) = take(DELETED, row) {
            return Ok(Self { version, value: None });
        }
        let (version, value) = timed_value("cell", row)?;
        Ok(Self { version, value: Some(value) })
    }
}

/// A value that a cell had.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// When it was replaced or deleted: later reads do not see it.
    pub until: Hlc,
    /// The value.
    pub value: Value,
}

impl Past {
    /// Returns the value as a row.
    pub fn encode(&self) -> Vec<u8> {
        with_value(self.until, &self.value)
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self> {
        let (until, value) = timed_value("history", row)?;
        Ok(Self { until, value })
    }
}

/// Bytes of a row's tag and time.
const STAMP_BYTES: usize = 9;

fn stamped(tag: u8, at: Hlc, more: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(STAMP_BYTES + more);
    row.push(tag);
    row.extend_from_slice(&at.0.to_be_bytes());
    row
}

fn with_value(at: Hlc, value: &Value) -> Vec<u8> {
    let mut row = stamped(VALUE, at, value.encoded_len());
    value.encode_raw(&mut row);
    row
}

/// Reads a row's time, when it has this tag, and returns what follows.
fn take(tag: u8, row: &[u8]) -> Option<(Hlc, &[u8])> {
    let (at, rest) = row.strip_prefix(&[tag])?.split_first_chunk::<8>()?;
    Some((Hlc(u64::from_be_bytes(*at)), rest))
}

fn timed_value(what: &'static str, row: &[u8]) -> Result<(Hlc, Value)> {
    let (at, value) = take(VALUE, row).ok_or_else(|| Error::row(what, "malformed"))?;
    let value = Value::decode(value).map_err(|error| Error::row(what, error))?;
    if value.kind.is_none() {
        return Err(Error::row(what, "a value without a kind"));
    }
    Ok((at, value))
}

/// Whether a row of state is part of what can be read at `gc` or at any later time. All others may be dropped, on each
/// replica at a moment of its own; rows of other families are always part of it.
pub fn is_readable(family: Family, row: &[u8], gc: Hlc) -> bool {
    match family {
        Family::Cells => match (take(DELETED, row), take(HEADER, row)) {
            (Some((deleted, [])), _) => deleted > gc,
            (_, Some((changed, [0, 0, 0, 0, ..]))) => changed > gc,
            _ => true,
        },
        Family::History => take(VALUE, row).is_none_or(|(until, _)| until > gc),
        Family::Meta | Family::Chunks | Family::Producers | Family::Rollups => true,
    }
}

#[cfg(test)]
mod tests {
    use galoo_proto::value::value::Kind;

    use super::*;

    #[test]
    fn rows_are_these_bytes() {
        let value = Value { kind: Some(Kind::Int(-1)) };
        let (at, stamp) = (Hlc(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        let header = Header { version: at, cells: 3, bytes: 0x0405 };
        assert_eq!(header.encode(), [&[0][..], &stamp, &[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 4, 5]].concat());
        assert_eq!(Header::decode(&header.encode()).expect("decodes"), header);
        let newest = Newest { version: at, value: Some(value.clone()) };
        assert_eq!(newest.encode(), [&[1][..], &stamp, &[0x18, 1]].concat());
        assert_eq!(Newest::decode(&newest.encode()).expect("decodes"), newest);
        assert_eq!(Newest::row_bytes(&value), newest.encode().len());
        let deleted = Newest { version: at, value: None };
        assert_eq!(deleted.encode(), [&[2][..], &stamp].concat());
        assert_eq!(Newest::decode(&deleted.encode()).expect("decodes"), deleted);
        let past = Past { until: at, value };
        assert_eq!(past.encode(), newest.encode());
        assert_eq!(Past::decode(&past.encode()).expect("decodes"), past);
        for row in [&[][..], &[1], &[1, 2, 3], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[3, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(
                Newest::decode(row).is_err() && Past::decode(row).is_err() && Header::decode(row).is_err(),
                "{row:?}"
            );
        }
    }

    #[test]
    fn what_ended_at_or_before_a_time_is_not_read_at_it() {
        let value = || Value { kind: Some(Kind::Bool(true)) };
        for (gc, ended_later) in [(4, true), (5, false), (6, false)] {
            let readable = |family, row: Vec<u8>| is_readable(family, &row, Hlc(gc));
            let at = Hlc(5);
            assert_eq!(readable(Family::Cells, Newest { version: at, value: None }.encode()), ended_later);
            assert_eq!(readable(Family::Cells, Header { version: at, cells: 0, bytes: 0 }.encode()), ended_later);
            assert_eq!(readable(Family::History, Past { until: at, value: value() }.encode()), ended_later);
            assert!(readable(Family::Cells, Newest { version: at, value: Some(value()) }.encode()));
            assert!(readable(Family::Cells, Header { version: at, cells: 1, bytes: 9 }.encode()));
            assert!(readable(Family::Producers, vec![2, 0, 0, 0, 0, 0, 0, 0, 0]));
        }
    }
}
