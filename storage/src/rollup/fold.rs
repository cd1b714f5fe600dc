//! Folding: the events of one source go into the partials of one rollup, or of several in one pass.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

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
    bound::add,
    bucket_start,
    cell::{Cell, Value, push_bool, push_int, push_null, push_text, start_place, sum_place},
    definition::{Nulls, Part},
    float_range, int_range_start,
    partial::Partial,
};
use crate::{
    Result,
    view::{Column, EventFilter, Source, View},
};

/// Adds those of a source's events that pass a filter to the partials of rollups, all of which count the same
/// ([`super::counted`]): the source is read once.
///
/// Returns false, with some of them missing, when the cells of all take more than `bytes_max` in memory.
pub(super) fn fold(
    rollups: &mut [(&Definition, &mut Partial)],
    counted: &View,
    source: &Source,
    filter: EventFilter,
    bytes_max: usize,
) -> Result<bool> {
    let event_types = types_of_all(rollups);
    let mut columns = vec![Column::EventTime, Column::Seq];
    let folds: Vec<_> =
        rollups.iter().map(|(definition, _)| Fold::new(definition, event_types.as_deref(), &mut columns)).collect();
    let (columns, filter) = (columns.into(), Arc::new(EventFilter { event_types, ..filter }));
    // Bounded now and then, so that more groups than are kept do not pile up.
    let mut bound_at: Vec<_> = rollups.iter().map(|(_, partial)| partial.len()).collect();
    for batch in counted.source_batches(source, &columns, &filter)? {
        let batch = batch?;
        let values: Vec<_> = batch.columns().iter().map(Values::of).collect();
        for ((fold, (definition, partial)), bound_at) in folds.iter().zip(rollups.iter_mut()).zip(&mut bound_at) {
            fold.take(&batch, &values, partial)?;
            if definition.groups_max.is_some_and(|groups_max| partial.len() > 2 * *bound_at + groups_max) {
                partial.bound(definition);
                *bound_at = partial.len();
            }
        }
        if bytes_max < usize::MAX
            && rollups.iter().map(|(_, partial)| partial.memory_bytes()).sum::<usize>() > bytes_max
        {
            return Ok(false);
        }
    }
    rollups.iter_mut().for_each(|(definition, partial)| partial.bound(definition));
    Ok(true)
}

/// The types of events that any of the rollups counts; `None`: of all types.
fn types_of_all(rollups: &[(&Definition, &mut Partial)]) -> Option<Vec<String>> {
    let each: Option<Vec<_>> = rollups.iter().map(|(definition, _)| definition.event_types.as_deref()).collect();
    let mut all = each?.concat();
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// What one rollup takes of a scan's columns, of which the first are the time and the sequence number.
struct Fold<'d> {
    definition: &'d Definition,
    /// Where the types stand that count, if the scan gives others too.
    types: Option<(usize, &'d [String])>,
    /// Places of all operands, each once: what an event's hash is made of.
    operands: Vec<usize>,
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
fn event_hash<'v, 'a: 'v>(
    buffer: &mut Vec<u8>,
    time_ms: i64,
    seq: i64,
    operands: impl Iterator<Item = &'v Values<'a>>,
    row: usize,
) -> u64 {
    buffer.clear();
    buffer.extend_from_slice(&time_ms.to_le_bytes());
    buffer.extend_from_slice(&seq.to_le_bytes());
    operands.for_each(|values| values.value(row).encode(buffer));
    xxh3_64(buffer)
}

impl<'d> Fold<'d> {
    /// Adds the columns that are missing to the scan's, which gives events of `scanned` types alone.
    fn new(definition: &'d Definition, scanned: Option<&[String]>, columns: &mut Vec<Column>) -> Self {
        let mut operands = Vec::new();
        let mut column_place = |column: Column| {
            columns.iter().position(|known| *known == column).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            })
        };
        let counts_all = |types: &&[String]| scanned.is_some_and(|all| all.iter().all(|one| types.contains(one)));
        let types = definition.event_types.as_deref().filter(|types| !counts_all(types));
        let types = types.map(|types| (column_place(Column::EventType), types));
        let mut place = |operand: &Operand| {
            let place = column_place(operand.column());
            // An event's hash has the first two whatever the rollup reads.
            if place > 1 && !operands.contains(&place) {
                operands.push(place);
            }
            place
        };
        let groups = definition.groups.iter().map(|group| place(&group.operand)).collect();
        let predicates = definition.predicates.iter().map(|one| place(&one.operand)).collect();
        let parts = definition.parts.iter().map(|part| part.operand().map(&mut place)).collect();
        let player = operands.iter().copied().find(|place| columns[*place] == Column::PlayerId);
        Self { definition, types, operands, groups, predicates, parts, player }
    }

    /// The rows that count; `None`: all.
    fn mask(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let mut mask: Option<BooleanArray> = self.types.map(|(place, types)| {
            let found = batch.column(place).as_string_view();
            (0..found.len()).map(|row| Some(types.iter().any(|one| one == found.value(row)))).collect()
        });
        for (predicate, place) in self.definition.predicates.iter().zip(&self.predicates) {
            let holds = predicate.holds(batch.column(*place))?;
            mask = Some(match mask {
                None => holds,
                Some(mask) => and(&mask, &holds)?,
            });
        }
        Ok(mask)
    }

    fn take(&self, batch: &RecordBatch, values: &[Values<'_>], partial: &mut Partial) -> Result<()> {
        let mask = self.mask(batch)?;
        let [Values::Time(times), Values::Int(seqs), ..] = values else { return Ok(()) };
        let player = self.player.map(|place| &values[place]);
        let (by_player, bucket_ms) = (self.definition.groups_by_player(), self.definition.tiers[0].bucket_ms);
        let (mut place, mut buffer) = (Vec::new(), Vec::new());
        let (mut last, mut token) = ("", Token::of(""));
        // Events and hashes by bucket; of events that follow each other most are in one bucket.
        let (mut sums, mut current) = (HashMap::<i64, (u64, u64)>::new(), (0, 0, 0));
        let mut put = |(bucket, events, hash): (i64, u64, u64)| {
            let sum = sums.entry(bucket).or_default();
            *sum = (sum.0 + events, sum.1.wrapping_add(hash));
        };
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
            let operands = self.operands.iter().map(|place| &values[*place]);
            let hash = event_hash(&mut buffer, time_ms, seq, operands, row);
            if current.0 != bucket && current.1 > 0 {
                put(current);
                current = (bucket, 0, 0);
            }
            current = (bucket, current.1 + 1, current.2.wrapping_add(hash));
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
        if current.1 > 0 {
            put(current);
        }
        for (bucket, (events, hash)) in sums {
            let mut accumulator = Accumulator::new(&Part::Hash);
            accumulator.add_hash(hash);
            add(&mut partial.cells, sum_place(bucket), Cell { events, parts: vec![accumulator] });
        }
        Ok(())
    }
}
