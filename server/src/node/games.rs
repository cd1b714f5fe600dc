//! Games: made, altered, listed, dropped.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use galoo_cluster::META_GROUP;
use galoo_consensus::GroupId;
use galoo_proto::{
    GameId, ShardId,
    command::{SetEventIdWindow, command},
    limits::GAME_SHARDS_MAX,
    meta::{
        AlterGame, CreateGame, DropGame, GameRecord, MetaOutcome, meta_command::Body, meta_outcome, rejection::Reason,
    },
    record::EventIds,
    validate::{self, Invalid},
};

use super::{DEADLINE, Node, NodeError};

/// Shards of a game that is made without a number of them.
const DEFAULT_SHARDS: u32 = 8;
/// Replicas of a game that is made without a number of them, where there are as many nodes.
const DEFAULT_REPLICAS: u32 = 3;
/// Leaders of a new game's shards that are asked at once whether they are there.
const ASKED_MAX: usize = 64;

impl Node {
    /// Makes a game; returns when its shards can be written.
    ///
    /// `shards` and `replicas` 0 stand for the defaults.
    pub async fn create_game(
        self: &Arc<Self>,
        name: &str,
        shards: u32,
        replicas: u32,
    ) -> Result<GameRecord, NodeError> {
        validate::game_name(name)?;
        let shards = if shards == 0 { DEFAULT_SHARDS } else { shards };
        if shards > GAME_SHARDS_MAX {
            let (count, max) = (shards as usize, GAME_SHARDS_MAX as usize);
            return Err(Invalid::Count { field: "shards", count, min: 1, max }.into());
        }
        let nodes = u32::try_from(self.meta.borrow().nodes().count()).unwrap_or(u32::MAX);
        let default = if nodes >= DEFAULT_REPLICAS { DEFAULT_REPLICAS } else { 1 };
        let replicas = if replicas == 0 { default } else { replicas };
        if ![1, 3, 5].contains(&replicas) {
            let value = replicas.to_string();
            return Err(Invalid::Pattern { field: "replicas", value, pattern: "1, 3 or 5" }.into());
        }
        let create = CreateGame { name: name.to_owned(), shards, replicas };
        let game = game(name, self.propose_meta(Body::CreateGame(create)).await?)?;
        self.wait_for_game(name).await?;
        Ok(game)
    }

    /// Changes how a game is kept. The shards' leaders drop events that are too old in the background; the window of
    /// ids is every shard's when this returns.
    pub async fn alter_game(self: &Arc<Self>, alter: AlterGame) -> Result<GameRecord, NodeError> {
        let (name, window_ms) = (alter.name.clone(), alter.event_id_window_ms);
        alter.events_retention_ms.map_or(Ok(()), validate::events_retention)?;
        window_ms.map_or(Ok(()), validate::event_id_window)?;
        let game = game(&name, self.propose_meta(Body::AlterGame(alter)).await?)?;
        if let Some(window_ms) = window_ms {
            self.tell_shards(&name, &command::Body::SetEventIdWindow(SetEventIdWindow { window_ms })).await?;
        }
        Ok(game)
    }

    /// What a shard is to be told of its game's window of ids, if it keeps another.
    pub async fn missing_event_id_window(
        &self,
        game: GameId,
        ids: Option<EventIds>,
    ) -> Result<Option<command::Body>, NodeError> {
        let known = ids.unwrap_or_default().window_ms;
        let differs = || {
            let meta = self.meta.borrow();
            let window_ms = meta.games().find(|known| known.id == game.0)?.event_id_window_ms;
            (known != window_ms).then_some(command::Body::SetEventIdWindow(SetEventIdWindow { window_ms }))
        };
        if differs().is_none() {
            return Ok(None);
        }
        // The shard may have been told of a change that this node has not heard of yet.
        self.barrier(ShardId(META_GROUP)).await?;
        Ok(differs())
    }

    /// For how long a game's events are kept; 0 is for ever.
    pub fn events_retention_ms(&self, game: GameId) -> u64 {
        let meta = self.meta.borrow();
        meta.games().find(|known| known.id == game.0).map_or(0, |known| known.events_retention_ms)
    }

    /// Drops a game with everything in it.
    pub async fn drop_game(self: &Arc<Self>, name: &str) -> Result<GameRecord, NodeError> {
        let game = game(name, self.propose_meta(Body::DropGame(DropGame { name: name.to_owned() })).await?)?;
        let mut router = self.router.subscribe();
        let gone = router.wait_for(|router| router.game(name).is_none());
        let _ = tokio::time::timeout(DEADLINE, gone).await;
        Ok(game)
    }

    /// All games, by name.
    pub fn games(&self) -> Vec<GameRecord> {
        self.meta.borrow().games().cloned().collect()
    }

    /// Waits until this node routes to the game and its shards have leaders that can be written.
    async fn wait_for_game(&self, name: &str) -> Result<(), NodeError> {
        let game = self.game(name).await?;
        // A leader that answers for a read has committed an entry of its own term: it takes writes.
        let led = game.shards.iter().map(|(shard, _)| self.read_index(GroupId(shard.0)));
        futures::stream::iter(led).buffer_unordered(ASKED_MAX).try_for_each(|_| std::future::ready(Ok(()))).await
    }
}

fn game(name: &str, outcome: MetaOutcome) -> Result<GameRecord, NodeError> {
    match outcome.result {
        Some(meta_outcome::Result::Game(game)) => Ok(game),
        Some(meta_outcome::Result::Rejected(rejection)) => {
            let (limit, found) = (rejection.limit, rejection.found);
            Err(match rejection.reason() {
                Reason::GameExists => NodeError::GameExists(name.to_owned()),
                Reason::GameUnknown => NodeError::UnknownGame(name.to_owned()),
                Reason::TooManyGames => {
                    NodeError::Refused(format!("games: the cluster has {found}; the limit is {limit}"))
                }
                Reason::TooFewNodes => {
                    NodeError::Refused(format!("replicas is {limit}; the cluster has {found} nodes"))
                }
                Reason::TooManyShards => {
                    NodeError::Refused(format!("shards: the cluster would have {found}; the limit is {limit}"))
                }
                Reason::NodeUnknown => NodeError::Refused(format!("the cluster has no node n{found}")),
                Reason::Unspecified
                | Reason::RollupExists
                | Reason::RollupUnknown
                | Reason::TableExists
                | Reason::TooManyRollups
                | Reason::FamilyUnknown
                | Reason::TooManyFamilies
                | Reason::PropertyUnknown
                | Reason::TooManyProperties => {
                    NodeError::Refused("the cluster refused for a reason that this version does not know".to_owned())
                }
            })
        }
        Some(
            meta_outcome::Result::Node(_)
            | meta_outcome::Result::Rollup(_)
            | meta_outcome::Result::Family(_)
            | meta_outcome::Result::Properties(_),
        )
        | None => Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
    }
}
