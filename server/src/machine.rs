//! The state machines that a node replicates: its shards and the meta group, behind one type.

use std::{fmt, sync::Arc};

use galoo_cluster::meta::{MetaState, RecordChange, Unreadable};
use galoo_consensus::StateMachine;
use galoo_proto::{Keyspace, command::Outcome, meta::MetaOutcome};
use galoo_storage::{
    engine::{Direction, Engine, Family, WriteBatch},
    shard::Shard,
};
use tokio::sync::watch;

/// The keyspace of the meta group; shards' start behind it.
pub const META_KEYSPACE: Keyspace = Keyspace(0);

/// A replicated state machine.
pub enum Machine {
    /// A shard's.
    Shard(Box<Shard>),
    /// The meta group's.
    Meta(MetaMachine),
}

/// What applying a command answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Of a shard.
    Shard(Outcome),
    /// Of the meta group.
    Meta(MetaOutcome),
}

/// What stops a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The store failed, or a command does not decode.
    #[error(transparent)]
    Storage(#[from] galoo_storage::Error),
    /// A meta command or record does not decode.
    #[error(transparent)]
    Meta(#[from] Unreadable),
}

impl StateMachine for Machine {
    type Answer = Answer;
    type Error = MachineError;

    fn applied(&self) -> u64 {
        match self {
            Self::Shard(shard) => shard.applied(),
            Self::Meta(meta) => meta.applied,
        }
    }

    fn apply(&mut self, index: u64, data: &[u8]) -> Result<Answer, MachineError> {
        Ok(match self {
            Self::Shard(shard) => Answer::Shard(shard.apply(index, data)?),
            Self::Meta(meta) => Answer::Meta(meta.apply(index, data)?),
        })
    }

    fn persisted(&self) -> Result<u64, MachineError> {
        match self {
            Self::Shard(shard) => Ok(shard.persisted()?),
            Self::Meta(meta) => meta.persisted(),
        }
    }
}

/// The meta group's state with the engine that keeps its records.
///
/// ```text
/// meta family   keyspace u64 = 0 | 0x01             -> applied index u64 (big-endian)
///               keyspace u64 = 0 | 0x02 record key  -> record
/// ```
pub struct MetaMachine {
    engine: Arc<dyn Engine>,
    applied: u64,
    state: MetaState,
    changed: watch::Sender<Arc<MetaState>>,
}

const APPLIED: u8 = 1;
const RECORD: u8 = 2;

fn key(tag: u8, rest: &[u8]) -> Vec<u8> {
    [&META_KEYSPACE.0.to_be_bytes(), &[tag][..], rest].concat()
}

fn index(bytes: Option<Vec<u8>>) -> u64 {
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

impl fmt::Debug for MetaMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaMachine").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl MetaMachine {
    /// Writes the first records of a cluster that is being formed, durably, in place of those of an earlier attempt.
    pub fn form(engine: &dyn Engine, records: Vec<RecordChange>) -> Result<(), MachineError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(Family::Meta, key(RECORD, &[])..key(RECORD + 1, &[]));
        put_records(&mut batch, records);
        engine.write(batch)?;
        Ok(engine.flush()?)
    }

    /// Opens the state and returns where its changes can be watched.
    pub fn open(engine: Arc<dyn Engine>) -> Result<(Self, watch::Receiver<Arc<MetaState>>), MachineError> {
        let mut records = Vec::new();
        let (start, end) = (key(RECORD, &[]), key(RECORD + 1, &[]));
        let mut rows = engine.rows(Family::Meta, &start..&end, Direction::Forward)?;
        while let Some((key, value)) = rows.next()? {
            records.push((key[start.len()..].to_vec(), value.to_vec()));
        }
        drop(rows);
        let state = MetaState::load(records.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))?;
        let applied = index(engine.get(Family::Meta, &key(APPLIED, &[]))?);
        let (changed, watched) = watch::channel(Arc::new(state.clone()));
        Ok((Self { engine, applied, state, changed }, watched))
    }

    fn apply(&mut self, index: u64, data: &[u8]) -> Result<MetaOutcome, MachineError> {
        assert!(index == self.applied + 1, "INV-S2: {index} applied after {}", self.applied);
        let mut batch = WriteBatch::default();
        let outcome = if data.is_empty() {
            MetaOutcome::default()
        } else {
            let (outcome, changes) = self.state.apply(data)?;
            put_records(&mut batch, changes);
            outcome
        };
        batch.put(Family::Meta, key(APPLIED, &[]), index.to_be_bytes().to_vec());
        self.engine.write(batch)?;
        self.applied = index;
        if self.changed.borrow().version() != self.state.version() {
            self.changed.send_replace(Arc::new(self.state.clone()));
        }
        Ok(outcome)
    }

    fn persisted(&self) -> Result<u64, MachineError> {
        Ok(index(self.engine.get_persisted(Family::Meta, &key(APPLIED, &[]))?))
    }
}

fn put_records(batch: &mut WriteBatch, changes: Vec<RecordChange>) {
    for (record, value) in changes {
        match value {
            Some(value) => batch.put(Family::Meta, key(RECORD, &record), value),
            None => batch.delete(Family::Meta, key(RECORD, &record)),
        }
    }
}
