//! `number_bucket(width, x)`: the start of the range of numbers that holds `x`, so that numbers make groups.
//!
//! Ranges are `[n * width, (n + 1) * width)`: of integers for an integer width, of floats for a float one. What lies in no
//! range (a start below all integers, a float of more than 2^53 widths) is null.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, Float64Array, Int64Array},
    datatypes::{DataType, Float64Type, Int64Type},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use galoo_proto::rollup::group::Width;
use galoo_storage::rollup::{float_range, float_range_start, int_range_start};

/// The function's name.
const NAME: &str = "number_bucket";

#[derive(Debug, PartialEq, Eq, Hash)]
struct NumberBucket {
    signature: Signature,
}

/// Makes the function.
pub(crate) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(NumberBucket { signature: Signature::user_defined(Volatility::Immutable) })
}

fn invalid(reason: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Plan(format!("{NAME}: {reason}"))
}

fn width(value: &ScalarValue) -> Result<Width> {
    match value {
        ScalarValue::Int64(Some(width)) if *width > 0 => Ok(Width::IntWidth(*width)),
        ScalarValue::Float64(Some(width)) if *width > 0.0 && width.is_finite() => Ok(Width::FloatWidth(*width)),
        other => Err(invalid(format!("the width is {other}; it must be a constant number above 0"))),
    }
}

/// Returns the width and the number of an expression that is a bucket of numbers. A float has a float width, also if it is
/// written without a fraction.
pub(crate) fn of(expr: &Expr, number: impl Fn(&Expr) -> Option<DataType>) -> Result<Option<(Width, &Expr)>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(None) };
    let [Expr::Literal(found, _), over] = call.args.as_slice() else { return Ok(None) };
    if call.func.name() != NAME {
        return Ok(None);
    }
    let found = match number(over) {
        Some(DataType::Float64) => found.cast_to(&DataType::Float64)?,
        _ => found.clone(),
    };
    Ok(Some((width(&found)?, over)))
}

impl ScalarUDFImpl for NumberBucket {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types.first().cloned().unwrap_or(DataType::Int64))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [width, number] = types else {
            return Err(invalid(format!("takes a width and a number, not {} arguments", types.len())));
        };
        let is_int = width.is_integer() && (number.is_integer() || number.is_null());
        let both = if is_int { DataType::Int64 } else { DataType::Float64 };
        match number.is_numeric() || number.is_null() {
            true => Ok(vec![both.clone(), both]),
            false => Err(invalid(format!("the second argument is {number}, not a number"))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(found), numbers] = args.args.as_slice() else {
            return Err(invalid("the width must be a constant"));
        };
        let numbers = numbers.to_array(args.number_rows)?;
        let starts: ArrayRef = match width(found)? {
            Width::IntWidth(width) => {
                let numbers = numbers.as_primitive::<Int64Type>().iter();
                Arc::new(numbers.map(|one| one.and_then(|one| int_range_start(one, width))).collect::<Int64Array>())
            }
            Width::FloatWidth(width) => {
                let start = |one| float_range(one, width).map(|range| float_range_start(range, width));
                let numbers = numbers.as_primitive::<Float64Type>().iter();
                Arc::new(numbers.map(|one| one.and_then(start)).collect::<Float64Array>())
            }
        };
        Ok(ColumnarValue::Array(starts))
    }
}
