//! A node: what its disk keeps, and the process that a crash ends.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use galoo_cluster::{
    META_GROUP,
    machine::{self, META_KEYSPACE, Machine, MetaMachine},
    meta::MetaState,
    router::Router,
};
use galoo_consensus::{
    Committed, GroupId, Result as LogResult, StateMachine, Ticket, entry,
    log_store::{GroupRecord, GroupWrite, LogStore, memory::MemoryLog},
    raft_loop::{Limits, RaftLoop, Timing},
};
use galoo_proto::{
    GameId, Keyspace, Seq, ShardId, Token, TokenRange,
    command::{Command, command::Body},
    meta::NodeRecord,
    value::value::Kind,
};
use galoo_storage::{
    compaction::destroy_keyspace,
    engine::{Engine, memory::MemoryEngine},
    key::Selection,
    segment::SegmentFiles,
    shard::{Checksum, Shard},
    snapshot::Export,
    view::{EventFilter, View},
};
use prost::Message;
use raft::eraftpb::{Entry, HardState};
use tokio::sync::watch;

use super::{
    Bug, NODES, Violation,
    clients::Operation,
    oracle::Seen,
    pull::{Pull, Rebuild},
};

pub(crate) const META: GroupId = GroupId(META_GROUP);
/// How many shards each game is asked for.
pub(crate) const GAME_SHARDS: [u32; 2] = [2, 1];
/// They take turns in the games, and each game's live in all of its shards.
pub(crate) const PLAYERS: usize = 4;
pub(crate) const TICK_MS: u64 = 100;

/// So tight that followers need snapshots all the time.
const LIMITS: Limits =
    Limits { lag_entries_max: 4, lag_bytes_max: 1 << 20, idle_ticks_max: 15, offer_ticks_max: 100, resend_ticks: 8 };

pub(crate) fn player(player: usize) -> String {
    format!("p{player}")
}

/// The game of a player.
pub(crate) fn game_of(player: usize) -> usize {
    player % GAME_SHARDS.len()
}

pub(crate) fn game_name(game: usize) -> String {
    format!("g{game}")
}

/// What the meta group knows of a node after it was told that it is at this port.
pub(crate) fn node_record(node: u64, port: u64) -> NodeRecord {
    NodeRecord { id: node, grpc_addr: format!("n{node}:{port}"), zone: String::new() }
}

/// What a node answers to a client.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Nothing was done by this attempt; 0 when the leader is not known.
    Refused {
        leader: u64,
    },
    Done(Box<machine::Answer>),
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
    pub(crate) machines: BTreeMap<GroupId, Machine>,
    meta: watch::Receiver<Arc<MetaState>>,
    router: Router,
    /// Committed and not applied yet.
    pub(crate) queue: VecDeque<(GroupId, Committed)>,
    tickets: u64,
    pub(crate) proposals: BTreeMap<Ticket, Asker>,
    pub(crate) reads: BTreeMap<Ticket, (Asker, usize)>,
    /// Reads of players that wait for an index of their group.
    pub(crate) waiting: Vec<(GroupId, u64, Asker, usize)>,
    pub(crate) exports: BTreeMap<u64, (GroupId, Export)>,
    pub(crate) pulls: BTreeMap<GroupId, Pull>,
    pub(crate) rebuilds: Vec<Rebuild>,
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
        let disk = Disk { log, engine: Arc::new(memory.clone()), memory, files: Arc::new(files), numbers: 0 };
        let records = MetaState::formed((1..=NODES).map(|node| node_record(node, 0)));
        MetaMachine::form(disk.engine.as_ref(), records).expect("the first records");
        let mut node = Self { id, seed, bug, disk, process: None, paused_until: 0 };
        node.start();
        node
    }

    pub(crate) fn start(&mut self) {
        let records = self.disk.log.groups().expect("the log reads");
        let meta_place = records.iter().find(|(group, _)| *group == META).map(|(_, record)| record.place);
        let meta_place = meta_place.unwrap_or(META_KEYSPACE.0);
        // What no record names was being filled when the node crashed, or is what a snapshot replaced.
        let is_named = |place: u64| place == meta_place || records.iter().any(|(_, record)| record.place == place);
        for place in (0..=self.disk.numbers).filter(|place| !is_named(*place)) {
            destroy_keyspace(&self.disk.engine, Keyspace(place)).expect("the engine writes");
        }
        let timing = Timing { seed: self.seed, ..Timing::default() };
        let raft = RaftLoop::new(self.id, self.disk.log.clone(), timing).expect("the log reads");
        let mut raft = raft.with_limits(LIMITS);
        let opened = MetaMachine::open(self.disk.engine.clone(), Keyspace(meta_place));
        let (machine, meta) = opened.expect("the meta group's state opens");
        let machine = Machine::Meta(Box::new(machine));
        let voters = meta.borrow().nodes().map(|node| node.id).collect();
        let record = GroupRecord { place: meta_place, voters, ..Default::default() };
        raft.open(META, record, machine.applied()).expect("the group opens");
        self.process = Some(Process {
            raft,
            machines: BTreeMap::from([(META, machine)]),
            meta,
            router: Router::default(),
            queue: VecDeque::new(),
            tickets: 0,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            waiting: Vec::new(),
            exports: BTreeMap::new(),
            pulls: BTreeMap::new(),
            rebuilds: Vec::new(),
            next_tick: 0,
        });
        self.reconcile();
    }

    /// Opens the shards that the meta group's state gives to this node, and routes by it.
    pub(crate) fn reconcile(&mut self) {
        let Some(process) = &mut self.process else { return };
        let state = process.meta.borrow().clone();
        for record in state.shards().filter(|shard| shard.voters.contains(&self.id)) {
            let group = GroupId(record.id);
            if process.machines.contains_key(&group) {
                continue;
            }
            let known = self.disk.log.record(group).expect("the log reads");
            let known = known.unwrap_or_else(|| GroupRecord {
                place: self.disk.number(),
                voters: record.voters.clone(),
                ..Default::default()
            });
            let range = match self.bug {
                Bug::FirstShardTakesAll => TokenRange::FULL,
                _ => TokenRange { start: record.start, end: record.end },
            };
            let (engine, keyspace) = (self.disk.engine.clone(), Keyspace(known.place));
            let shard = Shard::open(engine, keyspace, ShardId(record.id), GameId(record.game), range);
            let shard = shard.expect("the shard opens");
            process.raft.open(group, known, shard.applied()).expect("the group opens");
            process.machines.insert(group, Machine::Shard(Box::new(shard)));
        }
        process.router = Router::new(&state);
    }

    /// The group that does what a client asks for, and the range of its shard; `None` when this node does not know the
    /// game yet.
    pub(crate) fn route(&self, operation: &Operation) -> Option<(GroupId, TokenRange)> {
        let Some(of) = operation.player() else { return Some((META, TokenRange::FULL)) };
        let shards = &self.process.as_ref()?.router.game(&game_name(game_of(of)))?.shards;
        let (shard, range) = match self.bug {
            Bug::FirstShardTakesAll => (shards.iter().next()?.0, TokenRange::FULL),
            _ => shards.find(Token::of(&player(of))),
        };
        Some((GroupId(shard.0), range))
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

    /// What each group on this node has applied.
    pub(crate) fn applied(&self) -> BTreeMap<GroupId, u64> {
        let machines = self.process.iter().flat_map(|process| &process.machines);
        machines.map(|(group, machine)| (*group, machine.applied())).collect()
    }

    /// Whether nothing is under way: every group has a leader and has applied its whole log. Without a leader it is not
    /// known after a crash what of the log is committed.
    pub(crate) fn is_idle(&self) -> bool {
        let Some(process) = &self.process else { return false };
        let is_whole = |(group, machine): (&GroupId, &Machine)| {
            let bounds = self.disk.log.bounds(*group).expect("the log reads");
            process.raft.role(*group).is_some_and(|role| role.leader != 0)
                && bounds.is_none_or(|(_, last)| last <= machine.applied())
        };
        process.queue.is_empty() && process.pulls.is_empty() && process.machines.iter().all(is_whole)
    }

    pub(crate) fn describe(&self) -> String {
        let Some(process) = &self.process else { return format!("node {} is down", self.id) };
        let of = |(group, machine): (&GroupId, &Machine)| {
            let (role, bounds) = (process.raft.role(*group), self.disk.log.bounds(*group));
            format!("{group} applied {}, log {bounds:?}, {role:?}", machine.applied())
        };
        let groups: Vec<String> = process.machines.iter().map(of).collect();
        format!("node {}: {}", self.id, groups.join(", "))
    }

    /// The meta group's state as it is stored.
    ///
    /// # Errors
    /// What this node goes by is another.
    pub(crate) fn meta(&self) -> Result<Arc<MetaState>, Violation> {
        let nothing = || Violation(format!("node {} has no meta group", self.id));
        let process = self.process.as_ref().ok_or_else(nothing)?;
        let keyspace = process.machines.get(&META).ok_or_else(nothing)?.keyspace();
        let opened = MetaMachine::open(self.disk.engine.clone(), keyspace);
        let stored = opened.expect("the meta group's state opens").1.borrow().clone();
        let known = process.meta.borrow().clone();
        let same =
            stored.games().eq(known.games()) && stored.shards().eq(known.shards()) && stored.nodes().eq(known.nodes());
        if same { Ok(stored) } else { Err(Violation(format!("P5: {known:?} is stored as {stored:?}"))) }
    }

    fn view(&self, group: GroupId) -> Option<View> {
        let keyspace = self.process.as_ref()?.machines.get(&group)?.keyspace();
        View::open(self.disk.engine.snapshot(), keyspace, self.disk.files.clone()).expect("the view opens")
    }

    /// The checksum of every shard that has applied something.
    pub(crate) fn checksums(&self) -> galoo_storage::Result<BTreeMap<GroupId, Checksum>> {
        let groups = self.process.iter().flat_map(|process| process.machines.keys());
        let views = groups.filter(|group| **group != META).filter_map(|group| Some((*group, self.view(*group)?)));
        views.map(|(group, view)| Ok((group, Checksum::of(&view)?))).collect()
    }

    /// Reads a player from what a shard has applied here.
    pub(crate) fn read(&self, group: GroupId, of: usize) -> Seen {
        let Some(view) = self.view(group) else { return Seen::default() };
        let cells = view.cells(&player(of), &Selection::Cell("s", "n").into()).expect("cells read");
        let counter = match cells.first().and_then(|cell| cell.value.as_ref()).and_then(|value| value.kind.as_ref()) {
            Some(Kind::Int(counter)) => counter.cast_unsigned(),
            _ => 0,
        };
        let events =
            view.events_after(Seq(0), EventFilter::player(&player(of))).map(|event| event.expect("events read"));
        Seen { counter, events: events.count() as u64 }
    }

    /// All events of a shard as (player, identity), in order of seq.
    pub(crate) fn all_events(&self, group: GroupId) -> Vec<(String, u64)> {
        let Some(view) = self.view(group) else { return Vec::new() };
        let events = view.events_after(Seq(0), EventFilter::default());
        let said = events.map(|event| {
            let event = event.expect("events read").event.unwrap_or_default();
            let digits: String = event.properties.chars().filter(char::is_ascii_digit).collect();
            (event.player_id, digits.parse().unwrap_or(u64::MAX))
        });
        said.collect()
    }

    /// An entry's commands as this node's state machine takes them: here a deliberate bug gets in.
    pub(crate) fn commands(&self, group: GroupId, index: u64, data: &[u8]) -> Vec<Vec<u8>> {
        let skipped = match self.bug {
            Bug::CommandIsSkipped => group != META && index.is_multiple_of(50),
            Bug::MetaCommandIsSkipped => group == META && index.is_multiple_of(3),
            _ => false,
        };
        if skipped && self.id == 2 {
            return Vec::new();
        }
        let commands = entry::commands(data).expect("an entry of this version");
        if self.bug == Bug::BatchIsAppliedAgain && group != META {
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
