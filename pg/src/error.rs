//! SQLSTATEs: from DataFusion's errors to Postgres' codes and words.
//!
//! DataFusion tells many of its errors apart by text only, so this table reads text too. What it does not know is XX000
//! with DataFusion's own words; a [`SqlError`] that a table provider raised keeps its code.

use datafusion::arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::TokenizerError;
use pgwire::error::PgWireError;

use super::SqlError;

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        of_datafusion(&error)
    }
}

impl From<ArrowError> for SqlError {
    fn from(error: ArrowError) -> Self {
        of_arrow(&error)
    }
}

impl From<ParserError> for SqlError {
    fn from(error: ParserError) -> Self {
        of_parser(&error)
    }
}

impl From<TokenizerError> for SqlError {
    fn from(error: TokenizerError) -> Self {
        SqlError::new("42601", format!("syntax error: {error}"))
    }
}

impl From<PgWireError> for SqlError {
    fn from(error: PgWireError) -> Self {
        match error {
            PgWireError::UserError(info) => {
                let code = match info.code.as_str() {
                    "22003" => "22003",
                    "22023" => "22023",
                    _ => "22P03",
                };
                SqlError::new(code, info.message.clone())
            }
            PgWireError::FailedToParseParameter(error) => {
                SqlError::new("22P03", format!("incorrect data in bind parameter: {error}"))
            }
            error => SqlError::new("22P03", error.to_string()),
        }
    }
}

fn of_datafusion(error: &DataFusionError) -> SqlError {
    match error {
        DataFusionError::SQL(error, _) => of_parser(error),
        DataFusionError::ArrowError(error, _) => of_arrow(error),
        DataFusionError::SchemaError(error, _) => of_schema(error),
        DataFusionError::Plan(text) | DataFusionError::Configuration(text) => of_plan(text),
        DataFusionError::NotImplemented(text) => of_unsupported(text),
        DataFusionError::Execution(text) => of_execution(text),
        DataFusionError::ResourcesExhausted(text) => SqlError::new("53200", first_line(text)),
        DataFusionError::Context(_, error) | DataFusionError::Diagnostic(_, error) => of_datafusion(error),
        DataFusionError::Shared(error) => of_datafusion(error),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(error) => of_datafusion(error),
            None => SqlError::new("XX000", error.to_string()),
        },
        DataFusionError::External(error) => {
            if let Some(error) = error.downcast_ref::<SqlError>() {
                error.clone()
            } else if let Some(error) = error.downcast_ref::<DataFusionError>() {
                of_datafusion(error)
            } else if let Some(error) = error.downcast_ref::<ArrowError>() {
                of_arrow(error)
            } else {
                SqlError::new("XX000", error.to_string())
            }
        }
        DataFusionError::IoError(error) => SqlError::new("58030", error.to_string()),
        other => SqlError::new("XX000", other.strip_backtrace()),
    }
}

fn of_parser(error: &ParserError) -> SqlError {
    match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => {
            SqlError::new("42601", format!("syntax error: {text}"))
        }
        ParserError::RecursionLimitExceeded => SqlError::new("54001", "statement is nested too deeply"),
    }
}

fn of_arrow(error: &ArrowError) -> SqlError {
    match error {
        ArrowError::DivideByZero => SqlError::new("22012", "division by zero"),
        ArrowError::ArithmeticOverflow(text) => SqlError::new("22003", format!("value out of range: {text}")),
        ArrowError::CastError(text) | ArrowError::ParseError(text) => SqlError::new("22P02", first_line(text)),
        ArrowError::MemoryError(text) => SqlError::new("53200", first_line(text)),
        ArrowError::NotYetImplemented(text) => SqlError::new("0A000", first_line(text)),
        ArrowError::ExternalError(error) => {
            if let Some(error) = error.downcast_ref::<DataFusionError>() {
                of_datafusion(error)
            } else if let Some(error) = error.downcast_ref::<SqlError>() {
                error.clone()
            } else {
                SqlError::new("XX000", error.to_string())
            }
        }
        other => of_execution(&other.to_string()),
    }
}

fn of_schema(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let name = match &field.relation {
                Some(relation) => format!("{}.{}", relation.table(), field.name),
                None => format!("\"{}\"", field.name),
            };
            let missing = SqlError::new("42703", format!("column {name} does not exist"));
            let same = valid_fields.iter().find(|valid| valid.name.eq_ignore_ascii_case(&field.name));
            match same {
                Some(valid) => missing.with_hint(format!(
                    "there is a column \"{}\"; a name with capital letters must be written in double quotes",
                    valid.name
                )),
                None => missing,
            }
        }
        SchemaError::AmbiguousReference { field } => {
            SqlError::new("42702", format!("column reference \"{}\" is ambiguous", field.name))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            SqlError::new("42701", format!("column \"{name}\" specified more than once"))
        }
    }
}

fn of_plan(text: &str) -> SqlError {
    if let Some(name) = between(text, "table '", "' not found") {
        return SqlError::new("42P01", format!("relation \"{}\" does not exist", short_name(name)));
    }
    if let Some(name) = between(text, "table function '", "' not found") {
        return SqlError::new("42883", format!("function {name} does not exist"));
    }
    if let Some(name) = between(text, "Invalid function '", "'") {
        let missing = SqlError::new("42883", format!("function {name} does not exist"));
        return match between(text, "Did you mean '", "'") {
            Some(other) => missing.with_hint(format!("perhaps you meant the function {other}")),
            None => missing,
        };
    }
    let lower = text.to_ascii_lowercase();
    let code = if lower.contains("no field named") {
        "42703"
    } else if lower.contains("must be in the group by") || lower.contains("must appear in the group by") {
        "42803"
    } else if lower.contains("no function matches the given name and argument types")
        || (lower.contains("function") && lower.contains("expects"))
        || lower.contains("failed to coerce arguments")
    {
        "42883"
    } else if lower.contains("unsupported sql type") || lower.contains("unsupported data type") {
        "42704"
    } else if lower.contains("ddl not supported") || lower.contains("dml not supported") {
        return read_only("this statement");
    } else if lower.contains("coerc")
        || lower.contains("type mismatch")
        || lower.contains("cannot infer common")
        || lower.contains("cannot cast")
        || lower.contains("unsupported cast")
        || lower.contains("must be boolean")
        || lower.contains("boolean predicate")
        || lower.contains("non-boolean")
    {
        "42804"
    } else if lower.contains("correlated scalar subquery")
        || lower.contains("outer reference")
        || lower.contains("group by clause in a scalar correlated subquery")
    {
        "0A000"
    } else if lower.contains("unique expression names") {
        "42701"
    } else {
        return of_execution(text).or_code("42000");
    };
    SqlError::new(code, first_line(text))
}

fn of_unsupported(text: &str) -> SqlError {
    if text.contains("Unsupported SQL type") {
        return SqlError::new("42704", first_line(text));
    }
    SqlError::new("0A000", first_line(text))
}

fn of_execution(text: &str) -> SqlError {
    let lower = text.to_ascii_lowercase();
    if lower.contains("divide by zero") || lower.contains("division by zero") {
        return SqlError::new("22012", "division by zero");
    }
    let code = if lower.contains("cannot cast")
        || lower.contains("error parsing")
        || lower.contains("cast error")
        || lower.contains("failed to parse")
    {
        "22P02"
    } else if lower.contains("overflow") || lower.contains("out of range") {
        "22003"
    } else if lower.contains("scalar subquery") && lower.contains("more than one row") {
        "21000"
    } else {
        "XX000"
    };
    SqlError::new(code, first_line(text))
}

impl SqlError {
    /// Takes `code` where nothing better was found.
    fn or_code(mut self, code: &'static str) -> Self {
        if self.code == "XX000" {
            self.code = code;
        }
        self
    }
}

/// The refusal of a statement that would write.
pub(super) fn read_only(what: &str) -> SqlError {
    SqlError::new("25006", format!("cannot execute {what}: galoo's tables are read-only through SQL"))
        .with_hint("write events with the append API and state with the put API")
}

/// `game.public.name` is `name` to a Postgres user, and `game.other.name` is `other.name`.
fn short_name(name: &str) -> String {
    match name.split('.').collect::<Vec<_>>().as_slice() {
        [_, "public", table] => (*table).to_owned(),
        [_, schema, table] => format!("{schema}.{table}"),
        _ => name.to_owned(),
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inner, _)| inner)
}

/// DataFusion appends suggestions and backtraces on lines of their own.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_have_the_codes_of_postgres() {
        let plan = |text: &str| SqlError::from(DataFusionError::Plan(text.to_owned()));
        assert_eq!(
            plan("table 'space.public.nope' not found"),
            SqlError::new("42P01", "relation \"nope\" does not exist")
        );
        assert_eq!(plan("Invalid function 'foo'.\nDid you mean 'floor'?").code, "42883");
        assert_eq!(plan("Cannot coerce arithmetic expression Utf8 + Int64").code, "42804");
        let correlated = "Correlated scalar subquery must be aggregated to return at most one row";
        assert_eq!(plan(correlated).code, "0A000");
        assert_eq!(SqlError::from(DataFusionError::from(ArrowError::DivideByZero)).code, "22012");
        let cast = ArrowError::CastError("Cannot cast string 'x' to value of Int64 type".to_owned());
        assert_eq!(SqlError::from(DataFusionError::from(cast)).code, "22P02");
        assert_eq!(SqlError::from(DataFusionError::ResourcesExhausted("pool".to_owned())).code, "53200");
        let nested =
            DataFusionError::Context("a".to_owned(), Box::new(DataFusionError::Plan("table 'a' not found".to_owned())));
        assert_eq!(SqlError::from(nested).code, "42P01");
    }

    #[test]
    fn an_error_of_a_provider_keeps_its_code() {
        let own = SqlError::new("53400", "too many games");
        assert_eq!(SqlError::from(DataFusionError::External(Box::new(own.clone()))), own);
    }
}
