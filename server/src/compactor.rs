//! Carries out what [`galoo_storage::compaction::choose`] chooses, one shard after the other, and lets the log go.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use galoo_cluster::{META_GROUP, machine::Machine};
use galoo_consensus::{GroupId, StateMachine};
use galoo_proto::{GameId, Hlc, Keyspace, SegmentId, ShardId, command::command::Body};
use galoo_storage::{
    compaction::{self, Choice, Policy},
    engine::Family,
    rollup::expiry,
    view::Source,
};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use crate::node::{Node, NodeError, unix_ms};

/// Between two rounds over the shards.
const ROUND: Duration = Duration::from_millis(250);
/// Bytes of chunks that became segments and may lie dead in the engine's files before these are rewritten.
const DEAD_BYTES_MAX: u64 = 512 << 20;
/// When nothing became a segment for so long and callers do not write, what lies dead is swept however little it is.
const SWEEP_DELAY: Duration = Duration::from_secs(10);

/// Between two sweeps of ranges in which reads passed many cells that nobody can read any more.
const SPARSE_DELAY: Duration = Duration::from_secs(5);
/// One that was swept is left alone for so long: what a living read or a flush that is due keeps is not gone at once.
const SPARSE_AGAIN: Duration = Duration::from_secs(600);

/// After a segment was built while callers write, building rests for so many times as long as it took: on a machine
/// whose cores share their caches and units, a thread that only uses what is left slows the others down too.
const REST: u32 = 50;
/// Log entries a second that are callers who write.
const BUSY_ENTRIES: u128 = 400;

/// How building segments, and sweeping what they leave, give way.
struct Pace {
    /// Log entries that the node's shards had applied when the round before began, and so far in this one.
    before: u64,
    applied: u64,
    began: Instant,
    /// Callers write.
    busy: bool,
    /// A segment was built in this round: whether callers write is looked at again before the next one.
    built: bool,
    rests_until: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { before: 0, applied: 0, began: now, busy: true, built: false, rests_until: now }
    }

    /// A round over the shards begins.
    fn round(&mut self, now: Instant) {
        let entries = u128::from(self.applied.saturating_sub(self.before));
        let elapsed_ms = (now - self.began).as_millis().max(1);
        self.busy = entries * 1_000 >= elapsed_ms * BUSY_ENTRIES;
        (self.before, self.applied, self.began, self.built) = (self.applied, 0, now, false);
    }

    fn rests(&self, now: Instant) -> bool {
        self.built || (self.busy && now < self.rests_until)
    }

    /// Whether files with so many dead bytes are rewritten, the last of which died so long ago. That is more work than
    /// building a segment, and in one piece.
    fn sweeps(&self, dead_bytes: u64, since: Duration) -> bool {
        dead_bytes >= DEAD_BYTES_MAX || (dead_bytes > 0 && since >= SWEEP_DELAY && !self.busy)
    }

    /// A segment was built, which took so long.
    fn built(&mut self, now: Instant, took: Duration) {
        self.rests_until = now + took * REST;
        self.built = true;
    }
}

/// Works until `stopped` resolves.
pub async fn run(node: Arc<Node>, mut stopped: tokio::sync::watch::Receiver<bool>) {
    let (mut dead_bytes, mut dropped_at) = (0, Instant::now());
    let mut swept = Vec::new();
    let mut flushed_at_bytes = 0;
    let mut pace = Pace::new(Instant::now());
    loop {
        pace.round(Instant::now());
        node.is_busy().store(pace.busy, Ordering::Relaxed);
        for (shard, keyspace) in node.open_shards() {
            match compact(&node, shard, keyspace, &mut pace).await {
                Ok(0) => {}
                Ok(dropped_bytes) => (dead_bytes, dropped_at) = (dead_bytes + dropped_bytes, Instant::now()),
                Err(failure) => warn!(%shard, %failure, "compaction of a shard failed; it is tried again"),
            }
        }
        if pace.sweeps(dead_bytes, dropped_at.elapsed()) {
            dead_bytes = 0;
            let engine = node.engine().clone();
            match spawn_blocking(move || engine.compact(Family::Chunks, None)).await {
                Ok(Ok(())) => debug!("swept the rows of chunks that became segments"),
                Ok(Err(failure)) => warn!(%failure, "the engine's files could not be rewritten"),
                Err(failure) => warn!(%failure, "the engine's files could not be rewritten"),
            }
        }
        swept.retain(|(_, at): &(Range<Vec<u8>>, Instant)| at.elapsed() < SPARSE_AGAIN);
        if swept.last().is_none_or(|(_, at)| at.elapsed() >= SPARSE_DELAY)
            && let Some(range) = node.sparse().take()
            && !swept.iter().any(|(known, _)| *known == range)
        {
            swept.push((range.clone(), Instant::now()));
            let engine = node.engine().clone();
            match spawn_blocking(move || engine.compact(Family::Cells, Some(&range.start..&range.end))).await {
                Ok(Ok(())) => debug!("swept a player's cells that nobody can read any more"),
                Ok(Err(failure)) => warn!(%failure, "the engine's files could not be rewritten"),
                Err(failure) => warn!(%failure, "the engine's files could not be rewritten"),
            }
        }
        if let Err(failure) = cut_logs(&node, &mut flushed_at_bytes).await {
            warn!(%failure, "the log could not be cut; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(if pace.built { Duration::ZERO } else { ROUND }) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// Does what is chosen for a shard; returns the bytes of chunks whose rows were dropped.
async fn compact(node: &Arc<Node>, shard: ShardId, keyspace: Keyspace, pace: &mut Pace) -> anyhow::Result<u64> {
    let mut dropped_bytes = 0;
    let view = match node.stale_view(shard) {
        // Nothing is applied here yet.
        Err(error) if error.is_passing() => return Ok(0),
        view => view?,
    };
    pace.applied += view.state().applied;
    let mut chunks: Vec<_> = Vec::new();
    let open = view.state().open.unwrap_or_default();
    for source in view.sources()? {
        if let Source::Chunk(chunk) = source
            && chunk.id != open.id
        {
            chunks.push(*chunk);
        }
    }
    let mut policy = node.config().compaction.clone();
    if let Some(through) = node.eager().through(shard)
        && chunks.iter().chain([&open]).any(|chunk| chunk.first_seq <= through.0)
    {
        policy = Policy { seal_age_ms: 0, segment_age_ms: 0, ..policy };
    }
    for choice in compaction::choose(&policy, &open, &chunks, Hlc::from_millis(unix_ms())) {
        match choice {
            Choice::Seal(chunk) if node.leads(shard) => match node.seal(shard, chunk).await {
                Ok(closed) => debug!(%shard, %chunk, closed, "sealed"),
                Err(NodeError::Unavailable { .. }) => {}
                Err(failure) => return Err(failure.into()),
            },
            Choice::Seal(_) => {}
            Choice::Build { gives_way: true, .. } if pace.rests(Instant::now()) => {}
            Choice::Build { first, last, .. } => {
                let (view, files) = (view.clone(), node.files().clone());
                let started = Instant::now();
                let build = move || compaction::build_segment(&view, &files, keyspace, first, last);
                let built = spawn_blocking(build).await??;
                pace.built(Instant::now(), started.elapsed());
                let engine = node.engine().clone();
                let (rows, segment) = (built.rows, SegmentId(built.id));
                let commit = move || compaction::commit_segment(&engine, keyspace, &built);
                let committed = node.commit(shard, keyspace, commit).await?;
                if committed {
                    let built = chunks.iter().filter(|chunk| (first.0..=last.0).contains(&chunk.id));
                    dropped_bytes += built.map(|chunk| chunk.bytes).sum::<u64>();
                } else {
                    node.files().remove(keyspace, segment)?;
                }
                debug!(%shard, %first, %last, rows, committed, took = ?started.elapsed(), "built a segment");
            }
        }
    }
    if node.leads(shard) {
        let (game, now) = (GameId(view.state().game), Hlc::from_millis(unix_ms()));
        if let Some(to) = compaction::gc_time(&node.config().compaction, view.state(), now) {
            passing(node.move_gc_time(shard, to).await)?;
        }
        let retention_ms = node.events_retention_ms(game);
        if retention_ms > 0
            && let Some(from_ms) = compaction::events_from(retention_ms, &view, now)?
        {
            passing(node.drop_events_before(shard, from_ms).await)?;
        }
        for drop in expiry::cuts(&view, now)? {
            passing(node.tell_shard(shard, Body::DropBuckets(drop)).await)?;
        }
        let mut missing = node.missing_families(game, &view.families()?);
        missing.extend(node.missing_rollups(game, &view.rollups()?));
        match node.missing_event_id_window(game, view.state().event_ids).await {
            Err(failure) if failure.is_passing() => {}
            window => missing.extend(window?),
        }
        missing.extend(node.missing_declarations(game, &view)?);
        for body in missing {
            node.tell_shard(shard, body).await?;
        }
    }
    Ok(dropped_bytes)
}

/// Takes what passes by itself as done: it is done in the next round.
fn passing(done: Result<(), NodeError>) -> Result<(), NodeError> {
    done.or_else(|failure| if failure.is_passing() { Ok(()) } else { Err(failure) })
}

/// Cuts every group's log below what survives a crash; flushes the engine first when the log has grown large.
///
/// `flushed_at_bytes` is how large the log was then: what a follower still needs stays, and flushing again does not help.
async fn cut_logs(node: &Arc<Node>, flushed_at_bytes: &mut u64) -> anyhow::Result<()> {
    let (bytes, large) = (node.log().bytes(), node.config().log_bytes);
    *flushed_at_bytes = bytes.min(*flushed_at_bytes);
    if bytes > large && bytes >= *flushed_at_bytes + large / 8 {
        *flushed_at_bytes = bytes;
        let engine = node.engine().clone();
        spawn_blocking(move || engine.flush()).await??;
    }
    let groups = node.open_shards().into_iter().map(|(shard, _)| GroupId(shard.0));
    for group in groups.chain([GroupId(META_GROUP)]) {
        let persisted = |machine: &mut Machine| (machine.keyspace(), machine.persisted());
        if let Some((keyspace, persisted)) = node.driver().with_machine(group, persisted).await {
            node.driver().cut(group, keyspace.0, persisted?);
        }
    }
    let log = node.log().clone();
    spawn_blocking(move || log.purge()).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn building_and_sweeping_give_way_while_callers_write() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        let mut rounds = 0;
        let mut round = |pace: &mut Pace, applied| {
            rounds += 1;
            pace.round(at(rounds * 250));
            pace.applied += applied;
        };
        round(&mut pace, 1_000);
        pace.built(at(250), Duration::from_millis(1_000) / REST);
        // What the first round found was applied before it.
        round(&mut pace, 1_100);
        assert!(pace.rests(at(250 + 999)) && !pace.rests(at(250 + 1_000)));
        round(&mut pace, 1_199);
        assert!(pace.rests(at(750)), "100 entries in a quarter of a second");
        assert!(!pace.sweeps(1, SWEEP_DELAY) && pace.sweeps(DEAD_BYTES_MAX, Duration::ZERO));
        round(&mut pace, 1_199);
        assert!(!pace.rests(at(1_000)), "99 entries");
        assert!(pace.sweeps(1, SWEEP_DELAY) && !pace.sweeps(0, SWEEP_DELAY));
        round(&mut pace, 1_199);
        assert!(!pace.rests(at(1_250)), "none");
        pace.built(at(1_251), Duration::from_millis(1));
        assert!(pace.rests(at(1_252)), "one a round");
        round(&mut pace, 1_199);
        assert!(!pace.rests(at(1_501)));
    }
}
