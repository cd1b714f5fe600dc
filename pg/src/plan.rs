//! From text to a DataFusion plan.
//!
//! A statement is parsed in Postgres' dialect. Plain ones go to DataFusion as they are, but for the names of unnamed
//! columns. Those that name the catalog get a context with the catalog, and the rewrites of `datafusion-pg-catalog` where
//! they need them, but for the one that replaces correlated subqueries by null: what cannot be answered rightly is an error.
//! A statement that reads a table of the game is rewritten only if it cannot be planned as it is written. A plain one that
//! fails because a function or a type is unknown is tried once more with the catalog, so that a function missing in
//! `catalog::CATALOG_WORDS` works all the same.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, OnceLock};

use datafusion::catalog::MemoryCatalogProvider;
use datafusion::catalog::{CatalogProvider, MemorySchemaProvider};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlannedStatement;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, Statement, visit_relations};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_pg_catalog::sql::rules::{
    AliasDuplicatedProjectionRewrite, CurrentUserVariableToSessionUserFunctionCall, FixArrayLiteral,
    FixVersionColumnName, PrependUnqualifiedPgTableName, ResolveUnqualifiedIdentifier, RewriteArrayAnyAllOperation,
    RewritePgCatalogOperator, RewriteRegCastToSubquery, SqlStatementRewriteRule, StripCallableQualifier, StripCollate,
};

use super::catalog::{self, PUBLIC};
use super::error::read_only;
use super::information_schema::INFORMATION_SCHEMA;
use super::names::{self, OutputNames};
use super::pace;
use super::rewrite;
use super::session::{Identity, Settings};
use super::statement::Piece;
use super::{Shared, SqlError};

/// A parsed query.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    text: String,
    /// As it is written; `None` if only the rewritten form can be parsed.
    written: Option<Statement>,
    /// As the catalog needs it; `None` for a plain statement.
    rewritten: Option<Statement>,
    pub(super) names: OutputNames,
    /// Parameters that are lists of object ids.
    pub(super) oid_lists: Vec<String>,
    /// The word of its command tag.
    pub(super) tag: &'static str,
}

impl Parsed {
    /// Whether a query is about the catalog and nothing else.
    pub(super) fn is_of_catalog(&self) -> bool {
        self.rewritten.is_some() && self.written.is_none()
    }
}

/// A query with the cut that it reads.
pub(super) struct Planned {
    pub(super) context: SessionContext,
    pub(super) plan: LogicalPlan,
}

/// Parses one statement, and refuses what is not a query.
pub(super) fn parse(piece: &Piece) -> Result<Parsed, SqlError> {
    let text = piece.text.clone();
    let written = one(Parser::parse_sql(&PostgreSqlDialect {}, &text).map_err(SqlError::from));
    if !catalog::is_named_in(&piece.tokens) {
        let mut written = written?;
        rewrite::apply_to_plain(&mut written);
        let names = names::prepare(&mut written);
        let tag = check(&mut written)?;
        return Ok(Parsed { text, written: Some(written), rewritten: None, names, oid_lists: Vec::new(), tag });
    }
    let (rewritten, own_names, tag) = for_catalog(&text)?;
    let oid_lists = rewrite::oid_lists(&rewritten);
    let mut written = written.ok();
    if let Some(written) = &mut written {
        rewrite::apply_to_plain(written);
    }
    let names = written.as_mut().map_or(own_names, names::prepare);
    if let Some(written) = &mut written {
        check(written)?;
    }
    let written = written.filter(|written| reads_a_game(written) && !catalog::casts_to_oid(&piece.tokens));
    Ok(Parsed { text, written, rewritten: Some(rewritten), names, oid_lists, tag })
}

fn for_catalog(text: &str) -> Result<(Statement, OutputNames, &'static str), SqlError> {
    let mut statement = one(compatible(text))?;
    rewrite::apply(&mut statement);
    if let Some(name) = rewrite::function_of_a_query(&statement) {
        return Err(SqlError::new("0A000", format!("{name} of a query is not supported by galoo")));
    }
    let names = names::prepare(&mut statement);
    let tag = check(&mut statement)?;
    Ok((statement, names, tag))
}

/// Whether a statement reads a relation that is not the catalog's.
fn reads_a_game(statement: &Statement) -> bool {
    visit_relations(statement, |name| {
        let parts: Vec<String> = name.0.iter().map(|part| part.to_string().replace('"', "")).collect();
        let is_catalog = match parts.as_slice() {
            [table] => table.starts_with("pg_"),
            [.., schema, _] => schema == "pg_catalog" || schema == INFORMATION_SCHEMA,
            [] => true,
        };
        if is_catalog { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .is_break()
}

/// Parses a text with the rewrites of `datafusion-pg-catalog`.
///
/// Its parser knows some texts of tools whole, psql's among them, and has others for them: those are taken as they come.
/// To all else its rules are applied here, because one of them is not wanted.
fn compatible(sql: &str) -> Result<Vec<Statement>, SqlError> {
    static PARSER: OnceLock<PostgresCompatibilityParser> = OnceLock::new();
    static RULES: OnceLock<Vec<Box<dyn SqlStatementRewriteRule>>> = OnceLock::new();
    let parser = PARSER.get_or_init(PostgresCompatibilityParser::new);
    let theirs = parser.parse(sql)?;
    let Ok(written) = Parser::parse_sql(&PostgreSqlDialect {}, sql) else { return Ok(theirs) };
    let texts = |statements: &[Statement]| statements.iter().map(ToString::to_string).collect::<Vec<_>>();
    let by_rules: Vec<Statement> = written.iter().cloned().map(|statement| parser.rewrite(statement)).collect();
    if texts(&by_rules) != texts(&theirs) {
        return Ok(theirs);
    }
    let rules = RULES.get_or_init(rules);
    let apply = |statement: Statement| rules.iter().fold(statement, |statement, rule| rule.rewrite(statement));
    Ok(written.into_iter().map(apply).collect())
}

/// The rules of `datafusion-pg-catalog` in its order, without `RemoveSubqueryFromProjection`: that one answers null.
fn rules() -> Vec<Box<dyn SqlStatementRewriteRule>> {
    vec![
        Box::new(AliasDuplicatedProjectionRewrite),
        Box::new(ResolveUnqualifiedIdentifier),
        Box::new(RewriteArrayAnyAllOperation),
        Box::new(PrependUnqualifiedPgTableName),
        Box::new(StripCallableQualifier),
        Box::new(FixArrayLiteral),
        Box::new(CurrentUserVariableToSessionUserFunctionCall),
        Box::new(StripCollate),
        Box::new(RewritePgCatalogOperator),
        Box::new(RewriteRegCastToSubquery::new()),
        Box::new(FixVersionColumnName),
    ]
}

fn one(statements: Result<Vec<Statement>, SqlError>) -> Result<Statement, SqlError> {
    let mut statements = statements?;
    match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(SqlError::new("42601", "syntax error: not one statement")),
    }
}

/// Finds the command tag; what writes or is no query is an error.
fn check(statement: &mut Statement) -> Result<&'static str, SqlError> {
    match statement {
        Statement::Query(query) => {
            check_query(query)?;
            // Every statement reads a cut that nobody changes, so a lock on its rows means nothing.
            query.locks.clear();
            Ok("SELECT")
        }
        Statement::Explain { statement, .. } => {
            check(statement)?;
            Ok("EXPLAIN")
        }
        Statement::ExplainTable { .. } => Ok("EXPLAIN"),
        Statement::Insert(_) => Err(read_only("INSERT")),
        Statement::Update(_) => Err(read_only("UPDATE")),
        Statement::Delete(_) => Err(read_only("DELETE")),
        other => {
            let text = other.to_string();
            let word = text.split_whitespace().next().unwrap_or_default();
            Err(SqlError::new("0A000", format!("{word} is not supported by galoo")))
        }
    }
}

fn check_query(query: &Query) -> Result<(), SqlError> {
    for with in query.with.iter().flat_map(|with| &with.cte_tables) {
        check_query(&with.query)?;
    }
    check_body(&query.body)
}

fn check_body(body: &SetExpr) -> Result<(), SqlError> {
    match body {
        SetExpr::Select(select) if select.into.is_some() => Err(read_only("SELECT INTO")),
        SetExpr::Select(_) | SetExpr::Values(_) | SetExpr::Table(_) => Ok(()),
        SetExpr::Query(query) => check_query(query),
        SetExpr::SetOperation { left, right, .. } => check_body(left).and_then(|()| check_body(right)),
        SetExpr::Insert(_) => Err(read_only("INSERT")),
        SetExpr::Update(_) => Err(read_only("UPDATE")),
        SetExpr::Delete(_) => Err(read_only("DELETE")),
        SetExpr::Merge(_) => Err(read_only("MERGE")),
    }
}

/// Plans a query over a fresh cut.
pub(super) async fn plan(
    shared: &Shared,
    identity: &Identity,
    settings: &Arc<Mutex<Settings>>,
    parsed: &Parsed,
) -> Result<Planned, SqlError> {
    let context = if identity.is_game {
        shared.backend.context(&identity.database).await?
    } else {
        empty_context(&identity.database)?
    };
    adopt(&context, &identity.database);
    if let Some(rewritten) = &parsed.rewritten {
        let context = shared.catalogs.install(context, identity, settings, shared.backend.as_ref()).await?;
        let plan = match &parsed.written {
            Some(written) => match plan_in(&context, written).await {
                Err(error) => plan_in(&context, rewritten).await.map_err(|_| error)?,
                Ok(plan) => plan,
            },
            None => plan_in(&context, rewritten).await?,
        };
        return Ok(Planned { context, plan });
    }
    let Some(written) = &parsed.written else {
        return Err(SqlError::new("XX000", "a parsed statement is empty"));
    };
    let error = match plan_in(&context, written).await {
        Ok(plan) => return Ok(Planned { context, plan }),
        Err(error) if ["42883", "42704"].contains(&error.code) => error,
        Err(error) => return Err(error),
    };
    let context = shared.catalogs.install(context, identity, settings, shared.backend.as_ref()).await?;
    if let Ok(plan) = plan_in(&context, written).await {
        return Ok(Planned { context, plan });
    }
    let Ok((rewritten, ..)) = for_catalog(&parsed.text) else { return Err(error) };
    let plan = plan_in(&context, &rewritten).await.map_err(|_| error)?;
    Ok(Planned { context, plan })
}

async fn plan_in(context: &SessionContext, statement: &Statement) -> Result<LogicalPlan, SqlError> {
    let statement = PlannedStatement::Statement(Box::new(statement.clone()));
    let plan = context.state().statement_to_plan(statement).await?;
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
    Ok(plan)
}

/// Runs a plan; its rows come as they are read from the stream.
pub(super) async fn execute(planned: Planned) -> Result<SendableRecordBatchStream, SqlError> {
    let physical = planned.context.state().create_physical_plan(&planned.plan).await?;
    Ok(pace::run(physical, planned.context.task_ctx())?)
}

/// Makes unqualified names mean the tables of the game, whatever the context's defaults are.
fn adopt(context: &SessionContext, database: &str) {
    let state = context.state_ref();
    let mut state = state.write();
    let catalog = &mut state.config_mut().options_mut().catalog;
    catalog.default_catalog = database.to_owned();
    catalog.default_schema = PUBLIC.to_owned();
}

/// The context of a database without tables.
fn empty_context(database: &str) -> Result<SessionContext, SqlError> {
    let context = SessionContext::new();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(PUBLIC, Arc::new(MemorySchemaProvider::new()))?;
    context.register_catalog(database, Arc::new(catalog));
    Ok(context)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use datafusion::arrow::array::RecordBatch;
    use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
    use futures::TryStreamExt;

    use super::*;
    use crate::cancel::Cancels;
    use crate::catalog::Catalogs;
    use crate::statement::split;
    use crate::{PgLimits, SqlBackend};

    /// A node without games.
    struct NoGames;

    #[async_trait]
    impl SqlBackend for NoGames {
        fn games(&self) -> Vec<String> {
            Vec::new()
        }

        async fn context(&self, game: &str) -> Result<SessionContext, SqlError> {
            Err(SqlError::new("3D000", format!("no game {game}")))
        }

        async fn define(&self, _: &str, _: &str) -> Result<Option<String>, SqlError> {
            Ok(None)
        }
    }

    /// Asks a database without tables; the cells of a row are joined by a bar.
    async fn ask(sql: &str) -> Result<Vec<String>, SqlError> {
        let shared = Shared {
            backend: Arc::new(NoGames),
            limits: PgLimits::default(),
            cancels: Cancels::default(),
            catalogs: Catalogs::default(),
        };
        let identity = Identity { user: "galoo".to_owned(), database: "postgres".to_owned(), is_game: false, pid: 1 };
        let planned = plan(&shared, &identity, &Arc::default(), &parsed(sql)?).await?;
        let batches: Vec<RecordBatch> = execute(planned).await?.try_collect().await?;
        let options = FormatOptions::default().with_null("null");
        let mut rows = Vec::new();
        for batch in &batches {
            let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
            let columns: Vec<ArrayFormatter<'_>> = columns.collect::<Result<_, _>>()?;
            let cells = |row: usize| columns.iter().map(move |column| column.value(row).to_string());
            rows.extend((0..batch.num_rows()).map(|row| cells(row).collect::<Vec<_>>().join("|")));
        }
        Ok(rows)
    }

    #[tokio::test]
    async fn subqueries_about_the_catalog_are_answered_rightly() {
        let counted = "select relname, (select count(*) from pg_attribute a where a.attrelid = c.oid) from pg_class c
            where relname in ('pg_namespace', 'pg_class') order by 1";
        let joined = "select c.relname, count(*) from pg_class c join pg_attribute a on a.attrelid = c.oid
            where c.relname in ('pg_namespace', 'pg_class') group by 1 order by 1";
        let counts = ask(counted).await.unwrap();
        assert_eq!(counts.len(), 2);
        assert_eq!(counts, ask(joined).await.unwrap());
        let named = "select relname, (select nspname from pg_namespace n where n.oid = c.relnamespace) from pg_class c
            where relname in ('pg_class', 'tables') order by 1";
        assert_eq!(ask(named).await.unwrap(), ["pg_class|pg_catalog", "tables|information_schema"]);
        for (condition, found) in [("true", "select count(*) > 0 from pg_tables"), ("false", "select false")] {
            let exists = format!("select exists(select 1 from pg_tables where {condition})");
            assert_eq!(ask(&exists).await.unwrap(), ask(found).await.unwrap());
        }
        let each = "select exists(select 1 from pg_attribute a where a.attrelid = c.oid),
            not exists(select 1 from pg_namespace n where n.oid = c.relnamespace) from pg_class c
            where relname = 'pg_class'";
        assert_eq!(ask(each).await.unwrap(), ["true|false"]);
    }

    #[tokio::test]
    async fn a_subquery_that_has_no_right_answer_is_an_error_and_never_null() {
        let of_class = |subquery: &str| format!("select ({subquery}) from pg_class c where relname = 'pg_class'");
        let many = of_class("select attname from pg_attribute a where a.attrelid = c.oid");
        assert_eq!(ask(&many).await.unwrap_err().code, "21000");
        let limited = of_class("select attname from pg_attribute a where a.attrelid = c.oid limit 1");
        assert_eq!(ask(&limited).await.unwrap_err().code, "0A000");
        let unequal = of_class("select count(*) from pg_namespace n where n.oid < c.oid");
        assert_eq!(ask(&unequal).await.unwrap_err().code, "0A000");
        assert_eq!(ask("select array(select relname from pg_class)").await.unwrap_err().code, "0A000");
    }

    #[tokio::test]
    async fn the_columns_that_psql_describes_are_answered() {
        let columns = "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
              (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d
               WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),
              a.attnotnull,
              (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t
               WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation
            FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class r ON a.attrelid = r.oid
            WHERE r.relname = 'pg_namespace' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let rows = ask(columns).await.unwrap();
        assert!(rows.iter().any(|row| row.starts_with("nspname|")), "{rows:?}");
        assert!(rows.iter().all(|row| row.split('|').nth(2) == Some("null") && row.ends_with("|null")), "{rows:?}");
    }

    fn parsed(sql: &str) -> Result<Parsed, SqlError> {
        parse(&split(sql).unwrap()[0])
    }

    #[test]
    fn a_statement_that_reads_a_game_is_kept_as_it_is_written() {
        assert!(parsed("select version() from events").unwrap().written.is_some());
        assert!(parsed("select current_user from space.public.events").unwrap().written.is_some());
        assert!(parsed("select * from pg_class c join pg_catalog.pg_namespace n on true").unwrap().written.is_none());
        assert!(parsed("select 'a'::regclass from events").unwrap().written.is_none());
        assert!(parsed("select 1 from events").unwrap().rewritten.is_none());
    }

    #[test]
    fn only_queries_pass() {
        for sql in ["select 1", "with a as (select 1) select * from a", "values (1)", "(select 1) union select 2"] {
            assert_eq!(parsed(sql).unwrap().tag, "SELECT", "{sql}");
        }
        assert_eq!(parsed("explain analyze select 1").unwrap().tag, "EXPLAIN");
        for sql in
            ["with a as (insert into t values (1)) select 1", "select 1 into t", "explain insert into t values (1)"]
        {
            assert_eq!(parsed(sql).unwrap_err().code, "25006", "{sql}");
        }
        assert_eq!(parsed("selec 1").unwrap_err().code, "42601");
        assert_eq!(parsed("use other").unwrap_err().code, "0A000");
    }
}
