//! A node: what its disk keeps, and the process that a crash ends.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use galoo_consensus::{
    Committed, GroupId, Result as LogResult, Ticket, entry,
    log_store::{GroupRecord, GroupWrite, LogStore, memory::MemoryLog},
    raft_loop::{Limits, RaftLoop, Timing},
};
use galoo_proto::{
    GameId, Keyspace, Seq, ShardId, TokenRange,
    command::{Command, Outcome, command::Body},
    value::value::Kind,
};
use galoo_storage::{
    compaction::destroy_keyspace,
    engine::{Engine, memory::MemoryEngine},
    segment::SegmentFiles,
    shard::{Checksum, Shard},
    snapshot::Export,
    view::{EventFilter, View},
};
use prost::Message;
use raft::eraftpb::{Entry, HardState};

use super::{Bug, NODES, oracle::Seen, pull::Pull};

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const SHARD: ShardId = ShardId(1);
pub(crate) const PLAYERS: u64 = 4;
pub(crate) const TICK_MS: u64 = 100;

/// So tight that followers need snapshots all the time.
const LIMITS: Limits =
    Limits { lag_entries_max: 8, lag_bytes_max: 1 << 20, idle_ticks_max: 15, offer_ticks_max: 100, resend_ticks: 8 };

pub(crate) fn player(player: u64) -> String {
    format!("p{player}")
}

/// What a node answers to a client.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Nothing was done by this attempt; 0 when the leader is not known.
    Refused {
        leader: u64,
    },
    Done(Outcome),
    Read(Seen),
}

/// Who asked, and the number of the attempt.
pub(crate) type Asker = (u64, u64);

pub(crate) struct Node {
    pub(crate) id: u64,
    seed: u64,
    bug: Bug,
    pub(crate) disk: Disk,
    pub(crate) process: Option<Process>,
    paused_until: u64,
}

/// What survives a crash.
pub(crate) struct Disk {
    pub(crate) log: Arc<SimLog>,
    memory: MemoryEngine,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) files: Arc<SegmentFiles>,
    /// Numbers places and offers; never the same again.
    numbers: u64,
}

impl Disk {
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// What a crash loses.
pub(crate) struct Process {
    pub(crate) raft: RaftLoop,
    pub(crate) shard: Shard,
    /// Committed and not applied yet.
    pub(crate) queue: VecDeque<Committed>,
    tickets: u64,
    pub(crate) proposals: BTreeMap<Ticket, Asker>,
    pub(crate) reads: BTreeMap<Ticket, (Asker, u64)>,
    /// Reads that wait for an index.
    pub(crate) waiting: Vec<(u64, Asker, u64)>,
    pub(crate) exports: BTreeMap<u64, Export>,
    pub(crate) pull: Option<Pull>,
    pub(crate) next_tick: u64,
}

impl Process {
    pub(crate) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}

impl Node {
    pub(crate) fn new(id: u64, seed: u64, folder: &Path, bug: Bug) -> Self {
        let memory = MemoryEngine::default();
        let files = SegmentFiles::new(&folder.join(id.to_string())).expect("a folder of the run");
        let log = Arc::new(SimLog::new(bug == Bug::LogForgetsLastWrite));
        let disk = Disk { log, engine: Arc::new(memory.clone()), memory, files: Arc::new(files), numbers: 1 };
        let mut node = Self { id, seed, bug, disk, process: None, paused_until: 0 };
        node.start();
        node
    }

    pub(crate) fn start(&mut self) {
        let voters = (1..=NODES).collect();
        let fresh = GroupRecord { place: 1, voters, ..Default::default() };
        let record = self.disk.log.record(GROUP).expect("the log reads").unwrap_or_else(|| fresh.clone());
        // What no record names was being filled when the node crashed, or is what a snapshot replaced.
        for place in (1..=self.disk.numbers).filter(|place| *place != record.place) {
            destroy_keyspace(&self.disk.engine, Keyspace(place)).expect("the engine writes");
        }
        let timing = Timing { seed: self.seed, ..Timing::default() };
        let raft = RaftLoop::new(self.id, self.disk.log.clone(), timing).expect("the log reads");
        let mut raft = raft.with_limits(LIMITS);
        let shard = self.open(Keyspace(record.place));
        raft.open(GROUP, record, shard.applied()).expect("the group opens");
        self.process = Some(Process {
            raft,
            shard,
            queue: VecDeque::new(),
            tickets: 0,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            waiting: Vec::new(),
            exports: BTreeMap::new(),
            pull: None,
            next_tick: 0,
        });
    }

    pub(crate) fn open(&self, keyspace: Keyspace) -> Shard {
        Shard::open(self.disk.engine.clone(), keyspace, SHARD, GameId(1), TokenRange::FULL).expect("the shard opens")
    }

    pub(crate) fn crash(&mut self) {
        self.process = None;
        self.disk.memory.crash();
        self.disk.log.crash();
    }

    pub(crate) fn pause(&mut self, until: u64) {
        self.paused_until = until;
    }

    pub(crate) fn paused_until(&self) -> u64 {
        self.paused_until
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn runs(&self, now: u64) -> bool {
        self.is_up() && now >= self.paused_until
    }

    pub(crate) fn applied(&self) -> u64 {
        self.process.as_ref().map_or(0, |process| process.shard.applied())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.queue.is_empty() && process.pull.is_none())
    }

    pub(crate) fn describe(&self) -> String {
        let Some(process) = &self.process else { return format!("node {} is down", self.id) };
        let role = process.raft.role(GROUP);
        let bounds = self.disk.log.bounds(GROUP);
        format!("node {}: applied {}, log {bounds:?}, {role:?}", self.id, process.shard.applied())
    }

    pub(crate) fn view(&self) -> Option<View> {
        let keyspace = self.process.as_ref()?.shard.keyspace();
        View::open(self.disk.engine.snapshot(), keyspace, self.disk.files.clone()).expect("the view opens")
    }

    pub(crate) fn checksum(&self) -> galoo_storage::Result<Checksum> {
        Checksum::of(&self.view().expect("commands were applied"))
    }

    /// Reads a player from what is applied here.
    pub(crate) fn read(&self, of: u64) -> Seen {
        let Some(view) = self.view() else { return Seen::default() };
        let cells = view.cells(&player(of), Some("s"), Some("n")).expect("cells read");
        let counter = match cells.first().and_then(|cell| cell.value.as_ref()).and_then(|value| value.kind.as_ref()) {
            Some(Kind::Int(counter)) => counter.cast_unsigned(),
            _ => 0,
        };
        let events =
            view.events_after(Seq(0), EventFilter::player(&player(of))).map(|event| event.expect("events read"));
        Seen { counter, events: events.count() as u64 }
    }

    /// All events as (player, identity), in order of seq.
    pub(crate) fn all_events(&self) -> Vec<(String, u64)> {
        let Some(view) = self.view() else { return Vec::new() };
        let events = view.events_after(Seq(0), EventFilter::default());
        let said = events.map(|event| {
            let event = event.expect("events read").event.unwrap_or_default();
            let digits: String = event.properties.chars().filter(char::is_ascii_digit).collect();
            (event.player_id, digits.parse().unwrap_or(u64::MAX))
        });
        said.collect()
    }

    /// An entry's commands as this node's state machine takes them: here a deliberate bug gets in.
    pub(crate) fn commands(&self, index: u64, data: &[u8]) -> Vec<Vec<u8>> {
        let skipped = self.bug == Bug::CommandIsSkipped && self.id == 2 && index.is_multiple_of(50);
        if skipped {
            return Vec::new();
        }
        let commands = entry::commands(data).expect("an entry of this version");
        if self.bug == Bug::BatchIsAppliedAgain {
            return commands.into_iter().map(without_batch).collect();
        }
        commands.into_iter().map(<[u8]>::to_vec).collect()
    }
}

fn without_batch(command: &[u8]) -> Vec<u8> {
    let mut command = Command::decode(command).expect("a command");
    match &mut command.body {
        Some(Body::Append(append)) => append.batch = None,
        Some(Body::Mutate(mutate)) => mutate.batch = None,
        _ => {}
    }
    command.encode_to_vec()
}

/// The shared log of a node: durable when a write returns, or, as a deliberate bug, when the next one does.
pub(crate) struct SimLog {
    live: Mutex<MemoryLog>,
    durable: MemoryLog,
    last: Mutex<Vec<(GroupId, GroupWrite)>>,
    forgets: bool,
}

impl SimLog {
    fn new(forgets: bool) -> Self {
        Self { live: Mutex::default(), durable: MemoryLog::default(), last: Mutex::default(), forgets }
    }

    fn live(&self) -> MemoryLog {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn crash(&self) {
        if self.forgets {
            self.last.lock().unwrap_or_else(PoisonError::into_inner).clear();
            *self.live.lock().unwrap_or_else(PoisonError::into_inner) = self.durable.fork();
        }
    }
}

impl LogStore for SimLog {
    fn groups(&self) -> LogResult<Vec<(GroupId, GroupRecord)>> {
        self.live().groups()
    }

    fn record(&self, group: GroupId) -> LogResult<Option<GroupRecord>> {
        self.live().record(group)
    }

    fn hard_state(&self, group: GroupId) -> LogResult<Option<HardState>> {
        self.live().hard_state(group)
    }

    fn write(&self, writes: &[(GroupId, GroupWrite)]) -> LogResult<()> {
        if self.forgets {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            self.durable.write(&std::mem::replace(&mut *last, writes.to_vec()))?;
        }
        self.live().write(writes)
    }

    fn entries(&self, group: GroupId, low: u64, high: u64, bytes_max: Option<u64>) -> LogResult<Vec<Entry>> {
        self.live().entries(group, low, high, bytes_max)
    }

    fn bounds(&self, group: GroupId) -> LogResult<Option<(u64, u64)>> {
        self.live().bounds(group)
    }
}
