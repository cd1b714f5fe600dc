//! Finding the leader: a command or a read that this node is asked for is done by the node that leads its group.
//!
//! The leader stamps commands with its own clock. What was surely not done (the node leads no more, nobody leads yet, the
//! leader cannot be reached) is tried again until the deadline; when a connection breaks under a command, its outcome is
//! unknown, and that is an answer. A read asks the leader only for an index, waits until its own replica has applied it,
//! and reads there: any node with a replica answers, linearizable.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use galoo_cluster::{META_GROUP, machine::Answer, meta};
use galoo_consensus::GroupId;
use galoo_proto::{
    Hlc, NodeId, ShardId,
    command::{Command, Outcome, command::Body},
    meta::{MetaCommand, MetaOutcome},
};
use galoo_storage::shard;
use prost::Message;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, error::Elapsed},
};

use super::{ADMISSION_WAIT, DEADLINE, Node, NodeError, RETRY_DELAY, WAITING_BYTES_MAX, unix_ms};
use crate::{
    driver::DriveError,
    room::NoRoom,
    transport::{NotSent, Peer},
};

/// One question for a read's index: Raft may lose it with a leadership, and it costs nothing to ask again.
const READ_TRY: Duration = Duration::from_secs(1);

/// A command's format and `hlc` field in protobuf: a later value of a field wins, so that a stamp can be put behind a
/// command that is encoded already.
const HLC_FIELD: u8 = (2 << 3) | 1;

/// Whether a command needs room on the disk and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// It brings data: it is refused when there is none.
    Needed,
    /// It frees space or keeps the cluster going: it lives on the reserve.
    FromReserve,
}

impl Room {
    fn of(body: &Body) -> Self {
        match body {
            Body::Seal(_)
            | Body::DropRollup(_)
            | Body::MoveGcTime(_)
            | Body::DropFamily(_)
            | Body::DropBuckets(_)
            | Body::DropEventsBefore(_)
            | Body::SetEventIdWindow(_)
            | Body::ForgetPlayer(_) => Self::FromReserve,
            Body::Append(_)
            | Body::Mutate(_)
            | Body::RegisterProducer(_)
            | Body::DefineRollup(_)
            | Body::DeclareProperties(_)
            | Body::DefineFamily(_) => Self::Needed,
        }
    }
}

/// Who does what is asked of a group.
enum Leader {
    /// This node.
    Here,
    /// Another node.
    There(Arc<Peer>),
    /// Nobody that is known: ask again in a moment.
    Unknown(&'static str),
}

fn count_refused(full: &NoRoom) {
    let reason = match full {
        NoRoom::Disk(_) => "disk",
        NoRoom::Memtables(_) => "memtables",
    };
    metrics::counter!("galoo_refused_total", "reason" => reason).increment(1);
}

impl Node {
    /// What a stamp of this node would be at least: the time by which reads tell what has expired.
    pub(super) fn now(&self) -> Hlc {
        let clock = *self.clock.lock().expect("nobody panics with the clock in hand");
        clock.max(Hlc::from_millis(unix_ms()))
    }

    /// Returns a command with this node's stamp, above all that it gave before.
    fn stamped(&self, command: &[u8]) -> Vec<u8> {
        let hlc = {
            let mut clock = self.clock.lock().expect("nobody panics with the clock in hand");
            *clock = clock.next(unix_ms());
            *clock
        };
        let mut stamped = Vec::with_capacity(command.len() + 9);
        stamped.extend_from_slice(command);
        stamped.push(HLC_FIELD);
        stamped.extend_from_slice(&hlc.0.to_le_bytes());
        stamped
    }

    /// Replicates a shard's command and returns its outcome.
    pub(super) async fn propose(self: &Arc<Self>, shard: ShardId, body: Body) -> Result<Outcome, NodeError> {
        self.begin(shard, body).await?.await
    }

    /// Hands a shard's command over to be replicated; the future that comes back ends with its outcome.
    ///
    /// What was surely not done is tried again until the deadline, then perhaps behind later commands.
    pub(super) async fn begin(
        self: &Arc<Self>,
        shard: ShardId,
        body: Body,
    ) -> Result<impl Future<Output = Result<Outcome, NodeError>> + use<>, NodeError> {
        let room = Room::of(&body);
        let command = Command { version: shard::FORMAT_VERSION, hlc: 0, body: Some(body) };
        let answer = self.replicate(GroupId(shard.0), command.encode_to_vec().into(), room).await?;
        Ok(async move {
            match answer.await? {
                Answer::Shard(outcome) => Ok(outcome),
                Answer::Meta(_) => Err(NodeError::OutcomeUnknown { shard }),
            }
        })
    }

    pub(super) async fn propose_meta(
        self: &Arc<Self>,
        body: galoo_proto::meta::meta_command::Body,
    ) -> Result<MetaOutcome, NodeError> {
        let command = MetaCommand { version: meta::FORMAT_VERSION, hlc: 0, body: Some(body) };
        match self.replicate(GroupId(META_GROUP), command.encode_to_vec().into(), Room::FromReserve).await?.await? {
            Answer::Meta(outcome) => Ok(outcome),
            Answer::Shard(_) => Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
        }
    }

    /// Waits for a command's share of what may wait on this node.
    async fn admit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NodeError> {
        let bytes = u32::try_from(bytes.min(WAITING_BYTES_MAX)).unwrap_or(u32::MAX);
        match tokio::time::timeout(ADMISSION_WAIT, self.waiting.clone().acquire_many_owned(bytes)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_closed)) => Err(NodeError::Stopping),
            Err(_) => {
                metrics::counter!("galoo_refused_total", "reason" => "busy").increment(1);
                Err(NodeError::Busy { retry_after: ADMISSION_WAIT })
            }
        }
    }

    async fn replicate(
        self: &Arc<Self>,
        group: GroupId,
        command: Bytes,
        room: Room,
    ) -> Result<impl Future<Output = Result<Answer, NodeError>> + use<>, NodeError> {
        let admitted = self.admit(command.len()).await?;
        let first = self.hand_over(group, &command, room, 0);
        let node = self.clone();
        Ok(async move {
            let _admitted = admitted;
            let deadline = Instant::now() + DEADLINE;
            match tokio::time::timeout_at(deadline, first).await {
                Ok(Ok(answer)) => Ok(answer),
                // In a box: the future of every command would hold the room that this rare one needs.
                failed => Box::pin(node.repeat(group, command, room, failed, deadline)).await,
            }
        })
    }

    /// Hands a command over again, as long as it was surely not done, until the deadline.
    async fn repeat(
        &self,
        group: GroupId,
        command: Bytes,
        room: Room,
        mut answer: Result<Result<Answer, DriveError>, Elapsed>,
        deadline: Instant,
    ) -> Result<Answer, NodeError> {
        let shard = ShardId(group.0);
        for attempt in 1.. {
            match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(DriveError::OutcomeUnknown)) | Err(_) => break,
                Ok(Err(DriveError::NoRoom(full))) => return Err(full.into()),
                Ok(Err(reason)) if Instant::now() + RETRY_DELAY >= deadline => {
                    return Err(NodeError::Unavailable { shard, reason });
                }
                Ok(Err(reason)) => self.learn(group, reason),
            }
            tokio::time::sleep(RETRY_DELAY).await;
            answer = tokio::time::timeout_at(deadline, self.hand_over(group, &command, room, attempt)).await;
        }
        Err(NodeError::OutcomeUnknown { shard })
    }

    /// Hands a command to whoever leads its group, at once: two calls in a row keep their order.
    fn hand_over(
        &self,
        group: GroupId,
        command: &Bytes,
        room: Room,
        attempt: usize,
    ) -> BoxFuture<'static, Result<Answer, DriveError>> {
        let peer = match self.leader(group, attempt) {
            Leader::Here => match self.room() {
                Err(full) if room == Room::Needed => {
                    count_refused(&full);
                    return std::future::ready(Err(DriveError::NoRoom(full))).boxed();
                }
                _ => return self.driver.propose(group, self.stamped(command)).boxed(),
            },
            Leader::There(peer) => peer,
            Leader::Unknown(reason) => return std::future::ready(Err(DriveError::NotReady(reason))).boxed(),
        };
        match peer.propose(group, command.clone()) {
            Err(NotSent(_)) => std::future::ready(Err(DriveError::NotReady("its leader cannot be reached"))).boxed(),
            Ok(answer) => async move {
                let bytes = answer.await?;
                let unreadable = |_| DriveError::OutcomeUnknown;
                Ok(match group {
                    GroupId(META_GROUP) => Answer::Meta(MetaOutcome::decode(&*bytes).map_err(unreadable)?),
                    _ => Answer::Shard(Outcome::decode(&*bytes).map_err(unreadable)?),
                })
            }
            .boxed(),
        }
    }

    /// Who leads a group, as far as this node knows. Without a replica here its voters are asked in turn.
    fn leader(&self, group: GroupId, attempt: usize) -> Leader {
        let me = self.identity.node();
        let role = self.driver.role(group);
        let known = role.map(|role| role.leader).filter(|leader| *leader != 0).map(NodeId);
        let known = known.or_else(|| match role {
            Some(_) => None,
            None => self.lock_leaders().get(&group).copied(),
        });
        if known == Some(me) {
            return Leader::Here;
        }
        if let Some(peer) = known.and_then(|leader| self.transport.peer(leader)) {
            return Leader::There(peer);
        }
        if role.is_some() {
            return Leader::Unknown("it has no leader at the moment");
        }
        let peers: Vec<_> = self.voters(group).into_iter().filter_map(|node| self.transport.peer(node)).collect();
        let reachable: Vec<_> = peers.into_iter().filter(|peer| peer.is_connected()).collect();
        match reachable.len() {
            0 => Leader::Unknown("none of its replicas can be reached"),
            count => Leader::There(reachable[attempt % count].clone()),
        }
    }

    /// Takes what a failed try told of a group that is not here.
    fn learn(&self, group: GroupId, reason: DriveError) {
        let mut leaders = self.lock_leaders();
        match reason {
            DriveError::NotLeader { leader } if leader != 0 => leaders.insert(group, NodeId(leader)),
            _ => leaders.remove(&group),
        };
    }

    pub(super) fn lock_leaders(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<GroupId, NodeId>> {
        self.leaders.lock().expect("nobody panics with the leaders in hand")
    }

    /// The nodes that hold a group.
    pub(super) fn voters(&self, group: GroupId) -> Vec<NodeId> {
        let meta = self.meta.borrow();
        match group {
            GroupId(META_GROUP) => meta.nodes().map(|node| NodeId(node.id)).collect(),
            GroupId(id) => {
                let shard = meta.shards().find(|shard| shard.id == id);
                shard.map_or_else(Vec::new, |shard| shard.voters.iter().copied().map(NodeId).collect())
            }
        }
    }

    /// Takes a command that another node was asked for; the future that comes back ends with the outcome's bytes.
    ///
    /// It is handed over before this returns, and only done if this node leads the group.
    pub async fn begin_forwarded(
        self: &Arc<Self>,
        group: GroupId,
        command: Vec<u8>,
    ) -> Result<impl Future<Output = Result<Vec<u8>, DriveError>> + use<>, DriveError> {
        // What needs none is proposed by leaders alone, or goes to the meta group.
        if group != GroupId(META_GROUP) {
            self.room().inspect_err(count_refused).map_err(DriveError::NoRoom)?;
            self.check_forwarded(ShardId(group.0), &command)?;
        }
        let admitted = self.admit(command.len()).await.map_err(|_| DriveError::NotReady("its leader is busy"))?;
        let answer = self.driver.propose(group, self.stamped(&command));
        Ok(async move {
            let _admitted = admitted;
            let answer = tokio::time::timeout(DEADLINE, answer).await.map_err(|_| DriveError::OutcomeUnknown)?;
            Ok(match answer? {
                Answer::Shard(outcome) => outcome.encode_to_vec(),
                Answer::Meta(outcome) => outcome.encode_to_vec(),
            })
        })
    }

    /// The index that a linearizable read of a group must see, if this node leads it.
    pub async fn own_read_index(&self, group: GroupId) -> Result<u64, DriveError> {
        let answer = tokio::time::timeout(READ_TRY, self.driver.read_index(group)).await;
        answer.unwrap_or(Err(DriveError::NotReady("no majority answered in time")))
    }

    /// Returns the index that a linearizable read of a group must see: everything acknowledged before the call.
    pub(super) async fn read_index(&self, group: GroupId) -> Result<u64, NodeError> {
        let deadline = Instant::now() + DEADLINE;
        let mut attempt = 0;
        loop {
            let asked = match self.leader(group, attempt) {
                Leader::Here => self.own_read_index(group).await,
                Leader::There(peer) => peer.read_index(group).await,
                Leader::Unknown(reason) => Err(DriveError::NotReady(reason)),
            };
            match asked {
                Ok(index) => return Ok(index),
                Err(reason) if Instant::now() + RETRY_DELAY >= deadline => {
                    return Err(NodeError::Unavailable { shard: ShardId(group.0), reason });
                }
                Err(reason) => self.learn(group, reason),
            }
            attempt += 1;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Returns once everything acknowledged before the call is applied on this node, which has a replica of the shard: up to
    /// this index.
    pub(super) async fn barrier(&self, shard: ShardId) -> Result<u64, NodeError> {
        let index = self.read_index(GroupId(shard.0)).await?;
        self.applied(shard, index).await?;
        Ok(index)
    }

    /// Returns once a shard has applied an index on this node.
    pub(super) async fn applied(&self, shard: ShardId, index: u64) -> Result<(), NodeError> {
        let unavailable = |reason| NodeError::Unavailable { shard, reason };
        match tokio::time::timeout(DEADLINE, self.driver.applied(GroupId(shard.0), index)).await {
            Ok(applied) => applied.map_err(unavailable),
            Err(_) => Err(unavailable(DriveError::NotReady("this node's replica is far behind"))),
        }
    }

    /// A node that has a replica of a shard and can be reached, when this one has none: the leader, if it is known.
    pub fn elsewhere(&self, shard: ShardId) -> Result<Option<Arc<Peer>>, NodeError> {
        if self.keyspace(shard).is_some() {
            return Ok(None);
        }
        let unreachable = DriveError::NotReady("none of its replicas can be reached");
        match self.leader(GroupId(shard.0), 0) {
            Leader::There(peer) if peer.is_connected() => Ok(Some(peer)),
            Leader::There(_) | Leader::Here | Leader::Unknown(_) => {
                self.lock_leaders().remove(&GroupId(shard.0));
                Err(NodeError::Unavailable { shard, reason: unreachable })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stamp that is put behind an encoded command is the command's.
    #[test]
    fn a_later_stamp_wins() {
        let with_stamp = |mut bytes: Vec<u8>| {
            bytes.push(HLC_FIELD);
            bytes.extend_from_slice(&77u64.to_le_bytes());
            bytes
        };
        let command = Command { version: 1, hlc: 5, body: Some(Body::Seal(Default::default())) };
        let stamped = Command::decode(&*with_stamp(command.encode_to_vec())).expect("decodes");
        assert_eq!(stamped, Command { hlc: 77, ..command });
        let command = MetaCommand { version: 1, hlc: 0, body: None };
        let stamped = MetaCommand::decode(&*with_stamp(command.encode_to_vec())).expect("decodes");
        assert_eq!(stamped, MetaCommand { hlc: 77, ..command });
    }
}
