//! Types and values of `$1`.
//!
//! A parameter's type is the client's if it named one, else what DataFusion infers from the statement, else text. Values of
//! types that the client named are taken as they are and coerced by DataFusion like a literal of that type; a value
//! without a named type is read as the inferred one. Text is read by Arrow's casts, binary by `arrow-pg`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_pg::datatypes::{PG_OID_ALIAS_KEY, df::deserialize_parameters, into_pg_type};
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use pgwire::api::Type;
use pgwire::api::portal::Portal;
use pgwire::api::stmt::StoredStatement;
use pgwire::messages::extendedquery;

use super::SqlError;
use super::wire::{Bind, violation};

/// The oid that clients send for "you tell me".
const UNKNOWN_OID: u32 = 705;

/// Precision with which a decimal parameter enters a plan: the most that 128 bits hold.
const DECIMAL_PRECISION: u8 = 38;

/// What is known of one parameter.
#[derive(Debug, Clone)]
pub(super) struct Parameter {
    /// The type that the client named, or that it is told.
    pub(super) kind: Type,
    /// Whether the client named it.
    is_named: bool,
    /// What DataFusion inferred.
    inferred: Option<DataType>,
}

/// Finds the parameters of a plan. `oids` are the types that the client named; 0 is none.
pub(super) fn of_plan(plan: &LogicalPlan, oids: &[u32], oid_lists: &[String]) -> Result<Vec<Parameter>, SqlError> {
    let fields = plan.get_parameter_fields()?;
    let count = fields.keys().filter_map(|id| index_of(id)).max().unwrap_or(0).max(oids.len());
    let mut parameters = named(oids);
    parameters.resize(count, Parameter { kind: Type::TEXT, is_named: false, inferred: None });
    let found = found_in(plan)?;
    for (id, field) in fields {
        let field = field.or_else(|| found.get(&id).cloned());
        let index = index_of(&id)
            .and_then(|index| index.checked_sub(1))
            .ok_or_else(|| SqlError::new("42P02", format!("there is no parameter {id}")))?;
        let parameter = &mut parameters[index];
        parameter.inferred = field.as_ref().map(|field| field.data_type().clone());
        if !parameter.is_named {
            parameter.kind = field.as_ref().map_or(Type::TEXT, told);
            if oid_lists.contains(&id) {
                parameter.kind = Type::OID_ARRAY;
            }
        }
    }
    Ok(parameters)
}

/// Finds what DataFusion infers not: a parameter under a cast has the type of the cast, and one that stands for a whole
/// array, as in `x = any($1)`, is a list of what it is compared with.
fn found_in(plan: &LogicalPlan) -> Result<HashMap<String, FieldRef>, SqlError> {
    let mut found = HashMap::new();
    plan.apply_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Cast(cast) = expr
                    && let Expr::Placeholder(placeholder) = cast.expr.as_ref()
                {
                    found.insert(placeholder.id.clone(), cast.field.clone());
                }
                if let Expr::ScalarFunction(function) = expr
                    && function.name() == "array_has"
                    && let [Expr::Placeholder(placeholder), element] = function.args.as_slice()
                    && let Ok(element) = element.get_type(&schema)
                {
                    let list = DataType::List(Arc::new(Field::new_list_field(element, true)));
                    found.insert(placeholder.id.clone(), Arc::new(Field::new(&placeholder.id, list, true)));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}

/// The parameters whose types the client named itself.
pub(super) fn named(oids: &[u32]) -> Vec<Parameter> {
    let one = |oid: &u32| match Type::from_oid(*oid) {
        Some(kind) if *oid != UNKNOWN_OID => Parameter { kind, is_named: true, inferred: None },
        _ => Parameter { kind: Type::TEXT, is_named: false, inferred: None },
    };
    oids.iter().map(one).collect()
}

/// Whether all types are known without a plan.
pub(super) fn are_named(oids: &[u32], count: usize) -> bool {
    oids.len() == count && named(oids).iter().all(|parameter| parameter.is_named)
}

/// The type that a client is told for an inferred one.
fn told(field: &FieldRef) -> Type {
    if field.metadata().get(PG_OID_ALIAS_KEY).is_some_and(|kind| kind == "oid") {
        return Type::OID;
    }
    match field.data_type() {
        // Clients send integers for it, and few can send a numeric in its place.
        DataType::UInt64 => Type::INT8,
        kind => match into_pg_type(kind) {
            Ok(kind) if kind != Type::UNKNOWN => kind,
            _ => Type::TEXT,
        },
    }
}

fn index_of(id: &str) -> Option<usize> {
    id.strip_prefix('$')?.parse().ok()
}

/// Reads the values of a `Bind`.
pub(super) fn decode(bind: &Bind, parameters: &[Parameter]) -> Result<ParamValues, SqlError> {
    let formats = &bind.parameter_formats;
    if formats.len() > 1 && formats.len() != bind.parameters.len() {
        return Err(violation(format!(
            "bind message has {} parameter formats but {} parameters",
            formats.len(),
            bind.parameters.len()
        )));
    }
    if bind.parameters.len() != parameters.len() {
        return Err(violation(format!(
            "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
            bind.parameters.len(),
            bind.statement,
            parameters.len()
        )));
    }
    let values = bind.parameters.iter().zip(parameters).enumerate().map(|(index, (value, parameter))| {
        let is_binary = formats.get(index).or(formats.first()) == Some(&1);
        let value = match value {
            None => null(parameter),
            Some(bytes) => decode_one(bytes, is_binary, parameter),
        };
        value.map_err(|mut error| {
            error.message = format!("{} (parameter ${})", error.message, index + 1);
            error
        })
    });
    Ok(ParamValues::from(values.collect::<Result<Vec<_>, _>>()?))
}

fn null(parameter: &Parameter) -> Result<ScalarValue, SqlError> {
    let kind = parameter.inferred.clone().or_else(|| arrow_type(&parameter.kind));
    Ok(kind.map(|kind| ScalarValue::try_from(&kind)).transpose()?.unwrap_or(ScalarValue::Null))
}

fn decode_one(bytes: &Bytes, is_binary: bool, parameter: &Parameter) -> Result<ScalarValue, SqlError> {
    let kind = &parameter.kind;
    match *kind {
        Type::JSONB if is_binary => return text(bytes.get(1..).unwrap_or_default()),
        Type::UUID if is_binary => return uuid(bytes),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::JSONB | Type::UUID | Type::XML
            if is_binary || parameter.is_named =>
        {
            return text(bytes);
        }
        Type::NUMERIC if !is_binary && parameter.is_named => return decimal_text(&utf8(bytes)?),
        _ => {}
    }
    if !is_binary {
        let target = if parameter.is_named { arrow_type(kind) } else { parameter.inferred.clone() };
        if !parameter.is_named && target.is_none() {
            return text(bytes);
        }
        if let Some(target) = target.filter(|target| !target.is_nested() && !is_binary_type(target)) {
            return cast_text(&utf8(bytes)?, &target, kind);
        }
    }
    // The two lists have the same bytes.
    let kind = if *kind == Type::OID_ARRAY { &Type::INT4_ARRAY } else { kind };
    let bind = extendedquery::Bind::new(None, None, vec![i16::from(is_binary)], vec![Some(bytes.clone())], Vec::new());
    let statement = StoredStatement::new(String::new(), (), vec![Some(kind.clone())]);
    let values = deserialize_parameters(&Portal::try_new(&bind, Arc::new(statement))?, &[None])?;
    match values {
        ParamValues::List(mut values) if values.len() == 1 => Ok(widen(values.remove(0).value)),
        _ => Err(SqlError::new("22P03", format!("parameter of type {kind} cannot be read"))),
    }
}

fn is_binary_type(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

/// Gives a decimal the precision that its scale needs; a whole one becomes an integer if it fits.
fn widen(value: ScalarValue) -> ScalarValue {
    match value {
        ScalarValue::Decimal128(Some(value), _, 0) if i64::try_from(value).is_ok() => {
            ScalarValue::Int64(i64::try_from(value).ok())
        }
        ScalarValue::Decimal128(value, _, scale) => ScalarValue::Decimal128(value, DECIMAL_PRECISION, scale),
        other => other,
    }
}

fn utf8(bytes: &[u8]) -> Result<String, SqlError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
}

fn text(bytes: &[u8]) -> Result<ScalarValue, SqlError> {
    Ok(ScalarValue::Utf8(Some(utf8(bytes)?)))
}

fn uuid(bytes: &[u8]) -> Result<ScalarValue, SqlError> {
    if bytes.len() != 16 {
        return Err(SqlError::new("22P03", format!("uuid of {} bytes, not 16", bytes.len())));
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Ok(ScalarValue::Utf8(Some(parts.join("-"))))
}

fn decimal_text(text: &str) -> Result<ScalarValue, SqlError> {
    let text = text.trim();
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(ScalarValue::Int64(Some(whole)));
    }
    let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
    match i8::try_from(scale) {
        Ok(scale) if is_plain && scale <= DECIMAL_PRECISION.cast_signed() => {
            cast_text(text, &DataType::Decimal128(DECIMAL_PRECISION, scale), &Type::NUMERIC)
        }
        // NaN, infinities, exponents and more digits than 128 bits hold.
        _ => cast_text(text, &DataType::Float64, &Type::NUMERIC),
    }
}

fn cast_text(text: &str, target: &DataType, kind: &Type) -> Result<ScalarValue, SqlError> {
    let invalid = || SqlError::new("22P02", format!("invalid input syntax for type {kind}: \"{text}\""));
    let trimmed = if target.is_string() { text } else { text.trim() };
    let array: ArrayRef = Arc::new(StringArray::from(vec![trimmed]));
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let array = cast_with_options(&array, target, &options).map_err(|_| invalid())?;
    ScalarValue::try_from_array(&array, 0).map_err(|_| invalid())
}

/// The Arrow type of a Postgres type whose text Arrow reads as Postgres does.
fn arrow_type(kind: &Type) -> Option<DataType> {
    Some(match *kind {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        // Times are stored in UTC without a zone; an offset in the text is honoured.
        Type::TIMESTAMP | Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::JSONB | Type::UUID => {
            DataType::Utf8
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(kind: Type, text: &'static str) -> Result<ScalarValue, SqlError> {
        let parameter = Parameter { kind, is_named: true, inferred: None };
        decode_one(&Bytes::from_static(text.as_bytes()), false, &parameter)
    }

    #[test]
    fn text_values_are_read_as_postgres_reads_them() {
        assert_eq!(value(Type::INT2, "-7"), Ok(ScalarValue::Int16(Some(-7))));
        assert_eq!(value(Type::BOOL, "t"), Ok(ScalarValue::Boolean(Some(true))));
        assert_eq!(value(Type::NUMERIC, "12"), Ok(ScalarValue::Int64(Some(12))));
        assert_eq!(value(Type::NUMERIC, "0.001"), Ok(ScalarValue::Decimal128(Some(1), 38, 3)));
        assert_eq!(
            value(Type::TIMESTAMPTZ, "1970-01-01 02:00:00.5+02:00"),
            Ok(ScalarValue::TimestampMicrosecond(Some(500_000), None))
        );
        assert_eq!(value(Type::INT4, "x").unwrap_err().code, "22P02");
    }

    #[test]
    fn a_value_without_a_named_type_is_read_as_the_inferred_one() {
        let inferred = |kind| Parameter { kind: Type::TEXT, is_named: false, inferred: kind };
        let bytes = Bytes::from_static(b"18446744073709551615");
        assert_eq!(
            decode_one(&bytes, false, &inferred(Some(DataType::UInt64))),
            Ok(ScalarValue::UInt64(Some(u64::MAX)))
        );
        assert_eq!(
            decode_one(&bytes, false, &inferred(None)),
            Ok(ScalarValue::Utf8(Some("18446744073709551615".to_owned())))
        );
    }

    #[test]
    fn a_binary_uuid_is_text() {
        assert_eq!(
            uuid(&[0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 1, 2, 3, 4, 5, 6, 7]),
            Ok(ScalarValue::Utf8(Some("12345678-9abc-def0-0001-020304050607".to_owned())))
        );
    }
}
