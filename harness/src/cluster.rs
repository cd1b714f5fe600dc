//! Nodes of one cluster, by their place from 0.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Galoo, Process, free_addresses, process};

/// A replica's checksum, and the log index that it holds at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Log index of the last command in it.
    pub applied: u64,
    /// Events in it.
    pub events: u64,
    /// The sum.
    pub checksum: u64,
}

/// Where a node is. Its ports are chosen once, so that it is found where it was when it is started again.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it speaks gRPC.
    pub grpc: SocketAddr,
    /// Where it speaks the Postgres protocol.
    pub pg: SocketAddr,
    /// Where it speaks HTTP.
    pub http: SocketAddr,
    /// Its data.
    pub data: PathBuf,
    /// What it writes to its standard error, over all its starts.
    pub log: PathBuf,
}

/// Nodes of one cluster. Dropping it kills those that run; on a panic their logs are shown.
pub struct Cluster {
    galoo: Galoo,
    nodes: Vec<Node>,
    running: Vec<Option<Process>>,
    /// Further arguments of every node.
    arguments: Vec<String>,
    /// Variables of every node's environment.
    variables: Vec<(String, OsString)>,
    group: Group,
}

/// Whom a terminal's Ctrl-C reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// The nodes too: they end with whoever started them.
    Shared,
    /// Only whoever started them, who ends them.
    OfItsOwn,
}

fn on(folder: &Path, place: usize, addresses: &[SocketAddr]) -> Node {
    let name = format!("node{}", place + 1);
    let (data, log) = (folder.join(&name), folder.join(name + ".log"));
    Node { grpc: addresses[0], pg: addresses[1], http: addresses[2], data, log }
}

impl Cluster {
    /// Chooses folders and ports; starts nothing.
    pub fn new(galoo: Galoo, folder: &Path, count: usize) -> Result<Self> {
        let addresses = free_addresses(3 * count)?;
        let nodes = addresses.chunks_exact(3).enumerate().map(|(place, addresses)| on(folder, place, addresses));
        let running = (0..count).map(|_| None).collect();
        Ok(Self {
            galoo,
            nodes: nodes.collect(),
            running,
            arguments: Vec::new(),
            variables: Vec::new(),
            group: Group::Shared,
        })
    }

    /// Starts every node in a process group of its own: a terminal's Ctrl-C reaches whoever holds the cluster and not the
    /// nodes, and the holder ends them.
    pub fn in_groups_of_their_own(mut self) -> Self {
        self.group = Group::OfItsOwn;
        self
    }

    /// Starts every node with further arguments.
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Starts every node with a variable in its environment.
    pub fn with_variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Starts all nodes, makes a cluster of them, and returns when all serve.
    pub async fn form(&mut self) -> Result<()> {
        for node in 0..self.count() {
            self.launch(node)?;
        }
        for node in 0..self.count() {
            self.process(node)?.says("galoo waiting").await?;
        }
        self.galoo.run(&["cluster", "init", "--addr", &self.grpc(0)]).await?;
        for node in 0..self.count() {
            self.ready(node).await?;
        }
        Ok(())
    }

    /// Starts a node and waits for nothing.
    pub fn launch(&mut self, node: usize) -> Result<()> {
        let join = self.addresses();
        self.launch_to_join(node, &join)
    }

    /// Starts a node that is to join these.
    pub fn launch_to_join(&mut self, node: usize, join: &str) -> Result<()> {
        let Node { grpc, pg, http, data, log } = &self.nodes[node];
        let mut command = self.galoo.command(&["server", "--join", join]);
        command.arg("--data-dir").arg(data).args(&self.arguments);
        for (front, address) in [("--grpc", grpc), ("--pg", pg), ("--http", http)] {
            command.args([front, &address.to_string()]);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if self.group == Group::OfItsOwn {
            command.process_group(0);
        }
        self.running[node] = Some(Process::start(command, log)?);
        Ok(())
    }

    /// Returns when a node serves.
    pub async fn ready(&mut self, node: usize) -> Result<()> {
        self.process(node)?.says("galoo ready").await.map(|_| ())
    }

    /// Kills nodes as `kill -9` does, all of them before the first is waited for, and returns which processes they were.
    pub async fn kill(&mut self, nodes: &[usize]) -> Result<Vec<u32>> {
        for node in nodes {
            self.process(*node)?.kill()?;
        }
        let mut killed = Vec::new();
        for process in nodes.iter().filter_map(|node| self.running[*node].take()) {
            killed.push(process.id());
            process.gone().await?;
        }
        Ok(killed)
    }

    /// Starts killed nodes on their folders, and returns when all serve.
    pub async fn start_again(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.launch(*node)?;
        }
        for node in nodes {
            self.ready(*node).await?;
        }
        Ok(())
    }

    /// Asks a node to end, and returns how it did.
    pub async fn stop(&mut self, node: usize) -> Result<ExitStatus> {
        let process = self.running[node].take().with_context(|| format!("node {node} does not run"))?;
        process.stop().await
    }

    /// Kills every node that still runs.
    pub fn end(&mut self) {
        // One that has ended already is what is wanted.
        self.running.iter_mut().flatten().for_each(|process| drop(process.kill()));
        self.running.fill_with(|| None);
    }

    /// Gives a node that does not run other ports.
    pub fn relocate(&mut self, node: usize) -> Result<()> {
        assert!(self.running[node].is_none(), "node {node} runs where it is");
        let addresses = free_addresses(3)?;
        let at = &mut self.nodes[node];
        (at.grpc, at.pg, at.http) = (addresses[0], addresses[1], addresses[2]);
        Ok(())
    }

    /// Fails when a node ended by itself.
    pub fn all_run(&mut self) -> Result<()> {
        (0..self.count()).try_for_each(|node| self.process(node)?.runs())
    }

    fn process(&mut self, node: usize) -> Result<&mut Process> {
        self.running[node].as_mut().with_context(|| format!("node {node} does not run"))
    }

    /// The number of a node's process, while it runs.
    pub fn process_id(&self, node: usize) -> Option<u32> {
        self.running[node].as_ref().map(Process::id)
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where a node speaks gRPC.
    pub fn grpc(&self, node: usize) -> String {
        self.nodes[node].grpc.to_string()
    }

    /// Where all nodes speak gRPC, as `--join` and clients take it.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.grpc.to_string()).collect::<Vec<_>>().join(",")
    }

    /// The command line.
    pub fn galoo(&self) -> &Galoo {
        &self.galoo
    }

    /// What a node tells of the cluster.
    pub async fn status(&self, node: usize) -> Result<Value> {
        self.galoo.json(&["status", "--addr", &self.grpc(node)]).await
    }

    /// A node's metric, by its name with labels as Prometheus reads it; 0 when there is none.
    pub async fn metric(&self, node: usize, name: &str) -> Result<f64> {
        let mut http = TcpStream::connect(self.nodes[node].http).await?;
        http.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        http.read_to_string(&mut answer).await?;
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// A game's replicas on one node as they are, by shard.
    pub async fn replicas(&self, node: usize, game: &str) -> Result<BTreeMap<u64, Replica>> {
        let shards = self.galoo.json(&["checksum", "--local", "--game", game, "--addr", &self.grpc(node)]).await?;
        let replica = |shard: &Value| {
            let checksum = u64::from_str_radix(shard["checksum"].as_str()?, 16).ok()?;
            let (applied, events) = (shard["applied"].as_u64()?, shard["events"].as_u64()?);
            Some((shard["shard"].as_u64()?, Replica { applied, events, checksum }))
        };
        let replicas = shards.as_array().and_then(|shards| shards.iter().map(replica).collect());
        replicas.with_context(|| format!("checksums that cannot be read: {shards}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.nodes.iter().zip(&self.running).filter(|(_, process)| process.is_none());
            for (node, _) in ended {
                // Whoever hears nothing any more is no reason to panic twice.
                let _ = writeln!(std::io::stderr(), "--- {}", process::end_of(&node.log));
            }
        }
    }
}
