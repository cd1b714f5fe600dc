//! What apply works on: the changes of entries' commands, before they are written together.

use std::{collections::HashMap, ops::Range, sync::Arc};

use galoo_proto::{
    ChunkId, Hlc, RollupId, Seq, Token, TokenRange,
    command::{Command, EventsDropped, GcTimeMoved, Outcome, Sealed, command::Body, outcome, rejection::Reason},
    record,
};
use prost::Message;

use super::{FORMAT_VERSION, Shard, families::Families, new_chunk, rejected};
use crate::{
    Error, Result,
    engine::{Family, WriteBatch},
    key,
};

/// The changes of commands. A later command reads what an earlier one changed through [`Turn::get`] and
/// [`Turn::set_rows`].
pub(super) struct Turn<'a> {
    pub(super) shard: &'a Shard,
    pub(super) state: record::ShardState,
    /// The entry that is being worked out.
    pub(super) index: u64,
    /// So many of its commands are.
    done: u32,
    /// Stamp of the command that is being worked out.
    pub(super) hlc: Hlc,
    batch: WriteBatch,
    /// The run of events that the entry has brought so far.
    pub(super) run: Option<Run>,
    /// Rows that [`Turn::set`] and [`Turn::unset`] changed; `None` for one that is gone.
    rows: HashMap<(Family, Vec<u8>), Option<Vec<u8>>>,
    pub(super) new_properties: HashMap<String, record::Property>,
    /// When events were stored whose ids are to be written, by the ids' hashes.
    pub(super) event_ids: HashMap<u128, Hlc>,
    /// Producers that were changed; `None` for one that was evicted.
    pub(super) producers: HashMap<String, Option<record::Producer>>,
    /// The declared families, as the commands so far leave them.
    pub(super) families: Arc<Families>,
    /// What the command left is to be written before the next one is worked out.
    write_now: bool,
}

/// Events of one entry in one chunk.
pub(super) struct Run {
    pub(super) chunk: ChunkId,
    pub(super) first: Seq,
    pub(super) bytes: Vec<u8>,
}

/// What a finished turn leaves to write and to remember.
pub(super) struct Written {
    pub(super) state: record::ShardState,
    pub(super) batch: WriteBatch,
    pub(super) new_properties: HashMap<String, record::Property>,
    pub(super) producers: HashMap<String, Option<record::Producer>>,
    pub(super) families: Arc<Families>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(shard: &'a Shard) -> Self {
        Self {
            shard,
            state: shard.state,
            index: shard.state.applied,
            done: 0,
            hlc: shard.hlc(),
            batch: WriteBatch::default(),
            run: None,
            rows: HashMap::new(),
            new_properties: HashMap::new(),
            event_ids: HashMap::new(),
            producers: HashMap::new(),
            families: shard.families.clone(),
            write_now: false,
        }
    }

    /// Goes on to the entry at `index`, and returns how many of its commands have taken effect before.
    pub(super) fn begin(&mut self, index: u64) -> usize {
        assert!(index == self.index + 1, "INV-S2: {index} applied after {}", self.index);
        self.end_run();
        self.index = index;
        self.done = std::mem::take(&mut self.state.applied_commands);
        self.done as usize
    }

    /// Bytes that are to be written.
    pub(super) fn staged_bytes(&self) -> usize {
        self.batch.bytes() + self.run.as_ref().map_or(0, |run| run.bytes.len())
    }

    /// Has what the command leaves written before the next one is worked out: that may read ranges that it removed.
    pub(super) fn write_now(&mut self) {
        self.write_now = true;
    }

    /// Whether the next command may not be worked out before what is staged is written.
    pub(super) fn is_to_be_written(&self) -> bool {
        self.write_now
    }

    /// Ends behind the commands that were taken of the last entry.
    pub(super) fn pause(mut self) -> Written {
        self.state.applied_commands = self.done;
        self.index -= 1;
        self.finish()
    }

    /// Ends behind the last entry.
    pub(super) fn finish(mut self) -> Written {
        let keyspace = self.shard.keyspace;
        self.end_run();
        self.state.applied = self.index;
        self.batch.put(Family::Meta, key::state(keyspace), self.state.encode_to_vec());
        for (id, producer) in &self.producers {
            let key = key::producer(keyspace, id);
            match producer {
                Some(producer) => self.batch.put(Family::Producers, key, producer.encode_to_vec()),
                None => self.batch.delete(Family::Producers, key),
            }
        }
        let Self { state, batch, new_properties, producers, families, .. } = self;
        Written { state, batch, new_properties, producers, families }
    }
}

impl Turn<'_> {
    /// Writes the run: what comes next is of another entry or another chunk.
    fn end_run(&mut self) {
        if let Some(Run { chunk, first, bytes }) = self.run.take() {
            self.batch.put(Family::Chunks, key::run(self.shard.keyspace, chunk, first), bytes);
        }
    }

    /// Reads a row as the commands before this one left it.
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        // A look with a borrowed key is not worth a map of its own: few commands read rows that are changed.
        match self.rows.get(&(family, key.to_vec())) {
            Some(changed) => Ok(changed.clone()),
            None => self.shard.engine.get(family, key),
        }
    }

    /// Whether a command before this one removed a row that [`Turn::unset`] takes away.
    pub(super) fn is_unset(&self, family: Family, key: &[u8]) -> bool {
        matches!(self.rows.get(&(family, key.to_vec())), Some(None))
    }

    /// The rows of a range that [`Turn::set`] set, in any order.
    pub(super) fn set_rows(
        &self,
        family: Family,
        range: &Range<Vec<u8>>,
    ) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        let set = self.rows.iter().filter_map(|((of, key), value)| Some((of, key, value.as_ref()?)));
        set.filter(move |(of, key, _)| **of == family && range.contains(*key)).map(|(_, key, value)| (key, value))
    }

    /// Sets a row that a later command may read.
    pub(super) fn set(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.batch.put(family, key.clone(), value.clone());
        self.rows.insert((family, key), Some(value));
    }

    /// Removes a row that a later command may read.
    pub(super) fn unset(&mut self, family: Family, key: Vec<u8>) {
        self.batch.delete(family, key.clone());
        self.rows.insert((family, key), None);
    }

    /// Sets a row that no command reads.
    pub(super) fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.batch.put(family, key, value);
    }

    /// Removes a row that no command reads.
    pub(super) fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.batch.delete(family, key);
    }

    /// Removes rows that no command reads any more.
    pub(super) fn delete_range(&mut self, family: Family, range: Range<Vec<u8>>) {
        self.batch.delete_range(family, range);
    }

    /// Works out the entry's next command and returns its outcome.
    pub(super) fn take(&mut self, command: &[u8]) -> Result<Outcome> {
        let command = Command::decode(command).map_err(|error| Error::row("command", error))?;
        if command.version > FORMAT_VERSION {
            return Err(Error::NewerFormat { what: "command", found: command.version, known: FORMAT_VERSION });
        }
        // A leader stamps above everything in its log; a lower stamp (its clock went backwards) is lifted alike everywhere.
        self.hlc = Hlc(command.hlc).max(Hlc(self.state.hlc + 1));
        self.state.hlc = self.hlc.0;
        self.done += 1;
        self.run(command.body)
    }

    fn run(&mut self, body: Option<Body>) -> Result<Outcome> {
        match body {
            None => Err(Error::row("command", "it has no body")),
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
            Some(Body::DropBuckets(drop)) => self.drop_buckets(&drop),
            Some(Body::DefineFamily(family)) => Ok(self.define_family(family)),
            Some(Body::DropFamily(drop)) => Ok(self.drop_family(&drop)),
            Some(Body::MoveGcTime(to)) => Ok(self.move_gc_time(Hlc(to.to))),
            Some(Body::ForgetPlayer(forget)) => {
                if let Some(rejected) = self.reroute(forget.range) {
                    return Ok(rejected);
                }
                self.forget(&forget)
            }
            Some(Body::DropEventsBefore(drop)) => Ok(self.drop_events_before(drop.time_ms)),
            Some(Body::DeclareProperties(declared)) => self.declare_properties(&declared),
            Some(Body::SetEventIdWindow(set)) => Ok(self.set_event_id_window(set.window_ms)),
        }
    }

    /// Moves the time before which state cannot be read any more; never back, and never to what may yet be read as new.
    fn move_gc_time(&mut self, to: Hlc) -> Outcome {
        let to = to.0.min(self.hlc.0 - 1);
        self.state.gc_hlc = self.state.gc_hlc.max(to);
        let moved = GcTimeMoved { gc_hlc: self.state.gc_hlc };
        Outcome { result: Some(outcome::Result::GcTimeMoved(moved)) }
    }

    /// Moves the time before which events are not read; never back.
    fn drop_events_before(&mut self, time_ms: i64) -> Outcome {
        self.state.events_from_ms = self.state.events_from_ms.max(time_ms);
        let dropped = EventsDropped { from_ms: self.state.events_from_ms };
        Outcome { result: Some(outcome::Result::EventsDropped(dropped)) }
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
            let id = ChunkId(sealed.id);
            self.put(Family::Meta, key::chunk(self.shard.keyspace, id), sealed.encode_to_vec());
            self.end_run();
        }
        Outcome { result: Some(outcome::Result::Sealed(Sealed { closed })) }
    }

    pub(super) fn owns(&self, token: Token) -> bool {
        self.shard.range().contains(token)
    }
}
