//! Merges adjacent segments into one, a batch of each at a time: what is in memory does not grow with them.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Int64Array, StringViewArray, new_null_array},
    compute::{filter_record_batch, interleave_record_batch},
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use galoo_proto::{Hlc, SegmentId, limits::PROPERTIES_MAX, record};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::{
    FORMAT_VERSION, PropertyTag, Step, has_file, names,
    read::{SegmentFile, visible},
    write::{FileWriter, Packing},
};
use crate::{Error, Result, erasure::Erasures, view::extra_members};

/// Rows that are read of an input, and written, at a time, at most.
const BATCH_ROWS_MAX: usize = 8_192;
/// Values of all inputs' batches together, at most: fewer rows where there are many columns.
const BATCH_VALUES_MAX: usize = 16 << 20;

/// The columns of a merged segment.
struct Columns {
    schema: SchemaRef,
    /// Properties that have no column of their own: they are beyond the limit, and go to `extra`.
    others: Vec<String>,
}

impl Columns {
    /// All inputs' columns: those that every event has, then properties by first appearance.
    fn of(inputs: &[Arc<SegmentFile>]) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        let (mut properties, mut others): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
        let mut has_extra = false;
        for field in inputs.iter().flat_map(|input| input.schema().fields()) {
            if field.name() == names::EXTRA {
                has_extra = true;
            } else if let Some(property) = PropertyTag::property(field.name()) {
                if !properties.contains(&property) && properties.len() as u64 >= PROPERTIES_MAX {
                    if !others.iter().any(|other| other == property) {
                        others.push(property.to_owned());
                    }
                    continue;
                }
                if !properties.contains(&property) {
                    properties.push(property);
                }
            }
            if field.name() != names::EXTRA && !fields.iter().any(|known| known.name() == field.name()) {
                fields.push(field.as_ref().clone());
            }
        }
        // A segment has the columns that every event has in front.
        if has_extra || !others.is_empty() {
            fields.push(Field::new(names::EXTRA, DataType::Utf8View, true));
        }
        Self { schema: Arc::new(Schema::new(fields)), others }
    }

    /// Gives an input's batch these columns.
    fn align(&self, found: &RecordBatch) -> Result<RecordBatch> {
        let rows = found.num_rows();
        let column = |field: &Arc<Field>| -> Result<ArrayRef> {
            if field.name() == names::EXTRA && !self.others.is_empty() {
                return extra_members(found, &self.others);
            }
            let stored = found.column_by_name(field.name()).cloned();
            Ok(stored.unwrap_or_else(|| new_null_array(field.data_type(), rows)))
        };
        let arrays = self.schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(self.schema.clone(), arrays)?)
    }
}

/// The columns that events are in order of.
struct Order {
    tokens: Int64Array,
    players: StringViewArray,
    times: Int64Array,
    seqs: Int64Array,
}

impl Order {
    fn of(batch: &RecordBatch) -> Result<Self> {
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column.ok_or_else(|| Error::row("segment", format!("column {name:?} is missing")))
        };
        let int = |name: &str| Ok::<_, Error>(column(name)?.as_primitive::<Int64Type>().clone());
        Ok(Self {
            tokens: int(names::TOKEN)?,
            players: column(names::PLAYER_ID)?.as_string_view().clone(),
            times: int(names::EVENT_TIME)?,
            seqs: int(names::SEQ)?,
        })
    }

    fn at(&self, row: usize) -> (u64, &str, i64, u64) {
        let (token, seq) = (self.tokens.value(row).cast_unsigned(), self.seqs.value(row).cast_unsigned());
        (token, self.players.value(row), self.times.value(row), seq)
    }
}

/// What of segments is written anew.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Events from this time on.
    pub from_ms: i64,
    /// But for those that are hidden, by commands up to a stamp.
    pub hidden: Option<(Hlc, Arc<Erasures>)>,
}

impl Kept {
    /// Everything.
    pub const ALL: Self = Self { from_ms: i64::MIN, hidden: None };

    /// Returns the rows of a batch that are kept.
    fn of(&self, batch: RecordBatch, times: &Int64Array) -> Result<RecordBatch> {
        let is_kept = |time: i64| time >= self.from_ms;
        let in_time = if times.values().iter().copied().all(is_kept) {
            batch
        } else {
            filter_record_batch(&batch, &BooleanArray::from_unary(times, is_kept))?
        };
        match &self.hidden {
            Some((_, hidden)) if !hidden.is_empty() => Ok(filter_record_batch(&in_time, &visible(hidden, &in_time)?)?),
            _ => Ok(in_time),
        }
    }

    /// Whether all of a segment is kept.
    fn keeps(&self, record: &record::Segment) -> bool {
        let hides = |(_, hidden): &(Hlc, Arc<Erasures>)| !hidden.in_segment(record).is_empty();
        record.time_min_ms >= self.from_ms && !self.hidden.as_ref().is_some_and(hides)
    }
}

/// The rows of a segment that are kept, a batch at a time.
struct Batches<'k> {
    batches: ParquetRecordBatchReader,
    kept: &'k Kept,
}

impl<'k> Batches<'k> {
    fn open(file: &SegmentFile, rows: usize, kept: &'k Kept) -> Result<Self> {
        let (blocks, metadata) = file.reader();
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(blocks, metadata);
        Ok(Self { batches: builder.with_batch_size(rows).build()?, kept })
    }

    /// Returns the next rows, at least one; `None` at the end.
    fn next(&mut self, columns: &Columns) -> Result<Option<(RecordBatch, Order)>> {
        loop {
            let Some(batch) = self.batches.next().transpose()? else { return Ok(None) };
            let batch = columns.align(&batch)?;
            let times = Order::of(&batch)?.times;
            let batch = self.kept.of(batch, &times)?;
            if batch.num_rows() > 0 {
                let order = Order::of(&batch)?;
                return Ok(Some((batch, order)));
            }
        }
    }
}

/// One segment, from its next row on.
struct Input<'k> {
    batches: Batches<'k>,
    batch: RecordBatch,
    order: Order,
    row: usize,
}

impl<'k> Input<'k> {
    /// Begins with a segment; `None` when nothing of it is kept.
    fn open(mut batches: Batches<'k>, columns: &Columns) -> Result<Option<Self>> {
        let Some((batch, order)) = batches.next(columns)? else { return Ok(None) };
        Ok(Some(Self { batches, batch, order, row: 0 }))
    }

    /// Goes on to the next batch; returns false at the end.
    fn refill(&mut self, columns: &Columns) -> Result<bool> {
        let Some((batch, order)) = self.batches.next(columns)? else { return Ok(false) };
        (self.batch, self.order, self.row) = (batch, order, 0);
        Ok(true)
    }

    fn head(&self) -> (u64, &str, i64, u64) {
        self.order.at(self.row)
    }
}

/// Writes the segment that holds what is kept of adjacent segments, and returns its record; `None` when it was cancelled. There is no file when no event is left.
///
/// `pace` is asked before each batch, and may take its time.
pub(crate) fn merge(
    inputs: &[(record::Segment, Option<Arc<SegmentFile>>)],
    path: &Path,
    id: SegmentId,
    kept: &Kept,
    pace: &mut dyn FnMut() -> Step,
) -> Result<Option<record::Segment>> {
    let files: Vec<_> = inputs.iter().filter_map(|(_, file)| file.clone()).collect();
    let columns = Columns::of(&files);
    let records = || inputs.iter().map(|(record, _)| record);
    let live = || records().filter(|record| has_file(record));
    let players = records().map(|record| record.players).sum::<u64>();
    let mut writer = FileWriter::create(path, &columns.schema, Packing::Merged { players })?;
    let rows = match write_all(&mut writer, &files, &columns, kept, pace) {
        Ok(Some(rows)) => rows,
        ended => {
            writer.cancel()?;
            return ended.map(|_| None);
        }
    };
    let (file_bytes, block_crcs) =
        if rows > 0 { writer.finish()? } else { writer.cancel().map(|()| (0, Vec::new()))? };
    let before: u64 = records().map(|record| record.rows).sum();
    let keeps_all = live().all(|record| kept.keeps(record));
    assert!(rows == before || (rows < before && !keeps_all), "INV-S5: {rows} rows of segments with {before}");
    let event_bytes = u128::from(records().map(|record| record.event_bytes).sum::<u64>());
    let left_bytes = event_bytes * u128::from(rows) / u128::from(before.max(1));
    Ok(Some(record::Segment {
        version: FORMAT_VERSION,
        id: id.0,
        first_chunk: records().map(|record| record.first_chunk).min().unwrap_or_default(),
        last_chunk: records().map(|record| record.last_chunk).max().unwrap_or_default(),
        first_seq: records().map(|record| record.first_seq).min().unwrap_or_default(),
        last_seq: records().map(|record| record.last_seq).max().unwrap_or_default(),
        rows,
        time_min_ms: live().map(|record| record.time_min_ms.max(kept.from_ms)).min().unwrap_or_default(),
        time_max_ms: live().map(|record| record.time_max_ms).max().unwrap_or_default(),
        token_min: live().map(|record| record.token_min).min().unwrap_or_default(),
        token_max: live().map(|record| record.token_max).max().unwrap_or_default(),
        file_bytes,
        block_crcs,
        players,
        event_bytes: u64::try_from(left_bytes).unwrap_or(u64::MAX),
        gone: records().map(|record| record.gone).sum::<u64>() + before - rows,
        clean_hlc: match &kept.hidden {
            Some((hlc, _)) => hlc.0,
            None => live().map(|record| record.clean_hlc).min().unwrap_or_default(),
        },
    }))
}

/// Writes all rows in order and returns how many they are; `None` when it was cancelled.
fn write_all(
    writer: &mut FileWriter,
    files: &[Arc<SegmentFile>],
    columns: &Columns,
    kept: &Kept,
    pace: &mut dyn FnMut() -> Step,
) -> Result<Option<u64>> {
    let values = columns.schema.fields().len() * files.len();
    let batch_rows = (BATCH_VALUES_MAX / values.max(1)).clamp(1, BATCH_ROWS_MAX);
    let mut open = Vec::with_capacity(files.len());
    for file in files {
        open.extend(Input::open(Batches::open(file, batch_rows, kept)?, columns)?);
    }
    let mut rows = 0;
    while !open.is_empty() {
        if pace() == Step::Cancel {
            return Ok(None);
        }
        let batch = next_batch(&mut open, batch_rows)?;
        rows += batch.num_rows() as u64;
        writer.write(&batch)?;
        let mut kept = Vec::with_capacity(open.len());
        for mut input in open {
            if input.row < input.batch.num_rows() || input.refill(columns)? {
                kept.push(input);
            }
        }
        open = kept;
    }
    Ok(Some(rows))
}

/// Takes the next rows in order: until there are enough, or an input's batch ends.
fn next_batch(open: &mut [Input<'_>], batch_rows: usize) -> Result<RecordBatch> {
    let mut places: Vec<(usize, usize)> = Vec::with_capacity(batch_rows);
    while places.len() < batch_rows {
        let (mut least, mut next) = (0, None);
        for at in 1..open.len() {
            if open[at].head() < open[least].head() {
                (least, next) = (at, Some(least));
            } else if next.is_none_or(|next: usize| open[at].head() < open[next].head()) {
                next = Some(at);
            }
        }
        // Rows of this input up to the next one's head.
        let (from, rows) = (open[least].row, open[least].batch.num_rows());
        let mut row = from + 1;
        while row < rows
            && row - from + places.len() < batch_rows
            && next.is_none_or(|next| open[least].order.at(row) < open[next].head())
        {
            row += 1;
        }
        places.extend((from..row).map(|row| (least, row)));
        open[least].row = row;
        if row == rows {
            break;
        }
    }
    let order = |(input, row): &(usize, usize)| open[*input].order.at(*row);
    assert!(places.is_sorted_by_key(order), "INV-S5: a segment is not in order");
    let batches: Vec<_> = open.iter().map(|input| &input.batch).collect();
    Ok(interleave_record_batch(&batches, &places)?)
}
