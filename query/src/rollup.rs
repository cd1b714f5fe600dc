//! A rollup as a table: a row a bucket and group, merged over all shards of one cut.

pub mod define;
pub mod statement;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringViewBuilder, TimestampMillisecondBuilder},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    error::Result,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column},
    physical_plan::{
        ExecutionPlan,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use galoo_storage::{
    rollup::{
        Aggregate, Definition, Operand, Shown,
        cache::RollupCache,
        cell::Value,
        read::{RollupRows, Slice},
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
    tier: usize,
    cache: Arc<RollupCache>,
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
        Aggregate::First(operand, _) | Aggregate::Last(operand, _) => operand_type(operand),
        Aggregate::Avg(_) | Aggregate::Quantile(..) => DataType::Float64,
    }
}

impl RollupTable {
    /// Makes the table of a rollup's tier.
    pub fn new(views: Arc<[View]>, definition: Arc<Definition>, tier: usize, cache: Arc<RollupCache>) -> Self {
        let field = |(name, shown): &(String, Shown)| match shown {
            Shown::Bucket => Field::new(name, TIME, false),
            Shown::Group(place) => {
                let operand = &definition.groups[*place].operand;
                let nullable = definition.groups_max.is_some() || matches!(operand, Operand::Property { .. });
                Field::new(name, operand_type(operand), nullable)
            }
            Shown::Aggregate(place) => {
                let aggregate = &definition.aggregates[*place];
                let counts = matches!(aggregate, Aggregate::Count(_) | Aggregate::DistinctPlayers);
                Field::new(name, aggregate_type(aggregate), !counts)
            }
            Shown::IsOther => Field::new(name, DataType::Boolean, false),
        };
        let schema = Arc::new(Schema::new(definition.columns.iter().map(field).collect::<Vec<_>>()));
        Self { views, definition, tier, cache, schema }
    }

    /// The order in which rows come: by bucket and groups, as far as the columns that are wanted show them. If the player is
    /// one of the groups they come by player first, of which no column shows the order.
    fn ordering(&self, shown: &[Shown], schema: &Schema) -> Option<LexOrdering> {
        if self.definition.groups_by_player() {
            return None;
        }
        // Of a bucket, `other` comes last, and its groups are null.
        let ordered = if self.definition.groups_max.is_some() { 0 } else { self.definition.groups.len() };
        let wanted = std::iter::once(Shown::Bucket).chain((0..ordered).map(Shown::Group));
        let places = wanted.map_while(|wanted| shown.iter().position(|shown| *shown == wanted));
        let options = SortOptions { descending: false, nulls_first: true };
        let column = |place: usize| Arc::new(Column::new(schema.field(place).name(), place));
        LexOrdering::new(places.map(|place| PhysicalSortExpr::new(column(place), options)))
    }

    fn bucket_column(&self) -> &str {
        let shown = self.definition.columns.iter().find(|(_, shown)| *shown == Shown::Bucket);
        shown.map_or("", |(name, _)| name)
    }
}

/// Rows of a read, batch by batch: of the columns that are wanted.
struct Batches {
    definition: Arc<Definition>,
    /// The wanted columns.
    shown: Vec<Shown>,
    schema: SchemaRef,
    rows: RollupRows,
}

impl Batches {
    fn next_batch(&mut self) -> galoo_storage::Result<Option<RecordBatch>> {
        let mut columns: Vec<_> = self.shown.iter().map(|shown| Builder::new(&self.definition, *shown)).collect();
        let needs_groups = self.shown.iter().any(|shown| matches!(shown, Shown::Group(_)));
        let mut count = 0;
        while count < BATCH_ROWS
            && let Some(row) = self.rows.next()?
        {
            let groups = if needs_groups { row.groups()? } else { Vec::new() };
            for (column, shown) in columns.iter_mut().zip(&self.shown) {
                match shown {
                    Shown::Bucket => column.append_int(Some(row.bucket_ms()?)),
                    Shown::Group(place) => column.append(&groups[*place]),
                    Shown::IsOther => column.append(&Value::Bool(row.is_other())),
                    Shown::Aggregate(place) => {
                        column.append(&row.value(*place).map_err(galoo_storage::Error::SumTooLarge)?);
                    }
                }
            }
            count += 1;
        }
        if count == 0 {
            return Ok(None);
        }
        let columns = columns.iter_mut().map(Builder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        Ok(Some(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?))
    }
}

impl Iterator for Batches {
    type Item = galoo_storage::Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

/// A column that is being filled; what does not have its type is null.
enum Builder {
    Time(TimestampMillisecondBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
    Text(StringViewBuilder),
}

impl Builder {
    fn new(definition: &Definition, shown: Shown) -> Self {
        let data_type = match shown {
            Shown::Bucket => TIME,
            Shown::Group(place) => operand_type(&definition.groups[place].operand),
            Shown::IsOther => DataType::Boolean,
            Shown::Aggregate(place) => aggregate_type(&definition.aggregates[place]),
        };
        match data_type {
            DataType::Timestamp(..) => Self::Time(TimestampMillisecondBuilder::new()),
            DataType::Int64 => Self::Int(Int64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            _ => Self::Text(StringViewBuilder::new()),
        }
    }

    fn append_int(&mut self, value: Option<i64>) {
        match self {
            Self::Time(column) => column.append_option(value),
            Self::Int(column) => column.append_option(value),
            Self::Float(column) => column.append_null(),
            Self::Bool(column) => column.append_null(),
            Self::Text(column) => column.append_null(),
        }
    }

    fn append(&mut self, value: &Value<'_>) {
        match (self, value) {
            (Self::Bool(column), Value::Bool(value)) => column.append_value(*value),
            (Self::Text(column), Value::Text(value)) => column.append_value(value),
            (Self::Float(column), Value::Float(value)) => column.append_value(*value),
            (column, Value::Int(value)) => column.append_int(Some(*value)),
            (column, _) => column.append_int(None),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Time(column) => Arc::new(column.finish()),
            Self::Int(column) => Arc::new(column.finish()),
            Self::Float(column) => Arc::new(column.finish()),
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
        }
    }
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
        let mut shown: Vec<Shown> = self.definition.columns.iter().map(|(_, shown)| *shown).collect();
        let mut schema = self.schema.clone();
        if let Some(places) = projection {
            shown = places.iter().map(|place| shown[*place]).collect();
            schema = Arc::new(schema.project(places)?);
        }
        let ordering = self.ordering(&shown, &schema);
        let (table, wanted) = (self.clone(), schema.clone());
        let open = move || -> galoo_storage::Result<_> {
            let (definition, buckets_ms) = (table.definition.clone(), buckets.clone());
            let slice = Slice { definition, tier: table.tier, buckets_ms };
            let rows = RollupRows::open(&table.views, &slice, &table.cache)?;
            let (definition, shown, schema) = (table.definition.clone(), shown.clone(), wanted.clone());
            Ok(Box::new(Batches { definition, shown, schema, rows }) as Box<dyn Iterator<Item = _> + Send>)
        };
        let name = format!("rollup/{}", self.definition.table(self.tier));
        let partition: Arc<dyn PartitionStream> = Arc::new(Partition::new(schema.clone(), name, open));
        let plan = StreamingTableExec::try_new(schema, vec![partition], None, ordering, false, limit)?;
        Ok(Arc::new(plan))
    }
}
