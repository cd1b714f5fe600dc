//! Shards that somebody asked to compact: everything stored by then becomes segments, and these as few as can be.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use galoo_proto::{Seq, ShardId, admin::CompactResponse};
use galoo_storage::view::{Source, View};

use super::{Node, NodeError};

/// The shards of this node that are at it.
#[derive(Debug, Default)]
pub struct Eager(Mutex<BTreeMap<ShardId, State>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Up to this event.
    Through(Seq),
    /// It failed since it was last asked for.
    Failed,
}

impl Eager {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardId, State>> {
        self.0.lock().expect("nobody panics with the shards in hand")
    }

    /// Compacts a shard up to an event.
    pub fn begin(&self, shard: ShardId, through: Seq) {
        self.lock().insert(shard, State::Through(through));
    }

    /// Up to which event the shard is to be compacted, if it is.
    pub fn through(&self, shard: ShardId) -> Option<Seq> {
        match self.lock().get(&shard) {
            Some(State::Through(through)) => Some(*through),
            Some(State::Failed) | None => None,
        }
    }

    /// Nothing is left to do for a shard up to an event.
    pub fn done(&self, shard: ShardId, through: Seq) {
        let mut shards = self.lock();
        if shards.get(&shard) == Some(&State::Through(through)) {
            shards.remove(&shard);
        }
    }

    /// It failed for a shard; nothing where it was not asked for.
    pub fn failed(&self, shard: ShardId) {
        self.lock().entry(shard).and_modify(|state| *state = State::Failed);
    }

    fn has_failed(&self, shard: ShardId) -> bool {
        self.lock().get(&shard) == Some(&State::Failed)
    }
}

impl Node {
    /// This node's replicas of a game as they are.
    pub(super) async fn replicas(&self, game: &str) -> Result<Vec<View>, NodeError> {
        let game = self.game(game).await?;
        let here = game.shards.iter().map(|(shard, _)| shard).filter(|shard| self.keyspace(*shard).is_some());
        let views = here.map(|shard| self.stale_view(shard));
        views.filter(|view| !matches!(view, Err(error) if error.is_passing())).collect()
    }

    /// Compacts this node's replicas of a game, up to what they hold.
    pub async fn begin_compacting(&self, game: &str) -> Result<(), NodeError> {
        for view in self.replicas(game).await? {
            self.eager.begin(view.shard(), Seq(view.state().last_seq));
        }
        Ok(())
    }

    /// Tells how far that is.
    pub async fn compacting(&self, game: &str) -> Result<CompactResponse, NodeError> {
        let mut told = CompactResponse::default();
        for view in self.replicas(game).await? {
            told.shards_failed += u64::from(self.eager.has_failed(view.shard()));
            told.shards_left += u64::from(self.eager.through(view.shard()).is_some());
            for source in view.sources()? {
                if let Source::Segment(segment) = source
                    && source.rows() > 0
                {
                    told.segments += 1;
                    told.segment_bytes += segment.file_bytes;
                }
            }
        }
        Ok(told)
    }
}
