//! What the gRPC services stand before: a node that is nobody's yet, one that starts, or one that runs.
//!
//! gRPC is served from the first moment, because a node needs its peers to start: it may wait to become part of a
//! cluster ([`forming`]), and to hear from a majority. Until the node runs, clients are answered `UNAVAILABLE`.
//!
//! Whose the node is stands in its data folder and is written after the meta group's first records are durable. A member
//! of a cluster takes part in nothing until all members have written theirs. So wherever a cluster has begun, a member
//! whose folder says nothing has lost its data: it may have voted and acknowledged, and must not be let in again as if it
//! had promised nothing.

mod forming;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use galoo_cluster::{
    machine::{MachineError, MetaMachine},
    meta::MetaState,
};
use galoo_proto::{
    NodeId,
    meta::NodeRecord,
    peer::{Caller, IdentifyResponse},
};
use galoo_storage::engine::{Engine, rocks::RocksEngine};
use tokio::sync::watch;
use tonic::Status;
use tracing::{info, warn};

use crate::{
    config::Config,
    data_folder::{DataFolder, DataFolderError, Identity},
    node::Node,
};

pub use self::forming::FormError;

/// A peer's stream waits so long for a node that opens its data.
const ENTER_WAIT: Duration = Duration::from_secs(10);

/// A node's data folder and engine, and the node itself once it runs.
pub struct Door {
    config: Config,
    folder: DataFolder,
    engine: Arc<dyn Engine>,
    /// Drawn at each start: tells this process from any other behind the same address.
    instance: u64,
    identity: watch::Sender<Option<Identity>>,
    /// One attempt to form a cluster at a time, and one to join.
    initiating: tokio::sync::Mutex<()>,
    joining: tokio::sync::Mutex<()>,
    node: OnceLock<Arc<Node>>,
    entered: watch::Sender<bool>,
    serving: watch::Sender<bool>,
    stopping: watch::Receiver<bool>,
}

impl Door {
    /// Opens the data folder. One that is nobody's yet becomes a cluster of one, unless there are others to join.
    pub fn open(config: Config, stopping: watch::Receiver<bool>) -> anyhow::Result<Self> {
        let folder = DataFolder::open(&config.data_dir)?;
        let known = folder.identity()?;
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&folder.join("data"), &config.engine_options())?);
        let door = Self {
            config,
            folder,
            engine,
            instance: rand::random(),
            identity: watch::channel(known).0,
            initiating: tokio::sync::Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            node: OnceLock::new(),
            entered: watch::channel(false).0,
            serving: watch::channel(false).0,
            stopping,
        };
        if door.identity().is_none() && door.config.join.is_empty() {
            door.write_records(&[door.config.grpc.to_string()])?;
            door.write_identity(Identity::alone(new_cluster_id()))?;
        }
        Ok(door)
    }

    /// How the node was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The locked data folder.
    pub fn folder(&self) -> &DataFolder {
        &self.folder
    }

    /// The engine below everything.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whose the node is; `None` while it is nobody's.
    pub fn identity(&self) -> Option<Identity> {
        self.identity.borrow().clone()
    }

    /// Whose the node is once its cluster has begun.
    pub fn begun(&self) -> Option<Identity> {
        self.identity().filter(Identity::has_begun)
    }

    /// Waits until the node is part of a cluster that has begun.
    pub async fn formed(&self) -> Identity {
        let mut identity = self.identity.subscribe();
        loop {
            if let Some(identity) = identity.borrow_and_update().clone().filter(Identity::has_begun) {
                return identity;
            }
            // The sender is a part of this door.
            let _ = identity.changed().await;
        }
    }

    /// Lets peers through to the node, which starts.
    pub fn enter(&self, node: Arc<Node>) {
        let entered = self.node.set(node).is_ok();
        assert!(entered, "a node enters once");
        self.entered.send_replace(true);
    }

    /// Waits a while for a node that starts: its peers need not come back for it.
    ///
    /// A node of a cluster calls only once the cluster has begun, so a member that waits for that learns it here when
    /// whoever formed the cluster died before it said so.
    pub async fn entered(&self, caller: &Caller) -> Result<(), Status> {
        if let Some(identity) = self.identity().filter(|identity| !identity.has_begun())
            && (caller.cluster_id.as_str(), caller.to) == (&identity.cluster_id, identity.node().0)
        {
            self.begin().await.map_err(|error| Status::internal(error.to_string()))?;
        }
        if self.begun().is_some() {
            let (mut entered, mut stopping) = (self.entered.subscribe(), self.stopping());
            tokio::select! {
                _ = tokio::time::timeout(ENTER_WAIT, entered.wait_for(|entered| *entered)) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
        Ok(())
    }

    /// Lets clients through to the node, which runs.
    pub fn serve(&self) {
        self.serving.send_replace(true);
    }

    /// Whether clients are let through, as it changes.
    pub fn serving(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Whether the process stops, as it changes: streams without an end of their own end then.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// The node, for its peers.
    pub fn starting_node(&self) -> Result<&Arc<Node>, Status> {
        self.node.get().ok_or_else(|| Status::unavailable("the node has not started yet"))
    }

    /// The node, for a caller that is known to be a node of its cluster; and which one.
    pub fn checked(&self, caller: &Caller) -> Result<(&Arc<Node>, NodeId), Status> {
        let node = self.starting_node()?;
        let from = node.transport().check(caller).inspect_err(|status| {
            warn!(refused = status.message(), "a call of another node");
        })?;
        Ok((node, from))
    }

    /// The node, for clients.
    pub fn node(&self) -> Result<&Arc<Node>, Status> {
        if *self.serving.borrow() {
            return self.starting_node();
        }
        Err(Status::unavailable(match self.identity() {
            Some(identity) if identity.has_begun() => "the node has not started yet",
            Some(_) => "the node's cluster is not whole yet: galoo cluster init goes on forming it",
            None => "the node belongs to no cluster yet: galoo cluster init makes one",
        }))
    }

    /// Who the node is, for whoever asks.
    pub fn who(&self) -> IdentifyResponse {
        let instance = self.instance;
        match self.identity() {
            Some(identity) => IdentifyResponse {
                instance,
                node_id: identity.node().0,
                begun: identity.has_begun(),
                cluster_id: identity.cluster_id,
                addrs: identity.addrs,
            },
            None => IdentifyResponse { instance, addrs: self.config.join.clone(), ..Default::default() },
        }
    }

    /// Writes the meta group's first records, durably: a function of the addresses, so that they are the same on every
    /// node. Each node tells its zone when it starts.
    fn write_records(&self, addrs: &[String]) -> Result<(), JoinFailure> {
        let record = |(id, addr): (u64, &String)| NodeRecord { id, grpc_addr: addr.clone(), zone: String::new() };
        let nodes = (1..).zip(addrs).map(record);
        Ok(MetaMachine::form(self.engine.as_ref(), MetaState::formed(nodes))?)
    }

    /// Writes whose the node is, durably. Its records are there already: a crash leaves it nobody's, or whole.
    fn write_identity(&self, identity: Identity) -> Result<(), JoinFailure> {
        self.folder.set_identity(&identity)?;
        info!(cluster = identity.cluster_id, node = %identity.node(), begun = identity.has_begun(), "is part of a cluster");
        self.identity.send_replace(Some(identity));
        Ok(())
    }
}

/// Why a node could not write that it is part of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailure {
    /// The first records.
    #[error(transparent)]
    Records(#[from] MachineError),
    /// The identity.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
}

/// A new cluster's id: 32 hex digits.
fn new_cluster_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}
