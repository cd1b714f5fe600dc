//! What reads of rollups leave in memory for the next ones: partials of what is not covered, and merged cells.
//!
//! One bound in bytes holds for both; what was used longest ago goes first. Whatever is not here is made anew from the
//! store, so the cache decides what a read costs and never what it answers: an entry names the events that are in it (a
//! partial from its first seq through its last, merged cells at the marks of their shards), and a reader adds exactly those
//! of its own view that are not.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use galoo_proto::{Keyspace, RollupId};

use super::{
    Definition,
    counted::{Counted, Counts},
    merged::Merged,
    partial::Partial,
    read::Slice,
};
use crate::{
    Result,
    erasure::ALWAYS,
    lru::Lru,
    view::{EventFilter, Source},
};

/// An entry's share of the bound beside its cells, so that their number is bounded too.
const ENTRY_BYTES: usize = 1 << 10;

/// What the cache may hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all entries; beyond it those go that were used longest ago.
    pub bytes_max: usize,
    /// Bytes of one rollup's merged cells. A rollup with more is streamed from the store.
    pub merged_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, merged_bytes_max: 16 << 20 }
    }
}

/// The events that count of a shard: a keyspace is never used for another.
type Content = (Keyspace, Counts);
/// A partial's source: its shard, the rollup, and the first seq that is in it.
type PartialKey = (Content, RollupId, u64);
/// A rollup's tier over these shards, with the first bucket that each keeps: cells of earlier ones are gone from the store.
type MergedKey = (RollupId, usize, Vec<(Content, Option<i64>)>);

fn content(shard: &Counted) -> Content {
    (shard.view.keyspace(), shard.counts)
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Partial(PartialKey),
    Merged(MergedKey),
}

#[derive(Clone)]
enum Value {
    /// With the last seq that is in it.
    Partial(u64, Arc<Partial>),
    Merged(Arc<Merged>),
    /// These buckets have more cells than are kept.
    TooLarge(Range<i64>),
}

impl Value {
    fn bytes(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Partial(_, partial) => partial.memory_bytes(),
                Self::Merged(merged) => merged.memory_bytes(),
                Self::TooLarge(_) => 0,
            }
    }
}

/// Partials and merged cells, kept between reads: a dashboard that refreshes folds only what is new.
pub struct RollupCache {
    merged_bytes_max: usize,
    kept: Mutex<Lru<Key, Value>>,
}

impl Default for RollupCache {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl std::fmt::Debug for RollupCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RollupCache").field("bytes", &self.lock().size()).finish_non_exhaustive()
    }
}

impl RollupCache {
    /// Makes an empty cache.
    pub fn new(limits: Limits) -> Self {
        Self { merged_bytes_max: limits.merged_bytes_max, kept: Mutex::new(Lru::new(limits.bytes_max)) }
    }

    /// Bytes that it holds, about, and may hold.
    pub fn memory(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.size(), kept.size_max())
    }

    fn lock(&self) -> MutexGuard<'_, Lru<Key, Value>> {
        self.kept.lock().expect("nobody panics with the cache in hand")
    }

    fn get(&self, key: &Key) -> Option<Value> {
        self.lock().get(key).cloned()
    }

    /// Keeps a value unless `is_newer` says that what is there is better.
    fn put(&self, key: Key, value: Value, is_newer: impl FnOnce(&Value) -> bool) {
        // Counted before the cache is locked: it looks at every cell.
        let bytes = value.bytes();
        let mut kept = self.lock();
        if !kept.get(&key).is_some_and(is_newer) {
            kept.put(key, value, bytes);
        }
    }

    /// Returns the partial of a source's events from `from` on, all that the view holds.
    pub(super) fn partial(
        &self,
        definition: &Definition,
        shard: &Counted,
        source: &Source,
        from: u64,
    ) -> Result<Arc<Partial>> {
        let (key, last) = (Key::Partial((content(shard), definition.id, from)), source.last_seq().0);
        let (through, known) = match self.get(&key) {
            Some(Value::Partial(through, known)) if through <= last => (through, known),
            _ => (from - 1, Arc::default()),
        };
        if through == last {
            return Ok(known);
        }
        let mut partial = Partial::clone(&known);
        let filter = EventFilter { seqs: through + 1..=last, time_ms: ALWAYS, ..EventFilter::default() };
        partial.fold(definition, &shard.events, source, filter, usize::MAX)?;
        let partial = Arc::new(partial);
        let is_newer = |there: &Value| matches!(there, Value::Partial(through, _) if *through >= last);
        self.put(key, Value::Partial(last, partial.clone()), is_newer);
        Ok(partial)
    }

    /// Returns the merged cells of these buckets, or more, at marks that the views have reached.
    ///
    /// Only what will still grow is left behind the marks. `None` if there are too many cells to keep, or if a view is
    /// older than what is kept: then the rollup is streamed.
    pub(super) fn merged(&self, slice: &Slice, shards: &[Counted]) -> Result<Option<Arc<Merged>>> {
        let key = Key::Merged((
            slice.definition.id,
            slice.tier,
            shards.iter().map(|shard| (content(shard), shard.kept_from[slice.tier])).collect(),
        ));
        let (mut buckets_ms, mut known) = (slice.buckets_ms.clone(), None);
        match self.get(&key) {
            Some(Value::Merged(merged)) if !merged.is_reached_by(shards) => return Ok(None),
            Some(Value::Merged(merged)) if merged.holds(&buckets_ms) => known = Some(merged),
            // Whoever asked for the other buckets will ask again.
            Some(Value::Merged(merged)) => buckets_ms = merged.with_buckets(&buckets_ms),
            Some(Value::TooLarge(large)) if buckets_ms.start <= large.start && large.end <= buckets_ms.end => {
                return Ok(None);
            }
            Some(Value::TooLarge(_) | Value::Partial(..)) | None => {}
        }
        if let Some(merged) = &known
            && merged.is_complete(shards)?
        {
            return Ok(known);
        }
        let merged = match known {
            Some(merged) if !merged.is_far_behind(shards)? => Some(Merged::clone(&merged)),
            _ => {
                let wider = Slice { buckets_ms: buckets_ms.clone(), ..slice.clone() };
                Merged::read(wider, shards, self.merged_bytes_max)?
            }
        };
        let merged = match merged {
            Some(merged) => merged.advance(shards, self, self.merged_bytes_max)?.map(Arc::new),
            None => None,
        };
        let is_newer = |there: &Value| match (there, &merged) {
            (Value::Merged(there), Some(new)) => there.is_ahead_of(new),
            // Fewer buckets than were asked for are still of use to others.
            (Value::Merged(there), None) => !there.holds(&buckets_ms),
            _ => false,
        };
        let value = merged.clone().map_or(Value::TooLarge(buckets_ms.clone()), Value::Merged);
        self.put(key, value, is_newer);
        Ok(merged)
    }
}
