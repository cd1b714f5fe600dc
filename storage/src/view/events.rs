//! Whole events, in order of seq.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::AsArray,
    datatypes::{Int64Type, TimestampMillisecondType, UInt64Type},
    record_batch::RecordBatch,
};
use galoo_proto::{
    Seq, ShardId,
    value::{Event, StoredEvent},
};

use super::{Column, EventFilter, Source, View};
use crate::Result;

impl View {
    /// Returns the events with a seq above `after` that pass the filter, in order of seq.
    pub fn events_after(&self, after: Seq, filter: EventFilter) -> Events {
        Events { view: self.clone(), columns: Column::event(None), filter, after, page: Vec::new().into_iter() }
    }
}

/// A shard's events in order of seq. A part of one source is decoded at a time.
pub struct Events {
    view: View,
    columns: Arc<[Column]>,
    filter: EventFilter,
    after: Seq,
    page: std::vec::IntoIter<StoredEvent>,
}

/// Bytes of events that are held at a time while a source is read in order of seq, at about: a segment is in another order.
const WINDOW_BYTES: u64 = 64 << 20;

impl Events {
    /// Gives the events these columns, of [`Column::event`].
    pub fn with_columns(self, columns: Arc<[Column]>) -> Self {
        Self { columns, ..self }
    }

    /// Reads on in the source that comes next; returns false at the end.
    fn read_on(&mut self) -> Result<bool> {
        let is_next = |source: &&Source| source.last_seq() > self.after && source.rows() > 0;
        let Some(source) = self.view.sources()?.iter().find(is_next).cloned() else { return Ok(false) };
        let columns = self.columns.clone();
        let first = (self.after.0 + 1).max(source.first_seq().0).max(*self.filter.seqs.start());
        let mut rows = (WINDOW_BYTES / source.event_bytes_mean()).max(1);
        loop {
            let last = source.last_seq().0.min(first.saturating_add(rows - 1));
            let seqs = first..=last.min(*self.filter.seqs.end());
            let filter = Arc::new(EventFilter { seqs, ..self.filter.clone() });
            if let Some(page) = self.window(&source, &columns, &filter, rows > 1)? {
                self.page = page.into_iter();
                self.after = Seq(last);
                return Ok(true);
            }
            // Its events are larger here than on average.
            rows = rows.min(last + 1 - first).div_ceil(2);
        }
    }

    /// Returns a source's events that pass the filter, in order of seq; `None` when they are too many and may be fewer.
    fn window(
        &self,
        source: &Source,
        columns: &Arc<[Column]>,
        filter: &Arc<EventFilter>,
        may_be_fewer: bool,
    ) -> Result<Option<Vec<StoredEvent>>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        for batch in self.view.source_batches(source, columns, filter)? {
            for event in stored_events(self.view.shard(), &batch?) {
                bytes += event.event.as_ref().map_or(0, galoo_proto::validate::event_bytes) as u64;
                page.push(event);
            }
            if bytes > 2 * WINDOW_BYTES && may_be_fewer {
                return Ok(None);
            }
        }
        page.sort_unstable_by_key(|event| event.seq);
        Ok(Some(page))
    }
}

impl Iterator for Events {
    type Item = Result<StoredEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.page.next() {
                return Some(Ok(event));
            }
            match self.read_on() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Reads whole events out of a batch with the columns of [`Column::event`].
pub(super) fn stored_events(shard: ShardId, batch: &RecordBatch) -> Vec<StoredEvent> {
    let text = |column: usize| batch.column(column).as_string_view();
    let (players, types, properties) = (text(0), text(2), text(5));
    let times = batch.column(1).as_primitive::<TimestampMillisecondType>();
    let seqs = batch.column(3).as_primitive::<Int64Type>();
    let hlcs = batch.column(4).as_primitive::<UInt64Type>();
    let rows: Range<usize> = 0..batch.num_rows();
    let event = |row: usize| Event {
        player_id: players.value(row).to_owned(),
        event_time_ms: times.value(row),
        event_type: types.value(row).to_owned(),
        properties: properties.value(row).to_owned(),
        event_id: String::new(),
    };
    rows.map(|row| StoredEvent {
        event: Some(event(row)),
        seq: seqs.value(row).cast_unsigned(),
        ingest_hlc: hlcs.value(row),
        shard: shard.0,
    })
    .collect()
}
