//! The demo's nodes: processes of this binary, started, killed and ended by their handles.
//!
//! Each node has a folder and a log of its own; its ports are free ones that are chosen once, so that a restarted node is
//! found where it was. What the cluster knows of itself is asked through the command line.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use super::GAME;

/// Nodes of the demo.
const NODES: usize = 3;
/// A node that says nothing for so long after its start has failed.
const START_MAX: Duration = Duration::from_secs(120);
/// A node says two lines; what it says beyond these is dropped.
const LINES_MAX: usize = 16;
/// The end of a node's log that an error shows.
const LOG_SHOWN_BYTES_MAX: usize = 2 << 10;

/// A replica's checksum, and the log index that it holds at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) applied: u64,
    pub(super) checksum: u64,
    pub(super) events: u64,
}

struct Node {
    /// Given by the cluster when it forms.
    id: u64,
    grpc: SocketAddr,
    pg: SocketAddr,
    http: SocketAddr,
    data: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// What the node says on its standard output.
    lines: mpsc::Receiver<String>,
}

/// The demo's cluster.
pub(super) struct Cluster {
    binary: PathBuf,
    folder: PathBuf,
    nodes: Vec<Node>,
    last_started: usize,
}

/// Finds ports that nobody listens on, all different.
fn free_addresses<const N: usize>() -> anyhow::Result<[SocketAddr; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind("127.0.0.1:0").context("no free port")?);
    }
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    addresses.try_into().map_err(|_| anyhow!("no free port"))
}

impl Cluster {
    /// Chooses folders and ports; starts nothing.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("where this binary is")?;
        let addresses: [SocketAddr; 3 * NODES] = free_addresses()?;
        let nodes = (1..).zip(addresses.chunks_exact(3)).map(|(id, addresses)| Node {
            id,
            grpc: addresses[0],
            pg: addresses[1],
            http: addresses[2],
            data: folder.join(format!("node{id}")),
            log: folder.join(format!("node{id}.log")),
            running: None,
        });
        Ok(Self { binary, folder: folder.to_owned(), nodes: nodes.collect(), last_started: 0 })
    }

    /// Starts all nodes and makes a cluster of them.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        for node in 0..NODES {
            self.spawn(node)?;
        }
        for node in 0..NODES {
            self.says(node, "galoo waiting").await?;
        }
        let first = self.nodes[0].grpc.to_string();
        self.galoo(&["cluster", "init", "--addr", &first]).await?;
        for node in 0..NODES {
            self.says(node, "galoo ready").await?;
            let status = self.status(node).await?;
            self.nodes[node].id = status["node_id"].as_u64().context("a node without an id")?;
        }
        Ok(())
    }

    fn spawn(&mut self, node: usize) -> anyhow::Result<()> {
        let join = self.addresses();
        let node = &mut self.nodes[node];
        let log = File::options().create(true).append(true).open(&node.log).context("a node's log")?;
        let mut command = Command::new(&self.binary);
        command.arg("server").arg("--data-dir").arg(&node.data).args(["--join", &join]);
        command.args(["--grpc", &node.grpc.to_string(), "--pg", &node.pg.to_string()]);
        command.args(["--http", &node.http.to_string()]);
        // A group of its own: a terminal's Ctrl-C reaches the demo, and the demo ends its nodes.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true).process_group(0);
        let mut child = command.spawn().context("cannot start a node")?;
        let stdout = child.stdout.take().context("a node's output")?;
        let (sender, lines) = mpsc::channel(LINES_MAX);
        tokio::spawn(async move {
            let mut from = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = from.next_line().await {
                let _ = sender.try_send(line);
            }
        });
        node.running = Some(Running { child, lines });
        Ok(())
    }

    /// Waits until a node says a line that begins so.
    async fn says(&mut self, node: usize, begin: &str) -> anyhow::Result<()> {
        let Node { log, grpc, running, .. } = &mut self.nodes[node];
        let running = running.as_mut().with_context(|| format!("the node at {grpc} does not run"))?;
        let said = async {
            while let Some(line) = running.lines.recv().await {
                if line.starts_with(begin) {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(START_MAX, said).await != Ok(true) {
            let text = std::fs::read(log).unwrap_or_default();
            let end = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_SHOWN_BYTES_MAX)..]).into_owned();
            bail!("the node at {grpc} did not say {begin:?}; its log ends:\n{end}");
        }
        Ok(())
    }

    /// Kills a node as `kill -9` does, and returns the process that it was.
    pub(super) async fn kill(&mut self, node: usize) -> anyhow::Result<u32> {
        let mut running = self.nodes[node].running.take().context("the node does not run")?;
        let process = running.child.id().context("the node has ended by itself")?;
        running.child.kill().await.context("cannot kill a node")?;
        Ok(process)
    }

    /// Starts a killed node on its folder.
    pub(super) async fn start_again(&mut self, node: usize) -> anyhow::Result<()> {
        self.spawn(node)?;
        self.says(node, "galoo ready").await?;
        self.last_started = node;
        Ok(())
    }

    /// Ends every process that still runs.
    pub(super) async fn stop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut running) = node.running.take() {
                // One that has ended already is what is wanted.
                let _ = running.child.kill().await;
            }
        }
    }

    /// Runs this binary's command line to its end and returns what it printed.
    async fn galoo(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.context("cannot run the command line")?;
        if !output.status.success() {
            bail!("galoo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn status(&self, node: usize) -> anyhow::Result<Value> {
        let addr = self.nodes[node].grpc.to_string();
        Ok(serde_json::from_str(&self.galoo(&["status", "--json", "--addr", &addr]).await?)?)
    }

    /// The game's shards, as a node that runs sees them.
    async fn shards(&self) -> anyhow::Result<Vec<Value>> {
        let up = self.nodes.iter().position(|node| node.running.is_some()).context("no node runs")?;
        let status = self.status(up).await?;
        let shards = status["shards"].as_array().cloned().unwrap_or_default();
        let shards: Vec<_> = shards.into_iter().filter(|shard| shard["game"] == GAME).collect();
        if shards.is_empty() { bail!("the game has no shards") } else { Ok(shards) }
    }

    /// Finds the node that leads the game's first shard: its place, the shard, how many shards it leads, of how many.
    pub(super) async fn leader(&self) -> anyhow::Result<(usize, u64, usize, usize)> {
        let shards = self.shards().await?;
        let led = shards.iter().find(|shard| shard["leader"].as_u64().is_some_and(|leader| leader != 0));
        let led = led.context("no shard has a leader")?;
        let leads = shards.iter().filter(|shard| shard["leader"] == led["leader"]).count();
        let node = self.nodes.iter().position(|node| led["leader"] == node.id).context("a leader that is no node")?;
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
        let id = self.nodes[node].id;
        let mut behind = 0;
        for shard in self.shards().await? {
            let replicas = shard["replicas"].as_array().into_iter().flatten();
            let own = replicas.filter(|replica| replica["node"] == id).find_map(|replica| replica["applied"].as_u64());
            let wanted = shard["shard"].as_u64().and_then(|shard| target.get(&shard)).copied().unwrap_or(0);
            behind += wanted.saturating_sub(own.unwrap_or(0));
        }
        Ok(behind)
    }

    /// The replicas of each node, by shard.
    pub(super) async fn checksums(&self) -> anyhow::Result<Vec<BTreeMap<u64, Replica>>> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let addr = node.grpc.to_string();
            let text = self.galoo(&["checksum", "--local", "--json", "--game", GAME, "--addr", &addr]).await?;
            let shards: Vec<Value> = serde_json::from_str(&text)?;
            let replica = |shard: &Value| {
                let checksum = u64::from_str_radix(shard["checksum"].as_str()?, 16).ok()?;
                let (applied, events) = (shard["applied"].as_u64()?, shard["events"].as_u64()?);
                Some((shard["shard"].as_u64()?, Replica { applied, checksum, events }))
            };
            all.push(shards.iter().map(replica).collect::<Option<_>>().context("a checksum that cannot be read")?);
        }
        Ok(all)
    }

    /// Where all nodes speak gRPC, as `--join` and clients take it.
    pub(super) fn addresses(&self) -> String {
        self.nodes.iter().map(|node| node.grpc.to_string()).collect::<Vec<_>>().join(",")
    }

    /// A row for each node.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let process = |node: &Node| node.running.as_ref().and_then(|running| running.child.id()).unwrap_or(0);
        let row = |node: &Node| {
            let addresses = [node.grpc, node.pg, node.http].map(|address| address.to_string());
            [vec![format!("n{}", node.id)], addresses.to_vec(), vec![process(node).to_string()]].concat()
        };
        self.nodes.iter().map(row).collect()
    }

    pub(super) fn name(&self, node: usize) -> String {
        format!("n{}", self.nodes[node].id)
    }

    /// The name of the node that was started last.
    pub(super) fn last_started(&self) -> String {
        self.name(self.last_started)
    }

    /// Where the node that was started last speaks the Postgres protocol.
    pub(super) fn pg(&self) -> SocketAddr {
        self.nodes[self.last_started].pg
    }

    /// Where the node that was started last speaks gRPC.
    pub(super) fn grpc(&self) -> String {
        self.nodes[self.last_started].grpc.to_string()
    }

    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}
