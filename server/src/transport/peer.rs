//! The connections to one other node, and the task that keeps them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use galoo_consensus::GroupId;
use galoo_proto::{
    NodeId,
    data::data_client::DataClient,
    limits::GRPC_MESSAGE_BYTES_MAX,
    peer::{
        FreezeStateRequest, NotDone, ProposeRequest, PullSnapshotRequest, RaftMessage, ReadIndexRequest,
        not_done::Reason, peer_client::PeerClient, propose_response, read_index_response,
    },
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, transport::Channel};
use tracing::{info, warn};

use super::{Stated, connect, frames, outbox::Outbox};
use crate::{disk::DiskFull, driver::DriveError, memory::MemtablesFull};

/// Commands that are handed to a connection before it takes them.
const STREAM_AHEAD_MAX: usize = 4;
/// Delays between tries to connect; they double.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// One question for a read's index; the caller asks again.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(2);
/// One block of a snapshot.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);

/// The other node cannot be reached: nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot be reached")]
pub struct NotSent(pub NodeId);

/// Another node, as this one speaks to it.
pub struct Peer {
    id: NodeId,
    addr: watch::Sender<String>,
    places: Mutex<Places>,
    stated: Arc<Stated>,
    outbox: Outbox,
    commands: mpsc::UnboundedSender<Forward>,
    channel: watch::Sender<Option<Channel>>,
    /// The other node was heard: it is worth a try to connect.
    heard: Notify,
}

/// Where another node may be.
struct Places {
    /// Where the cluster said last that it is.
    told: String,
    /// Where it said last itself that it is.
    seen: Option<String>,
}

/// A command on its way to the node that leads its group.
struct Forward {
    group: GroupId,
    command: Bytes,
    reply: oneshot::Sender<Result<Vec<u8>, DriveError>>,
}

/// What another node answered instead of doing it.
fn not_done(answer: NotDone) -> DriveError {
    match answer.reason() {
        Reason::NotLeader => DriveError::NotLeader { leader: answer.leader },
        Reason::NotReady => DriveError::NotReady("its leader cannot take it at the moment"),
        Reason::DiskFull => {
            let full = DiskFull { free_bytes: answer.free_bytes, reserve_bytes: answer.reserve_bytes };
            DriveError::NoRoom(full.into())
        }
        Reason::MemtablesFull => {
            let full = MemtablesFull { bytes: answer.memtable_bytes, bytes_max: answer.memtable_bytes_max };
            DriveError::NoRoom(full.into())
        }
        Reason::OutcomeUnknown | Reason::Unspecified => DriveError::OutcomeUnknown,
    }
}

impl Peer {
    pub(super) fn start(id: NodeId, addr: String, stated: Arc<Stated>) -> (Arc<Self>, AbortHandle) {
        let (commands, waiting) = mpsc::unbounded_channel();
        let peer = Arc::new(Self {
            id,
            addr: watch::channel(addr.clone()).0,
            places: Mutex::new(Places { told: addr, seen: None }),
            stated,
            outbox: Outbox::default(),
            commands,
            channel: watch::channel(None).0,
            heard: Notify::new(),
        });
        let task = tokio::spawn(peer.clone().run(waiting)).abort_handle();
        (peer, task)
    }

    /// The node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where it is, as far as this node knows.
    pub fn addr(&self) -> String {
        self.addr.borrow().clone()
    }

    /// Whether there is a connection to it.
    pub fn is_connected(&self) -> bool {
        self.channel.borrow().is_some()
    }

    /// Takes where the cluster says that it is. What is only said again changes nothing, and a connection that stands is
    /// kept: the node may have been seen elsewhere, before the cluster heard of it.
    pub(super) fn told(&self, addr: String) {
        let mut places = self.places();
        if places.told != addr {
            places.told.clone_from(&addr);
            if !self.is_connected() {
                self.move_to(addr);
            }
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().expect("nobody panics with the places in hand")
    }

    fn move_to(&self, addr: String) {
        self.addr.send_if_modified(|known| {
            let moved = *known != addr;
            *known = addr;
            moved
        });
    }

    pub(super) fn seen_at(&self, addr: &str) {
        self.places().seen = Some(addr.to_owned());
        self.move_to(addr.to_owned());
        self.heard.notify_one();
    }

    /// Goes over to the other place where the node may be: it is not known whether the cluster or the node spoke last.
    pub(super) fn try_elsewhere(&self, tried: &str) {
        let places = self.places();
        if self.addr() == tried
            && let Some(other) =
                [Some(&places.told), places.seen.as_ref()].into_iter().flatten().find(|addr| *addr != tried)
        {
            self.move_to(other.clone());
        }
    }

    /// Hands Raft messages over; returns the groups of those that were dropped.
    pub(super) fn send(&self, messages: Vec<RaftMessage>) -> Vec<GroupId> {
        let dropped = self.outbox.push(messages);
        if !dropped.is_empty() {
            let counter = metrics::counter!("galoo_raft_messages_dropped_total", "to" => self.id.to_string());
            counter.increment(dropped.len() as u64);
        }
        dropped
    }

    /// Sends a command to be proposed by the other node; the future that comes back ends with the outcome's bytes.
    ///
    /// Commands that are handed over one after the other are proposed in that order.
    pub fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> Result<impl Future<Output = Result<Vec<u8>, DriveError>> + use<>, NotSent> {
        if !self.is_connected() {
            return Err(NotSent(self.id));
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Forward { group, command, reply });
        sent.map_err(|_| NotSent(self.id))?;
        // What was handed to a connection and not answered was perhaps done.
        Ok(async { answer.await.unwrap_or(Err(DriveError::OutcomeUnknown)) })
    }

    /// Asks the other node, which leads a group, for the index that a linearizable read must see.
    pub async fn read_index(&self, group: GroupId) -> Result<u64, DriveError> {
        let unreachable = DriveError::NotReady("its leader cannot be reached");
        let mut client = PeerClient::new(self.channel().map_err(|_| unreachable)?);
        let request = self.stated.request(self.id, ReadIndexRequest { group: group.0 });
        let answer = tokio::time::timeout(READ_INDEX_TIMEOUT, client.read_index(request)).await;
        match answer {
            Ok(Ok(answer)) => match answer.into_inner().result {
                Some(read_index_response::Result::Index(index)) => Ok(index),
                Some(read_index_response::Result::NotDone(answer)) => Err(not_done(answer)),
                None => Err(unreachable),
            },
            Ok(Err(_)) | Err(_) => Err(unreachable),
        }
    }

    /// Asks for a group's state as it is there; returns its name and what it has applied.
    pub async fn freeze_state(&self, group: GroupId) -> Result<(Vec<u8>, u64), Status> {
        let channel = self.channel().map_err(|error| Status::unavailable(error.to_string()))?;
        let request = self.stated.request(self.id, FreezeStateRequest { group: group.0 });
        let mut client = PeerClient::new(channel);
        let frozen = tokio::time::timeout(PULL_TIMEOUT, client.freeze_state(request)).await;
        let frozen = frozen.map_err(|_| Status::deadline_exceeded("it was not frozen in time"))??.into_inner();
        Ok((frozen.snapshot, frozen.index))
    }

    /// Pulls a block of a group's state from the node that offers it.
    pub async fn pull_snapshot(&self, group: GroupId, snapshot: Vec<u8>, cursor: Vec<u8>) -> Result<Vec<u8>, Status> {
        let channel = self.channel().map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = PeerClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        let request = PullSnapshotRequest { group: group.0, snapshot, cursor };
        let pulled = client.pull_snapshot(self.stated.request(self.id, request));
        let pulled = tokio::time::timeout(PULL_TIMEOUT, pulled).await;
        Ok(pulled.map_err(|_| Status::deadline_exceeded("the block did not come in time"))??.into_inner().block)
    }

    /// The connection, for calls of the other services.
    pub fn channel(&self) -> Result<Channel, NotSent> {
        self.channel.borrow().clone().ok_or(NotSent(self.id))
    }

    /// The data service of the other node.
    pub fn data(&self) -> Result<DataClient<Channel>, NotSent> {
        let client = DataClient::new(self.channel()?);
        Ok(client.max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX).max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX))
    }

    /// A request that states who calls, so that it is handed on only once.
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.stated.request(self.id, message)
    }

    /// Keeps a connection for as long as the node runs.
    async fn run(self: Arc<Self>, mut commands: mpsc::UnboundedReceiver<Forward>) {
        let mut moved = self.addr.subscribe();
        let mut backoff = BACKOFF_MIN;
        let mut complained = false;
        loop {
            let addr = moved.borrow_and_update().clone();
            self.outbox.open();
            match connect(&addr).await {
                Ok(channel) => {
                    let since = tokio::time::Instant::now();
                    self.channel.send_replace(Some(channel.clone()));
                    info!(peer = %self.id, addr, "connected");
                    let ended = tokio::select! {
                        ended = self.raft_frames(&addr) => ended,
                        ended = self.command_stream(channel, &mut commands) => ended,
                        _ = moved.changed() => Status::ok("the node moved"),
                    };
                    self.channel.send_replace(None);
                    warn!(peer = %self.id, addr, ended = ended.message(), "the connection ended");
                    complained = true;
                    if since.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(reason) if !complained => {
                    warn!(peer = %self.id, addr, reason, "cannot connect; tried again until it answers");
                    complained = true;
                }
                Err(_) => {}
            }
            self.outbox.close();
            while let Ok(Forward { reply, .. }) = commands.try_recv() {
                let _ = reply.send(Err(DriveError::NotReady("its leader cannot be reached")));
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.heard.notified() => {}
                _ = moved.changed() => {}
            }
            self.try_elsewhere(&addr);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Sends Raft's messages until their connection ends.
    async fn raft_frames(&self, addr: &str) -> Status {
        let connection = match frames::connect(addr, &self.stated.caller(self.id)).await {
            Ok(connection) => Arc::new(connection),
            Err(status) => return status,
        };
        tokio::select! {
            error = self.outbox.write_to(&connection) => error.into(),
            ended = frames::ended(&connection) => ended,
        }
    }

    /// Sends commands and takes their answers until the stream ends.
    async fn command_stream(&self, channel: Channel, commands: &mut mpsc::UnboundedReceiver<Forward>) -> Status {
        let (sender, requests) = mpsc::channel(STREAM_AHEAD_MAX);
        let mut client = PeerClient::new(channel)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX)
            .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX);
        let call = client.propose(self.stated.request(self.id, ReceiverStream::new(requests)));
        let mut answers = match call.await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
        // Dropped with the stream: then the outcome of whatever waits in it is unknown.
        let waiting: Mutex<HashMap<u64, oneshot::Sender<_>>> = Mutex::default();
        let waiting = || waiting.lock().expect("nobody panics with the replies in hand");
        let pump = async {
            let mut id = 0;
            while let Some(Forward { group, command, reply }) = commands.recv().await {
                // Nobody waits for it any more: its caller was told that the outcome is unknown.
                if reply.is_closed() {
                    continue;
                }
                id += 1;
                waiting().insert(id, reply);
                let crc = galoo_consensus::wire::crc(&command);
                let request = ProposeRequest { id, group: group.0, command: command.into(), crc };
                if sender.send(request).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let take = async {
            loop {
                let answer = match answers.message().await {
                    Ok(Some(answer)) => answer,
                    Ok(None) => return Status::ok("closed by the other node"),
                    Err(status) => return status,
                };
                if let Some(reply) = waiting().remove(&answer.id) {
                    let _ = reply.send(match answer.result {
                        Some(propose_response::Result::Outcome(outcome)) => Ok(outcome),
                        Some(propose_response::Result::NotDone(answer)) => Err(not_done(answer)),
                        None => Err(DriveError::OutcomeUnknown),
                    });
                }
            }
        };
        tokio::select! {
            ended = take => ended,
            () = pump => Status::ok("closed"),
        }
    }
}
