//! What must hold, known only from what clients sent and were told, and from what was handed out to be applied.

use std::collections::{BTreeMap, BTreeSet};

use galoo_proto::{
    command::{Outcome, outcome},
    value::value::Kind,
};

use super::{
    Violation,
    clients::Operation,
    node::{Node, PLAYERS},
};

/// What is seen of a player: a counter and a number of events. Both only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) counter: u64,
    pub(crate) events: u64,
}

#[derive(Default)]
struct Player {
    /// What was sent, acknowledged or not.
    sent: Seen,
    acknowledged: Seen,
    /// The most that anybody was told.
    told: Seen,
    /// Values that increments returned.
    counters: BTreeSet<u64>,
}

#[derive(Default)]
pub(crate) struct Oracle {
    /// Hash of the entry at each index.
    entries: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    players: BTreeMap<u64, Player>,
    /// Events that were sent, and to whom they belong.
    events: BTreeMap<u64, u64>,
    chunks: u64,
}

fn broken<T>(promise: String) -> Result<T, Violation> {
    Err(Violation(promise))
}

impl Oracle {
    /// An entry was handed out to be applied on a node.
    pub(crate) fn handed_out(&mut self, node: u64, index: u64, hash: u64) -> Result<(), Violation> {
        if *self.entries.entry(index).or_insert(hash) != hash {
            return broken(format!("two entries at index {index}: node {node} is to apply another than a node before"));
        }
        Ok(())
    }

    pub(crate) fn leads(&mut self, term: u64, node: u64) -> Result<(), Violation> {
        let first = *self.leaders.entry(term).or_insert(node);
        if first != node {
            return broken(format!("term {term} has two leaders: {first} and {node}"));
        }
        Ok(())
    }

    pub(crate) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    pub(crate) fn chunks_sealed(&self) -> u64 {
        self.chunks
    }

    pub(crate) fn began(&mut self, operation: &Operation) {
        match operation {
            Operation::Append { player, events, .. } => {
                self.players.entry(*player).or_default().sent.events += events.len() as u64;
                self.events.extend(events.iter().map(|event| (*event, *player)));
            }
            Operation::Increment { player, .. } => self.players.entry(*player).or_default().sent.counter += 1,
            Operation::Seal { .. } | Operation::Read { .. } => {}
        }
    }

    /// What a read of a player that begins here must at least see.
    pub(crate) fn floor(&self, player: u64) -> Seen {
        let Some(player) = self.players.get(&player) else { return Seen::default() };
        Seen {
            counter: player.acknowledged.counter.max(player.told.counter),
            events: player.acknowledged.events.max(player.told.events),
        }
    }

    pub(crate) fn acknowledged(
        &mut self,
        operation: &Operation,
        floor: Seen,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        match (operation, &outcome.result) {
            (Operation::Append { player, events, .. }, Some(outcome::Result::Appended(_))) => {
                self.players.entry(*player).or_default().acknowledged.events += events.len() as u64;
            }
            (Operation::Increment { player: of, .. }, Some(outcome::Result::Mutated(mutated))) => {
                let kind = mutated.values.first().and_then(|value| value.kind.as_ref());
                let Some(Kind::Int(counter)) = kind else {
                    return broken(format!("an increment answered {outcome:?}"));
                };
                let counter = counter.cast_unsigned();
                let player = self.players.entry(*of).or_default();
                if counter <= floor.counter || counter > player.sent.counter {
                    let (floor, sent) = (floor.counter, player.sent.counter);
                    return broken(format!("P2: p{of} is incremented to {counter}; {floor} before, {sent} sent"));
                }
                if !player.counters.insert(counter) {
                    return broken(format!("P3: two increments of p{of} answered {counter}"));
                }
                player.acknowledged.counter += 1;
                player.told.counter = player.told.counter.max(counter);
            }
            (Operation::Seal { .. }, Some(outcome::Result::Sealed(sealed))) => self.chunks += u64::from(sealed.closed),
            _ => return broken(format!("{operation:?} is answered {outcome:?}")),
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, of: u64, floor: Seen, seen: Seen) -> Result<(), Violation> {
        let player = self.players.entry(of).or_default();
        let Player { sent, told, .. } = player;
        if seen.counter < floor.counter || seen.events < floor.events {
            return broken(format!("P2: a read of p{of} sees {seen:?}, acknowledged before it began: {floor:?}"));
        }
        if seen.counter > sent.counter || seen.events > sent.events {
            return broken(format!("P3: a read of p{of} sees {seen:?}, sent: {sent:?}"));
        }
        *told = Seen { counter: told.counter.max(seen.counter), events: told.events.max(seen.events) };
        Ok(())
    }

    /// All clients have their answers: everything that was sent is there, once.
    pub(crate) fn final_state(&self, node: &Node) -> Result<(), Violation> {
        let mut stored = BTreeMap::new();
        for (player, event) in node.all_events() {
            if stored.insert(event, player).is_some() {
                return broken(format!("P3: event {event} is stored twice"));
            }
        }
        for (event, player) in &self.events {
            if stored.remove(event) != Some(format!("p{player}")) {
                return broken(format!("P1: event {event} was acknowledged and is not stored"));
            }
        }
        if let Some(event) = stored.keys().next() {
            return broken(format!("event {event} was never sent"));
        }
        for player in 0..PLAYERS {
            let sent = self.players.get(&player).map_or(0, |player| player.sent.counter);
            let seen = node.read(player).counter;
            if seen != sent {
                return broken(format!(
                    "P3: {sent} increments of p{player} were acknowledged, the counter says {seen}"
                ));
            }
        }
        Ok(())
    }
}
