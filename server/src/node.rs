//! A node: its data folder, engine, log and groups, wired together, and the operations that the protocols call.
//!
//! Started in order (folder, engine, log, meta group, shards), stopped in the opposite one. What waits to be committed
//! is bounded here, in bytes, before it is proposed: beyond it a caller waits a little and is then refused (P8).

mod append;
mod games;
mod reads;
mod rollups;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use galoo_cluster::{
    META_GROUP,
    meta::{self, MetaState},
    router::{Game, Router},
};
use galoo_consensus::{
    GroupId,
    log_store::{GroupRecord, LogStore, shared::SharedLog},
    raft_loop::Timing,
};
use galoo_proto::{
    GameId, Hlc, Keyspace, NodeId, ShardId, TokenRange,
    command::{Command, Outcome, command::Body, outcome},
    meta::{MetaCommand, MetaOutcome, NodeRecord},
    validate::Invalid,
};
use galoo_storage::{
    compaction,
    engine::{Engine, rocks::RocksEngine},
    segment::SegmentFiles,
    shard::{self, Shard},
};
use prost::Message;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info};

pub use self::append::PartResult;
use crate::{
    config::Config,
    data_folder::{DataFolder, Identity},
    driver::{DriveError, Driver},
    machine::{Answer, META_KEYSPACE, Machine, MetaMachine},
};

/// A proposal or read that is not answered after this is given up.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two tries of what was surely not done.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// Bytes of commands that wait to be committed and applied on this node.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// How long a caller waits for its share of these bytes before it is refused.
const ADMISSION_WAIT: Duration = Duration::from_secs(2);

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
    /// There is no such rollup.
    #[error("rollup {0:?} does not exist")]
    UnknownRollup(String),
    /// Too much waits on this node: try again after the delay.
    #[error("more than {WAITING_BYTES_MAX} bytes wait to be committed; try again in {} ms", .retry_after.as_millis())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
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
    /// A read met a failure of the store.
    #[error(transparent)]
    Storage(#[from] galoo_storage::Error),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// A running node.
pub struct Node {
    identity: Identity,
    config: Config,
    engine: Arc<dyn Engine>,
    log: Arc<SharedLog>,
    files: Arc<SegmentFiles>,
    driver: Driver,
    meta: watch::Receiver<Arc<MetaState>>,
    router: watch::Sender<Arc<Router>>,
    /// Keyspaces of the shards that are open here.
    open: Mutex<HashMap<ShardId, Keyspace>>,
    clock: Mutex<Hlc>,
    waiting: Arc<Semaphore>,
    _folder: DataFolder,
}

/// Unix milliseconds of the wall clock; 0 for a clock before 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Node {
    /// Opens the data folder and starts what it holds. A folder that is nobody's yet becomes a cluster of one node.
    pub async fn start(config: Config) -> anyhow::Result<Arc<Self>> {
        let folder = DataFolder::open(&config.data_dir)?;
        let known = folder.identity()?;
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&folder.join("data"), &config.engine_options())?);
        let log = Arc::new(SharedLog::open(&folder.join("log"))?);
        let files = Arc::new(SegmentFiles::new(&folder.join("segments"))?);
        let identity = match known {
            Some(identity) => identity,
            None => {
                let identity = Identity::new(format!("{:032x}", rand::random::<u128>()), NodeId(1));
                let record = NodeRecord { id: 1, grpc_addr: config.grpc.to_string(), zone: config.zone.clone() };
                MetaMachine::form(engine.as_ref(), MetaState::formed([record]))?;
                folder.set_identity(&identity)?;
                info!(cluster = identity.cluster_id, "formed a cluster of one node");
                identity
            }
        };
        let records = log.groups()?;
        let places = records.iter().filter(|(_, record)| !record.destroyed).map(|(_, record)| Keyspace(record.place));
        let orphans = files.remove_unknown(&compaction::known_segments(engine.as_ref(), places)?)?;
        if orphans > 0 {
            info!(orphans, "removed segment files that no record names");
        }
        let seed = rand::random();
        let timing = Timing { seed, ..Timing::default() };
        let driver = Driver::start(identity.node().0, log.clone(), timing, config.apply_threads)?;
        let (machine, meta) = MetaMachine::open(engine.clone())?;
        let voters = meta.borrow().nodes().map(|node| node.id).collect();
        let record = GroupRecord { place: META_KEYSPACE.0, voters, ..Default::default() };
        driver.open(GroupId(META_GROUP), record, Machine::Meta(machine)).await?;
        let router = watch::channel(Arc::new(Router::new(&meta.borrow()))).0;
        let node = Arc::new(Self {
            identity,
            config,
            engine,
            log,
            files,
            driver,
            meta,
            router,
            open: Mutex::default(),
            clock: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            _folder: folder,
        });
        // What the meta group has committed may not be applied yet: games must be there when the node says that it is ready.
        node.barrier(ShardId(META_GROUP)).await?;
        node.reconcile().await?;
        tokio::spawn(node.clone().follow_meta());
        Ok(node)
    }

    /// Ends all threads. What was acknowledged is in the log; a flush makes the next start quick.
    pub fn stop(&self) {
        self.driver.stop();
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

    /// The shard maps as this node knows them.
    pub fn router(&self) -> Arc<Router> {
        self.router.borrow().clone()
    }

    fn game(&self, name: &str) -> Result<Game, NodeError> {
        self.router.borrow().game(name).cloned().ok_or_else(|| NodeError::UnknownGame(name.to_owned()))
    }

    fn stamp(&self) -> Hlc {
        let mut clock = self.clock.lock().expect("nobody panics with the clock in hand");
        *clock = clock.next(unix_ms());
        *clock
    }

    /// Replicates a shard's command and returns its outcome.
    async fn propose(self: &Arc<Self>, shard: ShardId, body: Body) -> Result<Outcome, NodeError> {
        self.begin(shard, body).await?.await
    }

    /// Hands a shard's command over to be replicated; the future that comes back ends with its outcome.
    ///
    /// What was surely not done is tried again until the deadline, then perhaps behind later commands.
    async fn begin(
        self: &Arc<Self>,
        shard: ShardId,
        body: Body,
    ) -> Result<impl Future<Output = Result<Outcome, NodeError>> + use<>, NodeError> {
        let command = Command { version: shard::FORMAT_VERSION, hlc: self.stamp().0, body: Some(body) };
        let answer = self.replicate(GroupId(shard.0), command.encode_to_vec().into()).await?;
        Ok(async move {
            match answer.await? {
                Answer::Shard(outcome) => Ok(outcome),
                Answer::Meta(_) => Err(NodeError::OutcomeUnknown { shard }),
            }
        })
    }

    async fn propose_meta(
        self: &Arc<Self>,
        body: galoo_proto::meta::meta_command::Body,
    ) -> Result<MetaOutcome, NodeError> {
        let command = MetaCommand { version: meta::FORMAT_VERSION, hlc: self.stamp().0, body: Some(body) };
        match self.replicate(GroupId(META_GROUP), command.encode_to_vec().into()).await?.await? {
            Answer::Meta(outcome) => Ok(outcome),
            Answer::Shard(_) => Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
        }
    }

    async fn replicate(
        self: &Arc<Self>,
        group: GroupId,
        data: Bytes,
    ) -> Result<impl Future<Output = Result<Answer, NodeError>> + use<>, NodeError> {
        let bytes = u32::try_from(data.len().min(WAITING_BYTES_MAX)).unwrap_or(u32::MAX);
        let admitted = tokio::time::timeout(ADMISSION_WAIT, self.waiting.clone().acquire_many_owned(bytes)).await;
        let admitted = match admitted {
            Ok(Ok(permit)) => permit,
            Ok(Err(_closed)) => return Err(NodeError::Stopping),
            Err(_) => {
                metrics::counter!("galoo_refused_total", "reason" => "busy").increment(1);
                return Err(NodeError::Busy { retry_after: ADMISSION_WAIT });
            }
        };
        let first = self.driver.propose(group, data.to_vec());
        let node = self.clone();
        Ok(async move {
            let _admitted = admitted;
            let shard = ShardId(group.0);
            let deadline = tokio::time::Instant::now() + DEADLINE;
            let mut answer = tokio::time::timeout_at(deadline, first).await;
            loop {
                match answer {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(DriveError::NotReady(_))) if tokio::time::Instant::now() + RETRY_DELAY < deadline => {
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                    Ok(Err(DriveError::OutcomeUnknown)) | Err(_) => return Err(NodeError::OutcomeUnknown { shard }),
                    Ok(Err(reason)) => return Err(NodeError::Unavailable { shard, reason }),
                }
                answer = tokio::time::timeout_at(deadline, node.driver.propose(group, data.to_vec())).await;
            }
        })
    }

    /// Opens and destroys groups until they are what the meta group's state says.
    async fn follow_meta(self: Arc<Self>) {
        let mut meta = self.meta.clone();
        while meta.changed().await.is_ok() {
            if let Err(failure) = self.reconcile().await {
                error!(%failure, "this node's shards are not what the cluster wants of it");
            }
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
            let next = 1 + places.values().map(|record| record.place).max().unwrap_or(META_KEYSPACE.0);
            let place = places.entry(group).or_insert_with(|| GroupRecord {
                place: next,
                voters: record.voters.clone(),
                ..Default::default()
            });
            let keyspace = Keyspace(place.place);
            let range = TokenRange { start: record.start, end: record.end };
            let shard = Shard::open(self.engine.clone(), keyspace, *id, GameId(record.game), range)?;
            self.driver.open(group, place.clone(), Machine::Shard(Box::new(shard))).await?;
            self.lock_open().insert(*id, keyspace);
        }
        self.router.send_replace(Arc::new(Router::new(&state)));
        for (group, record) in places {
            let shard = ShardId(group.0);
            if group == GroupId(META_GROUP) || record.destroyed || !state.was_dropped(shard) {
                continue;
            }
            self.lock_open().remove(&shard);
            self.driver.destroy(group).await?;
            let keyspace = Keyspace(record.place);
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
        self.driver.roles().borrow().get(&GroupId(shard.0)).is_some_and(|role| role.leads)
    }

    /// The engine below all shards.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
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
        self.open.lock().expect("nobody panics with the open shards in hand")
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
