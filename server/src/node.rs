//! A node: its data folder, engine, log and groups, wired together, and the operations that the protocols call.
//!
//! Started in order (folder, engine, log, meta group, shards), stopped in the opposite one. What waits to be committed
//! is bounded here, in bytes, before it is proposed: beyond it a caller waits a little and is then refused (P8).
//! Whatever a node is asked for, it finds the leader by itself ([`forward`]).

mod append;
mod eager;
mod erasures;
mod families;
mod forward;
mod games;
mod place;
mod properties;
mod reads;
mod rollups;
mod snapshots;
mod status;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use galoo_cluster::{
    META_GROUP,
    machine::{META_KEYSPACE, Machine, MetaMachine},
    meta::MetaState,
    router::{Game, Router},
};
use galoo_consensus::{
    GroupId,
    log_store::{GroupRecord, LogStore, shared::SharedLog},
    raft_loop::Timing,
};
use galoo_proto::{
    GameId, Hlc, Keyspace, NodeId, ShardId, TokenRange,
    command::{Outcome, outcome},
    validate::Invalid,
};
use galoo_storage::{
    chunk::index::ChunkIndexes, compaction, engine::Engine, segment::SegmentFiles, shard::Shard, view::SparseRanges,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::{error, info, warn};

use self::eager::Eager;
pub use self::{append::PartResult, reads::check_answer};
use crate::{
    config::Config,
    data_folder::Identity,
    disk::{self, Disk, DiskFull},
    door::Door,
    driver::{DriveError, Driver, Frozen, Options, Store},
    memory::Memtables,
    room::NoRoom,
    transport::Transport,
};

/// A proposal or read that is not answered after this is given up.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries of what was surely not done.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Bytes of commands that wait to be committed and applied on this node.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// A node that starts waits so long for a majority of the meta group before it serves what it can.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long a caller waits for its share of these bytes before it is refused.
const ADMISSION_WAIT: Duration = Duration::from_secs(2);
/// When to ask again while all events of a game are read for somebody else.
const SURVEY_WAIT: Duration = Duration::from_secs(1);

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The request is outside the limits.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no such game.
    #[error("game {0:?} does not exist")]
    UnknownGame(String),
    /// The cluster refused the change.
    #[error("{0}")]
    Refused(String),
    /// The game exists already.
    #[error("game {0:?} exists already")]
    GameExists(String),
    /// The rollup exists already.
    #[error("rollup {0:?} exists already")]
    RollupExists(String),
    /// Another rollup has a table of the name that one of this rollup's tiers would have.
    #[error("rollup {0:?} would have a table that another rollup has already: a tier's table is named after its width")]
    TableExists(String),
    /// There is no such rollup.
    #[error("rollup {0:?} does not exist")]
    UnknownRollup(String),
    /// The family is not declared.
    #[error("family {0:?} is not declared")]
    UnknownFamily(String),
    /// The property is not declared.
    #[error("property {0:?} is not declared")]
    UnknownProperty(String),
    /// The node reads all events of a game for somebody already: try again after the delay.
    #[error("the node reads all events of a game already, for one caller at a time; try again in {} ms", .retry_after.as_millis())]
    Surveying {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too much waits on this node: try again after the delay.
    #[error("more than {WAITING_BYTES_MAX} bytes wait to be committed; try again in {} ms", .retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The leader's disk or memory is full: try again when there is room.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// Not done; try again, perhaps elsewhere.
    #[error("{shard}: {reason}")]
    Unavailable {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: DriveError,
    },
    /// It may or may not be done.
    #[error("{shard}: the outcome is unknown")]
    OutcomeUnknown {
        /// The shard.
        shard: ShardId,
    },
    /// A read needs shards that are on other nodes.
    #[error("{shard} has no replica on {here}; {ask}")]
    NotHere {
        /// One of the shards.
        shard: ShardId,
        /// This node.
        here: NodeId,
        /// Who can be asked instead, in words.
        ask: String,
    },
    /// A read met a failure of the store.
    #[error(transparent)]
    Storage(#[from] galoo_storage::Error),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

impl NodeError {
    /// Whether it passes by itself: nothing was done, and nothing is wrong.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A running node.
pub struct Node {
    identity: Identity,
    config: Config,
    engine: Arc<dyn Engine>,
    log: Arc<SharedLog>,
    files: Arc<SegmentFiles>,
    indexes: Arc<ChunkIndexes>,
    sparse: Arc<SparseRanges>,
    eager: Eager,
    /// Callers write: work that nobody waits for rests.
    busy: AtomicBool,
    transport: Arc<Transport>,
    driver: Driver,
    meta: watch::Receiver<Arc<MetaState>>,
    router: watch::Sender<Arc<Router>>,
    store: Arc<Store>,
    /// The next keyspace that nothing was ever kept in by this process.
    next_place: AtomicU64,
    /// Who led groups that are not here when they were last asked.
    leaders: Mutex<HashMap<GroupId, NodeId>>,
    clock: Mutex<Hlc>,
    waiting: Arc<Semaphore>,
    /// All events of a game are read for one caller at a time: to compare a rollup with them, or to count properties.
    surveying: Arc<Semaphore>,
    disk: Disk,
    memtables: Memtables,
}

/// Unix milliseconds of the wall clock; 0 for a clock before 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Node {
    /// Takes the one place of those who read all events of a game, until it is dropped.
    fn begin_survey(&self) -> Result<OwnedSemaphorePermit, NodeError> {
        let taken = |_| NodeError::Surveying { retry_after: SURVEY_WAIT };
        self.surveying.clone().try_acquire_owned().map_err(taken)
    }

    /// Starts what the data folder holds, as a node of the cluster that it belongs to, and enters the door.
    ///
    /// `found` is where other nodes were found, which may have moved since the meta group was told.
    pub async fn start(door: &Door, identity: Identity, found: Vec<(NodeId, String)>) -> anyhow::Result<Arc<Self>> {
        let (config, engine) = (door.config().clone(), door.engine().clone());
        let disk = Disk::new(&config.data_dir, config.disk_reserve_bytes);
        let memtables = Memtables::new(engine.clone(), config.memtable_bytes);
        let log = Arc::new(SharedLog::open(&door.folder().join("log"), config.log_bytes)?);
        let files = Arc::new(SegmentFiles::new(&door.folder().join("segments"))?);
        door.folder().sync()?;
        let records = log.groups()?;
        snapshots::remove_strays(&engine, &files, &records)?;
        let places = records.iter().filter(|(_, record)| !record.destroyed).map(|(_, record)| Keyspace(record.place));
        let orphans = files.remove_unknown(&compaction::known_segments(engine.as_ref(), places)?)?;
        if orphans > 0 {
            info!(orphans, "removed segment files that no record names");
        }
        let place = |(_, record): &(GroupId, GroupRecord)| record.place;
        let next_place = AtomicU64::new(1 + records.iter().map(place).max().unwrap_or(META_KEYSPACE.0));
        let meta_place = records.iter().find(|(group, _)| *group == GroupId(META_GROUP)).map(place);
        let meta_keyspace = meta_place.map_or(META_KEYSPACE, Keyspace);
        let (machine, meta) = MetaMachine::open(engine.clone(), meta_keyspace)?;
        let me = identity.node();
        let addr = place::own_addr(&meta.borrow(), me, config.grpc).await;
        let transport = Arc::new(Transport::new(identity.cluster_id.clone(), me, addr));
        transport.set_nodes(place::addrs(&meta.borrow()));
        transport.found(found);
        let timing = Timing { seed: rand::random(), ..Timing::default() };
        let (moves, to_move) = mpsc::unbounded_channel();
        let store = Store {
            engine: engine.clone(),
            files: files.clone(),
            open: Mutex::default(),
            frozen: Frozen::default(),
            moves,
        };
        let store = Arc::new(store);
        let options = Options { apply_threads: config.apply_threads, log_bytes: config.log_bytes };
        let driver = Driver::start(me.0, log.clone(), timing, options, transport.clone(), store.clone())?;
        let voters = meta.borrow().nodes().map(|node| node.id).collect();
        let record = GroupRecord { place: meta_keyspace.0, voters, ..Default::default() };
        driver.open(GroupId(META_GROUP), record, Machine::Meta(Box::new(machine))).await?;
        let router = watch::channel(Arc::new(Router::new(&meta.borrow()))).0;
        let node = Arc::new(Self {
            identity,
            config,
            engine,
            log,
            files,
            indexes: Arc::default(),
            sparse: Arc::default(),
            eager: Eager::default(),
            busy: AtomicBool::new(true),
            transport,
            driver,
            meta,
            router,
            store,
            next_place,
            leaders: Mutex::default(),
            clock: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            surveying: Arc::new(Semaphore::new(1)),
            disk,
            memtables,
        });
        tokio::spawn(node.clone().follow_moves(to_move));
        node.reconcile().await?;
        door.enter(node.clone());
        // What the meta group has committed may not be applied yet: games should be there when the node says that it
        // is ready. Without a majority the node is there all the same, so that nodes can be started one by one.
        match tokio::time::timeout(START_WAIT, node.barrier(ShardId(META_GROUP))).await {
            Ok(done) => drop(done?),
            Err(_) => warn!("no majority of the meta group answered within {START_WAIT:?}: serving what can be served"),
        }
        node.reconcile().await?;
        tokio::spawn(node.clone().follow_meta());
        tokio::spawn(node.clone().announce());
        tokio::spawn(node.clone().watch_disk());
        Ok(node)
    }

    /// Ends all threads. What was acknowledged is in the log; a flush makes the next start quick.
    pub fn stop(&self) {
        self.driver.stop();
        self.transport.stop();
        if let Err(failure) = self.engine.flush() {
            error!(%failure, "the engine could not be flushed; the next start reads more of the log");
        }
    }

    /// Whose the data folder is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How the node was configured.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Commits what a worker made of a shard's content, between two commands; nothing (false, none) where the shard is not in
    /// that keyspace any more: its state was pulled anew meanwhile.
    pub async fn commit<T: Default + Send + 'static>(
        &self,
        shard: ShardId,
        keyspace: Keyspace,
        commit: impl FnOnce() -> galoo_storage::Result<T> + Send + 'static,
    ) -> galoo_storage::Result<T> {
        let in_place = move |machine: &mut Machine| match machine {
            Machine::Shard(shard) if shard.keyspace() == keyspace => commit(),
            _ => Ok(T::default()),
        };
        self.driver.with_machine(GroupId(shard.0), in_place).await.unwrap_or_else(|| Ok(T::default()))
    }

    /// Whether there is room for more than what is stored.
    pub fn room(&self) -> Result<(), NoRoom> {
        self.disk.room()?;
        Ok(self.memtables.room()?)
    }

    /// The engine's memtables.
    pub fn memtables(&self) -> &Memtables {
        &self.memtables
    }

    /// Bytes that indexes of chunks take, about, and may take.
    pub fn chunk_index_memory(&self) -> (usize, usize) {
        self.indexes.memory()
    }

    /// Whether there is room on the disk for more than what is stored.
    pub fn disk_room(&self) -> Result<(), DiskFull> {
        self.disk.room()
    }

    /// Shards that somebody asked to compact.
    pub fn eager(&self) -> &Eager {
        &self.eager
    }

    /// Whether callers write, as the compactor sees it.
    pub fn is_busy(&self) -> &AtomicBool {
        &self.busy
    }

    /// Where reads passed many cells that nobody can read any more.
    pub fn sparse(&self) -> &SparseRanges {
        &self.sparse
    }

    /// The shard maps as this node knows them.
    pub fn router(&self) -> Arc<Router> {
        self.router.borrow().clone()
    }

    /// A game that this node routes to; one that it has not heard of yet is asked for.
    async fn game(&self, name: &str) -> Result<Arc<Game>, NodeError> {
        if let Some(game) = self.router().game(name).cloned() {
            return Ok(game);
        }
        // In a box: every call's future would hold the room that this rare one needs.
        Box::pin(self.unknown_game(name)).await
    }

    /// A game that this node does not route to, once it does.
    async fn unknown_game(&self, name: &str) -> Result<Arc<Game>, NodeError> {
        let unknown = || NodeError::UnknownGame(name.to_owned());
        self.barrier(ShardId(META_GROUP)).await?;
        if self.meta.borrow().game(name).is_none() {
            return Err(unknown());
        }
        let mut router = self.router.subscribe();
        let routed = tokio::time::timeout(DEADLINE, router.wait_for(|router| router.game(name).is_some())).await;
        routed.ok().and_then(|routed| routed.ok()?.game(name).cloned()).ok_or_else(unknown)
    }

    /// Opens and destroys groups until they are what the meta group's state says.
    async fn follow_meta(self: Arc<Self>) {
        let mut meta = self.meta.clone();
        while meta.changed().await.is_ok() {
            self.transport.set_nodes(place::addrs(&meta.borrow_and_update()));
            if let Err(failure) = self.reconcile().await {
                error!(%failure, "this node's shards are not what the cluster wants of it");
            }
        }
    }

    async fn watch_disk(self: Arc<Self>) {
        loop {
            tokio::time::sleep(disk::ASK_EVERY).await;
            self.disk.ask();
        }
    }

    async fn reconcile(&self) -> anyhow::Result<()> {
        let state = self.meta.borrow().clone();
        let me = self.identity.node().0;
        let mine = state.shards().filter(|shard| shard.voters.contains(&me));
        let wanted: HashMap<_, _> = mine.map(|shard| (ShardId(shard.id), shard.clone())).collect();
        let mut places: HashMap<GroupId, GroupRecord> = self.log.groups()?.into_iter().collect();
        for (id, record) in &wanted {
            if self.keyspace(*id).is_some() {
                continue;
            }
            let group = GroupId(id.0);
            let place = places.entry(group).or_insert_with(|| GroupRecord {
                place: self.next_place(),
                voters: record.voters.clone(),
                ..Default::default()
            });
            let keyspace = Keyspace(place.place);
            let range = TokenRange { start: record.start, end: record.end };
            let shard = Shard::open(self.engine.clone(), keyspace, *id, GameId(record.game), range)?;
            // Before it takes part: a snapshot may move it at any moment from then on.
            self.lock_open().insert(*id, keyspace);
            let opened = self.driver.open(group, place.clone(), Machine::Shard(Box::new(shard))).await;
            if opened.is_err() {
                self.lock_open().remove(id);
            }
            opened?;
        }
        self.router.send_replace(Arc::new(Router::new(&state)));
        for (group, record) in places {
            let shard = ShardId(group.0);
            if group == GroupId(META_GROUP) || record.destroyed || !state.was_dropped(shard) {
                continue;
            }
            let open = self.lock_open().remove(&shard);
            self.driver.destroy(group).await?;
            let keyspace = open.unwrap_or(Keyspace(record.place));
            let (engine, files) = (self.engine.clone(), self.files.clone());
            tokio::task::spawn_blocking(move || {
                compaction::destroy_keyspace(&engine, keyspace)?;
                files.remove_keyspace(keyspace)
            })
            .await??;
            info!(%shard, "destroyed");
        }
        Ok(())
    }

    /// Whether this node leads a shard, as far as it knows.
    pub fn leads(&self, shard: ShardId) -> bool {
        self.driver.role(GroupId(shard.0)).is_some_and(|role| role.leads)
    }

    /// The engine below all shards.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The connections to the other nodes.
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The shared log.
    pub fn log(&self) -> &Arc<SharedLog> {
        &self.log
    }

    /// The node's segment files.
    pub fn files(&self) -> &Arc<SegmentFiles> {
        &self.files
    }

    /// The threads that replicate and apply.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    fn lock_open(&self) -> std::sync::MutexGuard<'_, HashMap<ShardId, Keyspace>> {
        self.store.open.lock().expect("nobody panics with the open shards in hand")
    }

    fn next_place(&self) -> u64 {
        self.next_place.fetch_add(1, Ordering::Relaxed)
    }

    fn keyspace(&self, shard: ShardId) -> Option<Keyspace> {
        self.lock_open().get(&shard).copied()
    }

    /// The shards that are open on this node.
    pub fn open_shards(&self) -> Vec<(ShardId, Keyspace)> {
        self.lock_open().iter().map(|(shard, keyspace)| (*shard, *keyspace)).collect()
    }
}

/// Returns an outcome's rejection as an error, for operations that must not meet one.
fn unexpected(shard: ShardId, outcome: &Outcome) -> NodeError {
    match &outcome.result {
        Some(outcome::Result::Rejected(rejection)) => NodeError::Refused(format!("{shard}: {}", rejection.detail)),
        _ => NodeError::OutcomeUnknown { shard },
    }
}
