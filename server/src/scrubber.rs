//! Reads everything that is stored, again and again at a set rate, so that damage is found before it is needed.
//!
//! A segment that is damaged is quarantined: reads of it fail with file and offset, whatever was checked before, until its
//! shard is rebuilt ([`crate::repair`]). What is damaged in the engine makes reads fail by itself.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use galoo_proto::{Keyspace, ShardId};
use galoo_storage::{Error, segment::Step, view::Source};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{debug, error, warn};

use crate::node::Node;

/// Between the beginnings of two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);
/// After its start a node has other things to do.
const START_DELAY: Duration = Duration::from_secs(60);
/// The longest nap: it is looked again whether the node stops.
const NAP_MAX: Duration = Duration::from_millis(250);

/// Works until `stopped` resolves.
pub async fn run(node: Arc<Node>, mut stopped: watch::Receiver<bool>) {
    let rate = node.config().scrub_bytes_per_second;
    if rate == 0 {
        return;
    }
    let mut delay = START_DELAY;
    loop {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        let began = Instant::now();
        let (node, stopping) = (node.clone(), stopped.clone());
        let pass = spawn_blocking(move || pass(&node, Pace { rate, due: Instant::now(), stopping })).await;
        match pass {
            Ok(bytes) => debug!(bytes, took = ?began.elapsed(), "scrubbed everything that is stored"),
            Err(failure) => warn!(%failure, "scrubbing ended before it was through"),
        }
        delay = PASS_INTERVAL.saturating_sub(began.elapsed());
    }
}

/// Spreads reads over time.
struct Pace {
    rate: u64,
    /// When what was read so far is paid for.
    due: Instant,
    stopping: watch::Receiver<bool>,
}

impl Pace {
    /// Waits until so many bytes may be read.
    fn take(&mut self, bytes: usize) -> Step {
        while let Some(left) = self.due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if *self.stopping.borrow() {
                return Step::Cancel;
            }
            thread::sleep(left.min(NAP_MAX));
        }
        self.due = self.due.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        if *self.stopping.borrow() { Step::Cancel } else { Step::On }
    }
}

/// Reads all segments and the engine once; returns the bytes.
fn pass(node: &Arc<Node>, mut pace: Pace) -> u64 {
    let mut total = 0;
    let mut take = |bytes: usize| {
        total += bytes as u64;
        metrics::counter!("galoo_scrubbed_bytes_total").increment(bytes as u64);
        pace.take(bytes)
    };
    for (shard, keyspace) in node.open_shards() {
        if !segments(node, shard, keyspace, &mut take) {
            return total;
        }
    }
    if let Err(failure) = node.engine().scrub(&mut take) {
        metrics::counter!("galoo_damage_found_total").increment(1);
        error!(%failure, "the engine is damaged: replace this node's data from the other replicas");
    }
    total
}

/// Reads a shard's segments; returns false when the node stops.
fn segments(node: &Arc<Node>, shard: ShardId, keyspace: Keyspace, take: &mut dyn FnMut(usize) -> Step) -> bool {
    let Ok(view) = node.stale_view(shard) else { return true };
    let segments: Vec<_> = match view.sources() {
        Err(failure) => {
            error!(%shard, %failure, "a shard's segments cannot be listed");
            return true;
        }
        Ok(sources) => sources
            .iter()
            .filter_map(|source| match source {
                Source::Segment(segment) if source.rows() > 0 => Some(segment.clone()),
                _ => None,
            })
            .collect(),
    };
    // A view keeps the files of what is merged meanwhile.
    drop(view);
    for segment in segments {
        match node.files().scrub(keyspace, &segment, take) {
            Ok(true) => {}
            Ok(false) => return false,
            // What is quarantined is told of by whoever rebuilds the shard, if it is still a part of it.
            Err(failure @ Error::CorruptFile { .. }) => debug!(%shard, %failure, "found by scrubbing"),
            Err(failure) => {
                metrics::counter!("galoo_damage_found_total").increment(1);
                error!(%shard, %failure, "a segment cannot be scrubbed");
            }
        }
    }
    true
}
