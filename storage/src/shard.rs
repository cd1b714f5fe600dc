//! The state machine of one shard: [`Shard::apply`] takes committed commands in log order.
//!
//! Deterministic: what apply writes and answers depends on the shard's state and the commands alone, so that replicas at
//! the same index hold the same content (P5). Commands take effect one after the other; those of an entry, and of
//! entries that are applied together, are written together: their effects, their outcomes for deduplication and the
//! how far the log is applied are one atomic write (INV-S2), so that a command takes effect once however often the node crashes. A command that does not fit the state
//! is *rejected*, equally everywhere; anything else that goes wrong stops the shard.

mod cells;
mod change;
mod checksum;
mod erasure;
mod event_ids;
mod events;
mod families;
mod producers;
mod properties;
mod rollups;
mod turn;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use galoo_proto::{
    Hlc, Keyspace, Seq, ShardId, TokenRange,
    command::{Outcome, Registered, Rejection, outcome, rejection::Reason},
    record,
};
use prost::Message;

pub use self::checksum::Checksum;
use self::{
    families::Families,
    turn::{Turn, Written},
};
pub(crate) use self::{
    families::read_families,
    properties::{read_declared, read_properties},
};
use crate::{
    Error, Result,
    engine::{Engine, Family, WriteBatch},
    key,
};

/// The newest format of [`galoo_proto::command::Command`] and of the shard state that this version knows.
pub const FORMAT_VERSION: u32 = 6;
/// The oldest format of the shard state that this version reads: before it, bytes of outcomes were not counted.
const FORMAT_VERSION_MIN: u32 = 6;

/// Bytes that entries leave to write at which they are written, if need be between two commands of an entry: deletions and
/// changes of lists leave far more than they bring.
pub const STAGED_BYTES_MAX: usize = 32 << 20;
/// Producers that a shard keeps in memory; beyond it all are let go of, and read again when they are used.
const PRODUCERS_CACHED_MAX: usize = 1_024;

/// One replica's shard, owned by the thread that applies.
pub struct Shard {
    engine: Arc<dyn Engine>,
    keyspace: Keyspace,
    state: record::ShardState,
    /// The catalog of properties, as it stands in the engine.
    properties: HashMap<String, record::Property>,
    /// Producers that were used lately, as they stand in the engine.
    producers: HashMap<String, record::Producer>,
    /// Declared families, as they stand in the engine.
    families: Arc<Families>,
    staged_bytes_max: usize,
    progress: Arc<Progress>,
}

/// What other threads may watch of a shard without asking its thread.
#[derive(Debug, Default)]
pub struct Progress {
    applied: AtomicU64,
    last_seq: AtomicU64,
}

impl Progress {
    /// Log index of the last applied command.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The last sequence number given.
    pub fn last_seq(&self) -> Seq {
        Seq(self.last_seq.load(Ordering::Acquire))
    }
}

impl Shard {
    /// Opens the shard in a keyspace, and makes it there when the keyspace is empty.
    pub fn open(
        engine: Arc<dyn Engine>,
        keyspace: Keyspace,
        shard: ShardId,
        game: galoo_proto::GameId,
        range: TokenRange,
    ) -> Result<Self> {
        let state = match read_state(engine.as_ref(), keyspace)? {
            Some(state) if state.shard == shard.0 => state,
            Some(state) => {
                let reason = format!("{keyspace} holds {}, not {shard}", ShardId(state.shard));
                return Err(Error::row("shard state", reason));
            }
            None => record::ShardState {
                version: FORMAT_VERSION,
                shard: shard.0,
                game: game.0,
                range: Some(range.into()),
                open: Some(new_chunk(1, 0)),
                ..Default::default()
            },
        };
        let properties = read_properties(engine.as_ref(), keyspace)?;
        let families = Arc::new(read_families(engine.as_ref(), keyspace)?);
        let progress = Arc::new(Progress::default());
        progress.applied.store(state.applied, Ordering::Release);
        progress.last_seq.store(state.last_seq, Ordering::Release);
        Ok(Self {
            engine,
            keyspace,
            state,
            properties,
            producers: HashMap::new(),
            families,
            staged_bytes_max: STAGED_BYTES_MAX,
            progress,
        })
    }

    /// Writes when so many bytes are staged, instead of [`STAGED_BYTES_MAX`].
    pub fn with_staged_bytes_max(self, staged_bytes_max: usize) -> Self {
        Self { staged_bytes_max, ..self }
    }

    /// Log index of the last applied command.
    pub fn applied(&self) -> u64 {
        self.state.applied
    }

    /// Stamp of the last applied command.
    pub fn hlc(&self) -> Hlc {
        Hlc(self.state.hlc)
    }

    /// The keyspace that holds the shard's data.
    pub fn keyspace(&self) -> Keyspace {
        self.keyspace
    }

    /// The shard's state as of the last applied command.
    pub fn state(&self) -> &record::ShardState {
        &self.state
    }

    /// The counters that other threads watch.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Log index whose effect survives a crash: the log may be cut at or below it. State that nobody can read any more
    /// since then may go.
    pub fn persisted(&self) -> Result<u64> {
        let state = self.engine.get_persisted(Family::Meta, &key::state(self.keyspace))?;
        let Some(state) = decode_state(state.as_deref())? else { return Ok(0) };
        let (may_go, passed) = (Hlc(state.gc_hlc), Hlc(self.state.gc_hlc));
        assert!(may_go <= passed, "INV-S7: what may be dropped up to {may_go} can be read from {passed} on");
        if may_go > Hlc(0) {
            self.engine.set_gc_time(self.keyspace, may_go);
        }
        Ok(state.applied)
    }

    /// Applies the commands of the committed entry at `index` and returns their outcomes, equal on every replica.
    ///
    /// An entry without commands (a new leader's first one) only moves the index.
    ///
    /// # Errors
    /// Any error stops the shard: the entry may be read by a later version or on a healthy disk, never skipped.
    pub fn apply(&mut self, index: u64, commands: &[&[u8]]) -> Result<Vec<Outcome>> {
        self.apply_all([(index, commands)])
    }

    /// Applies committed entries that follow each other, in one write, and returns the outcomes of all their commands.
    ///
    /// # Errors
    /// As [`Shard::apply`]; then none of the entries is applied.
    pub fn apply_all<'c>(&mut self, entries: impl IntoIterator<Item = (u64, &'c [&'c [u8]])>) -> Result<Vec<Outcome>> {
        let mut batch = WriteBatch::default();
        let outcomes = self.stage(entries, &mut batch)?;
        self.engine.write(batch)?;
        self.publish();
        Ok(outcomes)
    }

    /// Works out committed entries that follow each other, and puts what is to be written behind what is in the batch
    /// already: other shards' changes, which are written with it. [`Shard::publish`] when it is written. More than
    /// [`STAGED_BYTES_MAX`] is written here, up to a command's end, and the rest put into the batch.
    ///
    /// A command that took effect before a crash, of an entry that did not as a whole, has an empty outcome: nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// As [`Shard::apply`]; then the batch is as it was. A batch that is not written stops the shard too.
    pub fn stage<'c>(
        &mut self,
        entries: impl IntoIterator<Item = (u64, &'c [&'c [u8]])>,
        batch: &mut WriteBatch,
    ) -> Result<Vec<Outcome>> {
        let mut turn = Turn::new(self);
        let mut outcomes = Vec::new();
        for (index, commands) in entries {
            let done = turn.begin(index);
            outcomes.extend((0..done).map(|_| Outcome::default()));
            for command in commands.get(done..).unwrap_or_default() {
                outcomes.push(turn.take(command)?);
                if turn.is_to_be_written() || turn.staged_bytes() > self.staged_bytes_max {
                    let written = turn.pause();
                    let changes = self.settle(written);
                    self.engine.write(changes)?;
                    turn = Turn::new(self);
                    turn.begin(index);
                }
            }
        }
        let written = turn.finish();
        batch.append(self.settle(written));
        Ok(outcomes)
    }

    /// Goes on from what a turn left, and returns what is to be written.
    fn settle(&mut self, Written { state, batch, new_properties, producers, families }: Written) -> WriteBatch {
        self.state = state;
        self.properties.extend(new_properties);
        self.keep(producers);
        self.families = families;
        batch
    }

    /// Tells those who watch the shard how far it is, once what was staged is written.
    pub fn publish(&self) {
        self.progress.last_seq.store(self.state.last_seq, Ordering::Release);
        self.progress.applied.store(self.state.applied, Ordering::Release);
    }

    /// Keeps producers in memory as they were just written.
    fn keep(&mut self, changed: HashMap<String, Option<record::Producer>>) {
        for (id, producer) in changed {
            match producer {
                Some(producer) => drop(self.producers.insert(id, producer)),
                None => drop(self.producers.remove(&id)),
            }
        }
        if self.producers.len() > PRODUCERS_CACHED_MAX {
            self.producers.clear();
        }
    }

    fn range(&self) -> TokenRange {
        self.state.range.unwrap_or_default().into()
    }
}

fn new_chunk(id: u64, last_seq: u64) -> record::Chunk {
    record::Chunk { id, first_seq: last_seq + 1, last_seq, ..Default::default() }
}

pub(crate) fn decode_state(bytes: Option<&[u8]>) -> Result<Option<record::ShardState>> {
    let Some(bytes) = bytes else { return Ok(None) };
    let state = record::ShardState::decode(bytes).map_err(|error| Error::row("shard state", error))?;
    if state.version > FORMAT_VERSION {
        return Err(Error::NewerFormat { what: "shard state", found: state.version, known: FORMAT_VERSION });
    }
    if state.version < FORMAT_VERSION_MIN {
        return Err(Error::OlderFormat { what: "shard state", found: state.version, known: FORMAT_VERSION_MIN });
    }
    Ok(Some(state))
}

/// Reads the state of the shard in a keyspace; `None` when the keyspace is empty.
pub(crate) fn read_state(reader: &dyn crate::engine::Reader, keyspace: Keyspace) -> Result<Option<record::ShardState>> {
    decode_state(reader.get(Family::Meta, &key::state(keyspace))?.as_deref())
}

fn rejected(reason: Reason, limit: u64, detail: String) -> Outcome {
    let rejection = Rejection { reason: reason.into(), limit, detail, ..Default::default() };
    Outcome { result: Some(outcome::Result::Rejected(rejection)) }
}

fn registered(at: Hlc) -> Outcome {
    Outcome { result: Some(outcome::Result::Registered(Registered { registered_at: at.0 })) }
}
