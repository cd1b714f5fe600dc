//! Chance from a seed: xoshiro256**, filled by splitmix64.
//!
//! Both are by David Blackman and Sebastiano Vigna (<https://prng.di.unimi.it/>, in the public domain). They are written
//! out here, because what a seed gives must never change with the version of a library.

/// A generator of chance; the same seed gives the same numbers for ever.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// Makes a generator from a seed.
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        // splitmix64.c
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// Returns 64 bits of chance.
    pub fn next_u64(&mut self) -> u64 {
        // xoshiro256starstar.c
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Returns a number below `end`, which is not 0 (Lemire's multiplication; its bias is below `end` / 2^64).
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "a number below 0 was asked for");
        let product = u128::from(self.next_u64()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or(u64::MAX)
    }

    /// Returns a number of `start..end`.
    pub fn within(&mut self, start: i64, end: i64) -> i64 {
        start + self.below(start.abs_diff(end)).cast_signed()
    }

    /// Returns true `times` times in a hundred.
    pub fn percent(&mut self, times: u64) -> bool {
        self.below(100) < times
    }

    /// Returns one of the elements of a list that is not empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let place = self.below(from.len() as u64);
        &from[usize::try_from(place).unwrap_or(0)]
    }

    /// Returns the place of a list of weights, each as likely as its weight.
    pub fn weighted(&mut self, weights: &[u32]) -> usize {
        let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut left = self.below(all);
        for (place, weight) in weights.iter().enumerate() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return place,
            }
        }
        weights.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        // splitmix64 of seed 0 begins 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f, 0xf88bb8a8724c81ec.
        assert_eq!(
            Rng::new(0).0,
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f, 0xf88b_b8a8_724c_81ec]
        );
        // xoshiro256** from the state 1, 2, 3, 4.
        let mut rng = Rng([1, 2, 3, 4]);
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64()], [11_520, 0, 1_509_978_240]);
    }

    #[test]
    fn numbers_stay_in_range_and_reach_it() {
        let mut rng = Rng::new(7);
        let seen: std::collections::BTreeSet<_> = (0..1_000).map(|_| rng.within(-3, 4)).collect();
        assert_eq!(seen, (-3..4).collect());
        let counts = (0..9_000).fold([0u32; 3], |mut counts, _| {
            counts[rng.weighted(&[1, 0, 2])] += 1;
            counts
        });
        assert_eq!(counts[1], 0);
        assert!((2_700..3_300).contains(&counts[0]), "{counts:?}");
    }
}
