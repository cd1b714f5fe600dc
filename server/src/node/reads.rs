//! Reads: views of shards that hold everything that was acknowledged before.

use futures::future::try_join_all;
use galoo_consensus::GroupId;
use galoo_proto::{ShardId, Token, admin, validate, value::Cell};
use galoo_storage::{shard::Checksum, view::View};

use super::{DEADLINE, Node, NodeError, RETRY_DELAY};
use crate::driver::DriveError;

impl Node {
    /// Returns once everything acknowledged before the call is applied on this node, which leads the shard.
    pub(super) async fn barrier(&self, shard: ShardId) -> Result<(), NodeError> {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let read = tokio::time::timeout_at(deadline, self.driver.read(GroupId(shard.0))).await;
            match read {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(DriveError::NotReady(_))) if tokio::time::Instant::now() + RETRY_DELAY < deadline => {
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Ok(Err(reason)) => return Err(NodeError::Unavailable { shard, reason }),
                Err(_) => {
                    return Err(NodeError::Unavailable {
                        shard,
                        reason: DriveError::NotReady("no majority answered in time"),
                    });
                }
            }
        }
    }

    fn local_view(
        &self,
        shard: ShardId,
        snapshot: std::sync::Arc<dyn galoo_storage::engine::Reader>,
    ) -> Result<View, NodeError> {
        let gone = || NodeError::Unavailable { shard, reason: DriveError::NotLeader { leader: 0 } };
        let keyspace = self.keyspace(shard).ok_or_else(gone)?;
        View::open(snapshot, keyspace, self.files.clone())?.ok_or_else(gone)
    }

    /// Returns a linearizable view of one shard.
    pub async fn view(&self, shard: ShardId) -> Result<View, NodeError> {
        self.barrier(shard).await?;
        self.local_view(shard, self.engine.snapshot())
    }

    /// Returns the view of a shard as it is on this node, without asking anybody.
    pub fn stale_view(&self, shard: ShardId) -> Result<View, NodeError> {
        self.local_view(shard, self.engine.snapshot())
    }

    /// Returns one view of all shards of a game that holds everything acknowledged before the call.
    pub async fn game_views(&self, game: &str) -> Result<Vec<View>, NodeError> {
        let shards: Vec<ShardId> = self.game(game)?.shards.iter().map(|(shard, _)| shard).collect();
        try_join_all(shards.iter().map(|shard| self.barrier(*shard))).await?;
        let snapshot = self.engine.snapshot();
        shards.into_iter().map(|shard| self.local_view(shard, snapshot.clone())).collect()
    }

    /// Returns a linearizable view of the shard that holds a player.
    pub async fn player_view(&self, game: &str, player: &str) -> Result<View, NodeError> {
        validate::player_id(player)?;
        let (shard, _) = self.game(game)?.shards.find(Token::of(player));
        self.view(shard).await
    }

    /// Reads a player's cells; empty `family` or `qualifier` stand for all.
    pub async fn get(&self, game: &str, player: &str, family: &str, qualifier: &str) -> Result<Vec<Cell>, NodeError> {
        let view = self.player_view(game, player).await?;
        let family = Some(family).filter(|family| !family.is_empty());
        let qualifier = Some(qualifier).filter(|qualifier| !qualifier.is_empty());
        if family.is_none() && qualifier.is_some() {
            return Err(validate::Invalid::Missing { field: "family" }.into());
        }
        Ok(view.cells(player, family, qualifier)?)
    }

    /// Returns the ids of registered producers of a group.
    pub async fn list_producers(&self, game: &str, group: &str) -> Result<Vec<String>, NodeError> {
        let (shard, _) = self.game(game)?.shards.find(Token::of(group));
        Ok(self.view(shard).await?.registered_producers(group)?)
    }

    /// Returns the checksum of each shard of a game.
    pub async fn checksums(&self, game: &str) -> Result<Vec<(ShardId, Checksum)>, NodeError> {
        let views = self.game_views(game).await?;
        let sums = tokio::task::spawn_blocking(move || {
            views.iter().map(|view| Ok((view.shard(), Checksum::of(view)?))).collect::<galoo_storage::Result<Vec<_>>>()
        });
        Ok(sums.await.map_err(|_| NodeError::Stopping)??)
    }

    /// Returns the state of each shard on this node, by id.
    pub fn shard_status(&self) -> Result<Vec<admin::ShardStatus>, NodeError> {
        let roles = self.driver.roles().borrow().clone();
        let meta = self.meta.borrow().clone();
        let mut all = Vec::new();
        for record in meta.shards() {
            let shard = ShardId(record.id);
            let role = roles.get(&GroupId(shard.0)).copied().unwrap_or_default();
            let game = meta.games().find(|game| game.id == record.game).map(|game| game.name.clone());
            let mut status = admin::ShardStatus {
                shard: shard.0,
                game: game.unwrap_or_default(),
                leader: role.leader,
                term: role.term,
                ..Default::default()
            };
            if self.keyspace(shard).is_some() {
                let view = self.stale_view(shard)?;
                status.applied = view.state().applied;
                status.events = view.state().events;
                for source in view.sources()? {
                    match source {
                        galoo_storage::view::Source::Chunk(chunk) => {
                            status.chunks += 1;
                            status.chunk_bytes += chunk.bytes;
                        }
                        galoo_storage::view::Source::Segment(segment) => {
                            status.segments += 1;
                            status.segment_bytes += segment.file_bytes;
                        }
                    }
                }
            }
            all.push(status);
        }
        Ok(all)
    }
}
