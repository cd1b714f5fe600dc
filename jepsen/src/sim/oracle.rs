//! What must hold, known only from what clients sent and were told, and from what was handed out to be applied.

use std::collections::{BTreeMap, BTreeSet};

use galoo_cluster::meta::MetaState;
use galoo_consensus::GroupId;
use galoo_proto::{
    Token, TokenRange,
    command::{Outcome, outcome},
    meta::{GameRecord, MetaOutcome, NodeRecord, meta_outcome, rejection::Reason},
    value::value::Kind,
};

use super::{
    NODES, Violation,
    clients::Operation,
    node::{self, GAME_SHARDS, Node, PLAYERS, game_name, game_of, node_record},
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
    /// Hash of the entry at each index of each group.
    entries: BTreeMap<(GroupId, u64), u64>,
    leaders: BTreeMap<(GroupId, u64), u64>,
    players: BTreeMap<usize, Player>,
    /// Events that were sent, and to whom they belong.
    events: BTreeMap<u64, usize>,
    /// Chunks that were closed, by game and range of the shard.
    chunks: BTreeMap<(usize, TokenRange), u64>,
    /// Games that are known to be there, with the record that whoever made one was told.
    games: BTreeMap<usize, Option<GameRecord>>,
    /// What was sent of where nodes are.
    addrs: Vec<NodeRecord>,
}

/// The game of a player, and the range of the shard that must hold it.
fn place_of(player: usize) -> (usize, TokenRange) {
    let (game, token) = (game_of(player), Token::of(&node::player(player)));
    let range = TokenRange::cut(GAME_SHARDS[game]).into_iter().find(|range| range.contains(token));
    (game, range.expect("a ring that is cut holds every token"))
}

fn broken<T>(promise: String) -> Result<T, Violation> {
    Err(Violation(promise))
}

impl Oracle {
    /// An entry was handed out to be applied on a node.
    pub(crate) fn handed_out(&mut self, node: u64, group: GroupId, index: u64, hash: u64) -> Result<(), Violation> {
        if *self.entries.entry((group, index)).or_insert(hash) != hash {
            return broken(format!("{group} has two entries at {index}: node {node} is to apply another than before"));
        }
        Ok(())
    }

    pub(crate) fn leads(&mut self, group: GroupId, term: u64, node: u64) -> Result<(), Violation> {
        let first = *self.leaders.entry((group, term)).or_insert(node);
        if first != node {
            return broken(format!("term {term} of {group} has two leaders: {first} and {node}"));
        }
        Ok(())
    }

    pub(crate) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// How many chunks of a player's shard are known to be closed.
    pub(crate) fn chunks_sealed(&self, player: usize) -> u64 {
        self.chunks.get(&place_of(player)).copied().unwrap_or_default()
    }

    /// Whether a game is known to be there.
    pub(crate) fn is_made(&self, game: usize) -> bool {
        self.games.contains_key(&game)
    }

    pub(crate) fn began(&mut self, operation: &Operation) {
        match operation {
            Operation::Append { player, events, .. } => {
                self.players.entry(*player).or_default().sent.events += events.len() as u64;
                self.events.extend(events.iter().map(|event| (*event, *player)));
            }
            Operation::Increment { player, .. } => self.players.entry(*player).or_default().sent.counter += 1,
            Operation::UpdateNode { node, port } => self.addrs.push(node_record(*node, *port)),
            Operation::Seal { .. }
            | Operation::MoveGcTime { .. }
            | Operation::Read { .. }
            | Operation::CreateGame { .. } => {}
        }
    }

    /// What a read of a player that begins here must at least see.
    pub(crate) fn floor(&self, player: usize) -> Seen {
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
            (Operation::Seal { player, .. }, Some(outcome::Result::Sealed(sealed))) => {
                *self.chunks.entry(place_of(*player)).or_default() += u64::from(sealed.closed);
            }
            (Operation::MoveGcTime { .. }, Some(outcome::Result::GcTimeMoved(_))) => {}
            _ => return broken(format!("{operation:?} is answered {outcome:?}")),
        }
        Ok(())
    }

    /// The meta group has answered.
    pub(crate) fn decided(&mut self, operation: &Operation, outcome: MetaOutcome) -> Result<(), Violation> {
        match (operation, outcome.result) {
            (Operation::CreateGame { game }, Some(meta_outcome::Result::Game(record))) => {
                let made = self.games.entry(*game).or_default();
                if made.is_some() || record.name != game_name(*game) {
                    return broken(format!("P3: {operation:?} made {record:?}, and before {made:?}"));
                }
                *made = Some(record);
                Ok(())
            }
            // By another client, or by an attempt of this one whose answer was lost.
            (Operation::CreateGame { game }, Some(meta_outcome::Result::Rejected(rejection)))
                if rejection.reason() == Reason::GameExists =>
            {
                self.games.entry(*game).or_default();
                Ok(())
            }
            (Operation::UpdateNode { node, port }, Some(meta_outcome::Result::Node(record)))
                if record == node_record(*node, *port) =>
            {
                Ok(())
            }
            (_, result) => broken(format!("{operation:?} is answered {result:?}")),
        }
    }

    pub(crate) fn read(&mut self, of: usize, floor: Seen, seen: Seen) -> Result<(), Violation> {
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

    /// All clients have their answers: every game is there once, with the shards that it was given, and every node is
    /// where it was said to be.
    pub(crate) fn final_meta(&self, meta: &MetaState) -> Result<(), Violation> {
        let names: Vec<String> = self.games.keys().map(|game| game_name(*game)).collect();
        if !meta.games().map(|game| &game.name).eq(&names) {
            return broken(format!("P1: the games are not {names:?}: {meta:?}"));
        }
        let mut shards = 0;
        for (game, told) in &self.games {
            let Some(record) = meta.game(&game_name(*game)) else { continue };
            if told.as_ref().is_some_and(|told| told != record) {
                return broken(format!("P1: {told:?} was made, and is {record:?}"));
            }
            let given = TokenRange::cut(GAME_SHARDS[*game]);
            shards += given.len();
            let found = meta.shards().filter(|shard| shard.game == record.id);
            let found: Vec<_> = found.map(|shard| TokenRange { start: shard.start, end: shard.end }).collect();
            if found != given {
                return broken(format!("P1: {record:?} was given {given:?} and has {found:?}"));
            }
        }
        if meta.shards().count() != shards {
            return broken(format!("P1: the games have {shards} shards: {meta:?}"));
        }
        let is_said = |node: &NodeRecord| *node == node_record(node.id, 0) || self.addrs.contains(node);
        if !meta.nodes().map(|node| node.id).eq(1..=NODES) || !meta.nodes().all(is_said) {
            return broken(format!("the nodes are not where they were said to be: {meta:?}"));
        }
        Ok(())
    }

    /// All clients have their answers: everything that was sent is there, once, in the shard that owns its player.
    pub(crate) fn final_state(&self, meta: &MetaState, node: &Node) -> Result<(), Violation> {
        let mut stored = BTreeMap::new();
        for shard in meta.shards() {
            let group = GroupId(shard.id);
            let name = meta.games().find(|game| game.id == shard.game).map(|game| game.name.as_str());
            let range = TokenRange { start: shard.start, end: shard.end };
            for (player, event) in node.all_events(group) {
                if !range.contains(Token::of(&player)) {
                    return broken(format!("{group} has {range} and an event of {player}"));
                }
                if stored.insert(event, player).is_some() {
                    return broken(format!("P3: event {event} is stored twice"));
                }
            }
            for player in 0..PLAYERS {
                let (game, place) = place_of(player);
                let is_owner = name == Some(game_name(game).as_str()) && place == range;
                let sent = self.players.get(&player).filter(|_| is_owner).map_or(0, |player| player.sent.counter);
                let seen = node.read(group, player).counter;
                if seen != sent {
                    return broken(format!(
                        "P3: {sent} increments of p{player} were acknowledged by {group}, the counter says {seen}"
                    ));
                }
            }
        }
        for (event, player) in &self.events {
            if stored.remove(event) != Some(node::player(*player)) {
                return broken(format!("P1: event {event} was acknowledged and is not stored"));
            }
        }
        if let Some(event) = stored.keys().next() {
            return broken(format!("event {event} was never sent"));
        }
        Ok(())
    }
}
