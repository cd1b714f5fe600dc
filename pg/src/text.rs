//! The values that most results are made of, as text: integers, booleans, texts, and times without a zone.
//!
//! What is written is what `arrow-pg` writes, byte for byte, without its formatters: those cost more than finding a row of a
//! rollup. Everything else, and every binary value, is left to it.

use bytes::{BufMut, BytesMut};
use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{
    DataType, Field, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use pgwire::api::results::{FieldFormat, FieldInfo};

const DAY_SECONDS: i64 = 86_400;

/// Appends a value that is not null, with its length; returns false, and appends nothing, if it is not one of these.
pub(super) fn put(out: &mut BytesMut, array: &ArrayRef, row: usize, field: &Field, info: &FieldInfo) -> bool {
    // A mark on a field gives its values a form of their own.
    if info.format() != FieldFormat::Text || !field.metadata().is_empty() {
        return false;
    }
    match array.data_type() {
        DataType::Utf8 => put_text(out, array.as_string::<i32>().value(row)),
        DataType::Utf8View => put_text(out, array.as_string_view().value(row)),
        DataType::Boolean => put_text(out, if array.as_boolean().value(row) { "t" } else { "f" }),
        DataType::Int16 => put_integer(out, array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => put_integer(out, array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => put_integer(out, array.as_primitive::<Int64Type>().value(row)),
        DataType::Timestamp(unit, None) => {
            let (value, by) = match unit {
                TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().value(row), 1),
                TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().value(row), 1_000),
                TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().value(row), 1_000_000),
                TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().value(row), 1_000_000_000),
            };
            // As many digits as there are, cut behind the sixth.
            let micros = value.rem_euclid(by) * 1_000_000 / by;
            let Some(text) = time_text(value.div_euclid(by), micros) else { return false };
            put_bytes(out, &text);
        }
        _ => return false,
    }
    true
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_integer(out: &mut BytesMut, value: i64) {
    let mut digits = [0u8; 20];
    let (mut left, mut at) = (value.unsigned_abs(), digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    put_bytes(out, &digits[at..]);
}

/// Writes a number of the places' width, zeros in front.
fn write_digits(places: &mut [u8], mut value: i64) {
    for place in places.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Returns `YYYY-MM-DD HH:MM:SS.ffffff`; `None` for years that do not have four digits.
fn time_text(seconds: i64, micros: i64) -> Option<[u8; 26]> {
    let (day, second) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let (year, month, date) = civil(day)?;
    let mut text = *b"0000-00-00 00:00:00.000000";
    for (places, value) in [
        (0..4, year),
        (5..7, month),
        (8..10, date),
        (11..13, second / 3_600),
        (14..16, second / 60 % 60),
        (17..19, second % 60),
        (20..26, micros),
    ] {
        write_digits(&mut text[places], value);
    }
    Some(text)
}

/// Returns year, month and day of a day since 1970 (Hinnant, "chrono-compatible low-level date algorithms", 2014).
fn civil(day: i64) -> Option<(i64, i64, i64)> {
    /// Days of 400 years.
    const ERA_DAYS: i64 = 146_097;
    // Counted from 0000-03-01, so that a leap day ends a year.
    let day = day.checked_add(719_468)?;
    let (era, in_era) = (day.div_euclid(ERA_DAYS), day.rem_euclid(ERA_DAYS));
    let year = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year + year / 4 - year / 100);
    let march = (5 * in_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let date = in_year - (153 * march + 2) / 5 + 1;
    let year = era * 400 + year + i64::from(month <= 2);
    (0..=9_999).contains(&year).then_some((year, month, date))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_pg::encoder::encode_value;
    use datafusion::arrow::array::{
        BooleanArray, Int16Array, Int32Array, Int64Array, StringArray, StringViewArray, TimestampMicrosecondArray,
        TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
    };
    use datafusion::arrow::datatypes::Schema;
    use pgwire::api::results::DataRowEncoder;

    use super::*;
    use crate::names::OutputNames;
    use crate::rows::Columns;

    /// The columns of these arrays in text, and what is appended for each row of each.
    fn check(array: ArrayRef) -> usize {
        let schema = Schema::new(vec![Field::new("c", array.data_type().clone(), true)]);
        let columns = Columns::new(&schema, &OutputNames::default());
        let (field, infos) = (&columns.fields[0], columns.describe(&[0]).unwrap());
        let mut taken = 0;
        for row in 0..array.len() {
            let mut encoder = DataRowEncoder::new(infos.clone());
            encode_value(&mut encoder, &array, row, field, &infos[0]).unwrap();
            let mut out = BytesMut::new();
            if put(&mut out, &array, row, field, &infos[0]) {
                assert_eq!(out, encoder.take_row().data, "{array:?} at {row}");
                taken += 1;
            } else {
                assert!(out.is_empty());
            }
        }
        taken
    }

    #[test]
    fn values_are_written_as_arrow_pg_writes_them() {
        let texts = ["", "é", "a \"b\" {c}", "a text of more than twelve bytes", "null"];
        assert_eq!(check(Arc::new(StringArray::from(texts.to_vec()))), 5);
        assert_eq!(check(Arc::new(StringViewArray::from(texts.to_vec()))), 5);
        assert_eq!(check(Arc::new(BooleanArray::from(vec![true, false]))), 2);
        assert_eq!(check(Arc::new(Int16Array::from(vec![i16::MIN, -1, 0, i16::MAX]))), 4);
        assert_eq!(check(Arc::new(Int32Array::from(vec![i32::MIN, -10, 0, i32::MAX]))), 4);
        assert_eq!(check(Arc::new(Int64Array::from(vec![i64::MIN, -1, 0, 9, 10, 4_096, i64::MAX]))), 7);
    }

    #[test]
    fn times_are_written_as_arrow_pg_writes_them() {
        // Leap days, ends of years and centuries, before 1970, and every day of 30 years or so.
        let mut seconds: Vec<i64> = (-4_000..8_000).map(|day| day * DAY_SECONDS + day * 7 % DAY_SECONDS).collect();
        seconds.extend([-62_167_219_200, -62_135_596_801, 951_782_399, 951_782_400, 4_107_542_399, 253_402_300_799]);
        let count = seconds.len();
        assert_eq!(check(Arc::new(TimestampSecondArray::from(seconds.clone()))), count);
        for by in [1_000, 1_000_000, 1_000_000_000] {
            let inside: Vec<i64> =
                seconds.iter().filter_map(|second| second.checked_mul(by)).map(|at| at + by / 7).collect();
            let count = inside.len();
            let array: ArrayRef = match by {
                1_000 => Arc::new(TimestampMillisecondArray::from(inside)),
                1_000_000 => Arc::new(TimestampMicrosecondArray::from(inside)),
                _ => Arc::new(TimestampNanosecondArray::from(inside)),
            };
            assert_eq!(check(array), count);
        }
        // Years of more digits are left to it.
        assert_eq!(check(Arc::new(TimestampSecondArray::from(vec![253_402_300_800, -62_167_219_201]))), 0);
    }

    #[test]
    fn what_has_another_form_is_left_alone() {
        let array: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let schema = Schema::new(vec![Field::new("c", DataType::Int64, true)]);
        let columns = Columns::new(&schema, &OutputNames::default());
        let infos = columns.describe(&[1]).unwrap();
        assert!(!put(&mut BytesMut::new(), &array, 0, &columns.fields[0], &infos[0]), "binary");
        let marked = columns.fields[0].as_ref().clone().with_metadata([("a".to_owned(), "b".to_owned())].into());
        let infos = columns.describe(&[0]).unwrap();
        assert!(!put(&mut BytesMut::new(), &array, 0, &marked, &infos[0]), "marked");
    }
}
