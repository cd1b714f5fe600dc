//! `CREATE ROLLUP` and `DROP ROLLUP`: what a statement says, and the definition that its SELECT makes.
//!
//! The SELECT is planned as any other, so that names and types are checked by the same rules; the plan must then be one
//! aggregate over `events` that can be kept event by event. Whatever else it does is refused with the reason.

use datafusion::{
    common::Column as ColumnRef,
    error::DataFusionError,
    logical_expr::{
        Aggregate as AggregatePlan, BinaryExpr, Expr, LogicalPlan, Operator,
        expr::{AggregateFunction, InList},
    },
    prelude::SessionContext,
    sql::sqlparser::{dialect::PostgreSqlDialect, keywords::Keyword, parser::Parser, tokenizer::Token},
};
use galoo_proto::{
    limits::ROLLUP_NAME_BYTES_MAX,
    rollup::{
        Aggregate, Bucket, Column, Field, Function, Operand, Property, PropertyType, Rollup, column::Kind, operand,
    },
};
use galoo_storage::{
    properties::ColumnType,
    rollup::{Definition, FORMAT_VERSION, InvalidRollup},
    view,
};

use crate::{EventsTable, time_bucket};

/// A statement about rollups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `CREATE ROLLUP [IF NOT EXISTS] name AS SELECT ...`
    Create {
        /// The rollup's name.
        name: String,
        /// One of that name is no error.
        if_not_exists: bool,
        /// The SELECT.
        select: String,
    },
    /// `DROP ROLLUP [IF EXISTS] name`
    Drop {
        /// The rollup's name.
        name: String,
        /// That there is none is no error.
        if_exists: bool,
    },
}

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

impl Statement {
    /// Reads a statement; `None` when it is about no rollup.
    pub fn parse(sql: &str) -> Result<Option<Self>, DefineError> {
        let syntax = |error: datafusion::sql::sqlparser::parser::ParserError| DefineError::Syntax(error.to_string());
        let dialect = PostgreSqlDialect {};
        let mut parser = Parser::new(&dialect).try_with_sql(sql).map_err(syntax)?;
        let creates = parser.parse_keywords(&[Keyword::CREATE, Keyword::ROLLUP]);
        if !creates && !parser.parse_keywords(&[Keyword::DROP, Keyword::ROLLUP]) {
            return Ok(None);
        }
        let wanted: &[Keyword] =
            if creates { &[Keyword::IF, Keyword::NOT, Keyword::EXISTS] } else { &[Keyword::IF, Keyword::EXISTS] };
        let lenient = parser.parse_keywords(wanted);
        let ident = parser.parse_identifier().map_err(syntax)?;
        let name = if ident.quote_style.is_some() { ident.value } else { ident.value.to_lowercase() };
        let statement = if creates {
            parser.expect_keyword(Keyword::AS).map_err(syntax)?;
            let select = parser.parse_query().map_err(syntax)?.to_string();
            Self::Create { name, if_not_exists: lenient, select }
        } else {
            Self::Drop { name, if_exists: lenient }
        };
        let _ended = parser.consume_token(&Token::SemiColon);
        match parser.peek_token().token {
            Token::EOF => Ok(Some(statement)),
            token => Err(DefineError::Syntax(format!("syntax error at or near \"{token}\""))),
        }
    }
}

fn check_name(name: &str) -> Result<(), DefineError> {
    let fits = name.len() <= ROLLUP_NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
        && !["events", "state", "players"].contains(&name);
    if fits { Ok(()) } else { Err(DefineError::Name(name.to_owned())) }
}

/// Makes the definition of a SELECT over the game that `context` is of; its number is not given yet.
pub async fn plan(context: &SessionContext, name: &str, select: &str) -> Result<Rollup, DefineError> {
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
    let event_types = predicate.map_or(Ok(Vec::new()), event_types)?;
    let reading = Reading { events, aggregate };
    let (mut columns, mut bucket_ms, mut groups) = (Vec::new(), 0, Vec::new());
    for expr in shown {
        let (kind, place) = reading.kind(expr, &mut bucket_ms)?;
        groups.extend(place);
        columns.push(Column { name: output_name(expr), kind: Some(kind) });
    }
    if let Some(hidden) = (0..aggregate.group_expr.len()).find(|place| !groups.contains(place)) {
        return Err(unkept(format!("the group {} is not among the columns", aggregate.group_expr[hidden])));
    }
    let (version, statement) = (FORMAT_VERSION, select.to_owned());
    let name = name.to_owned();
    let rollup = Rollup { version, name, statement, bucket_ms, event_types, columns, ..Default::default() };
    if !rollup.columns.iter().any(|column| matches!(column.kind, Some(Kind::Bucket(_)))) {
        return Err(unkept("GROUP BY needs time_bucket('width', event_time)"));
    }
    Definition::parse(&rollup)?;
    Ok(rollup)
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
        Ok((Kind::Group(self.operand(group)?), Some(place)))
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
        if params.filter.is_some() || !params.order_by.is_empty() {
            return Err(unkept(format!("{expr}: FILTER and ORDER BY in an aggregate are not kept")));
        }
        let function = match (func.name(), params.distinct) {
            ("count", false) => Function::Count,
            ("count", true) => Function::CountDistinct,
            ("sum", false) => Function::Sum,
            ("min", _) => Function::Min,
            ("max", _) => Function::Max,
            ("avg", false) => Function::Avg,
            (name, _) => {
                return Err(unkept(format!(
                    "{name} is not kept; count, sum, min, max, avg and count(distinct player_id) are"
                )));
            }
        };
        let operand = match params.args.as_slice() {
            // count(*) is count(1).
            [Expr::Literal(value, _)] if function == Function::Count && !value.is_null() => None,
            [expr] => Some(self.operand(expr)?),
            _ => return Err(unkept(format!("{expr} needs one argument"))),
        };
        Ok(Aggregate { function: function.into(), operand })
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

/// Reads a predicate: one type, or a list of them.
fn event_types(predicate: &Expr) -> Result<Vec<String>, DefineError> {
    let refused = || unkept(format!("WHERE {predicate} is not kept; event_type = '...' and event_type IN (...) are"));
    let is_type = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == "event_type");
    let text = |expr: &Expr| match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
        _ => None,
    };
    let types = match predicate {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_type(left) => {
            text(right).map(|one| vec![one])
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) if is_type(right) => {
            text(left).map(|one| vec![one])
        }
        Expr::InList(InList { expr, list, negated: false }) if is_type(expr) => list.iter().map(text).collect(),
        _ => None,
    };
    types.filter(|types| !types.is_empty()).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use galoo_storage::engine::{Direction, Family, WriteBatch};

    use super::*;
    use crate::{
        Engine, Options,
        world::{KEYSPACE, World, event},
    };

    const SELECTS: [&str; 4] = [
        "SELECT time_bucket('1 hour', event_time) AS bucket, event_type, count(*) AS events, \
         count(distinct player_id) AS players FROM events GROUP BY 1, 2",
        "SELECT item, date_trunc('day', event_time) AS day, sum(price) AS revenue, avg(price) AS mean, max(weight) AS heaviest, \
         count(item) AS items FROM events WHERE event_type IN ('buy', 'kill') GROUP BY item, date_trunc('day', event_time)",
        "SELECT player_id, pve, time_bucket(INTERVAL '15 minutes', e.event_time) AS b, min(event_time) AS first, sum(weight) AS w \
         FROM events AS e GROUP BY 1, 2, 3",
        "SELECT time_bucket('1 week', event_time) AS week, count(*) AS n FROM events WHERE event_type = 'login' GROUP BY 1",
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
                "SELECT time_bucket('1 hour', event_time) AS b, count(*) AS n FROM events WHERE price > 3 GROUP BY 1",
                "WHERE",
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

    #[test]
    fn statements_are_told_apart() {
        let parse = |sql: &str| Statement::parse(sql).expect("parses");
        let create = |name: &str, if_not_exists| Statement::Create {
            name: name.into(),
            if_not_exists,
            select: "SELECT 1".into(),
        };
        assert_eq!(parse("create rollup Hours as select 1;"), Some(create("hours", false)));
        assert_eq!(parse("CREATE ROLLUP IF NOT EXISTS \"x\" AS SELECT 1"), Some(create("x", true)));
        assert_eq!(parse("drop rollup if exists x"), Some(Statement::Drop { name: "x".into(), if_exists: true }));
        assert_eq!(parse("CREATE TABLE rollup (a int)"), None);
        assert_eq!(parse("DROP TABLE x"), None);
        for sql in ["CREATE ROLLUP x SELECT 1", "DROP ROLLUP", "CREATE ROLLUP x AS SELECT 1 2 3", "DROP ROLLUP x y"] {
            assert!(matches!(Statement::parse(sql), Err(DefineError::Syntax(_))), "{sql}");
        }
    }
}
