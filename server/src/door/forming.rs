//! Forming a cluster of the nodes that were started to `--join` each other.
//!
//! The asked node finds out who is behind each address, chooses a cluster id and makes each a member in the order of the
//! list, which is the order of node ids. Each member writes its identity before it answers. When all have, each is told
//! that the cluster begins, writes that and starts.
//!
//! Whatever crashes, asking again goes on: a member keeps its cluster id, and the others adopt it. Two nodes that are
//! asked at once cannot make two clusters, because all name the same list and begin with its first address: the id that
//! gets there first is everybody's. Where a cluster has begun it is whole: who knows nothing of it has lost its data and
//! is refused.

use std::time::Duration;

use futures::future::try_join_all;
use galoo_proto::{
    NodeId,
    admin::{InitClusterResponse, NodeAddr},
    peer::{IdentifyRequest, IdentifyResponse, JoinRequest, peer_client::PeerClient},
};
use tonic::Code;
use tracing::{info, warn};

use super::{Door, JoinFailure, new_cluster_id};
use crate::{data_folder::Identity, transport};

/// A node that says nothing for so long is not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a cluster was not formed.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// A node was first started alone.
    #[error("this node's data folder was made without --join: it is cluster {0} by itself")]
    Alone(String),
    /// A node does not answer.
    #[error("{addr} does not answer: {reason}")]
    Unreachable {
        /// Its address.
        addr: String,
        /// Why.
        reason: String,
    },
    /// No address leads to this node.
    #[error("--join names {0}, and none of them leads to this node")]
    NotAmong(String),
    /// A node belongs to another cluster than the rest.
    #[error("{addr} belongs to cluster {found}, {other} to cluster {expected}")]
    OtherCluster {
        /// Its address.
        addr: String,
        /// Its cluster.
        found: String,
        /// Another node.
        other: String,
        /// Its cluster.
        expected: String,
    },
    /// A node was started to join, or is formed of, other nodes.
    #[error("{addr} names the nodes {found}; this node names {expected}")]
    OtherNodes {
        /// Its address.
        addr: String,
        /// Its list.
        found: String,
        /// This node's list.
        expected: String,
    },
    /// A node has another number than its place in the list.
    #[error("{addr} is {found} of its cluster, and not {expected}")]
    OtherNumber {
        /// Its address.
        addr: String,
        /// Its number.
        found: NodeId,
        /// Its place.
        expected: NodeId,
    },
    /// A node knows nothing of the cluster that it is a member of.
    #[error(
        "{addr} is {node} of cluster {cluster} and has lost its data: as the member that it was it cannot come back"
    )]
    LostData {
        /// Its address.
        addr: String,
        /// Its number.
        node: NodeId,
        /// The cluster, which has begun.
        cluster: String,
    },
    /// A node refused to be a member.
    #[error("{addr} refuses: {reason}")]
    Refused {
        /// Its address.
        addr: String,
        /// Why.
        reason: String,
    },
    /// This node's disk failed.
    #[error(transparent)]
    Failed(#[from] JoinFailure),
}

/// Asks who is behind an address.
async fn identify(addr: &str) -> Result<IdentifyResponse, FormError> {
    let unreachable = |reason: String| FormError::Unreachable { addr: addr.to_owned(), reason };
    let asked = async {
        let channel = transport::connect(addr).await?;
        let answer = PeerClient::new(channel).identify(IdentifyRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    answer.map_err(|_| unreachable(format!("nothing within {ANSWER_TIMEOUT:?}")))?.map_err(unreachable)
}

/// Who is behind each address, checked against each other.
///
/// Returns the cluster that some of them belong to already.
fn cluster_of(addrs: &[String], who: &[IdentifyResponse]) -> Result<Option<String>, FormError> {
    let mut known: Option<(&str, &str)> = None;
    for (place, (addr, node)) in addrs.iter().zip(who).enumerate() {
        let formed = !node.cluster_id.is_empty();
        match known {
            _ if !formed => {}
            None => known = Some((addr, &node.cluster_id)),
            Some((_, cluster)) if cluster == node.cluster_id => {}
            Some((other, expected)) => {
                return Err(FormError::OtherCluster {
                    addr: addr.clone(),
                    found: node.cluster_id.clone(),
                    other: other.to_owned(),
                    expected: expected.to_owned(),
                });
            }
        }
        if node.addrs != addrs {
            let found = match node.addrs.is_empty() {
                true => format!("(none: it is cluster {} by itself)", node.cluster_id),
                false => node.addrs.join(","),
            };
            return Err(FormError::OtherNodes { addr: addr.clone(), found, expected: addrs.join(",") });
        }
        let expected = NodeId(place as u64 + 1);
        if formed && node.node_id != expected.0 {
            return Err(FormError::OtherNumber { addr: addr.clone(), found: NodeId(node.node_id), expected });
        }
    }
    let lost = who.iter().position(|node| node.cluster_id.is_empty());
    if let (Some((_, cluster)), Some(place), true) = (known, lost, who.iter().any(|node| node.begun)) {
        let (addr, node) = (addrs[place].clone(), NodeId(place as u64 + 1));
        return Err(FormError::LostData { addr, node, cluster: cluster.to_owned() });
    }
    Ok(known.map(|(_, cluster)| cluster.to_owned()))
}

/// How often forming begins anew when another node that was asked at the same time was quicker.
const ATTEMPTS_MAX: u32 = 3;

impl Door {
    /// Makes a cluster of this node and those that it was started to join, or finishes making it.
    pub async fn init_cluster(&self) -> Result<InitClusterResponse, FormError> {
        let _one = self.initiating.lock().await;
        for _ in 1..ATTEMPTS_MAX {
            match self.form_cluster().await {
                // The first node belongs to whoever was quicker: that cluster is found now.
                Err(FormError::Refused { addr, reason }) => info!(addr, reason, "forming the cluster begins anew"),
                done => return done,
            }
        }
        self.form_cluster().await
    }

    async fn form_cluster(&self) -> Result<InitClusterResponse, FormError> {
        let addrs = match self.identity() {
            Some(identity) if identity.addrs.is_empty() => return Err(FormError::Alone(identity.cluster_id)),
            // The others have joined; one that does not know that the cluster has begun hears it from this node.
            Some(identity) if identity.has_begun() => return Ok(self.formed_already(identity)),
            Some(identity) => identity.addrs,
            None => self.config.join.clone(),
        };
        let who = try_join_all(addrs.iter().map(|addr| identify(addr))).await?;
        if !who.iter().any(|node| node.instance == self.instance) {
            return Err(FormError::NotAmong(addrs.join(",")));
        }
        let cluster_id = cluster_of(&addrs, &who)?.unwrap_or_else(new_cluster_id);
        for begin in [false, true] {
            for (node_id, addr) in (1..).zip(&addrs) {
                let request = JoinRequest { cluster_id: cluster_id.clone(), node_id, addrs: addrs.clone(), begin };
                self.make_member(addr, request).await?;
            }
        }
        let nodes = (1..).zip(addrs).map(|(id, addr)| NodeAddr { id, addr }).collect();
        Ok(InitClusterResponse { cluster_id, nodes, formed: true })
    }

    /// A cluster that has begun, and where its nodes are.
    fn formed_already(&self, identity: Identity) -> InitClusterResponse {
        let nodes = match self.starting_node() {
            Ok(node) => node.topology().nodes,
            Err(_) => (1..).zip(identity.addrs).map(|(id, addr)| NodeAddr { id, addr }).collect(),
        };
        InitClusterResponse { cluster_id: identity.cluster_id, nodes, formed: false }
    }

    async fn make_member(&self, addr: &str, request: JoinRequest) -> Result<(), FormError> {
        let addr = addr.to_owned();
        let asked = async {
            let channel = transport::connect(&addr).await.map_err(tonic::Status::unavailable)?;
            PeerClient::new(channel).join(request).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                Err(FormError::Refused { addr, reason: status.message().to_owned() })
            }
            Ok(Err(status)) => Err(FormError::Unreachable { addr, reason: status.message().to_owned() }),
            Err(_) => Err(FormError::Unreachable { addr, reason: format!("nothing within {ANSWER_TIMEOUT:?}") }),
        }
    }

    /// Becomes the member of a cluster that the asking node makes, or begins to be one; a repetition changes nothing.
    pub async fn join(&self, request: JoinRequest) -> Result<(), FormError> {
        let me = usize::try_from(request.node_id).ok().and_then(|id| request.addrs.get(id.checked_sub(1)?));
        let Some(addr) = me.cloned() else { return Err(FormError::NotAmong(request.addrs.join(","))) };
        let node = NodeId(request.node_id);
        {
            let _one = self.joining.lock().await;
            match self.identity() {
                Some(known) if known.cluster_id != request.cluster_id => {
                    let (found, expected) = (known.cluster_id, request.cluster_id);
                    return Err(FormError::OtherCluster { addr, found, other: "the asker".into(), expected });
                }
                Some(known) if known.node() != node => {
                    return Err(FormError::OtherNumber { addr, found: known.node(), expected: node });
                }
                Some(known) if known.addrs != request.addrs => {
                    let (found, expected) = (known.addrs.join(","), request.addrs.join(","));
                    return Err(FormError::OtherNodes { addr, found, expected });
                }
                // What it was started for is its operator's word.
                None if self.config.join != request.addrs => {
                    let (found, expected) = (self.config.join.join(","), request.addrs.join(","));
                    return Err(FormError::OtherNodes { addr, found, expected });
                }
                None if request.begin => {
                    return Err(FormError::LostData { addr, node, cluster: request.cluster_id });
                }
                None => {
                    self.write_records(&request.addrs)?;
                    self.write_identity(Identity::joining(request.cluster_id, node, request.addrs))?;
                }
                Some(_) => {}
            }
        }
        if request.begin { self.begin().await } else { Ok(()) }
    }

    /// Starts to take part in the cluster: all its members have joined.
    pub(super) async fn begin(&self) -> Result<(), FormError> {
        let _one = self.joining.lock().await;
        match self.identity() {
            Some(identity) if !identity.has_begun() => Ok(self.write_identity(identity.begun())?),
            _ => Ok(()),
        }
    }

    /// Finds other nodes of this one's cluster behind the addresses of `--join`: they may have moved since it was formed.
    ///
    /// Who does not answer is no obstacle.
    ///
    /// # Errors
    /// A node of one cluster does not start among the nodes of another.
    pub async fn find_peers(&self) -> Result<Vec<(NodeId, String)>, FormError> {
        let Some(identity) = self.identity() else { return Ok(Vec::new()) };
        if identity.addrs.is_empty() && !self.config.join.is_empty() {
            warn!(cluster = identity.cluster_id, "the data folder was made without --join: the node stays by itself");
        }
        let asked = self.config.join.iter().map(|addr| async move { (addr, identify(addr).await) });
        let mut found = Vec::new();
        for (addr, who) in futures::future::join_all(asked).await {
            match who {
                Ok(who) if who.cluster_id == identity.cluster_id => found.push((NodeId(who.node_id), addr.clone())),
                Ok(who) if !who.cluster_id.is_empty() => {
                    let other = format!("data folder {}", self.config.data_dir.display());
                    let (found, expected) = (who.cluster_id, identity.cluster_id);
                    return Err(FormError::OtherCluster { addr: addr.clone(), found, other, expected });
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cluster: &str, id: u64, addrs: &[&str]) -> IdentifyResponse {
        let addrs = addrs.iter().map(|addr| (*addr).to_owned()).collect();
        IdentifyResponse { instance: id, cluster_id: cluster.to_owned(), node_id: id, addrs, begun: false }
    }

    /// A rerun adopts the cluster of those that have one; whoever does not fit is named.
    #[test]
    fn members_are_checked_against_each_other() {
        let addrs = ["a:1", "b:1", "c:1"].map(str::to_owned);
        let list: &[&str] = &["a:1", "b:1", "c:1"];
        let fresh = || node("", 0, list);
        let said = |who: &[IdentifyResponse]| cluster_of(&addrs, who).map_err(|error| error.to_string());
        assert_eq!(said(&[fresh(), fresh(), fresh()]), Ok(None));
        assert_eq!(said(&[fresh(), node("x", 2, list), fresh()]), Ok(Some("x".to_owned())));
        assert_eq!(said(&[node("x", 1, list), node("x", 2, list), node("x", 3, list)]), Ok(Some("x".to_owned())));
        let refused = |who: &[IdentifyResponse], words: &str| {
            let error = said(who).expect_err("refused");
            assert!(error.contains(words), "{error}");
        };
        refused(&[node("x", 1, list), node("y", 2, list), fresh()], "b:1 belongs to cluster y, a:1 to cluster x");
        refused(&[fresh(), node("x", 1, &[]), fresh()], "by itself");
        refused(&[fresh(), node("", 0, &["b:1", "a:1", "c:1"]), fresh()], "b:1 names the nodes b:1,a:1,c:1");
        refused(&[fresh(), node("", 0, &["a:1", "b:1"]), fresh()], "b:1 names the nodes a:1,b:1");
        refused(&[fresh(), fresh(), node("x", 3, &["b:1", "a:1", "c:1"])], "c:1 names the nodes b:1,a:1,c:1");
        refused(&[node("x", 2, list), fresh(), fresh()], "a:1 is n2 of its cluster, and not n1");
        let begun = |id| IdentifyResponse { begun: true, ..node("x", id, list) };
        assert_eq!(said(&[begun(1), node("x", 2, list), node("x", 3, list)]), Ok(Some("x".to_owned())));
        refused(&[begun(1), fresh(), node("x", 3, list)], "b:1 is n2 of cluster x and has lost its data");
    }
}
