//! Small relations written down as text: names of columns, and rows that name the columns that they fill.
//!
//! `information_schema` and the views of `pg_catalog` that nobody else has are made of these. The first character of a
//! column's name may give its type: `#` is an integer, `?` a boolean, `@` a list of integers; all others are text. What a
//! row does not name is null, and lists always are.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, Int32Array, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::error::Result;

/// A relation's name and columns.
pub(super) type Relation = (&'static str, &'static [&'static str]);

/// Columns and values of one row.
pub(super) type Row = Vec<(&'static str, String)>;

/// The schema of a list of columns.
pub(super) fn schema_of(columns: &[&str]) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .map(|column| {
            let (name, kind) = match column.split_at(1) {
                ("#", name) => (name, DataType::Int32),
                ("?", name) => (name, DataType::Boolean),
                ("@", name) => (name, DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)))),
                _ => (*column, DataType::Utf8),
            };
            Field::new(name, kind, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A table with these columns and rows.
pub(super) fn table_of(columns: &[&str], rows: &[Row]) -> Result<Arc<dyn TableProvider>> {
    let schema = schema_of(columns);
    let arrays = columns.iter().zip(schema.fields()).map(|(column, field)| {
        let values =
            rows.iter().map(|row| row.iter().find(|(name, _)| name == column).map(|(_, value)| value.as_str()));
        match field.data_type() {
            DataType::Int32 => Arc::new(values.map(|value| value?.parse().ok()).collect::<Int32Array>()) as ArrayRef,
            DataType::Boolean => Arc::new(values.map(|value| value?.parse().ok()).collect::<BooleanArray>()),
            DataType::Utf8 => Arc::new(values.collect::<StringArray>()),
            other => new_null_array(other, rows.len()),
        }
    });
    let arrays = arrays.collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays)?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}
