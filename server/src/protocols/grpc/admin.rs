//! The admin service: games, status, checksums.

use std::sync::Arc;

use galoo_proto::{
    admin::{
        ChecksumRequest, ChecksumResponse, CreateGameRequest, CreateGameResponse, DropGameRequest, DropGameResponse,
        Game, ListGamesRequest, ListGamesResponse, ShardChecksum, StatusRequest, StatusResponse, admin_server::Admin,
    },
    meta::GameRecord,
};
use tonic::{Request, Response, Status};

use crate::node::Node;

pub(super) struct AdminService(pub(super) Arc<Node>);

fn game(record: GameRecord) -> Game {
    Game { id: record.id, name: record.name, shards: record.shards, replicas: record.replicas }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_game(&self, request: Request<CreateGameRequest>) -> Result<Response<CreateGameResponse>, Status> {
        let request = request.into_inner();
        let record = self.0.create_game(&request.name, request.shards, request.replicas).await?;
        Ok(Response::new(CreateGameResponse { game: Some(game(record)) }))
    }

    async fn list_games(&self, _: Request<ListGamesRequest>) -> Result<Response<ListGamesResponse>, Status> {
        Ok(Response::new(ListGamesResponse { games: self.0.games().into_iter().map(game).collect() }))
    }

    async fn drop_game(&self, request: Request<DropGameRequest>) -> Result<Response<DropGameResponse>, Status> {
        self.0.drop_game(&request.into_inner().name).await?;
        Ok(Response::new(DropGameResponse {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let node = self.0.clone();
        let shards = tokio::task::spawn_blocking(move || node.shard_status()).await;
        let (config, identity) = (self.0.config(), self.0.identity());
        Ok(Response::new(StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: identity.cluster_id.clone(),
            node_id: identity.node().0,
            grpc_addr: config.grpc.to_string(),
            pg_addr: config.pg.to_string(),
            http_addr: config.http.to_string(),
            games: self.0.games().into_iter().map(game).collect(),
            shards: shards.map_err(|_| Status::internal("the status could not be read"))??,
        }))
    }

    async fn checksum(&self, request: Request<ChecksumRequest>) -> Result<Response<ChecksumResponse>, Status> {
        let sums = self.0.checksums(&request.into_inner().game).await?;
        let shards = sums.into_iter().map(|(shard, sum)| ShardChecksum {
            shard: shard.0,
            applied: sum.applied,
            checksum: sum.sum,
            events: sum.events,
        });
        Ok(Response::new(ChecksumResponse { shards: shards.collect() }))
    }
}
