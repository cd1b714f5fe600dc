//! A deterministic simulation of a cluster: three nodes, one thread, virtual time, all chance from a seed.
//!
//! Every node runs the shipped [`RaftLoop`](galoo_consensus::raft_loop::RaftLoop) and the real state machines
//! ([`Machine`](galoo_cluster::machine::Machine): the meta group's and the shards') over an engine in memory, driven in
//! the order in which the server drives them. Clients make games through the meta group; nodes open the shards that its
//! state gives them, and find a player's with the real [`Router`](galoo_cluster::router::Router).
//! The seed loses, delays, doubles and reorders messages, cuts nodes off, crashes them (memory is lost, the engine falls
//! back to its last flush, the log keeps what was written), lets them sleep, cuts the log close so that followers need
//! snapshots, and lets apply lag. Clients append and increment with producer numbers, repeat what has no answer, and
//! read linearizably. The [`oracle`] knows only what clients sent and were told, and what was applied where. At the end
//! all faults stop, and all replicas must come to the same content: every game that was made is there once with its
//! shards, and every player's data is in the shard that owns it, and in no other.
//!
//! A [`Bug`] is put into the simulator's wrappers to prove that the oracle sees it.

mod chance;
mod clients;
mod drive;
mod network;
mod node;
mod oracle;
mod pull;

use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::Xxh3;

use self::{chance::Chance, clients::Client, network::Network, node::Node, oracle::Oracle};

/// Nodes, numbered from 1.
const NODES: u64 = 3;
const CLIENTS: u64 = 3;
/// Steps with faults; a step is ten milliseconds of virtual time.
const STEPS: u64 = 4_000;
/// Steps without faults in which everything must come to rest.
const STEPS_TO_HEAL_MAX: u64 = 6_000;
const STEP_MS: u64 = 10;

/// A deliberate mistake, to see whether the oracle finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// The log acknowledges a write before it is durable: a crash loses the last one.
    LogForgetsLastWrite,
    /// The state machine does not know that a batch was stored before.
    BatchIsAppliedAgain,
    /// A node that believes it leads answers reads without asking the others.
    ReadWithoutAsking,
    /// A snapshot leaves out who has written what.
    SnapshotWithoutProducers,
    /// One node skips the effect of some commands.
    CommandIsSkipped,
    /// One node skips the effect of some commands of the meta group.
    MetaCommandIsSkipped,
    /// A game's first shard is asked for every player, and no shard looks whether it owns one.
    FirstShardTakesAll,
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A hash over all that happened, in order.
    pub trace: u64,
    /// Commands acknowledged to clients.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Games that were made.
    pub games: u64,
    /// Terms of groups that had a leader.
    pub terms: u64,
    /// Snapshots that were installed.
    pub snapshots: u64,
    /// States that were replaced by another node's, as if they were damaged.
    pub rebuilds: u64,
    /// Nodes that crashed.
    pub crashes: u64,
}

/// A promise that was broken, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What happens, as it happens: hashed for the comparison of two runs, and counted.
#[derive(Default)]
struct Trace {
    hash: Xxh3,
    report: Report,
    verbose: bool,
}

impl Trace {
    fn note(&mut self, at: u64, what: impl Hash + std::fmt::Debug) {
        if self.verbose {
            eprintln!("{at:>8} {what:?}");
        }
        (at, what).hash(&mut self.hash);
    }
}

struct World {
    chance: Chance,
    now: u64,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    network: Network,
    oracle: Oracle,
    trace: Trace,
    bug: Bug,
    faults: bool,
    /// A node crashes, and another falls asleep, once in so many steps.
    hardship: u64,
}

/// Runs one seed. `GALOO_SIM_VERBOSE` in the environment prints what happens.
///
/// # Errors
/// The promise that was broken.
///
/// # Panics
/// When an assertion of the product fails.
pub fn run(seed: u64, bug: Bug) -> Result<Report, Violation> {
    let mut chance = Chance::new(seed);
    let folder = tempfile::tempdir().map_err(|error| Violation(format!("no folder: {error}")))?;
    let nodes = (1..=NODES).map(|node| Node::new(node, chance.next(), folder.path(), bug)).collect();
    let clients = (0..CLIENTS).map(Client::new).collect();
    let network = Network::new(&mut chance);
    let trace = Trace { verbose: std::env::var_os("GALOO_SIM_VERBOSE").is_some(), ..Trace::default() };
    let hardship = 500 + chance.below(3_500);
    let oracle = Oracle::default();
    let mut world = World { chance, now: 0, nodes, clients, network, oracle, trace, bug, faults: true, hardship };
    for _ in 0..STEPS {
        world.step()?;
    }
    world.heal()?;
    world.trace.report.trace = world.trace.hash.finish();
    Ok(world.trace.report)
}

impl World {
    fn step(&mut self) -> Result<(), Violation> {
        self.now += STEP_MS;
        if self.faults {
            self.make_faults();
        }
        self.deliver()?;
        self.clients_act();
        for node in 0..self.nodes.len() {
            if self.nodes[node].runs(self.now) {
                self.drive(node)?;
            }
        }
        Ok(())
    }

    fn make_faults(&mut self) {
        let now = self.now;
        self.network.weather(now, &mut self.chance);
        for place in 0..self.nodes.len() {
            if !self.nodes[place].is_up() {
                if self.chance.one_in(150) {
                    self.trace.note(now, ("start", place));
                    self.nodes[place].start();
                }
            } else if self.chance.one_in(self.hardship) {
                self.crash(place);
            } else if self.chance.one_in(self.hardship) {
                let until = now + self.chance.below(4_000);
                self.trace.note(now, ("pause", place, until));
                self.nodes[place].pause(until);
            }
        }
        if self.chance.one_in(5 * self.hardship) {
            (0..self.nodes.len()).for_each(|place| self.crash(place));
        }
    }

    fn crash(&mut self, place: usize) {
        self.trace.note(self.now, ("crash", place));
        self.trace.report.crashes += u64::from(self.nodes[place].is_up());
        self.nodes[place].crash();
    }

    /// Ends all faults and waits until every client has its answer and all replicas hold the same.
    fn heal(&mut self) -> Result<(), Violation> {
        self.faults = false;
        self.network.calm();
        for node in &mut self.nodes {
            node.pause(0);
            if !node.is_up() {
                node.start();
            }
        }
        self.clients.iter_mut().for_each(Client::finish);
        for _ in 0..STEPS_TO_HEAL_MAX {
            self.step()?;
            let applied: Vec<_> = self.nodes.iter().map(Node::applied).collect();
            let same = applied.iter().all(|groups| *groups == applied[0]);
            if same && self.clients.iter().all(Client::is_done) && self.nodes.iter().all(Node::is_idle) {
                return self.compare();
            }
        }
        let nodes: Vec<String> = self.nodes.iter().map(Node::describe).collect();
        let waiting = self.clients.iter().filter(|client| !client.is_done()).count();
        Err(Violation(format!("the cluster does not come to rest: {waiting} clients wait, {}", nodes.join("; "))))
    }

    fn compare(&mut self) -> Result<(), Violation> {
        let (mut sums, mut metas) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            sums.push(node.checksums().map_err(|error| Violation(format!("P5: a checksum cannot be read: {error}")))?);
            metas.push(node.meta()?);
        }
        for of_node in &sums {
            self.trace.note(self.now, of_node.iter().map(|(group, sum)| (group.0, sum.sum)).collect::<Vec<_>>());
        }
        if sums.iter().any(|sum| *sum != sums[0]) {
            return Err(Violation(format!("P5: replicas differ: {sums:?}")));
        }
        if metas.iter().any(|meta| *meta != metas[0]) {
            return Err(Violation(format!("P5: replicas of the meta group differ: {metas:?}")));
        }
        self.trace.report.terms = self.oracle.terms();
        self.trace.report.games = metas[0].games().count() as u64;
        self.oracle.final_meta(&metas[0])?;
        self.oracle.final_state(&metas[0], &self.nodes[0])
    }
}
