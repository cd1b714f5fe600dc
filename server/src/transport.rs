//! Node to node: connections from each node to each other one, made again for as long as they break.
//!
//! Raft's messages have a connection of their own ([`frames`]); on the other one, of gRPC, run one stream of commands that
//! the other node leads, and single calls. Every connection and call states the cluster, who calls, whom, and where the
//! caller is reached; what states another cluster or is meant for another node is refused, so that clusters cannot mix.
//! Raft's messages may be lost: what does not fit into a bounded queue, or meets no connection, is dropped and counted,
//! and Raft is told. A command is either surely not sent (nothing was handed to the connection) or its outcome is unknown
//! when the connection breaks.
//!
//! A node that moved is found again by itself: its calls state its new address before the meta group knows it.

pub mod frames;
mod outbox;
mod peer;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use galoo_consensus::{GroupId, wire};
use galoo_proto::{
    NodeId,
    peer::{Caller, RaftMessage},
};
use tokio::{sync::Semaphore, task::AbortHandle};
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};

pub use self::peer::{NotSent, Peer};

/// Bytes of messages that came in and wait for the Raft thread; beyond it the senders' streams are not read.
pub const INCOMING_BYTES_MAX: usize = 64 << 20;
/// A connection that is not made in this time is tried again later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing comes back for about twice this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// HTTP/2 flow-control windows: the protocol's default of 64 KiB throttles streams.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

const CLUSTER: &str = "galoo-cluster";
const FROM: &str = "galoo-from";
const TO: &str = "galoo-to";
const ADDR: &str = "galoo-addr";

/// The connections to all other nodes.
pub struct Transport {
    stated: Arc<Stated>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    tasks: Mutex<Vec<AbortHandle>>,
    incoming: Arc<Semaphore>,
}

/// What this node states in every call.
pub(crate) struct Stated {
    cluster_id: String,
    node: NodeId,
    addr: String,
}

impl Stated {
    fn caller(&self, to: NodeId) -> Caller {
        let Self { cluster_id, node, addr } = self;
        Caller { cluster_id: cluster_id.clone(), from: node.0, to: to.0, addr: addr.clone() }
    }

    fn request<T>(&self, to: NodeId, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        for (key, value) in [(CLUSTER, self.cluster_id.as_str()), (ADDR, self.addr.as_str())] {
            if let Ok(value) = AsciiMetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        }
        metadata.insert(FROM, AsciiMetadataValue::from(self.node.0));
        metadata.insert(TO, AsciiMetadataValue::from(to.0));
        request
    }
}

/// What a call of another node states.
///
/// # Errors
/// `INVALID_ARGUMENT` when it states less.
pub fn caller(metadata: &MetadataMap) -> Result<Caller, Status> {
    let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
    let number = |key| text(key).and_then(|text| text.parse().ok());
    let (Some(cluster), Some(from), Some(to)) = (text(CLUSTER), number(FROM), number(TO)) else {
        return Err(Status::invalid_argument(format!("a node's call states {CLUSTER}, {FROM} and {TO}")));
    };
    Ok(Caller { cluster_id: cluster.to_owned(), from, to, addr: text(ADDR).unwrap_or_default().to_owned() })
}

/// Whether a call came from a node that handed it on: it is handed on only once.
pub fn is_handed_on(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FROM)
}

/// How a node is reached.
pub fn endpoint(addr: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{addr}"))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// Connects to an address once.
pub async fn connect(addr: &str) -> Result<Channel, String> {
    let cause = |error: tonic::transport::Error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    };
    endpoint(addr).map_err(cause)?.connect().await.map_err(cause)
}

impl Transport {
    /// Speaks as a node of a cluster that is reached at `addr`.
    pub fn new(cluster_id: String, node: NodeId, addr: String) -> Self {
        let stated = Arc::new(Stated { cluster_id, node, addr });
        let incoming = Arc::new(Semaphore::new(INCOMING_BYTES_MAX));
        Self { stated, peers: RwLock::default(), tasks: Mutex::default(), incoming }
    }

    /// Where this node says that it is reached.
    pub fn addr(&self) -> &str {
        &self.stated.addr
    }

    /// Takes where nodes are; connections to new and moved ones are made by themselves.
    pub fn set_nodes(&self, nodes: impl IntoIterator<Item = (NodeId, String)>) {
        for (node, addr) in nodes {
            if node == self.stated.node {
                continue;
            }
            let mut peers = self.peers.write().expect("nobody panics with the peers in hand");
            if let Some(peer) = peers.get(&node) {
                peer.told(addr);
            } else {
                let (peer, task) = Peer::start(node, addr, self.stated.clone());
                peers.insert(node, peer);
                self.tasks.lock().expect("nobody panics with the tasks in hand").push(task);
            }
        }
    }

    /// Takes where nodes were found to be, whatever was told before.
    pub fn found(&self, nodes: impl IntoIterator<Item = (NodeId, String)>) {
        for (node, addr) in nodes {
            if let Some(peer) = self.peer(node) {
                peer.seen_at(&addr);
            }
        }
    }

    /// Another node's connection.
    pub fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().expect("nobody panics with the peers in hand").get(&node).cloned()
    }

    /// All other nodes, by id.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.read().expect("nobody panics with the peers in hand");
        let mut peers: Vec<_> = peers.values().cloned().collect();
        peers.sort_by_key(|peer| peer.id());
        peers
    }

    /// Hands Raft messages over to be sent, those to one node together; returns the dropped ones' groups and nodes.
    pub fn send(&self, messages: Vec<(GroupId, wire::Message)>) -> Vec<(GroupId, NodeId)> {
        let mut by_node: BTreeMap<NodeId, Vec<RaftMessage>> = BTreeMap::new();
        for (group, message) in messages {
            let encoded = RaftMessage { group: group.0, message: wire::encode(&message).into() };
            by_node.entry(NodeId(message.to)).or_default().push(encoded);
        }
        let mut dropped = Vec::new();
        for (node, messages) in by_node {
            let of_node = match self.peer(node) {
                Some(peer) => peer.send(messages),
                None => messages.iter().map(|message| GroupId(message.group)).collect(),
            };
            dropped.extend(of_node.into_iter().map(|group| (group, node)));
        }
        dropped
    }

    /// Checks what a caller states and returns which node it is.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for a caller of another cluster or that means another node.
    pub fn check(&self, caller: &Caller) -> Result<NodeId, Status> {
        let Caller { cluster_id: cluster, from, to, addr } = caller;
        let (from, to) = (NodeId(*from), NodeId(*to));
        let Stated { cluster_id, node, .. } = &*self.stated;
        if cluster != cluster_id {
            let refused = format!("{from} is of cluster {cluster}; this is {node} of cluster {cluster_id}");
            return Err(Status::failed_precondition(refused));
        }
        if to != *node {
            return Err(Status::failed_precondition(format!("{from} means {to}; this is {node}")));
        }
        let peer = self.peer(from);
        let peer = peer.ok_or_else(|| Status::failed_precondition(format!("this cluster has no node {from}")))?;
        if !addr.is_empty() {
            peer.seen_at(addr);
        }
        Ok(from)
    }

    /// What bounds the bytes of incoming messages.
    pub fn incoming(&self) -> &Arc<Semaphore> {
        &self.incoming
    }

    /// Ends all connections.
    pub fn stop(&self) {
        self.tasks.lock().expect("nobody panics with the tasks in hand").drain(..).for_each(|task| task.abort());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_of_another_cluster_or_for_another_node_are_refused() {
        let of = |cluster: &str, node| Transport::new(cluster.to_owned(), NodeId(node), format!("127.0.0.1:{node}"));
        let (here, there, stranger) = (of("aa", 1), of("aa", 2), of("bb", 2));
        here.set_nodes([(NodeId(1), "127.0.0.1:1".to_owned()), (NodeId(2), "127.0.0.1:9".to_owned())]);
        let check = |from: &Transport, to| {
            let stated = caller(from.stated.request(NodeId(to), ()).metadata())?;
            assert_eq!(stated, from.stated.caller(NodeId(to)), "calls and connections state the same");
            here.check(&stated)
        };
        assert_eq!(check(&there, 1).expect("let in"), NodeId(2));
        let addr = || here.peer(NodeId(2)).expect("known").addr();
        assert_eq!(addr(), "127.0.0.1:2", "a caller tells where it is");
        here.set_nodes([(NodeId(2), "127.0.0.1:9".to_owned())]);
        assert_eq!(addr(), "127.0.0.1:2", "the cluster has not heard of it yet");
        here.set_nodes([(NodeId(2), "127.0.0.1:3".to_owned())]);
        assert_eq!(addr(), "127.0.0.1:3", "the cluster was told of another place");
        here.found([(NodeId(2), "127.0.0.1:4".to_owned())]);
        assert_eq!(addr(), "127.0.0.1:4", "it was found elsewhere");
        // What the cluster says may be older than what the node said: where nobody answers, the other place is tried.
        for (tried, next) in
            [("127.0.0.1:4", "127.0.0.1:3"), ("127.0.0.1:3", "127.0.0.1:4"), ("127.0.0.1:9", "127.0.0.1:4")]
        {
            here.peer(NodeId(2)).expect("known").try_elsewhere(tried);
            assert_eq!(addr(), next, "after {tried}");
        }
        let refused = |result: Result<NodeId, Status>| result.expect_err("refused").message().to_owned();
        assert!(refused(check(&stranger, 1)).contains("n2 is of cluster bb; this is n1 of cluster aa"));
        assert!(refused(check(&there, 3)).contains("n2 means n3; this is n1"));
        assert!(refused(check(&of("aa", 7), 1)).contains("no node n7"));
        assert!(
            refused(caller(Request::new(()).metadata()).and_then(|caller| here.check(&caller)))
                .contains("galoo-cluster")
        );
        here.stop();
    }
}
