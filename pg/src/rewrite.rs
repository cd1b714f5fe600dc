//! Rewrites of statements about the catalog, besides those of `datafusion-pg-catalog`.
//!
//! Each takes away one form that tools send and DataFusion cannot plan. All but that of `LIKE` are for the catalog only:
//! there, a name is found once and options are null, which is what makes them right.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CastKind, DataType, Expr, Function, FunctionArguments, Query, SelectItem, SetExpr, Statement,
    Value, ValueWithSpan, VisitMut, VisitorMut, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// Aggregates that tools use: a subquery over one gives one row already.
const AGGREGATES: &[&str] = &["max", "min", "count", "sum", "array_agg", "string_agg", "bool_or", "bool_and"];

/// Relations that have no rows in any database here.
const ALWAYS_EMPTY: &[&str] = &["pg_attrdef", "pg_sequence", "pg_constraint", "pg_index", "pg_inherits", "pg_trigger"];

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

/// Whether a scalar subquery is null here: it reads first of all a relation that is always empty, or climbs with a `WITH` of
/// its own from a domain to its base type, and there are no domains.
fn reads_nothing(query: &Query) -> bool {
    if query.with.as_ref().is_some_and(|with| with.recursive) {
        return true;
    }
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] = select.projection.as_slice()
    else {
        return false;
    };
    let is_aggregate = matches!(item, Expr::Function(function) if is_one_of(function, AGGREGATES));
    let first = select.from.first().map(|from| from.relation.to_string().to_ascii_lowercase()).unwrap_or_default();
    let name = first.strip_prefix("pg_catalog.").unwrap_or(&first).split(' ').next().unwrap_or_default();
    !is_aggregate && ALWAYS_EMPTY.contains(&name)
}

/// A scalar subquery about an outer row must be an aggregate in DataFusion: one value is its own maximum.
fn aggregate(query: &mut Query) {
    if query.limit_clause.is_some() || query.order_by.is_some() {
        return;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    let [SelectItem::UnnamedExpr(item) | SelectItem::ExprWithAlias { expr: item, .. }] =
        select.projection.as_mut_slice()
    else {
        return;
    };
    if select.from.is_empty() || matches!(item, Expr::Function(function) if is_one_of(function, AGGREGATES)) {
        return;
    }
    if let Some(maximum) = parse(&format!("max({item})")) {
        *item = maximum;
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
        // `array(select ...)`: used for options and members, of which there are none.
        FunctionArguments::Subquery(_) if is_one_of(function, &["array"]) => Some(Expr::Cast {
            kind: CastKind::DoubleColon,
            expr: Box::new(Expr::Value(Value::Null.into())),
            data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)),
            array: false,
            format: None,
        }),
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
            ("select array(select 1)", "SELECT NULL::TEXT[]"),
            (
                "select to_regtype($1)",
                "SELECT (SELECT max(oid) FROM pg_catalog.pg_type WHERE typname = CAST($1 AS TEXT))",
            ),
            ("select a where (select b from c where d = a)", "SELECT a WHERE (SELECT max(b) FROM c WHERE d = a)"),
            ("select a where (select d.b from pg_attrdef d where d.c = a)", "SELECT a WHERE NULL"),
            ("select (select count(*) from c)", "SELECT (SELECT count(*) FROM c)"),
            ("select a like $1 escape '/'", r"SELECT a LIKE replace(replace($1, '\', '\\'), '/', '\')"),
            ("select (select b from c limit 1)", "SELECT (SELECT b FROM c LIMIT 1)"),
        ] {
            let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
            apply(&mut statement);
            assert_eq!(statement.to_string(), rewritten);
        }
    }
}
