//! Rewrites of statements about the catalog, besides those of `datafusion-pg-catalog`.
//!
//! Each takes away one form that tools send and DataFusion cannot plan, and keeps its answer. All but that of `LIKE` are for
//! the catalog only: what they take for null is null there in every database.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CastKind, DataType, Expr, Function, FunctionArguments, GroupByExpr, Query, Select, SelectItem,
    SetExpr, Statement, Value, ValueWithSpan, VisitMut, VisitorMut, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::single_value;

/// Aggregates: a subquery over one gives one row already.
const AGGREGATES: &[&str] = &[
    "any_value",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "first_value",
    "json_agg",
    "last_value",
    "max",
    "median",
    "min",
    "string_agg",
    "stddev",
    "sum",
    "var_pop",
    "var_samp",
];

/// Relations that have no rows in any database here.
const ALWAYS_EMPTY: &[&str] = &["pg_attrdef", "pg_sequence", "pg_constraint", "pg_index", "pg_inherits", "pg_trigger"];

/// Further ones, of which tools make lists.
const NEVER_LISTED: &[&str] = &["pg_auth_members", "pg_enum", "pg_policy"];

/// What lists of options, privileges and a policy's roles name; all of these are null or have no rows.
const NULL_LISTS: &[&str] = &["options", "acl", "polroles"];

/// Rewrites a statement in place.
pub(super) fn apply(statement: &mut Statement) {
    let _ = VisitMut::visit(statement, &mut Rewrites);
}

/// Finds parameters that are cast to a list of object ids: clients know that type, and not the integers that it is here.
pub(super) fn oid_lists(statement: &Statement) -> Vec<String> {
    let mut found = Vec::new();
    let _ = visit_expressions(statement, |expr| {
        if let Expr::Cast { expr, data_type, .. } = expr
            && let Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) = expr.as_ref()
            && data_type.to_string().eq_ignore_ascii_case("oid[]")
        {
            found.push(name.clone());
        }
        ControlFlow::<()>::Continue(())
    });
    found
}

/// Finds a function whose argument is a query: DataFusion would plan it without the query.
pub(super) fn function_of_a_query(statement: &Statement) -> Option<String> {
    let find = |expr: &Expr| match expr {
        Expr::Function(function) if matches!(function.args, FunctionArguments::Subquery(_)) => {
            ControlFlow::Break(function.name.to_string())
        }
        _ => ControlFlow::Continue(()),
    };
    visit_expressions(statement, find).break_value()
}

/// Rewrites the one form that plain statements need too: `LIKE` with an escape character of its own.
pub(super) fn apply_to_plain(statement: &mut Statement) {
    let _ = VisitMut::visit(statement, &mut Escapes);
}

struct Escapes;

impl VisitorMut for Escapes {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } = expr {
            escape_with_backslash(pattern, escape_char);
        }
        ControlFlow::Continue(())
    }
}

struct Rewrites;

impl VisitorMut for Rewrites {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                let _ = VisitMut::visit(expr, &mut Existences { depth: 0 });
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Subquery(query) if reads_nothing(query) => *expr = Expr::Value(Value::Null.into()),
            Expr::Subquery(query) => aggregate(query),
            Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
                escape_with_backslash(pattern, escape_char);
            }
            Expr::Function(function) => {
                if let Some(other) = instead_of(function) {
                    *expr = other;
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// `EXISTS` as a value, which DataFusion plans only as a condition.
struct Existences {
    /// How many queries the expression is in: conditions of those are left alone.
    depth: usize,
}

impl VisitorMut for Existences {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Exists { subquery, negated } = expr
            && self.depth == 0
        {
            let operator = if *negated { "=" } else { ">" };
            if let Some(counted) = parse(&format!("(({}) {operator} 0)", count_of(subquery))) {
                *expr = counted;
            }
        }
        ControlFlow::Continue(())
    }
}

/// A query for the number of another one's rows.
fn count_of(query: &Query) -> String {
    let mut counting = query.clone();
    // Order changes a number of rows only with a limit.
    counting.order_by = None;
    if let SetExpr::Select(select) = counting.body.as_mut()
        && is_row_by_row(select)
        && !select.projection.iter().any(|item| item_of(item).is_some_and(has_aggregate))
        && let (None, None, Some(count)) = (&counting.limit_clause, &counting.fetch, parse("count(*)"))
    {
        select.projection = vec![SelectItem::UnnamedExpr(count)];
        return counting.to_string();
    }
    format!("SELECT count(*) FROM ({query}) AS found")
}

fn item_of(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

/// Whether a `SELECT` has a row for each row that it reads and wants.
fn is_row_by_row(select: &Select) -> bool {
    let is_ungrouped = matches!(&select.group_by, GroupByExpr::Expressions(exprs, _) if exprs.is_empty());
    is_ungrouped && select.distinct.is_none() && select.having.is_none()
}

fn has_aggregate(expr: &Expr) -> bool {
    let is_aggregate = |expr: &Expr| match expr {
        Expr::Function(function) if is_one_of(function, AGGREGATES) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    visit_expressions(expr, is_aggregate).is_break()
}

/// Whether a scalar subquery is null here: it reads first of all a relation that is always empty; or climbs with a `WITH` of
/// its own from a domain to its base type, and there are no domains; or is psql's for the collation of a column that is not
/// its type's, and there are none.
fn reads_nothing(query: &Query) -> bool {
    if query.with.as_ref().is_some_and(|with| with.recursive) {
        return query.to_string().to_ascii_lowercase().contains("typbasetype");
    }
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] = select.projection.as_slice()
    else {
        return false;
    };
    let name = first_relation(select);
    let condition = select.selection.as_ref().map(ToString::to_string).unwrap_or_default();
    !has_aggregate(item)
        && (ALWAYS_EMPTY.contains(&name.as_str())
            || (name == "pg_collation" && condition.ends_with("a.attcollation <> t.typcollation")))
}

/// The name of the first relation that a `SELECT` reads, without `pg_catalog`; empty without one.
fn first_relation(select: &Select) -> String {
    let first = select.from.first().map(|from| from.relation.to_string().to_ascii_lowercase()).unwrap_or_default();
    first.strip_prefix("pg_catalog.").unwrap_or(&first).split(' ').next().unwrap_or_default().to_owned()
}

/// Whether a list of what a query gives is null here, as far as tools ask for lists.
fn lists_nothing(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let name = first_relation(select);
    let text = query.to_string().to_ascii_lowercase();
    ALWAYS_EMPTY.contains(&name.as_str())
        || NEVER_LISTED.contains(&name.as_str())
        || NULL_LISTS.iter().any(|word| text.contains(word))
}

/// A scalar subquery about an outer row must be an aggregate in DataFusion: of at most one value.
fn aggregate(query: &mut Query) {
    if query.limit_clause.is_some() || query.order_by.is_some() {
        return;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    if !is_row_by_row(select) {
        return;
    }
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        select.projection.as_mut_slice()
    else {
        return;
    };
    if select.from.is_empty() || has_aggregate(item) {
        return;
    }
    if let Some(single) = parse(&format!("{}({item})", single_value::NAME)) {
        *item = single;
    }
}

/// DataFusion escapes with a backslash only: the pattern is changed to that.
fn escape_with_backslash(pattern: &mut Expr, escape: &mut Option<ValueWithSpan>) {
    let Some(Value::SingleQuotedString(char)) = escape.as_ref().map(|escape| &escape.value) else { return };
    if char == "\\" {
        return;
    }
    let doubled = format!(r"replace({pattern}, '\', '\\')");
    let changed =
        if char.is_empty() { doubled } else { format!(r"replace({doubled}, '{}', '\')", char.replace('\'', "''")) };
    if let Some(changed) = parse(&changed) {
        *pattern = changed;
        *escape = None;
    }
}

fn instead_of(function: &Function) -> Option<Expr> {
    match &function.args {
        FunctionArguments::Subquery(query) if is_one_of(function, &["array"]) && lists_nothing(query) => {
            Some(Expr::Cast {
                kind: CastKind::DoubleColon,
                expr: Box::new(Expr::Value(Value::Null.into())),
                data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)),
                array: false,
                format: None,
            })
        }
        FunctionArguments::List(list) => {
            if let ([array, _], true) = (list.args.as_slice(), is_one_of(function, &["generate_subscripts"])) {
                return parse(&format!("unnest(range(1, cast(coalesce(array_length({array}), 0) as bigint) + 1))"));
            }
            let [argument] = list.args.as_slice() else { return None };
            let find = |table: &str, column: &str| {
                parse(&format!("(select max(oid) from pg_catalog.{table} where {column} = cast({argument} as text))"))
            };
            if is_one_of(function, &["to_regtype"]) {
                find("pg_type", "typname")
            } else if is_one_of(function, &["to_regclass"]) {
                find("pg_class", "relname")
            } else {
                None
            }
        }
        _ => None,
    }
}

fn is_one_of(function: &Function, names: &[&str]) -> bool {
    let name = function.name.to_string().to_ascii_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    names.contains(&name)
}

fn parse(expr: &str) -> Option<Expr> {
    Parser::new(&PostgreSqlDialect {}).try_with_sql(expr).ok()?.parse_expr().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_cannot_be_planned_are_replaced() {
        for (sql, rewritten) in [
            ("select array(select 1)", "SELECT array(SELECT 1)"),
            ("select array(select unnest(c.reloptions))", "SELECT NULL::TEXT[]"),
            ("select array(select a from pg_auth_members)", "SELECT NULL::TEXT[]"),
            (
                "select to_regtype($1)",
                "SELECT (SELECT max(oid) FROM pg_catalog.pg_type WHERE typname = CAST($1 AS TEXT))",
            ),
            (
                "select a where (select b from c where d = a)",
                "SELECT a WHERE (SELECT single_value(b) FROM c WHERE d = a)",
            ),
            ("select a where (select d.b from pg_attrdef d where d.c = a)", "SELECT a WHERE NULL"),
            ("select (select count(*) from c)", "SELECT (SELECT count(*) FROM c)"),
            ("select (select count(*) + 1 from pg_index)", "SELECT (SELECT count(*) + 1 FROM pg_index)"),
            ("select (select a from c group by a)", "SELECT (SELECT a FROM c GROUP BY a)"),
            ("select exists(select 1 from c order by 1)", "SELECT ((SELECT count(*) FROM c) > 0)"),
            (
                "select not exists(select a from c limit 1)",
                "SELECT ((SELECT count(*) FROM (SELECT a FROM c LIMIT 1) AS found) = 0)",
            ),
            ("select a where exists(select 1 from c)", "SELECT a WHERE EXISTS (SELECT 1 FROM c)"),
            ("select a like $1 escape '/'", r"SELECT a LIKE replace(replace($1, '\', '\\'), '/', '\')"),
            ("select (select b from c limit 1)", "SELECT (SELECT b FROM c LIMIT 1)"),
        ] {
            let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
            apply(&mut statement);
            assert_eq!(statement.to_string(), rewritten);
        }
    }
}
