//! Where nodes are: their addresses in the meta group's state, and this node's own when it was moved.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use galoo_cluster::meta::MetaState;
use galoo_proto::{
    NodeId,
    meta::{NodeRecord, UpdateNode, meta_command::Body, meta_outcome},
};
use tracing::{info, warn};

use super::Node;

/// Between two tries to tell the cluster where this node is.
const ANNOUNCE_DELAY: Duration = Duration::from_secs(1);

/// Every node's address.
pub(super) fn addrs(meta: &MetaState) -> Vec<(NodeId, String)> {
    meta.nodes().map(|node| (NodeId(node.id), node.grpc_addr.clone())).collect()
}

/// Where this node is reached: as the cluster knows it, unless it serves elsewhere.
///
/// The known address may be a name, and the served one any interface's.
pub(super) async fn own_addr(meta: &MetaState, me: NodeId, served: SocketAddr) -> String {
    let known = meta.nodes().find(|node| node.id == me.0).map(|node| node.grpc_addr.clone());
    let Some(known) = known else { return served.to_string() };
    let Some((host, port)) = known.rsplit_once(':') else { return served.to_string() };
    if served.ip().is_unspecified() {
        return if port.parse() == Ok(served.port()) { known } else { format!("{host}:{}", served.port()) };
    }
    let leads_here = match tokio::net::lookup_host(&known).await {
        Ok(mut addrs) => addrs.any(|addr| addr == served),
        Err(_) => port.parse() == Ok(served.port()),
    };
    if leads_here { known } else { served.to_string() }
}

impl Node {
    /// Tells the meta group where this node is, when it knows something else.
    pub(super) async fn announce(self: Arc<Self>) {
        let me = self.identity.node().0;
        loop {
            let known = self.meta.borrow().nodes().find(|node| node.id == me).cloned();
            let grpc_addr = self.transport.addr().to_owned();
            let node = NodeRecord { id: me, grpc_addr, zone: self.config.zone.clone() };
            if known.as_ref() == Some(&node) {
                return;
            }
            match self.propose_meta(Body::UpdateNode(UpdateNode { node: Some(node) })).await.map(|told| told.result) {
                Ok(Some(meta_outcome::Result::Node(node))) => {
                    info!(addr = node.grpc_addr, zone = node.zone, "the cluster knows where this node is");
                    return;
                }
                Ok(_) => {
                    warn!("the cluster does not know this node");
                    return;
                }
                Err(failure) => warn!(%failure, "the cluster was not told where this node is; tried again"),
            }
            tokio::time::sleep(ANNOUNCE_DELAY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_keeps_the_address_that_leads_to_it() {
        let of = async |known: &str, served: &str| {
            let node = NodeRecord { id: 1, grpc_addr: known.to_owned(), zone: String::new() };
            let records: Vec<_> = MetaState::formed([node]);
            let pairs = records.iter().filter_map(|(key, value)| Some((key.as_slice(), value.as_deref()?)));
            let meta = MetaState::load(pairs).expect("loads");
            own_addr(&meta, NodeId(1), served.parse().expect("an address")).await
        };
        assert_eq!(of("127.0.0.1:7", "127.0.0.1:7").await, "127.0.0.1:7");
        assert_eq!(of("127.0.0.1:7", "127.0.0.1:8").await, "127.0.0.1:8", "it was moved");
        assert_eq!(of("localhost:7", "127.0.0.1:7").await, "localhost:7", "the name leads here");
        assert_eq!(of("10.0.0.1:7", "0.0.0.0:7").await, "10.0.0.1:7", "every interface is served");
        assert_eq!(of("10.0.0.1:7", "0.0.0.0:8").await, "10.0.0.1:8");
    }
}
