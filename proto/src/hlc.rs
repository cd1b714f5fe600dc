//! Hybrid logical clock stamps: wall-clock milliseconds that never go backwards.
//!
//! A stamp is a `u64`, 48 bits of Unix milliseconds above 16 bits of counter (Kulkarni et al., "Logical Physical
//! Clocks", 2014). Order of stamps is order of the numbers. The clock itself is a value: time is an argument.

use std::fmt;

const COUNTER_BITS: u32 = 16;

/// A hybrid logical clock stamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// Returns the first stamp of a millisecond; milliseconds beyond 48 bits (the year 10889) saturate.
    pub fn from_millis(unix_ms: u64) -> Self {
        Self(unix_ms.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// Returns the stamp's Unix milliseconds.
    pub fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Returns the least stamp above this one and not before `unix_ms`.
    pub fn next(self, unix_ms: u64) -> Self {
        Self(self.0.saturating_add(1)).max(Self::from_millis(unix_ms))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_is_above_both_the_last_stamp_and_the_wall_clock() {
        let last = Hlc::from_millis(1_000);
        assert_eq!(last.next(999), Hlc(last.0 + 1), "the wall clock went backwards: the counter moves on");
        assert_eq!(last.next(2_000), Hlc::from_millis(2_000));
        assert_eq!(Hlc(last.0 + 0xffff).next(1_000).millis(), 1_001, "a full counter carries into the milliseconds");
    }
}
