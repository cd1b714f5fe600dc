//! RocksDB as the engine of a node. The one module that names `rocksdb`.
//!
//! The write-ahead log is off: the Raft log covers what is not flushed. Atomic flush is on, and [`RocksEngine::flush`]
//! names every family, so that what is persisted is always a prefix of what was written (INV-S1; RocksDB's own
//! `flush()` flushes only one family). Memory is one budget: memtables of all families together, and one block cache.
//! A compaction filter drops state that nobody can read any more; filters see no snapshots, so `super::gc` keeps what
//! they read.

use std::{
    collections::HashMap,
    ffi::CStr,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
    time::{Duration, Instant},
};

use galoo_proto::{Hlc, Keyspace};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BottommostLevelCompaction, BoundColumnFamily, Cache,
    ColumnFamilyDescriptor, CompactOptions, CompactionDecision, DBCompactionStyle, DBCompressionType,
    DBRawIteratorWithThreadMode, DBWithThreadMode, FlushOptions, MultiThreaded, ReadOptions, ReadTier,
    SnapshotWithThreadMode, UniversalCompactOptions, WriteOptions,
    compaction_filter::CompactionFilter,
    compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory},
    properties,
};
use self_cell::self_cell;

use super::{
    Change, Direction, Engine, Family, Load, Reader, Rows, WriteBatch,
    gc::{GcTimes, Held},
    manifest,
};
use crate::{Error, Result, cell, segment::Step};

type Db = DBWithThreadMode<MultiThreaded>;

/// Memory and threads of the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memtables of all families together, in bytes; beyond it they are flushed. While files are written more slowly than
    /// rows come they grow to a multiple of it, before writes wait ([`Engine::load`] tells).
    pub memtable_bytes_max: usize,
    /// Blocks of sorted files, in bytes; beyond it the least recently used are dropped.
    pub block_cache_bytes_max: usize,
    /// Threads for flushes and compactions.
    pub background_jobs_max: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self { memtable_bytes_max: 256 << 20, block_cache_bytes_max: 128 << 20, background_jobs_max: 2 }
    }
}

/// An open RocksDB; clones share it.
#[derive(Clone)]
pub struct RocksEngine {
    db: Arc<Db>,
    cache: Cache,
    gc_times: Arc<GcTimes>,
    snapshots: Arc<Mutex<Snapshots>>,
}

impl From<rocksdb::Error> for Error {
    fn from(error: rocksdb::Error) -> Self {
        Self::Engine(error.into_string())
    }
}

/// Bytes of a family's memtable at which the next one is begun, at least: of a large budget a quarter.
const MEMTABLE_BYTES_MIN: usize = 64 << 20;
/// A family's memtables at which RocksDB holds writes up: a multiple of the budget, so that whoever asks for the load is told
/// long before.
const MEMTABLES_MAX: i32 = 12;
/// Bytes of rows that are scrubbed at a time.
const SCRUB_BYTES: usize = 1 << 20;
/// Files with state are rewritten at the latest when they are so old, so that what was deleted goes also where nobody
/// writes any more.
const REWRITE_SECONDS: u64 = 24 * 60 * 60;

/// Drops a family's rows that cannot be read any more, in each compaction as far as snapshots allow when it begins.
struct Collector {
    family: Family,
    times: Arc<GcTimes>,
}

impl CompactionFilterFactory for Collector {
    type Filter = Collection;

    fn create(&mut self, _: CompactionFilterContext) -> Collection {
        Collection { family: self.family, allowed: self.times.allowed() }
    }

    fn name(&self) -> &CStr {
        c"galoo.gc"
    }
}

/// One compaction.
struct Collection {
    family: Family,
    allowed: HashMap<Keyspace, Hlc>,
}

impl CompactionFilter for Collection {
    fn filter(&mut self, _: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        let keyspace = key.first_chunk::<8>().map(|bytes| Keyspace(u64::from_be_bytes(*bytes)));
        match keyspace.and_then(|keyspace| self.allowed.get(&keyspace)) {
            Some(gc) if !cell::is_readable(self.family, value, *gc) => CompactionDecision::Remove,
            _ => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"galoo.gc"
    }
}

fn family_options(
    family: Family,
    memtable_bytes_max: usize,
    cache: &Cache,
    gc_times: &Arc<GcTimes>,
) -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(6);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_block_size(16 << 10);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    options.set_write_buffer_size(MEMTABLE_BYTES_MIN.max(memtable_bytes_max / 4));
    match family {
        Family::Cells | Family::History => {
            filter(&mut table);
            options.set_compaction_filter_factory(Collector { family, times: gc_times.clone() });
            options.set_periodic_compaction_seconds(REWRITE_SECONDS);
        }
        Family::Producers | Family::Rollups => filter(&mut table),
        Family::Meta => {}
        Family::Chunks => {
            // Chunks become segments and are dropped whole, then their files are swept: rewrite them as little as possible
            // before that.
            options.set_compaction_style(DBCompactionStyle::Universal);
            let mut universal = UniversalCompactOptions::default();
            universal.set_size_ratio(20);
            universal.set_min_merge_width(4);
            options.set_universal_compaction_options(&universal);
            options.set_level_zero_file_num_compaction_trigger(24);
            // By default writes are slowed down at 20 files.
            options.set_level_zero_slowdown_writes_trigger(48);
            options.set_level_zero_stop_writes_trigger(64);
        }
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Tells of most keys that are not there, in blocks: a file's filter in one piece is larger than a part of the cache once
/// files are large, and would be read anew for each key.
fn filter(table: &mut BlockBasedOptions) {
    table.set_bloom_filter(10.0, false);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_pin_top_level_index_and_filter(true);
}

impl RocksEngine {
    /// Opens the database in a folder, and makes it when the folder is empty.
    pub fn open(folder: &Path, options: &Options) -> Result<Self> {
        manifest::check(folder)?;
        let mut database = rocksdb::Options::default();
        database.create_if_missing(true);
        database.create_missing_column_families(true);
        database.set_atomic_flush(true);
        database.set_db_write_buffer_size(options.memtable_bytes_max);
        database.set_max_background_jobs(options.background_jobs_max);
        database.set_keep_log_file_num(4);
        database.set_max_open_files(1024);
        database.set_bytes_per_sync(1 << 20);
        // By default 4 MiB, whatever it holds.
        database.set_manifest_preallocation_size(256 << 10);
        database.set_paranoid_checks(true);
        let (cache, gc_times) = (Cache::new_lru_cache(options.block_cache_bytes_max), Arc::default());
        let db = Db::open_cf_descriptors(&database, folder, families(options, &cache, &gc_times))?;
        Ok(Self { db: Arc::new(db), cache, gc_times, snapshots: Arc::default() })
    }

    /// Opens the database in a folder to look into it: nothing there is changed, and writing fails.
    pub fn open_read_only(folder: &Path) -> Result<Self> {
        manifest::check(folder)?;
        let options = Options::default();
        let (cache, gc_times) = (Cache::new_lru_cache(options.block_cache_bytes_max), Arc::default());
        let families = families(&options, &cache, &gc_times);
        let db = Db::open_cf_descriptors_read_only(&rocksdb::Options::default(), folder, families, false)?;
        Ok(Self { db: Arc::new(db), cache, gc_times, snapshots: Arc::default() })
    }
}

/// All families, and the one that every database has.
fn families(options: &Options, cache: &Cache, gc_times: &Arc<GcTimes>) -> Vec<ColumnFamilyDescriptor> {
    let of = |family: Family| {
        let options = family_options(family, options.memtable_bytes_max, cache, gc_times);
        ColumnFamilyDescriptor::new(family.name(), options)
    };
    let default = ColumnFamilyDescriptor::new("default", rocksdb::Options::default());
    Family::ALL.map(of).into_iter().chain([default]).collect()
}

fn handle(db: &Db, family: Family) -> Arc<BoundColumnFamily<'_>> {
    db.cf_handle(family.name()).expect("open() made every family")
}

struct IteratorRows<'a, D: rocksdb::DBAccess> {
    iterator: DBRawIteratorWithThreadMode<'a, D>,
    range: Range<Vec<u8>>,
    direction: Direction,
    started: bool,
}

impl<D: rocksdb::DBAccess> Rows for IteratorRows<'_, D> {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        match (self.started, self.direction) {
            (false, Direction::Forward) => self.iterator.seek(&self.range.start),
            (false, Direction::Backward) => self.iterator.seek_to_last(),
            (true, _) if !self.iterator.valid() => {}
            (true, Direction::Forward) => self.iterator.next(),
            (true, Direction::Backward) => self.iterator.prev(),
        }
        self.started = true;
        if !self.iterator.valid() {
            self.iterator.status()?;
            return Ok(None);
        }
        Ok(self.iterator.item())
    }
}

fn read_options(range: &Range<Vec<u8>>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_range(range.clone());
    options
}

struct NoRows;

impl Rows for NoRows {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        Ok(None)
    }
}

impl Reader for RocksEngine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.db.get_cf(&handle(&self.db, family), key)?)
    }

    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        let found = self.db.batched_multi_get_cf(&handle(&self.db, family), keys, false);
        Ok(found
            .into_iter()
            .map(|found| Ok(found?.map(|value| value.to_vec())))
            .collect::<Result<_, rocksdb::Error>>()?)
    }

    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>> {
        if range.start >= range.end {
            return Ok(Box::new(NoRows));
        }
        let range = range.start.to_vec()..range.end.to_vec();
        let iterator = self.db.raw_iterator_cf_opt(&handle(&self.db, family), read_options(&range));
        Ok(Box::new(IteratorRows { iterator, range, direction, started: false }))
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: WriteBatch) -> Result<()> {
        let handles = Family::ALL.map(|family| handle(&self.db, family));
        let of = |family: Family| &handles[family as usize];
        let mut rows = rocksdb::WriteBatch::default();
        for change in batch.changes() {
            match change {
                Change::Put(family, key, value) => rows.put_cf(of(*family), key, value),
                Change::Delete(family, key) => rows.delete_cf(of(*family), key),
                Change::DeleteRange(family, range) => rows.delete_range_cf(of(*family), &range.start, &range.end),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        Ok(self.db.write_opt(rows, &options)?)
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        let held = self.gc_times.hold();
        let snapshot = OwnedSnapshot::new(self.db.clone(), |db| db.snapshot());
        let seen = Arc::new(Seen { snapshot, _held: held });
        let kept = Arc::new(Kept { taken: Instant::now(), seen: RwLock::new(Some(seen)) });
        let mut all = lock(&self.snapshots);
        let number = all.next;
        all.next += 1;
        all.living.insert(number, Arc::downgrade(&kept));
        Arc::new(HeldSnapshot { number, kept, all: self.snapshots.clone() })
    }

    fn let_go(&self, age_max: Duration) -> Option<Duration> {
        // Whatever goes is dropped when nobody holds the list.
        let living: Vec<_> = lock(&self.snapshots).living.values().filter_map(Weak::upgrade).collect();
        let (old, young): (Vec<_>, Vec<_>) = living.into_iter().partition(|kept| kept.taken.elapsed() >= age_max);
        for kept in old {
            drop(kept.seen.write().unwrap_or_else(PoisonError::into_inner).take());
        }
        young.iter().map(|kept| kept.taken.elapsed()).max()
    }

    fn flush(&self) -> Result<()> {
        let handles = Family::ALL.map(|family| handle(&self.db, family));
        let named: Vec<_> = handles.iter().collect();
        Ok(self.db.flush_cfs_opt(&named, &FlushOptions::default())?)
    }

    fn compact(&self, family: Family, range: Option<Range<&[u8]>>) -> Result<()> {
        let (start, end) = range.map(|range| (range.start, range.end)).unzip();
        // What its memtable holds is flushed first, with atomic flush together with every other family's.
        let mut options = CompactOptions::default();
        // By default files of the last level may be passed over, and rows that became unreadable stay in them.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.db.compact_range_cf_opt(&handle(&self.db, family), start, end, &options);
        Ok(())
    }

    fn scrub(&self, pace: &mut dyn FnMut(usize) -> Step) -> Result<bool> {
        for family in Family::ALL {
            let mut from = Some(Vec::new());
            // An iterator keeps the files that it reads: each is for a moment.
            while let Some(start) = from.take() {
                let mut options = ReadOptions::default();
                options.set_verify_checksums(true);
                options.fill_cache(false);
                let mut iterator = self.db.raw_iterator_cf_opt(&handle(&self.db, family), options);
                iterator.seek(&start);
                let mut bytes = 0;
                while let Some((key, value)) = iterator.item() {
                    if bytes >= SCRUB_BYTES {
                        from = Some(key.to_vec());
                        break;
                    }
                    bytes += key.len() + value.len();
                    iterator.next();
                }
                iterator.status()?;
                drop(iterator);
                if pace(bytes) == Step::Cancel {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn set_gc_time(&self, keyspace: Keyspace, gc: Hlc) {
        self.gc_times.set(keyspace, gc);
    }

    fn snapshot_mark(&self) -> u64 {
        self.gc_times.mark()
    }

    fn has_snapshot_before(&self, mark: u64) -> bool {
        self.gc_times.has_snapshot_before(mark)
    }

    fn get_persisted(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        Ok(self.db.get_cf_opt(&handle(&self.db, family), key, &options)?)
    }

    fn load(&self) -> Result<Load> {
        let all = |property: &std::ffi::CStr| -> Result<u64> {
            let of = |family| Ok(self.db.property_int_value_cf(&handle(&self.db, family), property)?.unwrap_or(0));
            Family::ALL.into_iter().map(of).sum()
        };
        Ok(Load {
            memtable_bytes: all(properties::CUR_SIZE_ALL_MEM_TABLES)?,
            block_cache_bytes: self.cache.get_usage() as u64,
            pinned_bytes: self.cache.get_pinned_usage() as u64,
            table_reader_bytes: all(properties::ESTIMATE_TABLE_READERS_MEM)?,
            writes_stopped: self.db.property_int_value(properties::IS_WRITE_STOPPED)?.unwrap_or(0) > 0,
            slowed_to: self.db.property_int_value(properties::ACTUAL_DELAYED_WRITE_RATE)?.unwrap_or(0),
        })
    }
}

type Snapshot<'a> = SnapshotWithThreadMode<'a, Db>;

self_cell!(
    struct OwnedSnapshot {
        owner: Arc<Db>,
        #[not_covariant]
        dependent: Snapshot,
    }
);

/// Living snapshots by number.
#[derive(Default)]
struct Snapshots {
    next: u64,
    living: HashMap<u64, Weak<Kept>>,
}

fn lock(snapshots: &Mutex<Snapshots>) -> MutexGuard<'_, Snapshots> {
    snapshots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A snapshot, with what it holds back.
struct Seen {
    snapshot: OwnedSnapshot,
    _held: Held,
}

/// A snapshot until it is let go; reads that have begun go on.
struct Kept {
    taken: Instant,
    seen: RwLock<Option<Arc<Seen>>>,
}

/// A snapshot that keeps what it sees.
struct HeldSnapshot {
    number: u64,
    kept: Arc<Kept>,
    all: Arc<Mutex<Snapshots>>,
}

impl Drop for HeldSnapshot {
    fn drop(&mut self) {
        lock(&self.all).living.remove(&self.number);
    }
}

impl HeldSnapshot {
    fn seen(&self) -> Result<Arc<Seen>> {
        let seen = self.kept.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.clone().ok_or_else(|| Error::SnapshotTooOld { age: self.kept.taken.elapsed() })
    }
}

type BoxedRows<'a> = Box<dyn Rows + 'a>;

self_cell!(
    struct SeenRows {
        owner: Arc<Seen>,
        #[not_covariant]
        dependent: BoxedRows,
    }
);

impl Rows for SeenRows {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        self.with_dependent_mut(|_, rows| rows.next())
    }
}

impl Reader for HeldSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.seen()?.snapshot.with_dependent(|db, snapshot| Ok(snapshot.get_cf(&handle(db, family), key)?))
    }

    fn get_many(&self, family: Family, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        self.seen()?.snapshot.with_dependent(|db, snapshot| {
            let family = handle(db, family);
            let found = snapshot.multi_get_cf(keys.iter().map(|key| (&family, key)));
            Ok(found.into_iter().collect::<Result<_, rocksdb::Error>>()?)
        })
    }

    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>> {
        if range.start >= range.end {
            return Ok(Box::new(NoRows));
        }
        let range = range.start.to_vec()..range.end.to_vec();
        let rows = SeenRows::new(self.seen()?, |seen| {
            seen.snapshot.with_dependent(|db, snapshot| {
                let iterator = snapshot.raw_iterator_cf_opt(&handle(db, family), read_options(&range));
                Box::new(IteratorRows { iterator, range: range.clone(), direction, started: false }) as BoxedRows<'_>
            })
        });
        Ok(Box::new(rows))
    }
}
