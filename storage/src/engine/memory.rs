//! An engine in memory that loses on a crash whatever was not flushed.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use galoo_proto::{Hlc, Keyspace};

use super::{
    Change, Direction, Engine, Family, Reader, Rows, WriteBatch,
    gc::{GcTimes, Held},
};
use crate::{Result, cell, key, segment::Step};

type Table = BTreeMap<(Family, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct Tables {
    live: Arc<Table>,
    flushed: Arc<Table>,
    gc_times: BTreeMap<Keyspace, Hlc>,
}

/// The engine; clones share the tables.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    tables: Arc<Mutex<Tables>>,
    snapshots: Arc<GcTimes>,
}

impl MemoryEngine {
    /// Forgets everything that was not flushed, as a power loss would.
    pub fn crash(&self) {
        let mut tables = self.lock();
        tables.live = tables.flushed.clone();
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().expect("a thread that held the tables panicked")
    }
}

struct View {
    table: Arc<Table>,
    _held: Option<Held>,
}

struct ViewRows {
    rows: std::vec::IntoIter<(Vec<u8>, Vec<u8>)>,
    current: Option<(Vec<u8>, Vec<u8>)>,
}

impl Rows for ViewRows {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        self.current = self.rows.next();
        Ok(self.current.as_ref().map(|(key, value)| (key.as_slice(), value.as_slice())))
    }
}

impl Reader for View {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(&(family, key.to_vec())).cloned())
    }

    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>> {
        let mut rows: Vec<_> = Vec::new();
        if range.start < range.end {
            let range = (family, range.start.to_vec())..(family, range.end.to_vec());
            rows.extend(self.table.range(range).map(|((_, key), value)| (key.clone(), value.clone())));
        }
        if direction == Direction::Backward {
            rows.reverse();
        }
        Ok(Box::new(ViewRows { rows: rows.into_iter(), current: None }))
    }
}

impl Reader for MemoryEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().live.get(&(family, key.to_vec())).cloned())
    }

    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>> {
        let live = View { table: self.lock().live.clone(), _held: None };
        let mut rows = Vec::new();
        let mut read = live.rows(family, range, direction)?;
        while let Some((key, value)) = read.next()? {
            rows.push((key.to_vec(), value.to_vec()));
        }
        Ok(Box::new(ViewRows { rows: rows.into_iter(), current: None }))
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut tables = self.lock();
        let live = Arc::make_mut(&mut tables.live);
        for change in batch.changes {
            match change {
                Change::Put(family, key, value) => {
                    live.insert((family, key), value);
                }
                Change::Delete(family, key) => {
                    live.remove(&(family, key));
                }
                Change::DeleteRange(family, range) => {
                    if range.start < range.end {
                        let range = (family, range.start)..(family, range.end);
                        let keys: Vec<_> = live.range(range).map(|(key, _)| key.clone()).collect();
                        for key in keys {
                            live.remove(&key);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        let held = self.snapshots.hold();
        Arc::new(View { table: self.lock().live.clone(), _held: Some(held) })
    }

    fn flush(&self) -> Result<()> {
        let mut tables = self.lock();
        tables.flushed = tables.live.clone();
        Ok(())
    }

    fn compact(&self, family: Family, range: Option<Range<&[u8]>>) -> Result<()> {
        let mut guard = self.lock();
        // Snapshots have tables of their own.
        let Tables { live, flushed, gc_times } = &mut *guard;
        for (keyspace, gc) in gc_times {
            let of_keyspace = key::keyspace_range(*keyspace);
            for table in [&mut *live, &mut *flushed] {
                Arc::make_mut(table).retain(|(of, key), value| {
                    let is_meant = range.as_ref().is_none_or(|range| range.contains(&key.as_slice()));
                    let is_of_keyspace = *of == family && of_keyspace.contains(key);
                    !is_meant || !is_of_keyspace || cell::is_readable(family, value, *gc)
                });
            }
        }
        Ok(())
    }

    fn scrub(&self, _: &mut dyn FnMut(usize) -> Step) -> Result<bool> {
        Ok(true)
    }

    fn set_gc_time(&self, keyspace: Keyspace, gc: Hlc) {
        let mut tables = self.lock();
        let time = tables.gc_times.entry(keyspace).or_default();
        *time = gc.max(*time);
    }

    fn snapshot_mark(&self) -> u64 {
        self.snapshots.mark()
    }

    fn has_snapshot_before(&self, mark: u64) -> bool {
        self.snapshots.has_snapshot_before(mark)
    }

    fn get_persisted(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().flushed.get(&(family, key.to_vec())).cloned())
    }
}
