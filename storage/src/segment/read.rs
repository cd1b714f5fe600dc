//! Reads a segment: only the pages that can hold a match, only the columns that are asked for.

use std::{
    ops::RangeInclusive,
    sync::{Arc, atomic::AtomicU64},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray},
    compute::filter_record_batch,
    datatypes::{Field, Int64Type, Schema},
    error::ArrowError,
    record_batch::RecordBatch,
};
use galoo_proto::{Seq, Token, record};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowPredicate, ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
            ParquetRecordBatchReaderBuilder, RowFilter, RowSelection, RowSelector, statistics::StatisticsConverter,
        },
    },
    bloom_filter::Sbbf,
    file::metadata::PageIndexPolicy,
};

use super::{
    PropertyTag,
    blocks::{Blocks, Origin},
    names,
    write::read_type,
};
use crate::{
    Error, Result,
    erasure::Erasures,
    properties::ColumnType,
    view::{Column, Condition, EventFilter, Shredded, all_hold},
};

/// Rows that a scan decodes at a time.
const BATCH_ROWS: usize = 8_192;

/// An open segment: its file, footer and page index.
pub(crate) struct SegmentFile {
    blocks: Blocks,
    metadata: ArrowReaderMetadata,
    /// The first and the last sequence number in it.
    seqs: (u64, u64),
    /// The first and the last event time in it.
    times_ms: (i64, i64),
}

impl SegmentFile {
    pub(super) fn open(origin: Origin, record: &record::Segment, reads: Arc<AtomicU64>) -> Result<Self> {
        let blocks = Blocks::open(origin, record, reads)?;
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let metadata = ArrowReaderMetadata::load(&blocks, options.clone())?;
        let fields = metadata.schema().fields().iter();
        let fields = fields
            .map(|field| Field::new(field.name(), read_type(field.name(), field.data_type()), field.is_nullable()));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options.with_schema(schema))?;
        Ok(Self {
            blocks,
            metadata,
            seqs: (record.first_seq, record.last_seq),
            times_ms: (record.time_min_ms, record.time_max_ms),
        })
    }

    /// Bytes that its footer and its index of pages take, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.metadata.metadata().memory_size()
    }

    /// What reads the whole file.
    pub(super) fn reader(&self) -> (Blocks, ArrowReaderMetadata) {
        (self.blocks.clone(), self.metadata.clone())
    }

    /// The file's columns, with the types that readers see.
    pub(super) fn schema(&self) -> &Arc<Schema> {
        self.metadata.schema()
    }

    /// Returns bytes of the file, checked.
    pub(crate) fn bytes(&self, offset: u64, length: usize) -> Result<bytes::Bytes> {
        self.blocks.checked(offset, length)
    }

    /// Returns false when the bloom filters show that none of the players is in the file.
    fn may_hold(&self, players: &[String]) -> Result<bool> {
        Ok(!self.held(players)?.is_empty())
    }

    /// Returns those of the players who may be in the file, by its bloom filters.
    pub(crate) fn held<'p>(&self, players: &'p [String]) -> Result<Vec<&'p String>> {
        let Some(column) = self.metadata.schema().index_of(names::PLAYER_ID).ok() else {
            return Ok(players.iter().collect());
        };
        let mut filters = Vec::new();
        for group in self.metadata.metadata().row_groups() {
            filters.push(Sbbf::read_from_column_chunk(group.column(column), &self.blocks)?);
        }
        let may_hold = |player: &&String| {
            filters.iter().any(|filter| filter.as_ref().is_none_or(|filter| filter.check(&player.as_str())))
        };
        Ok(players.iter().filter(may_hold).collect())
    }

    /// Returns the bounds of each page of an integer column that every event has; `None` where they are not known.
    fn bounds(&self, column: &str) -> Result<Vec<Option<RangeInclusive<i64>>>> {
        let metadata = self.metadata.metadata();
        let converter =
            StatisticsConverter::try_new(column, self.metadata.schema(), metadata.file_metadata().schema_descr())?;
        let (Some(columns), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else {
            return Ok(vec![None]);
        };
        let groups: Vec<_> = (0..metadata.num_row_groups()).collect();
        let mins = converter.data_page_mins(columns, offsets, &groups)?;
        let maxes = converter.data_page_maxes(columns, offsets, &groups)?;
        let (mins, maxes) = (mins.as_primitive::<Int64Type>(), maxes.as_primitive::<Int64Type>());
        let bound = |(min, max): (Option<i64>, Option<i64>)| Some(min?..=max?);
        Ok(mins.iter().zip(maxes).map(bound).collect())
    }

    /// Returns the rows of the pages whose range in an integer column `takes(min, max)`.
    fn pages(&self, column: &str, takes: impl Fn(i64, i64) -> bool) -> Result<RowSelection> {
        let metadata = self.metadata.metadata();
        let converter =
            StatisticsConverter::try_new(column, self.metadata.schema(), metadata.file_metadata().schema_descr())?;
        let mut selectors = Vec::new();
        let (Some(columns), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else {
            return Ok(RowSelection::from(vec![RowSelector::select(self.rows())]));
        };
        for (group, row_group) in metadata.row_groups().iter().enumerate() {
            let groups = [group];
            let mins = converter.data_page_mins(columns, offsets, &groups)?;
            let maxes = converter.data_page_maxes(columns, offsets, &groups)?;
            let counts = converter.data_page_row_counts(offsets, metadata.row_groups(), &groups)?;
            let Some(counts) = counts else {
                selectors.push(RowSelector::select(usize::try_from(row_group.num_rows()).unwrap_or(usize::MAX)));
                continue;
            };
            let (mins, maxes) = (mins.as_primitive::<Int64Type>(), maxes.as_primitive::<Int64Type>());
            for page in 0..counts.len() {
                let rows = usize::try_from(counts.value(page)).unwrap_or(usize::MAX);
                let known = mins.is_valid(page) && maxes.is_valid(page);
                let take = !known || takes(mins.value(page), maxes.value(page));
                selectors.push(if take { RowSelector::select(rows) } else { RowSelector::skip(rows) });
            }
        }
        Ok(RowSelection::from(selectors))
    }

    /// Returns the first and the last event time of each page that may hold events of the players.
    pub(crate) fn player_times(&self, players: &[String]) -> Result<Vec<RangeInclusive<i64>>> {
        let tokens: Vec<i64> = players.iter().map(|player| Token::of(player).0.cast_signed()).collect();
        let bounds = self.bounds(names::TOKEN)?.into_iter().zip(self.bounds(names::EVENT_TIME)?);
        let holds = |page: &Option<RangeInclusive<i64>>| {
            page.as_ref().is_none_or(|page| tokens.iter().any(|token| page.contains(token)))
        };
        let all = || i64::MIN..=i64::MAX;
        Ok(bounds.filter(|(page, _)| holds(page)).map(|(_, times)| times.unwrap_or_else(all)).collect())
    }

    fn rows(&self) -> usize {
        usize::try_from(self.metadata.metadata().file_metadata().num_rows()).unwrap_or(usize::MAX)
    }

    fn mask(&self, names: &[String]) -> ProjectionMask {
        let schema = self.metadata.schema();
        let places = names.iter().filter_map(|name| schema.index_of(name).ok());
        ProjectionMask::roots(self.metadata.metadata().file_metadata().schema_descr(), places)
    }

    /// The file's columns that a scan's columns are made from.
    fn stored_columns(&self, columns: &[Column]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for column in columns {
            match column {
                Column::PlayerId => names.push(names::PLAYER_ID.to_owned()),
                Column::EventTime => names.push(names::EVENT_TIME.to_owned()),
                Column::EventType => names.push(names::EVENT_TYPE.to_owned()),
                Column::Seq => names.push(names::SEQ.to_owned()),
                Column::IngestTime | Column::IngestHlc => names.push(names::INGEST_HLC.to_owned()),
                Column::Properties => {
                    let fields = self.metadata.schema().fields().iter().map(|field| field.name());
                    let wanted = fields.filter(|name| PropertyTag::property(name).is_some() || *name == names::EXTRA);
                    names.extend(wanted.cloned());
                }
                Column::Members(wanted) => {
                    names.extend(wanted.iter().flat_map(|property| property_columns(property)));
                    names.push(names::EXTRA.to_owned());
                }
                Column::Property { name, column_type } => {
                    use PropertyTag::{Bool, Float, Int, Json, String};
                    let tags: &[PropertyTag] = match column_type {
                        ColumnType::Bool => &[Bool],
                        ColumnType::Int => &[Int],
                        ColumnType::Float => &[Int, Float],
                        ColumnType::Text => &[Bool, Int, Float, String, Json],
                    };
                    names.extend(tags.iter().map(|tag| tag.column(name)));
                    names.push(names::EXTRA.to_owned());
                }
            }
        }
        names
    }
}

/// The names of all columns that a property can have.
fn property_columns(property: &str) -> [String; 5] {
    use PropertyTag::{Bool, Float, Int, Json, String};
    [Bool, Int, Float, String, Json].map(|tag| tag.column(property))
}

/// Which rows of a batch a condition holds of. The batch has the property's columns, and `extra` if the file has.
fn holds(condition: &Condition, found: &RecordBatch) -> Result<BooleanArray> {
    let shredded = Shredded::of(&condition.property, found);
    let extra = found.column_by_name(names::EXTRA).map(|extra| extra.as_string_view());
    let mut rows = Vec::with_capacity(found.num_rows());
    for row in 0..found.num_rows() {
        let value = shredded.value(row);
        rows.push(match extra.filter(|extra| value.is_none() && extra.is_valid(row)) {
            None => condition.holds(value.as_ref()),
            Some(extra) => all_hold(std::slice::from_ref(condition), &format!("{{{}}}", extra.value(row)))?,
        });
    }
    Ok(rows.into())
}

/// The columns that say whether an event is hidden.
const HIDDEN_BY: [&str; 3] = [names::PLAYER_ID, names::SEQ, names::EVENT_TIME];

/// Which rows of a batch with these columns are not hidden.
pub(super) fn visible(hidden: &Erasures, found: &RecordBatch) -> Result<BooleanArray> {
    let column = |name: &str| {
        found.column_by_name(name).ok_or_else(|| Error::row("segment", format!("column {name:?} is missing")))
    };
    let [players, seqs, times] = HIDDEN_BY.map(column);
    let (players, seqs, times) =
        (players?.as_string_view(), seqs?.as_primitive::<Int64Type>(), times?.as_primitive::<Int64Type>());
    let rows = players.iter().zip(seqs.values()).zip(times.values());
    let is_hidden = |player: Option<&str>, seq: &i64, time_ms: &i64| {
        hidden.hide(player.unwrap_or_default(), Seq(seq.cast_unsigned()), *time_ms)
    };
    Ok(rows.map(|((player, seq), time_ms)| Some(!is_hidden(player, seq, time_ms))).collect())
}

/// The matching rows of a segment, in the file's columns.
pub struct SegmentScan {
    batches: Option<ParquetRecordBatchReader>,
    /// Players who are wanted: another one may have the same token.
    players: Option<Vec<String>>,
}

impl SegmentScan {
    /// Opens a scan of the columns that `columns` are made from, without what is hidden.
    pub(crate) fn open(
        file: &SegmentFile,
        columns: &[Column],
        filter: &Arc<EventFilter>,
        hidden: Option<Arc<Erasures>>,
    ) -> Result<Self> {
        let mut selection: Option<RowSelection> = None;
        let mut narrow = |pages: RowSelection| {
            selection = Some(match selection.take() {
                Some(before) => before.intersection(&pages),
                None => pages,
            });
        };
        let mut predicates: Vec<Box<dyn ArrowPredicate>> = Vec::new();
        let mut filter_on = |name: &str, takes: Box<dyn Fn(&ArrayRef) -> BooleanArray + Send>| {
            let mask = file.mask(&[name.to_owned()]);
            predicates.push(Box::new(ArrowPredicateFn::new(mask, move |batch| Ok(takes(batch.column(0))))));
        };
        if let Some(players) = &filter.players {
            if !file.may_hold(players)? {
                return Ok(Self { batches: None, players: None });
            }
            // Tokens are stored as the bits of a u64, and a page's bounds are signed: a page across the sign's change has wide
            // bounds and is read for nothing, but no page that holds the token is ever left out.
            let tokens: Vec<u64> = players.iter().map(|player| Token::of(player).0).collect();
            narrow(file.pages(names::TOKEN, |min, max| {
                tokens.iter().any(|token| (min..=max).contains(&token.cast_signed()))
            })?);
            // Numbers are compared faster than names, which are looked at in what is found.
            filter_on(
                names::TOKEN,
                Box::new(move |found| {
                    let found = found.as_primitive::<Int64Type>();
                    BooleanArray::from_unary(found, |found| tokens.iter().any(|token| token.cast_signed() == found))
                }),
            );
        }
        let times = filter.time_ms.clone();
        let (first, last) = file.times_ms;
        if !(times.contains(&first) && times.contains(&last)) {
            let range = times.clone();
            narrow(file.pages(names::EVENT_TIME, move |min, max| range.start <= max && min < range.end)?);
            filter_on(
                names::EVENT_TIME,
                Box::new(move |found| {
                    let found = found.as_primitive::<Int64Type>();
                    BooleanArray::from_unary(found, |time| times.contains(&time))
                }),
            );
        }
        let seqs = filter.seqs.clone();
        let (first, last) = file.seqs;
        if !(seqs.contains(&first) && seqs.contains(&last)) {
            filter_on(
                names::SEQ,
                Box::new(move |found| {
                    let found = found.as_primitive::<Int64Type>();
                    BooleanArray::from_unary(found, |seq| seqs.contains(&seq.cast_unsigned()))
                }),
            );
        }
        if filter.event_types.is_some() {
            let filter = filter.clone();
            filter_on(
                names::EVENT_TYPE,
                Box::new(move |found| {
                    let found = found.as_string_view().iter();
                    found.map(|kind| Some(kind.is_some_and(|kind| filter.takes_type(kind)))).collect()
                }),
            );
        }
        if let Some(hidden) = hidden {
            let takes = move |found: RecordBatch| {
                visible(&hidden, &found).map_err(|error| ArrowError::ExternalError(Box::new(error)))
            };
            let mask = file.mask(&HIDDEN_BY.map(str::to_owned));
            predicates.push(Box::new(ArrowPredicateFn::new(mask, takes)));
        }
        for condition in &filter.conditions {
            let mut wanted = property_columns(&condition.property).to_vec();
            wanted.push(names::EXTRA.to_owned());
            wanted.retain(|name| file.schema().index_of(name).is_ok());
            if wanted.is_empty() {
                // No event of the file has the property.
                if condition.holds(None) {
                    continue;
                }
                return Ok(Self { batches: None, players: None });
            }
            let condition = condition.clone();
            let takes = move |found: RecordBatch| {
                holds(&condition, &found).map_err(|error| ArrowError::ExternalError(Box::new(error)))
            };
            predicates.push(Box::new(ArrowPredicateFn::new(file.mask(&wanted), takes)));
        }
        let mut stored = file.stored_columns(columns);
        if filter.players.is_some() {
            stored.push(names::PLAYER_ID.to_owned());
        }
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(file.blocks.clone(), file.metadata.clone())
                .with_batch_size(BATCH_ROWS)
                .with_projection(file.mask(&stored));
        if let Some(selection) = selection {
            if !selection.selects_any() {
                return Ok(Self { batches: None, players: None });
            }
            builder = builder.with_row_selection(selection);
        }
        if !predicates.is_empty() {
            builder = builder.with_row_filter(RowFilter::new(predicates));
        }
        Ok(Self { batches: Some(builder.build()?), players: filter.players.clone() })
    }
}

impl Iterator for SegmentScan {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.batches.as_mut()?.next()?;
        Some(found.and_then(|found| of_players(found, self.players.as_deref())).map_err(Into::into))
    }
}

/// The rows of some players.
fn of_players(found: RecordBatch, players: Option<&[String]>) -> Result<RecordBatch, ArrowError> {
    let (Some(players), Some(names)) = (players, found.column_by_name(names::PLAYER_ID)) else { return Ok(found) };
    let names = names.as_string_view().iter();
    let wanted: BooleanArray =
        names.map(|name| Some(name.is_some_and(|name| players.iter().any(|player| player == name)))).collect();
    if wanted.true_count() == found.num_rows() { Ok(found) } else { filter_record_batch(&found, &wanted) }
}
