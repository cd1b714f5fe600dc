//! Writes a segment: events in order, split into typed columns.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{
        Array, ArrayBuilder, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder,
        StringDictionaryBuilder,
    },
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use galoo_proto::{SegmentId, Seq, Token, limits::PROPERTIES_MAX, record, value::PropertyDeclarations};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    FORMAT_VERSION, PropertyTag,
    blocks::block_crcs,
    files::{failed, sync_folders},
    names,
};
use crate::{
    Error, Result,
    chunk::EventRow,
    properties::{self, ColumnType, Property, json_string},
};

/// Rows of a page, at most: what a reader decodes to find one player. A player has few events in a new segment, so that
/// most of a page is decoded for nothing.
const PAGE_ROWS_MAX: usize = 2_048;
/// The same of a merged segment: smaller pages take more room.
const MERGED_PAGE_ROWS_MAX: usize = 8_192;
/// Bytes of a column's dictionary, at most: whoever reads one page of a row group decodes it too. A column with more
/// different values goes on without.
const DICTIONARY_BYTES_MAX: usize = 64 << 10;
/// Rows of a row group of a merged segment, at most: its pages are held in memory until it ends.
const GROUP_ROWS_MAX: usize = 1 << 20;

enum Column {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(Box<StringDictionaryBuilder<Int32Type>>),
    Json(StringBuilder),
}

impl Column {
    fn new(tag: PropertyTag) -> Self {
        match tag {
            PropertyTag::Bool => Self::Bool(BooleanBuilder::new()),
            PropertyTag::Int => Self::Int(Int64Builder::new()),
            PropertyTag::Float => Self::Float(Float64Builder::new()),
            PropertyTag::String => Self::Text(Box::default()),
            PropertyTag::Json => Self::Json(StringBuilder::new()),
        }
    }

    /// Appends nulls until the column has `rows` rows.
    fn pad(&mut self, rows: usize) {
        match self {
            Self::Bool(builder) => builder.append_nulls(rows - builder.len()),
            Self::Int(builder) => builder.append_nulls(rows - builder.len()),
            Self::Float(builder) => builder.append_nulls(rows - builder.len()),
            Self::Text(builder) => builder.append_nulls(rows - builder.len()),
            Self::Json(builder) => builder.append_nulls(rows - builder.len()),
        }
    }

    fn append(&mut self, value: &Property<'_>) -> Result<()> {
        match (self, value) {
            (Self::Bool(builder), Property::Bool(value)) => builder.append_value(*value),
            (Self::Int(builder), Property::Int(value)) => builder.append_value(*value),
            (Self::Float(builder), Property::Float(value)) => builder.append_value(*value),
            (Self::Text(builder), Property::String(value)) => {
                builder.append(value)?;
            }
            (Self::Json(builder), value) => builder.append_value(value.text()),
            _ => return Err(Error::row("property", "a value under another kind's tag")),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::Int(builder) => Arc::new(builder.finish()),
            Self::Float(builder) => Arc::new(builder.finish()),
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Json(builder) => Arc::new(builder.finish()),
        }
    }
}

fn tag(value: &Property<'_>) -> PropertyTag {
    match value {
        Property::Bool(_) => PropertyTag::Bool,
        Property::Int(_) => PropertyTag::Int,
        Property::Float(_) => PropertyTag::Float,
        Property::String(_) => PropertyTag::String,
        Property::Null | Property::Json(_) => PropertyTag::Json,
    }
}

/// Collects the events of a segment, in order of (token, player, event_time, seq), then writes the file.
///
/// It holds them in memory: the caller bounds them.
#[derive(Default)]
pub struct SegmentWriter {
    declared: HashMap<String, ColumnType>,
    tokens: Int64Builder,
    players: StringDictionaryBuilder<Int32Type>,
    times: Int64Builder,
    types: StringDictionaryBuilder<Int32Type>,
    seqs: Int64Builder,
    hlcs: Int64Builder,
    /// The place of each property in `columns`, by first appearance.
    places: HashMap<String, usize>,
    columns: Vec<(String, Vec<(PropertyTag, Column)>)>,
    extra: StringBuilder,
    player_count: u64,
    /// The place of the last event in the order.
    last: Option<(Token, String, i64, Seq)>,
    record: record::Segment,
}

impl SegmentWriter {
    /// Keeps values that do not fit the declared type of their property beside the columns.
    pub fn new(declared: &PropertyDeclarations) -> Self {
        let types = declared.properties.iter().map(|one| Some((one.name.clone(), ColumnType::of_kind(one.kind())?)));
        Self { declared: types.flatten().collect(), ..Self::default() }
    }

    /// Adds the next event, whose player has this token.
    ///
    /// # Errors
    /// Fails when the event's properties do not parse: they were checked before they were stored.
    pub fn push(&mut self, token: Token, row: &EventRow<'_>) -> Result<()> {
        let order = (token, row.player, row.time_ms, row.seq);
        match &mut self.last {
            Some((last_token, player, time_ms, seq)) => {
                let last = (*last_token, player.as_str(), *time_ms, *seq);
                assert!(last < order, "INV-S5: {order:?} behind {last:?}");
                if player != row.player {
                    self.player_count += 1;
                    row.player.clone_into(player);
                }
                (*last_token, *time_ms, *seq) = (token, row.time_ms, row.seq);
            }
            None => {
                self.player_count = 1;
                self.record.token_min = token.0;
                (self.record.time_min_ms, self.record.time_max_ms) = (row.time_ms, row.time_ms);
                (self.record.first_seq, self.record.last_seq) = (row.seq.0, row.seq.0);
                self.last = Some((token, row.player.to_owned(), row.time_ms, row.seq));
            }
        }
        self.record.token_max = token.0;
        self.record.time_min_ms = self.record.time_min_ms.min(row.time_ms);
        self.record.time_max_ms = self.record.time_max_ms.max(row.time_ms);
        self.record.first_seq = self.record.first_seq.min(row.seq.0);
        self.record.last_seq = self.record.last_seq.max(row.seq.0);
        let before = usize::try_from(self.record.rows).unwrap_or(usize::MAX);
        self.record.rows += 1;
        self.record.event_bytes += row.bytes() as u64;
        self.tokens.append_value(token.0.cast_signed());
        self.players.append(row.player)?;
        self.times.append_value(row.time_ms);
        self.types.append(row.event_type)?;
        self.seqs.append_value(row.seq.0.cast_signed());
        self.hlcs.append_value(row.ingest.0.cast_signed());
        self.push_properties(row.properties, before)
    }

    fn push_properties(&mut self, json: &str, before: usize) -> Result<()> {
        let mut extra = String::new();
        let (places, columns, declared) = (&mut self.places, &mut self.columns, &self.declared);
        for member in properties::members(json) {
            let (name, raw) = member?;
            let Some(value) = Property::parse(raw) else { continue };
            let mut keep_beside = || {
                let separator = if extra.is_empty() { "" } else { "," };
                extra.push_str(&format!("{separator}{}:{raw}", json_string(&name)));
            };
            if declared.get(name.as_ref()).is_some_and(|column| !value.kind().within(column.kinds())) {
                keep_beside();
                continue;
            }
            let place = match places.get(name.as_ref()) {
                Some(place) => *place,
                None if columns.len() as u64 >= PROPERTIES_MAX => {
                    keep_beside();
                    continue;
                }
                None => {
                    places.insert(name.clone().into_owned(), columns.len());
                    columns.push((name.into_owned(), Vec::new()));
                    columns.len() - 1
                }
            };
            let (tag, kinds) = (tag(&value), &mut columns[place].1);
            let at = kinds.iter().position(|(known, _)| *known == tag).unwrap_or_else(|| {
                kinds.push((tag, Column::new(tag)));
                kinds.len() - 1
            });
            let column = &mut kinds[at].1;
            column.pad(before);
            column.append(&value)?;
        }
        if !extra.is_empty() {
            self.extra.append_nulls(before - self.extra.len());
            self.extra.append_value(extra);
        }
        Ok(())
    }

    /// Writes the file, makes it and its name durable, and returns its record without the chunks.
    ///
    /// The path must not be of a segment that any record names.
    pub fn finish(mut self, path: &Path, id: SegmentId) -> Result<record::Segment> {
        let batch = self.batch()?;
        let packing = Packing::New { players: self.player_count };
        let mut writer = FileWriter::create(path, &batch.schema(), packing)?;
        writer.write(&batch)?;
        let (file_bytes, block_crcs) = writer.finish()?;
        let players = self.player_count;
        Ok(record::Segment { version: FORMAT_VERSION, id: id.0, file_bytes, block_crcs, players, ..self.record })
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        let rows = usize::try_from(self.record.rows).unwrap_or(usize::MAX);
        let mut fields = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        let mut add = |name: &str, array: ArrayRef, nullable: bool| {
            fields.push(Field::new(name, array.data_type().clone(), nullable));
            arrays.push(array);
        };
        add(names::TOKEN, Arc::new(self.tokens.finish()), false);
        add(names::PLAYER_ID, Arc::new(self.players.finish()), false);
        add(names::EVENT_TIME, Arc::new(self.times.finish()), false);
        add(names::EVENT_TYPE, Arc::new(self.types.finish()), false);
        add(names::SEQ, Arc::new(self.seqs.finish()), false);
        add(names::INGEST_HLC, Arc::new(self.hlcs.finish()), false);
        for (name, kinds) in &mut self.columns {
            for (tag, column) in kinds {
                column.pad(rows);
                add(&tag.column(name), column.finish(), true);
            }
        }
        if !self.extra.is_empty() {
            self.extra.append_nulls(rows - self.extra.len());
            add(names::EXTRA, Arc::new(self.extra.finish()), true);
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
    }
}

/// How a segment's file is packed, for so many players, or fewer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packing {
    /// Quickly: it will be merged.
    New { players: u64 },
    /// Small.
    Merged { players: u64 },
}

impl Packing {
    fn properties(self, schema: &Schema) -> WriterProperties {
        let (compression, page_rows_max, rows_max, players) = match self {
            Self::New { players } => (Compression::LZ4_RAW, PAGE_ROWS_MAX, None, players),
            Self::Merged { players } => {
                (Compression::ZSTD(ZstdLevel::default()), MERGED_PAGE_ROWS_MAX, Some(GROUP_ROWS_MAX), players)
            }
        };
        let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
        let mut properties = WriterProperties::builder()
            .set_created_by("galoo".to_owned())
            .set_compression(compression)
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_data_page_row_count_limit(page_rows_max)
            .set_max_row_group_row_count(rows_max)
            .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
            .set_column_bloom_filter_enabled(path(names::PLAYER_ID), true)
            .set_column_bloom_filter_fpp(path(names::PLAYER_ID), 0.01)
            .set_column_bloom_filter_max_ndv(path(names::PLAYER_ID), players.max(1));
        for name in [names::TOKEN, names::EVENT_TIME, names::SEQ, names::INGEST_HLC] {
            properties = properties.set_column_dictionary_enabled(path(name), false);
        }
        // How values are written that are in no dictionary.
        properties = properties.set_column_encoding(path(names::PLAYER_ID), Encoding::DELTA_BYTE_ARRAY);
        for field in schema.fields().iter().filter(|field| *field.data_type() == DataType::Int64) {
            properties = properties.set_column_encoding(path(field.name()), Encoding::DELTA_BINARY_PACKED);
        }
        properties.build()
    }
}

/// Writes a segment's file, a batch at a time.
pub(super) struct FileWriter {
    path: PathBuf,
    file: File,
    writer: ArrowWriter<BufWriter<File>>,
}

impl FileWriter {
    /// Makes the file, or empties the one that a crash left.
    pub(super) fn create(path: &Path, schema: &SchemaRef, packing: Packing) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|source| failed("create", folder, source))?;
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path);
        let file = file.map_err(|source| failed("create", path, source))?;
        let buffered = BufWriter::new(file.try_clone().map_err(|source| failed("create", path, source))?);
        let writer = ArrowWriter::try_new(buffered, schema.clone(), Some(packing.properties(schema)))?;
        Ok(Self { path: path.to_owned(), file, writer })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        Ok(self.writer.write(batch)?)
    }

    /// Makes the file and its name durable, and returns its length and the CRCs of its blocks.
    pub(super) fn finish(self) -> Result<(u64, Vec<u32>)> {
        let Self { path, file, writer } = self;
        writer.into_inner()?.into_inner().map_err(|error| failed("write", &path, error.into_error()))?;
        file.sync_all().map_err(|source| failed("sync", &path, source))?;
        sync_folders(&path)?;
        block_crcs(&path, &file)
    }

    /// Removes the file.
    pub(super) fn cancel(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(|source| failed("remove", &self.path, source))
    }
}

/// The Arrow type that a reader asks for, by the file's column.
pub(super) fn read_type(column: &str, stored: &DataType) -> DataType {
    match stored {
        DataType::Utf8 | DataType::Dictionary(..) | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        _ if column == names::EVENT_TIME => DataType::Int64,
        other => other.clone(),
    }
}
