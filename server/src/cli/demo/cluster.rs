//! The demo's cluster: three processes of this binary, and what the demo asks them: who leads, who is behind, what each
//! one holds.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use galoo_harness::{Galoo, Replica};
use serde_json::Value;

use super::GAME;

/// Nodes of the demo.
const NODES: usize = 3;

/// The demo's nodes, by their place from 0: a node's number in the cluster is one more.
pub(super) struct Cluster {
    folder: PathBuf,
    nodes: galoo_harness::Cluster,
    last_started: usize,
}

/// A node's number in the cluster.
fn id(node: usize) -> u64 {
    node as u64 + 1
}

impl Cluster {
    /// Chooses folders and ports; starts nothing.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        let galoo = Galoo::new(std::env::current_exe().context("where this binary is")?);
        let nodes = galoo_harness::Cluster::new(galoo, folder, NODES)?.in_groups_of_their_own();
        Ok(Self { folder: folder.to_owned(), nodes, last_started: 0 })
    }

    /// Starts all nodes and makes a cluster of them.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        self.nodes.form().await
    }

    /// Kills a node as `kill -9` does, and returns the process that it was.
    pub(super) async fn kill(&mut self, node: usize) -> anyhow::Result<u32> {
        self.nodes.kill(&[node]).await?.pop().context("the node does not run")
    }

    /// Starts a killed node on its folder.
    pub(super) async fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        self.nodes.start_again(&[node]).await?;
        self.last_started = node;
        Ok(())
    }

    /// Ends every process that still runs.
    pub(super) fn stop(&mut self) {
        self.nodes.end();
    }

    /// The game's shards, as a node that runs sees them.
    async fn shards(&self) -> anyhow::Result<Vec<Value>> {
        let runs = |node: &usize| self.nodes.process_id(*node).is_some();
        let up = (0..NODES).find(runs).context("no node runs")?;
        let status = self.nodes.status(up).await?;
        let shards = status["shards"].as_array().cloned().unwrap_or_default();
        let shards: Vec<_> = shards.into_iter().filter(|shard| shard["game"] == GAME).collect();
        if shards.is_empty() { bail!("the game has no shards") } else { Ok(shards) }
    }

    /// Finds the node that leads the game's first shard that is led: its place, the shard, how many shards it leads, of how
    /// many.
    pub(super) async fn leader(&self) -> anyhow::Result<(usize, u64, usize, usize)> {
        let shards = self.shards().await?;
        let led = shards.iter().find(|shard| shard["leader"].as_u64().is_some_and(|leader| leader != 0));
        let led = led.context("no shard has a leader")?;
        let leads = shards.iter().filter(|shard| shard["leader"] == led["leader"]).count();
        let node = (0..NODES).find(|node| led["leader"] == id(*node)).context("a leader that is no node")?;
        Ok((node, led["shard"].as_u64().unwrap_or(0), leads, shards.len()))
    }

    /// The log index of each shard that its furthest replica has applied.
    pub(super) async fn applied(&self) -> anyhow::Result<BTreeMap<u64, u64>> {
        let furthest = |shard: &Value| {
            let replicas = shard["replicas"].as_array().into_iter().flatten();
            replicas.filter_map(|replica| replica["applied"].as_u64()).max().unwrap_or(0)
        };
        let shards = self.shards().await?;
        Ok(shards.iter().filter_map(|shard| Some((shard["shard"].as_u64()?, furthest(shard)))).collect())
    }

    /// How many commands below `target` a node has still to apply.
    pub(super) async fn behind(&self, node: usize, target: &BTreeMap<u64, u64>) -> anyhow::Result<u64> {
        let mut behind = 0;
        for shard in self.shards().await? {
            let replicas = shard["replicas"].as_array().into_iter().flatten();
            let own = replicas.filter(|replica| replica["node"] == id(node));
            let applied = own.filter_map(|replica| replica["applied"].as_u64()).next().unwrap_or(0);
            let wanted = shard["shard"].as_u64().and_then(|shard| target.get(&shard)).copied().unwrap_or(0);
            behind += wanted.saturating_sub(applied);
        }
        Ok(behind)
    }

    /// The replicas of each node, by shard.
    pub(super) async fn checksums(&self) -> anyhow::Result<Vec<BTreeMap<u64, Replica>>> {
        let mut all = Vec::new();
        for node in 0..NODES {
            all.push(self.nodes.replicas(node, GAME).await?);
        }
        Ok(all)
    }

    /// Where all nodes speak gRPC, as clients take it.
    pub(super) fn addresses(&self) -> String {
        self.nodes.addresses()
    }

    /// A row for each node.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let row = |(place, node): (usize, &galoo_harness::Node)| {
            let addresses = [node.grpc, node.pg, node.http].map(|address| address.to_string());
            let process = self.nodes.process_id(place).unwrap_or(0).to_string();
            [vec![self.name(place)], addresses.to_vec(), vec![process]].concat()
        };
        self.nodes.nodes().iter().enumerate().map(row).collect()
    }

    pub(super) fn name(&self, node: usize) -> String {
        format!("n{}", id(node))
    }

    /// The name of the node that was started last.
    pub(super) fn last_started(&self) -> String {
        self.name(self.last_started)
    }

    /// Where the node that was started last speaks the Postgres protocol.
    pub(super) fn pg(&self) -> SocketAddr {
        self.nodes.nodes()[self.last_started].pg
    }

    /// Where the node that was started last speaks gRPC.
    pub(super) fn grpc(&self) -> String {
        self.nodes.grpc(self.last_started)
    }

    pub(super) fn binary(&self) -> &Path {
        self.nodes.galoo().binary()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}
