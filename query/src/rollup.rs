//! A rollup as a table: a row a bucket and group, merged over all shards of one cut.

pub mod define;

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringViewBuilder, TimestampMillisecondBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    error::Result,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{
        ExecutionPlan,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use galoo_storage::{
    properties::ColumnType,
    rollup::{
        Aggregate, Definition, Operand, Shown,
        accumulator::Number,
        cell::GroupValue,
        read::{PartialCache, RollupRow, RollupRows},
    },
    view::View,
};

use crate::{pushdown, stream::Partition};

/// Rows of a batch.
const BATCH_ROWS: usize = 8_192;

/// A rollup over one cut of its shards.
#[derive(Clone)]
pub struct RollupTable {
    views: Arc<[View]>,
    definition: Arc<Definition>,
    partials: Arc<PartialCache>,
    schema: SchemaRef,
}

impl std::fmt::Debug for RollupTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RollupTable").field("name", &self.definition.name).finish_non_exhaustive()
    }
}

const TIME: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

fn operand_type(operand: &Operand) -> DataType {
    operand.column().data_type()
}

fn aggregate_type(aggregate: &Aggregate) -> DataType {
    match aggregate {
        Aggregate::Count(_) | Aggregate::DistinctPlayers => DataType::Int64,
        Aggregate::Sum(operand) | Aggregate::Min(operand) | Aggregate::Max(operand) => operand_type(operand),
        Aggregate::Avg(_) => DataType::Float64,
    }
}

impl RollupTable {
    /// Makes the table of a rollup.
    pub fn new(views: Arc<[View]>, definition: Arc<Definition>, partials: Arc<PartialCache>) -> Self {
        let field = |(name, shown): &(String, Shown)| match shown {
            Shown::Bucket => Field::new(name, TIME, false),
            Shown::Group(place) => {
                let group = &definition.groups[*place];
                Field::new(name, operand_type(group), matches!(group, Operand::Property { .. }))
            }
            Shown::Aggregate(place) => {
                let aggregate = &definition.aggregates[*place];
                let counts = matches!(aggregate, Aggregate::Count(_) | Aggregate::DistinctPlayers);
                Field::new(name, aggregate_type(aggregate), !counts)
            }
        };
        let schema = Arc::new(Schema::new(definition.columns.iter().map(field).collect::<Vec<_>>()));
        Self { views, definition, partials, schema }
    }

    fn bucket_column(&self) -> &str {
        let shown = self.definition.columns.iter().find(|(_, shown)| *shown == Shown::Bucket);
        shown.map_or("", |(name, _)| name)
    }

    fn batches(&self, buckets_ms: &Range<i64>) -> galoo_storage::Result<Batches> {
        let rows = RollupRows::open(&self.views, &self.definition, buckets_ms, &self.partials)?;
        Ok(Batches { table: self.clone(), rows })
    }

    fn batch(&self, rows: &[RollupRow]) -> galoo_storage::Result<RecordBatch> {
        let columns = self.definition.columns.iter().map(|(_, shown)| match *shown {
            Shown::Bucket => {
                let mut buckets = TimestampMillisecondBuilder::with_capacity(rows.len());
                rows.iter().for_each(|row| buckets.append_value(row.bucket_ms));
                Ok(Arc::new(buckets.finish()) as ArrayRef)
            }
            Shown::Group(place) => Ok(group_column(&self.definition.groups[place], rows, place)),
            Shown::Aggregate(place) => aggregate_column(&self.definition.aggregates[place], rows, place),
        });
        let columns = columns.collect::<galoo_storage::Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

struct Batches {
    table: RollupTable,
    rows: RollupRows,
}

impl Iterator for Batches {
    type Item = galoo_storage::Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.rows.by_ref().take(BATCH_ROWS).collect::<galoo_storage::Result<Vec<_>>>() {
            Ok(rows) if rows.is_empty() => None,
            Ok(rows) => Some(self.table.batch(&rows)),
            Err(error) => Some(Err(error)),
        }
    }
}

fn group_column(group: &Operand, rows: &[RollupRow], place: usize) -> ArrayRef {
    let values = rows.iter().map(|row| &row.groups[place]);
    match group.column_type() {
        Some(ColumnType::Bool) => {
            let mut column = BooleanBuilder::with_capacity(rows.len());
            values.for_each(|value| {
                column.append_option(if let GroupValue::Bool(value) = value { Some(*value) } else { None })
            });
            Arc::new(column.finish())
        }
        Some(ColumnType::Int) => {
            let mut column = Int64Builder::with_capacity(rows.len());
            values.for_each(|value| {
                column.append_option(if let GroupValue::Int(value) = value { Some(*value) } else { None })
            });
            Arc::new(column.finish())
        }
        _ => {
            let mut column = StringViewBuilder::with_capacity(rows.len());
            values.for_each(|value| {
                column.append_option(if let GroupValue::Text(value) = value { Some(value) } else { None })
            });
            Arc::new(column.finish())
        }
    }
}

fn aggregate_column(aggregate: &Aggregate, rows: &[RollupRow], place: usize) -> galoo_storage::Result<ArrayRef> {
    let values = rows.iter().map(|row| row.cell.0[place].value(aggregate));
    let values = values.collect::<Result<Vec<_>, _>>().map_err(galoo_storage::Error::SumTooLarge)?;
    let ints = values.iter().map(|value| if let Number::Int(value) = value { Some(*value) } else { None });
    Ok(match aggregate_type(aggregate) {
        DataType::Float64 => {
            let floats = values.iter().map(|value| if let Number::Float(value) = value { Some(*value) } else { None });
            let mut column = Float64Builder::with_capacity(rows.len());
            floats.for_each(|value| column.append_option(value));
            Arc::new(column.finish())
        }
        DataType::Timestamp(..) => {
            let mut column = TimestampMillisecondBuilder::with_capacity(rows.len());
            ints.for_each(|value| column.append_option(value));
            Arc::new(column.finish())
        }
        _ => {
            let mut column = Int64Builder::with_capacity(rows.len());
            ints.for_each(|value| column.append_option(value));
            Arc::new(column.finish())
        }
    })
}

#[async_trait]
impl TableProvider for RollupTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let bucket = self.bucket_column();
        let all = i64::MIN..i64::MAX;
        Ok(pushdown::decide(filters, |filter| pushdown::time_range(std::slice::from_ref(filter), bucket) != all))
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let buckets = pushdown::time_range(filters, self.bucket_column());
        let table = self.clone();
        let open = move || -> galoo_storage::Result<_> {
            Ok(Box::new(table.batches(&buckets)?) as Box<dyn Iterator<Item = _> + Send>)
        };
        let name = format!("rollup/{}", self.definition.name);
        let partition: Arc<dyn PartitionStream> = Arc::new(Partition::new(self.schema.clone(), name, open));
        let plan = StreamingTableExec::try_new(self.schema.clone(), vec![partition], projection, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}
