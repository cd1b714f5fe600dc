//! Batches of columns from one source, filtered.

use std::{ops::Range, sync::Arc};

use arrow::record_batch::RecordBatch;
use galoo_proto::record;

use super::{
    Column, EventFilter, Source, View,
    columns::{RowColumns, from_segment},
};
use crate::{
    Result,
    engine::{Direction, Family},
    key::{self, EventRow},
    segment::SegmentScan,
};

/// Rows of a batch, at most.
pub const BATCH_ROWS_MAX: usize = 8_192;
/// Bytes of event rows that one batch of a chunk is made from, at most (and one row).
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Batches of a scan, one source after the other.
pub type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

impl View {
    /// Returns the events of one source that pass the filter, in order of (token, player, event_time, seq).
    ///
    /// Nothing is returned of a source that cannot hold a match.
    pub fn source_batches(
        &self,
        source: &Source,
        columns: &Arc<[Column]>,
        filter: &Arc<EventFilter>,
    ) -> Result<Batches> {
        if !source.may_match(filter) {
            return Ok(Box::new(std::iter::empty()));
        }
        match source {
            Source::Chunk(chunk) => Ok(Box::new(ChunkBatches::new(self.clone(), chunk, columns, filter))),
            Source::Segment(record) => {
                let file = self.files.open(self.keyspace, record)?;
                let columns = columns.clone();
                let scan = SegmentScan::open(&file, &columns, filter)?;
                Ok(Box::new(scan.map(move |found| from_segment(&columns, &found?))))
            }
        }
    }
}

/// Reads a chunk's rows page by page, so that no iterator pins memory between batches.
struct ChunkBatches {
    view: View,
    columns: Arc<[Column]>,
    filter: Arc<EventFilter>,
    /// Key ranges that are left to read, the next one last.
    ranges: Vec<Range<Vec<u8>>>,
}

impl ChunkBatches {
    fn new(view: View, chunk: &record::Chunk, columns: &Arc<[Column]>, filter: &Arc<EventFilter>) -> Self {
        let id = Source::chunk_id(chunk);
        let ranges = match &filter.players {
            None => vec![key::chunk_rows(view.keyspace, id)],
            Some(players) => {
                let of = |player: &String| key::chunk_player_rows(view.keyspace, id, player, filter.time_ms.clone());
                let mut ranges: Vec<_> = players.iter().map(of).collect();
                ranges.sort_by(|left, right| right.start.cmp(&left.start));
                ranges.dedup();
                ranges
            }
        };
        Self { view, columns: columns.clone(), filter: filter.clone(), ranges }
    }

    fn page(&mut self) -> Result<Option<RecordBatch>> {
        let mut page = RowColumns::new(&self.columns);
        let mut bytes = 0;
        while let Some(range) = self.ranges.pop() {
            let mut rows = self.view.reader.rows(Family::Chunks, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                bytes += value.len();
                let event = EventRow::parse(key, value)?;
                if self.filter.time_ms.contains(&event.time_ms)
                    && self.filter.seqs.contains(&event.seq.0)
                    && self.filter.takes_type(event.event_type)
                {
                    page.push(&event)?;
                }
                if page.rows() >= BATCH_ROWS_MAX || bytes >= BATCH_BYTES_MAX {
                    let mut behind = key.to_vec();
                    behind.push(0);
                    drop(rows);
                    self.ranges.push(behind..range.end);
                    return page.finish().map(Some);
                }
            }
        }
        if page.rows() > 0 { page.finish().map(Some) } else { Ok(None) }
    }
}

impl Iterator for ChunkBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.page().transpose()
    }
}
