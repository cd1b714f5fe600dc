//! Frozen states that followers pull, and what the Raft thread asks of whoever moves states between nodes.
//!
//! The apply thread freezes a state between two commands: a snapshot of the engine and the open segment files. It stays
//! until its offer is released. The disk space that it holds on to is bounded by how many may be frozen at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
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

/// Frozen states, by the name that their offer has.
#[derive(Default)]
pub struct Frozen(Mutex<HashMap<Bytes, (GroupId, Arc<Export>)>>);

impl Frozen {
    fn lock(&self) -> MutexGuard<'_, HashMap<Bytes, (GroupId, Arc<Export>)>> {
        self.0.lock().expect("nobody panics with the frozen states in hand")
    }

    /// Whether one more may be frozen.
    pub(super) fn has_room(&self) -> bool {
        self.lock().len() < FROZEN_MAX
    }

    /// Keeps a state and returns its name, which no other has, also after a restart.
    pub(super) fn keep(&self, group: GroupId, export: Export) -> Bytes {
        let name = Bytes::copy_from_slice(&rand::random::<u128>().to_le_bytes());
        self.lock().insert(name.clone(), (group, Arc::new(export)));
        name
    }

    pub(super) fn release(&self, name: &Bytes) {
        self.lock().remove(name);
    }

    pub(super) fn release_group(&self, group: GroupId) {
        self.lock().retain(|_, (of, _)| *of != group);
    }

    /// A group's state by its name, while it is offered.
    pub fn get(&self, group: GroupId, name: &[u8]) -> Option<Arc<Export>> {
        self.lock().get(name).filter(|(of, _)| *of == group).map(|(_, export)| export.clone())
    }
}
