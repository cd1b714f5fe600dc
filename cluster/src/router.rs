//! Who must be asked for a player: the shard map of every game, made from the meta group's state.

use std::{collections::HashMap, sync::Arc};

use galoo_proto::{GameId, ShardId, Token, TokenRange, meta::GameRecord, rollup::Rollup, shard_map::ShardRanges};

use crate::meta::MetaState;

/// A game as the router knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Game {
    /// Its record.
    pub record: GameRecord,
    /// Its shards.
    pub shards: ShardRanges,
    /// Its rollups, by id.
    pub rollups: Vec<Rollup>,
}

/// The shard maps of all games at one version of the meta group's state.
#[derive(Clone, Debug, Default)]
pub struct Router {
    games: HashMap<String, Arc<Game>>,
    version: u64,
}

impl Router {
    /// Makes the maps.
    pub fn new(state: &MetaState) -> Self {
        let mut games = HashMap::new();
        for record in state.games() {
            let shards = state.shards().filter(|shard| shard.game == record.id);
            let shards = shards.map(|shard| (TokenRange { start: shard.start, end: shard.end }, ShardId(shard.id)));
            let rollups = state.rollups(GameId(record.id)).cloned().collect();
            if let Some(shards) = ShardRanges::new(shards.collect()) {
                games.insert(record.name.clone(), Arc::new(Game { record: record.clone(), shards, rollups }));
            }
        }
        Self { games, version: state.version() }
    }

    /// The version of the meta group's state that the maps are of.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A game by its name.
    pub fn game(&self, name: &str) -> Option<&Arc<Game>> {
        self.games.get(name)
    }

    /// The names of all games, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.games.keys().cloned().collect();
        names.sort();
        names
    }
}

impl Game {
    /// Cuts a batch by shard: for each shard the places of its elements, in order.
    pub fn cut<T>(&self, elements: &[T], player: impl Fn(&T) -> &str) -> Vec<(ShardId, TokenRange, Vec<usize>)> {
        let mut parts: Vec<(ShardId, TokenRange, Vec<usize>)> = Vec::new();
        let mut place_of: HashMap<ShardId, usize> = HashMap::new();
        for (place, element) in elements.iter().enumerate() {
            let (shard, range) = self.shards.find(Token::of(player(element)));
            let part = *place_of.entry(shard).or_insert_with(|| {
                parts.push((shard, range, Vec::new()));
                parts.len() - 1
            });
            parts[part].2.push(place);
        }
        parts
    }
}
