//! The table `events`: a row an event, a column a property.

use std::sync::Arc;

use arrow::{
    array::RecordBatchOptions,
    datatypes::{Field, Schema, SchemaRef},
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
use galoo_storage::view::{Catalog, Column, Source, View};

use crate::{EVENT_COLUMNS, PROPERTY_PREFIX, external, pushdown, stream::Partition};

/// A game's events over one cut of its shards.
#[derive(Clone)]
pub struct EventsTable {
    views: Arc<[View]>,
    columns: Arc<[Column]>,
    schema: SchemaRef,
    partitions: usize,
}

impl std::fmt::Debug for EventsTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventsTable").field("shards", &self.views.len()).finish_non_exhaustive()
    }
}

/// The column of a property: its own name, or `prop.NAME` for one that the store uses, also behind such a prefix. No two
/// properties have the same column.
fn column_name(property: &str) -> String {
    let mut root = property;
    while let Some(rest) = root.strip_prefix(PROPERTY_PREFIX) {
        root = rest;
    }
    if EVENT_COLUMNS.contains(&root) { format!("{PROPERTY_PREFIX}{property}") } else { property.to_owned() }
}

impl EventsTable {
    /// Makes the table; its columns are the properties that the shards know at this moment.
    pub fn new(views: Arc<[View]>, partitions: usize) -> Result<Self> {
        let properties = Catalog::of(&views).map_err(external)?;
        let mut columns = vec![Column::PlayerId, Column::EventTime, Column::EventType, Column::Seq, Column::IngestTime];
        let mut names: Vec<String> = EVENT_COLUMNS[..5].iter().map(|name| (*name).to_owned()).collect();
        for (name, entry) in properties.iter() {
            names.push(column_name(name));
            columns.push(Column::Property { name: name.to_owned(), column_type: entry.column_type });
        }
        columns.push(Column::Properties);
        names.push("properties".to_owned());
        let field = |(name, column): (String, &Column)| {
            Field::new(name, column.data_type(), matches!(column, Column::Property { .. }))
        };
        let schema = Arc::new(Schema::new(names.into_iter().zip(&columns).map(field).collect::<Vec<_>>()));
        Ok(Self { views, columns: columns.into(), schema, partitions })
    }

    /// Returns what a column of the table is made from.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.schema.index_of(name).ok().map(|place| &self.columns[place])
    }

    /// Deals the sources of all shards out to the partitions, the largest first to the one with the fewest rows.
    fn deal(&self) -> Result<Vec<Vec<(View, Source)>>> {
        let mut sources: Vec<(View, Source)> = Vec::new();
        for view in self.views.iter() {
            let sources_here = view.sources().map_err(external)?.iter().filter(|source| source.rows() > 0);
            sources.extend(sources_here.map(|source| (view.clone(), source.clone())));
        }
        sources.sort_by_key(|(_, source)| std::cmp::Reverse(source.rows()));
        let mut dealt: Vec<(u64, Vec<(View, Source)>)> = vec![(0, Vec::new()); self.partitions.max(1)];
        for (view, source) in sources {
            if let Some(least) = dealt.iter_mut().min_by_key(|(rows, _)| *rows) {
                least.0 += source.rows();
                least.1.push((view, source));
            }
        }
        Ok(dealt.into_iter().map(|(_, sources)| sources).collect())
    }
}

#[async_trait]
impl TableProvider for EventsTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(pushdown::decide(filters, pushdown::is_useful))
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (schema, columns) = match projection {
            None => (self.schema.clone(), self.columns.clone()),
            Some(places) => {
                let columns = places.iter().map(|place| self.columns[*place].clone()).collect();
                (Arc::new(self.schema.project(places)?), columns)
            }
        };
        let filter = Arc::new(pushdown::event_filter(filters));
        let partitions = self.deal()?.into_iter().enumerate().map(|(place, sources)| {
            let (columns, filter, renamed) = (columns.clone(), filter.clone(), schema.clone());
            let open = move || -> galoo_storage::Result<_> {
                let (columns, filter, renamed) = (columns.clone(), filter.clone(), renamed.clone());
                let batches = sources.clone().into_iter().flat_map(move |(view, source)| {
                    let batches: galoo_storage::view::Batches = match view.source_batches(&source, &columns, &filter) {
                        Ok(batches) => batches,
                        Err(error) => Box::new(std::iter::once(Err(error))),
                    };
                    batches
                });
                let batches = batches.map(move |batch| {
                    let batch = batch?;
                    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                    Ok(RecordBatch::try_new_with_options(renamed.clone(), batch.columns().to_vec(), &rows)?)
                });
                Ok(Box::new(batches) as Box<dyn Iterator<Item = _> + Send>)
            };
            Arc::new(Partition::new(schema.clone(), format!("events/{place}"), open)) as Arc<dyn PartitionStream>
        });
        let plan = StreamingTableExec::try_new(schema.clone(), partitions.collect(), None, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}
