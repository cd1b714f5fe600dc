//! Frozen states that other nodes pull, and what the Raft thread asks of whoever moves states between nodes.
//!
//! The apply thread freezes a state between two commands: a snapshot of the engine and the open segment files. It stays
//! until its offer is released, or nobody pulls what was lent. The disk space that it holds on to is bounded by how many may be frozen at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use galoo_consensus::{GroupId, raft_loop::Fetch};
use galoo_proto::{Keyspace, ShardId};
use galoo_storage::{engine::Engine, segment::SegmentFiles, snapshot::Export};
use tokio::sync::mpsc;

/// States that are frozen at once; a follower that needs a further one waits.
const FROZEN_MAX: usize = 4;

/// What the state machines of a node share.
pub struct Store {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Segment files.
    pub files: Arc<SegmentFiles>,
    /// Keyspaces of the shards that are open on the node.
    pub open: Mutex<HashMap<ShardId, Keyspace>>,
    /// States that followers pull.
    pub frozen: Frozen,
    /// Who moves states between nodes.
    pub moves: mpsc::UnboundedSender<Move>,
}

/// What is to be done with a state that moves between nodes.
#[derive(Debug)]
pub enum Move {
    /// Pull it from another node.
    Fetch(GroupId, Fetch),
    /// What is in the keyspace is not used any more: running reads end, then it goes.
    Left(Keyspace),
    /// What is in the keyspace was never used.
    Discard(Keyspace),
}

/// One that was lent, and not offered, is given up when nobody has pulled from it for so long.
const LENT_IDLE_MAX: Duration = Duration::from_secs(60);

/// Frozen states, by their names.
#[derive(Default)]
pub struct Frozen(Mutex<HashMap<Bytes, FrozenState>>);

struct FrozenState {
    group: GroupId,
    export: Arc<Export>,
    /// When somebody last pulled from it; `None`: it stays as long as its offer.
    lent: Option<Instant>,
}

impl Frozen {
    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, FrozenState>> {
        self.0.lock().expect("nobody panics with the frozen states in hand")
    }

    /// Whether one more may be frozen.
    pub fn has_room(&self) -> bool {
        self.give_up_idle();
        self.lock().len() < FROZEN_MAX
    }

    /// Gives up what was lent and nobody pulls from: it holds on to an engine snapshot and to files.
    pub fn give_up_idle(&self) {
        self.lock().retain(|_, state| state.lent.is_none_or(|used| used.elapsed() < LENT_IDLE_MAX));
    }

    /// Keeps a state and returns its name, which no other has, also after a restart.
    pub(super) fn keep(&self, group: GroupId, export: Export) -> Bytes {
        self.insert(group, export, None)
    }

    /// Keeps a state that a node asked for, as long as it pulls from it, and returns its name.
    pub fn lend(&self, group: GroupId, export: Export) -> Bytes {
        self.insert(group, export, Some(Instant::now()))
    }

    fn insert(&self, group: GroupId, export: Export, lent: Option<Instant>) -> Bytes {
        let name = Bytes::copy_from_slice(&rand::random::<u128>().to_le_bytes());
        self.lock().insert(name.clone(), FrozenState { group, export: Arc::new(export), lent });
        name
    }

    pub(super) fn release(&self, name: &Bytes) {
        self.lock().remove(name);
    }

    pub(super) fn release_group(&self, group: GroupId) {
        self.lock().retain(|_, state| state.group != group);
    }

    /// A group's state by its name, while it is offered or lent.
    pub fn get(&self, group: GroupId, name: &[u8]) -> Option<Arc<Export>> {
        let mut states = self.lock();
        let state = states.get_mut(name).filter(|state| state.group == group)?;
        state.lent = state.lent.map(|_| Instant::now());
        Some(state.export.clone())
    }
}
