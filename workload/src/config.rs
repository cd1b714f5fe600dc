//! How much is simulated, from which seed, and when it happened.

use galoo_proto::limits::EVENT_TIME_MS_END;

/// The end of the simulated time where nobody asks for another: 2026-01-01, so that the same seed has the same answers on
/// every day.
pub const END_MS_DEFAULT: i64 = 1_767_225_600_000;
/// More players than this would not have names of their own.
const PLAYERS_MAX: u32 = 1 << 24;
/// Ten years; a simulated minute is a step.
const DAYS_MAX: u32 = 3_653;
/// A day in milliseconds.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where chance comes from.
    pub seed: u64,
    /// Events in all; so many come, no more and no less.
    pub events: u64,
    /// Players there are; who is drawn to play is seldom one of the last.
    pub players: u32,
    /// Days that the events spread over.
    pub days: u32,
    /// The first Unix millisecond after the last day.
    pub end_ms: i64,
}

/// A simulation that there cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number is out of range.
    #[error("{field} is {value}; it must be {min} to {max}")]
    Range {
        /// Its name.
        field: &'static str,
        /// What was given.
        value: i64,
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
}

impl Config {
    /// Returns two weeks of a game whose size fits the number of events: about a hundred for each player.
    pub fn new(seed: u64, events: u64) -> Self {
        let players = u32::try_from((events / 100).clamp(50, 200_000)).unwrap_or(200_000);
        Self { seed, events, players, days: 14, end_ms: END_MS_DEFAULT }
    }

    /// The first Unix millisecond of the simulated time.
    pub fn start_ms(&self) -> i64 {
        self.end_ms - i64::from(self.days) * DAY_MS
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let range = |field, value, min, max| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError::Range { field, value, min, max }) }
        };
        range("players", i64::from(self.players), 1, i64::from(PLAYERS_MAX))?;
        range("days", i64::from(self.days), 1, i64::from(DAYS_MAX))?;
        range("end_ms", self.end_ms, i64::from(self.days) * DAY_MS, EVENT_TIME_MS_END)
    }
}
