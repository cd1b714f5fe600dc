//! The ordered key-value store below a shard: what the state machine needs of it, and no more.
//!
//! Two engines implement it: [`rocks`] (RocksDB without a write-ahead log, the product) and [`memory`] (loses what was
//! not flushed, for tests and the simulator). A write is atomic over all families. It is durable only after
//! [`Engine::flush`], and then together with everything written before it, in every family: the Raft log covers the
//! rest (INV-S1: a persisted row implies every row written before it).

mod gc;
mod manifest;
pub mod memory;
pub mod rocks;

use std::{ops::Range, sync::Arc, time::Duration};

use galoo_proto::{Hlc, Keyspace};

use crate::{Result, segment::Step};

/// A column family: rows of one kind, with options of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Shard state, chunk and segment records, the property catalog.
    Meta,
    /// Cells of players' state.
    Cells,
    /// Events of chunks that are in no segment yet.
    Chunks,
    /// Producers, outcomes of their batches, registered sources.
    Producers,
    /// Cells of rollups.
    Rollups,
    /// What cells of players' state were before.
    History,
}

impl Family {
    /// Every family; a flush names them all.
    pub const ALL: [Self; 6] = [Self::Meta, Self::Cells, Self::Chunks, Self::Producers, Self::Rollups, Self::History];

    /// The family's name in the engine.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Cells => "cells",
            Self::Chunks => "chunks",
            Self::Producers => "producers",
            Self::Rollups => "rollups",
            Self::History => "history",
        }
    }
}

/// Which way rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By ascending key.
    Forward,
    /// By descending key.
    Backward,
}

/// A change of a [`WriteBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a row.
    Put(Family, Vec<u8>, Vec<u8>),
    /// Removes a row, if it is there.
    Delete(Family, Vec<u8>),
    /// Removes all rows of a key range.
    DeleteRange(Family, Range<Vec<u8>>),
}

/// Changes that take effect together or not at all, in order.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    changes: Vec<Change>,
    bytes: usize,
}

impl WriteBatch {
    /// Sets a row.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push(Change::Put(family, key, value));
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push(Change::Delete(family, key));
    }

    /// Removes all rows of a key range.
    pub fn delete_range(&mut self, family: Family, range: Range<Vec<u8>>) {
        self.bytes += range.start.len() + range.end.len();
        self.changes.push(Change::DeleteRange(family, range));
    }

    /// Puts another batch's changes behind these.
    pub fn append(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.changes.extend(other.changes);
    }

    /// Bytes of the keys and values in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}

/// Rows of one scan, in key order.
pub trait Rows {
    /// Returns the next row; its bytes are valid until the next call.
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>>;
}

/// A consistent view of all families.
pub trait Reader: Send + Sync {
    /// Returns a row's value.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Returns the value of each key, in order; cheaper than one by one.
    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// Returns the rows of `[range.start, range.end)`.
    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>>;
}

/// What an engine holds in memory, and whether it keeps up with what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes of rows that are in no file yet.
    pub memtable_bytes: u64,
    /// Bytes of the blocks of files that are kept.
    pub block_cache_bytes: u64,
    /// Of these, bytes that readers hold at the moment.
    pub pinned_bytes: u64,
    /// Bytes that tell where blocks are, beside the cache.
    pub table_reader_bytes: u64,
    /// Writes wait until files are written.
    pub writes_stopped: bool,
    /// Bytes a second that writes are slowed down to; 0: they are not.
    pub slowed_to: u64,
}

/// A store that can be written.
pub trait Engine: Reader {
    /// Applies a batch atomically. It survives a crash only once flushed.
    fn write(&self, batch: WriteBatch) -> Result<()>;

    /// Takes a view that later writes do not change.
    fn snapshot(&self) -> Arc<dyn Reader>;

    /// Makes everything written so far durable, in every family together.
    fn flush(&self) -> Result<()>;

    /// Rewrites a range of a family, `None`: all of it, so that rows that were removed, or that nobody can read any more,
    /// take no space. Long: not for a thread that serves.
    fn compact(&self, family: Family, range: Option<Range<&[u8]>>) -> Result<()>;

    /// Reads every row from disk, so that what is damaged there is found. `pace` is asked now and then, with the bytes that
    /// were read, and may take its time; returns false when it cancels.
    fn scrub(&self, pace: &mut dyn FnMut(usize) -> Step) -> Result<bool>;

    /// Lets rows of a keyspace's state go that cannot be read at `gc` or later ([`crate::cell::is_readable`]): they are
    /// dropped whenever files are rewritten, for good. `gc` must be persisted as the shard's, so that no crash takes the
    /// shard back to before it; snapshots that live keep what they see.
    fn set_gc_time(&self, keyspace: Keyspace, gc: Hlc);

    /// Returns a mark between the snapshots that were taken before and those that are taken later.
    fn snapshot_mark(&self) -> u64;

    /// Whether a snapshot lives that was taken before the mark.
    fn has_snapshot_before(&self, mark: u64) -> bool;

    /// Returns a row's value as it would be read after a crash.
    fn get_persisted(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Lets snapshots go that are so old: whoever reads on in one is told [`crate::Error::SnapshotTooOld`], and files and
    /// memory that it held are free. Returns the age of the oldest that is left.
    fn let_go(&self, _age_max: Duration) -> Option<Duration> {
        None
    }

    /// Returns what it holds in memory. Cheap.
    fn load(&self) -> Result<Load> {
        Ok(Load::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{memory::MemoryEngine, rocks::RocksEngine, *};

    fn collect(reader: &dyn Reader, range: Range<&[u8]>, direction: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = reader.rows(Family::Cells, range, direction).expect("scan");
        let mut all = Vec::new();
        while let Some((key, value)) = rows.next().expect("row") {
            all.push((key.to_vec(), value.to_vec()));
        }
        all
    }

    fn change() -> impl Strategy<Value = (u8, u8, u8)> {
        (0u8..4, 0u8..12, 0u8..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Both engines answer every read alike, from the live view and from a snapshot.
        #[test]
        fn engines_agree(batches in prop::collection::vec(prop::collection::vec(change(), 0..6), 1..12)) {
            let folder = tempfile::tempdir().expect("folder");
            let rocks = RocksEngine::open(folder.path(), &rocks::Options::default()).expect("open");
            let memory = MemoryEngine::default();
            let mut snapshots = Vec::new();
            for (round, changes) in batches.into_iter().enumerate() {
                let mut batch = WriteBatch::default();
                for (kind, a, b) in changes {
                    match kind {
                        0 => batch.delete(Family::Cells, vec![a]),
                        1 => batch.delete_range(Family::Cells, vec![a.min(b)]..vec![a.max(b)]),
                        _ => batch.put(Family::Cells, vec![a], vec![b, round as u8]),
                    }
                }
                rocks.write(batch.clone()).expect("write");
                memory.write(batch).expect("write");
                if round % 3 == 0 {
                    snapshots.push((rocks.snapshot(), memory.snapshot()));
                }
            }
            snapshots.push((rocks.snapshot(), memory.snapshot()));
            for (left, right) in &snapshots {
                for direction in [Direction::Forward, Direction::Backward] {
                    let all = collect(left.as_ref(), &[]..&[255], direction);
                    prop_assert_eq!(&all, &collect(right.as_ref(), &[]..&[255], direction));
                    let part = collect(left.as_ref(), &[3]..&[9], direction);
                    prop_assert_eq!(&part, &collect(right.as_ref(), &[3]..&[9], direction));
                    let keys: Vec<_> = (0..12).rev().map(|key| vec![key]).collect();
                    let many = left.get_many(Family::Cells, &keys).expect("get");
                    prop_assert_eq!(&many, &right.get_many(Family::Cells, &keys).expect("get"));
                    prop_assert_eq!(many.iter().flatten().count(), all.len());
                    for (key, value) in all {
                        prop_assert_eq!(left.get(Family::Cells, &key).expect("get"), Some(value));
                    }
                }
            }
        }
    }

    #[test]
    fn only_flushed_rows_are_persisted() {
        let folder = tempfile::tempdir().expect("folder");
        let rocks = RocksEngine::open(folder.path(), &rocks::Options::default()).expect("open");
        let memory = MemoryEngine::default();
        for engine in [&rocks as &dyn Engine, &memory] {
            let mut batch = WriteBatch::default();
            batch.put(Family::Meta, b"a".to_vec(), b"1".to_vec());
            batch.put(Family::Chunks, b"b".to_vec(), b"2".to_vec());
            engine.write(batch).expect("write");
            assert_eq!(engine.get_persisted(Family::Meta, b"a").expect("get"), None);
            engine.flush().expect("flush");
            assert_eq!(engine.get_persisted(Family::Meta, b"a").expect("get"), Some(b"1".to_vec()));
            assert_eq!(engine.get_persisted(Family::Chunks, b"b").expect("get"), Some(b"2".to_vec()));
        }
    }

    /// A read that lasts too long is told so, and holds nothing back any more; what it has begun to read it reads on.
    #[test]
    fn a_snapshot_that_is_too_old_is_let_go() {
        let folder = tempfile::tempdir().expect("folder");
        let engine = RocksEngine::open(folder.path(), &rocks::Options::default()).expect("open");
        let put = |key: &[u8]| {
            let mut batch = WriteBatch::default();
            batch.put(Family::Cells, key.to_vec(), b"1".to_vec());
            engine.write(batch).expect("writes");
        };
        put(b"a");
        put(b"b");
        let old = engine.snapshot();
        let mark = engine.snapshot_mark();
        let mut rows = old.rows(Family::Cells, b"a"..b"z", Direction::Forward).expect("begins");
        assert!(rows.next().expect("reads").is_some());
        assert!(engine.let_go(Duration::from_secs(3_600)).is_some(), "it is young");
        old.get(Family::Cells, b"a").expect("reads");
        put(b"c");
        assert_eq!(engine.let_go(Duration::ZERO), None);
        assert!(engine.has_snapshot_before(mark), "a read that has begun");
        assert_eq!(rows.next().expect("reads on").map(|(key, _)| key.to_vec()), Some(b"b".to_vec()));
        assert!(rows.next().expect("reads on").is_none(), "what came later");
        drop(rows);
        assert!(!engine.has_snapshot_before(mark));
        let told = [
            old.get(Family::Cells, b"a").map(drop),
            old.get_many(Family::Cells, &[b"a".to_vec()]).map(drop),
            old.rows(Family::Cells, b"a"..b"z", Direction::Forward).map(drop),
        ];
        assert!(told.iter().all(|told| matches!(told, Err(crate::Error::SnapshotTooOld { .. }))), "{told:?}");
        let young = engine.snapshot();
        assert!(young.get(Family::Cells, b"c").expect("reads").is_some());
    }
}
