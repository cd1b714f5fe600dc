//! The state machine of one shard: [`Shard::apply`] takes committed commands in log order.
//!
//! Deterministic: what apply writes and answers depends on the shard's state and the command alone, so that replicas at
//! the same index hold the same content (P5). The effect of a command, its outcome for deduplication and the applied
//! index are one atomic write (INV-S2), so that a command takes effect once however often the node crashes. A command
//! that does not fit the state is *rejected*, equally everywhere; anything else that goes wrong stops the shard.

mod cells;
mod checksum;
mod events;
mod producers;
mod rollups;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use galoo_proto::{
    Hlc, Keyspace, RollupId, Seq, ShardId, Token, TokenRange,
    command::{Command, Outcome, Registered, Rejection, Sealed, command::Body, outcome, rejection::Reason},
    record,
};
use prost::Message;

pub use self::checksum::Checksum;
pub(crate) use self::events::read_properties;
use crate::{
    Error, Result,
    engine::{Engine, Family, WriteBatch},
    key,
    properties::Kinds,
};

/// The newest format of [`Command`] and of the shard state that this version knows.
pub const FORMAT_VERSION: u32 = 1;

/// One replica's shard, owned by the thread that applies.
pub struct Shard {
    engine: Arc<dyn Engine>,
    keyspace: Keyspace,
    state: record::ShardState,
    /// The catalog of properties, as it stands in the engine.
    properties: HashMap<String, Kinds>,
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

/// What apply works on: the changes of one command, before they are written together.
struct Turn<'a> {
    shard: &'a Shard,
    state: record::ShardState,
    index: u64,
    hlc: Hlc,
    batch: WriteBatch,
    new_properties: Vec<(String, Kinds)>,
    /// The producer of the command's batch as the table has it; `None` for one that is new.
    producer: Option<record::Producer>,
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
        let properties = events::read_properties(engine.as_ref(), keyspace)?;
        let progress = Arc::new(Progress::default());
        progress.applied.store(state.applied, Ordering::Release);
        progress.last_seq.store(state.last_seq, Ordering::Release);
        Ok(Self { engine, keyspace, state, properties, progress })
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

    /// Log index whose effect survives a crash: the log may be cut at or below it.
    pub fn persisted(&self) -> Result<u64> {
        let state = self.engine.get_persisted(Family::Meta, &key::state(self.keyspace))?;
        Ok(decode_state(state.as_deref())?.map_or(0, |state| state.applied))
    }

    /// Applies the committed command at `index` and returns its outcome, equal on every replica.
    ///
    /// An empty command (a new leader's first entry) only moves the index.
    ///
    /// # Errors
    /// Any error stops the shard: the command may be read by a later version or on a healthy disk, never skipped.
    pub fn apply(&mut self, index: u64, command: &[u8]) -> Result<Outcome> {
        assert!(index == self.state.applied + 1, "INV-S2: {index} applied after {}", self.state.applied);
        let command = Command::decode(command).map_err(|error| Error::row("command", error))?;
        if command.version > FORMAT_VERSION {
            return Err(Error::NewerFormat { what: "command", found: command.version, known: FORMAT_VERSION });
        }
        // A leader stamps above everything in its log; a lower stamp (its clock went backwards) is lifted alike everywhere.
        let hlc = if command.body.is_none() { self.hlc() } else { Hlc(command.hlc).max(Hlc(self.state.hlc + 1)) };
        let mut turn = Turn {
            shard: self,
            state: self.state,
            index,
            hlc,
            batch: WriteBatch::default(),
            new_properties: Vec::new(),
            producer: None,
        };
        let outcome = turn.run(command.body)?;
        let Turn { mut state, mut batch, new_properties, .. } = turn;
        state.applied = index;
        state.hlc = hlc.0;
        batch.put(Family::Meta, key::state(self.keyspace), state.encode_to_vec());
        self.engine.write(batch)?;
        self.state = state;
        self.properties.extend(new_properties);
        self.progress.last_seq.store(self.state.last_seq, Ordering::Release);
        self.progress.applied.store(index, Ordering::Release);
        Ok(outcome)
    }

    fn range(&self) -> TokenRange {
        self.state.range.unwrap_or_default().into()
    }
}

impl Turn<'_> {
    fn run(&mut self, body: Option<Body>) -> Result<Outcome> {
        match body {
            None => Ok(Outcome::default()),
            Some(Body::Append(append)) => {
                if let Some(rejected) = self.reroute(append.range) {
                    return Ok(rejected);
                }
                self.append(append)
            }
            Some(Body::Mutate(mutate)) => {
                if let Some(rejected) = self.reroute(mutate.range) {
                    return Ok(rejected);
                }
                self.mutate(mutate)
            }
            Some(Body::RegisterProducer(register)) => {
                if let Some(rejected) = self.reroute(register.range) {
                    return Ok(rejected);
                }
                self.register(&register.producer_id)
            }
            Some(Body::Seal(seal)) => Ok(self.seal(seal.chunk)),
            Some(Body::DefineRollup(rollup)) => self.define_rollup(&rollup),
            Some(Body::DropRollup(drop)) => self.drop_rollup(RollupId(drop.id)),
        }
    }

    /// Refuses what was cut for another range than the shard has.
    fn reroute(&self, range: Option<galoo_proto::command::TokenRange>) -> Option<Outcome> {
        let wanted = TokenRange::from(range.unwrap_or_default());
        (wanted != self.shard.range())
            .then(|| rejected(Reason::Reroute, 0, format!("cut for {wanted}, the shard has {}", self.shard.range())))
    }

    fn seal(&mut self, chunk: u64) -> Outcome {
        let open = self.state.open.get_or_insert_default();
        let closed = open.id == chunk && open.last_seq >= open.first_seq;
        if closed {
            let next = new_chunk(open.id + 1, open.last_seq);
            let mut sealed = std::mem::replace(open, next);
            sealed.sealed_hlc = self.hlc.0;
            let id = galoo_proto::ChunkId(sealed.id);
            self.batch.put(Family::Meta, key::chunk(self.shard.keyspace, id), sealed.encode_to_vec());
        }
        Outcome { result: Some(outcome::Result::Sealed(Sealed { closed })) }
    }

    fn owns(&self, token: Token) -> bool {
        self.shard.range().contains(token)
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
