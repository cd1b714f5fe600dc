//! When people play: regions with hours of their own, evenings more than nights, weekends more than weekdays.

use crate::rng::Rng;

/// A minute in milliseconds.
pub(crate) const MINUTE_MS: i64 = 60_000;
const HOUR_MINUTES: i64 = 60;
const DAY_MINUTES: i64 = 24 * HOUR_MINUTES;

/// How lively each local hour is, from midnight on.
const HOURS: [u32; 24] =
    [38, 24, 15, 10, 8, 8, 10, 15, 20, 25, 30, 35, 42, 42, 40, 44, 54, 66, 80, 94, 100, 98, 84, 60];
/// On Saturdays and Sundays, in hundredths.
const WEEKEND: u64 = 135;

/// A part of the world.
pub(crate) struct Region {
    /// Its name in events.
    pub(crate) name: &'static str,
    /// Its clock, ahead of UTC.
    pub(crate) ahead_hours: i64,
    /// Its share of the players.
    pub(crate) share: u32,
    /// What is spoken there, likelier languages more than once.
    pub(crate) languages: &'static [&'static str],
    /// What is paid there.
    pub(crate) currency: &'static str,
    /// Milliseconds to the servers at best.
    pub(crate) latency_ms: i64,
}

/// All regions.
pub(crate) const REGIONS: [Region; 5] = [
    Region {
        name: "eu-central",
        ahead_hours: 1,
        share: 34,
        languages: &["de", "de", "en", "fr", "pl", "es", "it"],
        currency: "EUR",
        latency_ms: 14,
    },
    Region {
        name: "us-east",
        ahead_hours: -5,
        share: 28,
        languages: &["en", "en", "en", "en", "es"],
        currency: "USD",
        latency_ms: 22,
    },
    Region {
        name: "ap-northeast",
        ahead_hours: 9,
        share: 20,
        languages: &["ja", "ko", "ja"],
        currency: "JPY",
        latency_ms: 9,
    },
    Region {
        name: "sa-east",
        ahead_hours: -3,
        share: 12,
        languages: &["pt", "pt", "es"],
        currency: "BRL",
        latency_ms: 38,
    },
    Region {
        name: "ap-south",
        ahead_hours: 5,
        share: 6,
        languages: &["hi", "en", "en"],
        currency: "INR",
        latency_ms: 51,
    },
];

/// Returns how lively each region is in a minute since 1970.
pub(crate) fn liveliness(minute: i64) -> [u32; REGIONS.len()] {
    std::array::from_fn(|place| {
        let region = &REGIONS[place];
        let local = minute + region.ahead_hours * HOUR_MINUTES;
        let in_day = local.rem_euclid(DAY_MINUTES);
        let hour = usize::try_from(in_day / HOUR_MINUTES).unwrap_or(0);
        let (here, next) = (u64::from(HOURS[hour]), u64::from(HOURS[(hour + 1) % 24]));
        let past = (in_day % HOUR_MINUTES).cast_unsigned();
        // 1970-01-01 was a Thursday: Saturday is day 2, Sunday day 3.
        let weekend = matches!(local.div_euclid(DAY_MINUTES).rem_euclid(7), 2 | 3);
        let level = (here * (60 - past) + next * past) * if weekend { WEEKEND } else { 100 };
        u32::try_from(level * u64::from(region.share) / 100).unwrap_or(u32::MAX)
    })
}

/// Returns how long a session lasts: two minutes to four hours.
pub(crate) fn session_ms(rng: &mut Rng) -> i64 {
    /// The deciles, in seconds.
    const DECILES: [i64; 11] = [120, 240, 420, 640, 900, 1_200, 1_620, 2_200, 3_200, 5_400, 14_000];
    let place = usize::try_from(rng.below(10)).unwrap_or(0);
    rng.within(DECILES[place] * 1_000, DECILES[place + 1] * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenings_are_lively_where_it_is_evening() {
        // 2025-12-17 (a Wednesday), 19:00 and 03:00 UTC.
        let (evening, night) = (liveliness(29_433_300), liveliness(29_432_340));
        assert!(evening[0] > 5 * night[0], "eu-central: {} and {}", evening[0], night[0]);
        assert!(evening[2] < night[2], "ap-northeast: {} and {}", evening[2], night[2]);
        let saturday = liveliness(29_433_300 + 3 * DAY_MINUTES);
        assert!(saturday[0] > evening[0]);
    }
}
