//! The tables `state`, a row a cell, and `players`, a row a player and a column a qualifier.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringViewBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef},
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
use galoo_proto::value::{Value, value::Kind};
use galoo_storage::{
    properties::{ColumnType, Kinds, float_text},
    view::{RowCells, View},
};

use crate::{external, pushdown, stream::Partition};

const PLAYER_ID: &str = "player_id";

/// A game's state over one cut of its shards.
#[derive(Clone)]
pub struct StateTable {
    views: Arc<[View]>,
    schema: SchemaRef,
    /// For `players`: family and qualifier of each column behind the first.
    qualifiers: Option<Arc<[(String, String)]>>,
}

impl std::fmt::Debug for StateTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateTable").field("shards", &self.views.len()).finish_non_exhaustive()
    }
}

/// Returns a cell's value as text; null has none.
pub fn value_text(value: &Value) -> Option<String> {
    Some(match value.kind.as_ref()? {
        Kind::Null(_) => return None,
        Kind::Bool(value) => value.to_string(),
        Kind::Int(value) => value.to_string(),
        Kind::Float(value) if value.is_finite() => float_text(*value),
        Kind::Float(value) => value.to_string(),
        Kind::String(text) | Kind::Json(text) => text.clone(),
        Kind::Bytes(bytes) => bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
    })
}

impl StateTable {
    /// The table `state`: player_id, family, qualifier, value (as text), version (commit HLC).
    pub fn cells(views: Arc<[View]>) -> Self {
        let text = |name: &str, nullable| Field::new(name, DataType::Utf8View, nullable);
        let schema = Schema::new(vec![
            text(PLAYER_ID, false),
            text("family", false),
            text("qualifier", false),
            text("value", true),
            Field::new("version", DataType::Int64, false),
        ]);
        Self { views, schema: Arc::new(schema), qualifiers: None }
    }

    /// The table `players`: a column a qualifier, `family:qualifier` where two families have one of the name. A name that
    /// another column has already gets the family before it once more.
    pub fn players(views: Arc<[View]>) -> Result<Self> {
        let mut known: BTreeMap<(String, String), Kinds> = BTreeMap::new();
        for view in views.iter() {
            for (family, qualifier, kinds) in view.qualifiers().map_err(external)? {
                let all = known.entry((family, qualifier)).or_default();
                *all = all.with(kinds);
            }
        }
        let mut fields = vec![Field::new(PLAYER_ID, DataType::Utf8View, false)];
        let mut families: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, qualifier) in known.keys() {
            *families.entry(qualifier).or_default() += 1;
        }
        let mut taken = BTreeSet::from([PLAYER_ID.to_owned()]);
        for ((family, qualifier), kinds) in &known {
            let is_shared = families.get(qualifier.as_str()).is_some_and(|families| *families > 1);
            let mut name = if is_shared { format!("{family}:{qualifier}") } else { qualifier.clone() };
            while !taken.insert(name.clone()) {
                name = format!("{family}:{name}");
            }
            let data_type = match kinds.column_type() {
                ColumnType::Bool => DataType::Boolean,
                ColumnType::Int => DataType::Int64,
                ColumnType::Float => DataType::Float64,
                ColumnType::Text => DataType::Utf8View,
            };
            fields.push(Field::new(name, data_type, true));
        }
        let qualifiers = known.into_keys().collect();
        Ok(Self { views, schema: Arc::new(Schema::new(fields)), qualifiers: Some(qualifiers) })
    }

    fn batch(&self, rows: &[RowCells]) -> galoo_storage::Result<RecordBatch> {
        let arrays = match &self.qualifiers {
            None => cell_columns(rows),
            Some(qualifiers) => player_columns(rows, qualifiers, &self.schema),
        };
        Ok(RecordBatch::try_new(self.schema.clone(), arrays)?)
    }
}

fn cell_columns(rows: &[RowCells]) -> Vec<ArrayRef> {
    let (mut players, mut families, mut qualifiers) =
        (StringViewBuilder::new(), StringViewBuilder::new(), StringViewBuilder::new());
    let (mut values, mut versions) = (StringViewBuilder::new(), Int64Builder::new());
    for row in rows {
        for cell in &row.cells {
            players.append_value(&row.player);
            families.append_value(&cell.family);
            qualifiers.append_value(&cell.qualifier);
            values.append_option(cell.value.as_ref().and_then(value_text));
            versions.append_value(cell.version.cast_signed());
        }
    }
    vec![
        Arc::new(players.finish()),
        Arc::new(families.finish()),
        Arc::new(qualifiers.finish()),
        Arc::new(values.finish()),
        Arc::new(versions.finish()),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a float column is chosen only where every integer is exact")]
fn player_columns(rows: &[RowCells], qualifiers: &[(String, String)], schema: &Schema) -> Vec<ArrayRef> {
    let rows: Vec<_> = rows.iter().filter(|row| !row.cells.is_empty()).collect();
    let mut players = StringViewBuilder::new();
    rows.iter().for_each(|row| players.append_value(&row.player));
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(players.finish())];
    for (place, (family, qualifier)) in qualifiers.iter().enumerate() {
        let values = rows.iter().map(|row| {
            let cell = row.cells.iter().find(|cell| cell.family == *family && cell.qualifier == *qualifier);
            cell.and_then(|cell| cell.value.as_ref())
        });
        arrays.push(match schema.field(place + 1).data_type() {
            DataType::Boolean => {
                let mut column = BooleanBuilder::new();
                values.for_each(|value| {
                    column.append_option(match value.and_then(|value| value.kind.as_ref()) {
                        Some(Kind::Bool(value)) => Some(*value),
                        _ => None,
                    });
                });
                Arc::new(column.finish())
            }
            DataType::Int64 => {
                let mut column = Int64Builder::new();
                values.for_each(|value| {
                    column.append_option(match value.and_then(|value| value.kind.as_ref()) {
                        Some(Kind::Int(value)) => Some(*value),
                        _ => None,
                    });
                });
                Arc::new(column.finish())
            }
            DataType::Float64 => {
                let mut column = Float64Builder::new();
                values.for_each(|value| {
                    column.append_option(match value.and_then(|value| value.kind.as_ref()) {
                        Some(Kind::Float(value)) => Some(*value),
                        Some(Kind::Int(value)) => Some(*value as f64),
                        _ => None,
                    });
                });
                Arc::new(column.finish())
            }
            _ => {
                let mut column = StringViewBuilder::new();
                values.for_each(|value| column.append_option(value.and_then(value_text)));
                Arc::new(column.finish())
            }
        });
    }
    arrays
}

#[async_trait]
impl TableProvider for StateTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(pushdown::decide(filters, |filter| pushdown::event_filter(std::slice::from_ref(filter)).players.is_some()))
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let players = pushdown::event_filter(filters).players;
        let partitions = (0..self.views.len()).map(|place| {
            let (table, players) = (self.clone(), players.clone());
            let open = move || -> galoo_storage::Result<_> {
                let table = table.clone();
                let pages = table.views[place].state_rows(players.as_deref());
                let batches = pages.map(move |page| table.batch(&page?));
                Ok(Box::new(batches) as Box<dyn Iterator<Item = _> + Send>)
            };
            Arc::new(Partition::new(self.schema.clone(), format!("state/{place}"), open)) as Arc<dyn PartitionStream>
        });
        let plan =
            StreamingTableExec::try_new(self.schema.clone(), partitions.collect(), projection, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}
