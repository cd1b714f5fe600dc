//! Raft's messages of other nodes, in frames on the port of gRPC (see [`crate::transport::frames`]).

use std::{io, sync::Arc};

use futures::{Stream, StreamExt};
use galoo_consensus::{GroupId, wire};
use galoo_proto::{
    NodeId,
    peer::{RaftBatch, RaftMessage},
};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::server::TcpIncoming};
use tracing::{debug, warn};

use crate::{
    door::Door,
    node::Node,
    transport::{INCOMING_BYTES_MAX, frames},
};

/// Connections that wait for gRPC to take them; further ones wait in the listener's queue.
const CONNECTIONS_AHEAD_MAX: usize = 16;

/// Serves the connections of other nodes' Raft messages until the node stops, and returns all others.
pub(super) fn taken_out(door: Arc<Door>, mut connections: TcpIncoming) -> impl Stream<Item = io::Result<TcpStream>> {
    let (others, rest) = mpsc::channel(CONNECTIONS_AHEAD_MAX);
    tokio::spawn(async move {
        let mut stopping = door.stopping();
        loop {
            let next = tokio::select! {
                next = connections.next() => next,
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            match next {
                Some(Ok(stream)) => drop(tokio::spawn(sort(door.clone(), stream, others.clone()))),
                // gRPC's server tells which errors of a listener end it.
                Some(error) => drop(others.send(error).await),
                None => break,
            }
        }
    });
    ReceiverStream::new(rest)
}

async fn sort(door: Arc<Door>, stream: TcpStream, others: mpsc::Sender<io::Result<TcpStream>>) {
    match frames::begins(&stream).await {
        Ok(true) => match serve(&door, stream).await {
            Ok(()) => {}
            Err(status) => warn!(ended = status.message(), "a connection of Raft's messages"),
        },
        Ok(false) => drop(others.send(Ok(stream)).await),
        Err(error) => debug!(%error, "a connection that said nothing"),
    }
}

/// Hands messages on to Raft until either side ends the connection.
async fn serve(door: &Door, stream: TcpStream) -> Result<(), Status> {
    let (mut incoming, caller) = frames::Incoming::accept(stream).await?;
    let entered = door.entered(&caller).await;
    let (node, from) = match entered.and_then(|()| door.checked(&caller)) {
        Ok(checked) => checked,
        Err(status) => return Ok(incoming.answer(status.message().to_owned()).await?),
    };
    incoming.answer(String::new()).await?;
    let mut stopping = door.stopping();
    loop {
        let batch = tokio::select! {
            batch = incoming.batch() => batch?,
            _ = stopping.wait_for(|stopping| *stopping) => None,
        };
        let Some(batch) = batch else { return Ok(()) };
        step(node, from, batch).await?;
    }
}

/// Hands messages that came together on, once there is room for them.
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
