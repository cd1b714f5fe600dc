//! Partials: the aggregate of a part of one chunk or segment, in memory, by buckets of the narrowest tier.

use std::{borrow::Cow, collections::HashMap, ops::RangeInclusive, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringViewArray},
    compute::and,
    datatypes::{Float64Type, Int64Type, TimestampMillisecondType},
    record_batch::RecordBatch,
};
use galoo_proto::Token;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Definition, Operand, Width,
    accumulator::{Accumulator, Moment},
    bound::{Cells, add, bound},
    bucket_start,
    cell::{
        Cell, Value, bucket_of, cell_bytes, moved, push_bool, push_int, push_null, push_text, start_place, sum_place,
    },
    counted::Counted,
    definition::{Nulls, Part},
    float_range, int_range_start,
};
use crate::{
    Result,
    erasure::ALWAYS,
    view::{Column, EventFilter, Source, View},
};

/// Cells by place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    cells: Cells,
}

/// Columns of the scan that a fold reads: the time, the sequence number, and one for each operand.
struct Fold<'d> {
    definition: &'d Definition,
    columns: Vec<Column>,
    /// For each group, predicate and part, its operand's place among the columns.
    groups: Vec<usize>,
    predicates: Vec<usize>,
    parts: Vec<Option<usize>>,
    player: Option<usize>,
}

/// One column of a batch.
enum Values<'a> {
    Text(&'a StringViewArray),
    Int(&'a Int64Array),
    Time(&'a arrow::array::TimestampMillisecondArray),
    Float(&'a Float64Array),
    Bool(&'a BooleanArray),
}

impl<'a> Values<'a> {
    fn of(array: &'a ArrayRef) -> Self {
        use arrow::datatypes::DataType;
        match array.data_type() {
            DataType::Int64 => Self::Int(array.as_primitive::<Int64Type>()),
            DataType::Float64 => Self::Float(array.as_primitive::<Float64Type>()),
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Timestamp(..) => Self::Time(array.as_primitive::<TimestampMillisecondType>()),
            _ => Self::Text(array.as_string_view()),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Text(array) => array.is_null(row),
            Self::Int(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Float(array) => array.is_null(row),
            Self::Bool(array) => array.is_null(row),
        }
    }

    fn value(&self, row: usize) -> Value<'a> {
        match self {
            _ if self.is_null(row) => Value::Null,
            Self::Text(array) => Value::Text(Cow::Borrowed(array.value(row))),
            Self::Int(array) => Value::Int(array.value(row)),
            Self::Time(array) => Value::Int(array.value(row)),
            Self::Float(array) => Value::Float(array.value(row)),
            Self::Bool(array) => Value::Bool(array.value(row)),
        }
    }

    /// Appends the group that the row is in.
    fn push_group(&self, row: usize, width: Option<Width>, place: &mut Vec<u8>) {
        let number = match (self, width) {
            _ if self.is_null(row) => None,
            (Self::Text(array), _) => return push_text(place, array.value(row)),
            (Self::Bool(array), _) => return push_bool(place, array.value(row)),
            (Self::Int(array), Some(Width::Int(width))) => int_range_start(array.value(row), width),
            (Self::Int(array), _) => Some(array.value(row)),
            (Self::Float(array), Some(Width::Float(width))) => float_range(array.value(row), width),
            (Self::Float(_) | Self::Time(_), _) => {
                unreachable!("INV-S6: a definition with a float or a time for a group does not parse")
            }
        };
        match number {
            Some(number) => push_int(place, number),
            None => push_null(place),
        }
    }
}

/// A hash of what a rollup reads of an event, whatever else the event has.
fn event_hash(buffer: &mut Vec<u8>, time_ms: i64, seq: i64, operands: &[Values<'_>], row: usize) -> u64 {
    buffer.clear();
    buffer.extend_from_slice(&time_ms.to_le_bytes());
    buffer.extend_from_slice(&seq.to_le_bytes());
    operands.iter().for_each(|values| values.value(row).encode(buffer));
    xxh3_64(buffer)
}

impl<'d> Fold<'d> {
    fn new(definition: &'d Definition) -> Self {
        let mut columns = vec![Column::EventTime, Column::Seq];
        let mut place = |operand: &Operand| {
            let column = operand.column();
            columns.iter().position(|known| *known == column).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            })
        };
        let groups = definition.groups.iter().map(|group| place(&group.operand)).collect();
        let predicates = definition.predicates.iter().map(|one| place(&one.operand)).collect();
        let parts = definition.parts.iter().map(|part| part.operand().map(&mut place)).collect();
        let player = columns.iter().position(|column| *column == Column::PlayerId);
        Self { definition, columns, groups, predicates, parts, player }
    }

    /// The rows that count; `None`: all.
    fn mask(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let mut mask: Option<BooleanArray> = None;
        for (predicate, place) in self.definition.predicates.iter().zip(&self.predicates) {
            let holds = predicate.holds(batch.column(*place))?;
            mask = Some(match mask {
                None => holds,
                Some(mask) => and(&mask, &holds)?,
            });
        }
        Ok(mask)
    }

    fn take(&self, batch: &RecordBatch, partial: &mut Partial) -> Result<()> {
        let mask = self.mask(batch)?;
        let values: Vec<_> = batch.columns().iter().map(Values::of).collect();
        let [Values::Time(times), Values::Int(seqs), operands @ ..] = values.as_slice() else { return Ok(()) };
        let player = self.player.map(|place| &values[place]);
        let (by_player, bucket_ms) = (self.definition.groups_by_player(), self.definition.tiers[0].bucket_ms);
        let (mut place, mut buffer) = (Vec::new(), Vec::new());
        let (mut last, mut token) = ("", Token::of(""));
        let mut sums: HashMap<i64, (u64, u64)> = HashMap::new();
        for row in 0..batch.num_rows() {
            if mask.as_ref().is_some_and(|mask| !mask.value(row)) {
                continue;
            }
            if let Some(Values::Text(players)) = player
                && players.value(row) != last
            {
                last = players.value(row);
                token = Token::of(last);
            }
            let (time_ms, seq) = (times.value(row), seqs.value(row));
            let bucket = bucket_start(time_ms, bucket_ms);
            let (events, hash) = sums.entry(bucket).or_default();
            *events += 1;
            *hash = hash.wrapping_add(event_hash(&mut buffer, time_ms, seq, operands, row));
            start_place(&mut place, if by_player { token.0 } else { 0 }, bucket);
            let groups = self.definition.groups.iter().zip(&self.groups);
            groups.for_each(|(group, column)| values[*column].push_group(row, group.width, &mut place));
            let cell = match partial.cells.get_mut(place.as_slice()) {
                Some(cell) => cell,
                None => partial.cells.entry(place.clone()).or_insert_with(|| Cell::new(&self.definition.parts)),
            };
            cell.events += 1;
            let parts = self.definition.parts.iter().zip(&self.parts).zip(&mut cell.parts);
            for ((part, column), accumulator) in parts {
                let Some(values) = column.map(|column| &values[column]) else { continue };
                if let Part::First(_, nulls) | Part::Last(_, nulls) = part {
                    let seq = seq.cast_unsigned();
                    let is_taken = *nulls == Nulls::Taken || !values.is_null(row);
                    if is_taken && accumulator.may_take(time_ms, seq) {
                        accumulator.add_moment(Moment::new(time_ms, seq, values.value(row).into_owned()));
                    }
                    continue;
                }
                match values {
                    _ if values.is_null(row) => {}
                    _ if matches!(accumulator, Accumulator::Players(_)) => accumulator.add_player(token.0),
                    Values::Int(array) => accumulator.add_int(array.value(row)),
                    Values::Time(array) => accumulator.add_int(array.value(row)),
                    Values::Float(array) => accumulator.add_float(array.value(row)),
                    Values::Text(_) | Values::Bool(_) => accumulator.add_one(),
                }
            }
        }
        for (bucket, (events, hash)) in sums {
            let mut accumulator = Accumulator::new(&Part::Hash);
            accumulator.add_hash(hash);
            add(&mut partial.cells, sum_place(bucket), Cell { events, parts: vec![accumulator] });
        }
        Ok(())
    }
}

impl Partial {
    /// Adds a source's events with these sequence numbers, as [`Self::fold`] does.
    pub(super) fn fold_all(
        &mut self,
        definition: &Definition,
        shard: &Counted,
        source: &Source,
        seqs: RangeInclusive<u64>,
        bytes_max: usize,
    ) -> Result<bool> {
        let is_one = seqs.start() == seqs.end();
        let filter = EventFilter { seqs, time_ms: ALWAYS, ..EventFilter::default() };
        self.fold(definition, &shard.events, source, filter, if is_one { usize::MAX } else { bytes_max })
    }

    /// Adds those of a source's events that the rollup counts ([`super::counted`]) and that pass a filter.
    ///
    /// Returns false, with some of them missing, when the cells take more than `bytes_max` in memory.
    pub(super) fn fold(
        &mut self,
        definition: &Definition,
        counted: &View,
        source: &Source,
        filter: EventFilter,
        bytes_max: usize,
    ) -> Result<bool> {
        let fold = Fold::new(definition);
        let columns: Arc<[Column]> = fold.columns.clone().into();
        let event_types = definition.event_types.clone();
        let filter = Arc::new(EventFilter { event_types, ..filter });
        // Bounded now and then, so that more groups than are kept do not pile up.
        let mut bound_at = self.len();
        for batch in counted.source_batches(source, &columns, &filter)? {
            fold.take(&batch?, self)?;
            if let Some(groups_max) = definition.groups_max
                && self.len() > 2 * bound_at + groups_max
            {
                bound(&mut self.cells, groups_max);
                bound_at = self.len();
            }
            if bytes_max < usize::MAX && self.memory_bytes() > bytes_max {
                return Ok(false);
            }
        }
        self.bound(definition);
        Ok(true)
    }

    /// Folds groups that are too many for their bucket into one.
    pub(super) fn bound(&mut self, definition: &Definition) {
        if let Some(groups_max) = definition.groups_max {
            bound(&mut self.cells, groups_max);
        }
    }

    /// Its cells in the buckets of a tier.
    pub(super) fn of_tier(&self, definition: &Definition, tier: usize) -> Cow<'_, Self> {
        if tier == 0 {
            return Cow::Borrowed(self);
        }
        let bucket_ms = definition.tiers[tier].bucket_ms;
        let mut wider = Self::default();
        for (place, cell) in &self.cells {
            let bucket = bucket_start(bucket_of(place).unwrap_or_default(), bucket_ms);
            add(&mut wider.cells, moved(place, bucket), cell.clone());
        }
        wider.bound(definition);
        Cow::Owned(wider)
    }

    /// Adds cells of another partial: those whose place is `wanted`.
    pub(super) fn merge(&mut self, other: &Self, wanted: impl Fn(&[u8]) -> bool) {
        let others = other.cells.iter().filter(|(place, _)| wanted(place));
        others.for_each(|(place, cell)| add(&mut self.cells, place.clone(), cell.clone()));
    }

    /// Its cells, by place.
    pub(super) fn into_sorted(self) -> Vec<(Vec<u8>, Cell)> {
        let mut cells: Vec<_> = self.cells.into_iter().collect();
        cells.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        cells
    }

    /// Holds cells of different places.
    pub(super) fn of(cells: Vec<(Vec<u8>, Cell)>) -> Self {
        Self { cells: cells.into_iter().collect() }
    }

    /// Puts a cell that is not there yet.
    pub(super) fn insert(&mut self, place: Vec<u8>, cell: Cell) {
        self.cells.insert(place, cell);
    }

    /// The cell of a place.
    pub(super) fn get(&self, place: &[u8]) -> Option<&Cell> {
        self.cells.get(place)
    }

    /// Its cells, in no order.
    pub fn cells(&self) -> impl Iterator<Item = (&Vec<u8>, &Cell)> {
        self.cells.iter()
    }

    /// Bytes that it takes in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.cells.iter().map(|(place, cell)| cell_bytes(place, cell)).sum()
    }

    /// Number of cells.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}
