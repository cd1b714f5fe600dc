//! One group's member on this node: the Raft state and who waits for what.

use std::{collections::VecDeque, sync::Arc};

use raft::{
    Config, GetEntriesContext, RaftState, RawNode, Ready, StateRole, StorageError,
    eraftpb::{ConfState, Entry, HardState, Message, Snapshot},
    storage::Storage,
};

use crate::{
    Committed, Error, GroupId, Result, Ticket,
    log_store::{GroupRecord, GroupWrite, LogStore},
    raft_loop::Timing,
};

/// Bytes of proposals of one group that are not committed; beyond it proposals are refused.
pub(crate) const PROPOSAL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of entries in one message to a follower.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Messages with entries that a follower has not answered; beyond it the leader waits.
const INFLIGHT_MESSAGES_MAX: usize = 256;
/// Bytes of entries that one turn hands out to be applied.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// raft-rs's view of one group in the shared log.
pub(crate) struct GroupLog {
    store: Arc<dyn LogStore>,
    group: GroupId,
    pub(crate) record: GroupRecord,
    hard_state: HardState,
}

impl GroupLog {
    fn first(&self) -> u64 {
        self.record.cut_index + 1
    }
}

fn other(error: Error) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl Storage for GroupLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState::from((self.record.voters.clone(), Vec::new()));
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.store.entries(self.group, low, high, bytes_max.into()).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.record.cut_index {
            return Ok(self.record.cut_term);
        }
        if index < self.record.cut_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if index > self.last_index()? {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let found = self.store.entries(self.group, index, index + 1, None).map_err(other)?;
        found.first().map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        let bounds = self.store.bounds(self.group).map_err(other)?;
        Ok(bounds.map_or(self.record.cut_index, |(_, last)| last.max(self.record.cut_index)))
    }

    fn snapshot(&self, _: u64, _: u64) -> raft::Result<Snapshot> {
        // A follower that needs what was cut off waits: the log is cut only below what every voter holds.
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

/// A proposal on this node whose entry is not committed yet.
struct Pending {
    index: u64,
    term: u64,
    ticket: Ticket,
}

pub(crate) struct Replica {
    pub(crate) group: GroupId,
    node: RawNode<GroupLog>,
    timing: Timing,
    pending: VecDeque<Pending>,
    /// A `Ready` whose writes are under way.
    ready: Option<Ready>,
    /// The state machine's last applied index, as far as it told.
    applied: u64,
    role: Role,
}

/// What a member is, for those who route to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The leader's node, 0 when it is not known.
    pub leader: u64,
    /// The member's term.
    pub term: u64,
    /// Whether this member leads.
    pub leads: bool,
}

/// The second half of a replica's turn.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) messages: Vec<Message>,
    pub(crate) committed: Vec<Committed>,
    pub(crate) reads: Vec<(Ticket, u64)>,
    pub(crate) lost: Vec<Ticket>,
    pub(crate) role: Option<Role>,
}

impl Replica {
    /// Opens a member on what the log holds of it. `applied` is what its state machine has applied durably.
    pub(crate) fn open(
        node: u64,
        group: GroupId,
        record: GroupRecord,
        store: Arc<dyn LogStore>,
        applied: u64,
        timing: Timing,
    ) -> Result<Self> {
        let damaged = |reason: String| Error::Damaged { group, reason };
        // Term 0 is no member's: raft-rs panics there with pre-vote and priorities.
        let first = HardState { term: 1, ..Default::default() };
        let mut hard_state = store.hard_state(group)?.unwrap_or(first);
        let last = store.bounds(group)?.map_or(record.cut_index, |(_, last)| last);
        if last < applied || last < hard_state.commit {
            let commit = hard_state.commit;
            return Err(damaged(format!("the log ends at {last}, but {commit} is committed and {applied} applied")));
        }
        if applied < record.cut_index {
            return Err(damaged(format!("the log starts behind {}, but only {applied} is applied", record.cut_index)));
        }
        hard_state.commit = hard_state.commit.max(applied);
        let sole = record.voters == [node];
        let config = Config {
            id: node,
            applied,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
            max_uncommitted_size: PROPOSAL_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let log = GroupLog { store, group, record, hard_state };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).map_err(|source| Error::Raft { group, source })?;
        let (pending, role) = (VecDeque::new(), Role::default());
        let mut replica = Self { group, node, timing, pending, ready: None, applied, role };
        if sole {
            replica.node.campaign().map_err(|source| Error::Raft { group, source })?;
        }
        replica.draw_timeout();
        Ok(replica)
    }

    /// raft-rs draws election timeouts from the thread's generator; they must be a function of the seed instead.
    fn draw_timeout(&mut self) {
        let timeout = self.timing.election_timeout(self.group, self.node.raft.id, self.node.raft.term);
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    pub(crate) fn tick(&mut self) {
        self.node.tick();
        self.draw_timeout();
    }

    pub(crate) fn step(&mut self, message: Message) -> Result<()> {
        let stepped = self.node.step(message);
        self.draw_timeout();
        match stepped {
            // Messages of former members and out of turn are dropped, as a lossy network would.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::StepLocalMsg | raft::Error::ProposalDropped) => {
                Ok(())
            }
            Err(source) => Err(Error::Raft { group: self.group, source }),
        }
    }

    pub(crate) fn propose(&mut self, ticket: Ticket, data: Vec<u8>) -> Result<(), Refused> {
        if self.node.raft.state != StateRole::Leader {
            return Err(Refused::NotLeader { leader: self.node.raft.leader_id });
        }
        match self.node.propose(Vec::new(), data) {
            Ok(()) => {
                let (index, term) = (self.node.raft.raft_log.last_index(), self.node.raft.term);
                self.pending.push_back(Pending { index, term, ticket });
                Ok(())
            }
            Err(_) => Err(Refused::Full),
        }
    }

    /// Asks for the index that a linearizable read must see.
    pub(crate) fn read(&mut self, ticket: Ticket) -> Result<(), Refused> {
        if self.node.raft.state != StateRole::Leader {
            return Err(Refused::NotLeader { leader: self.node.raft.leader_id });
        }
        // Until an entry of its own term is committed a leader does not know what is: raft-rs drops the read silently.
        if !self.node.raft.commit_to_current_term() {
            return Err(Refused::NotReady);
        }
        self.node.read_index(ticket.0.to_le_bytes().to_vec());
        Ok(())
    }

    pub(crate) fn transfer_leader(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    pub(crate) fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        self.node.advance_apply_to(self.applied);
    }

    pub(crate) fn has_work(&self) -> bool {
        self.ready.is_none() && self.node.has_ready()
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// First half of a turn: messages that need no disk, and what to write.
    pub(crate) fn turn(&mut self) -> (Vec<Message>, GroupWrite, Written) {
        let mut ready = self.node.ready();
        let messages = ready.take_messages();
        let mut first = Written::default();
        first.reads.extend(ready.take_read_states().into_iter().filter_map(|state| {
            let ticket = state.request_ctx.as_slice().try_into().ok().map(u64::from_le_bytes)?;
            Some((Ticket(ticket), state.index))
        }));
        self.commit(ready.take_committed_entries(), &mut first);
        let write = GroupWrite { hard_state: ready.hs().cloned(), entries: ready.take_entries(), ..Default::default() };
        if let Some(hard_state) = &write.hard_state {
            self.node.mut_store().hard_state = hard_state.clone();
        }
        self.ready = Some(ready);
        (messages, write, first)
    }

    /// Second half, once everything is written: what had to wait for it.
    pub(crate) fn written(&mut self, mut first: Written) -> Written {
        let Some(mut ready) = self.ready.take() else { return first };
        first.messages.append(&mut ready.take_persisted_messages());
        let mut light = self.node.advance_append(ready);
        first.messages.append(&mut light.take_messages());
        self.commit(light.take_committed_entries(), &mut first);
        self.draw_timeout();
        let raft = &self.node.raft;
        let role = Role { leader: raft.leader_id, term: raft.term, leads: raft.state == StateRole::Leader };
        if role != self.role {
            self.role = role;
            first.role = Some(role);
        }
        first
    }

    /// Hands out committed entries with the tickets that wait for them; a ticket whose place went to another term's
    /// entry is lost: its command was never and will never be applied.
    fn commit(&mut self, entries: Vec<Entry>, out: &mut Written) {
        for entry in entries {
            let mut ticket = None;
            while let Some(first) = self.pending.front().filter(|first| first.index <= entry.index) {
                if first.index == entry.index && first.term == entry.term {
                    ticket = Some(first.ticket);
                } else {
                    out.lost.push(first.ticket);
                }
                self.pending.pop_front();
            }
            out.committed.push(Committed { index: entry.index, data: entry.data, ticket });
        }
    }

    /// Index that every voter is known to hold, as far as this member can tell.
    pub(crate) fn held_by_all(&self) -> u64 {
        if self.node.raft.state != StateRole::Leader {
            return self.node.raft.raft_log.committed;
        }
        self.node.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0)
    }

    /// Cuts the log at or below `index`, which is applied durably; `None` when that is not worth a write.
    pub(crate) fn cut(&mut self, index: u64, entries_min: u64) -> Result<Option<GroupWrite>> {
        let index = index.min(self.held_by_all());
        if index < self.node.store().record.cut_index + entries_min {
            return Ok(None);
        }
        let group = self.group;
        let cut_term = self.node.store().term(index).map_err(|source| Error::Raft { group, source })?;
        let record = GroupRecord { cut_index: index, cut_term, ..self.node.store().record.clone() };
        self.node.mut_store().record = record.clone();
        Ok(Some(GroupWrite { record: Some(record), cut: Some(index), ..Default::default() }))
    }
}

/// Why a proposal or read was not taken. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another node leads; 0 when it is not known which.
    #[error("this node does not lead the group")]
    NotLeader {
        /// The leader's node.
        leader: u64,
    },
    /// The leader has no entry of its own term committed yet: try again in a moment.
    #[error("the leader is not ready")]
    NotReady,
    /// Too many bytes wait to be committed.
    #[error("more than {PROPOSAL_BYTES_MAX} bytes wait to be committed")]
    Full,
}
