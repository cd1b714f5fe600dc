//! An apply thread: owns state machines, applies what is committed in order, and runs jobs between two entries.
//!
//! What waits is applied together, in one write for all groups of the thread: one that falls behind pays less for each.
//! A follower's entries, for which nobody on this node waits, are gathered for a moment; a read of the group ends it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use galoo_cluster::machine::{Answer, Machine, MachineError};
use galoo_consensus::{Committed, Entry, GroupId, StateMachine, entry, raft_loop::Offer};
use galoo_proto::{Keyspace, ShardId};
use galoo_storage::{engine::WriteBatch, shard::STAGED_BYTES_MAX};
use tracing::{error, info};

use super::{
    Applied, Input, Job, Move, Replies, Reply, Store, end_process,
    mailbox::{Receiver, Sender, Wake},
};

/// Bytes of commands that are applied together, but for the last entry.
const TOGETHER_BYTES_MAX: usize = 8 << 20;

/// How long entries are gathered for which nobody on this node waits.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of such entries that are gathered, but for the last ones: applying them holds up those that somebody waits for.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// Entries of a group in order, and who waits for their commands.
type Entries = Vec<(Committed, Replies)>;

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
        entries: Entries,
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
    /// The same, whatever was applied before; what comes behind the index will be handed on again.
    Relocate {
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

    pub(super) fn run(mut self, mut received: Receiver<ApplyInput>) {
        let mut gathered = Gathered::default();
        loop {
            received.wait(Wake::Any, gathered.due_at());
            let mut next = received.try_next();
            let mut bytes = 0;
            while let Some(input) = next {
                match input {
                    ApplyInput::Entries { group, entries } => {
                        bytes += bytes_of(&entries);
                        let awaited = self.reads(group) || entries.iter().any(is_awaited);
                        gathered.push(group, entries, awaited, Instant::now());
                    }
                    other => {
                        self.apply_together(gathered.take());
                        if matches!(other, ApplyInput::Stop) {
                            return;
                        }
                        self.take(other);
                    }
                }
                next = if bytes < TOGETHER_BYTES_MAX { received.try_next() } else { None };
            }
            self.apply_together(gathered.take_due(Instant::now()));
        }
    }

    /// Whether a read waits for what is not applied of a group.
    fn reads(&self, group: GroupId) -> bool {
        self.waiting.get(&group).is_some_and(|waiting| !waiting.is_empty())
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
            ApplyInput::Relocate { group, keyspace, index } => {
                self.swap(group, keyspace, index);
                self.inputs.send(Input::Reopen { group, index });
            }
            ApplyInput::Freeze { group } => {
                let offer = self.freeze(group);
                self.inputs.send(Input::Frozen { group, offer });
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

    /// Applies what came for all groups, in one write as long as that is not too large.
    fn apply_together(&mut self, together: BTreeMap<GroupId, Entries>) {
        let mut batch = WriteBatch::default();
        let mut staged = Vec::new();
        let mut bytes = 0;
        for (group, entries) in together {
            bytes += bytes_of(&entries);
            let Some(machine) = self.machines.get_mut(&group) else { continue };
            match stage(machine, &entries, &mut batch) {
                Ok(answers) => staged.push((group, entries, answers)),
                Err(failure) => self.stop(group, &failure),
            }
            if batch.bytes() > STAGED_BYTES_MAX {
                self.write(std::mem::take(&mut batch), std::mem::take(&mut staged), std::mem::take(&mut bytes));
            }
        }
        self.write(batch, staged, bytes);
    }

    /// Writes what was staged of groups, from so many bytes of entries, and answers.
    fn write(&mut self, batch: WriteBatch, staged: Vec<(GroupId, Entries, Vec<Vec<Answer>>)>, bytes: usize) {
        let written = if batch.is_empty() { Ok(()) } else { self.store.engine.write(batch) };
        self.applied.backlog.fetch_sub(bytes, Ordering::Relaxed);
        if let Err(failure) = written {
            end_process("the engine failed", &failure);
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

/// Entries that are to be applied, by group: groups do not know of each other's order.
#[derive(Default)]
struct Gathered {
    /// Somebody waits for an answer, or a read for the state.
    awaited: BTreeMap<GroupId, Entries>,
    /// Nobody does.
    others: BTreeMap<GroupId, Entries>,
    others_bytes: usize,
    /// When the first of the others came.
    since: Option<Instant>,
}

impl Gathered {
    fn push(&mut self, group: GroupId, entries: Entries, awaited: bool, now: Instant) {
        if let Some(before) = self.awaited.get_mut(&group) {
            before.extend(entries);
        } else if awaited {
            let mut earlier = self.others.remove(&group).unwrap_or_default();
            self.others_bytes -= bytes_of(&earlier);
            earlier.extend(entries);
            self.awaited.insert(group, earlier);
        } else {
            self.others_bytes += bytes_of(&entries);
            self.others.entry(group).or_default().extend(entries);
            self.since.get_or_insert(now);
        }
    }

    /// When what nobody waits for is to be applied.
    fn due_at(&self) -> Option<Instant> {
        self.since.map(|since| since + GATHER)
    }

    /// Takes what is to be applied now.
    fn take_due(&mut self, now: Instant) -> BTreeMap<GroupId, Entries> {
        let others_due = self.due_at().is_some_and(|due_at| due_at <= now) || self.others_bytes >= GATHERED_BYTES_MAX;
        if others_due { self.take() } else { std::mem::take(&mut self.awaited) }
    }

    /// Takes everything.
    fn take(&mut self) -> BTreeMap<GroupId, Entries> {
        let Self { mut awaited, others, .. } = std::mem::take(self);
        awaited.extend(others);
        awaited
    }
}

/// Whether somebody waits for the answer of one of an entry's commands.
fn is_awaited((_, replies): &(Committed, Replies)) -> bool {
    replies.iter().any(Option::is_some)
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn entry(index: u64, bytes: usize) -> Entries {
        vec![(Committed { index, data: vec![0; bytes].into(), tickets: Vec::new() }, Vec::new())]
    }

    fn indexes(taken: &BTreeMap<GroupId, Entries>) -> Vec<(u64, Vec<u64>)> {
        taken.iter().map(|(group, entries)| (group.0, entries.iter().map(|(one, _)| one.index).collect())).collect()
    }

    #[test]
    fn an_entry_is_awaited_while_one_of_its_callers_is() {
        let entry = |replies| (Committed { index: 1, data: Vec::new().into(), tickets: Vec::new() }, replies);
        assert!(!is_awaited(&entry(vec![])), "a follower's");
        assert!(!is_awaited(&entry(vec![None, None])));
        assert!(is_awaited(&entry(vec![None, Some(oneshot::channel().0)])));
    }

    #[test]
    fn entries_are_gathered_until_somebody_waits_or_they_are_due() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gathered = Gathered::default();
        assert_eq!(gathered.due_at(), None);

        gathered.push(GroupId(1), entry(1, 10), false, at(0));
        gathered.push(GroupId(2), entry(1, 10), false, at(1));
        assert!(gathered.take_due(at(99)).is_empty());
        // What is awaited takes along what its group has before and behind it, and nothing of the other one.
        gathered.push(GroupId(2), entry(2, 10), true, at(99));
        gathered.push(GroupId(2), entry(3, 10), false, at(99));
        assert_eq!(indexes(&gathered.take_due(at(99))), [(2, vec![1, 2, 3])]);
        gathered.push(GroupId(1), entry(2, 10), false, at(99));
        assert_eq!(gathered.due_at(), Some(at(100)), "the first entry's time");
        assert_eq!(indexes(&gathered.take_due(at(100))), [(1, vec![1, 2])]);
        assert_eq!(gathered.due_at(), None);

        gathered.push(GroupId(1), entry(3, GATHERED_BYTES_MAX), false, at(160));
        assert_eq!(indexes(&gathered.take_due(at(160))), [(1, vec![3])], "too much to wait");
        gathered.push(GroupId(1), entry(4, 10), false, at(170));
        gathered.push(GroupId(2), entry(4, 10), true, at(170));
        assert_eq!(indexes(&gathered.take()), [(1, vec![4]), (2, vec![4])]);
        assert_eq!(gathered.due_at(), None);
    }
}
