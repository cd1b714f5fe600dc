//! A shard at one moment: chunks and segments read as one.
//!
//! A view holds a snapshot of the engine, so that a chunk is read either from its rows or from its segment, never from
//! both and never from neither (INV-S4): the record that says which is in the snapshot. Everything that reads events
//! goes through [`View::source_batches`], one [`Source`] at a time; SQL, player scans, scans in order of seq and
//! checksums differ in the columns and the order that they ask for.

mod batches;
mod catalog;
mod columns;
mod condition;
mod events;
mod player;
mod sparse;
mod state;

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    sync::{Arc, OnceLock},
};

use galoo_proto::{
    ChunkId, Hlc, Keyspace, RollupId, Seq, ShardId, record,
    rollup::Rollup,
    value::{FamilyDefinition, PropertyDeclarations},
};
use prost::Message;

pub use self::{
    batches::Batches,
    catalog::{Catalog, CatalogEntry, KindCounts},
    columns::Column,
    condition::{Condition, Scalar, Test},
    events::Events,
    player::PlayerPage,
    sparse::SparseRanges,
    state::{CellQuery, RowCells, StateScan},
};
pub(crate) use self::{
    catalog::count_members,
    columns::{Shredded, extra_members},
    condition::all_hold,
};
use crate::{
    Error, Result,
    chunk::index::ChunkIndexes,
    engine::{Direction, Family, Reader},
    erasure::Erasures,
    key,
    segment::SegmentFiles,
    shard,
};

/// Which events a scan lets through.
#[derive(Clone, Debug, PartialEq)]
pub struct EventFilter {
    /// Event times, Unix milliseconds.
    pub time_ms: Range<i64>,
    /// Only these players; `None`: all.
    pub players: Option<Vec<String>>,
    /// Only these types; `None`: all.
    pub event_types: Option<Vec<String>>,
    /// Only these sequence numbers.
    pub seqs: RangeInclusive<u64>,
    /// Only events of which all these hold.
    pub conditions: Vec<Condition>,
}

impl Default for EventFilter {
    fn default() -> Self {
        Self {
            time_ms: i64::MIN..i64::MAX,
            players: None,
            event_types: None,
            seqs: 0..=u64::MAX,
            conditions: Vec::new(),
        }
    }
}

impl EventFilter {
    /// Lets a player's events through.
    pub fn player(player: &str) -> Self {
        Self { players: Some(vec![player.to_owned()]), ..Self::default() }
    }

    fn overlaps(&self, time_min_ms: i64, time_max_ms: i64) -> bool {
        self.time_ms.start <= time_max_ms && time_min_ms < self.time_ms.end
    }

    fn takes_player(&self, player: &str) -> bool {
        self.players.as_ref().is_none_or(|players| players.iter().any(|wanted| wanted == player))
    }

    pub(crate) fn takes_type(&self, event_type: &str) -> bool {
        self.event_types.as_ref().is_none_or(|types| types.iter().any(|wanted| wanted == event_type))
    }
}

/// A part of the shard's events, contiguous in seq: a chunk or a segment.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Runs in the chunk family.
    Chunk(record::Chunk),
    /// A file.
    Segment(Arc<record::Segment>),
}

impl Source {
    /// The source's first sequence number.
    pub fn first_seq(&self) -> Seq {
        match self {
            Self::Chunk(chunk) => Seq(chunk.first_seq),
            Self::Segment(segment) => Seq(segment.first_seq),
        }
    }

    /// The source's last sequence number.
    pub fn last_seq(&self) -> Seq {
        match self {
            Self::Chunk(chunk) => Seq(chunk.last_seq),
            Self::Segment(segment) => Seq(segment.last_seq),
        }
    }

    /// Events in it.
    pub fn rows(&self) -> u64 {
        match self {
            Self::Chunk(chunk) => chunk.last_seq + 1 - chunk.first_seq,
            Self::Segment(segment) => segment.rows,
        }
    }

    /// Events that were dropped from it.
    pub(crate) fn gone(&self) -> u64 {
        match self {
            Self::Chunk(_) => 0,
            Self::Segment(segment) => segment.gone,
        }
    }

    /// The first and the last event time in it.
    pub(crate) fn times(&self) -> (i64, i64) {
        match self {
            Self::Chunk(chunk) => (chunk.time_min_ms, chunk.time_max_ms),
            Self::Segment(segment) => (segment.time_min_ms, segment.time_max_ms),
        }
    }

    /// What an event of it takes in memory, on average.
    fn event_bytes_mean(&self) -> u64 {
        let bytes = match self {
            Self::Chunk(chunk) => chunk.bytes,
            Self::Segment(segment) => segment.event_bytes,
        };
        // Beside its texts an event has numbers.
        bytes / self.rows().max(1) + 64
    }

    fn may_match(&self, filter: &EventFilter) -> bool {
        if self.rows() == 0 || self.last_seq().0 < *filter.seqs.start() || *filter.seqs.end() < self.first_seq().0 {
            return false;
        }
        let (first, last) = self.times();
        let may_hold = |segment: &record::Segment| {
            let tokens = segment.token_min..=segment.token_max;
            let holds = |player: &String| tokens.contains(&galoo_proto::Token::of(player).0);
            filter.players.as_ref().is_none_or(|players| players.iter().any(holds))
        };
        filter.overlaps(first, last)
            && match self {
                Self::Chunk(_) => true,
                Self::Segment(segment) => may_hold(segment),
            }
    }
}

/// A shard's content at one applied index. Cheap to clone; the snapshot lives as long as a clone.
#[derive(Clone)]
pub struct View {
    reader: Arc<dyn Reader>,
    keyspace: Keyspace,
    state: Arc<record::ShardState>,
    /// What expires by then has expired.
    now: Hlc,
    /// Events of an earlier time are not read.
    from_ms: i64,
    /// Events of these players are not read; as they are stored, if it is not said.
    hidden: Option<Arc<Erasures>>,
    erasures: Arc<OnceLock<Arc<Erasures>>>,
    /// Read when they are first asked for: a cell needs none of them.
    sources: Arc<OnceLock<Vec<Source>>>,
    files: Arc<SegmentFiles>,
    indexes: Arc<ChunkIndexes>,
    sparse: Arc<SparseRanges>,
}

impl View {
    /// Opens the shard of a keyspace as of a snapshot.
    ///
    /// Returns `None` when the keyspace is empty.
    pub fn open(reader: Arc<dyn Reader>, keyspace: Keyspace, files: Arc<SegmentFiles>) -> Result<Option<Self>> {
        let Some(state) = shard::read_state(reader.as_ref(), keyspace)? else { return Ok(None) };
        let (now, from_ms, state) = (Hlc(state.hlc), state.events_from_ms, Arc::new(state));
        let (hidden, erasures, sources, indexes, sparse) = Default::default();
        Ok(Some(Self { reader, keyspace, state, now, from_ms, hidden, erasures, sources, files, indexes, sparse }))
    }

    /// Says there where reads passed many rows for nothing.
    pub fn with_sparse(self, sparse: Arc<SparseRanges>) -> Self {
        Self { sparse, ..self }
    }

    /// Looks at the shard's content at this time, when what it holds may have expired; at the stamp of its last command
    /// without. A time before that stamp counts as it.
    pub fn at(self, now: Hlc) -> Self {
        Self { now: now.max(self.hlc()), ..self }
    }

    /// Shares the indexes of chunks with other views. Without, a view and its clones make their own.
    pub fn with_indexes(self, indexes: Arc<ChunkIndexes>) -> Self {
        Self { indexes, ..self }
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        ShardId(self.state.shard)
    }

    /// The shard's state at this moment.
    pub fn state(&self) -> &record::ShardState {
        &self.state
    }

    /// The keyspace that holds the shard.
    pub fn keyspace(&self) -> Keyspace {
        self.keyspace
    }

    pub(crate) fn reader(&self) -> &dyn Reader {
        self.reader.as_ref()
    }

    /// Stamp of the last command in the view.
    pub fn hlc(&self) -> Hlc {
        Hlc(self.state.hlc)
    }

    /// Reads the events from a time on, as far as they are stored, but for these.
    pub(crate) fn reading(&self, from_ms: i64, hidden: Arc<Erasures>) -> Self {
        Self { from_ms, hidden: Some(hidden), ..self.clone() }
    }

    /// Whether both views of a shard at one moment read the same events.
    pub(crate) fn reads_as(&self, other: &Self) -> bool {
        self.from_ms == other.from_ms && self.hidden == other.hidden
    }

    /// Forgotten players of whom the shard may still hold events.
    pub fn erasures(&self) -> Result<Arc<Erasures>> {
        if let Some(known) = self.erasures.get() {
            return Ok(known.clone());
        }
        // Most shards never forgot anybody.
        let none = self.state.erased_hlc == 0;
        let read = if none { Erasures::default() } else { Erasures::read(self.reader.as_ref(), self.keyspace)? };
        Ok(self.erasures.get_or_init(|| Arc::new(read)).clone())
    }

    /// Stamp of the last command that forgot a player.
    pub(crate) fn erased(&self) -> Hlc {
        Hlc(self.state.erased_hlc)
    }

    /// What is hidden of a source, if anything may be.
    fn hidden_in(&self, source: &Source) -> Result<Option<Arc<Erasures>>> {
        let hidden = self.hidden.clone().map_or_else(|| self.erasures(), Ok)?;
        let any = match source {
            Source::Chunk(_) => hidden.reach(source.first_seq()),
            Source::Segment(segment) => !hidden.in_segment(segment).is_empty(),
        };
        Ok(any.then_some(hidden))
    }

    /// Whether every event of a source is read.
    pub(crate) fn reads_all_of(&self, source: &Source) -> Result<bool> {
        Ok(source.times().0 >= self.from_ms && self.hidden_in(source)?.is_none())
    }

    /// Chunks and segments, in order of seq.
    pub fn sources(&self) -> Result<&[Source]> {
        if let Some(known) = self.sources.get() {
            return Ok(known);
        }
        let mut sources = Vec::new();
        for segment in read_segments(self.reader.as_ref(), self.keyspace)? {
            sources.push(Source::Segment(Arc::new(segment)));
        }
        for chunk in read_chunks(self.reader.as_ref(), self.keyspace)? {
            sources.push(Source::Chunk(chunk));
        }
        sources.extend(self.state.open.filter(|open| open.first_seq <= open.last_seq).map(Source::Chunk));
        sources.sort_by_key(Source::first_seq);
        let mut next = 1;
        for source in &sources {
            assert!(source.first_seq().0 == next, "INV-S4: {} behind #{}", source.first_seq(), next - 1);
            let span = source.last_seq().0 + 1 - next;
            assert!(
                source.rows() + source.gone() == span,
                "INV-S4: {} of {span} events from #{next} on",
                source.rows()
            );
            next += span;
        }
        let last = self.state.last_seq;
        assert!(next == last + 1, "INV-S4: sources end at #{}, the shard at #{last}", next - 1);
        Ok(self.sources.get_or_init(|| sources))
    }

    /// Sources with events behind a sequence number, in order of seq.
    pub(crate) fn sources_behind(&self, seq: Seq) -> Result<Vec<Source>> {
        match self.state.open {
            _ if self.state.last_seq <= seq.0 => Ok(Vec::new()),
            // The records of all other chunks need not be read.
            Some(open) if open.first_seq <= seq.0 + 1 => Ok(vec![Source::Chunk(open)]),
            _ => Ok(self.sources()?.iter().filter(|source| source.last_seq() > seq).cloned().collect()),
        }
    }

    /// Whether a source will get more events: it is the open chunk.
    pub(crate) fn grows(&self, source: &Source) -> bool {
        let open = self.state.open.map_or(0, |open| open.id);
        matches!(source, Source::Chunk(chunk) if chunk.id == open)
    }

    /// The definition of a rollup, as the shard was told.
    pub(crate) fn rollup(&self, id: RollupId) -> Result<Option<Rollup>> {
        let known = self.reader.get(Family::Meta, &key::rollup(self.keyspace, id))?;
        let rollup = known.map(|row| Rollup::decode(row.as_slice())).transpose();
        rollup.map_err(|error| Error::row("rollup", error))
    }

    /// Definitions of the shard's rollups, by id.
    pub fn rollups(&self) -> Result<Vec<Rollup>> {
        let range = key::rollups(self.keyspace);
        let mut rows = self.reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
        let mut rollups = Vec::new();
        while let Some((_, value)) = rows.next()? {
            rollups.push(Rollup::decode(value).map_err(|error| Error::row("rollup", error))?);
        }
        Ok(rollups)
    }

    /// The families that the shard was told of, by name.
    pub fn families(&self) -> Result<BTreeMap<String, FamilyDefinition>> {
        shard::read_families(self.reader.as_ref(), self.keyspace)
    }

    /// All properties of the shard's events, by name.
    pub fn properties(&self) -> Result<BTreeMap<String, record::Property>> {
        Ok(shard::read_properties(self.reader.as_ref(), self.keyspace)?.into_iter().collect())
    }

    /// What the shard was told of declared properties.
    pub fn declared(&self) -> Result<PropertyDeclarations> {
        shard::read_declared(self.reader.as_ref(), self.keyspace)
    }

    /// Registered producers of a group, by id.
    pub fn registered_producers(&self, group: &str) -> Result<Vec<String>> {
        let range = key::sources(self.keyspace, group);
        let mut rows = self.reader.rows(Family::Producers, &range.start..&range.end, Direction::Forward)?;
        let mut producers = Vec::new();
        while let Some((key, _)) = rows.next()? {
            producers.push(key::source_producer(key)?);
        }
        Ok(producers)
    }
}

/// Reads the records of all sealed chunks whose rows are in the chunk family.
pub(crate) fn read_chunks(reader: &dyn Reader, keyspace: Keyspace) -> Result<Vec<record::Chunk>> {
    let range = key::chunks(keyspace);
    let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
    let mut chunks = Vec::new();
    while let Some((_, value)) = rows.next()? {
        chunks.push(record::Chunk::decode(value).map_err(|error| Error::row("chunk", error))?);
    }
    Ok(chunks)
}

/// Reads the records of all segments, by id.
pub(crate) fn read_segments(reader: &dyn Reader, keyspace: Keyspace) -> Result<Vec<record::Segment>> {
    let range = key::segments(keyspace);
    let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
    let mut segments = Vec::new();
    while let Some((_, value)) = rows.next()? {
        let segment = record::Segment::decode(value).map_err(|error| Error::row("segment", error))?;
        if segment.version > crate::segment::FORMAT_VERSION {
            let known = crate::segment::FORMAT_VERSION;
            return Err(Error::NewerFormat { what: "segment", found: segment.version, known });
        }
        segments.push(segment);
    }
    Ok(segments)
}

impl Source {
    pub(crate) fn chunk_id(chunk: &record::Chunk) -> ChunkId {
        ChunkId(chunk.id)
    }
}
