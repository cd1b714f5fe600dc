//! A sum of floats that is exact, whatever their number and order: rounded once, when it is read.
//!
//! Every finite 64-bit float is an integer multiple of 2^-1074, so a fixed-point number of 2,164 bits holds any sum of up
//! to 2^63 of them (a "large superaccumulator": Neal, "Fast exact summation using small and large superaccumulators",
//! 2015). Merging is addition limb by limb.
//!
//! ```text
//! encoded   negative u8 | first limb u8 | limbs u8 | limb u32 ... (little-endian; magnitude, zeros at both ends left out)
//! ```

/// Limbs of 32 bits: 2,099 bits for the floats, the rest for carries.
const LIMBS: usize = 68;
/// Additions after which a limb could overflow at the earliest: each adds less than 2^32 to one.
const ADDITIONS_MAX: u32 = 1 << 30;
const LIMB_BITS: usize = 32;
const LIMB_MASK: i64 = (1 << LIMB_BITS) - 1;

/// An exact sum.
#[derive(Clone, Debug)]
pub(super) struct ExactSum {
    /// Sum of `limb[i] * 2^(32 i - 1074)`; between carries a limb may be negative or have more than 32 bits.
    limbs: Box<[i64; LIMBS]>,
    additions: u32,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { limbs: Box::new([0; LIMBS]), additions: 0 }
    }
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        self.magnitude() == other.magnitude()
    }
}

impl ExactSum {
    /// Bytes of its limbs.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val(self.limbs.as_ref())
    }

    /// Adds a finite float.
    pub(super) fn add(&mut self, value: f64) {
        debug_assert!(value.is_finite(), "JSON has no infinity");
        let bits = value.to_bits();
        let exponent = usize::try_from(bits >> 52 & 0x7ff).unwrap_or(0);
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, shift) = if exponent == 0 { (fraction, 0) } else { (fraction | 1 << 52, exponent - 1) };
        let wide = u128::from(mantissa) << (shift % LIMB_BITS);
        let first = shift / LIMB_BITS;
        for (place, limb) in self.limbs[first..first + 3].iter_mut().enumerate() {
            let piece = (wide >> (place * LIMB_BITS)) as i64 & LIMB_MASK;
            *limb += if value.is_sign_negative() { -piece } else { piece };
        }
        self.count(1);
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        for (limb, more) in self.limbs.iter_mut().zip(other.limbs.iter()) {
            *limb += more;
        }
        self.count(1);
    }

    /// Takes out another sum.
    pub(super) fn subtract(&mut self, other: &Self) {
        let mut other = other.clone();
        other.carry();
        for (limb, less) in self.limbs.iter_mut().zip(other.limbs.iter()) {
            *limb -= less;
        }
        self.count(1);
    }

    fn count(&mut self, additions: u32) {
        self.additions += additions;
        if self.additions >= ADDITIONS_MAX {
            self.carry();
        }
    }

    /// Brings every limb but the last into `[0, 2^32)`; the last one has the sign.
    fn carry(&mut self) {
        let mut carry = 0;
        for limb in &mut self.limbs[..LIMBS - 1] {
            let sum = *limb + carry;
            *limb = sum & LIMB_MASK;
            carry = sum >> LIMB_BITS;
        }
        self.limbs[LIMBS - 1] += carry;
        self.additions = 1;
    }

    /// Returns whether the sum is negative, and its magnitude.
    fn magnitude(&self) -> (bool, [u32; LIMBS]) {
        let mut sum = self.clone();
        sum.carry();
        let negative = sum.limbs[LIMBS - 1] < 0;
        if negative {
            sum.limbs.iter_mut().for_each(|limb| *limb = -*limb);
            sum.carry();
        }
        (negative, std::array::from_fn(|place| sum.limbs[place] as u32))
    }

    /// Returns the float nearest to the sum, ties to even.
    pub(super) fn round(&self) -> f64 {
        let (negative, limbs) = self.magnitude();
        let Some(top) = (0..LIMBS).rev().find(|place| limbs[*place] != 0) else { return 0.0 };
        let bit = |at: usize| limbs[at / LIMB_BITS] >> (at % LIMB_BITS) & 1 == 1;
        let high = top * LIMB_BITS + (31 - limbs[top].leading_zeros() as usize);
        let magnitude = if high <= 52 {
            // A subnormal, or the first normal exponent: the bits are the float's.
            f64::from_bits(u64::from(limbs[0]) | u64::from(limbs[1]) << 32)
        } else {
            let low = high - 52;
            let mut mantissa = (low..=high).rev().fold(0u64, |mantissa, at| mantissa << 1 | u64::from(bit(at)));
            let half = bit(low - 1);
            let rest = (0..low - 1).any(bit);
            let mut exponent = low as u64 + 1;
            if half && (rest || mantissa & 1 == 1) {
                mantissa += 1;
                if mantissa == 1 << 53 {
                    mantissa >>= 1;
                    exponent += 1;
                }
            }
            if exponent >= 2_047 { f64::INFINITY } else { f64::from_bits(exponent << 52 | mantissa & ((1 << 52) - 1)) }
        };
        if negative { -magnitude } else { magnitude }
    }

    /// Appends the sum as above.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (negative, limbs) = self.magnitude();
        let first = limbs.iter().position(|limb| *limb != 0).unwrap_or(0);
        let end = limbs.iter().rposition(|limb| *limb != 0).map_or(first, |last| last + 1);
        out.extend_from_slice(&[u8::from(negative), first as u8, (end - first) as u8]);
        limbs[first..end].iter().for_each(|limb| out.extend_from_slice(&limb.to_le_bytes()));
    }

    /// Reads a sum at the front of `bytes` and moves behind it.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let ([negative, first, count], mut rest) = bytes.split_first_chunk::<3>()?;
        let (first, count) = (usize::from(*first), usize::from(*count));
        let mut sum = Self::default();
        for limb in sum.limbs.get_mut(first..first + count)? {
            let (head, tail) = rest.split_first_chunk::<4>()?;
            *limb = i64::from(u32::from_le_bytes(*head));
            if *negative != 0 {
                *limb = -*limb;
            }
            rest = tail;
        }
        *bytes = rest;
        sum.additions = 1;
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum
    }

    #[test]
    fn sums_that_floats_get_wrong_are_right() {
        assert_eq!(sum(&[]).round().to_bits(), 0.0f64.to_bits());
        assert_eq!(sum(&[1e308, 1.0, -1e308]).round(), 1.0);
        assert_eq!(sum(&[0.1; 10]).round(), 1.0, "ten tenths, each a little above 0.1, round to 1");
        assert_eq!(sum(&[f64::MAX, f64::MAX]).round(), f64::INFINITY);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]).round(), f64::MAX);
        assert_eq!(sum(&[5e-324, 5e-324]).round(), 1e-323);
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0]).round(), 1.0, "a tie goes to even");
        assert_eq!(sum(&[1.0, f64::EPSILON / 2.0, 5e-324]).round(), 1.0 + f64::EPSILON);
        assert_eq!(sum(&[-1.0, -2.5]).round(), -3.5);
    }

    proptest! {
        #[test]
        fn one_float_is_itself(value in any::<f64>().prop_filter("finite", |value| value.is_finite())) {
            prop_assert_eq!(sum(&[value]).round(), value);
        }

        /// Any order and any grouping, through the encoding: the same bytes.
        #[test]
        fn order_and_grouping_do_not_matter(
            mut values in prop::collection::vec(any::<f64>().prop_filter("finite", |v| v.is_finite()), 0..40),
            cut in 0usize..40,
        ) {
            let (mut all, mut bytes) = (Vec::new(), Vec::new());
            sum(&values).encode(&mut all);
            let cut = cut.min(values.len());
            let mut merged = sum(&values[cut..]);
            values.truncate(cut);
            values.reverse();
            merged.merge(&sum(&values));
            merged.encode(&mut bytes);
            prop_assert_eq!(&bytes, &all);
            let mut rest = bytes.as_slice();
            prop_assert_eq!(ExactSum::decode(&mut rest), Some(merged.clone()));
            prop_assert!(rest.is_empty());

            // What was merged is taken out again.
            let mut part = sum(&values);
            merged.subtract(&part);
            part.merge(&merged);
            let mut bytes = Vec::new();
            part.encode(&mut bytes);
            prop_assert_eq!(&bytes, &all);
        }
    }
}
