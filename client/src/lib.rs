//! Galoo's client library: games, events and state over gRPC.
//!
//! A [`Client`] is one HTTP/2 connection that all its calls share; clones share it too. What is safe to repeat is
//! repeated within a deadline: reads, and writes that carry a producer's number ([`Producer`]), which take effect once
//! however often they are sent. A write without one is never repeated: its outcome may be unknown, and that is an error
//! of its own.

mod error;
mod producer;

use std::{future::Future, time::Duration};

use futures::{Stream, TryStreamExt};
use galoo_proto::{
    Hlc,
    admin::{self, admin_client::AdminClient},
    command::{Mutated, Rejection},
    data::{self, data_client::DataClient, mutate_response},
    limits::GRPC_MESSAGE_BYTES_MAX,
    value::{Cell, Mutation, Precondition, StoredEvent},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

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

/// A connection to a cluster through one of its nodes.
#[derive(Clone)]
pub struct Client {
    data: DataClient<Channel>,
    admin: AdminClient<Channel>,
}

/// Calls `attempt` until it succeeds, fails for good, or the time is over.
pub(crate) async fn retrying<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let deadline = tokio::time::Instant::now() + RETRY_FOR;
    let mut delay = RETRY_DELAY;
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() && tokio::time::Instant::now() + delay < deadline => {
                tracing::debug!(%error, "trying again");
                tokio::time::sleep(delay.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            }
            done => return done,
        }
    }
}

impl Client {
    /// Connects to a node's gRPC address, such as `127.0.0.1:7400`.
    pub async fn connect(addr: &str) -> Result<Self> {
        let unreachable = |reason: String| Error::Unreachable { addr: addr.to_owned(), reason };
        let endpoint =
            Endpoint::from_shared(format!("http://{addr}")).map_err(|error| unreachable(error.to_string()))?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(5))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10));
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            unreachable(cause)
        })?;
        let data = DataClient::new(channel.clone())
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        Ok(Self { data, admin: AdminClient::new(channel) })
    }

    /// Makes a game; 0 shards or replicas stand for the defaults.
    pub async fn create_game(&self, name: &str, shards: u32, replicas: u32) -> Result<admin::Game> {
        let request = admin::CreateGameRequest { name: name.to_owned(), shards, replicas };
        let game = call(self.admin.clone().create_game(request)).await?.game;
        game.ok_or(Error::Malformed("a created game without its record"))
    }

    /// All games.
    pub async fn list_games(&self) -> Result<Vec<admin::Game>> {
        Ok(call(self.admin.clone().list_games(admin::ListGamesRequest {})).await?.games)
    }

    /// Drops a game with everything in it.
    pub async fn drop_game(&self, name: &str) -> Result<()> {
        call(self.admin.clone().drop_game(admin::DropGameRequest { name: name.to_owned() })).await.map(|_| ())
    }

    /// The node's view of itself and the cluster.
    pub async fn status(&self) -> Result<admin::StatusResponse> {
        call(self.admin.clone().status(admin::StatusRequest {})).await
    }

    /// The checksum of each shard of a game.
    pub async fn checksum(&self, game: &str) -> Result<Vec<admin::ShardChecksum>> {
        let request = admin::ChecksumRequest { game: game.to_owned() };
        Ok(call(self.admin.clone().checksum(request)).await?.shards)
    }

    /// Stores a batch once, without deduplication: it is not repeated.
    pub async fn append(&self, request: data::AppendRequest) -> Result<Stored> {
        let response = call(self.data.clone().append(request)).await?;
        producer::stored(&response)
    }

    /// Changes one player's state atomically; the inner error says why nothing was changed.
    ///
    /// Without a producer it is not repeated.
    pub async fn mutate(
        &self,
        game: &str,
        player_id: &str,
        preconditions: Vec<Precondition>,
        mutations: Vec<Mutation>,
        producer: Option<data::Producer>,
    ) -> Result<Result<Mutated, Rejection>> {
        let request = data::MutateRequest {
            game: game.to_owned(),
            producer,
            player_id: player_id.to_owned(),
            preconditions,
            mutations,
        };
        let repeatable = request.producer.is_some();
        let once = || async { call(self.data.clone().mutate(request.clone())).await };
        let response = if repeatable { retrying(once).await? } else { once().await? };
        match response.result {
            Some(mutate_response::Result::Mutated(mutated)) => Ok(Ok(mutated)),
            Some(mutate_response::Result::Rejected(rejection)) => Ok(Err(rejection)),
            None => Err(Error::Malformed("a mutation without a result")),
        }
    }

    /// Reads a player's cells; empty `family` or `qualifier` stand for all.
    pub async fn get(&self, game: &str, player_id: &str, family: &str, qualifier: &str) -> Result<Vec<Cell>> {
        let request = data::GetRequest {
            game: game.to_owned(),
            player_id: player_id.to_owned(),
            family: family.to_owned(),
            qualifier: qualifier.to_owned(),
        };
        Ok(retrying(|| async { call(self.data.clone().get(request.clone())).await }).await?.cells)
    }

    /// One player's events in order of time.
    pub async fn scan_player(
        &self,
        request: data::ScanPlayerRequest,
    ) -> Result<impl Stream<Item = Result<data::ScanResponse>> + use<>> {
        Ok(self.data.clone().scan_player(request).await?.into_inner().map_err(Error::from))
    }

    /// A game's events, shard by shard in order of seq.
    pub async fn scan_game(
        &self,
        request: data::ScanGameRequest,
    ) -> Result<impl Stream<Item = Result<data::ScanResponse>> + use<>> {
        Ok(self.data.clone().scan_game(request).await?.into_inner().map_err(Error::from))
    }

    /// Events as they are stored, in order of seq within each shard.
    pub async fn tail(
        &self,
        request: data::TailRequest,
    ) -> Result<impl Stream<Item = Result<Vec<StoredEvent>>> + use<>> {
        Ok(self.data.clone().tail(request).await?.into_inner().map_ok(|page| page.events).map_err(Error::from))
    }

    /// Makes a producer known and returns when it first was.
    pub async fn register_producer(&self, game: &str, producer_id: &str) -> Result<Hlc> {
        let request = data::RegisterProducerRequest { game: game.to_owned(), producer_id: producer_id.to_owned() };
        let registered = retrying(|| async { call(self.data.clone().register_producer(request.clone())).await });
        Ok(Hlc(registered.await?.registered_at))
    }

    /// Ids of registered producers of a group (for a file `file:NAME`).
    pub async fn list_producers(&self, game: &str, group: &str) -> Result<Vec<String>> {
        let request = data::ListProducersRequest { game: game.to_owned(), group: group.to_owned() };
        let listed = retrying(|| async { call(self.data.clone().list_producers(request.clone())).await });
        Ok(listed.await?.producer_ids)
    }
}

/// Awaits a call for a bounded time.
pub(crate) async fn call<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(response) => Ok(response?.into_inner()),
        Err(_) => {
            Err(Error::Status { code: Code::DeadlineExceeded, message: format!("no answer within {CALL_TIMEOUT:?}") })
        }
    }
}
