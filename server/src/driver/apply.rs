//! An apply thread: owns state machines, applies what is committed in order, and runs jobs between two entries.
//!
//! What waits is applied together, in one write for all groups of the thread: one that falls behind pays less for each.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use crossbeam_channel::{Receiver, Sender};
use galoo_consensus::{Committed, Entry, GroupId, StateMachine, entry, raft_loop::Offer};
use galoo_proto::{Keyspace, ShardId};
use galoo_storage::engine::WriteBatch;
use tracing::{error, info};

use super::{Applied, Input, Job, Move, Replies, Reply, Store};
use crate::machine::{Answer, Machine, MachineError};

/// Bytes of commands that are applied together, but for the last entry.
const TOGETHER_BYTES_MAX: usize = 8 << 20;

pub(super) enum ApplyInput {
    Open {
        group: GroupId,
        machine: Box<Machine>,
    },
    Destroy {
        group: GroupId,
    },
    Entries {
        group: GroupId,
        entries: Vec<(Committed, Replies)>,
    },
    /// Answer once the group has applied `index`.
    Await {
        group: GroupId,
        index: u64,
        reply: Reply<()>,
    },
    /// Go on with the state in another keyspace, which has applied `index`.
    Swap {
        group: GroupId,
        keyspace: Keyspace,
        index: u64,
    },
    /// Freeze the state as it is.
    Freeze {
        group: GroupId,
    },
    Job {
        group: GroupId,
        job: Job,
    },
    Stop,
}

pub(super) struct ApplyWorker {
    machines: HashMap<GroupId, Machine>,
    /// Reads that wait for an index.
    waiting: HashMap<GroupId, Vec<(u64, Reply<()>)>>,
    inputs: Sender<Input>,
    applied: Arc<Applied>,
    store: Arc<Store>,
}

impl ApplyWorker {
    pub(super) fn new(inputs: Sender<Input>, applied: Arc<Applied>, store: Arc<Store>) -> Self {
        Self { machines: HashMap::new(), waiting: HashMap::new(), inputs, applied, store }
    }

    pub(super) fn run(mut self, received: &Receiver<ApplyInput>) {
        while let Ok(first) = received.recv() {
            // By group: groups do not know of each other's order.
            let mut together: BTreeMap<GroupId, Vec<(Committed, Replies)>> = BTreeMap::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(input) = next {
                match input {
                    ApplyInput::Entries { group, entries } => {
                        bytes += bytes_of(&entries);
                        together.entry(group).or_default().extend(entries);
                    }
                    other => {
                        self.apply_together(&mut together);
                        if matches!(other, ApplyInput::Stop) {
                            return;
                        }
                        self.take(other);
                    }
                }
                next = if bytes < TOGETHER_BYTES_MAX { received.try_recv().ok() } else { None };
            }
            self.apply_together(&mut together);
        }
    }

    fn take(&mut self, input: ApplyInput) {
        match input {
            ApplyInput::Open { group, machine } => {
                self.machines.insert(group, *machine);
            }
            ApplyInput::Destroy { group } => {
                self.machines.remove(&group);
                self.waiting.remove(&group);
            }
            ApplyInput::Swap { group, keyspace, index } => self.swap(group, keyspace, index),
            ApplyInput::Freeze { group } => {
                let offer = self.freeze(group);
                let _ = self.inputs.send(Input::Frozen { group, offer });
            }
            ApplyInput::Await { group, index, reply } => match self.machines.get(&group) {
                Some(machine) if machine.applied() >= index => {
                    let _ = reply.send(Ok(()));
                }
                Some(_) => {
                    let waiting = self.waiting.entry(group).or_default();
                    // Those that gave up waiting.
                    waiting.retain(|(_, reply)| !reply.is_closed());
                    waiting.push((index, reply));
                }
                None => {}
            },
            ApplyInput::Job { group, job } => {
                if let Some(machine) = self.machines.get_mut(&group) {
                    job(machine);
                }
            }
            ApplyInput::Entries { .. } | ApplyInput::Stop => {}
        }
    }

    /// Applies what came for all groups in one write.
    fn apply_together(&mut self, together: &mut BTreeMap<GroupId, Vec<(Committed, Replies)>>) {
        let mut batch = WriteBatch::default();
        let mut staged = Vec::new();
        let mut bytes = 0;
        while let Some((group, entries)) = together.pop_first() {
            bytes += bytes_of(&entries);
            let Some(machine) = self.machines.get_mut(&group) else { continue };
            match stage(machine, &entries, &mut batch) {
                Ok(answers) => staged.push((group, entries, answers)),
                Err(failure) => self.stop(group, &failure),
            }
        }
        let written = if batch.is_empty() { Ok(()) } else { self.store.engine.write(batch) };
        self.applied.backlog.fetch_sub(bytes, Ordering::Relaxed);
        if let Err(failure) = written {
            staged.iter().for_each(|(group, ..)| self.stop(*group, &failure));
            return;
        }
        let mut answered = Vec::new();
        for (group, entries, answers) in staged {
            for ((_, replies), answers) in entries.into_iter().zip(answers) {
                answered.extend(replies.into_iter().zip(answers).filter_map(|(reply, answer)| Some((reply?, answer))));
            }
            if let Some(machine) = self.machines.get_mut(&group) {
                machine.publish();
            }
            self.tell(group);
        }
        // At once: a connection whose calls went to several groups is woken once, and their answers travel together.
        for (reply, answer) in answered {
            let _ = reply.send(Ok(answer));
        }
    }

    fn stop(&mut self, group: GroupId, failure: &dyn std::fmt::Display) {
        let index = self.machines.remove(&group).map(|machine| machine.applied());
        self.waiting.remove(&group);
        error!(%group, index, %failure, "a command cannot be applied; the group stops on this node");
    }

    /// Tells how far a group is, to Raft and to the reads that wait.
    fn tell(&mut self, group: GroupId) {
        let Some(index) = self.machines.get(&group).map(Machine::applied) else { return };
        self.applied.tell(group, index);
        if let Some(waiting) = self.waiting.get_mut(&group) {
            for (_, reply) in waiting.extract_if(.., |(wanted, _)| *wanted <= index) {
                let _ = reply.send(Ok(()));
            }
        }
    }

    fn freeze(&self, group: GroupId) -> Option<Offer> {
        let machine = self.machines.get(&group)?;
        match machine.freeze(self.store.engine.as_ref(), &self.store.files) {
            Ok(export) => Some(Offer { index: machine.applied(), data: self.store.frozen.keep(group, export) }),
            Err(failure) => {
                error!(%group, %failure, "the state cannot be frozen for a follower that needs it");
                None
            }
        }
    }

    /// Goes on with a pulled state. Reads that begin from here on find it.
    fn swap(&mut self, group: GroupId, keyspace: Keyspace, index: u64) {
        let Some(machine) = self.machines.get_mut(&group) else { return };
        let left = machine.keyspace();
        match machine.moved(&self.store.engine, keyspace) {
            Ok(moved) => {
                let applied = moved.applied();
                assert!(applied == index, "INV-S2: {group} in {keyspace} has applied {applied}, not {index}");
                *machine = moved;
                if let Machine::Shard(shard) = machine {
                    let id = ShardId(shard.state().shard);
                    self.store.open.lock().expect("nobody panics with the open shards in hand").insert(id, keyspace);
                }
                info!(%group, index, %keyspace, "goes on from a snapshot");
                let _ = self.store.moves.send(Move::Left(left));
                self.tell(group);
            }
            Err(failure) => {
                error!(%group, %failure, "the state that was pulled cannot be opened; the group stops on this node");
                self.machines.remove(&group);
                self.waiting.remove(&group);
            }
        }
    }
}

fn bytes_of(entries: &[(Committed, Replies)]) -> usize {
    entries.iter().map(|(committed, _)| committed.data.len()).sum()
}

/// Stages entries and returns the answers of each one's commands.
fn stage(
    machine: &mut Machine,
    entries: &[(Committed, Replies)],
    batch: &mut WriteBatch,
) -> Result<Vec<Vec<Answer>>, MachineError> {
    let mut unpacked = Vec::with_capacity(entries.len());
    for (committed, _) in entries {
        let commands = entry::commands(&committed.data).ok_or(MachineError::Entry)?;
        unpacked.push(Entry { index: committed.index, commands });
    }
    let mut answers = machine.stage(&unpacked, batch)?.into_iter();
    Ok(unpacked.iter().map(|entry| answers.by_ref().take(entry.commands.len()).collect()).collect())
}
