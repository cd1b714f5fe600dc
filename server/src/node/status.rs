//! How things are: each shard on this node, and what the other nodes say of theirs.

use std::{collections::BTreeMap, time::Duration};

use galoo_consensus::GroupId;
use galoo_proto::{
    NodeId, ShardId,
    admin::{
        GameTopology, NodeAddr, NodeStatus, ReplicaStatus, ShardStatus, ShardTopology, StatusRequest, StatusResponse,
        TopologyResponse, admin_client::AdminClient,
    },
    limits::GRPC_MESSAGE_BYTES_MAX,
};
use galoo_storage::view::Source;

use super::{Node, NodeError};
use crate::transport::Peer;

/// A node that does not tell its status in this time is shown as unreachable.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

impl Node {
    /// The other nodes that hold a shard.
    pub fn other_replicas(&self, shard: ShardId) -> Vec<NodeId> {
        let me = self.identity.node().0;
        let meta = self.meta.borrow();
        let record = meta.shards().find(|record| record.id == shard.0);
        let others = record.into_iter().flat_map(|record| &record.voters).filter(|voter| **voter != me);
        others.map(|voter| NodeId(*voter)).collect()
    }

    /// Returns the state of each shard as this node knows it, by id.
    pub fn shard_status(&self) -> Result<Vec<ShardStatus>, NodeError> {
        let roles = self.driver.roles().borrow().clone();
        let meta = self.meta.borrow().clone();
        let mut all = Vec::new();
        for record in meta.shards() {
            let shard = ShardId(record.id);
            let role = roles.get(&GroupId(shard.0)).copied().unwrap_or_default();
            let game = meta.games().find(|game| game.id == record.game).map(|game| game.name.clone());
            let mut status = ShardStatus {
                shard: shard.0,
                game: game.unwrap_or_default(),
                leader: role.leader,
                term: role.term,
                voters: record.voters.clone(),
                ..Default::default()
            };
            if self.keyspace(shard).is_some() {
                self.describe(shard, &mut status)?;
                status.replicas = vec![ReplicaStatus { node: self.identity.node().0, applied: status.applied }];
            }
            all.push(status);
        }
        Ok(all)
    }

    fn describe(&self, shard: ShardId, status: &mut ShardStatus) -> Result<(), NodeError> {
        let view = match self.stale_view(shard) {
            Ok(view) => view,
            Err(error) if error.is_passing() => return Ok(()),
            Err(error) => return Err(error),
        };
        status.applied = view.state().applied;
        status.events = view.state().events;
        for source in view.sources()? {
            match source {
                Source::Chunk(chunk) => {
                    status.chunks += 1;
                    status.chunk_bytes += chunk.bytes;
                }
                Source::Segment(_) if source.rows() == 0 => {}
                Source::Segment(segment) => {
                    status.segments += 1;
                    status.segment_bytes += segment.file_bytes;
                }
            }
        }
        Ok(())
    }

    /// Adds what the other nodes say: who is there, where replicas are, who leads what this node does not hold.
    pub async fn complete_status(&self, status: &mut StatusResponse) {
        let peers = self.transport.peers();
        let answers = futures::future::join_all(peers.iter().map(|peer| status_of(peer))).await;
        let told: BTreeMap<u64, StatusResponse> =
            peers.iter().zip(answers).filter_map(|(peer, answer)| Some((peer.id().0, answer?))).collect();
        for shard in &mut status.shards {
            let id = shard.shard;
            let of = |told: &StatusResponse| told.shards.iter().find(|other| other.shard == id).cloned();
            for other in told.values().filter_map(of) {
                if other.term > shard.term || (other.term == shard.term && shard.leader == 0) {
                    (shard.term, shard.leader) = (other.term, other.leader);
                }
                shard.replicas.extend(&other.replicas);
                if !shard.voters.contains(&status.node_id) && other.applied > shard.applied {
                    // Nothing of it is here: the furthest replica speaks for it.
                    let (replicas, voters) = (std::mem::take(&mut shard.replicas), std::mem::take(&mut shard.voters));
                    let (term, leader) = (shard.term, shard.leader);
                    *shard = ShardStatus { replicas, voters, term, leader, ..other };
                }
            }
            shard.replicas.sort_by_key(|replica| replica.node);
        }
        let meta = self.meta.borrow().clone();
        status.nodes = meta.nodes().map(|node| self.node_status(node.id, status, told.get(&node.id))).collect();
        for (node, record) in status.nodes.iter_mut().zip(meta.nodes()) {
            node.zone.clone_from(&record.zone);
            node.grpc_addr = self
                .transport
                .peer(NodeId(node.id))
                .map_or_else(|| self.transport.addr().to_owned(), |peer| peer.addr());
        }
    }

    fn node_status(&self, id: u64, all: &StatusResponse, told: Option<&StatusResponse>) -> NodeStatus {
        let own = (id == all.node_id).then_some(all);
        let mut node = NodeStatus { id, reachable: own.or(told).is_some(), ..Default::default() };
        if let Some(told) = own.or(told) {
            (node.pg_addr, node.http_addr) = (told.pg_addr.clone(), told.http_addr.clone());
        }
        for shard in &all.shards {
            let furthest = shard.replicas.iter().map(|replica| replica.applied).max().unwrap_or(0);
            node.replicas += u64::from(shard.voters.contains(&id));
            node.leads += u64::from(shard.leader == id);
            let own = shard.replicas.iter().find(|replica| replica.node == id);
            node.lag += own.map_or(0, |replica| furthest.saturating_sub(replica.applied));
        }
        node
    }

    /// Where things are, as far as this node knows.
    pub fn topology(&self) -> TopologyResponse {
        let (meta, roles) = (self.meta.borrow().clone(), self.driver.roles().borrow().clone());
        let mut nodes: Vec<_> =
            self.transport.peers().iter().map(|peer| NodeAddr { id: peer.id().0, addr: peer.addr() }).collect();
        nodes.push(NodeAddr { id: self.identity.node().0, addr: self.transport.addr().to_owned() });
        nodes.sort_by_key(|node| node.id);
        let shards = |game: u64| {
            meta.shards().filter(move |shard| shard.game == game).map(|shard| {
                let known = self.lock_leaders().get(&GroupId(shard.id)).map_or(0, |node| node.0);
                let leader = roles.get(&GroupId(shard.id)).map_or(known, |role| role.leader);
                let (start, end, voters) = (shard.start, shard.end, shard.voters.clone());
                ShardTopology { shard: shard.id, start, end, leader, voters }
            })
        };
        let games =
            meta.games().map(|game| GameTopology { name: game.name.clone(), shards: shards(game.id).collect() });
        TopologyResponse { version: meta.version(), nodes, games: games.collect() }
    }
}

/// A node's own status, if it tells it in time.
async fn status_of(peer: &Peer) -> Option<StatusResponse> {
    let mut client = AdminClient::new(peer.channel().ok()?).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let asked = client.status(peer.request(StatusRequest { local: true }));
    Some(tokio::time::timeout(STATUS_TIMEOUT, asked).await.ok()?.ok()?.into_inner())
}
