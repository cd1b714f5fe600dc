//! The meta group's state machine: games, their shards, rollups and declarations, and nodes.
//!
//! The state is a set of records (key to protobuf message). [`MetaState::apply`] changes it in memory and returns the
//! records that changed, so that whoever keeps it writes them in one batch with the applied index.

use std::collections::BTreeMap;

use galoo_proto::{
    GameId, NodeId, RollupId, ShardId, TokenRange,
    limits::{DECLARED_PROPERTIES_MAX, FAMILIES_MAX, GAMES_MAX, ROLLUPS_MAX, SHARDS_MAX},
    meta::{
        AlterGame, CreateGame, CreateRollup, DeclareProperty, DefineFamily, DropFamily, DropRollup, FamilyRecord,
        GameRecord, MetaCommand, MetaOutcome, NextIds, NodeRecord, PropertiesRecord, Rejection, RollupRecord,
        ShardRecord, meta_command::Body, meta_outcome, rejection::Reason,
    },
    rollup::Rollup,
    value::{FamilyDefinition, PropertyDeclarations, ValueKind},
};
use prost::Message;

use crate::FIRST_SHARD;

/// The newest format of [`MetaCommand`] that this version knows.
pub const FORMAT_VERSION: u32 = 1;

/// What the meta group knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetaState {
    games: BTreeMap<String, GameRecord>,
    shards: BTreeMap<ShardId, ShardRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    rollups: BTreeMap<RollupId, RollupRecord>,
    /// By game and name.
    families: BTreeMap<(GameId, String), FamilyDefinition>,
    /// Declared properties, by game.
    properties: BTreeMap<GameId, PropertyDeclarations>,
    next: NextIds,
    /// Counts the commands that changed anything: caches compare it.
    version: u64,
}

/// A record that a command changed; `None` removes it.
pub type RecordChange = (Vec<u8>, Option<Vec<u8>>);

/// Why a stored record or a command cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It does not decode.
    #[error("{what} does not decode: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It is of a newer format.
    #[error("meta command has format version {found}; this version knows up to {FORMAT_VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
}

const GAME: &[u8] = b"game/";
const SHARD: &[u8] = b"shard/";
const NODE: &[u8] = b"node/";
const ROLLUP: &[u8] = b"rollup/";
const FAMILY: &[u8] = b"family/";
const PROPERTIES: &[u8] = b"properties/";
const NEXT: &[u8] = b"next";

fn key(prefix: &[u8], id: &[u8]) -> Vec<u8> {
    [prefix, id].concat()
}

fn decode<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, Unreadable> {
    M::decode(bytes).map_err(|error| Unreadable::Malformed { what, reason: error.to_string() })
}

impl MetaState {
    /// Rebuilds the state from its records, in any order.
    pub fn load<'a>(records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Self, Unreadable> {
        let mut state = Self::default();
        for (key, value) in records {
            if key.starts_with(GAME) {
                let game: GameRecord = decode("game", value)?;
                state.games.insert(game.name.clone(), game);
            } else if key.starts_with(SHARD) {
                let shard: ShardRecord = decode("shard", value)?;
                state.shards.insert(ShardId(shard.id), shard);
            } else if key.starts_with(NODE) {
                let node: NodeRecord = decode("node", value)?;
                state.nodes.insert(NodeId(node.id), node);
            } else if key.starts_with(ROLLUP) {
                let rollup: RollupRecord = decode("rollup", value)?;
                state.rollups.insert(rollup_id(&rollup), rollup);
            } else if key.starts_with(FAMILY) {
                let record: FamilyRecord = decode("family", value)?;
                let family = record.family.unwrap_or_default();
                state.families.insert((GameId(record.game), family.name.clone()), family);
            } else if key.starts_with(PROPERTIES) {
                let record: PropertiesRecord = decode("properties", value)?;
                state.properties.insert(GameId(record.game), record.declared.unwrap_or_default());
            } else if key == NEXT {
                state.next = decode("next ids", value)?;
            }
        }
        Ok(state)
    }

    /// The records of a cluster that is formed of these nodes.
    pub fn formed(nodes: impl IntoIterator<Item = NodeRecord>) -> Vec<RecordChange> {
        let record = |node: NodeRecord| (key(NODE, &node.id.to_be_bytes()), Some(node.encode_to_vec()));
        nodes.into_iter().map(record).collect()
    }

    /// All games, by name.
    pub fn games(&self) -> impl Iterator<Item = &GameRecord> {
        self.games.values()
    }

    /// A game by its name.
    pub fn game(&self, name: &str) -> Option<&GameRecord> {
        self.games.get(name)
    }

    /// All shards, by id.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.values()
    }

    /// Whether a shard was there and is no more.
    ///
    /// A state that lags behind does not know newer shards: that one is missing does not mean that it was dropped.
    pub fn was_dropped(&self, shard: ShardId) -> bool {
        shard.0 < self.next.shard && !self.shards.contains_key(&shard)
    }

    /// A game's rollups, by id.
    pub fn rollups(&self, game: GameId) -> impl Iterator<Item = &Rollup> {
        self.rollups.values().filter(move |one| one.game == game.0).filter_map(|one| one.rollup.as_ref())
    }

    /// Whether a rollup was there and is no more.
    pub fn was_rollup_dropped(&self, rollup: RollupId) -> bool {
        rollup.0 < self.next.rollup && !self.rollups.contains_key(&rollup)
    }

    /// A game's declared families, by name.
    pub fn families(&self, game: GameId) -> impl Iterator<Item = &FamilyDefinition> {
        self.families.range((game, String::new())..(GameId(game.0 + 1), String::new())).map(|(_, family)| family)
    }

    /// A family of a game, if it is declared.
    pub fn family(&self, game: GameId, name: &str) -> Option<&FamilyDefinition> {
        self.families.get(&(game, name.to_owned()))
    }

    /// Whether a state as old as this one knows everything about declarations up to a revision.
    pub fn knows_family_revision(&self, revision: u64) -> bool {
        revision < self.next.family
    }

    /// What a game declares of its properties, if it ever did.
    pub fn properties(&self, game: GameId) -> Option<&PropertyDeclarations> {
        self.properties.get(&game)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// Grows with every command that changed anything.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Applies a command and returns its outcome, equal on every replica, and the records that it changed.
    pub fn apply(&mut self, command: &[u8]) -> Result<(MetaOutcome, Vec<RecordChange>), Unreadable> {
        let command: MetaCommand = decode("meta command", command)?;
        if command.version > FORMAT_VERSION {
            return Err(Unreadable::Newer { found: command.version });
        }
        let (outcome, changes) = match command.body {
            None => (MetaOutcome::default(), Vec::new()),
            Some(Body::CreateGame(create)) => self.create_game(create),
            Some(Body::DropGame(drop)) => self.drop_game(&drop.name),
            Some(Body::AlterGame(alter)) => self.alter_game(&alter),
            Some(Body::CreateRollup(create)) => self.create_rollup(create),
            Some(Body::DropRollup(drop)) => self.drop_rollup(&drop),
            Some(Body::DefineFamily(define)) => self.define_family(define),
            Some(Body::DropFamily(drop)) => self.drop_family(drop),
            Some(Body::DeclareProperty(declare)) => self.declare_property(declare),
            Some(Body::UpdateNode(update)) => self.update_node(update.node.unwrap_or_default()),
        };
        self.version += u64::from(!changes.is_empty());
        Ok((outcome, changes))
    }

    fn create_game(&mut self, create: CreateGame) -> (MetaOutcome, Vec<RecordChange>) {
        if self.games.contains_key(&create.name) {
            return refused(Reason::GameExists, 0, 0);
        }
        if self.games.len() >= GAMES_MAX {
            return refused(Reason::TooManyGames, GAMES_MAX as u64, self.games.len() as u64);
        }
        let replicas = create.replicas as usize;
        if replicas > self.nodes.len() {
            return refused(Reason::TooFewNodes, create.replicas.into(), self.nodes.len() as u64);
        }
        let shards = self.shards.len() + create.shards as usize;
        if shards > SHARDS_MAX {
            return refused(Reason::TooManyShards, SHARDS_MAX as u64, shards as u64);
        }
        let id = GameId(self.next.game.max(1));
        let first = self.next.shard.max(FIRST_SHARD.0);
        let CreateGame { name, shards, replicas: copies } = create;
        let game = GameRecord { id: id.0, name, shards, replicas: copies, ..Default::default() };
        let nodes: Vec<u64> = self.nodes.keys().map(|node| node.0).collect();
        let mut changes = vec![(key(GAME, game.name.as_bytes()), Some(game.encode_to_vec()))];
        for (place, range) in TokenRange::cut(create.shards).into_iter().enumerate() {
            // Round robin: each node gets its share of replicas, and of first voters.
            let voters = (0..replicas).map(|replica| nodes[(place + replica) % nodes.len()]).collect();
            let id = first + place as u64;
            let shard = ShardRecord { id, game: game.id, start: range.start, end: range.end, voters };
            changes.push((key(SHARD, &id.to_be_bytes()), Some(shard.encode_to_vec())));
            self.shards.insert(ShardId(id), shard);
        }
        self.next = NextIds { game: id.0 + 1, shard: first + u64::from(create.shards), ..self.next };
        changes.push((NEXT.to_vec(), Some(self.next.encode_to_vec())));
        self.games.insert(game.name.clone(), game.clone());
        (MetaOutcome { result: Some(meta_outcome::Result::Game(game)) }, changes)
    }

    fn alter_game(&mut self, alter: &AlterGame) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get_mut(&alter.name) else { return refused(Reason::GameUnknown, 0, 0) };
        game.events_retention_ms = alter.events_retention_ms.unwrap_or(game.events_retention_ms);
        game.event_id_window_ms = alter.event_id_window_ms.unwrap_or(game.event_id_window_ms);
        let changes = vec![(key(GAME, game.name.as_bytes()), Some(game.encode_to_vec()))];
        (MetaOutcome { result: Some(meta_outcome::Result::Game(game.clone())) }, changes)
    }

    fn create_rollup(&mut self, create: CreateRollup) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get(&create.game) else { return refused(Reason::GameUnknown, 0, 0) };
        let game = game.id;
        let mut rollup = create.rollup.unwrap_or_default();
        let is_taken = |name: &String| self.rollups(GameId(game)).any(|known| known.tables().any(|one| one == *name));
        if self.rollups(GameId(game)).any(|known| known.name == rollup.name) {
            return refused(Reason::RollupExists, 0, 0);
        }
        if rollup.tables().any(|name| is_taken(&name)) {
            return refused(Reason::TableExists, 0, 0);
        }
        let found = self.rollups(GameId(game)).count();
        if found >= ROLLUPS_MAX {
            return refused(Reason::TooManyRollups, ROLLUPS_MAX as u64, found as u64);
        }
        rollup.id = self.next.rollup.max(1);
        self.next.rollup = rollup.id + 1;
        let record = RollupRecord { game, rollup: Some(rollup) };
        let id = rollup_id(&record);
        self.rollups.insert(id, record.clone());
        let changes = vec![
            (key(ROLLUP, &id.0.to_be_bytes()), Some(record.encode_to_vec())),
            (NEXT.to_vec(), Some(self.next.encode_to_vec())),
        ];
        (rollup_outcome(record), changes)
    }

    fn drop_rollup(&mut self, drop: &DropRollup) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get(&drop.game) else { return refused(Reason::GameUnknown, 0, 0) };
        let named = self.rollups(GameId(game.id)).find(|known| known.name == drop.name).map(|known| RollupId(known.id));
        let Some((id, record)) = named.and_then(|id| Some((id, self.rollups.remove(&id)?))) else {
            return refused(Reason::RollupUnknown, 0, 0);
        };
        (rollup_outcome(record), vec![(key(ROLLUP, &id.0.to_be_bytes()), None)])
    }

    fn define_family(&mut self, define: DefineFamily) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get(&define.game) else { return refused(Reason::GameUnknown, 0, 0) };
        let (game, mut family) = (GameId(game.id), define.family.unwrap_or_default());
        let place = (game, family.name.clone());
        let found = self.families(game).count();
        if found >= FAMILIES_MAX && !self.families.contains_key(&place) {
            return refused(Reason::TooManyFamilies, FAMILIES_MAX as u64, found as u64);
        }
        family.revision = self.next.family.max(1);
        self.next.family = family.revision + 1;
        let record = FamilyRecord { game: game.0, family: Some(family.clone()) };
        self.families.insert(place.clone(), family);
        let changes =
            vec![(family_key(&place), Some(record.encode_to_vec())), (NEXT.to_vec(), Some(self.next.encode_to_vec()))];
        (family_outcome(record), changes)
    }

    fn drop_family(&mut self, drop: DropFamily) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get(&drop.game) else { return refused(Reason::GameUnknown, 0, 0) };
        let place = (GameId(game.id), drop.name);
        let Some(family) = self.families.remove(&place) else { return refused(Reason::FamilyUnknown, 0, 0) };
        (family_outcome(FamilyRecord { game: place.0.0, family: Some(family) }), vec![(family_key(&place), None)])
    }

    fn declare_property(&mut self, declare: DeclareProperty) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.get(&declare.game) else { return refused(Reason::GameUnknown, 0, 0) };
        let (game, property) = (GameId(game.id), declare.property.unwrap_or_default());
        let mut declared = self.properties.get(&game).cloned().unwrap_or_default();
        let place = declared.properties.binary_search_by(|known| known.name.cmp(&property.name));
        let found = declared.properties.len();
        match place {
            Ok(place) if property.kind() == ValueKind::Any => drop(declared.properties.remove(place)),
            Ok(place) => declared.properties[place] = property,
            Err(_) if property.kind() == ValueKind::Any => return refused(Reason::PropertyUnknown, 0, 0),
            Err(_) if found >= DECLARED_PROPERTIES_MAX => {
                return refused(Reason::TooManyProperties, DECLARED_PROPERTIES_MAX as u64, found as u64);
            }
            Err(place) => declared.properties.insert(place, property),
        }
        declared.revision = self.next.family.max(1);
        self.next.family = declared.revision + 1;
        self.properties.insert(game, declared.clone());
        let record = PropertiesRecord { game: game.0, declared: Some(declared) };
        let changes = vec![
            (key(PROPERTIES, &game.0.to_be_bytes()), Some(record.encode_to_vec())),
            (NEXT.to_vec(), Some(self.next.encode_to_vec())),
        ];
        (MetaOutcome { result: Some(meta_outcome::Result::Properties(record)) }, changes)
    }

    fn drop_game(&mut self, name: &str) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(game) = self.games.remove(name) else { return refused(Reason::GameUnknown, 0, 0) };
        let mut changes = vec![(key(GAME, name.as_bytes()), None)];
        self.shards.retain(|id, shard| {
            let stays = shard.game != game.id;
            if !stays {
                changes.push((key(SHARD, &id.0.to_be_bytes()), None));
            }
            stays
        });
        self.rollups.retain(|id, rollup| {
            let stays = rollup.game != game.id;
            if !stays {
                changes.push((key(ROLLUP, &id.0.to_be_bytes()), None));
            }
            stays
        });
        self.families.retain(|place, _| {
            let stays = place.0.0 != game.id;
            if !stays {
                changes.push((family_key(place), None));
            }
            stays
        });
        if self.properties.remove(&GameId(game.id)).is_some() {
            changes.push((key(PROPERTIES, &game.id.to_be_bytes()), None));
        }
        (MetaOutcome { result: Some(meta_outcome::Result::Game(game)) }, changes)
    }
}

fn family_key((game, name): &(GameId, String)) -> Vec<u8> {
    [FAMILY, &game.0.to_be_bytes(), name.as_bytes()].concat()
}

fn family_outcome(record: FamilyRecord) -> MetaOutcome {
    MetaOutcome { result: Some(meta_outcome::Result::Family(record)) }
}

fn rollup_id(record: &RollupRecord) -> RollupId {
    RollupId(record.rollup.as_ref().map_or(0, |rollup| rollup.id))
}

fn rollup_outcome(record: RollupRecord) -> MetaOutcome {
    MetaOutcome { result: Some(meta_outcome::Result::Rollup(record)) }
}

impl MetaState {
    /// Takes where a node of the cluster is; any other is refused: membership is not changed by telling an address.
    fn update_node(&mut self, node: NodeRecord) -> (MetaOutcome, Vec<RecordChange>) {
        let Some(known) = self.nodes.get_mut(&NodeId(node.id)) else {
            return refused(Reason::NodeUnknown, 0, node.id);
        };
        let changed = *known != node;
        known.clone_from(&node);
        let changes = if changed { Self::formed([node.clone()]) } else { Vec::new() };
        (MetaOutcome { result: Some(meta_outcome::Result::Node(node)) }, changes)
    }
}

fn refused(reason: Reason, limit: u64, found: u64) -> (MetaOutcome, Vec<RecordChange>) {
    let rejection = Rejection { reason: reason.into(), limit, found };
    (MetaOutcome { result: Some(meta_outcome::Result::Rejected(rejection)) }, Vec::new())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use galoo_proto::{
        meta::{DropGame, UpdateNode},
        rollup::Tier,
        shard_map::ShardRanges,
        value::PropertyDefinition,
    };
    use proptest::prelude::*;

    use super::*;

    fn node(id: u64) -> NodeRecord {
        NodeRecord { id, grpc_addr: format!("n{id}"), zone: String::new() }
    }

    fn create(name: &str, shards: u32, replicas: u32) -> Vec<u8> {
        let body = Body::CreateGame(CreateGame { name: name.to_owned(), shards, replicas });
        MetaCommand { version: 1, hlc: 0, body: Some(body) }.encode_to_vec()
    }

    fn drop_game(name: &str) -> Vec<u8> {
        let body = Body::DropGame(DropGame { name: name.to_owned() });
        MetaCommand { version: 1, hlc: 0, body: Some(body) }.encode_to_vec()
    }

    fn reason(outcome: &MetaOutcome) -> Option<Reason> {
        match &outcome.result {
            Some(meta_outcome::Result::Rejected(rejection)) => Reason::try_from(rejection.reason).ok(),
            _ => None,
        }
    }

    fn write(records: &mut HashMap<Vec<u8>, Vec<u8>>, changes: Vec<RecordChange>) {
        for (key, value) in changes {
            match value {
                Some(value) => records.insert(key, value),
                None => records.remove(&key),
            };
        }
    }

    fn load(records: &HashMap<Vec<u8>, Vec<u8>>) -> MetaState {
        MetaState::load(records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))).expect("loads")
    }

    /// The state of a cluster of one node, and what applies a command to it: it loads from its records as it is.
    fn of_one_node() -> (MetaState, impl FnMut(&mut MetaState, Body) -> MetaOutcome) {
        let mut records = HashMap::new();
        write(&mut records, MetaState::formed([node(1)]));
        let state = load(&records);
        let apply = move |state: &mut MetaState, body: Body| {
            let command = MetaCommand { version: 1, hlc: 0, body: Some(body) }.encode_to_vec();
            let (outcome, changes) = state.apply(&command).expect("applies");
            write(&mut records, changes);
            assert_eq!(MetaState { version: state.version, ..load(&records) }, *state);
            outcome
        };
        (state, apply)
    }

    proptest! {
        /// Whatever is created and dropped: the state loads from its records as it was, ids are never used again, and
        /// the shards of every game cover the ring.
        #[test]
        fn records_hold_the_state(steps in prop::collection::vec((0u8..4, 1u32..9, 1u32..5), 0..20)) {
            let mut records = HashMap::new();
            write(&mut records, MetaState::formed((1..=3).map(node)));
            let mut state = load(&records);
            let mut seen = std::collections::HashSet::new();
            for (name, shards, replicas) in steps {
                let name = format!("game{name}");
                let command = if state.game(&name).is_some() { drop_game(&name) } else { create(&name, shards, replicas) };
                let known = state.clone();
                let (outcome, changes) = state.apply(&command).expect("applies");
                if replicas > 3 && known.game(&name).is_none() {
                    prop_assert_eq!(reason(&outcome), Some(Reason::TooFewNodes));
                    prop_assert_eq!(&known, &state);
                }
                write(&mut records, changes);
                let loaded = load(&records);
                prop_assert_eq!(&loaded.games, &state.games);
                prop_assert_eq!(&loaded.shards, &state.shards);
                prop_assert_eq!(&loaded.next, &state.next);
                for shard in state.shards().filter(|shard| !known.shards.contains_key(&ShardId(shard.id))) {
                    prop_assert!(seen.insert(shard.id), "shard {} is used again", shard.id);
                }
                for game in state.games() {
                    let shards = state.shards().filter(|shard| shard.game == game.id);
                    let ranges = shards.map(|shard| (TokenRange { start: shard.start, end: shard.end }, ShardId(shard.id)));
                    prop_assert!(ShardRanges::new(ranges.collect()).is_some());
                }
            }
        }
    }

    /// A node that restarts with an old state must not destroy the shards that were made since.
    #[test]
    fn an_old_state_takes_no_newer_shard_for_dropped() {
        let mut state = MetaState::default();
        state.nodes.insert(NodeId(1), node(1));
        let old = state.clone();
        state.apply(&create("sc2", 2, 1)).expect("applies");
        let shards: Vec<_> = state.shards().map(|shard| ShardId(shard.id)).collect();
        assert!(shards.iter().all(|shard| !old.was_dropped(*shard) && !state.was_dropped(*shard)));
        state.apply(&drop_game("sc2")).expect("applies");
        assert!(shards.iter().all(|shard| state.was_dropped(*shard)));
    }

    /// A rollup's number is never used again, also when its game is dropped; it loads from its record.
    #[test]
    fn rollups_come_and_go_with_their_game() {
        let (mut state, mut apply) = of_one_node();
        let game = || Body::CreateGame(CreateGame { name: "sc2".into(), shards: 1, replicas: 1 });
        let rollup = |name: &str| {
            let rollup = Some(Rollup { name: name.into(), ..Default::default() });
            Body::CreateRollup(CreateRollup { game: "sc2".into(), rollup })
        };
        assert_eq!(reason(&apply(&mut state, rollup("hours"))), Some(Reason::GameUnknown));
        apply(&mut state, game());
        apply(&mut state, rollup("hours"));
        assert_eq!(reason(&apply(&mut state, rollup("hours"))), Some(Reason::RollupExists));
        // Tables of tiers are names too, on both sides.
        let tiered = |name: &str| {
            let tiers = [1_000, 86_400_000].map(|bucket_ms| Tier { bucket_ms, ..Tier::default() }).to_vec();
            let rollup = Some(Rollup { name: name.into(), tiers, ..Default::default() });
            Body::CreateRollup(CreateRollup { game: "sc2".into(), rollup })
        };
        apply(&mut state, rollup("seconds_1d"));
        assert_eq!(reason(&apply(&mut state, tiered("seconds"))), Some(Reason::TableExists));
        apply(&mut state, Body::DropRollup(DropRollup { game: "sc2".into(), name: "seconds_1d".into() }));
        apply(&mut state, tiered("seconds"));
        assert_eq!(reason(&apply(&mut state, rollup("seconds_1d"))), Some(Reason::TableExists));
        apply(&mut state, Body::DropRollup(DropRollup { game: "sc2".into(), name: "seconds".into() }));
        let drop = || Body::DropRollup(DropRollup { game: "sc2".into(), name: "hours".into() });
        apply(&mut state, drop());
        assert_eq!(reason(&apply(&mut state, drop())), Some(Reason::RollupUnknown));
        apply(&mut state, rollup("hours"));
        let id = |state: &MetaState| state.rollups.keys().next().copied();
        assert_eq!(id(&state), Some(RollupId(4)));
        assert!(state.was_rollup_dropped(RollupId(3)) && !state.was_rollup_dropped(RollupId(4)));
        apply(&mut state, Body::DropGame(galoo_proto::meta::DropGame { name: "sc2".into() }));
        assert_eq!(id(&state), None);
    }

    /// Each declaration has a revision of its own, also when its game is dropped; it loads from its record.
    #[test]
    fn families_are_declared_anew_and_go_with_their_game() {
        let (mut state, mut apply) = of_one_node();
        let define = |game: &str, name: &str, versions_max| {
            let family = Some(FamilyDefinition { name: name.into(), versions_max, ..Default::default() });
            Body::DefineFamily(DefineFamily { game: game.into(), family })
        };
        let drop = |name: &str| Body::DropFamily(DropFamily { game: "sc2".into(), name: name.into() });
        assert_eq!(reason(&apply(&mut state, define("sc2", "bag", 1))), Some(Reason::GameUnknown));
        for game in ["sc2", "rpg"] {
            apply(&mut state, Body::CreateGame(CreateGame { name: game.into(), shards: 1, replicas: 1 }));
        }
        assert_eq!(reason(&apply(&mut state, drop("bag"))), Some(Reason::FamilyUnknown));
        apply(&mut state, define("sc2", "bag", 1));
        apply(&mut state, define("rpg", "bag", 9));
        apply(&mut state, define("sc2", "bag", 3));
        apply(&mut state, define("sc2", "a", 2));
        let known = |state: &MetaState, game| {
            let one = |family: &FamilyDefinition| (family.name.clone(), family.versions_max, family.revision);
            state.families(GameId(game)).map(one).collect::<Vec<_>>()
        };
        assert_eq!(known(&state, 1), [("a".to_owned(), 2, 4), ("bag".to_owned(), 3, 3)]);
        assert!(state.knows_family_revision(4) && !state.knows_family_revision(5));
        apply(&mut state, drop("bag"));
        assert_eq!(state.family(GameId(1), "bag"), None);
        for name in 1..FAMILIES_MAX {
            apply(&mut state, define("sc2", &name.to_string(), 1));
        }
        assert_eq!(reason(&apply(&mut state, define("sc2", "bag", 1))), Some(Reason::TooManyFamilies));
        assert_eq!(reason(&apply(&mut state, define("sc2", "a", 1))), None, "declared anew");
        apply(&mut state, Body::DropGame(DropGame { name: "sc2".into() }));
        assert_eq!((known(&state, 1), known(&state, 2)), (vec![], vec![("bag".to_owned(), 9, 2)]));
    }

    /// All declarations of a game are one record, each change with a revision above all before.
    #[test]
    fn properties_are_declared_one_by_one_and_kept_together() {
        let (mut state, mut apply) = of_one_node();
        let declare = |name: &str, kind: ValueKind| {
            let property = Some(PropertyDefinition { name: name.into(), kind: kind.into() });
            Body::DeclareProperty(DeclareProperty { game: "sc2".into(), property })
        };
        let known = |state: &MetaState| {
            let known = state.properties(GameId(1)).cloned().unwrap_or_default();
            let names: Vec<_> = known.properties.iter().map(|one| (one.name.clone(), one.kind())).collect();
            (known.revision, names)
        };
        assert_eq!(reason(&apply(&mut state, declare("x", ValueKind::Int))), Some(Reason::GameUnknown));
        apply(&mut state, Body::CreateGame(CreateGame { name: "sc2".into(), shards: 1, replicas: 1 }));
        assert_eq!(reason(&apply(&mut state, declare("x", ValueKind::Any))), Some(Reason::PropertyUnknown));
        apply(&mut state, declare("x", ValueKind::Int));
        apply(&mut state, declare("a", ValueKind::String));
        apply(&mut state, declare("x", ValueKind::Float));
        assert_eq!(known(&state), (3, vec![("a".to_owned(), ValueKind::String), ("x".to_owned(), ValueKind::Float)]));
        for more in 2..DECLARED_PROPERTIES_MAX {
            apply(&mut state, declare(&format!("y{more}"), ValueKind::Bool));
        }
        assert_eq!(reason(&apply(&mut state, declare("z", ValueKind::Int))), Some(Reason::TooManyProperties));
        apply(&mut state, declare("x", ValueKind::Any));
        assert_eq!(reason(&apply(&mut state, declare("z", ValueKind::Int))), None);
        apply(&mut state, Body::DropGame(DropGame { name: "sc2".into() }));
        assert_eq!(known(&state), (0, vec![]));
    }

    #[test]
    fn a_node_moves_and_a_stranger_does_not_join() {
        let mut state =
            load(&MetaState::formed((1..=2).map(node)).into_iter().filter_map(|(k, v)| Some((k, v?))).collect());
        let update = |node| {
            let body = Body::UpdateNode(UpdateNode { node: Some(node) });
            MetaCommand { version: 1, hlc: 0, body: Some(body) }.encode_to_vec()
        };
        let moved = NodeRecord { grpc_addr: "elsewhere".into(), ..node(2) };
        let (_, changes) = state.apply(&update(moved.clone())).expect("applies");
        assert_eq!(changes, MetaState::formed([moved.clone()]));
        assert_eq!(state.nodes().collect::<Vec<_>>(), [&node(1), &moved]);
        assert!(state.apply(&update(moved)).expect("applies").1.is_empty(), "nothing changes twice");
        let (outcome, changes) = state.apply(&update(node(3))).expect("applies");
        assert_eq!((reason(&outcome), changes), (Some(Reason::NodeUnknown), vec![]));
    }

    #[test]
    fn a_second_game_of_a_name_is_refused_and_changes_nothing() {
        let mut state = MetaState::default();
        state.nodes.insert(NodeId(1), node(1));
        state.apply(&create("sc2", 8, 1)).expect("applies");
        let before = state.clone();
        let (outcome, changes) = state.apply(&create("sc2", 4, 1)).expect("applies");
        assert_eq!(reason(&outcome), Some(Reason::GameExists));
        assert!(changes.is_empty() && state == before);
        let (outcome, _) = state.apply(&drop_game("other")).expect("applies");
        assert_eq!(reason(&outcome), Some(Reason::GameUnknown));
    }
}
