//! Quantiles within 1 %: how many values fall into each of many ranges, in any order of arrival.
//!
//! A DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
//! 2019) whose ranges follow the bits of a float: each power of two is cut into 64 of equal width, so a value differs from the
//! middle of its range by at most 1/128 of itself, 0.8 %. No logarithm is taken, so every machine gives the same. Beyond
//! [`RANGES_MAX`] ranges those nearest to zero are folded into that of zero; what is left, the ranges furthest from zero that
//! were ever hit, does not depend on the order either. They span at least 31 powers of two on each side: only values 10^9 times
//! smaller than others lose, and are taken for zero.
//!
//! ```text
//! sketch    ranges varint | for each, ascending: number varint (the first zigzag, the others less the one before) | values varint
//! ```

use std::collections::BTreeMap;

use super::cell::{push_varint, take_varint};

/// Ranges that a sketch keeps apart.
const RANGES_MAX: usize = 4_096;
/// Bits of a float's fraction below those that tell ranges apart.
const SHIFT: u32 = 52 - 6;

/// Values by range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantiles(BTreeMap<i32, u64>);

/// The range of zero.
const ZERO: i32 = 0;

/// The number of a value's range; larger values have larger ones. Both zeros are in one range.
fn range_of(value: f64) -> i32 {
    let number = (value.abs().to_bits() >> SHIFT) as i32;
    if value < 0.0 { -number - 1 } else { number }
}

/// The middle of a range.
fn middle(range: i32) -> f64 {
    let (number, sign) = if range < 0 { (-(range + 1), -1.0) } else { (range, 1.0) };
    if number == 0 {
        return 0.0;
    }
    let number = u64::from(number.unsigned_abs());
    let (low, high) = (f64::from_bits(number << SHIFT), f64::from_bits((number + 1) << SHIFT));
    // The range below infinity has no finite end.
    sign * if high.is_finite() { low / 2.0 + high / 2.0 } else { low }
}

impl Quantiles {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        *self.0.entry(range_of(value)).or_default() += 1;
        self.bound();
    }

    /// Adds all values of another sketch.
    pub fn merge(&mut self, other: &Self) {
        for (range, values) in &other.0 {
            *self.0.entry(*range).or_default() += values;
        }
        self.bound();
    }

    /// Takes out the values of another sketch; returns false, and has changed, when it does not hold them.
    ///
    /// What is not in its own range is in that of zero.
    pub fn subtract(&mut self, other: &Self) -> bool {
        let mut from_zero = 0;
        for (range, out) in &other.0 {
            let known = self.0.get_mut(range).filter(|_| *range != ZERO);
            from_zero += known.map_or(*out, |known| {
                let taken = (*out).min(*known);
                *known -= taken;
                out - taken
            });
        }
        let zero = self.0.entry(ZERO).or_default();
        let rest = zero.checked_sub(from_zero);
        *zero = rest.unwrap_or(0);
        self.0.retain(|_, values| *values > 0);
        rest.is_some()
    }

    fn bound(&mut self) {
        while self.0.len() > RANGES_MAX {
            let above = self.0.range(1..).next().map(|(range, _)| *range);
            let below = self.0.range(..0).next_back().map(|(range, _)| *range);
            let is_nearer = |below: &i32| above.is_none_or(|above| -(below + 1) <= above);
            let Some(nearest) = below.filter(is_nearer).or(above) else { break };
            let values = self.0.remove(&nearest).unwrap_or(0);
            *self.0.entry(ZERO).or_default() += values;
        }
    }

    /// Bytes that it takes, about: a B-tree's nodes are two thirds full.
    pub fn heap_bytes(&self) -> usize {
        self.0.len() * size_of::<(i32, u64)>() * 3 / 2
    }

    /// Returns the value of rank `quantile * (values - 1)`, rounded down, or near it; `None` without values.
    #[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a rank")]
    pub fn value(&self, quantile: f64) -> Option<f64> {
        let count: u64 = self.0.values().sum();
        let rank = (quantile * count.checked_sub(1)? as f64) as u64;
        let mut below = 0;
        let range = self.0.iter().find(|(_, values)| {
            below += *values;
            below > rank
        });
        range.map(|(range, _)| middle(*range))
    }

    /// Appends the sketch as above.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push_varint(out, self.0.len() as u64);
        let mut before: Option<i32> = None;
        for (range, values) in &self.0 {
            let number = match before {
                None => u64::from((range << 1 ^ range >> 31).cast_unsigned()),
                Some(before) => u64::from(range.abs_diff(before)),
            };
            push_varint(out, number);
            push_varint(out, *values);
            before = Some(*range);
        }
    }

    /// Reads a sketch at the front of `bytes` and moves behind it.
    pub fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let mut rest = *bytes;
        let count = take_varint(&mut rest).filter(|count| *count <= RANGES_MAX as u64)?;
        let (mut ranges, mut before) = (BTreeMap::new(), None);
        for _ in 0..count {
            let number = u32::try_from(take_varint(&mut rest)?).ok()?;
            let range = match before {
                None => (number >> 1).cast_signed() ^ -(number & 1).cast_signed(),
                Some(before) => i32::checked_add_unsigned(before, number).filter(|_| number > 0)?,
            };
            ranges.insert(range, take_varint(&mut rest)?);
            before = Some(range);
        }
        *bytes = rest;
        Some(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Quantiles {
        let mut sketch = Quantiles::default();
        values.into_iter().for_each(|value| sketch.add(value));
        sketch
    }

    #[test]
    fn known_quantiles_are_within_their_error() {
        let sketch = of((1..=1_000).map(f64::from));
        for (quantile, value) in [(0.0, 1.0), (0.5, 500.0), (0.95, 950.0), (0.999, 999.0), (1.0, 1_000.0)] {
            let found = sketch.value(quantile).expect("values");
            assert!((found - value).abs() <= value * 0.01, "{found} for {value}");
        }
        assert_eq!(of([]).value(0.5), None);
        assert_eq!(of([0.0, -0.0]).value(0.5), Some(0.0));
        assert_eq!(of([f64::MAX]).value(0.5).map(|found| found / f64::MAX > 0.99), Some(true));
    }

    /// Values near zero are folded together, in whatever order they come; the others keep their error, on both sides.
    #[test]
    fn too_many_ranges_fold_near_zero() {
        let powers = (-600..600).flat_map(|power| (0..8).map(move |n| (1.0 + f64::from(n) / 8.0) * 2f64.powi(power)));
        let values: Vec<f64> = powers.flat_map(|value| [value, -value]).collect();
        let (up, down) = (of(values.iter().copied()), of(values.iter().rev().copied()));
        let mut halves = of(values.iter().step_by(2).copied());
        halves.merge(&of(values.iter().skip(1).step_by(2).copied()));
        assert!(up == down && up == halves && up.0.len() == RANGES_MAX);
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        for (quantile, place) in [(0.0, 0), (0.05, values.len() / 20 - 1), (1.0, values.len() - 1)] {
            let (found, value) = (up.value(quantile).expect("values"), sorted[place]);
            assert!((found - value).abs() <= value.abs() * 0.01, "{found} for {value}");
        }
        assert_eq!(up.value(0.5), Some(0.0));
        let mut rest = up.clone();
        assert!(rest.subtract(&of(values[1_000..].iter().copied())));
        assert_eq!(rest.0.values().sum::<u64>(), 1_000);
    }

    proptest! {
        /// Any values: every quantile within 1 % of the exact one, in any order and grouping, through bytes.
        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in prop::collection::vec(prop_oneof![-1e6..1e6, -1e300..1e300, Just(0.0)], 1..60),
            cut in 0usize..60, quantile in 0.0..=1.0,
        ) {
            let cut = cut.min(values.len());
            let mut merged = of(values[cut..].iter().copied());
            merged.merge(&of(values[..cut].iter().copied()));
            prop_assert_eq!(&merged, &of(values.iter().copied()));
            let mut bytes = Vec::new();
            merged.encode(&mut bytes);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(Quantiles::decode(&mut rest), Some(merged.clone()));
            prop_assert!(rest.is_empty());
            let (mut rest, out) = (merged.clone(), of(values[..cut].iter().copied()));
            prop_assert!(rest.subtract(&out));
            prop_assert_eq!(&rest, &of(values[cut..].iter().copied()));
            prop_assert!(out.0.is_empty() || !rest.subtract(&merged));
            values.sort_by(f64::total_cmp);
            let exact = values[(quantile * (values.len() - 1) as f64) as usize];
            let found = merged.value(quantile).expect("values");
            prop_assert!((found - exact).abs() <= exact.abs() * 0.01, "{} for {}", found, exact);
        }
    }
}
