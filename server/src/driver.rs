//! Drives the Raft loop and the state machines: the threads, the clock and the disk that consensus does not know.
//!
//! One thread turns the loop: it takes what waits, ticks by the clock (never twice in a row to catch up), writes all
//! groups' changes with one sync and hands on what is committed. Apply threads own the state machines, each group on one
//! of them, answer proposals, and serve what must run between two commands ([`Driver::with_machine`]). What waits is
//! bounded by bytes before it comes here (see [`crate::node`] and [`crate::transport`]).
//!
//! Messages that need no disk are handed to the transport before the local write begins, the others when it has
//! returned: a leader's entries are on their way to a majority while it writes its own.

mod apply;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use galoo_consensus::{
    Committed, GroupId, StateMachine, Ticket,
    log_store::{GroupRecord, LogStore, shared::SharedLog},
    raft_loop::{RaftLoop, Refused, Role, Timing},
    wire,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::{error, info, warn};

use self::apply::{ApplyInput, ApplyWorker};
use crate::{
    disk::DiskFull,
    machine::{Answer, Machine},
    transport::Transport,
};

/// A tick of Raft's clock.
pub const TICK: Duration = Duration::from_millis(100);
/// Inputs that one turn takes at most: more wait for the next one.
const TURN_INPUTS_MAX: usize = 1_024;
/// Entries that a cut of the log must drop to be worth a write.
const CUT_ENTRIES_MIN: u64 = 1_024;
/// Bytes of commands that are committed and not applied; while there are more, messages that bring entries are dropped,
/// as if the network had lost them: their leader sends them again later.
const BACKLOG_BYTES_MAX: usize = 128 << 20;
/// Ticks between two looks for callers that wait no more.
const SWEEP_TICKS: u32 = 50;

/// Why a proposal or a read was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// Another node must be asked; 0 when it is not known which.
    #[error("this node does not lead the shard (leader: n{leader})")]
    NotLeader {
        /// The leader's node.
        leader: u64,
    },
    /// Not done; try again in a moment.
    #[error("the shard is not ready: {0}")]
    NotReady(&'static str),
    /// Not done: the leader's disk is full.
    #[error("its leader refuses: {0}")]
    DiskFull(DiskFull),
    /// It may or may not be done.
    #[error("the outcome is unknown")]
    OutcomeUnknown,
}

impl From<Refused> for DriveError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotLeader { leader } => Self::NotLeader { leader },
            Refused::NotReady => Self::NotReady("its leader has committed nothing in its term yet"),
            Refused::Full => Self::NotReady("too many bytes wait to be committed"),
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, DriveError>>;
type Job = Box<dyn FnOnce(&mut Machine) + Send>;

enum Input {
    Open {
        group: GroupId,
        record: GroupRecord,
        machine: Box<Machine>,
        done: oneshot::Sender<galoo_consensus::Result<()>>,
    },
    Destroy {
        group: GroupId,
        done: oneshot::Sender<galoo_consensus::Result<()>>,
    },
    Propose {
        group: GroupId,
        data: Vec<u8>,
        reply: Reply<Answer>,
    },
    Read {
        group: GroupId,
        reply: Reply<u64>,
    },
    /// A message of another node; the permit is its share of what may wait here.
    Step {
        group: GroupId,
        message: Box<wire::Message>,
        _permit: OwnedSemaphorePermit,
    },
    Applied {
        group: GroupId,
        index: u64,
    },
    Cut {
        group: GroupId,
        persisted: u64,
    },
    Stop,
}

/// Handle on the threads; clones share it. The threads end when [`Driver::stop`] is called.
#[derive(Clone)]
pub struct Driver {
    inputs: Sender<Input>,
    apply: Arc<[Sender<ApplyInput>]>,
    roles: watch::Receiver<Arc<HashMap<GroupId, Role>>>,
    threads: Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>,
}

impl Driver {
    /// Starts the threads on a node's log.
    pub fn start(
        node: u64,
        log: Arc<SharedLog>,
        timing: Timing,
        apply_threads: usize,
        transport: Arc<Transport>,
    ) -> galoo_consensus::Result<Self> {
        let raft = RaftLoop::new(node, log.clone(), timing)?;
        let (inputs, received) = crossbeam_channel::unbounded();
        let (roles_sender, roles) = watch::channel(Arc::default());
        let mut threads = Vec::new();
        let mut apply = Vec::new();
        let backlog = Arc::new(AtomicUsize::new(0));
        for place in 0..apply_threads.max(1) {
            let (sender, received) = crossbeam_channel::unbounded();
            let worker = ApplyWorker::new(inputs.clone(), backlog.clone());
            threads.push(spawn(format!("apply-{place}"), move || worker.run(&received))?);
            apply.push(sender);
        }
        let apply: Arc<[_]> = apply.into();
        let raft_thread = RaftThread {
            raft,
            log,
            transport,
            backlog,
            apply: apply.clone(),
            roles: roles_sender,
            proposals: HashMap::new(),
            reads: HashMap::new(),
            tickets: AtomicU64::new(1),
        };
        threads.push(spawn("raft".to_owned(), move || raft_thread.run(&received))?);
        Ok(Self { inputs, apply, roles, threads: Arc::new(std::sync::Mutex::new(threads)) })
    }

    /// Makes or opens a group on this node; returns when it takes part.
    pub async fn open(&self, group: GroupId, record: GroupRecord, machine: Machine) -> anyhow::Result<()> {
        let (done, opened) = oneshot::channel();
        self.send(Input::Open { group, record, machine: Box::new(machine), done });
        Ok(opened.await??)
    }

    /// Removes a group from this node; its tombstone is durable on return.
    pub async fn destroy(&self, group: GroupId) -> anyhow::Result<()> {
        let (done, destroyed) = oneshot::channel();
        self.send(Input::Destroy { group, done });
        Ok(destroyed.await??)
    }

    /// Replicates a command and returns what applying it answers.
    ///
    /// The command is handed over at once: two calls in a row are proposed in that order, whenever they are awaited.
    pub fn propose(&self, group: GroupId, data: Vec<u8>) -> impl Future<Output = Result<Answer, DriveError>> + use<> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Propose { group, data, reply });
        async { answer.await.unwrap_or(Err(DriveError::OutcomeUnknown)) }
    }

    /// Returns the index that a linearizable read on any replica must see.
    pub async fn read_index(&self, group: GroupId) -> Result<u64, DriveError> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Read { group, reply });
        answer.await.unwrap_or(Err(DriveError::NotReady("it stopped")))
    }

    /// Returns once the group has applied `index` here.
    pub async fn applied(&self, group: GroupId, index: u64) -> Result<(), DriveError> {
        let (reply, answer) = oneshot::channel();
        let _ = apply_thread(&self.apply, group).send(ApplyInput::Await { group, index, reply });
        answer.await.unwrap_or(Err(DriveError::NotReady("it is not on this node")))
    }

    /// Takes a message of another node; `permit` is its share of what may wait.
    pub fn step(&self, group: GroupId, message: wire::Message, permit: OwnedSemaphorePermit) {
        self.send(Input::Step { group, message: Box::new(message), _permit: permit });
    }

    /// Lets the group's log go below what survives a crash.
    pub fn cut(&self, group: GroupId, persisted: u64) {
        self.send(Input::Cut { group, persisted });
    }

    /// Runs a job on the thread that owns a group's state machine, between two commands.
    ///
    /// Returns `None` when the group is not here.
    pub async fn with_machine<T: Send + 'static>(
        &self,
        group: GroupId,
        job: impl FnOnce(&mut Machine) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |machine| {
            let _ = reply.send(job(machine));
        });
        let _ = apply_thread(&self.apply, group).send(ApplyInput::Job { group, job });
        answer.await.ok()
    }

    /// The roles of this node's members, as they change.
    pub fn roles(&self) -> watch::Receiver<Arc<HashMap<GroupId, Role>>> {
        self.roles.clone()
    }

    /// Ends the threads; what waits is answered with an error.
    pub fn stop(&self) {
        self.send(Input::Stop);
        let mut threads = std::mem::take(&mut *self.threads.lock().expect("nobody panics with the threads in hand"));
        // The Raft thread was started last: what it hands on before its end is applied before the others end.
        while let Some(thread) = threads.pop() {
            if thread.join().is_err() {
                error!("a thread of the driver panicked");
            }
            for apply in self.apply.iter() {
                let _ = apply.send(ApplyInput::Stop);
            }
        }
    }

    fn send(&self, input: Input) {
        // After the end of the threads the input is dropped, and with it the reply: the caller sees that.
        let _ = self.inputs.send(input);
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> galoo_consensus::Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name).spawn(body);
    spawned.map_err(|error| galoo_consensus::Error::Log(format!("spawn a thread: {error}")))
}

fn apply_thread(apply: &[Sender<ApplyInput>], group: GroupId) -> &Sender<ApplyInput> {
    let place = group.0 % apply.len() as u64;
    &apply[usize::try_from(place).unwrap_or(0)]
}

struct RaftThread {
    raft: RaftLoop,
    log: Arc<SharedLog>,
    transport: Arc<Transport>,
    /// Bytes of commands that were handed to apply threads and are not applied yet.
    backlog: Arc<AtomicUsize>,
    apply: Arc<[Sender<ApplyInput>]>,
    roles: watch::Sender<Arc<HashMap<GroupId, Role>>>,
    proposals: HashMap<Ticket, Reply<Answer>>,
    reads: HashMap<Ticket, Reply<u64>>,
    tickets: AtomicU64,
}

impl RaftThread {
    fn run(mut self, inputs: &Receiver<Input>) {
        let mut next_tick = Instant::now() + TICK;
        let mut ticks = 0;
        loop {
            match inputs.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let mut stopped = false;
            for input in inputs.try_iter().take(TURN_INPUTS_MAX) {
                stopped |= matches!(input, Input::Stop);
                self.take(input);
            }
            if stopped {
                break;
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
            if let Err(failure) = self.turns() {
                // What was written is not known: this node can promise nothing more.
                error!(%failure, "the shared log failed; the node stops taking part");
                break;
            }
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
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
                let _ = done.send(self.raft.destroy(group));
            }
            Input::Propose { group, data, reply } => {
                let ticket = self.ticket();
                match self.raft.propose(group, ticket, data) {
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
            Input::Step { group, message, _permit } => {
                let brings = wire::entry_bytes(&message);
                if brings > 0 && self.backlog.load(Ordering::Relaxed) > BACKLOG_BYTES_MAX {
                    metrics::counter!("galoo_raft_messages_dropped_total", "to" => "self").increment(1);
                } else if let Err(failure) = self.raft.step(group, *message) {
                    warn!(%group, %failure, "a message of another node is refused");
                }
            }
            Input::Applied { group, index } => self.raft.applied(group, index),
            Input::Cut { group, persisted } => {
                if let Err(failure) = self.raft.cut(group, persisted, CUT_ENTRIES_MIN) {
                    error!(%failure, "the log could not be cut");
                }
            }
            Input::Stop => {}
        }
    }

    /// Hands messages to the transport; what it drops is told to Raft, which sends it again.
    fn send(&mut self, messages: Vec<(GroupId, wire::Message)>) {
        for (group, message) in messages {
            if !self.transport.send(group, &message) {
                self.raft.report_unreachable(group, message.to);
            }
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
                self.log.write(&turn.writes)?;
                metrics::histogram!("galoo_log_write_seconds").record(started.elapsed().as_secs_f64());
            }
            let effects = self.raft.written();
            self.send(effects.messages);
            for (group, entries) in effects.committed {
                let with_replies = entries.into_iter().map(|entry| {
                    let reply = entry.ticket.and_then(|ticket| self.proposals.remove(&ticket));
                    (entry, reply)
                });
                let entries: Vec<(Committed, _)> = with_replies.collect();
                let bytes = entries.iter().map(|(entry, _)| entry.data.len()).sum();
                self.backlog.fetch_add(bytes, Ordering::Relaxed);
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
            if !effects.roles.is_empty() {
                self.roles.send_modify(|roles| {
                    let mut changed = HashMap::clone(roles);
                    for (group, role) in &effects.roles {
                        info!(%group, leader = role.leader, term = role.term, leads = role.leads, "role");
                        changed.insert(*group, *role);
                    }
                    *roles = Arc::new(changed);
                });
            }
        }
    }

    fn hand_on(&self, group: GroupId, input: ApplyInput) {
        let _ = apply_thread(&self.apply, group).send(input);
    }
}
