//! Players' state as rows of the engine, byte by byte.
//!
//! ```text
//! cells     0x00 version u64 cells u32 bytes u64 expires_first u64 expires_last u64
//!                                                  a row's header: its last change, its cells that are there, the bytes
//!                                                  of their keys and rows, and when the first and the last of them
//!                                                  expires
//!           0x01 version u64 Value                 a cell with one value, which does not expire
//!           0x02 version u64                       a cell that was deleted
//!           0x03 (version u64 expires u64 length u32 Value) ...
//!                                                  a cell with its values, the newest first
//! history   0x01 until u64 Value                   a value that cannot be read since `until`; its version is in the key
//! ```
//!
//! Integers are big-endian; a `Value` is protobuf; what never expires does so at 2^64 - 1. The values of a cell that reads
//! can list, as many as its family keeps, stand together under a key without a version, so that one lookup finds them. What
//! falls off that list (too old, deleted) moves to the history. Each row says by itself between which times it could be
//! read, so that whether it can be dropped depends on no other row ([`is_readable`]). A value that expires takes the older
//! ones with it: a cell is gone once its newest value has expired. A header counts cells that expired until somebody counts
//! anew.

use galoo_proto::{Hlc, value::Value};
use prost::Message;

use crate::{Error, Result, engine::Family, key::take_u64};

const HEADER: u8 = 0;
const VALUE: u8 = 1;
const DELETED: u8 = 2;
const VALUES: u8 = 3;

/// When a value expires that never does.
pub const NEVER: Hlc = Hlc(u64::MAX);

/// The header of a player's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The last change.
    pub version: Hlc,
    /// Cells that are there; those that expired since they were counted are among them.
    pub cells: u32,
    /// Bytes of their keys and rows.
    pub bytes: u64,
    /// No cell expires before.
    pub expires_first: Hlc,
    /// All cells have expired then.
    pub expires_last: Hlc,
}

impl Default for Header {
    fn default() -> Self {
        Self { version: Hlc(0), cells: 0, bytes: 0, expires_first: NEVER, expires_last: Hlc(0) }
    }
}

impl Header {
    /// Returns the header as a row.
    pub fn encode(self) -> Vec<u8> {
        let mut row = stamped(HEADER, self.version, 28);
        row.extend_from_slice(&self.cells.to_be_bytes());
        for number in [self.bytes, self.expires_first.0, self.expires_last.0] {
            row.extend_from_slice(&number.to_be_bytes());
        }
        row
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self> {
        let parse = |row| {
            let (version, rest) = take(HEADER, row)?;
            let (cells, mut rest) = rest.split_first_chunk::<4>()?;
            let (bytes, first, last) = (take_u64(&mut rest)?, take_u64(&mut rest)?, take_u64(&mut rest)?);
            let cells = u32::from_be_bytes(*cells);
            let header = Self { version, cells, bytes, expires_first: Hlc(first), expires_last: Hlc(last) };
            rest.is_empty().then_some(header)
        };
        parse(row).ok_or_else(|| Error::row("row header", "malformed"))
    }

    /// Counts a cell that is there.
    pub fn add(&mut self, bytes: u64, expires: Hlc) {
        self.cells = self.cells.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.expires_first = self.expires_first.min(expires);
        self.expires_last = self.expires_last.max(expires);
    }

    /// Takes a cell off the count.
    pub fn remove(&mut self, bytes: u64) {
        self.cells = self.cells.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.cells == 0 {
            *self = Self { version: self.version, ..Self::default() };
        }
    }
}

/// A value of a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// When it was written.
    pub at: Hlc,
    /// From then on it is not there; [`NEVER`] is possible.
    pub expires: Hlc,
    /// The value.
    pub value: Value,
}

/// A cell as its row says: the last change, and the values that it left.
#[derive(Clone, Debug, PartialEq)]
pub struct Current {
    /// The last change: the newest value's version, or when the cell was deleted.
    pub version: Hlc,
    /// The newest first; none: deleted.
    pub values: Vec<Version>,
}

impl Current {
    /// Returns the cell as a row.
    pub fn encode(&self) -> Vec<u8> {
        match self.values.as_slice() {
            [] => stamped(DELETED, self.version, 0),
            [one] if one.expires == NEVER => with_value(one.at, &one.value),
            several => {
                let mut row = vec![VALUES];
                for Version { at, expires, value } in several {
                    row.extend_from_slice(&at.0.to_be_bytes());
                    row.extend_from_slice(&expires.0.to_be_bytes());
                    let length = u32::try_from(value.encoded_len()).expect("a cell's value has at most 1 MiB");
                    row.extend_from_slice(&length.to_be_bytes());
                    value.encode_raw(&mut row);
                }
                row
            }
        }
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self> {
        if let Some((version, [])) = take(DELETED, row) {
            return Ok(Self { version, values: Vec::new() });
        }
        let Some(mut rest) = row.strip_prefix(&[VALUES]) else {
            let (at, value) = timed_value("cell", row)?;
            return Ok(Self { version: at, values: vec![Version { at, expires: NEVER, value }] });
        };
        let mut values: Vec<Version> = Vec::new();
        while values.is_empty() || !rest.is_empty() {
            let malformed = || Error::row("cell", "malformed values");
            let (at, expires) = take_u64(&mut rest).zip(take_u64(&mut rest)).ok_or_else(malformed)?;
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (value, after) = after.split_at_checked(length).ok_or_else(malformed)?;
            if values.last().is_some_and(|newer| newer.at.0 <= at) {
                return Err(malformed());
            }
            values.push(Version { at: Hlc(at), expires: Hlc(expires), value: decode_value("cell", value)? });
            rest = after;
        }
        Ok(Self { version: values[0].at, values })
    }

    /// When the cell is gone by itself: its newest value's time.
    pub fn expires(&self) -> Hlc {
        self.values.first().map_or(Hlc(0), |newest| newest.expires)
    }
}

/// A value that a cell had.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// Since when it is not read: it was deleted, or had expired, or newer ones took its place.
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
    Ok((at, decode_value(what, value)?))
}

fn decode_value(what: &'static str, bytes: &[u8]) -> Result<Value> {
    let value = Value::decode(bytes).map_err(|error| Error::row(what, error))?;
    if value.kind.is_none() {
        return Err(Error::row(what, "a value without a kind"));
    }
    Ok(value)
}

/// Whether a row of state is part of what can be read at `gc` or at any later time. All others may be dropped, on each
/// replica at a moment of its own; rows of other families are always part of it.
pub fn is_readable(family: Family, row: &[u8], gc: Hlc) -> bool {
    match family {
        Family::Cells => match row.first() {
            Some(&DELETED) => take(DELETED, row).is_none_or(|(deleted, _)| deleted > gc),
            Some(&VALUES) => row.get(9..17).is_none_or(|expires| expires > gc.0.to_be_bytes().as_slice()),
            Some(&HEADER) => Header::decode(row).map_or(true, |header| header.version.max(header.expires_last) > gc),
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

    fn int(value: i64) -> Value {
        Value { kind: Some(Kind::Int(value)) }
    }

    fn version(at: u64, expires: Hlc, value: i64) -> Version {
        Version { at: Hlc(at), expires, value: int(value) }
    }

    #[test]
    fn rows_are_these_bytes() {
        let (at, stamp) = (Hlc(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        let mut header = Header { version: at, ..Header::default() };
        let never = [0xff; 8];
        assert_eq!(header.encode(), [&[0][..], &stamp, &[0; 12], &never, &[0; 8]].concat());
        header.add(0x0405, Hlc(9));
        let times = [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 9];
        let counted = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 5];
        assert_eq!(header.encode(), [&[0][..], &stamp, &counted, &times].concat());
        assert_eq!(Header::decode(&header.encode()).expect("decodes"), header);

        let one = Current { version: at, values: vec![version(at.0, NEVER, -1)] };
        assert_eq!(one.encode(), [&[1][..], &stamp, &[0x18, 1]].concat());
        let past = Past { until: at, value: int(-1) };
        assert_eq!(past.encode(), one.encode());
        assert_eq!(Past::decode(&past.encode()).expect("decodes"), past);
        let deleted = Current { version: at, values: Vec::new() };
        assert_eq!(deleted.encode(), [&[2][..], &stamp].concat());
        let several = Current { version: at, values: vec![version(at.0, Hlc(3), -1), version(1, NEVER, 1)] };
        let newest = [&stamp[..], &[0, 0, 0, 0, 0, 0, 0, 3], &[0, 0, 0, 2, 0x18, 1]].concat();
        let older = [&[0, 0, 0, 0, 0, 0, 0, 1][..], &never, &[0, 0, 0, 2, 0x18, 2]].concat();
        assert_eq!(several.encode(), [&[3][..], &newest, &older].concat());
        for row in [one, deleted, several] {
            assert_eq!(Current::decode(&row.encode()).expect("decodes"), row);
        }
        for row in [
            &[][..],
            &[1],
            &[1, 2, 3],
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0, 0],
            &[&[3][..], &newest, &newest].concat(),
            &[4, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(
                Current::decode(row).is_err() && Past::decode(row).is_err() && Header::decode(row).is_err(),
                "{row:?}"
            );
        }
    }

    #[test]
    fn what_ended_at_or_before_a_time_is_not_read_at_it() {
        for (gc, ended_later) in [(4, true), (5, false), (6, false)] {
            let readable = |family, row: Vec<u8>| is_readable(family, &row, Hlc(gc));
            let at = Hlc(5);
            let cell = |version, values| readable(Family::Cells, Current { version, values }.encode());
            assert_eq!(cell(at, vec![]), ended_later);
            assert_eq!(cell(Hlc(3), vec![version(3, at, 0), version(2, NEVER, 1)]), ended_later);
            assert!(cell(Hlc(3), vec![version(3, NEVER, 0), version(2, at, 1)]));
            assert!(cell(at, vec![version(5, NEVER, 0)]));
            let mut header = Header { version: at, ..Header::default() };
            assert_eq!(readable(Family::Cells, header.encode()), ended_later);
            header.add(9, Hlc(7));
            assert!(readable(Family::Cells, header.encode()));
            header.remove(9);
            assert_eq!(readable(Family::Cells, header.encode()), ended_later);
            assert_eq!(readable(Family::History, Past { until: at, value: int(0) }.encode()), ended_later);
            assert!(readable(Family::Producers, vec![2, 0, 0, 0, 0, 0, 0, 0, 0]));
        }
    }
}
