//! The Raft thread: turns the loop over all groups.
//!
//! Under load it writes at most every [`SPACING`]: what is to be written and comes meanwhile travels, is written and is
//! applied together. What comes alone behind what came alone, or after a pause, is written at once, and what needs no
//! write (others' answers, reads) is never kept waiting.
//!
//! Messages that need no disk are handed to the transport before the local write begins, the others when it has
//! returned: a leader's entries are on their way to a majority while it writes its own.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use galoo_cluster::machine::Answer;
use galoo_consensus::{
    Committed, GroupId, StateMachine, Ticket,
    log_store::{GroupRecord, LogStore, shared::SharedLog},
    raft_loop::{RaftLoop, Role},
    wire,
};
use galoo_proto::Keyspace;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    Applied, ApplyInput, DriveError, Input, Move, Relocated, Replies, Reply, Store, TICK, apply_thread, end_process,
    mailbox::{Receiver, Sender, Wake},
};
use crate::transport::Transport;

/// Inputs that one turn takes at most: more wait for the next one.
const TURN_INPUTS_MAX: usize = 1_024;
/// Time between the beginnings of two writes of the log. A turn costs the same for one entry as for many, here and on
/// the followers; without a pause a fast disk would have every entry written alone.
const SPACING: Duration = Duration::from_millis(1);
/// Entries that a cut of the log must drop to be worth a write.
const CUT_ENTRIES_MIN: u64 = 1_024;
/// Bytes of commands that are committed and not applied; while there are more, appends are dropped, as if the network
/// had lost them: their leader sends them again later.
const BACKLOG_BYTES_MAX: usize = 128 << 20;
/// Ticks between two looks for callers that wait no more.
const SWEEP_TICKS: u32 = 50;

pub(super) struct RaftThread {
    pub(super) raft: RaftLoop,
    pub(super) log: Arc<SharedLog>,
    /// Bytes of log above which also a few entries are worth a cut.
    pub(super) log_bytes: u64,
    pub(super) transport: Arc<Transport>,
    pub(super) store: Arc<Store>,
    /// Groups whose state is being frozen.
    pub(super) freezing: HashSet<GroupId>,
    pub(super) applied: Arc<Applied>,
    pub(super) apply: Arc<[Sender<ApplyInput>]>,
    pub(super) roles: watch::Sender<Arc<HashMap<GroupId, Role>>>,
    pub(super) proposals: HashMap<Ticket, Reply<Answer>>,
    pub(super) reads: HashMap<Ticket, Reply<u64>>,
    pub(super) tickets: u64,
    /// When the last write of the log began.
    pub(super) wrote_at: Option<Instant>,
    /// What came and has to be written, in order.
    pub(super) to_write: Vec<Input>,
    /// Whether several were written together last.
    pub(super) crowded: bool,
}

impl RaftThread {
    pub(super) fn run(mut self, mut inputs: Receiver<Input>) {
        let mut next_tick = Instant::now() + TICK;
        let mut ticks = 0;
        loop {
            let (wake, until) = match self.write_at() {
                None => (Wake::Any, next_tick),
                Some(at) => (Wake::Urgent, at.min(next_tick)),
            };
            inputs.wait(wake, Some(until));
            if !self.take_all(&mut inputs) {
                break;
            }
            if self.write_at().is_some_and(|at| at <= Instant::now()) {
                self.crowded = self.keeps_several();
                for input in std::mem::take(&mut self.to_write) {
                    self.take(input);
                }
            }
            if Instant::now() >= next_tick {
                self.raft.tick();
                ticks += 1;
                if ticks % SWEEP_TICKS == 0 {
                    self.proposals.retain(|_, reply| !reply.is_closed());
                    self.reads.retain(|_, reply| !reply.is_closed());
                }
                next_tick = Instant::now() + TICK;
            }
            for (group, index) in self.applied.take() {
                self.raft.applied(group, index);
            }
            if let Err(failure) = self.turns() {
                // What was written is not known: this node can promise nothing more.
                end_process("the shared log failed", &failure);
            }
        }
    }

    /// Takes what waits, and keeps of it what has to be written; false when the thread is to end.
    fn take_all(&mut self, inputs: &mut Receiver<Input>) -> bool {
        for _ in 0..TURN_INPUTS_MAX {
            match inputs.try_next() {
                None => break,
                Some(Input::Stop) => return false,
                Some(input @ Input::Propose { .. }) => self.to_write.push(input),
                Some(Input::Step { messages, _permit }) => {
                    // Appends stay in order: one that overtook another would be refused.
                    let (appends, others): (Vec<_>, _) =
                        messages.into_iter().partition(|(_, message)| wire::is_append(message));
                    self.step(others);
                    if !appends.is_empty() {
                        self.to_write.push(Input::Step { messages: appends, _permit });
                    }
                }
                Some(input) => self.take(input),
            }
        }
        true
    }

    /// When what is kept is to be written. A caller who awaits each answer waits for nothing else.
    fn write_at(&self) -> Option<Instant> {
        let spaced = self.crowded || self.keeps_several();
        let at = || self.wrote_at.filter(|_| spaced).map_or_else(Instant::now, |at| at + SPACING);
        (!self.to_write.is_empty()).then(at)
    }

    /// Whether more than one command or append is kept.
    fn keeps_several(&self) -> bool {
        match self.to_write.as_slice() {
            [Input::Step { messages, .. }] => messages.len() > 1,
            kept => kept.len() > 1,
        }
    }

    fn step(&mut self, messages: Vec<(GroupId, wire::Message)>) {
        for (group, message) in messages {
            if let Err(failure) = self.raft.step(group, message) {
                warn!(%group, %failure, "a message of another node is refused");
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Open { group, record, machine, done } => {
                let opened = match machine.persisted() {
                    Ok(_) => self.raft.open(group, record, machine.applied()),
                    Err(error) => Err(galoo_consensus::Error::Damaged { group, reason: error.to_string() }),
                };
                if opened.is_ok() {
                    self.hand_on(group, ApplyInput::Open { group, machine });
                }
                let _ = done.send(opened);
            }
            Input::Destroy { group, done } => {
                self.hand_on(group, ApplyInput::Destroy { group });
                self.store.frozen.release_group(group);
                self.roles.send_modify(|roles| {
                    Arc::make_mut(roles).remove(&group);
                });
                let _ = done.send(self.raft.destroy(group));
            }
            Input::Propose { group, data, reply } => {
                let ticket = self.ticket();
                match self.raft.propose(group, ticket, &data) {
                    Ok(()) => {
                        self.proposals.insert(ticket, reply);
                    }
                    Err(refused) => {
                        let _ = reply.send(Err(refused.into()));
                    }
                }
            }
            Input::Read { group, reply } => {
                let ticket = self.ticket();
                match self.raft.read(group, ticket) {
                    Ok(()) => {
                        self.reads.insert(ticket, reply);
                    }
                    Err(refused) => {
                        let _ = reply.send(Err(refused.into()));
                    }
                }
            }
            Input::Step { messages, _permit } => {
                if self.applied.backlog.load(Ordering::Relaxed) > BACKLOG_BYTES_MAX {
                    let dropped = metrics::counter!("galoo_raft_messages_dropped_total", "to" => "self");
                    dropped.increment(messages.len() as u64);
                } else {
                    self.step(messages);
                }
            }
            // The state that took its place may have less on disk.
            Input::Cut { group, place, .. } if self.raft.place(group) != Some(place) => {}
            Input::Cut { group, persisted, .. } => {
                let entries_min = if self.log.bytes() > self.log_bytes { 1 } else { CUT_ENTRIES_MIN };
                if let Err(failure) = self.raft.cut(group, persisted, entries_min) {
                    error!(%failure, "the log could not be cut");
                }
            }
            Input::Frozen { group, offer } => {
                self.freezing.remove(&group);
                if let Some(offer) = offer {
                    info!(%group, index = offer.index, "offers a snapshot");
                    let name = offer.data.clone();
                    if self.raft.offer(group, offer).is_err() {
                        self.store.frozen.release(&name);
                    }
                }
            }
            Input::Pulled { group } => self.raft.renew(group),
            Input::Install { group, index, place } => {
                if self.raft.install(group, index, place).is_err() {
                    self.ask(Move::Discard(Keyspace(place)));
                }
            }
            Input::Abandon { group } => self.raft.abandon(group),
            Input::Keep { group, from } => self.raft.keep_from(group, from),
            Input::Relocate { group, index, place, done } => {
                let _ = done.send(self.relocate(group, index, place));
            }
            Input::Reopen { group, index } => {
                // The group has its record; who votes is in it.
                if let Err(failure) = self.raft.open(group, GroupRecord::default(), index) {
                    error!(%group, %failure, "a state was replaced and cannot be gone on from");
                }
            }
            Input::Stop => {}
        }
    }

    fn relocate(&mut self, group: GroupId, index: u64, place: u64) -> Relocated {
        match self.raft.relocate(group, index, place) {
            Ok(Ok(Some(unknown))) => {
                for ticket in unknown {
                    if let Some(reply) = self.proposals.remove(&ticket) {
                        let _ = reply.send(Err(DriveError::OutcomeUnknown));
                    }
                }
                self.store.frozen.release_group(group);
                self.hand_on(group, ApplyInput::Relocate { group, keyspace: Keyspace(place), index });
                Relocated::Done
            }
            Ok(Ok(None)) => Relocated::NotYet,
            Ok(Err(cut)) => Relocated::Never(cut.to_string()),
            Err(galoo_consensus::Error::UnknownGroup(_)) => Relocated::Never("the group is not here".to_owned()),
            Err(failure) => end_process("the shared log failed", &failure),
        }
    }

    fn ask(&self, wanted: Move) {
        // After the node's end nobody moves states: what is left is removed at the next start.
        let _ = self.store.moves.send(wanted);
    }

    /// Hands messages to the transport; what it drops is told to Raft, which sends it again.
    fn send(&mut self, messages: Vec<(GroupId, wire::Message)>) {
        for (group, node) in self.transport.send(messages) {
            self.raft.report_unreachable(group, node.0);
        }
    }

    /// Turns the loop until no group has work.
    fn turns(&mut self) -> galoo_consensus::Result<()> {
        loop {
            let turn = self.raft.turn();
            if turn.writes.is_empty() {
                return Ok(());
            }
            self.send(turn.messages);
            let changed = turn.writes.iter().any(|(_, write)| {
                write.record.is_some() || write.hard_state.is_some() || !write.entries.is_empty() || write.cut.is_some()
            });
            if changed {
                let started = Instant::now();
                self.wrote_at = Some(started);
                self.log.write(&turn.writes)?;
                metrics::histogram!("galoo_log_write_seconds").record(started.elapsed().as_secs_f64());
                for (group, write) in &turn.writes {
                    if let Some(index) = write.cut {
                        show_cut(*group, index);
                    }
                }
            }
            let effects = self.raft.written();
            self.send(effects.messages);
            for (group, place, index) in effects.installed {
                self.hand_on(group, ApplyInput::Swap { group, keyspace: Keyspace(place), index });
            }
            for (group, fetch) in effects.fetch {
                self.ask(Move::Fetch(group, fetch));
            }
            for (_, place) in effects.discarded {
                self.ask(Move::Discard(Keyspace(place)));
            }
            for (_, offer) in effects.released {
                self.store.frozen.release(&offer.data);
            }
            for (group, _) in effects.snapshots_wanted {
                if self.store.frozen.has_room() && self.freezing.insert(group) {
                    self.hand_on(group, ApplyInput::Freeze { group });
                }
            }
            for (group, entries) in effects.committed {
                let with_replies = entries.into_iter().map(|entry| {
                    let replies = entry.tickets.iter().map(|ticket| self.proposals.remove(ticket)).collect();
                    (entry, replies)
                });
                let entries: Vec<(Committed, Replies)> = with_replies.collect();
                let bytes = entries.iter().map(|(entry, _)| entry.data.len()).sum();
                self.applied.backlog.fetch_add(bytes, Ordering::Relaxed);
                self.hand_on(group, ApplyInput::Entries { group, entries });
            }
            for (_, ticket, index) in effects.reads {
                if let Some(reply) = self.reads.remove(&ticket) {
                    let _ = reply.send(Ok(index));
                }
            }
            for ticket in effects.lost {
                if let Some(reply) = self.proposals.remove(&ticket) {
                    let _ = reply.send(Err(DriveError::NotReady("its leader changed")));
                }
            }
            for ticket in effects.unknown {
                if let Some(reply) = self.proposals.remove(&ticket) {
                    let _ = reply.send(Err(DriveError::OutcomeUnknown));
                }
            }
            if !effects.roles.is_empty() {
                self.roles.send_modify(|roles| {
                    for (group, role) in &effects.roles {
                        info!(%group, leader = role.leader, term = role.term, leads = role.leads, "role");
                        Arc::make_mut(roles).insert(*group, *role);
                    }
                });
            }
        }
    }

    fn hand_on(&self, group: GroupId, input: ApplyInput) {
        apply_thread(&self.apply, group).send(input);
    }
}

/// Shows up to where a group's log was cut.
fn show_cut(group: GroupId, index: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    let gauge = index as f64;
    metrics::gauge!("galoo_log_cut_index", "group" => group.0.to_string()).set(gauge);
}
