//! All groups of a node, turn by turn. No clock, no thread, no disk, no network: the caller has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use raft::eraftpb::Message;

pub use crate::replica::{Refused, Role};
use crate::{
    Committed, Error, GroupId, Result, Ticket,
    log_store::{GroupRecord, GroupWrite, LogStore},
    replica::{Replica, Written},
};

/// Elections and heartbeats, in ticks, and the seed of all chance.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A follower that hears nothing campaigns after `election_ticks` to twice as many.
    pub election_ticks: usize,
    /// A leader sends a heartbeat every so many ticks.
    pub heartbeat_ticks: usize,
    /// Draws election timeouts.
    pub seed: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { election_ticks: 10, heartbeat_ticks: 2, seed: 0 }
    }
}

impl Timing {
    /// A function of seed, group, node and term alone.
    pub(crate) fn election_timeout(&self, group: GroupId, node: u64, term: u64) -> usize {
        let mut state = self.seed ^ group.0.rotate_left(17) ^ node.rotate_left(31) ^ term.rotate_left(47);
        // splitmix64 (Steele et al. 2014)
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let spread = self.election_ticks as u64;
        self.election_ticks + usize::try_from((state ^ (state >> 31)) % spread).unwrap_or(0)
    }
}

/// First half of a turn.
#[derive(Default)]
pub struct Turn {
    /// Messages that may go out before anything is written: to node, of group.
    pub messages: Vec<(GroupId, Message)>,
    /// What to write, with one sync, before [`RaftLoop::written`].
    pub writes: Vec<(GroupId, GroupWrite)>,
}

/// Second half of a turn.
#[derive(Default)]
pub struct Effects {
    /// Messages that had to wait for the write.
    pub messages: Vec<(GroupId, Message)>,
    /// Entries to apply, in order, by group.
    pub committed: Vec<(GroupId, Vec<Committed>)>,
    /// Reads that may be served once the group has applied the index.
    pub reads: Vec<(GroupId, Ticket, u64)>,
    /// Proposals that were never and will never be applied.
    pub lost: Vec<Ticket>,
    /// Members whose role changed.
    pub roles: Vec<(GroupId, Role)>,
}

/// All groups of a node.
pub struct RaftLoop {
    node: u64,
    log: Arc<dyn LogStore>,
    timing: Timing,
    replicas: BTreeMap<GroupId, Replica>,
    destroyed: BTreeSet<GroupId>,
    turning: Vec<(GroupId, Written)>,
    cuts: BTreeMap<GroupId, GroupWrite>,
}

impl RaftLoop {
    /// Takes the node's log. Groups are opened one by one.
    pub fn new(node: u64, log: Arc<dyn LogStore>, timing: Timing) -> Result<Self> {
        let destroyed =
            log.groups()?.into_iter().filter(|(_, record)| record.destroyed).map(|(group, _)| group).collect();
        let (replicas, turning, cuts) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Ok(Self { node, log, timing, replicas, destroyed, turning, cuts })
    }

    /// Makes a group on this node, durably, unless it exists; then opens it.
    ///
    /// `record` says who votes and where the state is; an existing group keeps its own. `applied` is what its state
    /// machine has applied durably.
    ///
    /// # Errors
    /// [`Error::Destroyed`] for a group that was removed here: it never comes back.
    pub fn open(&mut self, group: GroupId, record: GroupRecord, applied: u64) -> Result<()> {
        if self.destroyed.contains(&group) {
            return Err(Error::Destroyed(group));
        }
        if self.replicas.contains_key(&group) {
            return Ok(());
        }
        let known = self.log.groups()?.into_iter().find(|(known, _)| *known == group);
        let record = match known {
            Some((_, record)) => record,
            None => {
                let write = GroupWrite { record: Some(record.clone()), ..Default::default() };
                self.log.write(&[(group, write)])?;
                record
            }
        };
        let replica = Replica::open(self.node, group, record, self.log.clone(), applied, self.timing)?;
        self.replicas.insert(group, replica);
        Ok(())
    }

    /// Removes a group from this node; the tombstone is durable on return.
    pub fn destroy(&mut self, group: GroupId) -> Result<()> {
        self.replicas.remove(&group);
        self.cuts.remove(&group);
        self.destroyed.insert(group);
        let known = self.log.groups()?.into_iter().find(|(known, _)| *known == group);
        let record = GroupRecord { destroyed: true, ..known.map(|(_, record)| record).unwrap_or_default() };
        self.log.write(&[(group, GroupWrite { record: Some(record), clear: true, ..Default::default() })])
    }

    /// A tick of time, for every group.
    pub fn tick(&mut self) {
        self.replicas.values_mut().for_each(Replica::tick);
    }

    /// Takes a message of a peer. One for a group that is not here is dropped.
    pub fn step(&mut self, group: GroupId, message: Message) -> Result<()> {
        self.replicas.get_mut(&group).map_or(Ok(()), |replica| replica.step(message))
    }

    /// Proposes a command; the ticket comes back with its entry, or among the lost.
    pub fn propose(&mut self, group: GroupId, ticket: Ticket, data: Vec<u8>) -> Result<(), Refused> {
        self.replicas.get_mut(&group).ok_or(Refused::NotLeader { leader: 0 })?.propose(ticket, data)
    }

    /// Asks for a linearizable read; the ticket comes back with the index that must be applied first.
    ///
    /// The answer may be lost with the leadership: the caller has a deadline.
    pub fn read(&mut self, group: GroupId, ticket: Ticket) -> Result<(), Refused> {
        self.replicas.get_mut(&group).ok_or(Refused::NotLeader { leader: 0 })?.read(ticket)
    }

    /// Asks a group's leader, if it is here, to hand over to another node.
    pub fn transfer_leader(&mut self, group: GroupId, to: u64) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.transfer_leader(to);
        }
    }

    /// Tells that a group's state machine has applied up to `index`.
    pub fn applied(&mut self, group: GroupId, index: u64) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.applied(index);
        }
    }

    /// Lets a group's log go at or below `persisted`, if that is at least `entries_min` entries; written with the next turn.
    pub fn cut(&mut self, group: GroupId, persisted: u64, entries_min: u64) -> Result<()> {
        if let Some(replica) = self.replicas.get_mut(&group)
            && let Some(write) = replica.cut(persisted, entries_min)?
        {
            self.cuts.insert(group, write);
        }
        Ok(())
    }

    /// The role of this node's member of a group.
    pub fn role(&self, group: GroupId) -> Option<Role> {
        self.replicas.get(&group).map(Replica::role)
    }

    /// Gathers the first half of all groups' turns. Empty when nobody has work.
    pub fn turn(&mut self) -> Turn {
        assert!(self.turning.is_empty(), "INV-C1: a turn begins before the last one was written");
        let mut turn = Turn::default();
        for (group, replica) in &mut self.replicas {
            let cut = self.cuts.remove(group);
            if !replica.has_work() {
                turn.writes.extend(cut.map(|cut| (*group, cut)));
                continue;
            }
            let (messages, mut write, first) = replica.turn();
            turn.messages.extend(messages.into_iter().map(|message| (*group, message)));
            if let Some(cut) = cut {
                (write.record, write.cut) = (cut.record, cut.cut);
            }
            turn.writes.push((*group, write));
            self.turning.push((*group, first));
        }
        turn
    }

    /// Ends the turn: its writes are durable.
    pub fn written(&mut self) -> Effects {
        let mut effects = Effects::default();
        for (group, first) in std::mem::take(&mut self.turning) {
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            let written = replica.written(first);
            effects.messages.extend(written.messages.into_iter().map(|message| (group, message)));
            effects.reads.extend(written.reads.into_iter().map(|(ticket, index)| (group, ticket, index)));
            effects.lost.extend(written.lost);
            effects.roles.extend(written.role.map(|role| (group, role)));
            if !written.committed.is_empty() {
                effects.committed.push((group, written.committed));
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_store::memory::MemoryLog;

    const GROUP: GroupId = GroupId(1);

    /// Nodes without a network between them but the test's hands.
    struct Nodes {
        loops: Vec<RaftLoop>,
        applied: Vec<Vec<(u64, Vec<u8>)>>,
        reads: Vec<(usize, Ticket, u64)>,
        lost: Vec<Ticket>,
        cut_off: BTreeSet<u64>,
    }

    impl Nodes {
        fn new(count: u64) -> Self {
            let voters: Vec<u64> = (1..=count).collect();
            let open = |node: &u64| {
                let log = Arc::new(MemoryLog::default());
                let mut raft = RaftLoop::new(*node, log, Timing { seed: 7, ..Timing::default() }).expect("new");
                let record = GroupRecord { voters: voters.clone(), ..Default::default() };
                raft.open(GROUP, record, 0).expect("open");
                raft
            };
            let loops: Vec<_> = voters.iter().map(open).collect();
            let applied = vec![Vec::new(); loops.len()];
            Self { loops, applied, reads: vec![], lost: vec![], cut_off: BTreeSet::new() }
        }

        /// Runs turns and carries messages until nothing moves.
        fn settle(&mut self) {
            loop {
                let mut messages = Vec::new();
                let mut moved = false;
                for (at, raft) in self.loops.iter_mut().enumerate() {
                    let turn = raft.turn();
                    moved |= !turn.writes.is_empty();
                    messages.extend(turn.messages);
                    raft.log.write(&turn.writes).expect("write");
                    let effects = raft.written();
                    messages.extend(effects.messages);
                    self.lost.extend(effects.lost);
                    self.reads.extend(effects.reads.into_iter().map(|(_, ticket, index)| (at, ticket, index)));
                    for (group, entries) in effects.committed {
                        raft.applied(group, entries.last().map_or(0, |entry| entry.index));
                        let data = entries.into_iter().filter(|entry| !entry.data.is_empty());
                        self.applied[at].extend(data.map(|entry| (entry.index, entry.data.to_vec())));
                    }
                }
                for (group, message) in messages {
                    if !self.cut_off.contains(&message.from) && !self.cut_off.contains(&message.to) {
                        let to = usize::try_from(message.to - 1).expect("small");
                        self.loops[to].step(group, message).expect("step");
                        moved = true;
                    }
                }
                if !moved {
                    return;
                }
            }
        }

        fn leader(&mut self) -> usize {
            for _ in 0..200 {
                let leads = |raft: &RaftLoop| {
                    !self.cut_off.contains(&raft.node) && raft.role(GROUP).is_some_and(|role| role.leads)
                };
                if let Some(leader) = self.loops.iter().position(leads) {
                    return leader;
                }
                self.loops.iter_mut().for_each(RaftLoop::tick);
                self.settle();
            }
            panic!("no leader after 200 ticks");
        }
    }

    #[test]
    fn a_sole_voter_leads_at_once_and_serves_reads() {
        let mut nodes = Nodes::new(1);
        nodes.settle();
        assert!(nodes.loops[0].role(GROUP).expect("here").leads);
        nodes.loops[0].propose(GROUP, Ticket(1), b"a".to_vec()).expect("proposed");
        nodes.settle();
        assert_eq!(nodes.applied[0], vec![(2, b"a".to_vec())]);
        nodes.loops[0].read(GROUP, Ticket(2)).expect("read");
        nodes.settle();
        assert_eq!(nodes.reads, vec![(0, Ticket(2), 2)]);
    }

    #[test]
    fn a_leader_cut_off_commits_nothing_and_its_proposal_is_lost_after_healing() {
        let mut nodes = Nodes::new(3);
        let old = nodes.leader();
        nodes.loops[old].propose(GROUP, Ticket(1), b"kept".to_vec()).expect("proposed");
        nodes.settle();
        nodes.cut_off.insert(old as u64 + 1);
        nodes.loops[old].propose(GROUP, Ticket(2), b"lost".to_vec()).expect("proposed");
        nodes.settle();
        let new = nodes.leader();
        assert_ne!(new, old);
        nodes.loops[new].propose(GROUP, Ticket(3), b"new".to_vec()).expect("proposed");
        nodes.settle();
        nodes.cut_off.clear();
        for _ in 0..5 {
            nodes.loops.iter_mut().for_each(RaftLoop::tick);
            nodes.settle();
        }
        let words = |at: usize| nodes.applied[at].iter().map(|(_, data)| data.clone()).collect::<Vec<_>>();
        assert_eq!(words(old), vec![b"kept".to_vec(), b"new".to_vec()]);
        assert_eq!(words(old), words(new));
        assert_eq!(nodes.lost, vec![Ticket(2)]);
    }

    #[test]
    fn a_destroyed_group_does_not_come_back() {
        let mut nodes = Nodes::new(1);
        nodes.settle();
        nodes.loops[0].destroy(GROUP).expect("destroyed");
        let again = GroupRecord { voters: vec![1], ..Default::default() };
        assert!(matches!(nodes.loops[0].open(GROUP, again, 0), Err(Error::Destroyed(GROUP))));
    }

    #[test]
    fn a_log_that_ends_below_what_was_applied_is_damage() {
        let log = Arc::new(MemoryLog::default());
        let mut raft = RaftLoop::new(1, log, Timing::default()).expect("new");
        let record = GroupRecord { voters: vec![1], ..Default::default() };
        assert!(matches!(raft.open(GROUP, record, 5), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_cut_log_opens_again_behind_the_cut() {
        let log = Arc::new(MemoryLog::default());
        let record = GroupRecord { voters: vec![1], ..Default::default() };
        let mut raft = RaftLoop::new(1, log.clone(), Timing::default()).expect("new");
        raft.open(GROUP, record.clone(), 0).expect("open");
        let run = |raft: &mut RaftLoop| loop {
            let turn = raft.turn();
            if turn.writes.is_empty() {
                break;
            }
            log.write(&turn.writes).expect("write");
            for (group, entries) in raft.written().committed {
                raft.applied(group, entries.last().map_or(0, |entry| entry.index));
            }
        };
        run(&mut raft);
        for i in 0..10 {
            raft.propose(GROUP, Ticket(i), vec![1]).expect("proposed");
            run(&mut raft);
        }
        raft.cut(GROUP, 8, 1).expect("cut");
        run(&mut raft);
        assert_eq!(log.bounds(GROUP).expect("bounds"), Some((9, 11)));
        let mut raft = RaftLoop::new(1, log.clone(), Timing::default()).expect("new");
        assert!(matches!(raft.open(GROUP, record.clone(), 7), Err(Error::Damaged { .. })), "entry 8 is gone");
        raft.open(GROUP, record, 8).expect("open");
        run(&mut raft);
        assert!(raft.role(GROUP).expect("here").leads);
    }
}
