//! The peer service: what other nodes ask of this one.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use galoo_consensus::{GroupId, wire};
use galoo_proto::{
    NodeId,
    peer::{
        IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, NotDone, ProposeRequest, ProposeResponse,
        PullSnapshotRequest, PullSnapshotResponse, RaftBatch, RaftClosed, RaftMessage, ReadIndexRequest,
        ReadIndexResponse, not_done::Reason, peer_server::Peer, propose_response, read_index_response,
    },
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::warn;

use crate::{
    disk::DiskFull,
    door::{Door, FormError},
    driver::DriveError,
    node::Node,
    transport::INCOMING_BYTES_MAX,
};

pub(super) struct PeerService(pub(super) Arc<Door>);

/// Commands of one stream that are proposed and not answered yet; further ones wait in the network's window.
const FORWARDED_MAX: usize = 4_096;

fn not_done(error: DriveError) -> NotDone {
    let because = |reason: Reason| NotDone { reason: reason.into(), ..Default::default() };
    match error {
        DriveError::NotLeader { leader } => NotDone { leader, ..because(Reason::NotLeader) },
        DriveError::NotReady(_) => because(Reason::NotReady),
        DriveError::DiskFull(DiskFull { free_bytes, reserve_bytes }) => {
            NotDone { free_bytes, reserve_bytes, ..because(Reason::DiskFull) }
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
    fn checked(&self, metadata: &MetadataMap) -> Result<(&Arc<Node>, NodeId), Status> {
        let node = self.0.starting_node()?;
        let from = node.transport().check(metadata).inspect_err(|status| {
            warn!(refused = status.message(), "a call of another node");
        })?;
        Ok((node, from))
    }
}

/// Hands messages that came together on to Raft, once there is room for them.
async fn step(node: &Node, from: NodeId, batch: RaftBatch) -> Result<(), Status> {
    let bytes: usize = batch.messages.iter().map(|message| message.message.len().max(1)).sum();
    let bytes = u32::try_from(bytes.min(INCOMING_BYTES_MAX)).unwrap_or(u32::MAX);
    let decode = |message: RaftMessage| {
        let decoded = wire::decode(&message.message);
        let decoded = decoded.ok_or_else(|| Status::data_loss(format!("a Raft message of {from} is damaged")))?;
        if decoded.from != from.0 || decoded.to != node.identity().node().0 {
            let stated = format!("a Raft message of {from} says n{} to n{}", decoded.from, decoded.to);
            return Err(Status::failed_precondition(stated));
        }
        Ok((GroupId(message.group), decoded))
    };
    let messages = batch.messages.into_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    let room = node.transport().incoming().clone().acquire_many_owned(bytes).await;
    let room = room.map_err(|_closed| Status::unavailable("the node is stopping"))?;
    node.driver().step(messages, room);
    Ok(())
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

    async fn raft(&self, request: Request<Streaming<RaftBatch>>) -> Result<Response<RaftClosed>, Status> {
        self.0.entered(request.metadata()).await?;
        let (node, from) = self.checked(request.metadata())?;
        let mut batches = request.into_inner();
        let mut stopping = self.0.stopping();
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch?,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            let Some(batch) = batch else { return Ok(Response::new(RaftClosed {})) };
            step(node, from, batch).await?;
        }
    }

    type ProposeStream = Pin<Box<dyn Stream<Item = Result<ProposeResponse, Status>> + Send>>;

    async fn propose(
        &self,
        request: Request<Streaming<ProposeRequest>>,
    ) -> Result<Response<Self::ProposeStream>, Status> {
        self.0.entered(request.metadata()).await?;
        let (node, _) = self.checked(request.metadata())?;
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

    async fn pull_snapshot(
        &self,
        request: Request<PullSnapshotRequest>,
    ) -> Result<Response<PullSnapshotResponse>, Status> {
        let (node, _) = self.checked(request.metadata())?;
        let PullSnapshotRequest { group, snapshot, cursor } = request.into_inner();
        let export = node.driver().pulled(GroupId(group), &snapshot);
        let export = export.ok_or_else(|| Status::not_found("the snapshot is not offered any more"))?;
        let block = tokio::task::spawn_blocking(move || export.block(&cursor)).await;
        let block = block.map_err(|_| Status::internal("the block could not be read"))?;
        let block = block.map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Response::new(PullSnapshotResponse { block: block.into() }))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        let (node, _) = self.checked(request.metadata())?;
        let result = match node.own_read_index(GroupId(request.get_ref().group)).await {
            Ok(index) => read_index_response::Result::Index(index),
            Err(error) => read_index_response::Result::NotDone(not_done(error)),
        };
        Ok(Response::new(ReadIndexResponse { result: Some(result) }))
    }
}
