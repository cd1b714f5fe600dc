//! Whole events: one player's in order of time, and the shard's in order of seq.

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
use crate::{Result, engine::Direction};

/// A page of one player's events.
#[derive(Clone, Debug, PartialEq)]
pub struct PlayerPage {
    /// In order of (event_time, seq), or against it.
    pub events: Vec<StoredEvent>,
    /// More events may follow behind the last one.
    pub more: bool,
}

impl View {
    /// Returns up to `limit` events of one player that lie behind `after` in the scan's direction.
    ///
    /// The order is (event_time, seq). `filter.players` must hold the one player; `limit` is at least 1.
    pub fn player_page(
        &self,
        filter: &EventFilter,
        direction: Direction,
        after: Option<(i64, Seq)>,
        limit: usize,
    ) -> Result<PlayerPage> {
        let mut filter = filter.clone();
        if let Some((time_ms, _)) = after {
            match direction {
                Direction::Forward => filter.time_ms.start = filter.time_ms.start.max(time_ms),
                Direction::Backward => filter.time_ms.end = filter.time_ms.end.min(time_ms.saturating_add(1)),
            }
        }
        let filter = Arc::new(filter);
        let columns: Arc<[Column]> = Column::EVENT.into();
        let position =
            |event: &StoredEvent| (event.event.as_ref().map_or(0, |event| event.event_time_ms), Seq(event.seq));
        let mut events: Vec<StoredEvent> = Vec::new();
        let mut more = false;
        let keep = |events: &mut Vec<StoredEvent>, more: &mut bool| {
            match direction {
                Direction::Forward => events.sort_by_key(position),
                Direction::Backward => events.sort_by_key(|event| std::cmp::Reverse(position(event))),
            }
            *more |= events.len() > limit;
            events.truncate(limit);
        };
        for source in self.sources()? {
            for batch in self.source_batches(source, &columns, &filter)? {
                let found = stored_events(self.shard(), &batch?);
                events.extend(found.into_iter().filter(|event| match (after, direction) {
                    (None, _) => true,
                    (Some(after), Direction::Forward) => position(event) > after,
                    (Some(after), Direction::Backward) => position(event) < after,
                }));
                if events.len() > limit.saturating_mul(2).max(1_024) {
                    keep(&mut events, &mut more);
                }
            }
        }
        keep(&mut events, &mut more);
        Ok(PlayerPage { events, more })
    }

    /// Returns the events with a seq above `after` that pass the filter, in order of seq.
    pub fn events_after(&self, after: Seq, filter: EventFilter) -> Events {
        Events { view: self.clone(), filter, after, page: Vec::new().into_iter() }
    }
}

/// A shard's events in order of seq. A part of one source is decoded at a time.
pub struct Events {
    view: View,
    filter: EventFilter,
    after: Seq,
    page: std::vec::IntoIter<StoredEvent>,
}

/// Bytes of events that are held at a time while a source is read in order of seq, at about: a segment is in another order.
const WINDOW_BYTES: u64 = 64 << 20;

impl Events {
    /// Reads on in the source that comes next; returns false at the end.
    fn read_on(&mut self) -> Result<bool> {
        let next = self.view.sources()?.iter().find(|source| source.last_seq() > self.after).cloned();
        let Some(source) = next else { return Ok(false) };
        let columns: Arc<[Column]> = Column::EVENT.into();
        let first = (self.after.0 + 1).max(*self.filter.seqs.start());
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

/// Reads whole events out of a batch with the columns [`Column::EVENT`].
fn stored_events(shard: ShardId, batch: &RecordBatch) -> Vec<StoredEvent> {
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
    };
    rows.map(|row| StoredEvent {
        event: Some(event(row)),
        seq: seqs.value(row).cast_unsigned(),
        ingest_hlc: hlcs.value(row),
        shard: shard.0,
    })
    .collect()
}
