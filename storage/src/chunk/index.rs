//! Where a player's events are in a chunk.
//!
//! An index is made from the chunk's runs when a player is first looked for, and grows by what came since whenever one
//! is looked for again: writing costs nothing, and no event is indexed twice while its index is kept. Runs never
//! change, so that one index serves views of any age: it may know more than a view holds, and the view's last seq says
//! what to leave out.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use galoo_proto::{ChunkId, Keyspace, Seq, Token, record};

use super::{Run, missing};
use crate::{
    Result,
    engine::{Direction, Family, Reader},
    key,
    lru::Lru,
};

/// Bytes that a node keeps of all indexes; beyond it those go that were used longest ago.
const INDEXES_BYTES_MAX: usize = 64 << 20;
/// An index's share of the bound beside its events, so that their number is bounded too.
const INDEX_BYTES: usize = 1 << 10;
/// Bytes of a token's entry in a hash map, about.
const TOKEN_BYTES: usize = 24;

/// An event that may be of a player that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The event.
    pub(crate) seq: Seq,
    /// The first event of its run.
    pub(crate) run: Seq,
}

/// An event as the index knows it.
struct Indexed {
    time_ms: i64,
    /// The token's event before it, as its place and one more; 0 for its first.
    before: u32,
}

#[derive(Default)]
struct ChunkIndex {
    /// By seq, from the chunk's first one on.
    events: Vec<Indexed>,
    /// Places of the events that begin a run.
    runs: Vec<u32>,
    /// A token's last event, as its place and one more.
    last: HashMap<Token, u32>,
}

impl ChunkIndex {
    /// Adds what a view holds and the index does not know yet.
    fn grow(&mut self, reader: &dyn Reader, keyspace: Keyspace, chunk: &record::Chunk) -> Result<()> {
        let next = chunk.first_seq + self.events.len() as u64;
        if next > chunk.last_seq {
            return Ok(());
        }
        let range = key::runs(keyspace, ChunkId(chunk.id), Seq(next));
        let mut rows = reader.rows(Family::Chunks, &range.start..&range.end, Direction::Forward)?;
        while let Some((key, value)) = rows.next()? {
            let run = Run::of(key, value)?;
            let next = Seq(chunk.first_seq + self.events.len() as u64);
            if run.next_seq() != next {
                return Err(missing(next));
            }
            // Only whole runs are added, so that the index can go on behind an error.
            let events: Vec<_> = run.collect::<Result<_>>()?;
            let place = |place: usize| u32::try_from(place).map_err(|_| missing(next));
            place(self.events.len() + events.len())?;
            self.runs.push(place(self.events.len())?);
            for event in events {
                let this = place(self.events.len() + 1)?;
                let before = self.last.insert(Token::of(event.player), this).unwrap_or(0);
                self.events.push(Indexed { time_ms: event.time_ms, before });
            }
        }
        let next = chunk.first_seq + self.events.len() as u64;
        if next <= chunk.last_seq { Err(missing(Seq(next))) } else { Ok(()) }
    }

    /// A token's events of a chunk, as a view holds it, against the order of seq.
    fn find(&self, chunk: &record::Chunk, token: Token, time_ms: &Range<i64>, found: &mut Vec<Place>) {
        let mut at = self.last.get(&token).copied().unwrap_or(0);
        while let Some(place) = at.checked_sub(1) {
            let Some(event) = self.events.get(place as usize) else { return };
            let seq = chunk.first_seq + u64::from(place);
            if seq <= chunk.last_seq && time_ms.contains(&event.time_ms) {
                let run = self.runs[..self.runs.partition_point(|first| *first <= place)].last().copied();
                found.push(Place { seq: Seq(seq), run: Seq(chunk.first_seq + u64::from(run.unwrap_or(0))) });
            }
            at = event.before;
        }
    }

    fn bytes(&self) -> usize {
        INDEX_BYTES
            + self.events.len() * size_of::<Indexed>()
            + self.runs.len() * size_of::<u32>()
            + self.last.len() * TOKEN_BYTES
    }
}

/// A keyspace is never used for other content.
type ChunkKey = (Keyspace, ChunkId);

/// The indexes of a node's chunks, as far as they are in use.
pub struct ChunkIndexes {
    kept: Mutex<Lru<ChunkKey, Arc<Mutex<ChunkIndex>>>>,
}

impl Default for ChunkIndexes {
    fn default() -> Self {
        Self { kept: Mutex::new(Lru::new(INDEXES_BYTES_MAX)) }
    }
}

impl ChunkIndexes {
    /// Bytes that they take, about, and may take.
    pub fn memory(&self) -> (usize, usize) {
        (self.lock().size(), INDEXES_BYTES_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Lru<ChunkKey, Arc<Mutex<ChunkIndex>>>> {
        self.kept.lock().expect("nobody panics with the indexes in hand")
    }

    /// A chunk's index, which whoever reads the chunk shares.
    fn open(&self, chunk: ChunkKey) -> Arc<Mutex<ChunkIndex>> {
        let mut kept = self.lock();
        if let Some(index) = kept.get(&chunk) {
            return index.clone();
        }
        let index = Arc::default();
        kept.put(chunk, Arc::clone(&index), INDEX_BYTES);
        index
    }

    /// Returns where the events of players with these times may be in a chunk, as a view holds it, in order of seq.
    ///
    /// Players are told apart by their token: another one's event may be among them.
    pub(crate) fn find(
        &self,
        reader: &dyn Reader,
        keyspace: Keyspace,
        chunk: &record::Chunk,
        players: &[String],
        time_ms: &Range<i64>,
    ) -> Result<Vec<Place>> {
        let key = (keyspace, ChunkId(chunk.id));
        let index = self.open(key);
        let (mut found, bytes) = {
            let mut index = index.lock().expect("nobody panics with an index in hand");
            index.grow(reader, keyspace, chunk)?;
            let mut found = Vec::new();
            players.iter().for_each(|player| index.find(chunk, Token::of(player), time_ms, &mut found));
            (found, index.bytes())
        };
        self.lock().put(key, index, bytes);
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}
