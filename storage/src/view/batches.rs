//! Batches of columns from one source, filtered.

use std::{iter::Peekable, sync::Arc};

use arrow::record_batch::RecordBatch;
use galoo_proto::{ChunkId, Seq, record};

use super::{
    Column, EventFilter, Source, View,
    columns::{RowColumns, from_segment},
    condition::all_hold,
};
use crate::{
    Result,
    chunk::{EventRow, Run, index::Place, missing},
    engine::{Direction, Family},
    erasure::Erasures,
    key,
    segment::SegmentScan,
};

/// Rows of a batch, at most.
pub const BATCH_ROWS_MAX: usize = 8_192;
/// Bytes of events that one batch of a chunk is made from, at most (and one event).
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Batches of a scan, one source after the other.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

impl View {
    /// Returns the events of one source that pass the filter and were not dropped: a chunk's in order of seq, a segment's in
    /// its own.
    ///
    /// Nothing is returned of a source that cannot hold a match.
    pub fn source_batches(
        &self,
        source: &Source,
        columns: &Arc<[Column]>,
        filter: &Arc<EventFilter>,
    ) -> Result<Batches> {
        let (from_ms, time_ms) = (self.from_ms, &filter.time_ms);
        let narrowed = (source.times().0 < from_ms && time_ms.start < from_ms).then(|| {
            Arc::new(EventFilter { time_ms: from_ms..time_ms.end.max(from_ms), ..EventFilter::clone(filter) })
        });
        let filter = narrowed.as_ref().unwrap_or(filter);
        if !source.may_match(filter) {
            return Ok(Box::new(std::iter::empty()));
        }
        match source {
            Source::Chunk(chunk) => {
                Ok(Box::new(ChunkBatches::new(self.clone(), chunk, columns, filter, self.hidden_in(source)?)?))
            }
            Source::Segment(record) => {
                let file = self.files.open(self.keyspace, record)?;
                let columns = columns.clone();
                let scan = SegmentScan::open(&file, &columns, filter, self.hidden_in(source)?)?;
                Ok(Box::new(scan.map(move |found| from_segment(&columns, &found?))))
            }
        }
    }
}

/// Reads a chunk's runs page by page, so that no iterator pins memory between batches.
struct ChunkBatches {
    view: View,
    columns: Arc<[Column]>,
    filter: Arc<EventFilter>,
    hidden: Option<Arc<Erasures>>,
    chunk: ChunkId,
    left: Left,
}

/// What is left to read of a chunk.
enum Left {
    /// The events from `next` through `last`; `run` begins the run that holds `next`.
    All { run: Seq, next: Seq, last: Seq },
    /// Events that the index named.
    Places(Peekable<std::vec::IntoIter<Place>>),
}

/// A batch that is being filled.
struct Page<'a> {
    filter: &'a EventFilter,
    hidden: Option<&'a Erasures>,
    columns: RowColumns<'a>,
    bytes: usize,
}

impl Page<'_> {
    fn is_full(&self) -> bool {
        self.columns.rows() >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    fn take(&mut self, event: &EventRow<'_>) -> Result<()> {
        let EventFilter { time_ms, seqs, .. } = self.filter;
        if time_ms.contains(&event.time_ms)
            && seqs.contains(&event.seq.0)
            && self.filter.takes_type(event.event_type)
            && self.filter.takes_player(event.player)
            && !self.hidden.is_some_and(|hidden| hidden.hide(event.player, event.seq, event.time_ms))
            && (self.filter.conditions.is_empty() || all_hold(&self.filter.conditions, event.properties)?)
        {
            self.bytes += event.bytes();
            self.columns.push(event)?;
        }
        Ok(())
    }
}

impl ChunkBatches {
    fn new(
        view: View,
        chunk: &record::Chunk,
        columns: &Arc<[Column]>,
        filter: &Arc<EventFilter>,
        hidden: Option<Arc<Erasures>>,
    ) -> Result<Self> {
        let id = Source::chunk_id(chunk);
        let left = match &filter.players {
            Some(players) => {
                let places = view.indexes.find(view.reader(), view.keyspace, chunk, players, &filter.time_ms)?;
                Left::Places(places.into_iter().peekable())
            }
            None => {
                let next = Seq(chunk.first_seq.max(*filter.seqs.start()));
                let last = Seq(chunk.last_seq.min(*filter.seqs.end()));
                let run = if next.0 > chunk.first_seq { view.run_of(id, next)? } else { next };
                Left::All { run, next, last }
            }
        };
        Ok(Self { view, columns: columns.clone(), filter: filter.clone(), hidden, chunk: id, left })
    }

    fn page(&mut self) -> Result<Option<RecordBatch>> {
        let (view, chunk) = (&self.view, self.chunk);
        let (filter, hidden) = (&*self.filter, self.hidden.as_deref());
        let mut page = Page { filter, hidden, columns: RowColumns::new(&self.columns), bytes: 0 };
        match &mut self.left {
            Left::All { run: begin, next, last } => {
                let range = key::runs(view.keyspace, chunk, *begin);
                let mut rows = view.reader.rows(Family::Chunks, &range.start..&range.end, Direction::Forward)?;
                while next <= last && !page.is_full() {
                    let (key, value) = rows.next()?.ok_or_else(|| missing(*next))?;
                    let run = Run::of(key, value)?;
                    *begin = run.next_seq();
                    if begin > next {
                        return Err(missing(*next));
                    }
                    for event in run {
                        let event = event?;
                        if next > last || page.is_full() {
                            break;
                        }
                        if event.seq == *next {
                            page.take(&event)?;
                            next.0 += 1;
                        }
                    }
                }
            }
            Left::Places(places) => {
                while let Some(Place { run: begin, seq }) = places.peek().copied()
                    && !page.is_full()
                {
                    let key = key::run(view.keyspace, chunk, begin);
                    let value = view.reader.get(Family::Chunks, &key)?.ok_or_else(|| missing(begin))?;
                    for event in Run::of(&key, &value)? {
                        let event = event?;
                        if page.is_full() {
                            break;
                        }
                        if places.next_if(|place| place.seq == event.seq).is_some() {
                            page.take(&event)?;
                        }
                    }
                    if places.peek().is_some_and(|place| place.seq == seq) {
                        return Err(missing(seq));
                    }
                }
            }
        }
        if page.columns.rows() > 0 { page.columns.finish().map(Some) } else { Ok(None) }
    }
}

impl View {
    /// Returns the seq that begins the run with `seq`.
    fn run_of(&self, chunk: ChunkId, seq: Seq) -> Result<Seq> {
        let range = key::chunk_rows(self.keyspace, chunk).start..key::run(self.keyspace, chunk, Seq(seq.0 + 1));
        let mut rows = self.reader.rows(Family::Chunks, &range.start..&range.end, Direction::Backward)?;
        rows.next()?.and_then(|(key, _)| key::run_seq(key)).ok_or_else(|| missing(seq))
    }
}

impl Iterator for ChunkBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.page().transpose()
    }
}
