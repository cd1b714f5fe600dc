//! The admin service: games, status, checksums.

use std::sync::Arc;

use galoo_proto::{
    admin::{
        AlterGameRequest, AlterGameResponse, ChecksumRequest, ChecksumResponse, CompactRequest, CompactResponse,
        CreateGameRequest, CreateGameResponse, DeclarePropertyRequest, DeclarePropertyResponse, DefineFamilyRequest,
        DefineFamilyResponse, DropFamilyRequest, DropFamilyResponse, DropGameRequest, DropGameResponse,
        ForgetPlayerRequest, ForgetPlayerResponse, Game, InitClusterRequest, InitClusterResponse, ListErasuresRequest,
        ListErasuresResponse, ListFamiliesRequest, ListFamiliesResponse, ListGamesRequest, ListGamesResponse,
        ListPropertiesRequest, ListPropertiesResponse, ListRollupsRequest, ListRollupsResponse, ShardChecksum,
        StatusRequest, StatusResponse, TopologyRequest, TopologyResponse, VerifyRollupRequest, VerifyRollupResponse,
        admin_server::Admin,
    },
    meta::{AlterGame, GameRecord},
};
use tonic::{Request, Response, Status};

use crate::{config::Config, door::Door, transport::is_handed_on};

/// How long a call that makes a cluster waits for the asked node to serve.
const START_WAIT: std::time::Duration = std::time::Duration::from_secs(15);

pub(super) struct AdminService(pub(super) Arc<Door>);

fn game(record: GameRecord) -> Game {
    let GameRecord { id, name, shards, replicas, events_retention_ms, event_id_window_ms } = record;
    Game { id, name, shards, replicas, events_retention_ms, event_id_window_ms }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_game(&self, request: Request<CreateGameRequest>) -> Result<Response<CreateGameResponse>, Status> {
        let request = request.into_inner();
        let record = self.0.node()?.create_game(&request.name, request.shards, request.replicas).await?;
        Ok(Response::new(CreateGameResponse { game: Some(game(record)) }))
    }

    async fn alter_game(&self, request: Request<AlterGameRequest>) -> Result<Response<AlterGameResponse>, Status> {
        let AlterGameRequest { name, events_retention_ms, event_id_window_ms } = request.into_inner();
        let alter = AlterGame { name, events_retention_ms, event_id_window_ms };
        let record = self.0.node()?.alter_game(alter).await?;
        Ok(Response::new(AlterGameResponse { game: Some(game(record)) }))
    }

    async fn forget_player(
        &self,
        request: Request<ForgetPlayerRequest>,
    ) -> Result<Response<ForgetPlayerResponse>, Status> {
        let ForgetPlayerRequest { game, player_id } = request.into_inner();
        Ok(Response::new(self.0.node()?.forget_player(&game, &player_id).await?))
    }

    async fn list_erasures(
        &self,
        request: Request<ListErasuresRequest>,
    ) -> Result<Response<ListErasuresResponse>, Status> {
        Ok(Response::new(self.0.node()?.erasures(&request.into_inner().game).await?))
    }

    async fn list_rollups(
        &self,
        request: Request<ListRollupsRequest>,
    ) -> Result<Response<ListRollupsResponse>, Status> {
        Ok(Response::new(self.0.node()?.rollups(&request.into_inner().game).await?))
    }

    async fn verify_rollup(
        &self,
        request: Request<VerifyRollupRequest>,
    ) -> Result<Response<VerifyRollupResponse>, Status> {
        Ok(Response::new(self.0.node()?.verify_rollup(&request.into_inner()).await?))
    }

    async fn list_games(&self, _: Request<ListGamesRequest>) -> Result<Response<ListGamesResponse>, Status> {
        Ok(Response::new(ListGamesResponse { games: self.0.node()?.games().into_iter().map(game).collect() }))
    }

    async fn drop_game(&self, request: Request<DropGameRequest>) -> Result<Response<DropGameResponse>, Status> {
        self.0.node()?.drop_game(&request.into_inner().name).await?;
        Ok(Response::new(DropGameResponse {}))
    }

    async fn declare_property(
        &self,
        request: Request<DeclarePropertyRequest>,
    ) -> Result<Response<DeclarePropertyResponse>, Status> {
        let DeclarePropertyRequest { game, property } = request.into_inner();
        self.0.node()?.declare_property(&game, property.unwrap_or_default()).await?;
        Ok(Response::new(DeclarePropertyResponse {}))
    }

    async fn list_properties(
        &self,
        request: Request<ListPropertiesRequest>,
    ) -> Result<Response<ListPropertiesResponse>, Status> {
        Ok(Response::new(self.0.node()?.properties(&request.into_inner().game).await?))
    }

    async fn define_family(
        &self,
        request: Request<DefineFamilyRequest>,
    ) -> Result<Response<DefineFamilyResponse>, Status> {
        let DefineFamilyRequest { game, family } = request.into_inner();
        let family = self.0.node()?.define_family(&game, family.unwrap_or_default()).await?;
        Ok(Response::new(DefineFamilyResponse { family: Some(family) }))
    }

    async fn list_families(
        &self,
        request: Request<ListFamiliesRequest>,
    ) -> Result<Response<ListFamiliesResponse>, Status> {
        let families = self.0.node()?.families(&request.into_inner().game).await?;
        Ok(Response::new(ListFamiliesResponse { families }))
    }

    async fn drop_family(&self, request: Request<DropFamilyRequest>) -> Result<Response<DropFamilyResponse>, Status> {
        let DropFamilyRequest { game, name } = request.into_inner();
        self.0.node()?.drop_family(&game, &name).await?;
        Ok(Response::new(DropFamilyResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let Config { grpc, pg, http, .. } = self.0.config();
        let identity = self.0.identity();
        let mut status = StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: identity.as_ref().map(|identity| identity.cluster_id.clone()).unwrap_or_default(),
            node_id: identity.map_or(0, |identity| identity.node().0),
            grpc_addr: grpc.to_string(),
            pg_addr: pg.to_string(),
            http_addr: http.to_string(),
            ..Default::default()
        };
        // A node that waits for its cluster has no more to tell.
        if self.0.begun().is_some() {
            let node = self.0.starting_node()?.clone();
            let damaged = node.damaged();
            status.damaged = damaged.iter().map(|(shard, one)| format!("{shard}: {}", one.error)).collect();
            status.games = node.games().into_iter().map(game).collect();
            let local = node.clone();
            let shards = tokio::task::spawn_blocking(move || local.shard_status()).await;
            status.shards = shards.map_err(|_| Status::internal("the status could not be read"))??;
            if !request.get_ref().local && !is_handed_on(request.metadata()) {
                node.complete_status(&mut status).await;
            }
        }
        Ok(Response::new(status))
    }

    async fn init_cluster(&self, _: Request<InitClusterRequest>) -> Result<Response<InitClusterResponse>, Status> {
        let formed = self.0.init_cluster().await?;
        // The nodes start now. Whoever made the cluster wants to use it next; a node that is slow starts all the same.
        let mut serving = self.0.serving();
        let _ = tokio::time::timeout(START_WAIT, serving.wait_for(|serving| *serving)).await;
        Ok(Response::new(formed))
    }

    async fn topology(&self, _: Request<TopologyRequest>) -> Result<Response<TopologyResponse>, Status> {
        Ok(Response::new(self.0.node()?.topology()))
    }

    async fn compact(&self, request: Request<CompactRequest>) -> Result<Response<CompactResponse>, Status> {
        let CompactRequest { game, begin } = request.into_inner();
        let node = self.0.node()?;
        if begin {
            node.begin_compacting(&game).await?;
        }
        Ok(Response::new(node.compacting(&game).await?))
    }

    async fn checksum(&self, request: Request<ChecksumRequest>) -> Result<Response<ChecksumResponse>, Status> {
        let ChecksumRequest { game, local } = request.into_inner();
        let node = self.0.node()?;
        let sums = if local { node.local_checksums(&game).await? } else { node.checksums(&game).await? };
        let shards = sums.into_iter().map(|(shard, sum)| ShardChecksum {
            shard: shard.0,
            applied: sum.applied,
            checksum: sum.sum,
            events: sum.events,
        });
        Ok(Response::new(ChecksumResponse { shards: shards.collect() }))
    }
}
