//! Rollups: made and dropped in the meta group, then told to every shard of the game.
//!
//! The meta group's word is what counts: a shard that has not heard it, because the node that was asked died on the way, is
//! told by its leader ([`Node::missing_rollups`]).

use std::sync::Arc;

use futures::future::try_join_all;
use galoo_cluster::META_GROUP;
use galoo_proto::{
    GameId, RollupId, ShardId,
    admin::{ListRollupsResponse, RollupStatus, VerifyRollupRequest, VerifyRollupResponse},
    command,
    meta::{CreateRollup, DropRollup, MetaOutcome, RollupRecord, meta_command, meta_outcome, rejection::Reason},
    rollup::Rollup,
};

use galoo_storage::{
    rollup::{Definition, mark, read::Slice, verify::verify},
    view::View,
};
use tokio::task::spawn_blocking;

use super::{Node, NodeError, unexpected};

impl Node {
    /// Makes a rollup; returns when every shard of the game keeps it.
    pub async fn create_rollup(self: &Arc<Self>, game: &str, rollup: Rollup) -> Result<(), NodeError> {
        let name = rollup.name.clone();
        let create = CreateRollup { game: game.to_owned(), rollup: Some(rollup) };
        let outcome = self.propose_meta(meta_command::Body::CreateRollup(create)).await?;
        let rollup = record(game, &name, outcome)?.rollup.unwrap_or_default();
        self.tell_shards(game, &command::command::Body::DefineRollup(rollup)).await
    }

    /// Drops a rollup with its cells.
    pub async fn drop_rollup(self: &Arc<Self>, game: &str, name: &str) -> Result<(), NodeError> {
        let drop = DropRollup { game: game.to_owned(), name: name.to_owned() };
        let outcome = self.propose_meta(meta_command::Body::DropRollup(drop)).await?;
        let id = record(game, name, outcome)?.rollup.unwrap_or_default().id;
        self.tell_shards(game, &command::command::Body::DropRollup(command::DropRollup { id })).await
    }

    /// Tells every shard of a game of a rollup or family that is new or gone.
    pub(super) async fn tell_shards(
        self: &Arc<Self>,
        game: &str,
        body: &command::command::Body,
    ) -> Result<(), NodeError> {
        let shards: Vec<ShardId> = self.game(game).await?.shards.iter().map(|(shard, _)| shard).collect();
        try_join_all(shards.into_iter().map(|shard| self.tell_shard(shard, body.clone()))).await?;
        Ok(())
    }

    /// Tells one shard of what its game declares, or does no more; once more does no harm.
    pub async fn tell_shard(self: &Arc<Self>, shard: ShardId, body: command::command::Body) -> Result<(), NodeError> {
        let outcome = self.propose(shard, body).await?;
        match &outcome.result {
            Some(
                command::outcome::Result::RollupChanged(_)
                | command::outcome::Result::FamilyChanged(_)
                | command::outcome::Result::EventIdWindowSet(_)
                | command::outcome::Result::PropertiesDeclared(_),
            ) => Ok(()),
            _ => Err(unexpected(shard, &outcome)),
        }
    }

    /// A game's rollups, and how far this node's replicas have covered each.
    pub async fn rollups(&self, game: &str) -> Result<ListRollupsResponse, NodeError> {
        let views = self.replicas(game).await?;
        let mut told = ListRollupsResponse { node: self.identity.node().0, ..Default::default() };
        for rollup in &self.game(game).await?.rollups {
            let mut status = RollupStatus {
                name: rollup.name.clone(),
                statement: rollup.statement.clone(),
                tables: rollup.tables().collect(),
                ..Default::default()
            };
            for view in &views {
                status.events += view.state().last_seq;
                status.covered += mark::of(view, RollupId(rollup.id))?.seq;
            }
            told.rollups.push(status);
        }
        Ok(told)
    }

    /// Compares a rollup's table with what the events give, over one cut of the game's shards.
    pub async fn verify_rollup(&self, request: &VerifyRollupRequest) -> Result<VerifyRollupResponse, NodeError> {
        let views = self.game_views(&request.game).await?;
        // The shards know of a rollup once it is made; this node may hear of it later.
        let rollups = views.first().map_or_else(|| Ok(Vec::new()), View::rollups)?;
        let tables = rollups.iter().flat_map(|rollup| rollup.tables().enumerate().map(move |one| (rollup, one)));
        let found = tables.into_iter().find(|(_, (_, table))| *table == request.table);
        let (rollup, (tier, _)) = found.ok_or_else(|| NodeError::UnknownRollup(request.table.clone()))?;
        let definition = Arc::new(Definition::parse(rollup).map_err(galoo_storage::Error::Rollup)?);
        let buckets_ms = request.from_ms.unwrap_or(i64::MIN)..request.to_ms.unwrap_or(i64::MAX);
        let slice = Slice { definition, tier, buckets_ms };
        let one = self.begin_survey()?;
        let work = move || {
            // It works on also when the caller is gone.
            let _one = one;
            verify(&views, &slice)
        };
        let verified = spawn_blocking(work).await.map_err(|_| NodeError::Stopping)??;
        Ok(VerifyRollupResponse {
            from_ms: verified.buckets_ms.start,
            to_ms: verified.buckets_ms.end,
            buckets: verified.buckets,
            events: verified.events,
            hash: verified.hash,
            different: verified.different,
            different_ms: verified.different_ms,
        })
    }

    /// Returns what a shard that knows these rollups must still be told of its game's.
    pub fn missing_rollups(&self, game: GameId, known: &[Rollup]) -> Vec<command::command::Body> {
        let meta = self.meta.borrow().clone();
        let new = meta.rollups(game).filter(|rollup| !known.iter().any(|one| one.id == rollup.id));
        let mut missing: Vec<_> = new.map(|rollup| command::command::Body::DefineRollup(rollup.clone())).collect();
        let gone = known.iter().filter(|rollup| meta.was_rollup_dropped(RollupId(rollup.id)));
        missing.extend(gone.map(|one| command::command::Body::DropRollup(command::DropRollup { id: one.id })));
        missing
    }
}

fn record(game: &str, name: &str, outcome: MetaOutcome) -> Result<RollupRecord, NodeError> {
    match outcome.result {
        Some(meta_outcome::Result::Rollup(record)) => Ok(record),
        Some(meta_outcome::Result::Rejected(rejection)) => Err(match rejection.reason() {
            Reason::GameUnknown => NodeError::UnknownGame(game.to_owned()),
            Reason::RollupExists => NodeError::RollupExists(name.to_owned()),
            Reason::TableExists => NodeError::TableExists(name.to_owned()),
            Reason::RollupUnknown => NodeError::UnknownRollup(name.to_owned()),
            _ => NodeError::Refused(format!(
                "rollups: game {game:?} has {}; the limit is {}",
                rejection.found, rejection.limit
            )),
        }),
        _ => Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
    }
}
