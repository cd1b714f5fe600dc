//! From record batches to rows on the wire.
//!
//! Each column has a wire type, fixed when the statement is described: what `arrow-pg` encodes right is left to it; small
//! and large variants are widened to a neighbour that Postgres has (an `Int8` is a `smallint`); a `UInt64` is a `bigint`, as
//! clients expect of counts and positions, and a value that does not fit is an error (22003) that names the way out, never
//! a wrapped number; what Postgres has no type for (maps, structs, lists of lists) is sent as text. Nulls are written here, since
//! `arrow-pg` forgets them in intervals, and the commonest values in [`text`], since it takes its time over them.

use std::fmt::Display;
use std::sync::Arc;

use arrow_pg::datatypes::{PG_OID_ALIAS_KEY, field_into_pg_type};
use arrow_pg::encoder::encode_value;
use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, DecimalType, Field, FieldRef, Schema, TimeUnit,
};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;
use pgwire::api::Type;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo};

use super::SqlError;
use super::link::{Failure, Link, Sender};
use super::names::OutputNames;
use super::numeric::Numeric;
use super::plan::Parsed;
use super::text;
use super::wire::violation;

/// What stands for the length of a value that is null.
const NULL: i32 = -1;

/// The columns of a result as the client sees them.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// Names and wire types; a batch's columns are cast to them.
    pub(super) fields: Vec<FieldRef>,
    /// Whether lists of integers are told to be lists of object ids.
    has_oid_lists: bool,
}

impl Columns {
    /// Takes the columns of a plan.
    pub(super) fn new(schema: &Schema, names: &OutputNames) -> Self {
        let count = schema.fields().len();
        let fields = schema.fields().iter().enumerate().map(|(index, field)| {
            let name = names.get(index, count).unwrap_or(field.name());
            let kind = wire_type(field.data_type());
            let mut metadata = field.metadata().clone();
            if kind != DataType::Int32 {
                // DataFusion keeps the mark of an object id on its cast to text, which is no id any more.
                metadata.remove(PG_OID_ALIAS_KEY);
            }
            Arc::new(Field::new(name, kind, true).with_metadata(metadata))
        });
        Self { fields: fields.collect(), has_oid_lists: false }
    }

    /// Takes the columns of a query; in one about the catalog only, lists of integers are lists of object ids.
    pub(super) fn of_query(plan: &LogicalPlan, parsed: &Parsed) -> Self {
        Self { has_oid_lists: parsed.is_of_catalog(), ..Self::new(plan.schema().as_arrow(), &parsed.names) }
    }

    /// Describes the columns in the formats that a `Bind` asked for: none, one for all, or one each.
    pub(super) fn describe(&self, formats: &[i16]) -> Result<Arc<Vec<FieldInfo>>, SqlError> {
        if formats.len() > 1 && formats.len() != self.fields.len() {
            return Err(violation(format!(
                "bind message has {} result formats but query has {} columns",
                formats.len(),
                self.fields.len()
            )));
        }
        let described = self.fields.iter().enumerate().map(|(index, field)| {
            let code = formats.get(index).or(formats.first()).copied().unwrap_or(0);
            let kind = match field.data_type() {
                DataType::Decimal256(..) => Type::NUMERIC,
                DataType::List(element) if self.has_oid_lists && *element.data_type() == DataType::Int32 => {
                    Type::OID_ARRAY
                }
                _ => field_into_pg_type(field).unwrap_or(Type::TEXT),
            };
            FieldInfo::new(field.name().clone(), None, None, kind, FieldFormat::from(code))
        });
        Ok(Arc::new(described.collect()))
    }
}

/// The type in which a column is sent.
pub(super) fn wire_type(kind: &DataType) -> DataType {
    match kind {
        // A column of nulls only, or of a parameter whose type is not known before its value.
        DataType::Null => DataType::Utf8,
        DataType::Int8 => DataType::Int16,
        DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Date64 => DataType::Date32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        DataType::Dictionary(_, values) => wire_type(values),
        DataType::RunEndEncoded(_, values) => wire_type(values.data_type()),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::ListView(field)
        | DataType::LargeListView(field) => match wire_type(field.data_type()) {
            DataType::List(_) => DataType::Utf8,
            // Not `arrow-pg`'s 96 bits: text keeps every digit.
            DataType::Decimal128(..) | DataType::Decimal256(..) => list_of(DataType::Utf8),
            inner => list_of(inner),
        },
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => DataType::Utf8,
        DataType::Duration(_) => DataType::Duration(TimeUnit::Microsecond),
        other => other.clone(),
    }
}

fn list_of(inner: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(inner, true)))
}

/// Casts a batch's column to its wire type; text is the last resort.
fn to_wire(array: &ArrayRef, kind: &DataType) -> Result<ArrayRef, SqlError> {
    if array.data_type() == kind {
        return Ok(array.clone());
    }
    let is_nested = matches!(array.data_type(), DataType::Struct(_) | DataType::Map(..) | DataType::Union(..));
    let is_list_as_text = *kind == DataType::Utf8 && array.data_type().is_nested();
    if !is_nested && !is_list_as_text && can_cast_types(array.data_type(), kind) {
        let options = CastOptions { safe: false, ..CastOptions::default() };
        return cast_with_options(array, kind, &options).map_err(|error| match (array.data_type(), error) {
            (DataType::UInt64, ArrowError::CastError(text)) => {
                SqlError::new("22003", format!("bigint out of range: {text}")).with_hint("cast the column to numeric")
            }
            (_, error) => error.into(),
        });
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array.as_ref(), &options)?;
    let texts = (0..array.len())
        .map(|row| if array.is_null(row) { Ok(None) } else { formatter.value(row).try_to_string().map(Some) });
    Ok(Arc::new(texts.collect::<Result<StringArray, _>>()?))
}

/// A result that is being read.
pub(super) struct Cursor {
    columns: Columns,
    fields: Arc<Vec<FieldInfo>>,
    stream: SendableRecordBatchStream,
    batch: Vec<ArrayRef>,
    next_row: usize,
}

/// How far a cursor got.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All rows are sent; the number counts those of this call.
    Done(usize),
    /// The wanted number of rows is sent.
    Suspended,
}

impl Cursor {
    pub(super) fn new(columns: Columns, fields: Arc<Vec<FieldInfo>>, stream: SendableRecordBatchStream) -> Self {
        Self { columns, fields, stream, batch: Vec::new(), next_row: 0 }
    }

    /// The columns as they are described to the client.
    pub(super) fn fields(&self) -> &[FieldInfo] {
        &self.fields
    }

    /// Sends up to `rows_max` rows. Memory: one batch, and the outbox' limit or one row, whichever is more.
    pub(super) async fn send(
        &mut self,
        link: &mut Link,
        sender: &mut Sender,
        rows_max: usize,
    ) -> Result<Progress, Failure> {
        let mut encoder = DataRowEncoder::new(self.fields.clone());
        let mut values = BytesMut::new();
        let mut sent = 0;
        loop {
            while self.next_row >= self.rows_here() {
                let stream = &mut self.stream;
                let next = link.guard(async { Ok(stream.next().await.transpose().map_err(SqlError::from)?) }).await?;
                match next {
                    Some(batch) => self.take(&batch)?,
                    None => return Ok(Progress::Done(sent)),
                }
            }
            if sent == rows_max {
                return Ok(Progress::Suspended);
            }
            values.clear();
            self.encode_row(&mut values, &mut encoder)?;
            sender.outbox.data_row(self.fields.len(), &values);
            self.next_row += 1;
            sent += 1;
            if sender.is_full() {
                link.guard(sender.flush()).await?;
            }
        }
    }

    fn rows_here(&self) -> usize {
        // A result without columns is sent without rows.
        self.batch.first().map_or(0, |array| array.len())
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), SqlError> {
        if batch.num_columns() != self.columns.fields.len() {
            return Err(SqlError::new(
                "0A000",
                format!("result has {} columns but {} were described", batch.num_columns(), self.columns.fields.len()),
            ));
        }
        let columns = batch.columns().iter().zip(&self.columns.fields);
        self.batch = columns.map(|(array, field)| to_wire(array, field.data_type())).collect::<Result<_, _>>()?;
        self.next_row = 0;
        Ok(())
    }

    /// Appends the values of the next row, each with its length. `encoder` is for those that [`text`] leaves alone.
    fn encode_row(&self, values: &mut BytesMut, encoder: &mut DataRowEncoder) -> Result<(), SqlError> {
        let row = self.next_row;
        for ((array, field), info) in self.batch.iter().zip(&self.columns.fields).zip(self.fields.iter()) {
            if array.is_null(row) {
                values.put_i32(NULL);
                continue;
            }
            if text::put(values, array, row, field, info) {
                continue;
            }
            match array.data_type() {
                DataType::Decimal128(precision, scale) => {
                    let value = array.as_primitive::<Decimal128Type>().value(row);
                    put(encoder, info, &number(Decimal128Type::format_decimal(value, *precision, *scale)))?;
                }
                DataType::Decimal256(precision, scale) => {
                    let value = array.as_primitive::<Decimal256Type>().value(row);
                    put(encoder, info, &number(Decimal256Type::format_decimal(value, *precision, *scale)))?;
                }
                _ => encode_value(encoder, array, row, field, info)?,
            }
            values.put_slice(&encoder.take_row().data);
        }
        Ok(())
    }
}

fn number(value: impl Display) -> Option<Numeric> {
    Some(Numeric(value.to_string()))
}

fn put(encoder: &mut DataRowEncoder, info: &FieldInfo, value: &Option<Numeric>) -> Result<(), SqlError> {
    encoder.encode_field_with_type_and_format(value, info.datatype(), info.format(), info.format_options())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_wire_type_that_postgres_knows() {
        let text = || Field::new("f", DataType::Utf8, true);
        let cases = [
            (DataType::Int8, Type::INT2),
            (DataType::UInt64, Type::INT8),
            (DataType::Decimal256(70, 2), Type::NUMERIC),
            (DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8View)), Type::TEXT),
            (DataType::Timestamp(TimeUnit::Millisecond, None), Type::TIMESTAMP),
            (DataType::Timestamp(TimeUnit::Nanosecond, Some("Europe/Rome".into())), Type::TIMESTAMPTZ),
            (DataType::Struct(vec![text()].into()), Type::TEXT),
            (list_of(DataType::Int64), Type::INT8_ARRAY),
            (list_of(list_of(DataType::Int64)), Type::TEXT),
            (DataType::Null, Type::TEXT),
        ];
        for (kind, wire) in cases {
            let columns =
                Columns::new(&Schema::new(vec![Field::new("c", kind.clone(), true)]), &OutputNames::default());
            let described = columns.describe(&[]).unwrap();
            assert_eq!(*described[0].datatype(), wire, "{kind}");
        }
    }

    #[test]
    fn the_number_of_formats_must_fit() {
        let columns = Columns::new(&Schema::new(vec![Field::new("c", DataType::Int64, true)]), &OutputNames::default());
        assert_eq!(columns.describe(&[0, 1]).unwrap_err().code, "08P01");
        assert_eq!(columns.describe(&[1]).unwrap()[0].format(), FieldFormat::Binary);
    }
}
