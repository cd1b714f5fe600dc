//! What is kept of one aggregate in one cell: merges in any order, and reads out as a value.

use super::{
    Aggregate, Operand,
    cell::{push_varint, take_varint},
    distinct::Distinct,
    exact_sum::ExactSum,
};
use crate::properties::ColumnType;

/// A part of an aggregate. Which variant stands for an aggregate is fixed by its definition.
///
/// ```text
/// count          varint
/// sum of ints    values varint | sum i128 (little-endian)
/// sum of floats  values varint | sum (see `exact_sum`)
/// least, greatest  0x00, or 0x01 and i64 or f64 (little-endian)
/// players        see `distinct`
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Accumulator {
    /// Events or values.
    Count(u64),
    /// Values and their sum.
    IntSum(u64, i128),
    /// Values and their sum.
    FloatSum(u64, FloatSum),
    /// The least integer or time.
    IntMin(Option<i64>),
    /// The greatest integer or time.
    IntMax(Option<i64>),
    /// The least float.
    FloatMin(Option<f64>),
    /// The greatest float.
    FloatMax(Option<f64>),
    /// Players.
    Players(Players),
}

/// An exact sum of floats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FloatSum(ExactSum);

/// A set of players.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Players(Distinct);

/// An aggregate's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// No value, as SQL's null.
    Null,
    /// An integer, or a time in Unix milliseconds.
    Int(i64),
    /// A float.
    Float(f64),
}

/// A sum does not fit its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sum of {0} is beyond 64 bits")]
pub struct SumTooLarge(pub i128);

fn is_float(operand: &Operand) -> bool {
    operand.column_type() == Some(ColumnType::Float)
}

impl Accumulator {
    /// Starts an aggregate.
    pub fn new(aggregate: &Aggregate) -> Self {
        match aggregate {
            Aggregate::Count(_) => Self::Count(0),
            Aggregate::Sum(operand) | Aggregate::Avg(operand) if is_float(operand) => {
                Self::FloatSum(0, FloatSum::default())
            }
            Aggregate::Sum(_) | Aggregate::Avg(_) => Self::IntSum(0, 0),
            Aggregate::Min(operand) if is_float(operand) => Self::FloatMin(None),
            Aggregate::Min(_) => Self::IntMin(None),
            Aggregate::Max(operand) if is_float(operand) => Self::FloatMax(None),
            Aggregate::Max(_) => Self::IntMax(None),
            Aggregate::DistinctPlayers => Self::Players(Players::default()),
        }
    }

    /// Takes an event whose operand is not null, and is no number that counts.
    pub fn add_one(&mut self) {
        if let Self::Count(count) = self {
            *count += 1;
        }
    }

    /// Takes an integer or a time.
    pub fn add_int(&mut self, value: i64) {
        match self {
            Self::IntSum(count, sum) => {
                *count += 1;
                // 2^63 values of 63 bits stay below 2^127.
                *sum += i128::from(value);
            }
            Self::IntMin(least) => *least = Some(least.map_or(value, |known| known.min(value))),
            Self::IntMax(greatest) => *greatest = Some(greatest.map_or(value, |known| known.max(value))),
            _ => self.add_one(),
        }
    }

    /// Takes a finite float.
    pub fn add_float(&mut self, value: f64) {
        match self {
            Self::FloatSum(count, FloatSum(sum)) => {
                *count += 1;
                sum.add(value);
            }
            Self::FloatMin(least) => *least = Some(least.map_or(value, |known| known.min(value))),
            Self::FloatMax(greatest) => *greatest = Some(greatest.map_or(value, |known| known.max(value))),
            _ => self.add_one(),
        }
    }

    /// Takes a player.
    pub fn add_player(&mut self, token: u64) {
        match self {
            Self::Players(Players(players)) => players.add(token),
            _ => self.add_one(),
        }
    }

    /// Adds another part of the same aggregate.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(count), Self::Count(more)) => *count += more,
            (Self::IntSum(count, sum), Self::IntSum(more, added)) => {
                *count += more;
                *sum += added;
            }
            (Self::FloatSum(count, FloatSum(sum)), Self::FloatSum(more, FloatSum(added))) => {
                *count += more;
                sum.merge(added);
            }
            (Self::IntMin(least), Self::IntMin(other)) => *least = least.iter().chain(other).copied().min(),
            (Self::IntMax(greatest), Self::IntMax(other)) => *greatest = greatest.iter().chain(other).copied().max(),
            (Self::FloatMin(least), Self::FloatMin(other)) => {
                *least = least.iter().chain(other).copied().reduce(f64::min);
            }
            (Self::FloatMax(greatest), Self::FloatMax(other)) => {
                *greatest = greatest.iter().chain(other).copied().reduce(f64::max);
            }
            (Self::Players(Players(players)), Self::Players(Players(more))) => players.merge(more),
            (mine, other) => panic!("INV-S6: {other:?} is no part of the aggregate of {mine:?}"),
        }
    }

    /// Bytes that it takes beside its own, about.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::FloatSum(_, FloatSum(sum)) => sum.heap_bytes(),
            Self::Players(Players(players)) => players.heap_bytes(),
            _ => 0,
        }
    }

    /// Reads the aggregate out.
    ///
    /// # Errors
    /// A sum of integers beyond 64 bits.
    #[expect(clippy::cast_precision_loss, reason = "an average is a float, as in SQL")]
    pub fn value(&self, aggregate: &Aggregate) -> Result<Number, SumTooLarge> {
        let average = matches!(aggregate, Aggregate::Avg(_));
        Ok(match self {
            Self::Count(count) => Number::Int(count.cast_signed()),
            Self::IntSum(0, _) | Self::FloatSum(0, _) => Number::Null,
            Self::IntSum(count, sum) if average => Number::Float(*sum as f64 / *count as f64),
            Self::IntSum(_, sum) => Number::Int(i64::try_from(*sum).map_err(|_| SumTooLarge(*sum))?),
            Self::FloatSum(count, FloatSum(sum)) if average => Number::Float(sum.round() / *count as f64),
            Self::FloatSum(_, FloatSum(sum)) => Number::Float(sum.round()),
            Self::IntMin(value) | Self::IntMax(value) => value.map_or(Number::Null, Number::Int),
            Self::FloatMin(value) | Self::FloatMax(value) => value.map_or(Number::Null, Number::Float),
            Self::Players(Players(players)) => Number::Int(players.count().cast_signed()),
        })
    }

    /// Appends the part as above.
    pub fn encode(&self, out: &mut Vec<u8>) {
        fn optional<const N: usize>(out: &mut Vec<u8>, bytes: Option<[u8; N]>) {
            out.push(u8::from(bytes.is_some()));
            out.extend_from_slice(bytes.as_ref().map_or(&[], |bytes| bytes));
        }
        match self {
            Self::Count(count) => push_varint(out, *count),
            Self::IntSum(count, sum) => {
                push_varint(out, *count);
                out.extend_from_slice(&sum.to_le_bytes());
            }
            Self::FloatSum(count, FloatSum(sum)) => {
                push_varint(out, *count);
                sum.encode(out);
            }
            Self::IntMin(value) | Self::IntMax(value) => optional(out, value.map(i64::to_le_bytes)),
            Self::FloatMin(value) | Self::FloatMax(value) => optional(out, value.map(f64::to_le_bytes)),
            Self::Players(Players(players)) => players.encode(out),
        }
    }

    /// Reads a part of `aggregate` at the front of `bytes` and moves behind it.
    pub fn decode(aggregate: &Aggregate, bytes: &mut &[u8]) -> Option<Self> {
        fn optional<const N: usize>(bytes: &mut &[u8]) -> Option<Option<[u8; N]>> {
            let (there, rest) = bytes.split_first()?;
            let (value, rest) = match there {
                0 => (None, rest),
                _ => rest.split_first_chunk::<N>().map(|(value, rest)| (Some(*value), rest))?,
            };
            *bytes = rest;
            Some(value)
        }
        Some(match Self::new(aggregate) {
            Self::Count(_) => Self::Count(take_varint(bytes)?),
            Self::IntSum(..) => {
                let count = take_varint(bytes)?;
                let (sum, rest) = bytes.split_first_chunk::<16>()?;
                *bytes = rest;
                Self::IntSum(count, i128::from_le_bytes(*sum))
            }
            Self::FloatSum(..) => Self::FloatSum(take_varint(bytes)?, FloatSum(ExactSum::decode(bytes)?)),
            Self::IntMin(_) => Self::IntMin(optional(bytes)?.map(i64::from_le_bytes)),
            Self::IntMax(_) => Self::IntMax(optional(bytes)?.map(i64::from_le_bytes)),
            Self::FloatMin(_) => Self::FloatMin(optional(bytes)?.map(f64::from_le_bytes)),
            Self::FloatMax(_) => Self::FloatMax(optional(bytes)?.map(f64::from_le_bytes)),
            Self::Players(_) => Self::Players(Players(Distinct::decode(bytes)?)),
        })
    }
}
