//! Which of a shard's events a rollup counts.

use std::{ops::Range, sync::Arc};

use galoo_proto::{
    Hlc,
    record::{RollupMark, erasure::Time},
    rollup::{Erasure, Rollup},
};

use super::{Definition, bucket_start, cell::bucket_of, mark};
use crate::{Result, erasure::ALWAYS, view::View};

/// What a rollup does not count of a shard's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Counts {
    /// Events of an earlier time: they were dropped when the shard was told of the rollup.
    from_ms: i64,
    /// When that was: all events that were hidden by then.
    defined: Hlc,
    /// Those of players that were forgotten up to this stamp, as far as the rollup's policy goes.
    erased: Hlc,
    /// Of who was forgotten next, those before this time too.
    erased_to_ms: i64,
}

impl Counts {
    fn of(view: &View, definition: &Definition, told: Option<&Rollup>, mark: &RollupMark) -> Self {
        match told {
            Some(rollup) => {
                let (from_ms, defined) = (rollup.events_from_ms, Hlc(rollup.defined_hlc));
                let now = if definition.groups_by_player() { view.erased() } else { Hlc(mark.erased_hlc) };
                let erased_to_ms = mark.erased_to_ms.unwrap_or(i64::MIN);
                Self { from_ms, defined, erased: defined.max(now), erased_to_ms }
            }
            // The shard may not have been told yet: then it will count from here on.
            None => {
                let (from_ms, now) = (view.state().events_from_ms, view.erased());
                Self { from_ms, defined: now, erased: now, erased_to_ms: i64::MIN }
            }
        }
    }

    /// The same, but that whoever was forgotten behind `erased` was taken out of the buckets before a time.
    pub(super) fn with_erased_to(self, erased_to_ms: i64) -> Self {
        Self { erased_to_ms, ..self }
    }

    /// The stamp of the last command whose player is not counted.
    pub(super) fn erased(&self) -> Hlc {
        self.erased
    }

    /// Of which times the events are that the rollup does not count because of a command; `None` if it counts all.
    ///
    /// `next` is the stamp of the first command behind those that were settled.
    fn hidden_ms(&self, definition: &Definition, next: Option<u64>, time: &Time) -> Option<Range<i64>> {
        if definition.groups_by_player() && time.hlc <= self.erased.0 || time.hlc <= self.defined.0 {
            return Some(ALWAYS);
        }
        if definition.erasure == Erasure::Keep {
            return None;
        }
        let from_ms = whole_from(definition, time.events_from_ms);
        if time.hlc <= self.erased.0 {
            return Some(from_ms..ALWAYS.end);
        }
        (Some(time.hlc) == next && from_ms < self.erased_to_ms).then_some(from_ms..self.erased_to_ms)
    }
}

/// From which time on a player's events are taken out of a rollup who is forgotten when events before `dropped_ms` were dropped.
///
/// What was dropped cannot be taken out, nor can buckets be made anew, of any tier, of which anything was.
pub(super) fn whole_from(definition: &Definition, dropped_ms: i64) -> i64 {
    if dropped_ms <= 0 {
        // Nothing was dropped yet.
        return i64::MIN;
    }
    let widest_ms = definition.widest_ms();
    match (definition.erasure, bucket_start(dropped_ms, widest_ms)) {
        (Erasure::Recompute, start) if start < dropped_ms => start.saturating_add(widest_ms),
        _ => dropped_ms,
    }
}

/// A shard as a rollup reads it: the events that it counts, also those that were dropped or hidden since it was made, as long
/// as they are there.
pub(super) struct Counted {
    /// All that the shard holds.
    pub view: View,
    /// The events that count.
    pub events: View,
    /// Which those are.
    pub counts: Counts,
    /// How far the cells are.
    pub mark: RollupMark,
    /// For each tier, the first bucket that is kept.
    pub kept_from: Vec<Option<i64>>,
}

impl Counted {
    pub(super) fn open(view: &View, definition: &Definition) -> Result<Self> {
        let (mark, told) = (mark::of(view, definition.id)?, view.rollup(definition.id)?);
        let counts = Counts::of(view, definition, told.as_ref(), &mark);
        let events = Self::events(view, definition, &counts)?;
        let tiers = told.as_ref().map_or(&[][..], |told| told.tiers.as_slice());
        let kept_from = (0..definition.tiers.len()).map(|tier| tiers.get(tier)?.from_ms).collect();
        Ok(Self { view: view.clone(), events, counts, mark, kept_from })
    }

    /// Reads a rollup's shards.
    pub(super) fn all(views: &[View], definition: &Definition) -> Result<Vec<Self>> {
        views.iter().map(|view| Self::open(view, definition)).collect()
    }

    /// Whether another rollup counts the same events of the same shard behind the same mark.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.mark.seq == other.mark.seq && self.events.reads_as(&other.events)
    }

    /// Whether a tier keeps the bucket of a place.
    pub(super) fn keeps(&self, tier: usize, place: &[u8]) -> bool {
        self.kept_from[tier].is_none_or(|from_ms| bucket_of(place).is_some_and(|bucket| bucket >= from_ms))
    }

    /// The events that count.
    pub(super) fn events(view: &View, definition: &Definition, counts: &Counts) -> Result<View> {
        let all = view.erasures()?;
        let next = all.first_behind(counts.erased).map(|(_, time)| time.hlc);
        let hidden =
            if all.is_empty() { all } else { Arc::new(all.narrowed(|time| counts.hidden_ms(definition, next, time))) };
        Ok(view.reading(counts.from_ms, hidden))
    }
}
