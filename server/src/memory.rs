//! Memory: what each part of the node holds, and room in the engine for more.
//!
//! Every part has a bound of its own ([`Part`]), and what it holds and may hold are metrics. The engine's memtables are the one
//! part that others fill: when files are written more slowly than rows come, as on a disk that hangs, RocksDB would first slow
//! writes down and then hold up whoever applies, for as long as it lasts and seen by nobody. So commands that bring data are
//! refused before that, once memtables hold twice their budget, and taken again when they have shrunk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use galoo_storage::engine::{Engine, Load};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::node::Node;

/// How often the engine is asked: so long, rows come that are not counted yet.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// What a read saw is kept for so long: a caller who takes its answer slowly, or not at all, holds files and memory.
const READ_MAX: Duration = Duration::from_secs(60 * 60);
/// Memtables may hold so many times their budget before writes are refused. A budget is full when a flush begins, and fills
/// again while it runs.
const BUDGETS_MAX: u64 = 2;

/// The engine's memtables hold more than they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine holds {bytes} bytes that are in no file yet; above {bytes_max} nothing more is stored")]
pub struct MemtablesFull {
    /// Bytes that they hold.
    pub bytes: u64,
    /// Bytes that they may hold.
    pub bytes_max: u64,
}

/// The engine's memtables.
pub struct Memtables {
    engine: Arc<dyn Engine>,
    bytes_max: u64,
    bytes: AtomicU64,
}

impl Memtables {
    /// Watches those of an engine with this budget.
    pub fn new(engine: Arc<dyn Engine>, budget_bytes: usize) -> Self {
        let bytes_max = (budget_bytes as u64).saturating_mul(BUDGETS_MAX);
        Self { engine, bytes_max, bytes: AtomicU64::new(0) }
    }

    /// Returns whether there is room for more rows.
    pub fn room(&self) -> Result<(), MemtablesFull> {
        let (bytes, bytes_max) = (self.bytes.load(Ordering::Relaxed), self.bytes_max);
        if bytes > bytes_max { Err(MemtablesFull { bytes, bytes_max }) } else { Ok(()) }
    }

    /// Asks the engine again. What it does not answer changes nothing.
    fn ask(&self) -> Option<Load> {
        let load = match self.engine.load() {
            Ok(load) => load,
            Err(failure) => {
                warn!(%failure, "the engine does not say what it holds in memory");
                return None;
            }
        };
        let (bytes, bytes_max) = (load.memtable_bytes, self.bytes_max);
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        match (before > bytes_max, bytes > bytes_max) {
            (false, true) => {
                warn!(bytes, bytes_max, "files are written more slowly than rows come: writes are refused")
            }
            (true, false) => info!(bytes, bytes_max, "there is room in the engine again"),
            _ => {}
        }
        Some(load)
    }
}

/// A part of the node that holds memory.
struct Part {
    name: &'static str,
    bytes: u64,
    /// What it may hold; `None` where it is a share of another part.
    bytes_max: Option<usize>,
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn show(parts: &[Part]) {
    for Part { name, bytes, bytes_max } in parts {
        metrics::gauge!("galoo_memory_bytes", "part" => *name).set(*bytes as f64);
        if let Some(bytes_max) = bytes_max {
            metrics::gauge!("galoo_memory_limit_bytes", "part" => *name).set(*bytes_max as f64);
        }
    }
}

/// Shows what is held, asks for room, and lets go of what reads hold for too long, until `stopped` resolves.
pub async fn run(node: Arc<Node>, queries: Arc<galoo_query::Engine>, mut stopped: watch::Receiver<bool>) {
    let (config, memtables) = (node.config(), node.memtables());
    let mut load = Load::default();
    loop {
        load = memtables.ask().unwrap_or(load);
        let (rollups, rollups_max) = queries.rollup_memory();
        let (queried, queried_max) = queries.query_memory();
        let (indexes, indexes_max) = node.chunk_index_memory();
        let (readers, readers_max) = node.files().memory();
        show(&[
            Part { name: "memtables", bytes: load.memtable_bytes, bytes_max: Some(config.memtable_bytes) },
            Part { name: "block_cache", bytes: load.block_cache_bytes, bytes_max: Some(config.block_cache_bytes) },
            Part { name: "pinned_blocks", bytes: load.pinned_bytes, bytes_max: None },
            Part { name: "table_readers", bytes: load.table_reader_bytes, bytes_max: None },
            Part { name: "segment_readers", bytes: readers as u64, bytes_max: Some(readers_max) },
            Part { name: "chunk_indexes", bytes: indexes as u64, bytes_max: Some(indexes_max) },
            Part { name: "rollups", bytes: rollups as u64, bytes_max: Some(rollups_max) },
            Part { name: "queries", bytes: queried as u64, bytes_max: Some(queried_max) },
        ]);
        metrics::gauge!("galoo_engine_writes_stopped").set(f64::from(u8::from(load.writes_stopped)));
        let oldest = node.engine().let_go(READ_MAX).unwrap_or_default();
        metrics::gauge!("galoo_oldest_read_seconds").set(oldest.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!("galoo_engine_slowed_to_bytes_per_second").set(load.slowed_to as f64);
        if load.writes_stopped || load.slowed_to > 0 {
            let counter = metrics::counter!("galoo_engine_stalled_milliseconds_total");
            counter.increment(ASK_EVERY.as_millis().try_into().unwrap_or(0));
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}
