//! Galoo's client library: games, events and state over gRPC.
//!
//! A [`Client`] keeps one HTTP/2 connection a node that all its calls share, and appends, changes and reads of state share
//! one stream of it, so that those that wait together travel together; clones share them too. It asks the node that
//! leads a player's shard, as far as it knows, and any other when that one fails: every node hands a call on. What is
//! safe to repeat is repeated within a deadline: reads, and writes that carry a producer's number ([`Producer`]), which
//! take effect once however often they are sent. A write without one is repeated only when it was surely not done;
//! otherwise its outcome is unknown, and that is an error of its own.

mod calls;
mod error;
mod nodes;
mod producer;

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, TryStreamExt};
use galoo_proto::{
    Hlc,
    admin::{self, admin_client::AdminClient},
    command::{Mutated, Rejection},
    data::{self, call, call_answer, data_client::DataClient, mutate_response},
    value::{Cell, FamilyDefinition, PropertyDefinition, StoredEvent},
};
use tonic::{Code, Response, Status, transport::Channel};

use self::nodes::Nodes;
pub use self::{
    error::{Error, Result},
    producer::{Answer, AppendStream, Producer, Stored},
};

/// A call that is not answered after this is given up or repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What may be repeated is repeated for this long.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// Delay before the first repetition; it doubles up to [`RETRY_DELAY_MAX`], each time with up to half of it at random.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Longest delay between two repetitions.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// Connections to a cluster's nodes.
#[derive(Clone)]
pub struct Client {
    nodes: Arc<Nodes>,
}

/// Whom a call is for.
#[derive(Clone, Copy)]
pub(crate) enum To<'a> {
    /// Any node.
    Anyone,
    /// The node that leads a player's shard.
    LeaderOf { game: &'a str, player: &'a str },
}

/// When a call that failed is made again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It takes effect once however often it is made.
    Always,
    /// Only when it surely had no effect.
    IfNotDone,
}

impl Repeat {
    fn allows(self, error: &Error) -> bool {
        match self {
            Self::Always => error.is_retryable(),
            Self::IfNotDone => error.is_surely_not_done(),
        }
    }
}

/// Delays between repetitions: they double, each with up to half of it at random, until the time is over.
pub(crate) struct Backoff {
    deadline: tokio::time::Instant,
    delay: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { deadline: tokio::time::Instant::now() + RETRY_FOR, delay: RETRY_DELAY }
    }

    /// Waits before the next repetition; false when the time is over.
    pub(crate) async fn wait(&mut self) -> bool {
        if tokio::time::Instant::now() + self.delay >= self.deadline {
            return false;
        }
        tokio::time::sleep(self.delay.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
        self.delay = (self.delay * 2).min(RETRY_DELAY_MAX);
        true
    }
}

impl Client {
    /// Connects to a cluster through the gRPC addresses of one or some of its nodes, such as
    /// `127.0.0.1:7400,127.0.0.1:7410`: the first that answers is enough.
    pub async fn connect(addrs: &str) -> Result<Self> {
        Ok(Self { nodes: Arc::new(Nodes::connect(addrs).await?) })
    }

    /// Tries one node after the other until it succeeds, fails for good, or the time is over.
    async fn at<T, F: Future<Output = Result<T>>>(
        &self,
        to: To<'_>,
        repeat: Repeat,
        call: impl Fn(String) -> F,
    ) -> Result<T> {
        let mut backoff = Backoff::new();
        for attempt in 0.. {
            let addr = match to {
                To::LeaderOf { game, player } if attempt == 0 => self.nodes.leader_of(game, player).await,
                To::LeaderOf { .. } | To::Anyone => self.nodes.any(),
            };
            match call(addr.clone()).await {
                Err(error) if error.is_of_connection() || repeat.allows(&error) => {
                    tracing::debug!(%error, addr, "failed");
                    self.nodes.failed(&addr);
                    if !repeat.allows(&error) || !backoff.wait().await {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
        Err(Error::StreamEnded)
    }

    /// Makes a call of a node's stream of calls.
    async fn call(&self, addr: &str, request: call::Request) -> Result<call_answer::Result> {
        within_timeout(self.nodes.calls(addr)?.call(request)).await
    }

    /// Asks the data service the same until it answers, as [`Client::at`] does.
    async fn ask<R: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        to: To<'_>,
        repeat: Repeat,
        request: &R,
        ask: impl Fn(DataClient<Channel>, R) -> F,
    ) -> Result<T> {
        self.at(to, repeat, |addr| {
            let asked = self.nodes.data(&addr).map(|data| ask(data, request.clone()));
            async move { call(asked?).await }
        })
        .await
    }

    /// Asks the admin service of the first given node that can be reached.
    async fn admin<R: Clone, T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        request: &R,
        ask: impl Fn(AdminClient<Channel>, R) -> F,
    ) -> Result<T> {
        let mut tries = self.nodes.given();
        loop {
            let addr = self.nodes.chosen();
            tries -= 1;
            let admin = self.nodes.admin(&addr)?;
            match call(ask(admin, request.clone())).await {
                Err(error) if tries > 0 && error.is_surely_not_done() => self.nodes.failed(&addr),
                done => return done,
            }
        }
    }

    /// Makes a game; 0 shards or replicas stand for the defaults.
    pub async fn create_game(&self, name: &str, shards: u32, replicas: u32) -> Result<admin::Game> {
        let request = admin::CreateGameRequest { name: name.to_owned(), shards, replicas };
        let game =
            self.admin(&request, |mut admin, request| async move { admin.create_game(request).await }).await?.game;
        game.ok_or(Error::Malformed("a created game without its record"))
    }

    /// All games.
    pub async fn list_games(&self) -> Result<Vec<admin::Game>> {
        Ok(self
            .admin(&admin::ListGamesRequest {}, |mut admin, request| async move { admin.list_games(request).await })
            .await?
            .games)
    }

    /// Changes how a game is kept; what the request leaves out stays as it is.
    pub async fn alter_game(&self, request: admin::AlterGameRequest) -> Result<admin::Game> {
        let game =
            self.admin(&request, |mut admin, request| async move { admin.alter_game(request).await }).await?.game;
        game.ok_or(Error::Malformed("an altered game without its record"))
    }

    /// Drops a game with everything in it.
    pub async fn drop_game(&self, name: &str) -> Result<()> {
        let request = admin::DropGameRequest { name: name.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.drop_game(request).await }).await.map(|_| ())
    }

    /// Forgets a player of a game: returns what became of everything that was there.
    pub async fn forget_player(&self, game: &str, player_id: &str) -> Result<admin::ForgetPlayerResponse> {
        let request = admin::ForgetPlayerRequest { game: game.to_owned(), player_id: player_id.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.forget_player(request).await }).await
    }

    /// Forgotten players of whom a node's replicas of a game may still hold events.
    pub async fn list_erasures(&self, game: &str) -> Result<admin::ListErasuresResponse> {
        let request = admin::ListErasuresRequest { game: game.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.list_erasures(request).await }).await
    }

    /// A game's rollups, and how far a node's replicas have covered each.
    pub async fn list_rollups(&self, game: &str) -> Result<admin::ListRollupsResponse> {
        let request = admin::ListRollupsRequest { game: game.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.list_rollups(request).await }).await
    }

    /// Compares a rollup's table with what the events give; all events of its time are read.
    pub async fn verify_rollup(&self, request: admin::VerifyRollupRequest) -> Result<admin::VerifyRollupResponse> {
        self.admin(&request, |mut admin, request| async move { admin.verify_rollup(request).await }).await
    }

    /// Declares what a property's values are meant to be; of kind ANY: takes that back.
    pub async fn declare_property(&self, game: &str, property: PropertyDefinition) -> Result<()> {
        let request = admin::DeclarePropertyRequest { game: game.to_owned(), property: Some(property) };
        self.admin(&request, |mut admin, request| async move { admin.declare_property(request).await })
            .await
            .map(|_| ())
    }

    /// The properties of a game's events, with how many values each has of each kind.
    pub async fn list_properties(&self, game: &str) -> Result<admin::ListPropertiesResponse> {
        let request = admin::ListPropertiesRequest { game: game.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.list_properties(request).await }).await
    }

    /// Declares a family of a game's cells, or declares it anew.
    pub async fn define_family(&self, game: &str, family: FamilyDefinition) -> Result<FamilyDefinition> {
        let request = admin::DefineFamilyRequest { game: game.to_owned(), family: Some(family) };
        let family =
            self.admin(&request, |mut admin, request| async move { admin.define_family(request).await }).await?.family;
        family.ok_or(Error::Malformed("a declared family without its definition"))
    }

    /// A game's declared families, by name.
    pub async fn list_families(&self, game: &str) -> Result<Vec<FamilyDefinition>> {
        let request = admin::ListFamiliesRequest { game: game.to_owned() };
        Ok(self.admin(&request, |mut admin, request| async move { admin.list_families(request).await }).await?.families)
    }

    /// Takes a family's declaration back; its cells stay.
    pub async fn drop_family(&self, game: &str, name: &str) -> Result<()> {
        let request = admin::DropFamilyRequest { game: game.to_owned(), name: name.to_owned() };
        self.admin(&request, |mut admin, request| async move { admin.drop_family(request).await }).await.map(|_| ())
    }

    /// The given node's view of itself and the cluster.
    pub async fn status(&self) -> Result<admin::StatusResponse> {
        self.admin(
            &admin::StatusRequest { local: false },
            |mut admin, request| async move { admin.status(request).await },
        )
        .await
    }

    /// The checksum of each shard of a game.
    pub async fn checksum(&self, game: &str) -> Result<Vec<admin::ShardChecksum>> {
        let request = admin::ChecksumRequest { game: game.to_owned(), local: false };
        Ok(self.admin(&request, |mut admin, request| async move { admin.checksum(request).await }).await?.shards)
    }

    /// The checksums of the given node's replicas of a game as they are, each at its own applied index.
    pub async fn local_checksum(&self, game: &str) -> Result<Vec<admin::ShardChecksum>> {
        let request = admin::ChecksumRequest { game: game.to_owned(), local: true };
        Ok(self.admin(&request, |mut admin, request| async move { admin.checksum(request).await }).await?.shards)
    }

    /// Compacts the given node's replicas of a game, or tells how far that is.
    pub async fn compact(&self, game: &str, begin: bool) -> Result<admin::CompactResponse> {
        let request = admin::CompactRequest { game: game.to_owned(), begin };
        self.admin(&request, |mut admin, request| async move { admin.compact(request).await }).await
    }

    /// Where nodes, games and shards are.
    pub async fn topology(&self) -> Result<admin::TopologyResponse> {
        self.admin(&admin::TopologyRequest {}, |mut admin, request| async move { admin.topology(request).await }).await
    }

    /// Makes a cluster of the nodes that the given one was started to join, or finds it made.
    pub async fn init_cluster(&self) -> Result<admin::InitClusterResponse> {
        self.admin(&admin::InitClusterRequest {}, |mut admin, request| async move { admin.init_cluster(request).await })
            .await
    }

    /// Stores a batch once, without deduplication: it is repeated only while nothing of it was stored for sure.
    pub async fn append(&self, request: data::AppendRequest) -> Result<Stored> {
        let repeat = if request.producer.is_some() { Repeat::Always } else { Repeat::IfNotDone };
        // A part that failed is no reason to store the others again.
        producer::stored(&self.append_batch(&request, repeat).await?)
    }

    /// Sends a batch until it is answered; with every part refused for the moment, nothing is stored. One that may be
    /// repeated is, until every part of it is decided.
    pub(crate) async fn append_batch(
        &self,
        request: &data::AppendRequest,
        repeat: Repeat,
    ) -> Result<data::AppendResponse> {
        // The node that leads the first event's shard hands the other shards' parts on.
        let player = request.events.first().map(|event| event.player_id.as_str());
        let to = player.map_or(To::Anyone, |player| To::LeaderOf { game: &request.game, player });
        let once = |addr: String| async move {
            match self.call(&addr, call::Request::Append(request.clone())).await? {
                call_answer::Result::Append(response) => producer::decided(response, repeat),
                _ => Err(Error::Malformed("another answer than to an append")),
            }
        };
        self.at(to, repeat, once).await
    }

    /// Changes one player's state atomically, and stores the events with it; the inner error says why nothing was changed.
    ///
    /// Without a producer it is repeated only when it was surely not done.
    pub async fn mutate(&self, request: data::MutateRequest) -> Result<Result<Mutated, Rejection>> {
        let repeat = if request.producer.is_some() { Repeat::Always } else { Repeat::IfNotDone };
        let to = To::LeaderOf { game: &request.game, player: &request.player_id };
        let request = &request;
        let once = |addr: String| async move {
            match self.call(&addr, call::Request::Mutate(request.clone())).await? {
                call_answer::Result::Mutate(response) => Ok(response.result),
                _ => Err(Error::Malformed("another answer than to a change")),
            }
        };
        match self.at(to, repeat, once).await? {
            Some(mutate_response::Result::Mutated(mutated)) => Ok(Ok(mutated)),
            Some(mutate_response::Result::Rejected(rejection)) => Ok(Err(rejection)),
            None => Err(Error::Malformed("a mutation without a result")),
        }
    }

    /// Reads the selected cells of a player, linearizable.
    pub async fn get(&self, request: data::GetRequest) -> Result<Vec<Cell>> {
        let to = To::LeaderOf { game: &request.game, player: &request.player_id };
        let request = &request;
        let once = |addr: String| async move {
            match self.call(&addr, call::Request::Get(request.clone())).await? {
                call_answer::Result::Get(response) => Ok(response.cells),
                _ => Err(Error::Malformed("another answer than to a read")),
            }
        };
        self.at(to, Repeat::Always, once).await
    }

    /// Reads the same of many players, in their order; linearizable for each of them.
    pub async fn get_many(&self, request: data::GetManyRequest) -> Result<Vec<data::PlayerCells>> {
        let ask = |mut data: DataClient<Channel>, request| async move { data.get_many(request).await };
        Ok(self.ask(To::Anyone, Repeat::Always, &request, ask).await?.players)
    }

    /// One player's events in order of time.
    pub async fn scan_player(
        &self,
        request: data::ScanPlayerRequest,
    ) -> Result<impl Stream<Item = Result<data::ScanResponse>> + use<>> {
        let ask = |mut data: DataClient<Channel>, request| async move { data.scan_player(request).await };
        let to = To::LeaderOf { game: &request.game, player: &request.player_id };
        Ok(self.ask(to, Repeat::Always, &request, ask).await?.map_err(Error::from))
    }

    /// Everything that is known of one player: cells with all values that are listed, then events in order of time.
    pub async fn export_player(
        &self,
        request: data::ExportPlayerRequest,
    ) -> Result<impl Stream<Item = Result<data::ScanResponse>> + use<>> {
        let ask = |mut data: DataClient<Channel>, request| async move { data.export_player(request).await };
        let to = To::LeaderOf { game: &request.game, player: &request.player_id };
        Ok(self.ask(to, Repeat::Always, &request, ask).await?.map_err(Error::from))
    }

    /// A game's events, shard by shard in order of seq.
    pub async fn scan_game(
        &self,
        request: data::ScanGameRequest,
    ) -> Result<impl Stream<Item = Result<data::ScanResponse>> + use<>> {
        let ask = |mut data: DataClient<Channel>, request| async move { data.scan_game(request).await };
        Ok(self.ask(To::Anyone, Repeat::Always, &request, ask).await?.map_err(Error::from))
    }

    /// Events as they are stored, in order of seq within each shard.
    pub async fn tail(
        &self,
        request: data::TailRequest,
    ) -> Result<impl Stream<Item = Result<Vec<StoredEvent>>> + use<>> {
        let ask = |mut data: DataClient<Channel>, request| async move { data.tail(request).await };
        Ok(self.ask(To::Anyone, Repeat::Always, &request, ask).await?.map_ok(|page| page.events).map_err(Error::from))
    }

    /// Makes a producer known and returns when it first was.
    pub async fn register_producer(&self, game: &str, producer_id: &str) -> Result<Hlc> {
        let request = data::RegisterProducerRequest { game: game.to_owned(), producer_id: producer_id.to_owned() };
        let ask = |mut data: DataClient<Channel>, request| async move { data.register_producer(request).await };
        Ok(Hlc(self.ask(To::Anyone, Repeat::Always, &request, ask).await?.registered_at))
    }

    /// Ids of registered producers of a group (for a file `file:NAME`).
    pub async fn list_producers(&self, game: &str, group: &str) -> Result<Vec<String>> {
        let request = data::ListProducersRequest { game: game.to_owned(), group: group.to_owned() };
        let ask = |mut data: DataClient<Channel>, request| async move { data.list_producers(request).await };
        Ok(self.ask(To::Anyone, Repeat::Always, &request, ask).await?.producer_ids)
    }
}

/// Awaits a call for a bounded time.
pub(crate) async fn call<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    within_timeout(async { Ok(call.await?.into_inner()) }).await
}

async fn within_timeout<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::Status { code: Code::DeadlineExceeded, message: format!("no answer within {CALL_TIMEOUT:?}") };
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err(late()))
}
