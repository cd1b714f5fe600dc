//! Erasure: the events of a player that was forgotten are hidden at once, until no chunk or segment holds them any more.
//!
//! Forgetting is a command: it removes the player's state and the cells of rollups that name the player, and leaves an
//! [`Erasures`] entry that hides the player's events up to the command's place in the log. What else rollups hold stays: it
//! names nobody. So a rollup that was made before still counts what it has not covered yet, and what it lacks stays stored
//! until it has; one that was made later counts none of it.
//!
//! Each replica writes segments anew without what is hidden, when it likes ([`crate::compaction`]), and drops the entry once
//! it holds nothing that is. The entry goes with what it hides: a state that moves to another node has both.

use std::collections::HashMap;

use galoo_proto::{Hlc, Keyspace, Seq, Token, record};
use prost::Message;

use crate::{
    Error, Result,
    engine::{Direction, Family, Reader},
    key,
};

/// Players that were forgotten, and whose events may still be stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Erasures {
    players: HashMap<String, record::Erasure>,
    /// The last event that any of them hides.
    through: u64,
    /// Stamp of the last one.
    last: u64,
}

/// The last event that is hidden, by all commands or by those before a stamp.
fn through(erasure: &record::Erasure, before: u64) -> u64 {
    erasure.times.iter().filter(|time| time.hlc < before).map(|time| time.through_seq).max().unwrap_or(0)
}

fn last(erasure: &record::Erasure) -> u64 {
    erasure.times.iter().map(|time| time.hlc).max().unwrap_or(0)
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
        Ok(Self::of(all))
    }

    fn of(all: impl IntoIterator<Item = record::Erasure>) -> Self {
        let mut erasures = Self::default();
        for erasure in all {
            erasures.through = erasures.through.max(through(&erasure, u64::MAX));
            erasures.last = erasures.last.max(last(&erasure));
            erasures.players.insert(erasure.player_id.clone(), erasure);
        }
        erasures
    }

    /// Those of commands before a stamp.
    pub(crate) fn before(&self, hlc: Hlc) -> Self {
        let earlier = self.players.values().map(|erasure| {
            let times = erasure.times.iter().filter(|time| time.hlc < hlc.0).copied().collect();
            record::Erasure { times, ..erasure.clone() }
        });
        Self::of(earlier.filter(|erasure| !erasure.times.is_empty()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.players.is_empty()
    }

    /// The forgotten players with the stamp of the last command that forgot each, in no order.
    pub fn players(&self) -> impl Iterator<Item = (&str, Hlc)> {
        self.players.values().map(|erasure| (erasure.player_id.as_str(), Hlc(last(erasure))))
    }

    /// Number of players.
    pub fn len(&self) -> usize {
        self.players.len()
    }

    /// Whether an event is hidden.
    pub(crate) fn hide(&self, player: &str, seq: Seq) -> bool {
        seq.0 <= self.through && self.players.get(player).is_some_and(|erasure| seq.0 <= through(erasure, u64::MAX))
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
        let may = |erasure: &&record::Erasure| {
            last(erasure) > segment.clean_hlc
                && segment.first_seq <= through(erasure, u64::MAX)
                && tokens.contains(&Token::of(&erasure.player_id).0)
        };
        self.players.values().filter(may).map(|erasure| erasure.player_id.clone()).collect()
    }

    /// The row of a player's entry.
    pub(crate) fn row(&self, player: &str) -> Option<Vec<u8>> {
        self.players.get(player).map(Message::encode_to_vec)
    }

    /// Players of whom an event from `first` on may be hidden.
    pub(crate) fn reaching(&self, first: u64) -> impl Iterator<Item = &str> {
        let reaches = move |erasure: &&record::Erasure| through(erasure, u64::MAX) >= first;
        self.players.values().filter(reaches).map(|erasure| erasure.player_id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use galoo_proto::record::erasure::Time;

    use super::*;

    fn erasure(player: &str, times: &[(u64, u64)]) -> record::Erasure {
        let times = times.iter().map(|(hlc, through_seq)| Time { hlc: *hlc, through_seq: *through_seq }).collect();
        record::Erasure { player_id: player.to_owned(), times }
    }

    #[test]
    fn events_up_to_the_command_are_hidden() {
        let all = Erasures::of([erasure("a", &[(10, 5), (20, 9)]), erasure("b", &[(15, 7)])]);
        assert!(all.hide("a", Seq(9)) && !all.hide("a", Seq(10)) && all.hide("b", Seq(7)) && !all.hide("b", Seq(8)));
        assert!(!all.hide("c", Seq(1)));
        let before = all.before(Hlc(15));
        assert!(before.hide("a", Seq(5)) && !before.hide("a", Seq(6)) && !before.hide("b", Seq(1)));
        assert!(all.before(Hlc(10)).is_empty());
    }

    #[test]
    fn a_segment_is_clean_of_those_that_were_forgotten_before_it_was_written() {
        let all = Erasures::of([erasure("a", &[(10, 5)]), erasure("b", &[(15, 7)])]);
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
