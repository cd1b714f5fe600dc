//! All groups of a node, turn by turn. No clock, no thread, no disk, no network: the caller has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use raft::eraftpb::Message;

use crate::{
    Committed, Error, GroupId, Result, Ticket,
    log_store::{GroupRecord, GroupWrite, LogStore},
    replica::{Replica, Written},
};
pub use crate::{
    replica::{CutAbove, Refused, Role},
    snapshot::{Fetch, Limits, NotOffered, Offer},
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
        let spread = self.election_ticks as u64;
        self.election_ticks + usize::try_from(splitmix64(&mut state) % spread).unwrap_or(0)
    }
}

/// The next number of a sequence (Steele et al. 2014).
pub(crate) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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
    /// Proposals of which this node does not learn whether they are applied.
    pub unknown: Vec<Ticket>,
    /// Members whose role changed.
    pub roles: Vec<(GroupId, Role)>,
    /// A follower (the second) needs a snapshot, and none is offered: freeze the state and [`RaftLoop::offer`] it. Comes
    /// again and again until then.
    pub snapshots_wanted: Vec<(GroupId, u64)>,
    /// Offers that ended: what was frozen for them can go. A group that is destroyed or opened anew tells none.
    pub released: Vec<(GroupId, Offer)>,
    /// A state that this node's member needs: pull it, then [`RaftLoop::install`] or [`RaftLoop::abandon`].
    pub fetch: Vec<(GroupId, Fetch)>,
    /// The group's state is the one at this place (the second) with this index applied (the third): swap the state
    /// machine before anything of `committed` is applied. What was at the old place can go.
    pub installed: Vec<(GroupId, u64, u64)>,
    /// Places whose state is not needed any more, although [`RaftLoop::install`] was asked: it can go.
    pub discarded: Vec<(GroupId, u64)>,
}

/// All groups of a node.
pub struct RaftLoop {
    node: u64,
    log: Arc<dyn LogStore>,
    timing: Timing,
    limits: Limits,
    replicas: BTreeMap<GroupId, Replica>,
    destroyed: BTreeSet<GroupId>,
    turning: Vec<(GroupId, Written)>,
}

impl RaftLoop {
    /// Takes the node's log. Groups are opened one by one.
    pub fn new(node: u64, log: Arc<dyn LogStore>, timing: Timing) -> Result<Self> {
        let destroyed =
            log.groups()?.into_iter().filter(|(_, record)| record.destroyed).map(|(group, _)| group).collect();
        let (limits, replicas, turning) = (Limits::default(), BTreeMap::new(), Vec::new());
        Ok(Self { node, log, timing, limits, replicas, destroyed, turning })
    }

    /// Sets limits other than the default for the groups that are opened from here on.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
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
        let record = match self.log.record(group)? {
            Some(record) => record,
            None => {
                let write = GroupWrite { record: Some(record.clone()), ..Default::default() };
                self.log.write(&[(group, write)])?;
                record
            }
        };
        let replica = Replica::open(self.node, group, record, self.log.clone(), applied, self.timing, self.limits)?;
        self.replicas.insert(group, replica);
        Ok(())
    }

    /// Removes a group from this node; the tombstone is durable on return.
    pub fn destroy(&mut self, group: GroupId) -> Result<()> {
        self.replicas.remove(&group);
        self.destroyed.insert(group);
        let record = GroupRecord { destroyed: true, ..self.log.record(group)?.unwrap_or_default() };
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
    ///
    /// What a group is asked for between two turns becomes one entry.
    pub fn propose(&mut self, group: GroupId, ticket: Ticket, data: &[u8]) -> Result<(), Refused> {
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

    /// Tells that a message of a group did not reach a node: its leader sends the same entries again once that answers.
    pub fn report_unreachable(&mut self, group: GroupId, node: u64) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.report_unreachable(node);
        }
    }

    /// Tells that a group's state machine has applied up to `index`.
    pub fn applied(&mut self, group: GroupId, index: u64) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.applied(index);
        }
    }

    /// Lets a group's log go at or below `persisted`, if that is at least `entries_min` entries; written with the next turn.
    ///
    /// What a voter still needs stays, if it is not further behind than [`Limits`] say, and what lies above an offer.
    pub fn cut(&mut self, group: GroupId, persisted: u64, entries_min: u64) -> Result<()> {
        self.replicas.get_mut(&group).map_or(Ok(()), |replica| replica.cut(persisted, entries_min))
    }

    /// Where the state of a group is.
    pub fn place(&self, group: GroupId) -> Option<u64> {
        self.replicas.get(&group).map(Replica::place)
    }

    /// Offers a frozen state to the followers that need one; it takes the place of an offer that stands.
    ///
    /// The state stays frozen until the offer comes back among [`Effects::released`].
    ///
    /// # Errors
    /// [`NotOffered`] when the group is not led here or the log was cut above the offer: what was frozen can go.
    pub fn offer(&mut self, group: GroupId, offer: Offer) -> Result<(), NotOffered> {
        self.replicas.get_mut(&group).ok_or(NotOffered)?.offer(offer)
    }

    /// Tells that somebody pulls from what a group offers: it is not given up for being idle.
    pub fn renew(&mut self, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.renew();
        }
    }

    /// Ends a group's offer. Who waits for it is asked again what it needs.
    pub fn withdraw(&mut self, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.withdraw();
        }
    }

    /// Tells that the state of [`Effects::fetch`] with this index is durable at a place of its own.
    ///
    /// The place comes back among [`Effects::installed`], once the switch to it is durable, or [`Effects::discarded`].
    pub fn install(&mut self, group: GroupId, index: u64, place: u64) -> Result<()> {
        self.replicas.get_mut(&group).ok_or(Error::UnknownGroup(group))?.install(index, place);
        Ok(())
    }

    /// Tells that the state of [`Effects::fetch`] could not be pulled. It is asked for again if it is still needed.
    pub fn abandon(&mut self, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.abandon();
        }
    }

    /// Keeps what is behind `index` in a group's log, or lets it go again: a state with it applied is on its way, to take the
    /// place of the one here.
    pub fn keep_from(&mut self, group: GroupId, index: Option<u64>) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.kept_from = index;
        }
    }

    /// Puts the state at `place`, which has `index` applied and is durable, in the place of the one here, durably; it may be
    /// older or newer. To be called between two turns.
    ///
    /// The member rests until [`RaftLoop::open`] with `index`; it then hands out again what comes behind. Returns the
    /// proposals of which this node does not learn whether they are applied, or `None` while the index is not committed here
    /// or a snapshot is on its way: nothing is done then. An offer ends without being told.
    ///
    /// # Errors
    /// [`CutAbove`], when the log does not lead on from there any more.
    pub fn relocate(
        &mut self,
        group: GroupId,
        index: u64,
        place: u64,
    ) -> Result<Result<Option<Vec<Ticket>>, CutAbove>> {
        assert!(self.turning.is_empty(), "INV-C1: {group} is moved while a turn is written");
        let replica = self.replicas.get(&group).ok_or(Error::UnknownGroup(group))?;
        match replica.leads_on_from(index) {
            Err(cut) => return Ok(Err(cut)),
            Ok(false) => return Ok(Ok(None)),
            Ok(true) => {}
        }
        let replica = self.replicas.remove(&group).ok_or(Error::UnknownGroup(group))?;
        let (record, tickets) = replica.close();
        let record = GroupRecord { place, ..record };
        self.log.write(&[(group, GroupWrite { record: Some(record), ..Default::default() })])?;
        Ok(Ok(Some(tickets)))
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
            replica.try_install();
            if replica.has_work() {
                let (messages, write, first) = replica.turn();
                turn.messages.extend(messages.into_iter().map(|message| (*group, message)));
                turn.writes.push((*group, write));
                self.turning.push((*group, first));
            }
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
            effects.unknown.extend(written.unknown);
            effects.snapshots_wanted.extend(written.wanted.into_iter().map(|to| (group, to)));
            effects.released.extend(written.released.into_iter().map(|offer| (group, offer)));
            effects.fetch.extend(written.fetch.map(|fetch| (group, fetch)));
            effects.installed.extend(written.installed.map(|(place, index)| (group, place, index)));
            effects.discarded.extend(written.discarded.into_iter().map(|place| (group, place)));
            effects.roles.extend(written.role.map(|role| (group, role)));
            if !written.committed.is_empty() {
                effects.committed.push((group, written.committed));
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests;
