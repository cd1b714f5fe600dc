//! The peer service: what other nodes ask of this one.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use galoo_consensus::{GroupId, wire};
use galoo_proto::peer::{
    FreezeStateRequest, FreezeStateResponse, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, NotDone,
    ProposeRequest, ProposeResponse, PullSnapshotRequest, PullSnapshotResponse, ReadIndexRequest, ReadIndexResponse,
    not_done::Reason, peer_server::Peer, propose_response, read_index_response,
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    disk::DiskFull,
    door::{Door, FormError},
    driver::DriveError,
    memory::MemtablesFull,
    node::Node,
    room::NoRoom,
    transport,
};

pub(super) struct PeerService(pub(super) Arc<Door>);

/// Commands of one stream that are proposed and not answered yet; further ones wait in the network's window.
const FORWARDED_MAX: usize = 4_096;

fn not_done(error: DriveError) -> NotDone {
    let because = |reason: Reason| NotDone { reason: reason.into(), ..Default::default() };
    match error {
        DriveError::NotLeader { leader } => NotDone { leader, ..because(Reason::NotLeader) },
        DriveError::NotReady(_) => because(Reason::NotReady),
        DriveError::NoRoom(NoRoom::Disk(DiskFull { free_bytes, reserve_bytes })) => {
            NotDone { free_bytes, reserve_bytes, ..because(Reason::DiskFull) }
        }
        DriveError::NoRoom(NoRoom::Memtables(MemtablesFull { bytes, bytes_max })) => {
            NotDone { memtable_bytes: bytes, memtable_bytes_max: bytes_max, ..because(Reason::MemtablesFull) }
        }
        DriveError::OutcomeUnknown => because(Reason::OutcomeUnknown),
    }
}

impl From<FormError> for Status {
    fn from(error: FormError) -> Self {
        let message = error.to_string();
        match error {
            FormError::Unreachable { .. } => Self::unavailable(message),
            FormError::Failed(_) => Self::internal(message),
            FormError::Alone(_)
            | FormError::NotAmong(_)
            | FormError::OtherCluster { .. }
            | FormError::OtherNodes { .. }
            | FormError::OtherNumber { .. }
            | FormError::LostData { .. }
            | FormError::Refused { .. } => Self::failed_precondition(message),
        }
    }
}

impl PeerService {
    /// The node, once the call is known to come from a node of its cluster.
    fn checked(&self, metadata: &MetadataMap) -> Result<&Arc<Node>, Status> {
        Ok(self.0.checked(&transport::caller(metadata)?)?.0)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(self.0.who()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.0.join(request.into_inner()).await?;
        Ok(Response::new(JoinResponse {}))
    }

    type ProposeStream = Pin<Box<dyn Stream<Item = Result<ProposeResponse, Status>> + Send>>;

    async fn propose(
        &self,
        request: Request<Streaming<ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        let caller = transport::caller(request.metadata())?;
        self.0.entered(&caller).await?;
        let (node, _) = self.0.checked(&caller)?;
        let (node, mut stopping) = (node.clone(), self.0.stopping());
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        // `then` hands commands over one after the other; their answers go back as they come.
        let begun = request.into_inner().take_until(Box::pin(stopped)).then(move |request| {
            let node = node.clone();
            async move {
                let ProposeRequest { id, group, command, crc } = request?;
                if wire::crc(&command) != crc {
                    return Err(Status::data_loss("a command is damaged"));
                }
                Ok((id, node.begin_forwarded(GroupId(group), command).await))
            }
        });
        let answers = begun.map(|begun| async move {
            let (id, begun) = begun?;
            let answer = match begun {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            };
            let result = match answer {
                Ok(outcome) => propose_response::Result::Outcome(outcome),
                Err(error) => propose_response::Result::NotDone(not_done(error)),
            };
            Ok(ProposeResponse { id, result: Some(result) })
        });
        Ok(Response::new(Box::pin(answers.buffer_unordered(FORWARDED_MAX))))
    }

    async fn freeze_state(
        &self,
        request: Request<FreezeStateRequest>,
    ) -> Result<Response<FreezeStateResponse>, Status> {
        let node = self.checked(request.metadata())?;
        let (snapshot, index) = node.lend_state(GroupId(request.get_ref().group)).await?;
        Ok(Response::new(FreezeStateResponse { snapshot: snapshot.into(), index }))
    }

    async fn pull_snapshot(
        &self,
        request: Request<PullSnapshotRequest>,
    ) -> Result<Response<PullSnapshotResponse>, Status> {
        let node = self.checked(request.metadata())?;
        let PullSnapshotRequest { group, snapshot, cursor } = request.into_inner();
        let export = node.driver().pulled(GroupId(group), &snapshot);
        let export = export.ok_or_else(|| Status::not_found("the snapshot is not offered any more"))?;
        let block = tokio::task::spawn_blocking(move || export.block(&cursor)).await;
        let block = block.map_err(|_| Status::internal("the block could not be read"))?;
        let block = block.map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Response::new(PullSnapshotResponse { block: block.into() }))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        let node = self.checked(request.metadata())?;
        let result = match node.own_read_index(GroupId(request.get_ref().group)).await {
            Ok(index) => read_index_response::Result::Index(index),
            Err(error) => read_index_response::Result::NotDone(not_done(error)),
        };
        Ok(Response::new(ReadIndexResponse { result: Some(result) }))
    }
}
