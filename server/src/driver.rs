//! Drives the Raft loop and the state machines: the threads, the clock and the disk that consensus does not know.
//!
//! One thread turns the loop: it takes what waits, ticks by the clock (never twice in a row to catch up), writes all
//! groups' changes with one sync and hands on what is committed. Apply threads own the state machines, each group on one
//! of them, answer proposals, and serve what must run between two commands ([`Driver::with_machine`]). What waits is
//! bounded by bytes before it comes here (see [`crate::node`] and [`crate::transport`]).
//!
//! A thread that panics, and a log or an engine that cannot be written, end the process: what is durable is what the node
//! is at its next start. One that lived on would hold its leases and its connections, and do nothing.

mod apply;
mod mailbox;
mod raft;
mod snapshots;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, atomic::AtomicUsize},
    thread::JoinHandle,
    time::Duration,
};

use galoo_cluster::machine::{Answer, Machine};
use galoo_consensus::{
    GroupId,
    log_store::{GroupRecord, shared::SharedLog},
    raft_loop::{Limits, Offer, RaftLoop, Refused, Role, Timing},
    wire,
};
use galoo_storage::snapshot::Export;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::error;

pub use self::snapshots::{Frozen, Move, Store};
use self::{
    apply::{ApplyInput, ApplyWorker},
    mailbox::{Sender, mailbox},
    raft::RaftThread,
};
use crate::{room::NoRoom, transport::Transport};

/// A tick of Raft's clock.
pub const TICK: Duration = Duration::from_millis(100);

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
    /// Not done: the leader has no room.
    #[error("its leader refuses: {0}")]
    NoRoom(NoRoom),
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

/// What became of putting one state in the place of another.
#[derive(Debug)]
pub enum Relocated {
    /// It is there, or will be after a crash.
    Done,
    /// It cannot be done at this moment.
    NotYet,
    /// It cannot be done with this state, in words.
    Never(String),
}

type Reply<T> = oneshot::Sender<Result<T, DriveError>>;
/// Who waits for the commands of an entry, in order; empty where they were not proposed here.
type Replies = Vec<Option<Reply<Answer>>>;
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
    /// Messages of another node; the permit is their share of what may wait here.
    Step {
        messages: Vec<(GroupId, wire::Message)>,
        _permit: OwnedSemaphorePermit,
    },
    Cut {
        group: GroupId,
        place: u64,
        persisted: u64,
    },
    /// A state was frozen for followers; `None` when it could not be.
    Frozen {
        group: GroupId,
        offer: Option<Offer>,
    },
    /// Somebody pulls from what the group offers.
    Pulled {
        group: GroupId,
    },
    /// A pulled state is durable.
    Install {
        group: GroupId,
        index: u64,
        place: u64,
    },
    /// A state could not be pulled.
    Abandon {
        group: GroupId,
    },
    /// What is behind an index stays in the log, or may go again.
    Keep {
        group: GroupId,
        from: Option<u64>,
    },
    /// The state at the place is to take the place of the one here.
    Relocate {
        group: GroupId,
        index: u64,
        place: u64,
        done: oneshot::Sender<Relocated>,
    },
    /// It has.
    Reopen {
        group: GroupId,
        index: u64,
    },
    Stop,
}

/// What the apply threads tell the Raft thread, which looks when it turns: it need not wake for it.
#[derive(Default)]
struct Applied {
    /// Bytes of commands that were handed to apply threads and are not applied yet.
    backlog: AtomicUsize,
    /// How far groups are, as far as the Raft thread has not seen it.
    indexes: Mutex<HashMap<GroupId, u64>>,
}

impl Applied {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<GroupId, u64>> {
        self.indexes.lock().expect("nobody panics with the indexes in hand")
    }

    fn tell(&self, group: GroupId, index: u64) {
        self.lock().insert(group, index);
    }

    fn take(&self) -> HashMap<GroupId, u64> {
        std::mem::take(&mut *self.lock())
    }
}

/// How the threads are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that apply commands.
    pub apply_threads: usize,
    /// Bytes of log above which also a few entries are worth a cut.
    pub log_bytes: u64,
}

/// Handle on the threads; clones share it. The threads end when [`Driver::stop`] is called.
#[derive(Clone)]
pub struct Driver {
    inputs: Sender<Input>,
    apply: Arc<[Sender<ApplyInput>]>,
    roles: watch::Receiver<Arc<HashMap<GroupId, Role>>>,
    store: Arc<Store>,
    threads: Arc<std::sync::Mutex<Vec<JoinHandle<()>>>>,
}

impl Driver {
    /// Starts the threads on a node's log.
    pub fn start(
        node: u64,
        log: Arc<SharedLog>,
        timing: Timing,
        options: Options,
        transport: Arc<Transport>,
        store: Arc<Store>,
    ) -> galoo_consensus::Result<Self> {
        // A follower that is further behind than half of the log that is kept gets a snapshot.
        let limits = Limits { lag_bytes_max: options.log_bytes / 2, ..Limits::default() };
        let raft = RaftLoop::new(node, log.clone(), timing)?.with_limits(limits);
        let (inputs, received) = mailbox();
        let (roles_sender, roles) = watch::channel(Arc::default());
        let mut threads = Vec::new();
        let mut apply = Vec::new();
        let applied = Arc::new(Applied::default());
        for place in 0..options.apply_threads.max(1) {
            let (sender, received) = mailbox();
            let worker = ApplyWorker::new(inputs.clone(), applied.clone(), store.clone());
            threads.push(spawn(format!("apply-{place}"), move || worker.run(received))?);
            apply.push(sender);
        }
        let apply: Arc<[_]> = apply.into();
        let raft_thread = RaftThread {
            raft,
            log,
            log_bytes: options.log_bytes,
            transport,
            store: store.clone(),
            freezing: HashSet::new(),
            applied,
            apply: apply.clone(),
            roles: roles_sender,
            proposals: HashMap::new(),
            reads: HashMap::new(),
            tickets: 0,
            wrote_at: None,
            to_write: Vec::new(),
            crowded: false,
        };
        threads.push(spawn("raft".to_owned(), move || raft_thread.run(received))?);
        Ok(Self { inputs, apply, roles, store, threads: Arc::new(std::sync::Mutex::new(threads)) })
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
        self.inputs.send_patient(Input::Propose { group, data, reply });
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
        apply_thread(&self.apply, group).send(ApplyInput::Await { group, index, reply });
        answer.await.unwrap_or(Err(DriveError::NotReady("it is not on this node")))
    }

    /// Takes messages of another node that came together; `permit` is their share of what may wait.
    pub fn step(&self, messages: Vec<(GroupId, wire::Message)>, permit: OwnedSemaphorePermit) {
        let is_patient = messages.iter().all(|(_, message)| wire::is_append(message));
        let input = Input::Step { messages, _permit: permit };
        if is_patient { self.inputs.send_patient(input) } else { self.inputs.send(input) }
    }

    /// The frozen state of this name, while the group offers it; it is not given up for being idle.
    pub fn pulled(&self, group: GroupId, name: &[u8]) -> Option<Arc<Export>> {
        let export = self.store.frozen.get(group, name)?;
        self.send(Input::Pulled { group });
        Some(export)
    }

    /// Tells that a state that was pulled is durable in a keyspace of its own.
    pub fn install(&self, group: GroupId, index: u64, place: u64) {
        self.send(Input::Install { group, index, place });
    }

    /// Tells that a state could not be pulled.
    pub fn abandon(&self, group: GroupId) {
        self.send(Input::Abandon { group });
    }

    /// Keeps what is behind `from` in the group's log, or lets it go again.
    pub fn keep_from(&self, group: GroupId, from: Option<u64>) {
        self.send(Input::Keep { group, from });
    }

    /// Puts a state that is durable in a keyspace of its own, with `index` applied, in the place of the one here.
    pub async fn relocate(&self, group: GroupId, index: u64, place: u64) -> Relocated {
        let (done, relocated) = oneshot::channel();
        self.send(Input::Relocate { group, index, place, done });
        relocated.await.unwrap_or(Relocated::Never("the node stops".to_owned()))
    }

    /// Lets the group's log go below what survives a crash of the state at a place, while it is the group's.
    pub fn cut(&self, group: GroupId, place: u64, persisted: u64) {
        self.send(Input::Cut { group, place, persisted });
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
        apply_thread(&self.apply, group).send(ApplyInput::Job { group, job });
        answer.await.ok()
    }

    /// The role of this node's member of a group.
    pub fn role(&self, group: GroupId) -> Option<Role> {
        self.roles.borrow().get(&group).copied()
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
            // One that panics ends the process.
            let _ = thread.join();
            for apply in self.apply.iter() {
                apply.send(ApplyInput::Stop);
            }
        }
    }

    fn send(&self, input: Input) {
        // After the end of the threads the input is dropped, and with it the reply: the caller sees that.
        self.inputs.send(input);
    }
}

/// Ends the process without another word to anybody.
fn end_process(what: &'static str, failure: &dyn std::fmt::Display) -> ! {
    error!(%failure, "{what}: the node ends, and is whole again when it is started");
    std::process::abort()
}

/// Ends the process when its thread panics.
struct EndsWithPanic;

impl Drop for EndsWithPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end_process("a thread of the driver panicked", &std::thread::current().name().unwrap_or_default());
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> galoo_consensus::Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name).spawn(move || {
        let _guard = EndsWithPanic;
        body();
    });
    spawned.map_err(|error| galoo_consensus::Error::Log(format!("spawn a thread: {error}")))
}

fn apply_thread(apply: &[Sender<ApplyInput>], group: GroupId) -> &Sender<ApplyInput> {
    let place = group.0 % apply.len() as u64;
    &apply[usize::try_from(place).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        os::unix::process::ExitStatusExt,
        process::{Command, Output},
    };

    use super::*;

    /// The test starts itself in a process of its own, where this is set.
    const PANICS: &str = "GALOO_DRIVER_TEST_PANICS";
    const SIGABRT: i32 = 6;

    #[test]
    fn a_thread_that_panics_ends_the_process() {
        if env::var_os(PANICS).is_some() {
            let thread = spawn("raft".to_owned(), || panic!("as it is meant")).expect("starts");
            assert!(thread.join().is_err(), "the process lives on");
            return;
        }
        let mut command = Command::new(env::current_exe().expect("this binary"));
        command.args(["--exact", "driver::tests::a_thread_that_panics_ends_the_process", "--nocapture"]);
        let Output { status, stderr, .. } = command.env(PANICS, "1").output().expect("runs");
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.signal() == Some(SIGABRT) && said.contains("as it is meant"), "{status}: {said}");
    }
}
