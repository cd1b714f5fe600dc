//! Erasure: the events of a player that was forgotten are hidden at once, until no chunk or segment holds them any more.
//!
//! Forgetting is a command: it removes the player's state and the cells of rollups that name the player, and leaves an
//! [`Erasures`] entry that hides the player's events up to the command's place in the log. What else rollups hold names nobody,
//! and each declares what becomes of it ([`crate::rollup::settle`]): it is taken out, or it stays, and then the rollup still
//! counts what it has not covered yet. So what a rollup lacks or owes stays stored until it has settled it; a rollup that was
//! made later counts none of it.
//!
//! Each replica writes segments anew without what is hidden, when it likes ([`crate::compaction`]), and drops the entry once
//! it holds nothing that is. The entry goes with what it hides: a state that moves to another node has both.

use std::{collections::HashMap, ops::Range};

use galoo_proto::{
    Hlc, Keyspace, Seq, Token,
    record::{self, erasure::Time},
};
use prost::Message;

use crate::{
    Error, Result,
    engine::{Direction, Family, Reader},
    key,
};

/// Players that were forgotten, and whose events may still be stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Erasures {
    players: HashMap<String, Player>,
    /// The last event that any of them hides.
    through: u64,
    /// Stamp of the last one.
    last: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Player {
    erasure: record::Erasure,
    /// For each time, when the events were that it hides.
    hidden_ms: Vec<Range<i64>>,
}

impl Player {
    fn through(&self) -> u64 {
        self.erasure.times.iter().map(|time| time.through_seq).max().unwrap_or(0)
    }

    fn last(&self) -> u64 {
        self.erasure.times.iter().map(|time| time.hlc).max().unwrap_or(0)
    }

    fn hides(&self, seq: Seq, time_ms: i64) -> bool {
        let mut times = self.erasure.times.iter().zip(&self.hidden_ms);
        times.any(|(time, hidden_ms)| seq.0 <= time.through_seq && hidden_ms.contains(&time_ms))
    }
}

impl Erasures {
    /// Reads those of a keyspace.
    pub(crate) fn read(reader: &dyn Reader, keyspace: Keyspace) -> Result<Self> {
        let range = key::erasures(keyspace);
        let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
        let mut all = Vec::new();
        while let Some((_, value)) = rows.next()? {
            all.push(record::Erasure::decode(value).map_err(|error| Error::row("erasure", error))?);
        }
        Ok(Self::of(all.iter(), |_| Some(ALWAYS)))
    }

    /// Those commands that hide something, and events of which times.
    fn of<'e>(all: impl Iterator<Item = &'e record::Erasure>, hidden_ms: impl Fn(&Time) -> Option<Range<i64>>) -> Self {
        let mut erasures = Self::default();
        for record::Erasure { player_id, times } in all {
            let (times, hidden_ms): (Vec<Time>, _) =
                times.iter().filter_map(|time| Some((*time, hidden_ms(time)?))).unzip();
            if times.is_empty() {
                continue;
            }
            let erasure = record::Erasure { player_id: player_id.clone(), times };
            let player = Player { erasure, hidden_ms };
            erasures.through = erasures.through.max(player.through());
            erasures.last = erasures.last.max(player.last());
            erasures.players.insert(player_id.clone(), player);
        }
        erasures
    }

    /// Hides only what some commands do, and of that only events of some times.
    pub(crate) fn narrowed(&self, hidden_ms: impl Fn(&Time) -> Option<Range<i64>>) -> Self {
        Self::of(self.players.values().map(|player| &player.erasure), hidden_ms)
    }

    /// The first command behind a stamp, with the player that it forgot.
    pub(crate) fn first_behind(&self, hlc: Hlc) -> Option<(&str, Time)> {
        let all = self.players.values().flat_map(|player| {
            let erasure = &player.erasure;
            erasure.times.iter().map(|time| (erasure.player_id.as_str(), *time))
        });
        all.filter(|(_, time)| time.hlc > hlc.0).min_by_key(|(_, time)| time.hlc)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.players.is_empty()
    }

    /// The forgotten players with the stamp of the last command that forgot each, in no order.
    pub fn players(&self) -> impl Iterator<Item = (&str, Hlc)> {
        self.players.values().map(|player| (player.erasure.player_id.as_str(), Hlc(player.last())))
    }

    /// Number of players.
    pub fn len(&self) -> usize {
        self.players.len()
    }

    /// How many commands that forgot a player still hide something.
    pub fn times(&self, player: &str) -> usize {
        self.players.get(player).map_or(0, |player| player.erasure.times.len())
    }

    /// Whether an event is hidden.
    pub(crate) fn hide(&self, player: &str, seq: Seq, time_ms: i64) -> bool {
        seq.0 <= self.through && self.players.get(player).is_some_and(|player| player.hides(seq, time_ms))
    }

    /// Whether an event from `first` on may be hidden.
    pub(crate) fn reach(&self, first: Seq) -> bool {
        first.0 <= self.through
    }

    /// Players of whom a segment may hold hidden events.
    pub(crate) fn in_segment(&self, segment: &record::Segment) -> Vec<String> {
        if segment.first_seq > self.through || segment.clean_hlc >= self.last || segment.rows == 0 {
            return Vec::new();
        }
        let tokens = segment.token_min..=segment.token_max;
        let may = |player: &&Player| {
            player.last() > segment.clean_hlc
                && segment.first_seq <= player.through()
                && tokens.contains(&Token::of(&player.erasure.player_id).0)
        };
        self.players.values().filter(may).map(|player| player.erasure.player_id.clone()).collect()
    }

    /// The row of a player's entry.
    pub(crate) fn row(&self, player: &str) -> Option<Vec<u8>> {
        self.players.get(player).map(|player| player.erasure.encode_to_vec())
    }

    /// Players of whom an event from `first` on may be hidden.
    pub(crate) fn reaching(&self, first: u64) -> impl Iterator<Item = &str> {
        let reaches = move |player: &&Player| player.through() >= first;
        self.players.values().filter(reaches).map(|player| player.erasure.player_id.as_str())
    }
}

/// All times of events.
pub(crate) const ALWAYS: Range<i64> = i64::MIN..i64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn erasure(player: &str, times: &[(u64, u64)]) -> record::Erasure {
        let time = |(hlc, through_seq): &(u64, u64)| Time { hlc: *hlc, through_seq: *through_seq, events_from_ms: 0 };
        record::Erasure { player_id: player.to_owned(), times: times.iter().map(time).collect() }
    }

    fn of(all: [record::Erasure; 2]) -> Erasures {
        Erasures::of(all.iter(), |_| Some(ALWAYS))
    }

    #[test]
    fn events_up_to_the_command_are_hidden() {
        let all = of([erasure("a", &[(10, 5), (20, 9)]), erasure("b", &[(15, 7)])]);
        let hides = |erasures: &Erasures, player, seq| erasures.hide(player, Seq(seq), 0);
        assert!(hides(&all, "a", 9) && !hides(&all, "a", 10) && hides(&all, "b", 7) && !hides(&all, "b", 8));
        assert!(!hides(&all, "c", 1));
        let before = |hlc| all.narrowed(|time| (time.hlc < hlc).then_some(ALWAYS));
        assert!(hides(&before(15), "a", 5) && !hides(&before(15), "a", 6) && !hides(&before(15), "b", 1));
        assert!(before(10).is_empty());
        let some = all.narrowed(|time| Some(if time.hlc == 10 { 0..5 } else { 7..9 }));
        let hidden: Vec<i64> = (0..10).filter(|time_ms| some.hide("a", Seq(5), *time_ms)).collect();
        assert_eq!(hidden, [0, 1, 2, 3, 4, 7, 8]);
        assert!(!some.hide("a", Seq(6), 1) && some.hide("a", Seq(6), 7));
    }

    #[test]
    fn commands_are_found_in_their_order() {
        let all = of([erasure("a", &[(10, 5), (20, 9)]), erasure("b", &[(15, 7)])]);
        let behind = |hlc| all.first_behind(Hlc(hlc)).map(|(player, time)| (player, time.hlc));
        assert_eq!(
            [behind(0), behind(10), behind(15), behind(20)],
            [Some(("a", 10)), Some(("b", 15)), Some(("a", 20)), None]
        );
    }

    #[test]
    fn a_segment_is_clean_of_those_that_were_forgotten_before_it_was_written() {
        let all = of([erasure("a", &[(10, 5)]), erasure("b", &[(15, 7)])]);
        let segment = |first_seq, clean_hlc| record::Segment {
            first_seq,
            clean_hlc,
            rows: 1,
            token_max: u64::MAX,
            ..Default::default()
        };
        let found = |first_seq, clean_hlc| {
            let mut players = all.in_segment(&segment(first_seq, clean_hlc));
            players.sort();
            players.concat()
        };
        assert_eq!((found(1, 0), found(6, 0), found(8, 0)), ("ab".into(), "b".into(), String::new()));
        assert_eq!((found(1, 10), found(1, 15)), ("b".into(), String::new()));
        let token = Token::of("a").0;
        let elsewhere = record::Segment { token_min: token + 1, ..segment(1, 10) };
        let here = record::Segment { token_max: token, ..segment(1, 0) };
        assert!(all.in_segment(&here).contains(&"a".to_owned()));
        assert!(!all.in_segment(&elsewhere).contains(&"a".to_owned()));
    }
}
