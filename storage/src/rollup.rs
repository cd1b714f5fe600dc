//! Rollups: aggregates over a shard's events by time bucket and groups, kept as events are compacted.
//!
//! A rollup's **mark** is the seq up to which its cells hold the shard's events: exactly those at or below it (INV-S6), but for
//! players who were forgotten and taken out again ([`settle`]). [`cover`] moves it: it folds one sealed chunk or segment into a [`partial::Partial`] off the thread that applies, adds
//! the cells that are there, and writes cells and mark in one batch. Sources are covered in order of seq, so that one
//! number says all; a new rollup starts at 0 and is filled from the oldest segment on, and answers rightly meanwhile.
//!
//! A rollup has buckets of one to four widths, its **tiers**, each with cells and a retention ([`expiry`]) of its own. A partial has the narrowest alone;
//! those of the others are made from it, as each width is a multiple of the one before, and never from another tier's cells.
//!
//! A read ([`read`]) adds the cells of one snapshot and the partials of what lies behind the mark *in that snapshot*. It is
//! exact and fresh at any moment, however late an event comes (P4); how far covering is decides only what it costs. Cells that
//! were read once stay merged in memory ([`merged`]) with marks of their own, within a bound in bytes ([`cache`]).
//! Everything here merges without regard to order, also where a bucket keeps no more than so many groups ([`bound`]). Cells
//! are each replica's own and no part of the shard's checksum; [`verify`] compares them with the events.

pub mod accumulator;
mod bound;
pub mod cache;
pub mod cell;
mod counted;
pub mod cover;
pub mod definition;
mod distinct;
mod exact_sum;
pub mod expiry;
mod fold;
pub mod mark;
mod merged;
pub mod partial;
mod predicate;
pub mod quantiles;
pub mod read;
pub mod settle;
pub mod verify;

pub use self::definition::{
    Aggregate, BUCKET_MS_MAX, Definition, Group, InvalidRollup, Nulls, Operand, Shown, Tier, Width,
};

/// The newest format of a [`galoo_proto::rollup::Rollup`] that this version knows.
pub const FORMAT_VERSION: u32 = 1;

/// A Monday: buckets of whole weeks start on one. For any width that divides a day it is as good as 1970.
const BUCKET_ORIGIN_MS: i64 = 946_857_600_000;

/// Returns the start of the bucket that holds `at_ms`.
///
/// Buckets are `[start, start + width_ms)` in UTC milliseconds, counted from 2000-01-03, a Monday (as TimescaleDB's
/// `time_bucket`). Instants before it round down, not towards zero. `width_ms` is above 0; times are those of events.
pub fn bucket_start(at_ms: i64, width_ms: i64) -> i64 {
    at_ms - (at_ms - BUCKET_ORIGIN_MS).rem_euclid(width_ms)
}

/// Returns the start of the range `[n * width, (n + 1) * width)` that holds an integer. `width` is above 0.
///
/// `None` when the start is below all 64-bit integers.
pub fn int_range_start(value: i64, width: i64) -> Option<i64> {
    value.checked_sub(value.rem_euclid(width))
}

/// Returns the number `n` of the range `[n * width, (n + 1) * width)` that holds a float. `width` is above 0.
///
/// `None` when it is beyond 2^53 or below -2^53: then not every number is a float, and ranges would run together.
#[expect(clippy::cast_possible_truncation, reason = "it is a whole number within 2^53")]
pub fn float_range(value: f64, width: f64) -> Option<i64> {
    let number = (value / width).floor();
    (number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}

/// Returns the start of a float's range by its number.
#[expect(clippy::cast_precision_loss, reason = "it is a whole number within 2^53")]
pub fn float_range_start(number: i64, width: f64) -> f64 {
    number as f64 * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_start_where_a_person_expects() {
        let hour = 3_600_000;
        assert_eq!(bucket_start(0, hour), 0);
        assert_eq!(bucket_start(hour - 1, hour), 0);
        assert_eq!(bucket_start(hour, hour), hour);
        assert_eq!(bucket_start(-1, hour), -hour);
        let week = 7 * 86_400_000;
        // 1970-01-01 was a Thursday: its week began on 1969-12-29.
        assert_eq!(bucket_start(0, week), -3 * 86_400_000);
        assert_eq!(bucket_start(BUCKET_ORIGIN_MS, week), BUCKET_ORIGIN_MS);
    }

    #[test]
    fn ranges_of_numbers_start_at_multiples_of_their_width() {
        for (value, start) in [(0, 0), (9, 0), (10, 10), (-1, -10), (-10, -10), (i64::MAX, 9_223_372_036_854_775_800)] {
            assert_eq!(int_range_start(value, 10), Some(start), "{value}");
        }
        assert_eq!(int_range_start(i64::MIN, 10), None);
        assert_eq!(int_range_start(i64::MIN, 8), Some(i64::MIN));
        for (value, number) in [(0.0, 0), (0.49, 0), (0.5, 1), (-0.1, -1), (1e300, i64::MAX), (f64::MAX, i64::MAX)] {
            let expected = Some(number).filter(|number| *number != i64::MAX);
            assert_eq!(float_range(value, 0.5), expected, "{value}");
        }
        assert_eq!(float_range_start(-1, 0.5), -0.5);
    }
}
