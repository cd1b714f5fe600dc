//! How much of its log a leader keeps for voters that lag.
//!
//! A voter within the limits is waited for: it catches up from the log. One further behind is not, or a dead node would
//! fill the disks of the others. Two are waited for although they are further behind, as long as they move: one that has
//! just installed a snapshot (else the log would run away from it while it pulls, and it would pull for ever), and every
//! voter of a new leader, who does not know yet how far it is.

use std::collections::{BTreeMap, VecDeque};

use crate::snapshot::Limits;

/// Bytes of entries between two marks.
const MARK_BYTES: u64 = 1 << 20;

#[derive(Default)]
pub(crate) struct Lag {
    /// Bytes that were appended since the process started, and how many up to which index, every [`MARK_BYTES`].
    bytes: u64,
    marks: VecDeque<(u64, u64)>,
    waited_for: BTreeMap<u64, Wait>,
}

struct Wait {
    since: u64,
    matched: u64,
    moved_at: u64,
}

impl Lag {
    /// Counts entries that were appended, up to `index`.
    pub(crate) fn appended(&mut self, index: u64, bytes: u64) {
        self.bytes += bytes;
        if self.marks.back().is_none_or(|(_, at)| self.bytes - at >= MARK_BYTES) {
            self.marks.push_back((index, self.bytes));
        }
    }

    /// Forgets what was cut.
    pub(crate) fn cut(&mut self, index: u64) {
        while self.marks.get(1).is_some_and(|(marked, _)| *marked <= index) {
            self.marks.pop_front();
        }
    }

    /// Bytes behind an index, to within [`MARK_BYTES`].
    fn bytes_behind(&self, index: u64) -> u64 {
        let below = self.marks.partition_point(|(marked, _)| *marked <= index);
        self.bytes - below.checked_sub(1).map_or(0, |mark| self.marks[mark].1)
    }

    /// Waits for a voter, however far behind, as long as it moves.
    pub(crate) fn wait_for(&mut self, voter: u64, matched: u64, now: u64) {
        self.waited_for.insert(voter, Wait { since: now, matched, moved_at: now });
    }

    /// Looks at the voters' progress once a tick.
    pub(crate) fn observe(&mut self, matched: &[(u64, u64)], last: u64, now: u64, limits: &Limits) {
        self.waited_for.retain(|voter, wait| {
            let Some((_, matched)) = matched.iter().find(|(other, _)| other == voter) else { return false };
            if *matched > wait.matched {
                (wait.matched, wait.moved_at) = (*matched, now);
            }
            let idle = now - wait.moved_at > limits.idle_ticks_max || now - wait.since > limits.offer_ticks_max;
            *matched < last && !idle
        });
    }

    /// Nobody is waited for beyond the limits.
    pub(crate) fn forget(&mut self) {
        self.waited_for.clear();
    }

    /// Up to which index the log is not needed by a voter that is waited for.
    pub(crate) fn held(&self, matched: &[(u64, u64)], start: u64, last: u64, limits: &Limits) -> u64 {
        let waited = matched.iter().filter(|(voter, matched)| {
            // A leader knows nothing of a voter that has not answered it; it is no further behind than the log goes.
            let matched = (*matched).max(start);
            let near = last - matched.min(last) <= limits.lag_entries_max
                && self.bytes_behind(matched) <= limits.lag_bytes_max;
            near || self.waited_for.contains_key(voter)
        });
        waited.map(|(_, matched)| *matched).min().unwrap_or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { lag_entries_max: 10, lag_bytes_max: 4 << 20, idle_ticks_max: 5, offer_ticks_max: 20, resend_ticks: 2 };

    #[test]
    fn a_voter_is_waited_for_up_to_the_limits_of_entries_and_of_bytes() {
        let mut lag = Lag::default();
        assert_eq!(lag.held(&[(1, 100), (2, 90)], 50, 100, &LIMITS), 90);
        assert_eq!(lag.held(&[(1, 100), (2, 89)], 50, 100, &LIMITS), 100);
        for index in 91..=100 {
            lag.appended(index, 1 << 20);
        }
        assert_eq!(lag.held(&[(1, 100), (2, 96)], 50, 100, &LIMITS), 96);
        assert_eq!(lag.held(&[(1, 100), (2, 95)], 50, 100, &LIMITS), 100);
        lag.cut(95);
        assert_eq!(lag.held(&[(1, 100), (2, 96)], 95, 100, &LIMITS), 96);
    }

    #[test]
    fn a_voter_that_never_answered_is_as_far_behind_as_the_log_is_long() {
        let lag = Lag::default();
        assert_eq!(lag.held(&[(1, 100), (2, 0)], 90, 100, &LIMITS), 0, "nothing is cut");
        assert_eq!(lag.held(&[(1, 100), (2, 0)], 89, 100, &LIMITS), 100);
    }

    #[test]
    fn a_voter_that_catches_up_is_waited_for_while_it_moves_and_not_for_ever() {
        let mut lag = Lag::default();
        lag.wait_for(2, 10, 0);
        let held = |lag: &Lag, matched| lag.held(&[(1, 1000), (2, matched)], 0, 1000, &LIMITS);
        for now in 1..=20 {
            lag.observe(&[(1, 1000), (2, 10 + now)], 1000, now, &LIMITS);
            assert_eq!(held(&lag, 10 + now), 10 + now);
        }
        lag.observe(&[(1, 1000), (2, 31)], 1000, 21, &LIMITS);
        assert_eq!(held(&lag, 31), 1000, "its time is over");
        lag.wait_for(2, 31, 21);
        lag.observe(&[(1, 1000), (2, 31)], 1000, 27, &LIMITS);
        assert_eq!(held(&lag, 31), 1000, "it does not move");
    }
}
