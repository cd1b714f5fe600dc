//! Rollups: aggregates over a shard's events by time bucket and groups, kept as events are compacted.
//!
//! A rollup's **mark** is the seq up to which its cells hold the shard's events: exactly those at or below it (INV-S6).
//! [`cover`] moves it: it folds one sealed chunk or segment into a [`partial::Partial`] off the thread that applies, adds
//! the cells that are there, and writes cells and mark in one batch. Sources are covered in order of seq, so that one
//! number says all; a new rollup starts at 0 and is filled from the oldest segment on, and answers rightly meanwhile.
//!
//! A read ([`read`]) adds the cells of one snapshot and the partials of what lies behind the mark *in that snapshot*. It is
//! exact and fresh at any moment, however late an event comes (P4); how far covering is decides only what it costs. Cells that
//! were read once stay merged in memory ([`merged`]) with marks of their own, within a bound in bytes ([`cache`]).
//! Everything here merges without regard to order. Cells are each replica's own and no part of the shard's checksum.

pub mod accumulator;
pub mod cache;
pub mod cell;
pub mod cover;
mod distinct;
mod exact_sum;
mod merged;
pub mod partial;
pub mod read;

use galoo_proto::{
    RollupId,
    limits::ROLLUP_COLUMNS_MAX,
    rollup::{self, Field, Function, Rollup, column, operand},
};

use crate::{properties::ColumnType, view::Column};

/// The newest format of a [`Rollup`] that this version knows.
pub const FORMAT_VERSION: u32 = 1;

/// A Monday: buckets of whole weeks start on one. For any width that divides a day it is as good as 1970.
const BUCKET_ORIGIN_MS: i64 = 946_857_600_000;

/// Returns the start of the bucket that holds `at_ms`.
///
/// Buckets are `[start, start + width_ms)` in UTC milliseconds, counted from 2000-01-03, a Monday (as TimescaleDB's
/// `time_bucket`). Instants before it round down, not towards zero. `width_ms` is above 0; times are those of events.
pub fn bucket_start(at_ms: i64, width_ms: i64) -> i64 {
    at_ms - (at_ms - BUCKET_ORIGIN_MS).rem_euclid(width_ms)
}

/// What of an event a rollup looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The player.
    PlayerId,
    /// The type.
    EventType,
    /// The time.
    EventTime,
    /// A property, with the type that it has in the rollup for ever: a value that does not fit counts as null.
    Property {
        /// The property.
        name: String,
        /// Its type here.
        column_type: ColumnType,
    },
}

impl Operand {
    /// The column of a scan that holds it.
    pub fn column(&self) -> Column {
        match self {
            Self::PlayerId => Column::PlayerId,
            Self::EventType => Column::EventType,
            Self::EventTime => Column::EventTime,
            Self::Property { name, column_type } => Column::Property { name: name.clone(), column_type: *column_type },
        }
    }

    /// The column's type in the rollup's table; `None` for a time.
    pub fn column_type(&self) -> Option<ColumnType> {
        match self {
            Self::PlayerId | Self::EventType => Some(ColumnType::Text),
            Self::EventTime => None,
            Self::Property { column_type, .. } => Some(*column_type),
        }
    }
}

/// An aggregate, over what it can be kept incrementally.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Events, or those whose operand is not null.
    Count(Option<Operand>),
    /// Sum of integers or floats.
    Sum(Operand),
    /// Least integer, float or time.
    Min(Operand),
    /// Greatest integer, float or time.
    Max(Operand),
    /// Sum by count.
    Avg(Operand),
    /// Players: exact up to a bound a cell, then a sketch ([`distinct`]).
    DistinctPlayers,
}

impl Aggregate {
    /// What of an event it looks at.
    pub fn operand(&self) -> Option<&Operand> {
        match self {
            Self::Count(operand) => operand.as_ref(),
            Self::Sum(operand) | Self::Min(operand) | Self::Max(operand) | Self::Avg(operand) => Some(operand),
            Self::DistinctPlayers => Some(&Operand::PlayerId),
        }
    }
}

/// What a column of a rollup's table shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The bucket's start.
    Bucket,
    /// A group, by its place.
    Group(usize),
    /// An aggregate, by its place.
    Aggregate(usize),
}

/// A rollup's definition, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its number.
    pub id: RollupId,
    /// Its table's name.
    pub name: String,
    /// Width of a bucket in milliseconds.
    pub bucket_ms: i64,
    /// Only events of these types count.
    pub event_types: Option<Vec<String>>,
    /// What makes a group, beside the bucket.
    pub groups: Vec<Operand>,
    /// What is kept of a group.
    pub aggregates: Vec<Aggregate>,
    /// The table's columns in order.
    pub columns: Vec<(String, Shown)>,
}

/// Why a definition cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRollup {
    /// The bucket's width is out of range.
    #[error("a bucket of {0} ms; it must be 1 to {BUCKET_MS_MAX} (366 days)")]
    Bucket(i64),
    /// Too many columns, or none.
    #[error("{0} groups and aggregates; it must be 1 to {ROLLUP_COLUMNS_MAX}")]
    Columns(usize),
    /// It does not show its bucket exactly once.
    #[error("the time bucket is shown {0} times; it must be once")]
    Buckets(usize),
    /// No aggregate.
    #[error("there is no aggregate")]
    NoAggregate,
    /// Two columns have one name.
    #[error("two columns are named {0:?}")]
    Name(String),
    /// A group that cannot be one.
    #[error("column {0:?} cannot be a group: floats and times have no exact groups; round them into a property")]
    Group(String),
    /// An aggregate that cannot be kept over its operand.
    #[error("column {column:?}: {reason}")]
    Aggregate {
        /// Its column.
        column: String,
        /// Why.
        reason: &'static str,
    },
}

/// A bucket is at most this wide: 366 days.
pub const BUCKET_MS_MAX: i64 = 366 * 86_400_000;

impl Definition {
    /// Reads a definition as it is stored.
    ///
    /// # Errors
    /// Says why it cannot be kept; the same everywhere.
    pub fn parse(rollup: &Rollup) -> Result<Self, InvalidRollup> {
        if !(1..=BUCKET_MS_MAX).contains(&rollup.bucket_ms) {
            return Err(InvalidRollup::Bucket(rollup.bucket_ms));
        }
        let (mut groups, mut aggregates, mut columns) = (Vec::new(), Vec::new(), Vec::<(String, Shown)>::new());
        for column in &rollup.columns {
            let shown = match &column.kind {
                None | Some(column::Kind::Bucket(_)) => Shown::Bucket,
                Some(column::Kind::Group(found)) => {
                    let group = operand(found);
                    if !matches!(group.column_type(), Some(ColumnType::Text | ColumnType::Int | ColumnType::Bool)) {
                        return Err(InvalidRollup::Group(column.name.clone()));
                    }
                    groups.push(group);
                    Shown::Group(groups.len() - 1)
                }
                Some(column::Kind::Aggregate(found)) => {
                    let refused = |reason| InvalidRollup::Aggregate { column: column.name.clone(), reason };
                    aggregates.push(aggregate(found).map_err(refused)?);
                    Shown::Aggregate(aggregates.len() - 1)
                }
            };
            if columns.iter().any(|(name, _)| *name == column.name) {
                return Err(InvalidRollup::Name(column.name.clone()));
            }
            columns.push((column.name.clone(), shown));
        }
        let count = groups.len() + aggregates.len();
        if !(1..=ROLLUP_COLUMNS_MAX).contains(&count) {
            return Err(InvalidRollup::Columns(count));
        }
        if aggregates.is_empty() {
            return Err(InvalidRollup::NoAggregate);
        }
        let buckets = columns.iter().filter(|(_, shown)| *shown == Shown::Bucket).count();
        if buckets != 1 {
            return Err(InvalidRollup::Buckets(buckets));
        }
        let event_types = Some(rollup.event_types.clone()).filter(|types| !types.is_empty());
        let (id, name) = (RollupId(rollup.id), rollup.name.clone());
        Ok(Self { id, name, bucket_ms: rollup.bucket_ms, event_types, groups, aggregates, columns })
    }

    /// Whether the player is one of the groups: such cells follow the player's token.
    pub fn groups_by_player(&self) -> bool {
        self.groups.contains(&Operand::PlayerId)
    }
}

fn operand(found: &rollup::Operand) -> Operand {
    match &found.column {
        Some(operand::Column::Property(property)) => {
            let column_type = match property.r#type() {
                rollup::PropertyType::Bool => ColumnType::Bool,
                rollup::PropertyType::Int => ColumnType::Int,
                rollup::PropertyType::Float => ColumnType::Float,
                rollup::PropertyType::Text => ColumnType::Text,
            };
            Operand::Property { name: property.name.clone(), column_type }
        }
        Some(operand::Column::Field(field)) => match Field::try_from(*field).unwrap_or_default() {
            Field::PlayerId => Operand::PlayerId,
            Field::EventType => Operand::EventType,
            Field::EventTime => Operand::EventTime,
        },
        None => Operand::PlayerId,
    }
}

fn aggregate(found: &rollup::Aggregate) -> Result<Aggregate, &'static str> {
    let over = found.operand.as_ref().map(operand);
    let function = found.function();
    if function == Function::Count {
        return Ok(Aggregate::Count(over));
    }
    let over = over.ok_or("the aggregate has no argument")?;
    if function == Function::CountDistinct {
        return match over {
            Operand::PlayerId => Ok(Aggregate::DistinctPlayers),
            _ => Err("only count(distinct player_id) is kept; other distinct values are not"),
        };
    }
    match (function, over.column_type()) {
        (Function::Sum, Some(ColumnType::Int | ColumnType::Float)) => Ok(Aggregate::Sum(over)),
        (Function::Avg, Some(ColumnType::Int | ColumnType::Float)) => Ok(Aggregate::Avg(over)),
        (Function::Sum | Function::Avg, _) => Err("sum and avg need a number"),
        (Function::Min, Some(ColumnType::Int | ColumnType::Float) | None) => Ok(Aggregate::Min(over)),
        (Function::Max, Some(ColumnType::Int | ColumnType::Float) | None) => Ok(Aggregate::Max(over)),
        _ => Err("min and max need a number or a time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_start_where_a_person_expects() {
        let hour = 3_600_000;
        assert_eq!(bucket_start(0, hour), 0);
        assert_eq!(bucket_start(hour - 1, hour), 0);
        assert_eq!(bucket_start(hour, hour), hour);
        assert_eq!(bucket_start(-1, hour), -hour);
        let week = 7 * 86_400_000;
        // 1970-01-01 was a Thursday: its week began on 1969-12-29.
        assert_eq!(bucket_start(0, week), -3 * 86_400_000);
        assert_eq!(bucket_start(BUCKET_ORIGIN_MS, week), BUCKET_ORIGIN_MS);
    }

    fn column(name: &str, kind: column::Kind) -> rollup::Column {
        rollup::Column { name: name.to_owned(), kind: Some(kind) }
    }

    fn field(field: Field) -> rollup::Operand {
        rollup::Operand { column: Some(operand::Column::Field(field.into())) }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_a_reason() {
        let bucket = || column("bucket", column::Kind::Bucket(rollup::Bucket {}));
        let of = |function: Function, operand| {
            column("n", column::Kind::Aggregate(rollup::Aggregate { function: function.into(), operand }))
        };
        let parse = |bucket_ms, columns| {
            Definition::parse(&Rollup { version: 1, id: 1, name: "r".into(), bucket_ms, columns, ..Default::default() })
        };
        assert!(parse(3_600_000, vec![bucket(), of(Function::Count, None)]).is_ok());
        assert_eq!(parse(0, vec![bucket(), of(Function::Count, None)]), Err(InvalidRollup::Bucket(0)));
        assert_eq!(parse(3_600_000, vec![of(Function::Count, None)]), Err(InvalidRollup::Buckets(0)));
        let group = column("at", column::Kind::Group(field(Field::EventTime)));
        assert!(matches!(parse(3_600_000, vec![bucket(), group]), Err(InvalidRollup::Group(_))));
        let group = column("who", column::Kind::Group(field(Field::PlayerId)));
        assert_eq!(parse(3_600_000, vec![bucket(), group]), Err(InvalidRollup::NoAggregate));
        for (function, operand) in [
            (Function::Sum, Field::EventType),
            (Function::Max, Field::PlayerId),
            (Function::CountDistinct, Field::EventType),
        ] {
            let columns = vec![bucket(), of(function, Some(field(operand)))];
            assert!(matches!(parse(3_600_000, columns), Err(InvalidRollup::Aggregate { .. })), "{function:?}");
        }
        let twice = vec![bucket(), of(Function::Count, None), of(Function::Count, None)];
        assert_eq!(parse(3_600_000, twice), Err(InvalidRollup::Name("n".into())));
    }
}
