//! The oracle: counts what a simulation gave, to compare a store's answers with.
//!
//! Fold in what was acknowledged, and ask. Memory grows with players, days and hours, not with events.

use std::collections::{BTreeMap, HashMap};

use galoo_proto::value::{Event, Value, mutation::Change, value::Kind};

use crate::{StateChange, Step, config::DAY_MS};

/// An hour in milliseconds.
const HOUR_MS: i64 = 3_600_000;

/// A set of players, by their place.
#[derive(Clone, Debug, Default)]
struct Players(Vec<u64>);

impl Players {
    fn insert(&mut self, place: usize) {
        let word = place / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (place % 64);
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// Counts of events.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    events: u64,
    by_type: BTreeMap<String, u64>,
    places: HashMap<String, usize>,
    by_player: Vec<u64>,
    by_day: BTreeMap<i64, Players>,
    by_hour: BTreeMap<i64, BTreeMap<String, u64>>,
}

fn add(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

impl Tally {
    /// Counts an event.
    pub fn fold(&mut self, event: &Event) {
        self.events += 1;
        add(&mut self.by_type, &event.event_type);
        let place = match self.places.get(&event.player_id) {
            Some(place) => *place,
            None => {
                self.places.insert(event.player_id.clone(), self.by_player.len());
                self.by_player.push(0);
                self.by_player.len() - 1
            }
        };
        self.by_player[place] += 1;
        let start = |width: i64| event.event_time_ms.div_euclid(width) * width;
        self.by_day.entry(start(DAY_MS)).or_default().insert(place);
        add(self.by_hour.entry(start(HOUR_MS)).or_default(), &event.event_type);
    }

    /// Events in all.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Players who did something.
    pub fn players(&self) -> u64 {
        self.by_player.len() as u64
    }

    /// Events by type.
    pub fn by_type(&self) -> &BTreeMap<String, u64> {
        &self.by_type
    }

    /// A player's events.
    pub fn of_player(&self, player_id: &str) -> u64 {
        self.places.get(player_id).map_or(0, |place| self.by_player[*place])
    }

    /// The players with the most events, most first, equal ones by name.
    pub fn most_active(&self, count: usize) -> Vec<(&str, u64)> {
        let mut players: Vec<_> = self.places.iter().map(|(id, place)| (id.as_str(), self.by_player[*place])).collect();
        players.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        players.truncate(count);
        players
    }

    /// Players of each day (its first Unix millisecond, UTC) that has any.
    pub fn daily_active(&self) -> Vec<(i64, u64)> {
        self.by_day.iter().map(|(day, players)| (*day, players.count())).collect()
    }

    /// Events by hour (its first Unix millisecond) and type.
    pub fn by_hour(&self) -> &BTreeMap<i64, BTreeMap<String, u64>> {
        &self.by_hour
    }
}

/// A player's cells: (family, qualifier) and value.
pub type Cells = BTreeMap<(String, String), Value>;

/// The state that all changes make together.
#[derive(Clone, Debug, Default)]
pub struct StateTally {
    players: HashMap<String, Cells>,
}

impl StateTally {
    /// Makes a change.
    pub fn fold(&mut self, change: &StateChange) {
        if !self.players.contains_key(&change.player_id) {
            self.players.insert(change.player_id.clone(), Cells::new());
        }
        let cells = self.players.get_mut(&change.player_id).expect("it was just made");
        for mutation in &change.mutations {
            let name = (mutation.family.clone(), mutation.qualifier.clone());
            match &mutation.change {
                None => {}
                Some(Change::Put(value)) => {
                    cells.insert(name, value.clone());
                }
                Some(Change::Delete(_)) => {
                    cells.remove(&name);
                }
                Some(Change::Increment(by)) => {
                    let cell = cells.entry(name).or_insert(Value { kind: Some(Kind::Int(0)) });
                    match &mut cell.kind {
                        Some(Kind::Int(value)) => *value += by,
                        other => panic!("an increment of {other:?}"),
                    }
                }
                Some(other) => panic!("the simulation does not change state by {other:?}"),
            }
        }
    }

    /// Players with state.
    pub fn players(&self) -> u64 {
        self.players.len() as u64
    }

    /// Cells in all.
    pub fn cells(&self) -> u64 {
        self.players.values().map(|cells| cells.len() as u64).sum()
    }

    /// Every player's cells.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Cells)> {
        self.players.iter().map(|(player, cells)| (player.as_str(), cells))
    }

    /// A player's cells.
    pub fn state(&self, player_id: &str) -> Option<&Cells> {
        self.players.get(player_id)
    }

    /// The sum of an integer cell over all players.
    pub fn sum(&self, family: &str, qualifier: &str) -> i64 {
        let name = (family.to_owned(), qualifier.to_owned());
        let value = |cells: &Cells| match cells.get(&name).and_then(|value| value.kind.as_ref()) {
            Some(Kind::Int(value)) => *value,
            _ => 0,
        };
        self.players.values().map(value).sum()
    }
}

/// Folds a whole run.
impl<'a> FromIterator<&'a Step> for (Tally, StateTally) {
    fn from_iter<I: IntoIterator<Item = &'a Step>>(steps: I) -> Self {
        let (mut events, mut state) = (Tally::default(), StateTally::default());
        for step in steps {
            match step {
                Step::Event(event) => events.fold(event),
                Step::State(change) => state.fold(change),
            }
        }
        (events, state)
    }
}
