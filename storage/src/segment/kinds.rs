//! Counts the kinds of values that a segment's properties have.
//!
//! A column of bools, floats or strings tells how many there are by its nulls, which the footer counts; one of integers
//! whether all are small, by its bounds. What is left is read: JSON, wide integers, and what is kept beside the columns.

use arrow::{
    array::{Array, AsArray},
    datatypes::Int64Type,
};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::statistics::Statistics,
};

use super::{PropertyTag, names, read::SegmentFile};
use crate::{
    Result,
    properties::{Kinds, Property, exact_float},
    view::count_members,
};

impl SegmentFile {
    /// Gives the name of each property to `add`, with a kind and a number of values of it; more than once.
    pub(crate) fn count_kinds(&self, add: &mut dyn FnMut(&str, Kinds, u64)) -> Result<()> {
        let (blocks, metadata) = self.reader();
        let schema = metadata.schema().clone();
        let mut read = Vec::new();
        for (place, field) in schema.fields().iter().enumerate() {
            let property = PropertyTag::property(field.name());
            if property.is_none() && field.name() != names::EXTRA {
                continue;
            }
            let (mut known, mut small) = (Some(0), true);
            for group in metadata.metadata().row_groups() {
                let statistics = group.column(place).statistics();
                let nulls = statistics.and_then(Statistics::null_count_opt);
                known = known.zip(nulls).map(|(all, nulls)| all + group.num_rows().cast_unsigned() - nulls);
                small &= match statistics {
                    Some(Statistics::Int64(bounds)) => [bounds.min_opt(), bounds.max_opt()]
                        .into_iter()
                        .flatten()
                        .all(|int| exact_float(*int).is_some()),
                    _ => false,
                };
            }
            let kind = match PropertyTag::of(field.name()) {
                Some(PropertyTag::Bool) => Some(Kinds::BOOL),
                Some(PropertyTag::Float) => Some(Kinds::FLOAT),
                Some(PropertyTag::String) => Some(Kinds::STRING),
                Some(PropertyTag::Int) if small => Some(Kinds::INT),
                Some(PropertyTag::Int | PropertyTag::Json) | None => None,
            };
            match (property, known, kind) {
                (_, Some(0), _) => {}
                (Some(property), Some(values), Some(kind)) => add(property, kind, values),
                _ => read.push(place),
            }
        }
        if read.is_empty() {
            return Ok(());
        }
        let mask = ProjectionMask::roots(metadata.metadata().file_metadata().schema_descr(), read);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(blocks, metadata);
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                let Some(property) = PropertyTag::property(field.name()) else {
                    for text in column.as_string_view().iter().flatten() {
                        count_members(&format!("{{{text}}}"), add)?;
                    }
                    continue;
                };
                match PropertyTag::of(field.name()) {
                    Some(PropertyTag::Int) => {
                        for int in column.as_primitive::<Int64Type>().iter().flatten() {
                            add(property, Property::Int(int).kind(), 1);
                        }
                    }
                    Some(PropertyTag::Bool) => add(property, Kinds::BOOL, valid(column)),
                    Some(PropertyTag::Float) => add(property, Kinds::FLOAT, valid(column)),
                    Some(PropertyTag::String) => add(property, Kinds::STRING, valid(column)),
                    Some(PropertyTag::Json) | None => {
                        for value in column.as_string_view().iter().flatten().filter_map(Property::parse) {
                            add(property, value.kind(), 1);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn valid(column: &dyn Array) -> u64 {
    (column.len() - column.null_count()) as u64
}
