//! The state machines that a node replicates: its shards and the meta group, behind one type.
//!
//! Here states meet the engine that keeps them: what is applied becomes rows of a batch, which the caller writes.

use std::{fmt, sync::Arc};

use galoo_consensus::{Entry, StateMachine};
use galoo_proto::{GameId, Keyspace, ShardId, command::Outcome, meta::MetaOutcome};
use galoo_storage::{
    engine::{Direction, Engine, Family, WriteBatch},
    segment::SegmentFiles,
    shard::Shard,
    snapshot::Export,
};
use tokio::sync::watch;

use crate::meta::{MetaState, RecordChange, Unreadable};

/// The meta group's first keyspace; shards' start behind it. A snapshot moves the group to another one.
pub const META_KEYSPACE: Keyspace = Keyspace(0);

/// A replicated state machine.
pub enum Machine {
    /// A shard's.
    Shard(Box<Shard>),
    /// The meta group's.
    Meta(Box<MetaMachine>),
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
    /// A log entry does not decode.
    #[error("the entry is damaged or of a newer version")]
    Entry,
}

impl StateMachine for Machine {
    type Answer = Answer;
    type Batch = WriteBatch;
    type Error = MachineError;

    fn applied(&self) -> u64 {
        match self {
            Self::Shard(shard) => shard.applied(),
            Self::Meta(meta) => meta.applied,
        }
    }

    fn stage(&mut self, entries: &[Entry<'_>], batch: &mut WriteBatch) -> Result<Vec<Answer>, MachineError> {
        Ok(match self {
            Self::Shard(shard) => {
                let entries = entries.iter().map(|entry| (entry.index, entry.commands.as_slice()));
                shard.stage(entries, batch)?.into_iter().map(Answer::Shard).collect()
            }
            Self::Meta(meta) => meta.stage(entries, batch)?.into_iter().map(Answer::Meta).collect(),
        })
    }

    fn publish(&mut self) {
        match self {
            Self::Shard(shard) => shard.publish(),
            Self::Meta(meta) => meta.publish(),
        }
    }

    fn persisted(&self) -> Result<u64, MachineError> {
        match self {
            Self::Shard(shard) => Ok(shard.persisted()?),
            Self::Meta(meta) => meta.persisted(),
        }
    }
}

impl Machine {
    /// The keyspace that holds its state.
    pub fn keyspace(&self) -> Keyspace {
        match self {
            Self::Shard(shard) => shard.keyspace(),
            Self::Meta(meta) => meta.keyspace,
        }
    }

    /// Freezes the state as it is between two commands.
    pub fn freeze(&self, engine: &dyn Engine, files: &SegmentFiles) -> Result<Export, MachineError> {
        Ok(match self {
            Self::Shard(shard) => Export::of_shard(engine.snapshot(), shard.keyspace(), files)?,
            Self::Meta(meta) => Export::of_rows(engine.snapshot(), meta.keyspace),
        })
    }

    /// The same machine on the state in another keyspace.
    pub fn moved(&self, engine: &Arc<dyn Engine>, keyspace: Keyspace) -> Result<Self, MachineError> {
        Ok(match self {
            Self::Shard(shard) => {
                let state = shard.state();
                let range = state.range.unwrap_or_default().into();
                let (id, game) = (ShardId(state.shard), GameId(state.game));
                Self::Shard(Box::new(Shard::open(engine.clone(), keyspace, id, game, range)?))
            }
            Self::Meta(meta) => Self::Meta(Box::new(meta.moved(keyspace)?)),
        })
    }
}

/// The meta group's state with the engine that keeps its records.
///
/// ```text
/// meta family   keyspace u64 | 0x01             -> applied index u64 (big-endian)
///               keyspace u64 | 0x02 record key  -> record
/// ```
pub struct MetaMachine {
    engine: Arc<dyn Engine>,
    keyspace: Keyspace,
    applied: u64,
    state: MetaState,
    changed: watch::Sender<Arc<MetaState>>,
}

const APPLIED: u8 = 1;
const RECORD: u8 = 2;

fn key(keyspace: Keyspace, tag: u8, rest: &[u8]) -> Vec<u8> {
    [&keyspace.0.to_be_bytes(), &[tag][..], rest].concat()
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
        batch.delete_range(Family::Meta, key(META_KEYSPACE, RECORD, &[])..key(META_KEYSPACE, RECORD + 1, &[]));
        put_records(&mut batch, META_KEYSPACE, records);
        engine.write(batch)?;
        Ok(engine.flush()?)
    }

    /// Opens the state and returns where its changes can be watched.
    pub fn open(
        engine: Arc<dyn Engine>,
        keyspace: Keyspace,
    ) -> Result<(Self, watch::Receiver<Arc<MetaState>>), MachineError> {
        let (state, applied) = Self::load(engine.as_ref(), keyspace)?;
        let (changed, watched) = watch::channel(Arc::new(state.clone()));
        Ok((Self { engine, keyspace, applied, state, changed }, watched))
    }

    fn load(engine: &dyn Engine, keyspace: Keyspace) -> Result<(MetaState, u64), MachineError> {
        let mut records = Vec::new();
        let (start, end) = (key(keyspace, RECORD, &[]), key(keyspace, RECORD + 1, &[]));
        let mut rows = engine.rows(Family::Meta, &start..&end, Direction::Forward)?;
        while let Some((key, value)) = rows.next()? {
            records.push((key[start.len()..].to_vec(), value.to_vec()));
        }
        drop(rows);
        let state = MetaState::load(records.iter().map(|(key, value)| (key.as_slice(), value.as_slice())))?;
        Ok((state, index(engine.get(Family::Meta, &key(keyspace, APPLIED, &[]))?)))
    }

    /// The same machine, with those who watch it, on the state in another keyspace.
    fn moved(&self, keyspace: Keyspace) -> Result<Self, MachineError> {
        let (state, applied) = Self::load(self.engine.as_ref(), keyspace)?;
        self.changed.send_replace(Arc::new(state.clone()));
        Ok(Self { engine: self.engine.clone(), keyspace, applied, state, changed: self.changed.clone() })
    }

    fn stage(&mut self, entries: &[Entry<'_>], batch: &mut WriteBatch) -> Result<Vec<MetaOutcome>, MachineError> {
        let mut outcomes = Vec::new();
        let mut changed = WriteBatch::default();
        for entry in entries {
            assert!(entry.index == self.applied + 1, "INV-S2: {} applied after {}", entry.index, self.applied);
            self.applied = entry.index;
            for command in &entry.commands {
                let (outcome, changes) = self.state.apply(command)?;
                put_records(&mut changed, self.keyspace, changes);
                outcomes.push(outcome);
            }
        }
        changed.put(Family::Meta, key(self.keyspace, APPLIED, &[]), self.applied.to_be_bytes().to_vec());
        batch.append(changed);
        Ok(outcomes)
    }

    fn publish(&self) {
        if self.changed.borrow().version() != self.state.version() {
            self.changed.send_replace(Arc::new(self.state.clone()));
        }
    }

    fn persisted(&self) -> Result<u64, MachineError> {
        Ok(index(self.engine.get_persisted(Family::Meta, &key(self.keyspace, APPLIED, &[]))?))
    }
}

fn put_records(batch: &mut WriteBatch, keyspace: Keyspace, changes: Vec<RecordChange>) {
    for (record, value) in changes {
        match value {
            Some(value) => batch.put(Family::Meta, key(keyspace, RECORD, &record), value),
            None => batch.delete(Family::Meta, key(keyspace, RECORD, &record)),
        }
    }
}
