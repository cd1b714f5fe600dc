//! One group's member on this node: the Raft state and who waits for what.

mod snapshots;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use raft::{
    Config, RawNode, Ready, StateRole,
    eraftpb::{Entry, HardState, Message, MessageType},
    storage::Storage,
};

use crate::{
    Committed, Error, GroupId, Result, Ticket,
    entry::Packer,
    group_log::GroupLog,
    lag::Lag,
    log_store::{GroupRecord, GroupWrite, LogStore},
    raft_loop::Timing,
    snapshot::{Fetch, Held, Limits, Offer},
};

/// Bytes of proposals of one group that are not committed; beyond it proposals are refused.
pub(crate) const PROPOSAL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of entries in one message to a follower.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Messages with entries that a follower has not answered; beyond it the leader waits.
const INFLIGHT_MESSAGES_MAX: usize = 256;
/// Bytes of entries that one turn hands out to be applied.
const COMMITTED_BYTES_MAX: u64 = 8 << 20;

/// Bytes of commands that become one entry, but for the last command.
const ENTRY_BYTES_MAX: usize = 512 << 10;

/// Proposals on this node whose entry is not committed yet.
struct Pending {
    index: u64,
    term: u64,
    tickets: Vec<Ticket>,
}

/// Proposals that wait for the next turn, to become one entry.
#[derive(Default)]
struct Waiting {
    entry: Packer,
    tickets: Vec<Ticket>,
}

pub(crate) struct Replica {
    pub(crate) group: GroupId,
    node: RawNode<GroupLog>,
    timing: Timing,
    limits: Limits,
    /// Ticks since the start.
    now: u64,
    waiting: Waiting,
    /// Proposals that raft-rs did not take, to be told with the next turn.
    dropped: Vec<Ticket>,
    pending: VecDeque<Pending>,
    /// A `Ready` whose writes are under way.
    ready: Option<Ready>,
    /// The state machine's last applied index, as far as it told.
    applied: u64,
    role: Role,
    lag: Lag,
    /// The last commit that the followers were told in a message of its own, and when, in ticks.
    told: u64,
    told_at: u64,
    /// The log's new start, which is in the record and not written yet.
    cut: Option<u64>,
    /// Offers that ended and were not told yet.
    released: Vec<Offer>,
    /// Since when raft-rs waits for a follower to answer a snapshot.
    sent_at: BTreeMap<u64, u64>,
    held: Option<Held>,
    /// Where the state of the snapshot is that raft-rs has taken.
    installing: Option<u64>,
    /// Places whose state raft-rs did not need any more, not told yet.
    discarded: Vec<u64>,
    /// What is behind this index stays in the log: a state with it applied is on its way.
    pub(crate) kept_from: Option<u64>,
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
    pub(crate) unknown: Vec<Ticket>,
    pub(crate) role: Option<Role>,
    pub(crate) wanted: Vec<u64>,
    pub(crate) released: Vec<Offer>,
    pub(crate) fetch: Option<Fetch>,
    pub(crate) installed: Option<(u64, u64)>,
    pub(crate) discarded: Vec<u64>,
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
        limits: Limits,
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
            // `tell_commit` does it.
            skip_bcast_commit: true,
            // Not `batch_append`: it appends to an earlier message although a probe has moved on between, and a follower
            // takes entries with a gap (found by the simulator). Proposals are packed before they come here.
            ..Config::default()
        };
        let log = GroupLog::new(store, group, record, hard_state);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger).map_err(|source| Error::Raft { group, source })?;
        let mut replica = Self {
            group,
            node,
            timing,
            limits,
            now: 0,
            waiting: Waiting::default(),
            dropped: Vec::new(),
            pending: VecDeque::new(),
            ready: None,
            applied,
            role: Role::default(),
            lag: Lag::default(),
            told: 0,
            told_at: 0,
            cut: None,
            released: Vec::new(),
            sent_at: BTreeMap::new(),
            held: None,
            installing: None,
            discarded: Vec::new(),
            kept_from: None,
        };
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
        self.now += 1;
        self.node.tick();
        self.tell_commit();
        self.draw_timeout();
        self.tend_offer();
        let applied = self.applied;
        self.node.mut_store().tick(applied);
    }

    pub(crate) fn step(&mut self, message: Message) -> Result<()> {
        if self.is_stale_rejection(&message) {
            return Ok(());
        }
        if message.get_msg_type() == MessageType::MsgSnapshot && self.needs(&message) {
            // One at a time; the leader sends it again as long as it is needed.
            self.held.get_or_insert_with(|| Held::new(message));
            return Ok(());
        }
        let stepped = self.node.step(message);
        self.tell_commit();
        self.draw_timeout();
        match stepped {
            // Messages of former members and out of turn are dropped, as a lossy network would.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::StepLocalMsg | raft::Error::ProposalDropped) => {
                Ok(())
            }
            Err(source) => Err(Error::Raft { group: self.group, source }),
        }
    }

    pub(crate) fn propose(&mut self, ticket: Ticket, data: &[u8]) -> Result<(), Refused> {
        if self.node.raft.state != StateRole::Leader {
            return Err(Refused::NotLeader { leader: self.node.raft.leader_id });
        }
        let uncommitted = self.node.raft.uncommitted_size() + self.waiting.entry.len() + data.len();
        if uncommitted as u64 > PROPOSAL_BYTES_MAX {
            return Err(Refused::Full);
        }
        self.waiting.entry.push(data);
        self.waiting.tickets.push(ticket);
        if self.waiting.entry.len() >= ENTRY_BYTES_MAX {
            self.propose_waiting();
        }
        Ok(())
    }

    /// Hands what waits to raft-rs as one entry.
    fn propose_waiting(&mut self) {
        let Waiting { entry, tickets } = std::mem::take(&mut self.waiting);
        if tickets.is_empty() {
            return;
        }
        let leads = self.node.raft.state == StateRole::Leader;
        if leads && self.node.propose(Vec::new(), entry.finish()).is_ok() {
            let (index, term) = (self.node.raft.raft_log.last_index(), self.node.raft.term);
            self.pending.push_back(Pending { index, term, tickets });
        } else {
            self.dropped.extend(tickets);
        }
    }

    /// Tells the followers what is committed, once a tick. What is committed close behind travels with the entries after
    /// it, or is told with the next tick, instead of in messages of its own.
    fn tell_commit(&mut self) {
        let raft = &mut self.node.raft;
        let committed = raft.raft_log.committed;
        if raft.state == StateRole::Leader && committed > self.told && self.told_at < self.now {
            (self.told, self.told_at) = (committed, self.now);
            raft.bcast_append();
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

    pub(crate) fn report_unreachable(&mut self, node: u64) {
        self.node.report_unreachable(node);
    }

    pub(crate) fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        self.node.advance_apply_to(self.applied);
    }

    pub(crate) fn has_work(&self) -> bool {
        let to_tell = !self.released.is_empty()
            || !self.discarded.is_empty()
            || !self.node.store().wanted.borrow().is_empty()
            || self.held.as_ref().is_some_and(|held| !held.told)
            || !self.waiting.tickets.is_empty()
            || !self.dropped.is_empty();
        self.ready.is_none() && (to_tell || self.cut.is_some() || self.node.has_ready())
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// First half of a turn: messages that need no disk, and what to write.
    pub(crate) fn turn(&mut self) -> (Vec<Message>, GroupWrite, Written) {
        self.propose_waiting();
        let mut first = Written {
            wanted: std::mem::take(self.node.mut_store().wanted.get_mut()).into_iter().collect(),
            released: std::mem::take(&mut self.released),
            discarded: std::mem::take(&mut self.discarded),
            lost: std::mem::take(&mut self.dropped),
            ..Default::default()
        };
        if let Some(held) = self.held.as_mut().filter(|held| !held.told) {
            held.told = true;
            first.fetch = Some(held.fetch());
        }
        if !self.node.has_ready() {
            return (Vec::new(), self.cut_write(), first);
        }
        let mut ready = self.node.ready();
        let messages = ready.take_messages();
        first.reads.extend(ready.take_read_states().into_iter().filter_map(|state| {
            let ticket = state.request_ctx.as_slice().try_into().ok().map(u64::from_le_bytes)?;
            Some((Ticket(ticket), state.index))
        }));
        self.commit(ready.take_committed_entries(), &mut first);
        let entries = ready.take_entries();
        if let Some(last) = entries.last() {
            let bytes = entries.iter().map(|entry| entry.data.len() as u64).sum();
            self.lag.appended(last.index, bytes);
            self.node.mut_store().writing(&entries);
        }
        let mut write =
            if ready.snapshot().is_empty() { self.cut_write() } else { self.install_write(&ready, &mut first) };
        write.entries = entries;
        if ready.must_sync()
            && let Some(hard_state) = ready.hs()
        {
            write.hard_state = Some(hard_state.clone());
        }
        self.ready = Some(ready);
        (messages, write, first)
    }

    /// What makes the cut of the log durable, if there is one to write.
    fn cut_write(&mut self) -> GroupWrite {
        let cut = self.cut.take();
        let record = cut.is_some().then(|| self.node.store().record.clone());
        GroupWrite { record, cut, ..Default::default() }
    }

    /// What switches the group to the state that was pulled: all of it or, after a crash, nothing.
    fn install_write(&mut self, ready: &Ready, first: &mut Written) -> GroupWrite {
        let metadata = ready.snapshot().get_metadata();
        let place = self.installing.take();
        assert!(place.is_some(), "INV-C2: {} takes a snapshot whose state is in no place", self.group);
        let place = place.unwrap_or_default();
        let record = GroupRecord {
            destroyed: false,
            place,
            cut_index: metadata.index,
            cut_term: metadata.term,
            voters: metadata.get_conf_state().voters.clone(),
        };
        self.node.mut_store().record = record.clone();
        self.cut = None;
        self.lag = Lag::default();
        // Whether what this node proposed is among what the snapshot jumps over is not known here.
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.index <= metadata.index) {
            first.unknown.extend(pending.tickets);
        }
        self.node.mut_store().cleared();
        first.installed = Some((place, metadata.index));
        // A clear takes the hard state with it.
        let hard_state = Some(self.node.raft.hard_state());
        GroupWrite { record: Some(record), hard_state, clear: true, ..Default::default() }
    }

    /// Second half, once everything is written: what had to wait for it.
    pub(crate) fn written(&mut self, mut first: Written) -> Written {
        let Some(mut ready) = self.ready.take() else { return first };
        first.messages.append(&mut ready.take_persisted_messages());
        let mut light = self.node.advance_append(ready);
        self.tell_commit();
        first.messages.append(&mut light.take_messages());
        if let Some((_, index)) = first.installed {
            // The state is durable in its place. raft-rs campaigns over what lies above the applied index, and the log
            // begins here.
            self.applied(index);
        }
        self.commit(light.take_committed_entries(), &mut first);
        self.draw_timeout();
        let raft = &self.node.raft;
        let role = Role { leader: raft.leader_id, term: raft.term, leads: raft.state == StateRole::Leader };
        if role != self.role {
            if role.leads && !self.role.leads {
                self.voters().iter().for_each(|(voter, matched)| self.lag.wait_for(*voter, *matched, self.now));
            }
            self.role = role;
            first.role = Some(role);
        }
        first
    }

    /// Hands out committed entries with the tickets that wait for them; a ticket whose place went to another term's
    /// entry is lost: its command was never and will never be applied.
    fn commit(&mut self, entries: Vec<Entry>, out: &mut Written) {
        for entry in entries {
            let mut tickets = Vec::new();
            while let Some(first) = self.pending.pop_front_if(|first| first.index <= entry.index) {
                if first.index == entry.index && first.term == entry.term {
                    tickets = first.tickets;
                } else {
                    out.lost.extend(first.tickets);
                }
            }
            out.committed.push(Committed { index: entry.index, data: entry.data, tickets });
        }
    }

    /// Whether another state than the one here, with `index` applied, can take its place: the log leads on from there.
    pub(crate) fn leads_on_from(&self, index: u64) -> Result<bool, CutAbove> {
        let cut_index = self.node.store().record.cut_index;
        if index < cut_index {
            return Err(CutAbove { index, cut_index });
        }
        let is_idle = self.ready.is_none() && self.cut.is_none() && self.held.is_none() && self.installing.is_none();
        Ok(is_idle && index <= self.node.raft.raft_log.committed)
    }

    /// Ends this member, until it is opened again; returns its record, and the proposals of which it learns nothing more.
    pub(crate) fn close(mut self) -> (GroupRecord, Vec<Ticket>) {
        let mut tickets: Vec<Ticket> = self.pending.drain(..).flat_map(|pending| pending.tickets).collect();
        tickets.append(&mut self.waiting.tickets);
        tickets.append(&mut self.dropped);
        (self.node.store().record.clone(), tickets)
    }

    /// The voters and the index that each is known to hold, as far as this leader can tell.
    fn voters(&self) -> Vec<(u64, u64)> {
        self.node.raft.prs().iter().map(|(voter, progress)| (*voter, progress.matched)).collect()
    }

    /// Where its state is.
    pub fn place(&self) -> u64 {
        self.node.store().record.place
    }

    /// Cuts the log at or below `index`, which is applied durably, as far as nobody who is waited for needs it; not
    /// when that drops fewer than `entries_min`.
    pub(crate) fn cut(&mut self, index: u64, entries_min: u64) -> Result<()> {
        let (log, start) = (&self.node.raft.raft_log, self.node.store().record.cut_index);
        let held = if self.node.raft.state == StateRole::Leader {
            self.lag.held(&self.voters(), start, log.last_index(), &self.limits)
        } else {
            log.committed
        };
        let offered = self.node.store().standing.as_ref().map_or(u64::MAX, |standing| standing.offer.index);
        let index = index.min(held).min(offered).min(self.kept_from.unwrap_or(u64::MAX)).min(self.applied);
        if index < start + entries_min {
            return Ok(());
        }
        assert!(index <= offered && index <= self.applied, "INV-C3: {} is cut at {index}", self.group);
        let group = self.group;
        let cut_term = self.node.store().term(index).map_err(|source| Error::Raft { group, source })?;
        let record = &mut self.node.mut_store().record;
        (record.cut_index, record.cut_term) = (index, cut_term);
        self.cut = Some(index);
        self.lag.cut(index);
        Ok(())
    }
}

/// The log does not reach back to where a state ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log was cut at {cut_index}, above the state's {index}")]
pub struct CutAbove {
    /// What the state has applied.
    pub index: u64,
    /// Where the log begins.
    pub cut_index: u64,
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
