//! A cluster of real processes: the `galoo` binary, a folder, free ports and a log for each node.
//!
//! Nodes are killed as `kill -9` does, by their handles; dropping the cluster kills what still runs and removes the
//! folders, unless the thread panics: then the nodes' logs are printed first. Every wait has an end.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

/// A node that says nothing for so long after its start has failed.
const START_MAX: Duration = Duration::from_secs(120);
/// A command line that runs longer has failed.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// A node says two lines; what it says beyond these is dropped.
const LINES_MAX: usize = 16;
/// The end of a node's log that a failure prints.
const LOG_SHOWN_BYTES_MAX: usize = 16 << 10;

/// Returns the binary under test: what `GALOO_BIN` names, or the `galoo` of the folder that this test was built into.
///
/// # Errors
/// There is none: a test of nothing must not pass.
pub fn binary() -> Result<PathBuf> {
    let named = std::env::var_os("GALOO_BIN").map(PathBuf::from);
    let built = || {
        let test = std::env::current_exe().context("where this test is")?;
        // target/release/deps/NAME
        let profile = test.ancestors().nth(2).context("a test outside of a target folder")?;
        anyhow::Ok(profile.join("galoo"))
    };
    let binary = named.map_or_else(built, Ok)?;
    if !binary.is_file() {
        bail!("no galoo binary at {}: `make build` makes it, GALOO_BIN names another", binary.display());
    }
    Ok(binary)
}

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

struct Node {
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

/// Nodes of one cluster, by their place from 0.
pub struct Cluster {
    binary: PathBuf,
    config: PathBuf,
    nodes: Vec<Node>,
    /// Last, so that it goes after the processes.
    _folder: TempDir,
}

impl Cluster {
    /// Starts `count` nodes with a configuration file of this text, and makes a cluster of them.
    pub async fn start(count: usize, config: &str) -> Result<Self> {
        let (binary, folder) = (binary()?, tempfile::tempdir().context("a temporary folder")?);
        let config_file = folder.path().join("galoo.toml");
        std::fs::write(&config_file, config)?;
        // All at once, so that they differ.
        let listeners: Vec<_> = (0..3 * count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        drop(listeners);
        let node = |(place, addresses): (usize, &[SocketAddr])| Node {
            grpc: addresses[0],
            pg: addresses[1],
            http: addresses[2],
            data: folder.path().join(format!("node{place}")),
            log: folder.path().join(format!("node{place}.log")),
            running: None,
        };
        let nodes = addresses.chunks_exact(3).enumerate().map(node).collect();
        let mut cluster = Self { binary, config: config_file, nodes, _folder: folder };
        for node in 0..count {
            cluster.spawn(node)?;
        }
        for node in 0..count {
            cluster.says(node, "galoo waiting").await?;
        }
        let first = cluster.grpc(0);
        cluster.galoo(&["cluster", "init", "--addr", &first]).await?;
        for node in 0..count {
            cluster.says(node, "galoo ready").await?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, node: usize) -> Result<()> {
        let join = self.nodes.iter().map(|node| node.grpc.to_string()).collect::<Vec<_>>().join(",");
        let node = &mut self.nodes[node];
        let log = File::options().create(true).append(true).open(&node.log).context("a node's log")?;
        let mut command = Command::new(&self.binary);
        command.arg("server").arg("--data-dir").arg(&node.data).args(["--join", &join]);
        command.args(["--grpc", &node.grpc.to_string(), "--pg", &node.pg.to_string()]);
        command.args(["--http", &node.http.to_string()]).arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
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
    async fn says(&mut self, node: usize, begin: &str) -> Result<()> {
        let running = self.nodes[node].running.as_mut().with_context(|| format!("node {node} does not run"))?;
        let said = async {
            while let Some(line) = running.lines.recv().await {
                if line.starts_with(begin) {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(START_MAX, said).await {
            Ok(true) => Ok(()),
            Ok(false) => bail!("node {node} ended without saying {begin:?}"),
            Err(_) => bail!("node {node} did not say {begin:?} within {START_MAX:?}"),
        }
    }

    /// Kills nodes as `kill -9` does, all of them before the first is waited for.
    pub async fn kill(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            let running = self.nodes[*node].running.as_mut().with_context(|| format!("node {node} does not run"))?;
            if let Some(status) = running.child.try_wait()? {
                bail!("node {node} ended by itself: {status}");
            }
            running.child.start_kill().context("cannot kill a node")?;
        }
        for node in nodes {
            if let Some(mut running) = self.nodes[*node].running.take() {
                running.child.wait().await?;
            }
        }
        Ok(())
    }

    /// Starts killed nodes on their folders, and returns when all serve.
    pub async fn start_again(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.spawn(*node)?;
        }
        for node in nodes {
            self.says(*node, "galoo ready").await?;
        }
        Ok(())
    }

    /// Fails when a node ended by itself.
    pub fn all_run(&mut self) -> Result<()> {
        for (place, node) in self.nodes.iter_mut().enumerate() {
            let running = node.running.as_mut().with_context(|| format!("node {place} does not run"))?;
            if let Some(status) = running.child.try_wait()? {
                bail!("node {place} ended by itself: {status}");
            }
        }
        Ok(())
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where a node speaks gRPC.
    pub fn grpc(&self, node: usize) -> String {
        self.nodes[node].grpc.to_string()
    }

    /// Where a node speaks the Postgres protocol.
    pub fn pg(&self, node: usize) -> SocketAddr {
        self.nodes[node].pg
    }

    /// Runs the command line to its end and returns what it printed.
    pub async fn galoo(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let ended = tokio::time::timeout(COMMAND_MAX, command.output()).await;
        let output = ended.with_context(|| format!("galoo {} still runs", arguments.join(" ")))??;
        if !output.status.success() {
            bail!("galoo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A game's replicas on one node as they are, by shard.
    pub async fn replicas(&self, node: usize, game: &str) -> Result<BTreeMap<u64, Replica>> {
        let addr = self.grpc(node);
        let text = self.galoo(&["checksum", "--local", "--json", "--game", game, "--addr", &addr]).await?;
        let shards: Vec<Value> = serde_json::from_str(&text)?;
        let replica = |shard: &Value| {
            let checksum = u64::from_str_radix(shard["checksum"].as_str()?, 16).ok()?;
            let (applied, events) = (shard["applied"].as_u64()?, shard["events"].as_u64()?);
            Some((shard["shard"].as_u64()?, Replica { applied, events, checksum }))
        };
        shards.iter().map(replica).collect::<Option<_>>().with_context(|| format!("checksums {text:?}"))
    }
}

/// The end of a file.
fn tail(path: &Path) -> String {
    let written = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&written[written.len().saturating_sub(LOG_SHOWN_BYTES_MAX)..]).into_owned()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (place, node) in self.nodes.iter().enumerate() {
                eprintln!("--- the log of node {place} ends:\n{}", tail(&node.log));
            }
        }
    }
}
