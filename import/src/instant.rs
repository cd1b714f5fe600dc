//! Instants as game logs write them, made into milliseconds since 1970-01-01 UTC.
//!
//! Numbers count seconds, milliseconds, microseconds or nanoseconds, with any fraction and exponent, and are read
//! digit by digit: no float rounds them. Texts are RFC 3339 (section 5.6) and its usual relatives: a space for the
//! `T`, `+0100` and `+01` for the offset, no offset for UTC, a date alone for its midnight. What is finer than a
//! millisecond is floored. A leap second (`:60`) is the first moment of the next minute, as POSIX counts.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use galoo_proto::limits::{EVENT_TIME_MS_END, EVENT_TIME_MS_MIN};
use serde::{Deserialize, Serialize};

/// Milliseconds of an event: 1970-01-01 to 2200-01-01 UTC.
pub const EVENT_TIME_MS: Range<i64> = EVENT_TIME_MS_MIN..EVENT_TIME_MS_END;

const DAY_MS: i64 = 86_400_000;

const _: () = assert!(EVENT_TIME_MS.start == days_from_civil(1970, 1, 1) * DAY_MS);
const _: () = assert!(EVENT_TIME_MS.end == days_from_civil(2200, 1, 1) * DAY_MS);

/// How a time field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimeUnit {
    /// Seconds since 1970.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds since 1970.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds since 1970.
    #[serde(rename = "us")]
    Microseconds,
    /// Nanoseconds since 1970.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// A text such as `2019-01-02T03:04:05.123Z`.
    #[serde(rename = "rfc3339")]
    Rfc3339,
}

impl TimeUnit {
    /// Every unit, in the order in which `--time-unit` lists them.
    pub const ALL: [TimeUnit; 5] =
        [TimeUnit::Seconds, TimeUnit::Milliseconds, TimeUnit::Microseconds, TimeUnit::Nanoseconds, TimeUnit::Rfc3339];

    /// The unit's name as `--time-unit` takes it.
    pub fn name(self) -> &'static str {
        match self {
            TimeUnit::Seconds => "s",
            TimeUnit::Milliseconds => "ms",
            TimeUnit::Microseconds => "us",
            TimeUnit::Nanoseconds => "ns",
            TimeUnit::Rfc3339 => "rfc3339",
        }
    }

    /// Returns the unit that a field's name ends with: `_ms`, `_us`, `_ns`, `_s`, or a longer spelling of them.
    pub fn of_suffix(field: &str) -> Option<TimeUnit> {
        let suffix = &field[field.rfind('_')? + 1..];
        match suffix {
            "s" | "sec" | "secs" | "seconds" => Some(TimeUnit::Seconds),
            "ms" | "millis" | "milliseconds" => Some(TimeUnit::Milliseconds),
            "us" | "micros" | "microseconds" => Some(TimeUnit::Microseconds),
            "ns" | "nanos" | "nanoseconds" => Some(TimeUnit::Nanoseconds),
            _ => None,
        }
    }

    /// Returns the unit in which a number is an instant after 2001; `None` below 10^9, where it may count anything.
    ///
    /// Each border (10^11, 10^14, 10^17) is in the year 5138 in the coarser unit and in 1973 in the finer one.
    pub fn of_magnitude(number: i64) -> Option<TimeUnit> {
        match number {
            ..1_000_000_000 => None,
            1_000_000_000..100_000_000_000 => Some(TimeUnit::Seconds),
            100_000_000_000..100_000_000_000_000 => Some(TimeUnit::Milliseconds),
            100_000_000_000_000..100_000_000_000_000_000 => Some(TimeUnit::Microseconds),
            100_000_000_000_000_000.. => Some(TimeUnit::Nanoseconds),
        }
    }

    /// Reads an instant that is written in this unit; `None` when the text is no number, or no RFC 3339.
    ///
    /// A number beyond what 64 bits of milliseconds hold becomes the nearest that they do.
    pub fn milliseconds(self, text: &str) -> Option<i64> {
        match self {
            TimeUnit::Seconds => decimal(text, 3),
            TimeUnit::Milliseconds => decimal(text, 0),
            TimeUnit::Microseconds => decimal(text, -3),
            TimeUnit::Nanoseconds => decimal(text, -6),
            TimeUnit::Rfc3339 => rfc3339(text),
        }
    }
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of `--time-unit`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TimeUnitOption {
    /// To be told from the field's name and values.
    #[default]
    Auto,
    /// As given.
    Given(TimeUnit),
}

/// A value of `--time-unit` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time unit {value:?} is unknown, it must be s, ms, us, ns, rfc3339 or auto")]
pub struct UnknownTimeUnit {
    /// What was given.
    pub value: String,
}

impl FromStr for TimeUnitOption {
    type Err = UnknownTimeUnit;

    fn from_str(text: &str) -> Result<TimeUnitOption, UnknownTimeUnit> {
        if text == "auto" {
            return Ok(TimeUnitOption::Auto);
        }
        TimeUnit::ALL
            .into_iter()
            .find(|unit| unit.name() == text)
            .map(TimeUnitOption::Given)
            .ok_or_else(|| UnknownTimeUnit { value: text.to_owned() })
    }
}

/// Digits of a number that count; those behind them are below every unit.
const DIGITS_MAX: u32 = 30;

/// Reads a decimal number times 10^`shift`, floored; numbers out of range become the nearest of the type.
fn decimal(text: &str, shift: i32) -> Option<i64> {
    let bytes = text.as_bytes();
    // Nearly every time is a row of digits that cannot overflow.
    if (1..=15).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit) {
        let number = bytes.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        return Some(if shift < 0 {
            number / 10_i64.pow(shift.unsigned_abs())
        } else {
            number * 10_i64.pow(shift as u32)
        });
    }
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent_of(exponent)?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(whole, part)| (whole, Some(part)));
    if whole.is_empty() || fraction == Some("") {
        return None;
    }
    let (mut number, mut digits, mut power) = (0_i128, 0, exponent.saturating_add(shift));
    for (text, places) in [(whole, 0), (fraction.unwrap_or(""), 1)] {
        for byte in text.bytes() {
            if !byte.is_ascii_digit() {
                return None;
            }
            if digits < DIGITS_MAX {
                number = number * 10 + i128::from(byte - b'0');
                digits += u32::from(number > 0);
                power = power.saturating_sub(places);
            } else {
                power = power.saturating_add(1 - places);
            }
        }
    }
    let scaled = match (number, power) {
        (0, _) => 0,
        (_, 31..) => i128::MAX,
        (_, 0..=30) => number.saturating_mul(10_i128.pow(power.unsigned_abs())),
        // Flooring a negative number rounds it away from zero.
        (_, -37..0) if negative => (number + 10_i128.pow(power.unsigned_abs()) - 1) / 10_i128.pow(power.unsigned_abs()),
        (_, -37..0) => number / 10_i128.pow(power.unsigned_abs()),
        (_, _) => i128::from(negative),
    };
    let signed = if negative { -scaled } else { scaled };
    Some(signed.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

/// Reads an exponent; one that is out of all proportion becomes 100,000.
fn exponent_of(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<i32>().unwrap_or(i32::MAX).min(100_000);
    Some(if text.starts_with('-') { -size } else { size })
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date
/// algorithms", `days_from_civil`).
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // A year begins in March here, so that the leap day is its last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Returns the days of a month.
fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// What is left of a text that is read from its front.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    /// Takes exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        let mut number = 0;
        for byte in taken {
            if !byte.is_ascii_digit() {
                return None;
            }
            number = number * 10 + i64::from(byte - b'0');
        }
        self.0 = rest;
        Some(number)
    }

    /// Takes one byte out of `choice`.
    fn one_of(&mut self, choice: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        if !choice.contains(first) {
            return None;
        }
        self.0 = rest;
        Some(*first)
    }
}

/// Reads an RFC 3339 text; see the head of the file for what else is understood.
fn rfc3339(text: &str) -> Option<i64> {
    let mut rest = Rest(text.as_bytes());
    let year = rest.digits(4)?;
    rest.one_of(b"-")?;
    let month = rest.digits(2)?;
    rest.one_of(b"-")?;
    let day = rest.digits(2)?;
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    let midnight = days_from_civil(year, month, day) * DAY_MS;
    if rest.0.is_empty() {
        return Some(midnight);
    }
    rest.one_of(b"Tt ")?;
    let hour = rest.digits(2)?;
    rest.one_of(b":")?;
    let minute = rest.digits(2)?;
    rest.one_of(b":")?;
    let second = rest.digits(2)?;
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let fraction = match rest.one_of(b".,") {
        Some(_) => fraction_ms(&mut rest)?,
        None => 0,
    };
    let offset = offset_minutes(&mut rest)?;
    if !rest.0.is_empty() {
        return None;
    }
    // A leap second's fraction would run into the next minute's own: all of it is that minute's first moment.
    let fraction = if second == 60 { 0 } else { fraction };
    Some(midnight + ((hour * 60 + minute - offset) * 60 + second) * 1000 + fraction)
}

/// Takes one or more digits behind the point and returns their whole milliseconds.
fn fraction_ms(rest: &mut Rest<'_>) -> Option<i64> {
    let (mut milliseconds, mut worth) = (rest.digits(1)? * 100, 10);
    while let Some(digit) = rest.digits(1) {
        milliseconds += digit * worth;
        worth /= 10;
    }
    Some(milliseconds)
}

/// Takes what says how far the clock is ahead of UTC; nothing means not at all.
fn offset_minutes(rest: &mut Rest<'_>) -> Option<i64> {
    if rest.0.is_empty() || rest.one_of(b"Zz").is_some() {
        return Some(0);
    }
    let sign = if rest.one_of(b"+-")? == b'-' { -1 } else { 1 };
    let hours = rest.digits(2)?;
    let minutes = match rest.one_of(b":") {
        Some(_) => rest.digits(2)?,
        None if rest.0.is_empty() => 0,
        None => rest.digits(2)?,
    };
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_are_read_as_rfc_3339_says_and_a_little_wider() {
        let table = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2019-01-02T03:04:05.123Z", Some(1_546_398_245_123)),
            ("2019-01-02 03:04:05.123", Some(1_546_398_245_123)),
            ("2019-01-02t03:04:05,1239999z", Some(1_546_398_245_123)),
            ("2019-01-02T04:34:05.123+01:30", Some(1_546_398_245_123)),
            ("2019-01-01T22:04:05.123-0500", Some(1_546_398_245_123)),
            ("2019-01-02 04:04:05.1+01", Some(1_546_398_245_100)),
            ("2019-01-02", Some(1_546_387_200_000)),
            ("2000-02-29T00:00:00Z", Some(951_782_400_000)),
            ("1969-12-31T23:59:59.9999Z", Some(-1)),
            ("2016-12-31T23:59:60Z", Some(1_483_228_800_000)),
            ("2016-12-31T23:59:60.9Z", Some(1_483_228_800_000)),
            ("2199-12-31T23:59:59.999Z", Some(EVENT_TIME_MS.end - 1)),
            ("1900-02-29T00:00:00Z", None),
            ("2100-02-29", None),
            ("2019-13-01", None),
            ("2019-00-01", None),
            ("2019-04-31", None),
            ("2019-01-02T24:00:00Z", None),
            ("2019-01-02T03:60:00Z", None),
            ("2019-01-02T03:04:61Z", None),
            ("2019-01-02T03:04Z", None),
            ("2019-01-02T03:04:05.Z", None),
            ("2019-01-02T03:04:05+24:00", None),
            ("2019-01-02T03:04:05+1:00", None),
            ("2019-01-02T03:04:05Zx", None),
            ("2019-01-02T", None),
            ("19-01-02", None),
            ("２019-01-02", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(rfc3339(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_scaled_and_floored_without_a_float() {
        use TimeUnit::{Microseconds as Us, Milliseconds as Ms, Nanoseconds as Ns, Seconds as S};
        let table = [
            (S, "1546398245", Some(1_546_398_245_000)),
            (S, "1546398245.1239", Some(1_546_398_245_123)),
            (S, "1.5463982451239e9", Some(1_546_398_245_123)),
            (S, "1.5463982451239E+09", Some(1_546_398_245_123)),
            (Ms, "1546398245123", Some(1_546_398_245_123)),
            (Ms, "1546398245123.9", Some(1_546_398_245_123)),
            (Us, "1546398245123999", Some(1_546_398_245_123)),
            (Ns, "1546398245123999999", Some(1_546_398_245_123)),
            (Ns, "15463982451239999990000e-4", Some(1_546_398_245_123)),
            (S, "0.0009", Some(0)),
            (S, "-0.0001", Some(-1)),
            (S, "-0.0010", Some(-1)),
            (S, "-0.0011", Some(-2)),
            (S, "-0", Some(0)),
            (Ms, "-1e-90", Some(-1)),
            (Ms, "1e-90", Some(0)),
            (Ms, "1e999999999999", Some(i64::MAX)),
            (Ms, "0e999999999999", Some(0)),
            (Ms, "-99999999999999999999999999999999999999999999", Some(i64::MIN)),
            (S, "0.00000000000000000000000000000000000000000000000001e53", Some(1_000_000)),
            (S, "", None),
            (S, "-", None),
            (S, "1.", None),
            (S, ".5", None),
            (S, "1e", None),
            (S, "1e+", None),
            (S, "1.2.3", None),
            (S, "0x10", None),
            (S, " 1", None),
            (S, "2019-01-02", None),
        ];
        for (unit, text, expected) in table {
            assert_eq!(unit.milliseconds(text), expected, "{text} {unit}");
        }
    }

    #[test]
    fn every_day_of_the_range_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for index in 0..EVENT_TIME_MS.end / DAY_MS {
            assert_eq!(rfc3339(&format!("{year:04}-{month:02}-{day:02}")), Some(index * DAY_MS));
            day += 1;
            if rfc3339(&format!("{year:04}-{month:02}-{day:02}")).is_none() {
                (month, day) = (month + 1, 1);
                if month > 12 {
                    (year, month) = (year + 1, 1);
                }
            }
        }
        assert_eq!((year, month, day), (2200, 1, 1));
    }

    #[test]
    fn units_are_told_by_suffix_and_magnitude() {
        let names = [
            ("ts_ms", Some("ms")),
            ("event_time_us", Some("us")),
            ("a.at_ns", Some("ns")),
            ("t_s", Some("s")),
            ("t_seconds", Some("s")),
            ("ts", None),
            ("ms", None),
            ("", None),
            ("x_", None),
            ("tags_ß", None),
        ];
        for (name, expected) in names {
            assert_eq!(TimeUnit::of_suffix(name).map(TimeUnit::name), expected, "{name}");
        }
        let seconds: i64 = 1_546_398_245;
        let numbers =
            [(seconds, "s"), (seconds * 1000, "ms"), (seconds * 1_000_000, "us"), (seconds * 1_000_000_000, "ns")];
        for (number, expected) in numbers {
            assert_eq!(TimeUnit::of_magnitude(number).map(TimeUnit::name), Some(expected));
        }
        assert_eq!(TimeUnit::of_magnitude(999_999_999), None);
        assert_eq!("auto".parse(), Ok(TimeUnitOption::Auto));
        for unit in TimeUnit::ALL {
            assert_eq!(unit.name().parse(), Ok(TimeUnitOption::Given(unit)));
            assert_eq!(serde_json::to_string(&unit).unwrap(), format!("{:?}", unit.name()));
        }
        let error = "min".parse::<TimeUnitOption>().unwrap_err();
        assert_eq!(error.to_string(), "time unit \"min\" is unknown, it must be s, ms, us, ns, rfc3339 or auto");
    }

    proptest! {
        #[test]
        fn an_instant_reads_back_at_any_offset(instant in EVENT_TIME_MS, offset in -23 * 60_i64..=23 * 60) {
            // The clock on the wall there, written by walking the calendar.
            let local = instant + offset * 60_000;
            let (mut day, in_day) = (local.div_euclid(DAY_MS), local.rem_euclid(DAY_MS));
            let mut year = 1969;
            day += 365;
            while day >= (1..=12).map(|month| days_in_month(year, month)).sum() {
                day -= (1..=12).map(|month| days_in_month(year, month)).sum::<i64>();
                year += 1;
            }
            let mut month = 1;
            while day >= days_in_month(year, month) {
                day -= days_in_month(year, month);
                month += 1;
            }
            let (sign, size) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
            let text = format!(
                "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{:03}{sign}{:02}:{:02}",
                day + 1, in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60, in_day % 1000, size / 60, size % 60
            );
            prop_assert_eq!(rfc3339(&text), Some(instant), "{}", text);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[-+0-9eE.:TZ ]{0,40}") {
            for unit in TimeUnit::ALL {
                let _ = unit.milliseconds(&text);
            }
        }

        #[test]
        fn decimals_agree_with_integers(number in any::<i64>(), places in 0_usize..12) {
            // number / 10^places seconds, floored to milliseconds.
            let (sign, size) = (if number < 0 { "-" } else { "" }, number.unsigned_abs());
            let text = if places == 0 {
                format!("{sign}{size}")
            } else {
                let unit = 10_u64.pow(places as u32);
                format!("{sign}{}.{:0places$}", size / unit, size % unit)
            };
            let exact = (i128::from(number) * 1000).div_euclid(10_i128.pow(places as u32));
            let expected = exact.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
            prop_assert_eq!(TimeUnit::Seconds.milliseconds(&text), Some(expected), "{}", text);
        }
    }
}
