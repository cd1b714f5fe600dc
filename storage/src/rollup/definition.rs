//! What a rollup is: checked once, where its definition is read.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringViewArray, TimestampMillisecondArray},
    datatypes::DataType,
};
use galoo_proto::{
    Keyspace, RollupId, Token,
    limits::{ROLLUP_COLUMNS_MAX, ROLLUP_GROUPS_MAX, ROLLUP_PREDICATES_MAX, ROLLUP_TIERS_MAX},
    rollup::{self, Erasure, Field, Function, Rollup, Test, column, group, literal, operand},
    tables::table_name,
};

use super::cell;
use crate::{Error, key, properties::ColumnType, view::Column};

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

/// The width of ranges of numbers, above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    /// Of integers.
    Int(i64),
    /// Of floats.
    Float(f64),
}

/// What makes a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Whose value.
    pub operand: Operand,
    /// All values of a range are one group.
    pub width: Option<Width>,
}

/// What an aggregate does with events whose operand is null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// Takes them.
    Taken,
    /// Passes them over.
    Skipped,
}

/// An aggregate, over what it can be kept incrementally.
#[derive(Clone, Debug, PartialEq)]
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
    /// Players: exact up to a bound a cell, then a sketch ([`super::distinct`]).
    DistinctPlayers,
    /// The value below which this share of the integers or floats lies, within 1 % ([`super::quantiles`]).
    Quantile(Operand, f64),
    /// The operand of the earliest event.
    First(Operand, Nulls),
    /// The operand of the latest event.
    Last(Operand, Nulls),
}

impl Aggregate {
    /// What is stored for it; `None` for the number of events, which every cell has.
    fn part(&self) -> Option<Part> {
        Some(match self.clone() {
            Self::Count(None) => return None,
            Self::Count(Some(operand)) => Part::Count(operand),
            Self::Sum(operand) | Self::Avg(operand) => Part::Sum(operand),
            Self::Min(operand) => Part::Min(operand),
            Self::Max(operand) => Part::Max(operand),
            Self::DistinctPlayers => Part::Players,
            Self::Quantile(operand, _) => Part::Quantiles(operand),
            Self::First(operand, nulls) => Part::First(operand, nulls),
            Self::Last(operand, nulls) => Part::Last(operand, nulls),
        })
    }
}

/// What is stored of a group; several aggregates may be read from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Events whose operand is not null.
    Count(Operand),
    /// Number and sum.
    Sum(Operand),
    /// The least.
    Min(Operand),
    /// The greatest.
    Max(Operand),
    /// Players.
    Players,
    /// How values are distributed.
    Quantiles(Operand),
    /// The earliest event's.
    First(Operand, Nulls),
    /// The latest event's.
    Last(Operand, Nulls),
    /// A sum over all events that does not depend on their order ([`super::verify`]).
    Hash,
}

impl Part {
    /// Whether events can be taken out of it again.
    fn subtracts(&self) -> bool {
        match self {
            Self::Count(_) | Self::Sum(_) | Self::Quantiles(_) | Self::Hash => true,
            Self::Min(_) | Self::Max(_) | Self::Players | Self::First(..) | Self::Last(..) => false,
        }
    }

    /// What of an event it looks at.
    pub(super) fn operand(&self) -> Option<&Operand> {
        match self {
            Self::Count(operand) | Self::Sum(operand) | Self::Min(operand) | Self::Max(operand) => Some(operand),
            Self::Quantiles(operand) | Self::First(operand, _) | Self::Last(operand, _) => Some(operand),
            Self::Players => Some(&Operand::PlayerId),
            Self::Hash => None,
        }
    }
}

/// What must hold of an operand, as in SQL.
#[derive(Clone, Debug)]
pub struct Predicate {
    /// Whose value.
    pub operand: Operand,
    /// How it is compared.
    pub test: Test,
    /// With what: columns of one row, of the operand's type.
    pub literals: Vec<ArrayRef>,
}

impl PartialEq for Predicate {
    fn eq(&self, other: &Self) -> bool {
        let literals = || self.literals.iter().zip(&other.literals).all(|(one, other)| one.as_ref() == other.as_ref());
        self.operand == other.operand
            && self.test == other.test
            && self.literals.len() == other.literals.len()
            && literals()
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
    /// Whether the row stands for all groups of its bucket that are not kept by themselves.
    IsOther,
}

/// A width of a rollup's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Milliseconds.
    pub bucket_ms: i64,
    /// Buckets that began longer ago are dropped, milliseconds; `None`: none ever is.
    pub retention_ms: Option<u64>,
}

/// A rollup's definition, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its number.
    pub id: RollupId,
    /// Its table's name.
    pub name: String,
    /// Widths of its buckets, the narrowest first; each is a multiple of the one before.
    pub tiers: Vec<Tier>,
    /// Only events of these types count.
    pub event_types: Option<Vec<String>>,
    /// Only events of which all these hold count.
    pub predicates: Vec<Predicate>,
    /// What makes a group, beside the bucket.
    pub groups: Vec<Group>,
    /// Of a bucket at most so many groups are kept by themselves.
    pub groups_max: Option<usize>,
    /// What becomes of a player's part when the player is forgotten.
    pub erasure: Erasure,
    /// What is shown of a group.
    pub aggregates: Vec<Aggregate>,
    /// The table's columns in order.
    pub columns: Vec<(String, Shown)>,
    /// What is stored of a group.
    pub(super) parts: Vec<Part>,
    /// For each aggregate the part that it is read from.
    pub(super) part_places: Vec<Option<usize>>,
}

/// Why a definition cannot be kept.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRollup {
    /// The bucket's width is out of range.
    #[error("a bucket of {0} ms; it must be 1 to {BUCKET_MS_MAX} (366 days)")]
    Bucket(i64),
    /// Too many tiers, or none.
    #[error("{0} tiers; it must be 1 to {ROLLUP_TIERS_MAX}")]
    Tiers(usize),
    /// A tier that cannot be made from the one before.
    #[error("tiers of {0} ms and {1} ms: each must be a multiple of the one before, and wider")]
    TierWidths(i64, i64),
    /// A tier that would drop a bucket before it is over.
    #[error("a retention of {retention_ms} ms for buckets of {bucket_ms} ms; it must be at least as long as one")]
    Retention {
        /// The bucket's width.
        bucket_ms: i64,
        /// The retention.
        retention_ms: u64,
    },
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
    #[error(
        "column {0:?} cannot be a group: floats and times have no exact groups; group floats by number_bucket(width, x)"
    )]
    Group(String),
    /// A group of ranges that cannot be one.
    #[error("column {0:?}: ranges of numbers need an integer or a float, and a finite width of that type above 0")]
    Width(String),
    /// An aggregate that cannot be kept over its operand.
    #[error("column {column:?}: {reason}")]
    Aggregate {
        /// Its column.
        column: String,
        /// Why.
        reason: &'static str,
    },
    /// Too many predicates or literals.
    #[error("{0} predicates or literals of one; it must be at most {ROLLUP_PREDICATES_MAX}")]
    Predicates(usize),
    /// A predicate whose literals do not fit its column.
    #[error("a predicate on {0}: it needs literals of the column's type, one for a comparison")]
    Predicate(String),
    /// The bound of groups is out of range.
    #[error("max_groups is {0}; it must be at most {ROLLUP_GROUPS_MAX}")]
    GroupsMax(u64),
    /// What cannot be taken out again.
    #[error("erasure = 'subtract': {0} cannot be taken out of what is kept; declare 'recompute' or 'keep'")]
    Subtract(String),
    /// A player's own groups go anyhow.
    #[error("erasure cannot be declared of groups by player_id: those of a forgotten player always go")]
    ErasureByPlayer,
    /// Groups that follow their player are not bounded.
    #[error("max_groups cannot bound groups by player_id: their cells follow the players")]
    GroupsByPlayer,
}

/// A bucket is at most this wide: 366 days.
pub const BUCKET_MS_MAX: i64 = 366 * 86_400_000;

/// The column of a rollup that bounds its groups, where a row is not one group alone.
const IS_OTHER: &str = "is_other";

impl Definition {
    /// Reads a definition as it is stored.
    ///
    /// # Errors
    /// Says why it cannot be kept; the same everywhere.
    pub fn parse(rollup: &Rollup) -> Result<Self, InvalidRollup> {
        let tiers = tiers(&rollup.tiers)?;
        let (mut groups, mut aggregates, mut columns) = (Vec::new(), Vec::new(), Vec::<(String, Shown)>::new());
        for column in &rollup.columns {
            let shown = match &column.kind {
                None | Some(column::Kind::Bucket(_)) => Shown::Bucket,
                Some(column::Kind::Group(found)) => {
                    groups.push(parse_group(&column.name, found)?);
                    Shown::Group(groups.len() - 1)
                }
                Some(column::Kind::Aggregate(found)) => {
                    let refused = |reason| InvalidRollup::Aggregate { column: column.name.clone(), reason };
                    aggregates.push(parse_aggregate(found).map_err(refused)?);
                    Shown::Aggregate(aggregates.len() - 1)
                }
            };
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
        let groups_max = groups_max(rollup.groups_max, &groups)?;
        if groups_max.is_some() {
            columns.push((IS_OTHER.to_owned(), Shown::IsOther));
        }
        for (place, (name, _)) in columns.iter().enumerate() {
            if columns[..place].iter().any(|(before, _)| before == name) {
                return Err(InvalidRollup::Name(name.clone()));
            }
        }
        if rollup.predicates.len() > ROLLUP_PREDICATES_MAX {
            return Err(InvalidRollup::Predicates(rollup.predicates.len()));
        }
        let predicates = rollup.predicates.iter().map(parse_predicate).collect::<Result<_, _>>()?;
        let event_types = Some(rollup.event_types.clone()).filter(|types| !types.is_empty());
        let mut parts = Vec::new();
        let mut place = |part: Part| {
            parts.iter().position(|known| *known == part).unwrap_or_else(|| {
                parts.push(part);
                parts.len() - 1
            })
        };
        let part_places = aggregates.iter().map(|aggregate| aggregate.part().map(&mut place)).collect();
        let (id, name, erasure) = (RollupId(rollup.id), rollup.name.clone(), rollup.erasure());
        let definition = Self {
            id,
            name,
            tiers,
            event_types,
            predicates,
            groups,
            groups_max,
            erasure,
            aggregates,
            columns,
            parts,
            part_places,
        };
        definition.check_erasure()?;
        Ok(definition)
    }

    /// Reads a definition that a shard keeps.
    pub(crate) fn of_row(rollup: &Rollup) -> Result<Self, Error> {
        Self::parse(rollup).map_err(|error| Error::row("rollup", error))
    }

    fn check_erasure(&self) -> Result<(), InvalidRollup> {
        if self.erasure != Erasure::Keep && self.groups_by_player() {
            return Err(InvalidRollup::ErasureByPlayer);
        }
        if self.erasure != Erasure::Subtract {
            return Ok(());
        }
        if self.groups_max.is_some() {
            return Err(InvalidRollup::Subtract("what was folded into others, as max_groups does,".to_owned()));
        }
        let stays = |shown: &Shown| match shown {
            Shown::Aggregate(place) => self.aggregates[*place].part().is_some_and(|part| !part.subtracts()),
            _ => false,
        };
        match self.columns.iter().find(|(_, shown)| stays(shown)) {
            Some((name, _)) => Err(InvalidRollup::Subtract(format!("column {name:?}"))),
            None => Ok(()),
        }
    }

    /// The width of the widest buckets, milliseconds.
    pub(super) fn widest_ms(&self) -> i64 {
        self.tiers.last().map_or(1, |tier| tier.bucket_ms)
    }

    /// Whether the player is one of the groups: such cells follow the player's token.
    pub fn groups_by_player(&self) -> bool {
        self.groups.iter().any(|group| group.operand == Operand::PlayerId)
    }

    /// What is stored in the cell of a place.
    pub(super) fn parts_at(&self, place: &[u8]) -> &[Part] {
        if cell::is_sum(place) { &[Part::Hash] } else { &self.parts }
    }

    /// Keys of a tier's cells.
    pub(super) fn cells(&self, keyspace: Keyspace, tier: usize) -> Range<Vec<u8>> {
        // A rollup has at most `ROLLUP_TIERS_MAX` tiers.
        key::rollup_tier(keyspace, self.id, tier as u8)
    }

    /// Keys of a tier's cells of players with this token, if the rollup groups by player.
    pub(crate) fn cells_of(&self, keyspace: Keyspace, tier: usize, token: Token) -> Range<Vec<u8>> {
        key::rollup_cells_of(keyspace, self.id, tier as u8, token)
    }

    /// The name of a tier's table.
    pub fn table(&self, tier: usize) -> String {
        table_name(&self.name, tier, self.tiers[tier].bucket_ms)
    }
}

fn tiers(found: &[rollup::Tier]) -> Result<Vec<Tier>, InvalidRollup> {
    if !(1..=ROLLUP_TIERS_MAX).contains(&found.len()) {
        return Err(InvalidRollup::Tiers(found.len()));
    }
    let mut tiers: Vec<Tier> = Vec::new();
    for rollup::Tier { bucket_ms, retention_ms, .. } in found {
        if !(1..=BUCKET_MS_MAX).contains(bucket_ms) {
            return Err(InvalidRollup::Bucket(*bucket_ms));
        }
        if let Some(before) = tiers.last()
            && (bucket_ms % before.bucket_ms != 0 || *bucket_ms == before.bucket_ms)
        {
            return Err(InvalidRollup::TierWidths(before.bucket_ms, *bucket_ms));
        }
        let (bucket_ms, retention_ms) = (*bucket_ms, *retention_ms);
        if (1..bucket_ms.unsigned_abs()).contains(&retention_ms) {
            return Err(InvalidRollup::Retention { bucket_ms, retention_ms });
        }
        tiers.push(Tier { bucket_ms, retention_ms: Some(retention_ms).filter(|ms| *ms > 0) });
    }
    Ok(tiers)
}

fn groups_max(found: u64, groups: &[Group]) -> Result<Option<usize>, InvalidRollup> {
    if found == 0 {
        return Ok(None);
    }
    if found > ROLLUP_GROUPS_MAX {
        return Err(InvalidRollup::GroupsMax(found));
    }
    if groups.iter().any(|group| group.operand == Operand::PlayerId) {
        return Err(InvalidRollup::GroupsByPlayer);
    }
    Ok(usize::try_from(found).ok())
}

fn operand(found: Option<&rollup::Operand>) -> Operand {
    match found.and_then(|found| found.column.as_ref()) {
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

fn parse_group(name: &str, found: &rollup::Group) -> Result<Group, InvalidRollup> {
    let operand = operand(found.operand.as_ref());
    let width = match (found.width, operand.column_type()) {
        (None, Some(ColumnType::Text | ColumnType::Int | ColumnType::Bool)) => None,
        (None, _) => return Err(InvalidRollup::Group(name.to_owned())),
        (Some(group::Width::IntWidth(width)), Some(ColumnType::Int)) if width > 0 => Some(Width::Int(width)),
        (Some(group::Width::FloatWidth(width)), Some(ColumnType::Float)) if width > 0.0 && width.is_finite() => {
            Some(Width::Float(width))
        }
        (Some(_), _) => return Err(InvalidRollup::Width(name.to_owned())),
    };
    Ok(Group { operand, width })
}

fn parse_aggregate(found: &rollup::Aggregate) -> Result<Aggregate, &'static str> {
    let over = found.operand.as_ref().map(|found| operand(Some(found)));
    let function = found.function();
    if function == Function::Count {
        return Ok(Aggregate::Count(over));
    }
    let over = over.ok_or("the aggregate has no argument")?;
    let is_number = matches!(over.column_type(), Some(ColumnType::Int | ColumnType::Float));
    let is_time = over.column_type().is_none();
    let nulls = if found.skips_nulls { Nulls::Skipped } else { Nulls::Taken };
    match function {
        Function::CountDistinct if over == Operand::PlayerId => Ok(Aggregate::DistinctPlayers),
        Function::CountDistinct => Err("only count(distinct player_id) is kept; other distinct values are not"),
        Function::Sum if is_number => Ok(Aggregate::Sum(over)),
        Function::Avg if is_number => Ok(Aggregate::Avg(over)),
        Function::Sum | Function::Avg => Err("sum and avg need a number"),
        Function::Min if is_number || is_time => Ok(Aggregate::Min(over)),
        Function::Max if is_number || is_time => Ok(Aggregate::Max(over)),
        Function::Quantile if !is_number => Err("a quantile needs a number"),
        Function::Quantile if !(0.0..=1.0).contains(&found.quantile) => Err("a quantile is 0 to 1"),
        Function::Quantile => Ok(Aggregate::Quantile(over, found.quantile)),
        Function::First | Function::Last if over == Operand::PlayerId => {
            Err("the first or last player would be named for ever, also once forgotten; group by player_id instead")
        }
        Function::First => Ok(Aggregate::First(over, nulls)),
        Function::Last => Ok(Aggregate::Last(over, nulls)),
        _ => Err("min and max need a number or a time"),
    }
}

fn parse_predicate(found: &rollup::Predicate) -> Result<Predicate, InvalidRollup> {
    let (operand, test) = (operand(found.operand.as_ref()), found.test());
    if found.literals.len() > ROLLUP_PREDICATES_MAX {
        return Err(InvalidRollup::Predicates(found.literals.len()));
    }
    let refused = || InvalidRollup::Predicate(format!("{operand:?}"));
    let data_type = operand.column().data_type();
    let literals = found.literals.iter().map(|literal| literal_column(literal, &data_type));
    let literals = literals.collect::<Option<Vec<_>>>().ok_or_else(refused)?;
    let fits = match test {
        Test::Is | Test::IsNot => !literals.is_empty(),
        Test::Less | Test::AtMost | Test::Greater | Test::AtLeast => literals.len() == 1,
        Test::IsNull | Test::IsNotNull => literals.is_empty(),
    };
    if fits { Ok(Predicate { operand, test, literals }) } else { Err(refused()) }
}

/// A literal as a column of one row, if it is of this type.
fn literal_column(found: &rollup::Literal, data_type: &DataType) -> Option<ArrayRef> {
    use std::sync::Arc;
    let column: ArrayRef = match (found.kind.as_ref()?, data_type) {
        (literal::Kind::Bool(value), _) => Arc::new(BooleanArray::from(vec![*value])),
        (literal::Kind::Int(value), DataType::Timestamp(..)) => Arc::new(TimestampMillisecondArray::from(vec![*value])),
        (literal::Kind::Int(value), _) => Arc::new(Int64Array::from(vec![*value])),
        (literal::Kind::Float(value), _) => Arc::new(Float64Array::from(vec![*value])),
        (literal::Kind::Text(value), _) => Arc::new(StringViewArray::from(vec![value.as_str()])),
    };
    Some(column).filter(|column| column.data_type() == data_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: column::Kind) -> rollup::Column {
        rollup::Column { name: name.to_owned(), kind: Some(kind) }
    }

    fn field(field: Field) -> rollup::Operand {
        rollup::Operand { column: Some(operand::Column::Field(field.into())) }
    }

    fn property(name: &str, kind: rollup::PropertyType) -> rollup::Operand {
        let property = rollup::Property { name: name.to_owned(), r#type: kind.into() };
        rollup::Operand { column: Some(operand::Column::Property(property)) }
    }

    fn bucket() -> rollup::Column {
        column("bucket", column::Kind::Bucket(rollup::Bucket {}))
    }

    fn of(function: Function, operand: Option<rollup::Operand>) -> rollup::Column {
        let aggregate = rollup::Aggregate { function: function.into(), operand, ..Default::default() };
        column("n", column::Kind::Aggregate(aggregate))
    }

    fn grouped(name: &str, operand: rollup::Operand, width: Option<group::Width>) -> rollup::Column {
        column(name, column::Kind::Group(rollup::Group { operand: Some(operand), width }))
    }

    fn rollup(widths_ms: &[i64], columns: Vec<rollup::Column>) -> Rollup {
        let tiers =
            widths_ms.iter().map(|bucket_ms| rollup::Tier { bucket_ms: *bucket_ms, ..Default::default() }).collect();
        Rollup { version: 1, id: 1, name: "r".into(), tiers, columns, ..Default::default() }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_a_reason() {
        let parse = |bucket_ms, columns| Definition::parse(&rollup(&[bucket_ms], columns));
        assert!(parse(3_600_000, vec![bucket(), of(Function::Count, None)]).is_ok());
        assert_eq!(parse(0, vec![bucket(), of(Function::Count, None)]), Err(InvalidRollup::Bucket(0)));
        assert_eq!(parse(3_600_000, vec![of(Function::Count, None)]), Err(InvalidRollup::Buckets(0)));
        let group = grouped("at", field(Field::EventTime), None);
        assert!(matches!(parse(3_600_000, vec![bucket(), group]), Err(InvalidRollup::Group(_))));
        let group = grouped("who", field(Field::PlayerId), None);
        assert_eq!(parse(3_600_000, vec![bucket(), group]), Err(InvalidRollup::NoAggregate));
        for (function, operand) in [
            (Function::Sum, Field::EventType),
            (Function::Max, Field::PlayerId),
            (Function::CountDistinct, Field::EventType),
            (Function::Quantile, Field::EventTime),
            (Function::First, Field::PlayerId),
            (Function::Last, Field::PlayerId),
        ] {
            let columns = vec![bucket(), of(function, Some(field(operand)))];
            assert!(matches!(parse(3_600_000, columns), Err(InvalidRollup::Aggregate { .. })), "{function:?}");
        }
        let twice = vec![bucket(), of(Function::Count, None), of(Function::Count, None)];
        assert_eq!(parse(3_600_000, twice), Err(InvalidRollup::Name("n".into())));
    }

    #[test]
    fn each_tier_is_a_multiple_of_the_one_before() {
        let parse = |widths_ms: &[i64]| {
            let parsed = Definition::parse(&rollup(widths_ms, vec![bucket(), of(Function::Count, None)]));
            parsed.map(|definition| (0..widths_ms.len()).map(|tier| definition.table(tier)).collect::<Vec<_>>())
        };
        let (minute, hour, day) = (60_000, 3_600_000, 86_400_000);
        assert_eq!(parse(&[minute, hour, day]).expect("valid"), ["r", "r_1h", "r_1d"]);
        assert_eq!(parse(&[250, 1_500, 15 * minute, 7 * day]).expect("valid"), ["r", "r_1500ms", "r_15m", "r_7d"]);
        assert_eq!(parse(&[]), Err(InvalidRollup::Tiers(0)));
        assert_eq!(parse(&[1, 2, 4, 8, 16]), Err(InvalidRollup::Tiers(5)));
        assert_eq!(parse(&[hour, minute]), Err(InvalidRollup::TierWidths(hour, minute)));
        assert_eq!(parse(&[hour, hour]), Err(InvalidRollup::TierWidths(hour, hour)));
        assert_eq!(parse(&[40, 60]), Err(InvalidRollup::TierWidths(40, 60)));
    }

    #[test]
    fn ranges_and_bounds_of_groups_are_checked() {
        use rollup::PropertyType::{Float, Int, Text};
        let parse = |operand, width, groups_max| {
            let columns = vec![bucket(), grouped("g", operand, width), of(Function::Count, None)];
            Definition::parse(&Rollup { groups_max, ..rollup(&[1_000], columns) })
        };
        let ints = |width| Some(group::Width::IntWidth(width));
        let floats = |width| Some(group::Width::FloatWidth(width));
        assert!(parse(property("x", Int), ints(10), 5).is_ok() && parse(property("x", Float), floats(0.5), 0).is_ok());
        for (operand, width) in [
            (property("x", Int), ints(0)),
            (property("x", Int), floats(1.0)),
            (property("x", Float), floats(f64::INFINITY)),
            (property("x", Float), floats(-1.0)),
            (property("x", Text), ints(1)),
        ] {
            assert_eq!(parse(operand, width, 0), Err(InvalidRollup::Width("g".into())), "{width:?}");
        }
        assert_eq!(parse(field(Field::PlayerId), None, 5), Err(InvalidRollup::GroupsByPlayer));
        assert_eq!(parse(field(Field::EventType), None, 1_000_001), Err(InvalidRollup::GroupsMax(1_000_001)));
    }

    /// Sum and average, and all quantiles of one property, are stored once.
    #[test]
    fn what_aggregates_share_is_stored_once() {
        let x = || Some(property("x", rollup::PropertyType::Int));
        let named = |name: &str, column: rollup::Column| rollup::Column { name: name.to_owned(), ..column };
        let columns = vec![
            bucket(),
            named("a", of(Function::Count, None)),
            named("b", of(Function::Sum, x())),
            named("c", of(Function::Avg, x())),
            named("d", of(Function::Quantile, x())),
            named("e", of(Function::Quantile, x())),
        ];
        let definition = Definition::parse(&rollup(&[1_000], columns)).expect("valid");
        assert_eq!(definition.part_places, [None, Some(0), Some(0), Some(1), Some(1)]);
    }

    #[test]
    fn predicates_need_literals_of_their_column() {
        let parse = |operand, test: Test, literals: Vec<literal::Kind>| {
            let literals = literals.into_iter().map(|kind| rollup::Literal { kind: Some(kind) }).collect();
            let predicate = rollup::Predicate { operand: Some(operand), test: test.into(), literals };
            let rollup = rollup(&[1_000], vec![bucket(), of(Function::Count, None)]);
            Definition::parse(&Rollup { predicates: vec![predicate], ..rollup })
        };
        let x = || property("x", rollup::PropertyType::Int);
        let int = literal::Kind::Int;
        assert!(parse(x(), Test::Is, vec![int(1), int(2)]).is_ok() && parse(x(), Test::IsNull, vec![]).is_ok());
        assert!(parse(field(Field::EventTime), Test::Less, vec![int(1)]).is_ok());
        for (test, literals) in [
            (Test::Less, vec![int(1), int(2)]),
            (Test::Is, vec![]),
            (Test::IsNull, vec![int(1)]),
            (Test::Is, vec![literal::Kind::Float(1.0)]),
            (Test::Is, vec![literal::Kind::Text("1".into())]),
        ] {
            assert!(matches!(parse(x(), test, literals), Err(InvalidRollup::Predicate(_))), "{test:?}");
        }
    }
}
