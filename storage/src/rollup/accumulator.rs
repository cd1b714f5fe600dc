//! What is kept of one aggregate in one cell: merges in any order, and reads out as a value.

use std::borrow::Cow;

use super::{
    Aggregate, Operand,
    cell::{Value, push_varint, take_varint},
    definition::Part,
    distinct::Distinct,
    exact_sum::ExactSum,
    quantiles::Quantiles,
};
use crate::properties::ColumnType;

/// What is kept of a [`Part`]. Which variant it is, is fixed by the rollup's definition.
///
/// ```text
/// count          varint
/// sum of ints    values varint | sum i128 (little-endian)
/// sum of floats  values varint | sum (see `exact_sum`)
/// least, greatest  0x00, or 0x01 and i64 or f64 (little-endian)
/// players        see `distinct`
/// quantiles      see `quantiles`
/// first, last    0x00, or 0x01 and time i64, seq u64 (little-endian), value
/// value          0x00 (null), 0x01 and bool u8, 0x02 and i64, 0x03 and f64 (little-endian), or 0x04, bytes varint and text
/// hash           u64 (little-endian)
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
    /// How values are distributed.
    Quantiles(Quantiles),
    /// The earliest event's value.
    First(Option<Moment>),
    /// The latest event's value.
    Last(Option<Moment>),
    /// Sum of the events' hashes, modulo 2^64.
    Hash(u64),
}

/// The value of one event. Earlier events are less; of two with the same time and sequence number, from two shards, one is
/// less by its value, so that which is the first does not depend on the order in which they come.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    time_ms: i64,
    seq: u64,
    value: Value<'static>,
}

impl Moment {
    pub(super) fn new(time_ms: i64, seq: u64, value: Value<'static>) -> Self {
        Self { time_ms, seq, value }
    }

    fn is_before(&self, other: &Self) -> bool {
        let order = (self.time_ms, self.seq).cmp(&(other.time_ms, other.seq));
        order.then_with(|| self.value.encoded().cmp(&other.value.encoded())).is_lt()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        self.value.encode(out);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let (time_ms, rest) = bytes.split_first_chunk::<8>()?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        *bytes = rest;
        let value = Value::decode(bytes)?;
        Some(Self { time_ms: i64::from_le_bytes(*time_ms), seq: u64::from_le_bytes(*seq), value })
    }
}

/// An exact sum of floats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FloatSum(ExactSum);

/// A set of players.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Players(Distinct);

/// A sum does not fit its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sum of {0} is beyond 64 bits")]
pub struct SumTooLarge(pub i128);

fn is_float(operand: &Operand) -> bool {
    operand.column_type() == Some(ColumnType::Float)
}

impl Accumulator {
    /// Starts a part.
    pub fn new(part: &Part) -> Self {
        match part {
            Part::Count(_) => Self::Count(0),
            Part::Sum(operand) if is_float(operand) => Self::FloatSum(0, FloatSum::default()),
            Part::Sum(_) => Self::IntSum(0, 0),
            Part::Min(operand) if is_float(operand) => Self::FloatMin(None),
            Part::Min(_) => Self::IntMin(None),
            Part::Max(operand) if is_float(operand) => Self::FloatMax(None),
            Part::Max(_) => Self::IntMax(None),
            Part::Players => Self::Players(Players::default()),
            Part::Quantiles(_) => Self::Quantiles(Quantiles::default()),
            Part::First(..) => Self::First(None),
            Part::Last(..) => Self::Last(None),
            Part::Hash => Self::Hash(0),
        }
    }

    /// Takes an event whose operand is not null, and is no number that counts.
    pub fn add_one(&mut self) {
        if let Self::Count(count) = self {
            *count += 1;
        }
    }

    /// Takes the hashes of events.
    pub fn add_hash(&mut self, hash: u64) {
        if let Self::Hash(sum) = self {
            *sum = sum.wrapping_add(hash);
        }
    }

    /// Takes an event's value with its time and sequence number.
    pub(super) fn add_moment(&mut self, moment: Moment) {
        match self {
            Self::First(known) if known.as_ref().is_none_or(|known| moment.is_before(known)) => *known = Some(moment),
            Self::Last(known) if known.as_ref().is_none_or(|known| known.is_before(&moment)) => *known = Some(moment),
            _ => {}
        }
    }

    /// Whether an event of this time and sequence number may change what is kept.
    pub(super) fn may_take(&self, time_ms: i64, seq: u64) -> bool {
        match self {
            Self::First(Some(known)) => (time_ms, seq) <= (known.time_ms, known.seq),
            Self::Last(Some(known)) => (time_ms, seq) >= (known.time_ms, known.seq),
            _ => true,
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
            #[expect(clippy::cast_precision_loss, reason = "a quantile is within 1 %")]
            Self::Quantiles(quantiles) => quantiles.add(value as f64),
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
            Self::Quantiles(quantiles) => quantiles.add(value),
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

    /// Adds what is kept of the same part of other events.
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
            (Self::Quantiles(values), Self::Quantiles(more)) => values.merge(more),
            (mine @ (Self::First(_) | Self::Last(_)), Self::First(more) | Self::Last(more)) => {
                if let Some(moment) = more {
                    mine.add_moment(moment.clone());
                }
            }
            (Self::Hash(sum), Self::Hash(more)) => *sum = sum.wrapping_add(*more),
            (mine, other) => panic!("INV-S6: {other:?} is no part of the aggregate of {mine:?}"),
        }
    }

    /// Takes out what is kept of the same part of some of its events; returns false, and has changed, when it does not hold
    /// them, or when it is none of what can be taken out.
    pub(super) fn subtract(&mut self, other: &Self) -> bool {
        fn less(count: &mut u64, out: u64) -> bool {
            let rest = count.checked_sub(out);
            *count = rest.unwrap_or(0);
            rest.is_some()
        }
        match (self, other) {
            (Self::Count(count), Self::Count(out)) => less(count, *out),
            (Self::IntSum(count, sum), Self::IntSum(out, taken)) => {
                *sum -= taken;
                less(count, *out)
            }
            (Self::FloatSum(count, FloatSum(sum)), Self::FloatSum(out, FloatSum(taken))) => {
                sum.subtract(taken);
                less(count, *out)
            }
            (Self::Quantiles(values), Self::Quantiles(out)) => values.subtract(out),
            (Self::Hash(sum), Self::Hash(out)) => {
                *sum = sum.wrapping_sub(*out);
                true
            }
            _ => false,
        }
    }

    /// Bytes that it takes beside its own, about.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::FloatSum(_, FloatSum(sum)) => sum.heap_bytes(),
            Self::Players(Players(players)) => players.heap_bytes(),
            Self::Quantiles(quantiles) => quantiles.heap_bytes(),
            Self::First(Some(moment)) | Self::Last(Some(moment)) => moment.value.heap_bytes(),
            _ => 0,
        }
    }

    /// Reads an aggregate out of it.
    ///
    /// # Errors
    /// A sum of integers beyond 64 bits.
    #[expect(clippy::cast_precision_loss, reason = "an average is a float, as in SQL")]
    pub fn value(&self, aggregate: &Aggregate) -> Result<Value<'_>, SumTooLarge> {
        let average = matches!(aggregate, Aggregate::Avg(_));
        Ok(match self {
            Self::Count(count) | Self::Hash(count) => Value::Int(count.cast_signed()),
            Self::IntSum(0, _) | Self::FloatSum(0, _) => Value::Null,
            Self::IntSum(count, sum) if average => Value::Float(*sum as f64 / *count as f64),
            Self::IntSum(_, sum) => Value::Int(i64::try_from(*sum).map_err(|_| SumTooLarge(*sum))?),
            Self::FloatSum(count, FloatSum(sum)) if average => Value::Float(sum.round() / *count as f64),
            Self::FloatSum(_, FloatSum(sum)) => Value::Float(sum.round()),
            Self::IntMin(value) | Self::IntMax(value) => value.map_or(Value::Null, Value::Int),
            Self::FloatMin(value) | Self::FloatMax(value) => value.map_or(Value::Null, Value::Float),
            Self::Players(Players(players)) => Value::Int(players.count().cast_signed()),
            Self::Quantiles(quantiles) => match aggregate {
                Aggregate::Quantile(_, quantile) => quantiles.value(*quantile).map_or(Value::Null, Value::Float),
                _ => Value::Null,
            },
            Self::First(moment) | Self::Last(moment) => match moment.as_ref().map(|moment| &moment.value) {
                Some(Value::Text(text)) => Value::Text(Cow::Borrowed(text)),
                Some(value) => value.clone(),
                None => Value::Null,
            },
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
            Self::Quantiles(quantiles) => quantiles.encode(out),
            Self::First(moment) | Self::Last(moment) => {
                out.push(u8::from(moment.is_some()));
                if let Some(moment) = moment {
                    moment.encode(out);
                }
            }
            Self::Hash(sum) => out.extend_from_slice(&sum.to_le_bytes()),
        }
    }

    /// Reads what is kept of a part at the front of `bytes` and moves behind it.
    pub fn decode(part: &Part, bytes: &mut &[u8]) -> Option<Self> {
        fn moment(bytes: &mut &[u8]) -> Option<Option<Moment>> {
            let (there, rest) = bytes.split_first()?;
            *bytes = rest;
            if *there == 0 { Some(None) } else { Moment::decode(bytes).map(Some) }
        }
        fn optional<const N: usize>(bytes: &mut &[u8]) -> Option<Option<[u8; N]>> {
            let (there, rest) = bytes.split_first()?;
            let (value, rest) = match there {
                0 => (None, rest),
                _ => rest.split_first_chunk::<N>().map(|(value, rest)| (Some(*value), rest))?,
            };
            *bytes = rest;
            Some(value)
        }
        Some(match Self::new(part) {
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
            Self::Quantiles(_) => Self::Quantiles(Quantiles::decode(bytes)?),
            Self::First(_) => Self::First(moment(bytes)?),
            Self::Last(_) => Self::Last(moment(bytes)?),
            Self::Hash(_) => {
                let (sum, rest) = bytes.split_first_chunk::<8>()?;
                *bytes = rest;
                Self::Hash(u64::from_le_bytes(*sum))
            }
        })
    }
}
