//! Small relations written down as text: names of columns, and rows that name the columns that they fill.
//!
//! `information_schema` and the views of `pg_catalog` that nobody else has are made of these. A column whose name begins
//! with `#` is an integer, all others are text; what a row does not name is null.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
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
        .map(|column| match column.strip_prefix('#') {
            Some(name) => Field::new(name, DataType::Int32, true),
            None => Field::new(*column, DataType::Utf8, true),
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A table with these columns and rows.
pub(super) fn table_of(columns: &[&str], rows: &[Row]) -> Result<Arc<dyn TableProvider>> {
    let arrays = columns.iter().map(|column| {
        let values =
            rows.iter().map(|row| row.iter().find(|(name, _)| name == column).map(|(_, value)| value.as_str()));
        if column.starts_with('#') {
            Arc::new(values.map(|value| value?.parse().ok()).collect::<Int32Array>()) as ArrayRef
        } else {
            Arc::new(values.collect::<StringArray>()) as ArrayRef
        }
    });
    let schema = schema_of(columns);
    let batch = RecordBatch::try_new(schema.clone(), arrays.collect())?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}
