//! An apply thread: owns state machines, applies what is committed in order, and runs jobs between two commands.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender};
use galoo_consensus::{Committed, GroupId, StateMachine, raft_loop::Offer};
use galoo_proto::{Keyspace, ShardId};
use tracing::{error, info};

use super::{Input, Job, Move, Reply, Store};
use crate::machine::{Answer, Machine};

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
        entries: Vec<(Committed, Option<Reply<Answer>>)>,
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
    /// Bytes of commands that were handed to apply threads and are not applied yet.
    backlog: Arc<AtomicUsize>,
    store: Arc<Store>,
}

impl ApplyWorker {
    pub(super) fn new(inputs: Sender<Input>, backlog: Arc<AtomicUsize>, store: Arc<Store>) -> Self {
        Self { machines: HashMap::new(), waiting: HashMap::new(), inputs, backlog, store }
    }

    pub(super) fn run(mut self, received: &Receiver<ApplyInput>) {
        for input in received {
            match input {
                ApplyInput::Stop => return,
                ApplyInput::Open { group, machine } => {
                    self.machines.insert(group, *machine);
                }
                ApplyInput::Destroy { group } => {
                    self.machines.remove(&group);
                    self.waiting.remove(&group);
                }
                ApplyInput::Entries { group, entries } => self.apply(group, entries),
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
            }
        }
    }

    fn apply(&mut self, group: GroupId, entries: Vec<(Committed, Option<Reply<Answer>>)>) {
        let bytes = entries.iter().map(|(entry, _)| entry.data.len()).sum();
        self.apply_all(group, entries);
        self.backlog.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn apply_all(&mut self, group: GroupId, entries: Vec<(Committed, Option<Reply<Answer>>)>) {
        let Some(machine) = self.machines.get_mut(&group) else { return };
        for (entry, reply) in entries {
            match machine.apply(entry.index, &entry.data) {
                Ok(answer) => {
                    if let Some(reply) = reply {
                        let _ = reply.send(Ok(answer));
                    }
                }
                Err(failure) => {
                    error!(%group, index = entry.index, %failure, "a command cannot be applied; the group stops on this node");
                    self.machines.remove(&group);
                    self.waiting.remove(&group);
                    return;
                }
            }
        }
        self.tell(group);
    }

    /// Tells how far a group is, to Raft and to the reads that wait.
    fn tell(&mut self, group: GroupId) {
        let Some(index) = self.machines.get(&group).map(Machine::applied) else { return };
        let _ = self.inputs.send(Input::Applied { group, index });
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
