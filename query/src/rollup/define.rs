//! The definition that the SELECT of a `CREATE ROLLUP` makes.
//!
//! The SELECT is planned as any other, so that names and types are checked by the same rules; the plan must then be one
//! aggregate over `events` that can be kept event by event. Whatever else it does is refused with the reason.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::{
    common::{Column as ColumnRef, ScalarValue},
    error::DataFusionError,
    logical_expr::{
        Aggregate as AggregatePlan, BinaryExpr, Expr, LogicalPlan, Operator, SortExpr as Sort,
        expr::{AggregateFunction, InList, NullTreatment},
        utils::split_conjunction,
    },
    prelude::SessionContext,
};
use galoo_proto::{
    limits::ROLLUP_NAME_BYTES_MAX,
    rollup::{
        Aggregate, Bucket, Column, Field, Function, Group, Literal, Operand, Predicate, Property, PropertyType, Rollup,
        Test, Tier, column::Kind, literal, operand,
    },
};
use galoo_storage::{
    properties::ColumnType,
    rollup::{Definition, FORMAT_VERSION, InvalidRollup},
    view,
};

use super::statement::Options;
use crate::{EventsTable, approx_quantile, number_bucket, time_bucket};

/// Why a rollup cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DefineError {
    /// The statement does not parse.
    #[error("{0}")]
    Syntax(String),
    /// The name is none for a rollup.
    #[error(
        "rollup name {0:?}: it must be 1 to {ROLLUP_NAME_BYTES_MAX} bytes of a-z, 0-9 and _, a letter first, and no table's name"
    )]
    Name(String),
    /// The SELECT does not plan.
    #[error(transparent)]
    Plan(#[from] DataFusionError),
    /// The SELECT cannot be kept incrementally.
    #[error("a rollup cannot be kept for this SELECT: {0}")]
    Unkept(String),
    /// Nor can the definition that it makes.
    #[error("a rollup cannot be kept for this SELECT: {0}")]
    Invalid(#[from] InvalidRollup),
}

fn unkept(reason: impl Into<String>) -> DefineError {
    DefineError::Unkept(reason.into())
}

fn check_name(name: &str) -> Result<(), DefineError> {
    let fits = name.len() <= ROLLUP_NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
        && !["events", "state", "players"].contains(&name);
    if fits { Ok(()) } else { Err(DefineError::Name(name.to_owned())) }
}

/// Makes the definition of a SELECT over the game that `context` is of; its number is not given yet.
pub async fn plan(
    context: &SessionContext,
    name: &str,
    select: &str,
    options: &Options,
) -> Result<Rollup, DefineError> {
    check_name(name)?;
    let plan = context.state().create_logical_plan(select).await?;
    let (shown, aggregate) = match &plan {
        LogicalPlan::Projection(projection) => match projection.input.as_ref() {
            LogicalPlan::Aggregate(aggregate) => (projection.expr.as_slice(), aggregate),
            LogicalPlan::Filter(_) => return Err(unkept("HAVING is not kept; filter when you read the rollup")),
            _ => return Err(unkept("it is not one SELECT of aggregates with a GROUP BY")),
        },
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            return Err(unkept("ORDER BY and LIMIT are not kept; order when you read the rollup"));
        }
        LogicalPlan::Distinct(_) => return Err(unkept("DISTINCT is not kept")),
        _ => return Err(unkept("it is not one SELECT of aggregates with a GROUP BY")),
    };
    let (predicate, source) = match aggregate.input.as_ref() {
        LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
        other => (None, other),
    };
    let source = match source {
        LogicalPlan::SubqueryAlias(alias) => alias.input.as_ref(),
        other => other,
    };
    let LogicalPlan::TableScan(scan) = source else { return Err(unkept("it must read events alone")) };
    if scan.table_name.table() != "events" {
        return Err(unkept(format!("it must read events, not {}", scan.table_name.table())));
    }
    let provider = context.table_provider(scan.table_name.clone()).await?;
    let events = provider.downcast_ref::<EventsTable>().ok_or_else(|| unkept("it must read events"))?;
    let reading = Reading { events, aggregate };
    let (mut event_types, mut predicates) = (Vec::new(), Vec::new());
    for one in predicate.map_or_else(Vec::new, split_conjunction) {
        match types_of(one).filter(|_| event_types.is_empty()) {
            Some(types) => event_types = types,
            None => predicates.extend(reading.predicates(one)?),
        }
    }
    if aggregate.group_expr.iter().any(|group| matches!(group, Expr::GroupingSet(_))) {
        return Err(unkept("GROUP BY ROLLUP, CUBE and GROUPING SETS are not kept; make a rollup of each"));
    }
    let (mut columns, mut bucket_ms, mut groups) = (Vec::new(), 0, Vec::new());
    for expr in shown {
        let (kind, place) = reading.kind(expr, &mut bucket_ms)?;
        groups.extend(place);
        columns.push(Column { name: output_name(expr), kind: Some(kind) });
    }
    if let Some(hidden) = (0..aggregate.group_expr.len()).find(|place| !groups.contains(place)) {
        return Err(unkept(format!("the group {} is not among the columns", aggregate.group_expr[hidden])));
    }
    let (version, statement) = (FORMAT_VERSION, format!("{select}{options}"));
    let name = name.to_owned();
    let groups_max = options.max_groups.unwrap_or(0);
    let rest = Rollup { erasure: options.erasure.unwrap_or_default().into(), ..Rollup::default() };
    let rollup = Rollup { version, name, statement, event_types, predicates, columns, groups_max, ..rest };
    if !rollup.columns.iter().any(|column| matches!(column.kind, Some(Kind::Bucket(_)))) {
        return Err(unkept("GROUP BY needs time_bucket('width', event_time)"));
    }
    let tiers = tiers(bucket_ms, options)?;
    let rollup = Rollup { tiers, ..rollup };
    Definition::parse(&rollup)?;
    Ok(rollup)
}

fn tiers(bucket_ms: i64, options: &Options) -> Result<Vec<Tier>, DefineError> {
    let widths = options.tiers.iter().flatten().map(|width| Ok((time_bucket::text_width_ms(width)?, width)));
    let widths = widths.collect::<Result<Vec<_>, DataFusionError>>()?;
    if let Some((first, written)) = widths.first()
        && *first != bucket_ms
    {
        return Err(unkept(format!("the first of its tiers is {written:?}, not the width of its time bucket")));
    }
    let widths = if widths.is_empty() { vec![bucket_ms] } else { widths.into_iter().map(|(width, _)| width).collect() };
    let spans = options.retention.iter().flatten().map(|span| match span.as_str() {
        "none" => Ok(0),
        span => time_bucket::text_span_ms(span),
    });
    let spans = spans.collect::<Result<Vec<_>, DataFusionError>>()?;
    if !spans.is_empty() && spans.len() != widths.len() {
        return Err(unkept(format!(
            "{} retentions for {} tiers; give one for each, or 'none'",
            spans.len(),
            widths.len()
        )));
    }
    let spans = spans.into_iter().chain(std::iter::repeat(0));
    Ok(widths
        .into_iter()
        .zip(spans)
        .map(|(bucket_ms, retention_ms)| Tier { bucket_ms, retention_ms, ..Tier::default() })
        .collect())
}

struct Reading<'a> {
    events: &'a EventsTable,
    aggregate: &'a AggregatePlan,
}

impl Reading<'_> {
    /// Returns what a column shows, and the place of its group if it is one.
    fn kind(&self, expr: &Expr, bucket_ms: &mut i64) -> Result<(Kind, Option<usize>), DefineError> {
        let Expr::Column(column) = unaliased(expr) else {
            return Err(unkept(format!("{expr} is computed from aggregates; compute it when you read the rollup")));
        };
        let place = self.aggregate.schema.index_of_column(column)?;
        let Some(group) = self.aggregate.group_expr.get(place) else {
            let function = &self.aggregate.aggr_expr[place - self.aggregate.group_expr.len()];
            return Ok((Kind::Aggregate(self.function(function)?), None));
        };
        let group = unaliased(group);
        if let Some((width, time)) = time_bucket::of(group)? {
            if self.operand(time)?.column != Some(operand::Column::Field(Field::EventTime.into())) {
                return Err(unkept("its time bucket must be over event_time"));
            }
            *bucket_ms = width;
            return Ok((Kind::Bucket(Bucket {}), Some(place)));
        }
        let ranges = number_bucket::of(group, |number| Some(self.operand_type(number).ok()?.1))?;
        let (width, over) = ranges.map_or((None, group), |(width, over)| (Some(width), over));
        Ok((Kind::Group(Group { operand: Some(self.operand(over)?), width }), Some(place)))
    }

    /// Returns an operand and its column's type.
    fn operand_type(&self, expr: &Expr) -> Result<(Operand, DataType), DefineError> {
        let operand = self.operand(expr)?;
        let data_type = match unaliased(expr) {
            Expr::Column(column) => self.events.column(&column.name).map(view::Column::data_type),
            _ => None,
        };
        Ok((operand, data_type.unwrap_or(DataType::Null)))
    }

    /// Reads one of the conditions that WHERE joins by AND.
    fn predicates(&self, expr: &Expr) -> Result<Vec<Predicate>, DefineError> {
        let refused = || {
            unkept(format!(
                "WHERE {expr} is not kept; columns compared with constants of their type are, by =, <>, <, <=, >, >=, IN, \
                 NOT IN, BETWEEN and IS [NOT] NULL, joined by AND"
            ))
        };
        let of = |column: &Expr, test: Test, constants: &[&Expr]| -> Result<Predicate, DefineError> {
            let (operand, data_type) = self.operand_type(column)?;
            let literals = constants.iter().map(|one| constant(one).and_then(|one| literal(one, &data_type)));
            let literals = literals.collect::<Option<Vec<_>>>().ok_or_else(refused)?;
            Ok(Predicate { operand: Some(operand), test: test.into(), literals })
        };
        let is = |column: &Expr, value: bool| of(column, Test::Is, &[&Expr::Literal(value.into(), None)]);
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (column, op, value) = match (constant(left), constant(right)) {
                    (None, Some(_)) => (left, *op, right),
                    (Some(_), None) => (right, op.swap().ok_or_else(refused)?, left),
                    _ => return Err(refused()),
                };
                let test = match op {
                    Operator::Eq => Test::Is,
                    Operator::NotEq => Test::IsNot,
                    Operator::Lt => Test::Less,
                    Operator::LtEq => Test::AtMost,
                    Operator::Gt => Test::Greater,
                    Operator::GtEq => Test::AtLeast,
                    _ => return Err(refused()),
                };
                vec![of(column, test, &[value])?]
            }
            Expr::InList(InList { expr: column, list, negated }) => {
                let test = if *negated { Test::IsNot } else { Test::Is };
                vec![of(column, test, &list.iter().collect::<Vec<_>>())?]
            }
            Expr::Between(between) if !between.negated => {
                let column = &between.expr;
                vec![of(column, Test::AtLeast, &[&between.low])?, of(column, Test::AtMost, &[&between.high])?]
            }
            Expr::IsNull(column) => vec![of(column, Test::IsNull, &[])?],
            Expr::IsNotNull(column) => vec![of(column, Test::IsNotNull, &[])?],
            Expr::Column(_) => vec![is(expr, true)?],
            Expr::Not(column) => vec![is(column, false)?],
            _ => return Err(refused()),
        })
    }

    fn operand(&self, expr: &Expr) -> Result<Operand, DefineError> {
        let Expr::Column(ColumnRef { name, .. }) = unaliased(expr) else {
            return Err(unkept(format!("{expr} is computed; groups and arguments must be columns of events")));
        };
        let field = |field: Field| Operand { column: Some(operand::Column::Field(field.into())) };
        match self.events.column(name) {
            Some(view::Column::PlayerId) => Ok(field(Field::PlayerId)),
            Some(view::Column::EventType) => Ok(field(Field::EventType)),
            Some(view::Column::EventTime) => Ok(field(Field::EventTime)),
            Some(view::Column::Property { name, column_type }) => {
                let kind = match column_type {
                    ColumnType::Bool => PropertyType::Bool,
                    ColumnType::Int => PropertyType::Int,
                    ColumnType::Float => PropertyType::Float,
                    ColumnType::Text => PropertyType::Text,
                };
                let property = Property { name: name.clone(), r#type: kind.into() };
                Ok(Operand { column: Some(operand::Column::Property(property)) })
            }
            _ => Err(unkept(format!("column {name:?} is not kept in rollups"))),
        }
    }

    fn function(&self, expr: &Expr) -> Result<Aggregate, DefineError> {
        let Expr::AggregateFunction(AggregateFunction { func, params }) = unaliased(expr) else {
            return Err(unkept(format!("{expr} is no aggregate")));
        };
        let in_order = matches!(func.name(), "first_value" | "last_value");
        if params.filter.is_some() || !(in_order || params.order_by.is_empty()) {
            return Err(unkept(format!("{expr}: FILTER and ORDER BY in an aggregate are not kept")));
        }
        if in_order && !is_by_time(&params.order_by) {
            return Err(unkept(format!("{expr}: it needs ORDER BY event_time, or event_time, seq")));
        }
        let mut quantile = 0.0;
        let function = match (func.name(), params.distinct) {
            ("count", false) => Function::Count,
            ("count", true) => Function::CountDistinct,
            ("sum", false) => Function::Sum,
            ("min", _) => Function::Min,
            ("max", _) => Function::Max,
            ("avg", false) => Function::Avg,
            ("first_value", false) => Function::First,
            ("last_value", false) => Function::Last,
            (approx_quantile::NAME, false) => Function::Quantile,
            (name, _) => {
                return Err(unkept(format!(
                    "{name} is not kept; count, sum, min, max, avg, approx_quantile, first_value, last_value and \
                     count(distinct player_id) are"
                )));
            }
        };
        let operand = match params.args.as_slice() {
            // count(*) is count(1).
            [Expr::Literal(value, _)] if function == Function::Count && !value.is_null() => None,
            [expr, Expr::Literal(value, _)] if function == Function::Quantile => {
                quantile = approx_quantile::quantile(value)?;
                Some(self.operand(expr)?)
            }
            [expr] => Some(self.operand(expr)?),
            _ => return Err(unkept(format!("{expr} needs one argument"))),
        };
        let skips_nulls = params.null_treatment == Some(NullTreatment::IgnoreNulls);
        Ok(Aggregate { function: function.into(), operand, quantile, skips_nulls })
    }
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// The name of a column: its alias, or what Postgres would call it.
fn output_name(expr: &Expr) -> String {
    match expr {
        Expr::Alias(alias) => alias.name.clone(),
        Expr::Column(column) => column.name.split('(').next().unwrap_or_default().to_owned(),
        other => other.to_string(),
    }
}

/// Whether an order is that of `event_time`, and of `seq` within it.
fn is_by_time(order: &[Sort]) -> bool {
    let names = order.iter().map(|sort| match &sort.expr {
        Expr::Column(column) if sort.asc => column.name.as_str(),
        _ => "",
    });
    let names: Vec<_> = names.collect();
    matches!(names.as_slice(), ["event_time"] | ["event_time", "seq"])
}

fn constant(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) if !value.is_null() => Some(value),
        _ => None,
    }
}

/// A constant as one of a column's type, if it is the same value there.
fn literal(value: &ScalarValue, data_type: &DataType) -> Option<Literal> {
    let is_text = |data_type: &DataType| data_type.is_string();
    let is_time = matches!(data_type, DataType::Timestamp(..));
    let cast = value.cast_to(data_type).ok()?;
    // A text is a time as it is written, to the millisecond, and nothing else.
    let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let is_same = is_time
        && is_text(&value.data_type())
        && cast.cast_to(&nanoseconds).ok()? == value.cast_to(&nanoseconds).ok()?
        || !(is_time && is_text(&value.data_type()))
            && is_text(data_type) == is_text(&value.data_type())
            && cast.cast_to(&value.data_type()).ok()? == *value;
    let kind = match cast {
        ScalarValue::Boolean(Some(value)) => literal::Kind::Bool(value),
        ScalarValue::Int64(Some(value)) | ScalarValue::TimestampMillisecond(Some(value), _) => {
            literal::Kind::Int(value)
        }
        ScalarValue::Float64(Some(value)) => literal::Kind::Float(value),
        other => literal::Kind::Text(other.try_as_str().flatten()?.to_owned()),
    };
    is_same.then_some(Literal { kind: Some(kind) })
}

/// Reads a condition that names one type, or a list of them.
fn types_of(predicate: &Expr) -> Option<Vec<String>> {
    let is_type = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == "event_type");
    let text = |expr: &Expr| constant(expr)?.try_as_str().flatten().map(str::to_owned);
    match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_type(left) => Some(vec![text(right)?]),
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_type(right) => Some(vec![text(left)?]),
        Expr::InList(InList { expr, list, negated: false }) if is_type(expr) => list.iter().map(text).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use galoo_storage::engine::{Direction, Family, WriteBatch};

    use super::*;
    use crate::{
        Engine, Options,
        world::{KEYSPACE, World, event},
    };

    const SELECTS: [&str; 7] = [
        "SELECT time_bucket('1 hour', event_time) AS bucket, event_type, count(*) AS events, \
         count(distinct player_id) AS players FROM events GROUP BY 1, 2",
        "SELECT item, date_trunc('day', event_time) AS day, sum(price) AS revenue, avg(price) AS mean, max(weight) AS heaviest, \
         count(item) AS items FROM events WHERE event_type IN ('buy', 'kill') GROUP BY item, date_trunc('day', event_time)",
        "SELECT player_id, pve, time_bucket(INTERVAL '15 minutes', e.event_time) AS b, min(event_time) AS first, sum(weight) AS w \
         FROM events AS e GROUP BY 1, 2, 3",
        "SELECT time_bucket('1 week', event_time) AS week, count(*) AS n FROM events WHERE event_type = 'login' GROUP BY 1",
        "SELECT time_bucket('1 minute', event_time) AS minute, number_bucket(100, price) AS prices, count(*) AS n, avg(price) AS mean, \
         approx_quantile(price, 0.9) AS p90, approx_quantile(weight, 0) AS least FROM events WHERE price > 3 AND 500 >= price \
         AND event_type IN ('buy', 'kill') AND event_type <> 'kill' AND price NOT IN (6, 7) AND item IS NULL \
         AND event_time < '1970-01-01T09:00:00' GROUP BY 1, 2",
        "SELECT time_bucket('1 day', event_time) AS day, number_bucket(0.25, weight) AS weights, event_type, count(*) AS n \
         FROM events WHERE pve AND weight BETWEEN 3 AND 99.5 AND item = 'bow' GROUP BY 1, 2, 3",
        "SELECT time_bucket('1 hour', event_time) AS hour, event_type, first_value(item ORDER BY event_time, seq) AS opened, \
         last_value(price ORDER BY event_time, seq) IGNORE NULLS AS price, last_value(pve ORDER BY event_time, seq) AS pve \
         FROM events GROUP BY 1, 2",
    ];

    /// P4: a rollup shows what its SELECT gives, before, between and after covering, and not once a cell is wrong.
    #[tokio::test]
    async fn a_rollup_shows_what_its_select_gives() {
        let mut world = World::new();
        for (id, select) in (1..).zip(SELECTS) {
            world.define(id, &format!("r{id}"), select).await.expect("defined");
        }
        let more = event("late", 5, "buy", "");
        for step in 0..3 {
            for (id, select) in (1..).zip(SELECTS) {
                let (kept, raw) = (world.rows(&format!("SELECT * FROM r{id}")).await, world.rows(select).await);
                assert!(raw.len() > 1 || id == 4, "{raw:?}");
                assert_eq!(kept, raw, "r{id} at step {step}");
            }
            world.cover();
            world.append(vec![more.clone()]);
        }
        let part = world
            .rows("SELECT events FROM r1 WHERE bucket >= '1970-01-01T03:00:00' AND bucket < '1970-01-01T04:00:00'");
        assert_eq!(part.await.len(), 3);

        // One bit of one stored cell: the count of events.
        let cells = galoo_storage::key::rollup_cells(KEYSPACE, galoo_proto::RollupId(1));
        let snapshot = world.engine.snapshot();
        let mut rows = snapshot.rows(Family::Rollups, &cells.start..&cells.end, Direction::Forward).expect("reads");
        let (key, mut value) =
            rows.next().expect("reads").map(|(key, value)| (key.to_vec(), value.to_vec())).expect("a cell");
        value[1] ^= 1;
        let mut batch = WriteBatch::default();
        batch.put(Family::Rollups, key, value);
        world.engine.write(batch).expect("writes");
        // Nothing writes a cell like that, so what is kept in memory does not see it: a restart does.
        assert_eq!(world.rows("SELECT * FROM r1").await, world.rows(SELECTS[0]).await);
        world.queries = Engine::new(Options::default()).expect("engine");
        assert_ne!(world.rows("SELECT * FROM r1").await, world.rows(SELECTS[0]).await, "the proof sees nothing");
    }

    /// A rollup's rows come by bucket and groups: asked for in that order they are not sorted again, and any other order is
    /// right too.
    #[tokio::test]
    async fn rows_come_in_the_order_that_is_asked_for() {
        let mut world = World::new();
        for (id, select) in (1..).zip(SELECTS) {
            world.define(id, &format!("r{id}"), select).await.expect("defined");
        }
        for step in 0..2 {
            for (id, order, is_sorted) in [
                (1, "bucket, event_type", false),
                (1, "bucket", false),
                (1, "event_type, bucket", true),
                (1, "bucket DESC, event_type", true),
                (2, "day, item NULLS FIRST", false),
                (2, "day, item", true),
                (3, "b, player_id, pve", true),
                (4, "week", false),
            ] {
                let all = format!("SELECT * FROM r{id} ORDER BY {order}");
                let plan = world.ordered(&format!("EXPLAIN {all}")).await.concat();
                assert_eq!(plan.contains("SortExec"), is_sorted, "{all}: {plan}");
                let raw = format!("SELECT {order} FROM ({}) AS raw ORDER BY {order}", SELECTS[id - 1]);
                let columns = |sql: String| sql.replacen(" DESC", "", 1).replacen(" NULLS FIRST", "", 1);
                let kept = format!("SELECT {order} FROM r{id} ORDER BY {order}");
                assert_eq!(
                    world.ordered(&columns(kept)).await,
                    world.ordered(&columns(raw)).await,
                    "{all} at step {step}"
                );
            }
            world.cover();
        }
    }

    /// Each tier is a table; of its rows those of too many groups are one, and nothing is lost.
    #[tokio::test]
    async fn tiers_are_tables_and_groups_are_bounded() {
        let mut world = World::new();
        let select = |width: &str| {
            format!(
                "SELECT time_bucket('{width}', event_time) AS b, event_type, count(*) AS n, sum(price) AS s FROM events GROUP BY 1, 2"
            )
        };
        let tiers = "tiers = '1 minute, 1 hour, 7 days'";
        world.define(1, "kept", &select("1 minute")).await.expect("defined");
        world.define(2, "tiered", &format!("{} WITH ({tiers})", select("1 minute"))).await.expect("defined");
        world
            .define(3, "bound", &format!("{} WITH ({tiers}, max_groups = 2)", select("1 minute")))
            .await
            .expect("defined");
        for step in 0..2 {
            for (table, width) in
                [("kept", "1 minute"), ("tiered", "1 minute"), ("tiered_1h", "1 hour"), ("tiered_7d", "7 days")]
            {
                let (kept, raw) =
                    (world.rows(&format!("SELECT * FROM {table}")).await, world.rows(&select(width)).await);
                assert_eq!(kept, raw, "{table} at step {step}");
            }
            // Of three types in every hour two are kept by themselves, the same ones everywhere.
            let raw = format!("SELECT b, sum(n) AS n, sum(s) AS s FROM ({}) GROUP BY b", select("1 hour"));
            let kept = "SELECT b, sum(n) AS n, sum(s) AS s FROM bound_1h GROUP BY b";
            assert_eq!(world.rows(kept).await, world.rows(&raw).await, "at step {step}");
            let types = world.rows("SELECT DISTINCT is_other, event_type IS NULL FROM bound_1h").await;
            assert_eq!(types.len(), 2, "{types:?}");
            let types = world.rows("SELECT DISTINCT event_type FROM bound_1h WHERE NOT is_other").await;
            assert_eq!(types.len(), 2, "{types:?}");
            let ordered = world.ordered("SELECT b, is_other FROM bound_1h ORDER BY b, is_other").await;
            assert_eq!(ordered.len(), world.rows("SELECT * FROM bound_1h").await.len());
            world.cover();
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_with_the_reason() {
        let mut world = World::new();
        for (select, reason) in [
            ("SELECT count(*) AS n FROM events", "time_bucket"),
            ("SELECT event_type, count(*) AS n FROM events GROUP BY 1", "time_bucket"),
            ("SELECT time_bucket('1 month', event_time) AS b, count(*) AS n FROM events GROUP BY 1", "no fixed width"),
            ("SELECT date_trunc('month', event_time) AS b, count(*) AS n FROM events GROUP BY 1", "no fixed width"),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, stddev(price) AS n FROM events GROUP BY 1",
                "stddev is not kept",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, sum(price) / count(*) AS n FROM events GROUP BY 1",
                "computed",
            ),
            ("SELECT time_bucket('1 hour', event_time) AS b, sum(price + 1) AS n FROM events GROUP BY 1", "computed"),
            ("SELECT time_bucket('1 hour', event_time) AS b, sum(item) AS n FROM events GROUP BY 1", "sum"),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(distinct item) AS n FROM events GROUP BY 1",
                "count(distinct player_id)",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 HAVING count(*) > 1",
                "HAVING",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 ORDER BY 1",
                "ORDER BY",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1, event_type",
                "not among the columns",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE price > 3.5 GROUP BY 1",
                "WHERE",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE price = '3' GROUP BY 1",
                "WHERE",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE price = 1 OR pve GROUP BY 1",
                "WHERE",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE price + 1 > 3 GROUP BY 1",
                "computed",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, approx_quantile(price, 2) AS n FROM events GROUP BY 1",
                "0 to 1",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, first_value(price ORDER BY price) AS n FROM events GROUP BY 1",
                "ORDER BY event_time",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, number_bucket(0, price) AS p, count(*) AS n FROM events GROUP BY 1, 2",
                "above 0",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 WITH (tiers = '1 minute')",
                "the first of its tiers",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 WITH (tiers = '1 hour, 90 minutes')",
                "multiple",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, player_id, count(*) AS n FROM events GROUP BY 1, 2 WITH (max_groups = 5)",
                "max_groups",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 WITH (retention = '1 day, none')",
                "2 retentions for 1 tiers",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events GROUP BY 1 WITH (retention = '1 minute')",
                "a retention of 60000 ms for buckets of 3600000 ms",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, max(price) AS most FROM events GROUP BY 1 WITH (erasure = 'subtract')",
                "column \"most\" cannot be taken out",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, event_type, count(*) AS n FROM events GROUP BY 1, 2 WITH (max_groups = 5, erasure = 'subtract')",
                "as max_groups does",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, player_id, count(*) AS n FROM events GROUP BY 1, 2 WITH (erasure = 'recompute')",
                "always go",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, first_value(player_id ORDER BY event_time, seq) AS opener FROM events GROUP BY 1",
                "would be named for ever",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE event_time < '2024-01-01T00:00:00.0005' GROUP BY 1",
                "",
            ),
            (
                "SELECT count(*) AS n FROM events GROUP BY ROLLUP(time_bucket('1 hour', event_time), event_type)",
                "GROUPING SETS",
            ),
            (
                "SELECT time_bucket('1 hour', event_time) AS b, weight, count(*) AS n FROM events GROUP BY 1, 2",
                "floats",
            ),
            ("SELECT time_bucket('1 hour', event_time) AS b, count(*) AS b FROM events GROUP BY 1", "name"),
            ("SELECT player_id FROM state", "GROUP BY"),
            ("SELECT player_id, count(*) AS n FROM state GROUP BY 1", "not state"),
            ("SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM nothing GROUP BY 1", "nothing"),
            ("SELECT time_bucket('1 hour', event_time) AS b, sum(gold) AS n FROM events GROUP BY 1", "gold"),
        ] {
            let error = world.define(1, "r", select).await.expect_err(select).to_string();
            assert!(error.contains(reason), "{select}: {error}");
        }
        for name in ["", "events", "1st", "A", "a-b"] {
            assert!(matches!(world.define(1, name, SELECTS[0]).await, Err(DefineError::Name(_))), "{name:?}");
        }
    }
}
