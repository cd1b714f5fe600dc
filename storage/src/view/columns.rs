//! The columns that a scan of events can give, and how they are made from rows and from segments.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, Int64Array, Int64Builder,
        StringViewBuilder, TimestampMillisecondBuilder, UInt64Builder, new_null_array,
    },
    compute::cast,
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, UInt64Type},
    record_batch::RecordBatch,
};
use galoo_proto::Hlc;

use crate::{
    Error, Result,
    chunk::EventRow,
    properties::{self, ColumnType, Property, exact_float, json_string},
    segment::{PropertyTag, names},
};

/// A column of a scan of events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Text, never null.
    PlayerId,
    /// UTC milliseconds, never null.
    EventTime,
    /// Text, never null.
    EventType,
    /// 64-bit integer, never null.
    Seq,
    /// Commit time: UTC milliseconds of the commit HLC, never null.
    IngestTime,
    /// Commit HLC, unsigned, never null.
    IngestHlc,
    /// A JSON object, never null.
    Properties,
    /// A JSON object with some properties alone, never null.
    Members(Vec<String>),
    /// A property as the type that holds all its values; null where it is absent or null.
    Property {
        /// The property.
        name: String,
        /// Its column's type.
        column_type: ColumnType,
    },
}

impl Column {
    /// The columns that make an event, with some properties or all.
    pub fn event(properties: Option<&[String]>) -> Arc<[Self]> {
        let properties = properties.map_or(Self::Properties, |names| Self::Members(names.to_vec()));
        [Self::PlayerId, Self::EventTime, Self::EventType, Self::Seq, Self::IngestHlc, properties].into()
    }

    /// The column's Arrow type.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::PlayerId | Self::EventType | Self::Properties | Self::Members(_) => DataType::Utf8View,
            Self::EventTime | Self::IngestTime => DataType::Timestamp(TimeUnit::Millisecond, None),
            Self::Seq => DataType::Int64,
            Self::IngestHlc => DataType::UInt64,
            Self::Property { column_type, .. } => match column_type {
                ColumnType::Bool => DataType::Boolean,
                ColumnType::Int => DataType::Int64,
                ColumnType::Float => DataType::Float64,
                ColumnType::Text => DataType::Utf8View,
            },
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::PlayerId => "player_id",
            Self::EventTime => "event_time",
            Self::EventType => "event_type",
            Self::Seq => "seq",
            Self::IngestTime => "ingest_time",
            Self::IngestHlc => "ingest_hlc",
            Self::Properties | Self::Members(_) => "properties",
            Self::Property { name, .. } => name,
        }
    }

    /// The schema of a scan's batches: its columns in order.
    pub fn schema(columns: &[Self]) -> SchemaRef {
        let nullable = |column: &Self| matches!(column, Self::Property { .. });
        let fields = columns.iter().map(|column| Field::new(column.name(), column.data_type(), nullable(column)));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

enum Builder {
    Text(StringViewBuilder),
    Time(TimestampMillisecondBuilder),
    Int(Int64Builder),
    Unsigned(UInt64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
}

impl Builder {
    fn of(column: &Column) -> Self {
        match column.data_type() {
            DataType::Timestamp(..) => Self::Time(TimestampMillisecondBuilder::new()),
            DataType::Int64 => Self::Int(Int64Builder::new()),
            DataType::UInt64 => Self::Unsigned(UInt64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            _ => Self::Text(StringViewBuilder::new()),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::Time(mut builder) => Arc::new(builder.finish()),
            Self::Int(mut builder) => Arc::new(builder.finish()),
            Self::Unsigned(mut builder) => Arc::new(builder.finish()),
            Self::Float(mut builder) => Arc::new(builder.finish()),
            Self::Bool(mut builder) => Arc::new(builder.finish()),
        }
    }
}

/// Collects rows of a chunk into columns.
pub(super) struct RowColumns<'c> {
    columns: &'c [Column],
    builders: Vec<Builder>,
    /// Columns of properties.
    properties: usize,
    rows: usize,
}

impl<'c> RowColumns<'c> {
    pub(super) fn new(columns: &'c [Column]) -> Self {
        let builders = columns.iter().map(Builder::of);
        let properties = columns.iter().filter(|column| matches!(column, Column::Property { .. })).count();
        Self { columns, builders: builders.collect(), properties, rows: 0 }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn push(&mut self, row: &EventRow<'_>) -> Result<()> {
        self.rows += 1;
        for (column, builder) in self.columns.iter().zip(&mut self.builders) {
            match (column, builder) {
                (Column::PlayerId, Builder::Text(text)) => text.append_value(row.player),
                (Column::EventType, Builder::Text(text)) => text.append_value(row.event_type),
                (Column::Properties, Builder::Text(text)) => {
                    text.append_value(if row.properties.is_empty() { "{}" } else { row.properties });
                }
                (Column::Members(names), Builder::Text(text)) => {
                    let mut json = "{".to_owned();
                    push_members(row.properties, names, &mut json)?;
                    json.push('}');
                    text.append_value(json);
                }
                (Column::EventTime, Builder::Time(time)) => time.append_value(row.time_ms),
                (Column::IngestTime, Builder::Time(time)) => time.append_value(row.ingest.millis().cast_signed()),
                (Column::Seq, Builder::Int(int)) => int.append_value(row.seq.0.cast_signed()),
                (Column::IngestHlc, Builder::Unsigned(unsigned)) => unsigned.append_value(row.ingest.0),
                _ => {}
            }
        }
        if self.properties == 0 {
            return Ok(());
        }
        let (columns, builders, rows, mut left) = (self.columns, &mut self.builders, self.rows, self.properties);
        for member in properties::members(row.properties) {
            let (name, raw) = member?;
            for (column, builder) in columns.iter().zip(builders.iter_mut()) {
                if matches!(column, Column::Property { name: wanted, .. } if *wanted == name) {
                    left = left.saturating_sub(1);
                    if let Some(property) = Property::parse(raw) {
                        append_property(builder, &property);
                    }
                }
            }
            // Each is given once.
            if left == 0 {
                break;
            }
        }
        for (column, builder) in columns.iter().zip(builders.iter_mut()) {
            if matches!(column, Column::Property { .. }) {
                pad(builder, rows);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<RecordBatch> {
        let arrays = self.builders.drain(..).map(Builder::finish).collect();
        batch(self.columns, arrays, self.rows)
    }
}

/// Makes a batch; without columns it still has its number of rows.
fn batch(columns: &[Column], arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Column::schema(columns), arrays, &options)?)
}

fn append_property(builder: &mut Builder, property: &Property<'_>) {
    match (builder, property) {
        (_, Property::Null) => {}
        (Builder::Bool(bools), Property::Bool(value)) => bools.append_value(*value),
        (Builder::Int(ints), Property::Int(value)) => ints.append_value(*value),
        (Builder::Float(floats), Property::Float(value)) => floats.append_value(*value),
        (Builder::Float(floats), Property::Int(value)) => floats.append_option(exact_float(*value)),
        (Builder::Text(texts), value) => texts.append_value(value.text()),
        // A declared type, and the one that a rollup was defined with, stay: what does not fit is null. A table's type,
        // which the catalog of the same snapshot chose otherwise, fits every value.
        _ => {}
    }
}

fn pad(builder: &mut Builder, rows: usize) {
    use arrow::array::ArrayBuilder;
    match builder {
        Builder::Text(builder) if builder.len() < rows => builder.append_null(),
        Builder::Int(builder) if builder.len() < rows => builder.append_null(),
        Builder::Float(builder) if builder.len() < rows => builder.append_null(),
        Builder::Bool(builder) if builder.len() < rows => builder.append_null(),
        _ => {}
    }
}

/// Makes a scan's columns from a batch of a segment's columns.
pub(super) fn from_segment(columns: &[Column], found: &RecordBatch) -> Result<RecordBatch> {
    let rows = found.num_rows();
    let stored = |name: &str| {
        let column = found.column_by_name(name);
        column.ok_or_else(|| Error::row("segment", format!("column {name:?} is missing")))
    };
    let mut arrays = Vec::with_capacity(columns.len());
    for column in columns {
        arrays.push(match column {
            Column::PlayerId => cast(stored(names::PLAYER_ID)?, &DataType::Utf8View)?,
            Column::EventType => cast(stored(names::EVENT_TYPE)?, &DataType::Utf8View)?,
            Column::EventTime => cast(stored(names::EVENT_TIME)?, &column.data_type())?,
            Column::Seq => stored(names::SEQ)?.clone(),
            Column::IngestHlc => cast(stored(names::INGEST_HLC)?, &DataType::UInt64)?,
            Column::IngestTime => {
                let hlc = cast(stored(names::INGEST_HLC)?, &DataType::UInt64)?;
                let millis =
                    hlc.as_primitive::<UInt64Type>().unary::<_, Int64Type>(|hlc| Hlc(hlc).millis().cast_signed());
                cast(&(Arc::new(millis) as ArrayRef), &column.data_type())?
            }
            Column::Properties => json_objects(found, &Members::of(found, |_| true), None)?,
            Column::Members(names) => {
                let members = Members::of(found, |name| names.iter().any(|wanted| wanted == name));
                json_objects(found, &members, Some(names))?
            }
            Column::Property { name, column_type } => property(name, *column_type, found)?,
        });
    }
    batch(columns, arrays, rows)
}

fn property(name: &str, column_type: ColumnType, found: &RecordBatch) -> Result<ArrayRef> {
    let rows = found.num_rows();
    if let Some(extra) = found.column_by_name(names::EXTRA).filter(|extra| extra.null_count() < rows) {
        return property_beside(name, column_type, found, extra.as_string_view());
    }
    let stored = |tag: PropertyTag| found.column_by_name(&tag.column(name));
    let or_nulls = |tag: PropertyTag, data_type: &DataType| match stored(tag) {
        Some(array) => cast(array, data_type),
        None => Ok(new_null_array(data_type, rows)),
    };
    Ok(match column_type {
        ColumnType::Bool => or_nulls(PropertyTag::Bool, &DataType::Boolean)?,
        ColumnType::Int => or_nulls(PropertyTag::Int, &DataType::Int64)?,
        ColumnType::Float => {
            let exact = |ints: &ArrayRef| ints.as_primitive::<Int64Type>().unary_opt::<_, Float64Type>(exact_float);
            match (stored(PropertyTag::Float), stored(PropertyTag::Int)) {
                (None, None) => new_null_array(&DataType::Float64, rows),
                (Some(floats), None) => floats.clone(),
                (None, Some(ints)) => Arc::new(exact(ints)),
                (Some(floats), Some(ints)) => {
                    let (floats, ints) = (floats.as_primitive::<Float64Type>(), exact(ints));
                    Arc::new(floats.iter().zip(ints.iter()).map(|(float, int)| float.or(int)).collect::<Float64Array>())
                }
            }
        }
        ColumnType::Text => {
            let only_strings = [PropertyTag::Bool, PropertyTag::Int, PropertyTag::Float, PropertyTag::Json];
            if only_strings.iter().all(|tag| stored(*tag).is_none()) {
                return Ok(or_nulls(PropertyTag::String, &DataType::Utf8View)?);
            }
            let shredded = Shredded::of(name, found);
            let mut texts = StringViewBuilder::with_capacity(rows);
            for row in 0..rows {
                match shredded.value(row) {
                    None | Some(Property::Null) => texts.append_null(),
                    Some(value) => texts.append_value(value.text()),
                }
            }
            Arc::new(texts.finish())
        }
    })
}

/// A property of which some events may have the value in `extra`.
fn property_beside(
    name: &str,
    column_type: ColumnType,
    found: &RecordBatch,
    extra: &arrow::array::StringViewArray,
) -> Result<ArrayRef> {
    let column = Column::Property { name: name.to_owned(), column_type };
    let mut builder = Builder::of(&column);
    let shredded = Shredded::of(name, found);
    for row in 0..found.num_rows() {
        match shredded.value(row) {
            Some(value) => append_property(&mut builder, &value),
            None if extra.is_valid(row) => {
                let object = format!("{{{}}}", extra.value(row));
                for member in properties::members(&object) {
                    let (member, raw) = member?;
                    if let Some(value) = Property::parse(raw).filter(|_| member == name) {
                        append_property(&mut builder, &value);
                    }
                }
            }
            None => {}
        }
        pad(&mut builder, row + 1);
    }
    Ok(builder.finish())
}

/// A property's columns in a segment, one a kind of value.
pub(crate) struct Shredded<'a> {
    bools: Option<&'a BooleanArray>,
    ints: Option<&'a Int64Array>,
    floats: Option<&'a Float64Array>,
    strings: Option<&'a arrow::array::StringViewArray>,
    json: Option<&'a arrow::array::StringViewArray>,
}

impl<'a> Shredded<'a> {
    pub(crate) fn of(name: &str, found: &'a RecordBatch) -> Self {
        let stored = |tag: PropertyTag| found.column_by_name(&tag.column(name));
        Self {
            bools: stored(PropertyTag::Bool).map(|array| array.as_boolean()),
            ints: stored(PropertyTag::Int).map(|array| array.as_primitive()),
            floats: stored(PropertyTag::Float).map(|array| array.as_primitive()),
            strings: stored(PropertyTag::String).map(|array| array.as_string_view()),
            json: stored(PropertyTag::Json).map(|array| array.as_string_view()),
        }
    }

    pub(crate) fn value(&self, row: usize) -> Option<Property<'a>> {
        fn valid<A: Array>(array: Option<&A>, row: usize) -> Option<&A> {
            array.filter(|array| array.is_valid(row))
        }
        if let Some(floats) = valid(self.floats, row) {
            return Some(Property::Float(floats.value(row)));
        }
        if let Some(ints) = valid(self.ints, row) {
            return Some(Property::Int(ints.value(row)));
        }
        if let Some(strings) = valid(self.strings, row) {
            return Some(Property::String(strings.value(row).into()));
        }
        if let Some(bools) = valid(self.bools, row) {
            return Some(Property::Bool(bools.value(row)));
        }
        let json = valid(self.json, row)?.value(row);
        Some(if json == "null" { Property::Null } else { Property::Json(json) })
    }
}

/// A segment's properties, those that are named or all, as they are put together again.
struct Members<'a> {
    /// Each with its name as JSON and a colon.
    properties: Vec<(&'a str, String, Shredded<'a>)>,
    extra: Option<&'a arrow::array::StringViewArray>,
}

impl<'a> Members<'a> {
    fn of(found: &'a RecordBatch, takes: impl Fn(&str) -> bool) -> Self {
        let mut properties: Vec<(&str, String, Shredded<'_>)> = Vec::new();
        for field in found.schema_ref().fields() {
            if let Some(name) = PropertyTag::property(field.name())
                && takes(name)
                && !properties.iter().any(|(known, ..)| *known == name)
            {
                properties.push((name, format!("{}:", json_string(name)), Shredded::of(name, found)));
            }
        }
        let extra = found.column_by_name(names::EXTRA).map(|array| array.as_string_view());
        Self { properties, extra }
    }

    /// Appends a row's members, without the braces; of `extra` those that are wanted, `None`: all.
    fn write(&self, row: usize, wanted: Option<&[String]>, json: &mut String) -> Result<()> {
        let begin = json.len();
        for (_, label, shredded) in &self.properties {
            if let Some(value) = shredded.value(row) {
                if json.len() > begin {
                    json.push(',');
                }
                json.push_str(label);
                value.write_json(json);
            }
        }
        if let Some(extra) = self.extra.filter(|extra| extra.is_valid(row)) {
            if json.len() > begin {
                json.push(',');
            }
            match wanted {
                None => json.push_str(extra.value(row)),
                Some(names) => push_members(&format!("{{{}}}", extra.value(row)), names, json)?,
            }
            // None of them was wanted.
            if json.len() > begin && json.ends_with(',') {
                json.pop();
            }
        }
        Ok(())
    }
}

/// Appends the members of a JSON object that are wanted, without the braces.
fn push_members(object: &str, wanted: &[String], json: &mut String) -> Result<()> {
    let begin = json.len();
    for member in properties::members(object) {
        let (name, raw) = member?;
        if wanted.iter().any(|wanted| *wanted == name) {
            if json.len() > begin {
                json.push(',');
            }
            json.push_str(&json_string(&name));
            json.push(':');
            json.push_str(raw);
        }
    }
    Ok(())
}

/// Puts a segment's properties together again as JSON objects.
fn json_objects(found: &RecordBatch, members: &Members<'_>, wanted: Option<&[String]>) -> Result<ArrayRef> {
    let mut objects = StringViewBuilder::with_capacity(found.num_rows());
    let mut json = String::new();
    for row in 0..found.num_rows() {
        json.clear();
        json.push('{');
        members.write(row, wanted, &mut json)?;
        json.push('}');
        objects.append_value(&json);
    }
    Ok(Arc::new(objects.finish()))
}

/// Returns the column `extra` of a segment's batch with some properties in it that have columns of their own.
pub(crate) fn extra_members(found: &RecordBatch, properties: &[String]) -> Result<ArrayRef> {
    let members = Members::of(found, |name| properties.iter().any(|property| property == name));
    let mut texts = StringViewBuilder::with_capacity(found.num_rows());
    let mut json = String::new();
    for row in 0..found.num_rows() {
        json.clear();
        members.write(row, None, &mut json)?;
        texts.append_option(Some(&json).filter(|json| !json.is_empty()));
    }
    Ok(Arc::new(texts.finish()))
}
