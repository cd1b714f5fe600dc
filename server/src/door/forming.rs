//! Forming a cluster of the nodes that were started to `--join` each other.
//!
//! The asked node finds out who is behind each address, chooses a cluster id and makes each a member in the order of the
//! list, which is the order of node ids. Each member writes its identity before it answers. Whatever crashes, asking
//! again goes on: a member keeps its cluster id, and the others adopt it. Two nodes that are asked at once cannot make
//! two clusters, because all name the same list and begin with its first address: the id that gets there first is
//! everybody's.

use std::time::Duration;

use futures::future::try_join_all;
use galoo_proto::{
    NodeId,
    admin::{InitClusterResponse, NodeAddr},
    meta::NodeRecord,
    peer::{IdentifyRequest, IdentifyResponse, JoinRequest, peer_client::PeerClient},
};
use tonic::Code;

use super::{Door, JoinFailure, new_cluster_id};
use crate::{data_folder::Identity, transport};

/// A node that says nothing for so long is not there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a cluster was not formed.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// A node was started alone.
    #[error("this node was started without --join: it is cluster {0} by itself")]
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
    Ok(known.map(|(_, cluster)| cluster.to_owned()))
}

impl Door {
    /// Makes a cluster of this node and those that it was started to join, or finishes making it.
    pub async fn init_cluster(&self) -> Result<InitClusterResponse, FormError> {
        let _one = self.initiating.lock().await;
        let addrs = match self.identity() {
            Some(identity) if identity.addrs.is_empty() => return Err(FormError::Alone(identity.cluster_id)),
            Some(identity) => identity.addrs,
            None => self.config.join.clone(),
        };
        let who = try_join_all(addrs.iter().map(|addr| identify(addr))).await?;
        if !who.iter().any(|node| node.instance == self.instance) {
            return Err(FormError::NotAmong(addrs.join(",")));
        }
        let known = cluster_of(&addrs, &who)?;
        let formed = who.iter().any(|node| node.cluster_id.is_empty());
        let cluster_id = known.unwrap_or_else(new_cluster_id);
        let record = |(place, (addr, node)): (usize, (&String, &IdentifyResponse))| NodeRecord {
            id: place as u64 + 1,
            grpc_addr: addr.clone(),
            zone: node.zone.clone(),
        };
        let nodes: Vec<_> = addrs.iter().zip(&who).enumerate().map(record).collect();
        for node in &nodes {
            let request = JoinRequest { cluster_id: cluster_id.clone(), node_id: node.id, nodes: nodes.clone() };
            self.make_member(&node.grpc_addr, request).await?;
        }
        let nodes = nodes.into_iter().map(|node| NodeAddr { id: node.id, addr: node.grpc_addr }).collect();
        Ok(InitClusterResponse { cluster_id, nodes, formed })
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

    /// Becomes the member of a cluster that the asking node makes; a repetition changes nothing.
    pub async fn join(&self, request: JoinRequest) -> Result<(), FormError> {
        let _one = self.joining.lock().await;
        let addrs: Vec<_> = request.nodes.iter().map(|node| node.grpc_addr.clone()).collect();
        let me = usize::try_from(request.node_id).ok().and_then(|id| addrs.get(id.checked_sub(1)?));
        let Some(me) = me.cloned() else {
            return Err(FormError::NotAmong(addrs.join(",")));
        };
        let mut wanted = Identity::new(request.cluster_id, NodeId(request.node_id), addrs);
        if let Some(known) = self.identity() {
            if known == wanted {
                return Ok(());
            }
            let expected = std::mem::take(&mut wanted.cluster_id);
            return Err(FormError::OtherCluster {
                addr: me,
                found: known.cluster_id,
                other: "the asker".into(),
                expected,
            });
        }
        // What it was started for is its operator's word.
        if self.config.join != wanted.addrs {
            let (found, expected) = (self.config.join.join(","), wanted.addrs.join(","));
            return Err(FormError::OtherNodes { addr: me, found, expected });
        }
        Ok(self.become_part(wanted, request.nodes)?)
    }

    /// Refuses to start a node of one cluster among the nodes of another.
    ///
    /// Asks whoever answers at the addresses of `--join`; who does not is no obstacle.
    pub async fn check_join(&self) -> Result<(), FormError> {
        let Some(identity) = self.identity() else { return Ok(()) };
        let asked = self.config.join.iter().map(|addr| async move { (addr, identify(addr).await) });
        for (addr, who) in futures::future::join_all(asked).await {
            match who {
                Ok(who) if !who.cluster_id.is_empty() && who.cluster_id != identity.cluster_id => {
                    let other = format!("data folder {}", self.config.data_dir.display());
                    let (found, expected) = (who.cluster_id, identity.cluster_id);
                    return Err(FormError::OtherCluster { addr: addr.clone(), found, other, expected });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cluster: &str, id: u64, addrs: &[&str]) -> IdentifyResponse {
        let addrs = addrs.iter().map(|addr| (*addr).to_owned()).collect();
        IdentifyResponse { instance: id, cluster_id: cluster.to_owned(), node_id: id, addrs, zone: String::new() }
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
    }
}
