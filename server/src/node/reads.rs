//! Reads: views of shards that hold everything that was acknowledged before.

use std::sync::Arc;

use futures::future::try_join_all;
use galoo_consensus::GroupId;
use galoo_proto::{
    Hlc, Keyspace, ShardId, Token,
    data::{GetRequest, PlayerCells},
    limits::CELLS_READ_BYTES_MAX,
    validate,
    value::Cell,
};
use galoo_storage::{
    engine::Reader,
    key::Selection,
    shard::Checksum,
    view::{CellQuery, View},
};
use prost::Message;
use tracing::debug;

use super::{Node, NodeError, RETRY_DELAY};
use crate::{driver::DriveError, transport::Peer};

/// Players of whom one cell is looked up together; rows are read one by one.
const READ_TOGETHER_MAX: usize = 16;

/// Which values of which cells a request reads.
fn query(request: &GetRequest) -> CellQuery<'_> {
    let family = request.family.as_str();
    let selection = match (&request.qualifiers, request.qualifier.as_str(), request.qualifier_prefix.as_str()) {
        _ if family.is_empty() => Selection::Row,
        (Some(range), _, _) => Selection::Range(family, range.from.as_str()..&range.to),
        (None, "", "") => Selection::Family(family),
        (None, "", prefix) => Selection::Prefix(family, prefix),
        (None, qualifier, _) => Selection::Cell(family, qualifier),
    };
    let as_of = Some(Hlc(request.as_of)).filter(|as_of| as_of.0 > 0);
    CellQuery { selection, as_of, versions: request.versions.max(1) as usize }
}

/// A checksum is taken of shards between two entries: it is tried so often to find them there.
const WHOLE_TRIES_MAX: usize = 100;

/// Whether a shard is between two entries, where it can be compared with its other replicas.
fn is_whole(view: &View) -> bool {
    view.state().applied_commands == 0
}

/// Refuses an answer that has too many bytes.
pub fn check_answer(bytes: usize) -> Result<(), NodeError> {
    if bytes <= CELLS_READ_BYTES_MAX {
        return Ok(());
    }
    let said = format!("the cells have {bytes} bytes; an answer takes {CELLS_READ_BYTES_MAX}: ask for fewer of them");
    Err(NodeError::Refused(said))
}

impl Node {
    /// The keyspace of one of `shards` on this node. To be asked for before the snapshot is taken that it is read in: it is
    /// whole once a shard is in it, and stays for a while when the shard leaves it.
    fn keyspace_of(&self, shard: ShardId, shards: &[ShardId]) -> Result<Keyspace, NodeError> {
        self.keyspace(shard).ok_or_else(|| self.not_here(shard, shards))
    }

    fn open_view(&self, shard: ShardId, keyspace: Keyspace, snapshot: Arc<dyn Reader>) -> Result<View, NodeError> {
        let empty = || NodeError::Unavailable { shard, reason: DriveError::NotReady("nothing is applied here yet") };
        let view = View::open(snapshot, keyspace, self.files.clone())?.ok_or_else(empty)?;
        Ok(view.with_indexes(self.indexes.clone()).with_sparse(self.sparse.clone()).at(self.now()))
    }

    /// Says who has all of `shards`, of which this node lacks one.
    fn not_here(&self, shard: ShardId, shards: &[ShardId]) -> NodeError {
        let holders: Vec<_> = shards.iter().map(|shard| self.voters(GroupId(shard.0))).collect();
        let has_all = |peer: &Arc<Peer>| holders.iter().all(|voters| voters.contains(&peer.id()));
        let peers = self.transport.peers();
        let ask = match peers.iter().filter(|peer| has_all(peer)).max_by_key(|peer| peer.is_connected()) {
            Some(peer) => format!("ask {} at {}, which has every shard of the game", peer.id(), peer.addr()),
            None => "no node has every shard of the game: read it player by player".to_owned(),
        };
        NodeError::NotHere { shard, here: self.identity.node(), ask }
    }

    /// Returns a linearizable view of one shard.
    pub async fn view(&self, shard: ShardId) -> Result<View, NodeError> {
        let index = self.barrier(shard).await?;
        loop {
            let view = self.stale_view(shard)?;
            if view.state().applied >= index {
                return Ok(view);
            }
            // It had applied that, and then its state was replaced by an older one.
            self.applied(shard, index).await?;
        }
    }

    /// Returns the view of a shard as it is on this node, without asking anybody.
    pub fn stale_view(&self, shard: ShardId) -> Result<View, NodeError> {
        let keyspace = self.keyspace_of(shard, &[shard])?;
        self.open_view(shard, keyspace, self.engine.snapshot())
    }

    /// Returns one view of all shards of a game that holds everything acknowledged before the call.
    pub async fn game_views(&self, game: &str) -> Result<Vec<View>, NodeError> {
        let shards: Vec<ShardId> = self.game(game).await?.shards.iter().map(|(shard, _)| shard).collect();
        let keyspaces = || shards.iter().map(|shard| self.keyspace_of(*shard, &shards)).collect::<Result<Vec<_>, _>>();
        keyspaces()?;
        let indexes = try_join_all(shards.iter().map(|shard| self.barrier(*shard))).await?;
        loop {
            let (keyspaces, snapshot) = (keyspaces()?, self.engine.snapshot());
            let open = |(shard, keyspace): (&ShardId, Keyspace)| self.open_view(*shard, keyspace, snapshot.clone());
            let views = shards.iter().zip(keyspaces).map(open).collect::<Result<Vec<_>, _>>()?;
            let is_behind = |(view, index): &(&View, &u64)| view.state().applied < **index;
            let Some((view, index)) = views.iter().zip(&indexes).find(is_behind) else { return Ok(views) };
            self.applied(view.shard(), *index).await?;
        }
    }

    /// The node to ask about a player (or a group of producers) instead of this one, which has no replica.
    pub async fn elsewhere_of(&self, game: &str, player: &str) -> Result<Option<Arc<Peer>>, NodeError> {
        let (shard, _) = self.game(game).await?.shards.find(Token::of(player));
        self.elsewhere(shard)
    }

    /// Returns a linearizable view of the shard that holds a player.
    pub async fn player_view(&self, game: &str, player: &str) -> Result<View, NodeError> {
        validate::player_id(player)?;
        let (shard, _) = self.game(game).await?.shards.find(Token::of(player));
        self.view(shard).await
    }

    /// Reads the selected cells of a player.
    pub async fn get(&self, request: &GetRequest) -> Result<Vec<Cell>, NodeError> {
        validate::get(request)?;
        let view = self.player_view(&request.game, &request.player_id).await?;
        if let query @ CellQuery { selection: Selection::Cell(..), versions: 1, .. } = query(request) {
            return Ok(view.cells(&request.player_id, &query)?);
        }
        let request = request.clone();
        let read = tokio::task::spawn_blocking(move || {
            let cells = view.cells(&request.player_id, &query(&request))?;
            check_answer(cells.iter().map(Message::encoded_len).sum())?;
            Ok(cells)
        });
        read.await.map_err(|_| NodeError::Stopping)?
    }

    /// Cuts players by shard: for each shard the places of its players.
    pub async fn shards_of(&self, game: &str, players: &[String]) -> Result<Vec<(ShardId, Vec<usize>)>, NodeError> {
        let parts = self.game(game).await?.cut(players, |player| player);
        Ok(parts.into_iter().map(|(shard, _, places)| (shard, places)).collect())
    }

    /// Reads the selected cells of players of one shard.
    pub async fn get_many(
        &self,
        shard: ShardId,
        of_each: GetRequest,
        player_ids: Vec<String>,
    ) -> Result<Vec<PlayerCells>, NodeError> {
        let view = self.view(shard).await?;
        let read = tokio::task::spawn_blocking(move || {
            let query = query(&of_each);
            let (mut read, mut bytes) = (Vec::with_capacity(player_ids.len()), 0);
            let together = if matches!(query.selection, Selection::Cell(..)) { READ_TOGETHER_MAX } else { 1 };
            for some in player_ids.chunks(together) {
                let players: Vec<_> = some.iter().map(String::as_str).collect();
                for (player_id, cells) in some.iter().zip(view.cells_of_many(&players, &query)?) {
                    let player = PlayerCells { player_id: player_id.clone(), cells };
                    bytes += player.encoded_len();
                    read.push(player);
                }
                check_answer(bytes)?;
            }
            Ok(read)
        });
        read.await.map_err(|_| NodeError::Stopping)?
    }

    /// Returns the ids of registered producers of a group.
    pub async fn list_producers(&self, game: &str, group: &str) -> Result<Vec<String>, NodeError> {
        let (shard, _) = self.game(game).await?.shards.find(Token::of(group));
        Ok(self.view(shard).await?.registered_producers(group)?)
    }

    /// Returns the checksum of each shard of a game, after everything acknowledged before.
    pub async fn checksums(&self, game: &str) -> Result<Vec<(ShardId, Checksum)>, NodeError> {
        let mut views = self.game_views(game).await?;
        for _ in 0..WHOLE_TRIES_MAX {
            let Some(shard) = views.iter().find(|view| !is_whole(view)).map(View::shard) else { break };
            debug!(%shard, "an entry is being applied; its checksum is taken behind it");
            tokio::time::sleep(RETRY_DELAY).await;
            views = self.game_views(game).await?;
        }
        Self::checksums_of(views).await
    }

    /// Returns the checksums of this node's replicas of a game as they are, each at its own applied index.
    pub async fn local_checksums(&self, game: &str) -> Result<Vec<(ShardId, Checksum)>, NodeError> {
        Self::checksums_of(self.replicas(game).await?).await
    }

    async fn checksums_of(views: Vec<View>) -> Result<Vec<(ShardId, Checksum)>, NodeError> {
        if let Some(shard) = views.iter().find(|view| !is_whole(view)).map(View::shard) {
            return Err(NodeError::Unavailable { shard, reason: DriveError::NotReady("an entry is being applied") });
        }
        let sums = tokio::task::spawn_blocking(move || {
            views.iter().map(|view| Ok((view.shard(), Checksum::of(view)?))).collect::<galoo_storage::Result<Vec<_>>>()
        });
        Ok(sums.await.map_err(|_| NodeError::Stopping)??)
    }
}
