//! What Postgres calls a column that has no name.
//!
//! DataFusion names an unnamed column by its expression (`count(*)`, `Int64(1)`), and refuses two equal ones. Postgres
//! names it after its function (`count`), its cast, or `?column?`, and takes equal ones. So equal unnamed expressions get
//! names of their own for the plan, and the names that clients see are computed here from the text.

use std::collections::HashSet;

use datafusion::sql::sqlparser::ast::{Expr, FunctionArguments, Ident, ObjectNamePart, SelectItem, SetExpr, Statement};

/// The names of a statement's columns, as far as they are known without the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OutputNames {
    /// Names of the columns from the first on, up to a `*`.
    first: Vec<Option<String>>,
    /// Names of the columns after the last `*`; empty without one.
    last: Vec<Option<String>>,
}

impl OutputNames {
    /// The name of column `index` of `count`, if it is not the plan's own.
    pub(super) fn get(&self, index: usize, count: usize) -> Option<&str> {
        let from_end = count - index;
        if let Some(name) = self.first.get(index) {
            return name.as_deref();
        }
        let place = self.last.len().checked_sub(from_end)?;
        self.last.get(place)?.as_deref()
    }
}

/// Computes the names of a statement, and renames equal unnamed expressions of its outermost `SELECT`.
pub(super) fn prepare(statement: &mut Statement) -> OutputNames {
    let Statement::Query(query) = statement else {
        return OutputNames::default();
    };
    let mut body = query.body.as_mut();
    // In a UNION the first SELECT names the columns.
    while let SetExpr::SetOperation { left, .. } = body {
        body = left.as_mut();
    }
    match body {
        SetExpr::Select(select) => of_items(&mut select.projection),
        SetExpr::Query(inner) => match inner.body.as_mut() {
            SetExpr::Select(select) => of_items(&mut select.projection),
            _ => OutputNames::default(),
        },
        _ => OutputNames::default(),
    }
}

fn of_items(items: &mut [SelectItem]) -> OutputNames {
    let mut seen = HashSet::new();
    let mut names = OutputNames::default();
    let mut is_after_star = false;
    for (index, item) in items.iter_mut().enumerate() {
        let name = match item {
            SelectItem::UnnamedExpr(expr) => {
                let name = unnamed(expr);
                if !seen.insert(expr.to_string()) {
                    let own = Ident::with_quote('"', format!("{} {index}", name.as_deref().unwrap_or("column")));
                    let expr = expr.clone();
                    let shown = name.or_else(|| column_name(&expr));
                    *item = SelectItem::ExprWithAlias { expr, alias: own };
                    shown
                } else {
                    name
                }
            }
            SelectItem::ExprWithAlias { .. } => None,
            _ => {
                is_after_star = true;
                names.last.clear();
                continue;
            }
        };
        if is_after_star {
            names.last.push(name);
        } else {
            names.first.push(name);
        }
    }
    names
}

fn column_name(expr: &Expr) -> Option<String> {
    let ident = match expr {
        Expr::Identifier(ident) => ident,
        Expr::CompoundIdentifier(parts) => parts.last()?,
        _ => return None,
    };
    Some(match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    })
}

/// The name of an unnamed expression (Postgres' `FigureColname`); `None` for a column, which keeps its own.
fn unnamed(expr: &Expr) -> Option<String> {
    if column_name(expr).is_some() {
        return None;
    }
    Some(figure(expr).unwrap_or_else(|| "?column?".to_owned()))
}

fn figure(expr: &Expr) -> Option<String> {
    let name = match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => return column_name(expr),
        Expr::Function(function) => match function.name.0.last()? {
            ObjectNamePart::Identifier(ident) if matches!(function.args, FunctionArguments::None) => {
                return Some(ident.value.to_lowercase());
            }
            ObjectNamePart::Identifier(ident) => return Some(ident.value.to_lowercase()),
            ObjectNamePart::Function(_) => return None,
        },
        Expr::Cast { expr, data_type, .. } => {
            return figure(expr).or_else(|| cast_name(&data_type.to_string()));
        }
        Expr::Nested(expr) | Expr::Collate { expr, .. } => return figure(expr),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.first()? {
                SelectItem::UnnamedExpr(expr) => return figure(expr),
                SelectItem::ExprWithAlias { alias, .. } => return Some(alias.value.clone()),
                _ => return None,
            },
            _ => return None,
        },
        Expr::Case { else_result, .. } => {
            return else_result.as_ref().and_then(|expr| figure(expr)).or_else(|| Some("case".to_owned()));
        }
        Expr::Exists { .. } => "exists",
        Expr::Array(_) => "array",
        Expr::Extract { .. } => "extract",
        Expr::Substring { .. } => "substring",
        Expr::Trim { .. } => "btrim",
        Expr::Position { .. } => "position",
        Expr::Ceil { .. } => "ceil",
        Expr::Floor { .. } => "floor",
        Expr::AtTimeZone { .. } => "timezone",
        Expr::TypedString(typed) => return cast_name(&typed.data_type.to_string()),
        Expr::Interval(_) => "interval",
        _ => return None,
    };
    Some(name.to_owned())
}

/// The catalog's name of a type as it is written in SQL.
fn cast_name(sql: &str) -> Option<String> {
    let lower = sql.to_ascii_lowercase();
    let plain = lower.split('(').next()?.trim();
    Some(
        match plain {
            "int" | "integer" => "int4",
            "bigint" => "int8",
            "smallint" => "int2",
            "double precision" | "double" | "float" => "float8",
            "real" => "float4",
            "boolean" => "bool",
            "decimal" | "dec" => "numeric",
            "character varying" => "varchar",
            "timestamp without time zone" => "timestamp",
            "timestamp with time zone" => "timestamptz",
            other => other.rsplit('.').next()?,
        }
        .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    fn names(sql: &str, count: usize) -> Vec<Option<String>> {
        let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
        let names = prepare(&mut statement);
        (0..count).map(|index| names.get(index, count).map(str::to_owned)).collect()
    }

    #[test]
    fn unnamed_columns_are_called_as_in_postgres() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(
            names(
                "select count(*), 1, max(x)::int, '1'::bigint, a, b + 1, case when a then 1 end, (select 2), c as d",
                9
            ),
            [
                some("count"),
                some("?column?"),
                some("max"),
                some("int8"),
                None,
                some("?column?"),
                some("case"),
                some("?column?"),
                None
            ]
        );
    }

    #[test]
    fn names_are_placed_around_a_star() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(names("select now(), *, upper(a) from t", 5), [some("now"), None, None, None, some("upper")]);
        assert_eq!(names("select *, * from t", 4), [None, None, None, None]);
    }

    #[test]
    fn equal_columns_are_told_apart_for_the_plan_only() {
        let mut statement = Parser::parse_sql(&PostgreSqlDialect {}, "select a, a, 1, 1 from t").unwrap().remove(0);
        let names = prepare(&mut statement);
        assert_eq!(names.get(1, 4), Some("a"));
        assert_eq!(names.get(3, 4), Some("?column?"));
        assert!(statement.to_string().contains("a AS \"column 1\""), "{statement}");
    }
}
