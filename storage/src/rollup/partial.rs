//! Partials: the aggregate of a part of one chunk or segment, in memory.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use arrow::{
    array::{Array, AsArray, BooleanArray, Float64Array, Int64Array, StringViewArray},
    datatypes::{Float64Type, Int64Type, TimestampMillisecondType},
    record_batch::RecordBatch,
};
use galoo_proto::Token;

use super::{
    Aggregate, Definition, Operand, bucket_start,
    cell::{Cell, cell_bytes, push_bool, push_int, push_null, push_text, start_place},
};
use crate::{
    Result,
    view::{Column, EventFilter, Source, View},
};

/// Cells by place.
#[derive(Clone, Debug, Default)]
pub struct Partial {
    cells: HashMap<Vec<u8>, Cell>,
}

/// Columns of the scan that a fold reads.
struct Fold<'d> {
    definition: &'d Definition,
    columns: Vec<Column>,
    /// For each group and each aggregate, its operand's place among the columns.
    groups: Vec<usize>,
    aggregates: Vec<Option<usize>>,
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
    fn of(array: &'a dyn Array) -> Self {
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

    fn push(&self, row: usize, place: &mut Vec<u8>) {
        match self {
            _ if self.is_null(row) => push_null(place),
            Self::Text(array) => push_text(place, array.value(row)),
            Self::Int(array) => push_int(place, array.value(row)),
            Self::Time(array) => push_int(place, array.value(row)),
            Self::Bool(array) => push_bool(place, array.value(row)),
            Self::Float(_) => unreachable!("INV-S6: a definition with a float for a group does not parse"),
        }
    }
}

impl<'d> Fold<'d> {
    fn new(definition: &'d Definition) -> Self {
        let mut columns = vec![Column::EventTime];
        let mut place = |operand: &Operand| {
            let column = operand.column();
            columns.iter().position(|known| *known == column).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            })
        };
        let groups = definition.groups.iter().map(&mut place).collect();
        let aggregates = definition.aggregates.iter().map(|one| one.operand().map(&mut place)).collect();
        let player = columns.iter().position(|column| *column == Column::PlayerId);
        Self { definition, columns, groups, aggregates, player }
    }

    fn take(&self, batch: &RecordBatch, partial: &mut Partial) {
        let values: Vec<_> = batch.columns().iter().map(|array| Values::of(array.as_ref())).collect();
        let (Some(Values::Time(times)), player) = (values.first(), self.player.map(|place| &values[place])) else {
            return;
        };
        let by_player = self.definition.groups_by_player();
        let mut place = Vec::new();
        let (mut last, mut token) = ("", Token::of(""));
        for row in 0..batch.num_rows() {
            if let Some(Values::Text(players)) = player
                && players.value(row) != last
            {
                last = players.value(row);
                token = Token::of(last);
            }
            let bucket = bucket_start(times.value(row), self.definition.bucket_ms);
            start_place(&mut place, if by_player { token.0 } else { 0 }, bucket);
            self.groups.iter().for_each(|group| values[*group].push(row, &mut place));
            let cell = match partial.cells.get_mut(place.as_slice()) {
                Some(cell) => cell,
                None => {
                    let new = Cell::new(&self.definition.aggregates);
                    partial.cells.entry(place.clone()).or_insert(new)
                }
            };
            let parts = self.definition.aggregates.iter().zip(&self.aggregates).zip(&mut cell.0);
            for ((aggregate, operand), accumulator) in parts {
                match operand.map(|operand| &values[operand]) {
                    None => accumulator.add_one(),
                    Some(values) if values.is_null(row) => {}
                    Some(_) if *aggregate == Aggregate::DistinctPlayers => accumulator.add_player(token.0),
                    Some(Values::Int(array)) => accumulator.add_int(array.value(row)),
                    Some(Values::Time(array)) => accumulator.add_int(array.value(row)),
                    Some(Values::Float(array)) => accumulator.add_float(array.value(row)),
                    Some(Values::Text(_) | Values::Bool(_)) => accumulator.add_one(),
                }
            }
        }
    }
}

impl Partial {
    /// Adds a source's events with these sequence numbers.
    pub fn fold(
        &mut self,
        definition: &Definition,
        view: &View,
        source: &Source,
        seqs: RangeInclusive<u64>,
    ) -> Result<()> {
        let fold = Fold::new(definition);
        let columns: Arc<[Column]> = fold.columns.clone().into();
        let event_types = definition.event_types.clone();
        let filter = Arc::new(EventFilter { seqs, event_types, ..EventFilter::default() });
        let view = view.for_rollup(definition)?;
        for batch in view.source_batches(source, &columns, &filter)? {
            fold.take(&batch?, self);
        }
        Ok(())
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
