//! An apply thread: owns state machines, applies what is committed in order, and runs jobs between two commands.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender};
use galoo_consensus::{Committed, GroupId, StateMachine};
use tracing::error;

use super::{Input, Job, Reply};
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
}

impl ApplyWorker {
    pub(super) fn new(inputs: Sender<Input>, backlog: Arc<AtomicUsize>) -> Self {
        Self { machines: HashMap::new(), waiting: HashMap::new(), inputs, backlog }
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
        let index = machine.applied();
        let _ = self.inputs.send(Input::Applied { group, index });
        if let Some(waiting) = self.waiting.get_mut(&group) {
            for (_, reply) in waiting.extract_if(.., |(wanted, _)| *wanted <= index) {
                let _ = reply.send(Ok(()));
            }
        }
    }
}
