//! Drives a node as the server's driver does: send what needs no disk, write, send the rest, apply.

use std::hash::Hasher;

use galoo_consensus::{
    Entry, GroupId, StateMachine,
    log_store::LogStore,
    raft_loop::{Effects, Refused},
};
use galoo_proto::{Hlc, Keyspace};
use galoo_storage::{
    compaction::destroy_keyspace,
    engine::{Family, WriteBatch},
};
use raft::eraftpb::Message;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Bug, NODES, Violation, World,
    clients::{Operation, Request},
    network::{Packet, Place},
    node::{Answer, Asker, META, Process, TICK_MS},
};

impl World {
    /// Hands over what has arrived.
    pub(crate) fn deliver(&mut self) -> Result<(), Violation> {
        while let Some((from, to, packet)) = self.network.arrived(self.now) {
            let node = match to {
                Place::Client(client) => {
                    if let Packet::Answer { number, answer } = packet {
                        self.answered(client, number, answer)?;
                    }
                    continue;
                }
                Place::Node(node) => node,
            };
            let at = usize::try_from(node - 1).unwrap_or_default();
            if !self.nodes[at].is_up() {
                continue;
            }
            if !self.nodes[at].runs(self.now) {
                self.network.hold(self.nodes[at].paused_until(), from, to, packet);
                continue;
            }
            match packet {
                Packet::Raft(group, message) => {
                    if let Some(process) = &mut self.nodes[at].process {
                        process.raft.step(group, *message).expect("no message of a member is refused");
                    }
                }
                Packet::Request(request) => self.requested(at, from, &request),
                Packet::Pull { group, offer, cursor } => self.serve_block(at, from, group, offer, cursor),
                Packet::Pulled { group, offer, cursor, block } => self.take_block(at, group, offer, &cursor, block),
                Packet::Answer { .. } => {}
            }
        }
        Ok(())
    }

    fn requested(&mut self, at: usize, from: Place, request: &Request) {
        let Place::Client(client) = from else { return };
        let (asker, now, node) = ((client, request.number), self.now, &mut self.nodes[at]);
        let Some((group, range)) = node.route(&request.operation) else {
            self.answer(at, asker, Answer::Refused { leader: 0 });
            return;
        };
        let Some(process) = &mut node.process else { return };
        let ticket = process.ticket();
        let refused = match (&request.operation, request.operation.command(Hlc::from_millis(now), range)) {
            (Operation::Read { player }, _) if self.bug == Bug::ReadWithoutAsking => {
                if process.raft.role(group).is_some_and(|role| role.leads) {
                    let seen = node.read(group, *player);
                    self.answer(at, asker, Answer::Read(seen));
                    return;
                }
                Err(Refused::NotReady)
            }
            (Operation::Read { player }, _) => process.raft.read(group, ticket).map(|()| {
                process.reads.insert(ticket, (asker, *player));
            }),
            (_, Some(command)) => process.raft.propose(group, ticket, &command).map(|()| {
                process.proposals.insert(ticket, asker);
            }),
            (_, None) => Ok(()),
        };
        if let Err(refused) = refused {
            let leader = if let Refused::NotLeader { leader } = refused { leader } else { 0 };
            self.answer(at, asker, Answer::Refused { leader });
        }
    }

    fn answer(&mut self, at: usize, (client, number): Asker, answer: Answer) {
        let (from, to) = (Place::Node(self.nodes[at].id), Place::Client(client));
        self.network.send(self.now, from, to, Packet::Answer { number, answer }, &mut self.chance);
    }

    fn send(&mut self, messages: Vec<(GroupId, Message)>) {
        for (group, message) in messages {
            let (from, to) = (Place::Node(message.from), Place::Node(message.to));
            self.network.send(self.now, from, to, Packet::Raft(group, Box::new(message)), &mut self.chance);
        }
    }

    /// Turns the node's loop until it has no work, and applies some of what is committed.
    pub(crate) fn drive(&mut self, at: usize) -> Result<(), Violation> {
        let now = self.now;
        if let Some(process) = &mut self.nodes[at].process
            && now >= process.next_tick
        {
            // Ticks are never delivered in bursts.
            process.raft.tick();
            process.next_tick = now + TICK_MS;
        }
        loop {
            let Some(process) = &mut self.nodes[at].process else { return Ok(()) };
            let turn = process.raft.turn();
            if turn.writes.is_empty() {
                break;
            }
            self.send(turn.messages);
            if self.faults && self.chance.one_in(4_000) {
                self.crash(at);
                return Ok(());
            }
            self.nodes[at].disk.log.write(&turn.writes).expect("the log in memory writes");
            if self.faults && self.chance.one_in(4_000) {
                self.crash(at);
                return Ok(());
            }
            let Some(process) = &mut self.nodes[at].process else { return Ok(()) };
            let effects = process.raft.written();
            self.carry_out(at, effects)?;
        }
        self.apply(at);
        self.pull_on(at);
        self.relocate(at);
        self.tend(at);
        Ok(())
    }

    fn carry_out(&mut self, at: usize, effects: Effects) -> Result<(), Violation> {
        let now = self.now;
        self.send(effects.messages);
        let node = &mut self.nodes[at];
        for (group, place, index) in effects.installed {
            let Some(process) = &mut node.process else { continue };
            let Some(machine) = process.machines.get_mut(&group) else { continue };
            let moved = machine.moved(&node.disk.engine, Keyspace(place)).expect("a pulled state opens");
            assert!(moved.applied() == index, "the place holds {}, not {index}", moved.applied());
            let old = std::mem::replace(machine, moved).keyspace();
            // What the snapshot jumps over is not applied any more; its proposers learn nothing.
            process.queue.retain(|(of, entry)| *of != group || entry.index > index);
            destroy_keyspace(&node.disk.engine, old).expect("the engine writes");
            self.trace.report.snapshots += 1;
            self.trace.note(now, ("installed", at, group.0, index));
            if group == META {
                node.reconcile();
            }
        }
        for (_, place) in effects.discarded {
            self.trace.note(now, ("discarded", at));
            destroy_keyspace(&node.disk.engine, Keyspace(place)).expect("the engine writes");
        }
        let id = node.id;
        let Some(process) = &mut node.process else { return Ok(()) };
        for (group, entries) in effects.committed {
            for entry in entries {
                let mut hash = Xxh3::new();
                hash.write(&entry.data);
                let hash = hash.finish();
                self.trace.note(now, ("committed", at, group.0, entry.index, hash));
                self.oracle.handed_out(id, group, entry.index, hash)?;
                process.queue.push_back((group, entry));
            }
        }
        for (group, ticket, index) in effects.reads {
            if let Some((asker, player)) = process.reads.remove(&ticket) {
                process.waiting.push((group, index, asker, player));
            }
        }
        for (_, offer) in effects.released {
            let number = offer.data.as_ref().try_into().map(u64::from_le_bytes).unwrap_or_default();
            process.exports.remove(&number);
        }
        for ticket in &effects.unknown {
            process.proposals.remove(ticket);
        }
        let lost: Vec<Asker> = effects.lost.iter().filter_map(|ticket| process.proposals.remove(ticket)).collect();
        for asker in lost {
            self.answer(at, asker, Answer::Refused { leader: 0 });
        }
        for (group, role) in effects.roles {
            self.trace.note(now, ("role", at, group.0, role.term, role.leader, role.leads));
            if role.leads {
                self.oracle.leads(group, role.term, id)?;
            }
        }
        for (group, _) in effects.snapshots_wanted {
            self.freeze(at, group);
        }
        for (group, fetch) in effects.fetch {
            self.begin_pull(at, group, &fetch);
        }
        Ok(())
    }

    /// Applies some entries, by chance; and serves the reads that waited for them.
    fn apply(&mut self, at: usize) {
        let count = if self.faults { self.chance.below(7).saturating_sub(2) } else { u64::MAX };
        for _ in 0..count {
            let node = &mut self.nodes[at];
            let Some((group, entry)) = node.process.as_mut().and_then(|process| process.queue.pop_front()) else {
                break;
            };
            let commands = node.commands(group, entry.index, &entry.data);
            let commands: Vec<_> = commands.iter().map(Vec::as_slice).collect();
            let Some(process) = &mut node.process else { return };
            let Some(machine) = process.machines.get_mut(&group) else { continue };
            let mut batch = WriteBatch::default();
            let staged = machine.stage(&[Entry { index: entry.index, commands }], &mut batch);
            let outcomes = staged.expect("a command applies");
            node.disk.engine.write(batch).expect("the engine writes");
            machine.publish();
            process.raft.applied(group, entry.index);
            let askers = entry.tickets.iter().map(|ticket| process.proposals.remove(ticket));
            let answers: Vec<_> = askers.zip(outcomes).collect();
            if group == META {
                node.reconcile();
            }
            for (asker, outcome) in answers {
                if let Some(asker) = asker {
                    self.answer(at, asker, Answer::Done(Box::new(outcome)));
                }
            }
        }
        let Some(process) = &mut self.nodes[at].process else { return };
        let Process { machines, waiting, .. } = process;
        let has_applied =
            |group: GroupId, index: u64| machines.get(&group).is_some_and(|machine| machine.applied() >= index);
        let ready: Vec<_> = waiting.extract_if(.., |(group, index, ..)| has_applied(*group, *index)).collect();
        for (group, _, asker, player) in ready {
            let seen = self.nodes[at].read(group, player);
            self.answer(at, asker, Answer::Read(seen));
        }
    }

    /// Flushes, drops what nobody can read, cuts the logs, hands over leaderships, and replaces states, by chance.
    fn tend(&mut self, at: usize) {
        let (flush, hand_over) = (self.chance.one_in(40), self.faults && self.chance.one_in(1_500));
        let damaged = self.faults && self.chance.one_in(600);
        let to = 1 + self.chance.below(NODES);
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        if flush {
            node.disk.engine.flush().expect("the engine in memory flushes");
            for (group, machine) in &process.machines {
                let persisted = machine.persisted().expect("the engine reads");
                process.raft.cut(*group, persisted, 1).expect("the log cuts");
            }
            for family in [Family::Cells, Family::History] {
                node.disk.engine.compact(family, None).expect("the engine in memory compacts");
            }
        }
        if hand_over && to != node.id {
            process.machines.keys().for_each(|group| process.raft.transfer_leader(*group, to));
        }
        if damaged && to != node.id {
            self.rebuild(at, usize::try_from(to - 1).unwrap_or_default());
        }
    }
}
