//! `to_char(time, pattern)` with Postgres' patterns.
//!
//! DataFusion's function of this name takes other patterns (`%Y`), and hands `YYYY` back as it is: a wrong answer without
//! an error. This one reads Postgres' patterns (documentation, table 9.27), and takes a pattern with a `%` as DataFusion's.
//! Numbers are refused.

use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike};
use datafusion::arrow::array::{ArrayRef, AsArray, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use super::SqlError;

/// Patterns, longer ones before those that begin them.
const PATTERNS: &[&str] = &[
    "YYYY", "IYYY", "YYY", "IYY", "YY", "IY", "Y", "MONTH", "MON", "MM", "MI", "MS", "DDD", "DD", "DAY", "DY", "D",
    "HH24", "HH12", "HH", "SSSSS", "SS", "US", "FF1", "FF2", "FF3", "FF4", "FF5", "FF6", "AM", "PM", "WW", "W", "IW",
    "ID", "Q", "CC", "TZ", "OF",
];

/// Formats a time by a pattern of Postgres.
pub(super) fn format(time: NaiveDateTime, pattern: &str) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    let mut pads = true;
    while let Some(first) = rest.chars().next() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            out.push_str(&quoted[..end]);
            rest = quoted.get(end + 1..).unwrap_or_default();
        } else if starts_with(rest, "FM") {
            pads = false;
            rest = &rest[2..];
        } else if let Some(name) = PATTERNS.iter().find(|name| starts_with(rest, name)) {
            out.push_str(&field(time, name, &rest[..name.len()], pads));
            pads = true;
            rest = &rest[name.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn starts_with(text: &str, name: &str) -> bool {
    text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

fn field(time: NaiveDateTime, name: &str, written: &str, pads: bool) -> String {
    let number = |value: i64, width: usize| if pads { format!("{value:0width$}") } else { value.to_string() };
    let name_of = |strftime: &str, width: usize| {
        let text = time.format(strftime).to_string();
        let text = match written.chars().nth(1) {
            Some(second) if second.is_uppercase() => text.to_uppercase(),
            _ if written.starts_with(char::is_uppercase) => text,
            _ => text.to_lowercase(),
        };
        if pads { format!("{text:<width$}") } else { text }
    };
    let year = i64::from(time.year());
    let iso_year = i64::from(time.iso_week().year());
    let hour12 = i64::from(time.hour12().1);
    let micros = i64::from(time.nanosecond() / 1_000);
    match name {
        "YYYY" => number(year, 4),
        "YYY" => number(year % 1_000, 3),
        "YY" => number(year % 100, 2),
        "Y" => number(year % 10, 1),
        "IYYY" => number(iso_year, 4),
        "IYY" => number(iso_year % 1_000, 3),
        "IY" => number(iso_year % 100, 2),
        "MONTH" => name_of("%B", 9),
        "MON" => name_of("%b", 3),
        "MM" => number(time.month().into(), 2),
        "DDD" => number(time.ordinal().into(), 3),
        "DD" => number(time.day().into(), 2),
        "DAY" => name_of("%A", 9),
        "DY" => name_of("%a", 3),
        "D" => number(i64::from(time.weekday().number_from_sunday()), 1),
        "ID" => number(i64::from(time.weekday().number_from_monday()), 1),
        "HH24" => number(time.hour().into(), 2),
        "HH12" | "HH" => number(hour12, 2),
        "MI" => number(time.minute().into(), 2),
        "SSSSS" => number(time.num_seconds_from_midnight().into(), 1),
        "SS" => number(time.second().into(), 2),
        "MS" => number(micros / 1_000, 3),
        "US" => number(micros, 6),
        "AM" | "PM" => {
            let half = if time.hour12().0 { "PM" } else { "AM" };
            if written.starts_with(char::is_uppercase) { half.to_owned() } else { half.to_lowercase() }
        }
        "WW" => number(i64::from(time.ordinal0() / 7 + 1), 2),
        "W" => number(i64::from((time.day() - 1) / 7 + 1), 1),
        "IW" => number(time.iso_week().week().into(), 2),
        "Q" => number(i64::from(time.month0() / 3 + 1), 1),
        "CC" => number((year + 99) / 100, 2),
        "TZ" => if written.starts_with(char::is_uppercase) { "UTC" } else { "utc" }.to_owned(),
        "OF" => "+00".to_owned(),
        fraction => {
            let digits = fraction.strip_prefix("FF").and_then(|digits| digits.parse().ok()).unwrap_or(6);
            format!("{micros:06}").chars().take(digits).collect()
        }
    }
}

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ToChar {
    signature: Signature,
}

impl ToChar {
    pub(super) fn new() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for ToChar {
    fn name(&self) -> &str {
        "to_char"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types.first() {
            Some(DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 | DataType::Null) => Ok(DataType::Utf8),
            Some(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Ok(DataType::Utf8),
            _ => Err(DataFusionError::External(Box::new(SqlError::new(
                "0A000",
                "to_char is supported for times only, not for numbers and intervals",
            )))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [times, patterns] = arrays.as_slice() else {
            return Err(DataFusionError::Plan("function to_char expects 2 arguments".to_owned()));
        };
        let times = cast(times, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        let patterns = cast(patterns, &DataType::Utf8)?;
        let texts: StringArray = times
            .as_primitive::<TimestampMicrosecondType>()
            .iter()
            .zip(patterns.as_string::<i32>())
            .map(|(micros, pattern)| {
                let time = DateTime::from_timestamp_micros(micros?)?.naive_utc();
                let pattern = pattern?;
                if !pattern.contains('%') {
                    return Some(format(time, pattern));
                }
                // An unknown `%` is an error of `write`, never of `to_string`, which would panic.
                let mut out = String::new();
                std::fmt::Write::write_fmt(&mut out, format_args!("{}", time.format(pattern))).ok()?;
                Some(out)
            })
            .collect();
        if args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_))) {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&texts, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(texts) as ArrayRef))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_give_what_postgres_gives() {
        let time = DateTime::from_timestamp_micros(1_700_000_000_007_123).unwrap().naive_utc();
        for (pattern, text) in [
            ("YYYY-MM-DD HH24:MI:SS", "2023-11-14 22:13:20"),
            ("yyyy-mm-dd\"T\"hh24:mi:ss.MS", "2023-11-14T22:13:20.007"),
            ("HH12:MI am", "10:13 pm"),
            ("FMMonth DD, YY", "November 14, 23"),
            ("Dy DD Mon", "Tue 14 Nov"),
            ("DAY|", "TUESDAY  |"),
            ("IYYY-IW Q DDD D US", "2023-46 4 318 3 007123"),
            ("FMMM/FMDD", "11/14"),
            ("", ""),
        ] {
            assert_eq!(format(time, pattern), text, "{pattern}");
        }
    }
}
