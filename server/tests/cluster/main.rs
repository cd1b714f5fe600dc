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
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{Launched, Server};

/// Elections take a second or two, an import of so few lines as long.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// A short log and small chunks, so that a short test needs snapshots and goes through every tier.
const CONFIG: &str =
    "[storage]\nseal_bytes = 65536\nsegment_bytes_min = 65536\nsegment_bytes_max = 262144\nlog_bytes = 1048576\n";

/// What a command line printed as JSON; the error is its exit code and what it said.
type Said = Result<Value, (Option<i32>, String)>;

/// The folders and addresses of some nodes.
struct Plan {
    folder: tempfile::TempDir,
    addrs: Vec<String>,
    config: PathBuf,
}

impl Plan {
    fn new(nodes: usize) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let config = folder.path().join("galoo.toml");
        fs::write(&config, CONFIG).expect("writes");
        Self { folder, addrs: support::free_addresses(nodes), config }
    }

    fn list(&self) -> String {
        self.addrs.join(",")
    }

    fn data(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("n{}", node + 1))
    }

    fn launch(&self, node: usize) -> Launched {
        self.launch_to_join(node, &self.list())
    }

    fn launch_to_join(&self, node: usize, join: &str) -> Launched {
        let config = self.config.to_str().expect("UTF-8");
        Server::launch(&self.data(node), &self.addrs[node], &["--join", join, "--config", config])
    }

    fn launch_all(&self) -> Vec<Launched> {
        (0..self.addrs.len()).map(|node| self.launch(node)).collect()
    }

    /// Starts the nodes and makes them a cluster.
    fn form(&self) -> Vec<Option<Server>> {
        let launched = self.launch_all();
        let formed = wait_until("the cluster forms", || init(&self.addrs[0]).ok());
        assert_eq!(formed["nodes"].as_array().map(Vec::len), Some(self.addrs.len()), "{formed}");
        launched.into_iter().map(|node| Some(node.wait())).collect()
    }

    /// What a node wrote to its log.
    fn log(&self, node: usize) -> String {
        fs::read_to_string(self.data(node).with_extension("stderr")).expect("its log")
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

/// How many events a game has, as a node answers SQL.
fn count(server: &Server, game: &str) -> Result<String, String> {
    let rows = support::psql(server.pg().port(), game, "select count(*) from events")?;
    Ok(rows[0][0].clone().unwrap_or_default())
}
