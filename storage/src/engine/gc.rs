//! What living snapshots hold back: each keyspace's history from being dropped, and files from being removed.
//!
//! An engine drops rows when it rewrites its files, whatever its snapshots still see. So a time that is set counts only
//! once every snapshot that was taken before is gone; a snapshot that is taken later holds the state that the time was
//! set from, and does not read before it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use galoo_proto::{Hlc, Keyspace};

/// Each keyspace's garbage collection times, with the snapshots that hold them back.
#[derive(Debug, Default)]
pub(super) struct GcTimes(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Grows with every time that is set.
    generation: u64,
    /// Living snapshots, counted by the generation that they were taken in.
    snapshots: BTreeMap<u64, usize>,
    /// Times with the generation that set each, in order. The first may count already, the others are held back.
    times: HashMap<Keyspace, VecDeque<(u64, Hlc)>>,
}

/// A living snapshot's hold on times that are set after it.
#[derive(Debug)]
pub(super) struct Held {
    times: Arc<GcTimes>,
    generation: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.times.lock();
        if let Some(count) = inner.snapshots.get_mut(&self.generation) {
            *count -= 1;
            if *count == 0 {
                inner.snapshots.remove(&self.generation);
            }
        }
    }
}

impl GcTimes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics with the times in hand")
    }

    /// Sets a keyspace's time; one that is not later than the last changes nothing.
    pub(super) fn set(&self, keyspace: Keyspace, gc: Hlc) {
        let mut inner = self.lock();
        let oldest = inner.oldest();
        let generation = inner.generation + 1;
        let times = inner.times.entry(keyspace).or_default();
        if times.back().is_some_and(|(_, last)| *last >= gc) {
            return;
        }
        times.push_back((generation, gc));
        while times.get(1).is_some_and(|(generation, _)| *generation <= oldest) {
            times.pop_front();
        }
        inner.generation = generation;
    }

    /// Returns a mark: snapshots that live and were taken before it are found by [`GcTimes::has_snapshot_before`].
    pub(super) fn mark(&self) -> u64 {
        let mut inner = self.lock();
        inner.generation += 1;
        inner.generation
    }

    /// Whether a snapshot lives that was taken before the mark.
    pub(super) fn has_snapshot_before(&self, mark: u64) -> bool {
        self.lock().oldest() < mark
    }

    /// Holds back what is set from now on. To be called before the snapshot is taken.
    pub(super) fn hold(self: &Arc<Self>) -> Held {
        let mut inner = self.lock();
        let generation = inner.generation;
        *inner.snapshots.entry(generation).or_default() += 1;
        Held { times: self.clone(), generation }
    }

    /// Returns the times that count: whatever cannot be read at them or later may be dropped.
    pub(super) fn allowed(&self) -> HashMap<Keyspace, Hlc> {
        let inner = self.lock();
        let oldest = inner.oldest();
        let allowed = |times: &VecDeque<(u64, Hlc)>| {
            times.iter().take_while(|(generation, _)| *generation <= oldest).last().map(|(_, gc)| *gc)
        };
        inner.times.iter().filter_map(|(keyspace, times)| Some((*keyspace, allowed(times)?))).collect()
    }
}

impl Inner {
    /// The generation of the oldest living snapshot.
    fn oldest(&self) -> u64 {
        self.snapshots.keys().next().copied().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_older_snapshots_from_newer_ones() {
        let times = Arc::new(GcTimes::default());
        let older = times.hold();
        let mark = times.mark();
        let newer = times.hold();
        assert!(times.has_snapshot_before(mark));
        drop(older);
        assert!(!times.has_snapshot_before(mark) && times.has_snapshot_before(times.mark()));
        drop(newer);
        assert!(!times.has_snapshot_before(times.mark()));
    }

    #[test]
    fn a_time_counts_once_no_older_snapshot_lives() {
        let times = Arc::new(GcTimes::default());
        let (one, other) = (Keyspace(1), Keyspace(2));
        let allowed = |keyspace| times.allowed().get(&keyspace).map(|gc| gc.0);
        times.set(one, Hlc(10));
        assert_eq!((allowed(one), allowed(other)), (Some(10), None));
        let first = times.hold();
        times.set(one, Hlc(20));
        times.set(other, Hlc(5));
        let second = times.hold();
        times.set(one, Hlc(30));
        times.set(one, Hlc(25));
        assert_eq!((allowed(one), allowed(other)), (Some(10), None), "the first snapshot lives");
        drop(first);
        assert_eq!((allowed(one), allowed(other)), (Some(20), Some(5)), "the second one knows of these");
        let third = times.hold();
        drop(second);
        assert_eq!(allowed(one), Some(30));
        drop(third);
        times.set(one, Hlc(40));
        assert_eq!(allowed(one), Some(40));
        assert_eq!(times.lock().times[&one].len(), 1, "what counts no more is forgotten");
        assert!(times.lock().snapshots.is_empty());
    }
}
