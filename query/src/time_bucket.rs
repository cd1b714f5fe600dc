//! `time_bucket(width, time)`: the start of the bucket that holds a time, as TimescaleDB's.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, TimestampMillisecondArray},
    compute::kernels::cast_utils::parse_interval_month_day_nano,
    datatypes::{DataType, IntervalMonthDayNano, IntervalUnit, TimeUnit, TimestampMillisecondType},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use galoo_storage::rollup::{BUCKET_MS_MAX, bucket_start};

/// The function's name.
pub(crate) const NAME: &str = "time_bucket";

/// The type of times that it takes and gives.
const TIME: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
}

/// Makes the function.
pub(crate) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeBucket { signature: Signature::user_defined(Volatility::Immutable) })
}

fn invalid(reason: impl std::fmt::Display) -> DataFusionError {
    DataFusionError::Plan(format!("{NAME}: {reason}"))
}

/// Returns a bucket's width in milliseconds.
///
/// # Errors
/// A width with months or years, of no whole milliseconds, or out of range.
/// Returns how long an interval is.
fn span_ms(interval: IntervalMonthDayNano) -> Result<i64> {
    if interval.months != 0 {
        return Err(invalid("months and years have no fixed width; give days or weeks"));
    }
    if interval.nanoseconds % 1_000_000 != 0 {
        return Err(invalid("a bucket is whole milliseconds wide"));
    }
    Ok(i64::from(interval.days) * 86_400_000 + interval.nanoseconds / 1_000_000)
}

/// Returns how long the interval of a text is, above 0.
pub(crate) fn text_span_ms(text: &str) -> Result<u64> {
    let span_ms = span_ms(parse_interval_month_day_nano(text)?)?;
    u64::try_from(span_ms).ok().filter(|span| *span > 0).ok_or_else(|| invalid("it must be longer than nothing"))
}

fn width_ms(interval: IntervalMonthDayNano) -> Result<i64> {
    let width = span_ms(interval)?;
    if !(1..=BUCKET_MS_MAX).contains(&width) {
        return Err(invalid(format!("a bucket of {width} ms; it must be 1 to {BUCKET_MS_MAX} (366 days)")));
    }
    Ok(width)
}

/// Returns the width that an interval's text names.
pub(crate) fn text_width_ms(text: &str) -> Result<i64> {
    width_ms(parse_interval_month_day_nano(text)?)
}

/// Returns the width that a literal names: an interval, or its text.
pub(crate) fn literal_width_ms(value: &ScalarValue) -> Result<i64> {
    if let Some(text) = value.try_as_str().flatten() {
        return text_width_ms(text);
    }
    match value.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano))? {
        ScalarValue::IntervalMonthDayNano(Some(interval)) => width_ms(interval),
        _ => Err(invalid("the width is null")),
    }
}

/// Returns the width of a `date_trunc` unit that has a fixed one and starts where a bucket does.
pub(crate) fn unit_width_ms(unit: &str) -> Option<i64> {
    Some(match unit {
        "second" => 1_000,
        "minute" => 60_000,
        "hour" => 3_600_000,
        "day" => 86_400_000,
        "week" => 7 * 86_400_000,
        _ => return None,
    })
}

/// Returns the width and the time of an expression that is a time bucket.
pub(crate) fn of(expr: &Expr) -> Result<Option<(i64, &Expr)>> {
    let Expr::ScalarFunction(call) = expr else { return Ok(None) };
    let [Expr::Literal(width, _), time] = call.args.as_slice() else { return Ok(None) };
    match call.func.name() {
        NAME => Ok(Some((literal_width_ms(width)?, time))),
        "date_trunc" => {
            let unit = width.try_as_str().flatten().unwrap_or_default().to_lowercase();
            match unit_width_ms(&unit) {
                Some(width) => Ok(Some((width, time))),
                None => Err(DataFusionError::Plan(format!("date_trunc by {unit:?} has no fixed width"))),
            }
        }
        _ => Ok(None),
    }
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(TIME)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [width, _] if width.is_string() => Ok(vec![DataType::Utf8, TIME]),
            [_, _] => Ok(vec![DataType::Interval(IntervalUnit::MonthDayNano), TIME]),
            _ => Err(invalid(format!("takes a width and a time, not {} arguments", types.len()))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [width, time] = args.args.as_slice() else { return Err(invalid("takes a width and a time")) };
        let ColumnarValue::Scalar(width) = width else { return Err(invalid("the width must be a constant")) };
        let width = literal_width_ms(width)?;
        let start = |at: i64| bucket_start(at, width);
        Ok(match time {
            ColumnarValue::Scalar(ScalarValue::TimestampMillisecond(at, _)) => {
                ColumnarValue::Scalar(ScalarValue::TimestampMillisecond(at.map(start), None))
            }
            ColumnarValue::Scalar(_) => return Err(invalid("the second argument is no time")),
            ColumnarValue::Array(times) => {
                let times = times.as_primitive::<TimestampMillisecondType>();
                let starts: TimestampMillisecondArray = times.unary(start);
                ColumnarValue::Array(Arc::new(starts) as ArrayRef)
            }
        })
    }
}
