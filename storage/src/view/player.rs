//! One player's events in order of time: only as much of each source is read as a page needs.
//!
//! Sources overlap in time, and so do a player's events in them. So each source is a stretch of time, the stretch that
//! reaches furthest in the scan's direction comes first, and of a segment only the end of it is read, by the bounds of its
//! pages. A page is full when no stretch that is left can hold an event that belongs into it.

use std::{ops::RangeInclusive, sync::Arc};

use galoo_proto::{Seq, value::StoredEvent};

use super::{Column, EventFilter, Source, View, events::stored_events};
use crate::{Result, engine::Direction};

/// A page of one player's events.
#[derive(Clone, Debug, PartialEq)]
pub struct PlayerPage {
    /// In order of (event_time, seq), or against it.
    pub events: Vec<StoredEvent>,
    /// More events may follow behind the last one.
    pub more: bool,
}

/// Where an event is in the order.
type Position = (i64, Seq);

/// Times of a source that are not read yet.
struct Stretch<'v> {
    source: &'v Source,
    first: i64,
    /// Below the first: nothing is left.
    last: i64,
    /// Pages to read of it next.
    pages: usize,
}

/// A page that is being filled.
struct Filling {
    direction: Direction,
    after: Option<Position>,
    limit: usize,
    events: Vec<StoredEvent>,
    more: bool,
}

fn position(event: &StoredEvent) -> Position {
    (event.event.as_ref().map_or(0, |event| event.event_time_ms), Seq(event.seq))
}

impl Filling {
    fn take(&mut self, found: Vec<StoredEvent>) {
        let (after, direction) = (self.after, self.direction);
        self.events.extend(found.into_iter().filter(|event| match (after, direction) {
            (None, _) => true,
            (Some(after), Direction::Forward) => position(event) > after,
            (Some(after), Direction::Backward) => position(event) < after,
        }));
        if self.events.len() > self.limit.saturating_mul(2).max(1_024) {
            self.keep();
        }
    }

    fn keep(&mut self) {
        match self.direction {
            Direction::Forward => self.events.sort_by_key(position),
            Direction::Backward => self.events.sort_by_key(|event| std::cmp::Reverse(position(event))),
        }
        self.more |= self.events.len() > self.limit;
        self.events.truncate(self.limit);
    }

    /// The time behind which nothing belongs into the page, once it is full.
    fn last_time(&mut self) -> Option<i64> {
        if self.events.len() < self.limit {
            return None;
        }
        self.keep();
        self.events.last().map(|event| position(event).0)
    }
}

impl View {
    /// Returns up to `limit` events of one player that lie behind `after` in the scan's direction.
    ///
    /// The order is (event_time, seq). `filter.players` must hold the one player; `limit` is at least 1. `columns` are those
    /// of [`Column::event`].
    pub fn player_page(
        &self,
        filter: &EventFilter,
        columns: &Arc<[Column]>,
        direction: Direction,
        after: Option<Position>,
        limit: usize,
    ) -> Result<PlayerPage> {
        let mut times = filter.time_ms.start.max(self.from_ms)..=filter.time_ms.end.saturating_sub(1);
        match (after, direction) {
            (None, _) => {}
            (Some((time_ms, _)), Direction::Forward) => times = time_ms.max(*times.start())..=*times.end(),
            (Some((time_ms, _)), Direction::Backward) => times = *times.start()..=time_ms.min(*times.end()),
        }
        let sources = self.sources()?.iter().filter(|source| source.rows() > 0);
        let mut left: Vec<_> = sources.map(|source| Stretch::of(source, &times)).collect();
        let mut filling = Filling { direction, after, limit, events: Vec::new(), more: false };
        loop {
            left.retain(|stretch| stretch.first <= stretch.last);
            let next = match direction {
                Direction::Forward => left.iter_mut().min_by_key(|stretch| stretch.first),
                Direction::Backward => left.iter_mut().max_by_key(|stretch| stretch.last),
            };
            let Some(next) = next else { break };
            let is_behind = |last: i64| match direction {
                Direction::Forward => next.first > last,
                Direction::Backward => next.last < last,
            };
            if filling.last_time().is_some_and(is_behind) {
                filling.more = true;
                break;
            }
            let times = next.advance(self, filter, direction)?;
            let filter =
                Arc::new(EventFilter { time_ms: *times.start()..times.end().saturating_add(1), ..filter.clone() });
            for batch in self.source_batches(next.source, columns, &filter)? {
                filling.take(stored_events(self.shard(), &batch?));
            }
        }
        filling.keep();
        Ok(PlayerPage { events: filling.events, more: filling.more })
    }
}

impl<'v> Stretch<'v> {
    fn of(source: &'v Source, wanted: &RangeInclusive<i64>) -> Self {
        let (first, last) = source.times();
        Self { source, first: first.max(*wanted.start()), last: last.min(*wanted.end()), pages: 1 }
    }

    /// Takes the next times to read off the stretch: of a segment those of a few pages, twice as many each time.
    fn advance(&mut self, view: &View, filter: &EventFilter, direction: Direction) -> Result<RangeInclusive<i64>> {
        let (first, last) = (self.first, self.last);
        let mut pages = match self.source {
            Source::Chunk(_) => Vec::new(),
            Source::Segment(record) => {
                let players = filter.players.as_deref().unwrap_or_default();
                view.files.open(view.keyspace, record)?.player_times(players)?
            }
        };
        pages.retain(|page| *page.start() <= last && *page.end() >= first);
        if pages.len() <= self.pages {
            (self.first, self.last) = (1, 0);
            return Ok(first..=last);
        }
        let at = self.pages - 1;
        self.pages *= 2;
        Ok(match direction {
            Direction::Forward => {
                pages.sort_by_key(|page| *page.end());
                let until = last.min(*pages[at].end());
                self.first = until.saturating_add(1);
                first..=until
            }
            Direction::Backward => {
                pages.sort_by_key(|page| std::cmp::Reverse(*page.start()));
                let from = first.max(*pages[at].start());
                self.last = from.saturating_sub(1);
                from..=last
            }
        })
    }
}
