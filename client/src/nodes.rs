//! The nodes of a cluster as a client knows them: one multiplexed connection a node, and a cached map of who leads what.
//!
//! The map only saves a hop: any node takes any call and hands it to the leader. So a stale map is never wrong, and a
//! node that fails is simply left for another one.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use galoo_proto::{
    ShardId, Token, TokenRange,
    admin::{TopologyRequest, TopologyResponse, admin_client::AdminClient},
    data::data_client::DataClient,
    limits::GRPC_MESSAGE_BYTES_MAX,
    shard_map::ShardRanges,
};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::{Error, Result, calls::Calls};

/// A connection that is not made in this time counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Asking for the map takes no longer; without one any node is asked.
const TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(2);
/// A map is asked for again when it is older, or at once after a failure.
const TOPOLOGY_AGE_MAX: Duration = Duration::from_secs(10);
/// A map without the game that is looked for is asked for again, but not more often.
const TOPOLOGY_AGE_MIN: Duration = Duration::from_millis(500);

/// All nodes that the client knows.
pub(crate) struct Nodes {
    /// The addresses that the caller gave.
    given: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channels: HashMap<String, Channel>,
    calls: HashMap<String, Calls>,
    map: Map,
    asked_at: Option<Instant>,
    /// Counts up when the node that it points at fails.
    turn: usize,
}

/// Where things are.
#[derive(Default)]
struct Map {
    addrs: HashMap<u64, String>,
    games: HashMap<String, Game>,
}

struct Game {
    shards: ShardRanges,
    /// A shard's leader, or else one of its voters.
    nodes: HashMap<ShardId, u64>,
}

impl Map {
    fn new(topology: TopologyResponse) -> Self {
        let addrs = topology.nodes.into_iter().map(|node| (node.id, node.addr)).collect();
        let games = topology.games.into_iter().filter_map(|game| {
            let range = |start, end| TokenRange { start, end };
            let shards = game.shards.iter().map(|shard| (range(shard.start, shard.end), ShardId(shard.shard)));
            let shards = ShardRanges::new(shards.collect())?;
            let nodes = game.shards.iter().map(|shard| {
                let leader = Some(shard.leader).filter(|leader| *leader != 0);
                (ShardId(shard.shard), leader.or_else(|| shard.voters.first().copied()).unwrap_or(0))
            });
            Some((game.name, Game { nodes: nodes.collect(), shards }))
        });
        Self { addrs, games: games.collect() }
    }

    fn addr_of(&self, game: &str, player: &str) -> Option<&String> {
        let game = self.games.get(game)?;
        let (shard, _) = game.shards.find(Token::of(player));
        self.addrs.get(game.nodes.get(&shard)?)
    }
}

fn endpoint(addr: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"));
    let endpoint = endpoint.map_err(|error| Error::Unreachable { addr: addr.to_owned(), reason: error.to_string() })?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5)))
}

impl Nodes {
    /// Connects to the first of the given addresses (separated by commas) that answers.
    pub(crate) async fn connect(addrs: &str) -> Result<Self> {
        let given: Vec<String> = addrs.split(',').map(|addr| addr.trim().to_owned()).collect();
        let mut failed = None;
        for (turn, addr) in given.iter().enumerate() {
            match endpoint(addr)?.connect().await {
                Ok(channel) => {
                    let state = State { channels: HashMap::from([(addr.clone(), channel)]), turn, ..State::default() };
                    return Ok(Self { given, state: Mutex::new(state) });
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error);
                    let reason = cause.map_or_else(|| error.to_string(), ToString::to_string);
                    failed = Some(Error::Unreachable { addr: addr.clone(), reason });
                }
            }
        }
        Err(failed.unwrap_or(Error::Malformed("an empty list of addresses")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with the connections in hand")
    }

    /// How many addresses the caller gave.
    pub(crate) fn given(&self) -> usize {
        self.given.len()
    }

    /// The given address whose turn it is.
    pub(crate) fn chosen(&self) -> String {
        self.given[self.lock().turn % self.given.len()].clone()
    }

    /// Any node: the one whose turn it is.
    pub(crate) fn any(&self) -> String {
        let state = self.lock();
        let mut known: Vec<_> = state.map.addrs.values().filter(|addr| !self.given.contains(addr)).collect();
        known.sort();
        let known: Vec<_> = self.given.iter().chain(known).collect();
        known[state.turn % known.len()].clone()
    }

    /// The node that leads a player's shard, as far as the map knows.
    pub(crate) async fn leader_of(&self, game: &str, player: &str) -> String {
        let fresh = |state: &State| {
            let age_max = if state.map.games.contains_key(game) { TOPOLOGY_AGE_MAX } else { TOPOLOGY_AGE_MIN };
            state.asked_at.is_some_and(|at| at.elapsed() < age_max)
        };
        let stale = !fresh(&self.lock());
        if stale {
            self.ask().await;
        }
        let known = self.lock().map.addr_of(game, player).cloned();
        known.unwrap_or_else(|| self.any())
    }

    /// Asks a node for the map; keeps the old one when it does not answer.
    async fn ask(&self) {
        // Before it is answered: callers that come meanwhile need not ask too.
        self.lock().asked_at = Some(Instant::now());
        let addr = self.any();
        let Ok(mut admin) = self.admin(&addr) else { return };
        match tokio::time::timeout(TOPOLOGY_TIMEOUT, admin.topology(TopologyRequest {})).await {
            Ok(Ok(topology)) => self.lock().map = Map::new(topology.into_inner()),
            Ok(Err(_)) | Err(_) => self.failed(&addr),
        }
    }

    /// Leaves a node that failed, and forgets who leads what.
    pub(crate) fn failed(&self, addr: &str) {
        let its_turn = self.any() == addr;
        let mut state = self.lock();
        state.turn += usize::from(its_turn);
        state.asked_at = None;
    }

    /// The connection to a node; it is made by the first call and made again by itself.
    fn channel(&self, addr: &str) -> Result<Channel> {
        let mut state = self.lock();
        if let Some(channel) = state.channels.get(addr) {
            return Ok(channel.clone());
        }
        let channel = endpoint(addr)?.connect_lazy();
        state.channels.insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }

    /// The stream of calls to a node; it is opened by the first call, and again when it has broken.
    pub(crate) fn calls(&self, addr: &str) -> Result<Calls> {
        if let Some(calls) = self.lock().calls.get(addr).filter(|calls| !calls.is_broken()) {
            return Ok(calls.clone());
        }
        let data = self.data(addr)?;
        Ok(self.lock().calls.entry(addr.to_owned()).insert_entry(Calls::open(data)).get().clone())
    }

    pub(crate) fn data(&self, addr: &str) -> Result<DataClient<Channel>> {
        Ok(DataClient::new(self.channel(addr)?)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX))
    }

    pub(crate) fn admin(&self, addr: &str) -> Result<AdminClient<Channel>> {
        Ok(AdminClient::new(self.channel(addr)?).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX))
    }
}
