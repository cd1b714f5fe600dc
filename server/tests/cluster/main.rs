//! Real nodes: a cluster is formed whoever crashes meanwhile ([`forming`]), survives `kill -9` of any of its nodes under
//! load without loss or double and answers the same from every node ([`survival`]), and finds what is elsewhere: nodes
//! that move, and games that not every node holds ([`places`]).

mod forming;
mod places;
#[path = "../support/mod.rs"]
mod support;
mod survival;

use std::{
    fs,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use galoo_harness::Cluster;
use serde_json::Value;
use support::done;

/// Elections take a second or two, an import of so few lines as long.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// A short log and history and small chunks, so that a short test needs snapshots and goes through every tier.
const CONFIG: &str = "[storage]\nseal_bytes = 65536\nsegment_bytes_min = 65536\nsegment_bytes_max = 262144\n\
                      log_bytes = 1048576\nhistory_ms = 1000\n";

/// What a command line printed as JSON; the error is its exit code and what it said.
type Said = Result<Value, (Option<i32>, String)>;

/// A test's nodes, by their places from 0.
struct Nodes {
    cluster: Cluster,
    /// Last, so that it goes after the processes.
    folder: tempfile::TempDir,
}

impl Deref for Nodes {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Nodes {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

impl Nodes {
    /// Chooses folders and ports; starts nothing.
    fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = folder.path().join("galoo.toml");
        fs::write(&config, CONFIG).expect("writes");
        let arguments = ["--config", config.to_str().expect("UTF-8")];
        Self { cluster: support::cluster(folder.path(), count).with_arguments(&arguments), folder }
    }

    /// Starts nodes and makes them a cluster.
    fn formed(count: usize) -> Self {
        let mut nodes = Self::new(count);
        done(nodes.form());
        nodes
    }

    /// Starts a node, and waits for nothing.
    fn launch(&mut self, node: usize) {
        done(async { self.cluster.launch(node) });
    }

    /// Starts a node that is to join these.
    fn launch_to_join(&mut self, node: usize, join: &str) {
        done(async { self.cluster.launch_to_join(node, join) });
    }

    /// Starts all nodes as nobody's, and returns when they wait for a cluster.
    fn wait_for_cluster(&mut self) {
        (0..self.count()).for_each(|node| self.launch(node));
        let waits = |node| status(&self.grpc(node))["node_id"] == 0;
        wait_until("the nodes wait", || (0..self.count()).all(waits).then_some(()));
    }

    /// Returns when all nodes serve.
    fn all_ready(&mut self) {
        (0..self.count()).for_each(|node| done(self.ready(node)));
    }

    /// Kills a node as `kill -9` does.
    fn kill9(&mut self, node: usize) {
        done(self.kill(&[node]));
    }

    /// Starts a node that was killed, and returns when it serves.
    fn restart(&mut self, node: usize) {
        done(self.start_again(&[node]));
    }

    /// Where every node speaks gRPC.
    fn addrs(&self) -> Vec<String> {
        (0..self.count()).map(|node| self.grpc(node)).collect()
    }

    /// A node's port of the Postgres protocol.
    fn pg(&self, node: usize) -> u16 {
        self.nodes()[node].pg.port()
    }

    /// What a node wrote to its log.
    fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes()[node].log).expect("its log")
    }

    /// How many events a game has, as a node answers SQL.
    fn events(&self, node: usize, game: &str) -> Result<String, String> {
        let rows = support::psql(self.pg(node), game, "select count(*) from events")?;
        Ok(rows[0][0].clone().unwrap_or_default())
    }
}

fn wait_until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(done) = done() {
            return done;
        }
        assert!(since.elapsed() < WAIT_MAX, "never: {what}");
    }
}

/// Runs the command line.
fn galoo(arguments: &[&str]) -> Said {
    let output = support::galoo(&[arguments, &["--json"]].concat());
    if !output.status.success() {
        return Err((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn init(addr: &str) -> Said {
    galoo(&["cluster", "init", "--addr", addr])
}

fn status(addr: &str) -> Value {
    galoo(&["status", "--addr", addr]).unwrap_or_default()
}

/// Rows of a part of a status.
fn rows<'s>(status: &'s Value, part: &str) -> impl Iterator<Item = &'s Value> {
    status[part].as_array().into_iter().flatten()
}

/// The node (from 0) that leads a game's first shard.
fn leader_of(game: &str, addr: &str) -> usize {
    wait_until("the game has a leader", || {
        let status = status(addr);
        let leader = rows(&status, "shards").find(|shard| shard["game"] == game)?["leader"].as_u64()?;
        usize::try_from(leader.checked_sub(1)?).ok()
    })
}
