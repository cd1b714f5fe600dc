//! Carries out what [`galoo_storage::compaction::choose_expired`] and [`galoo_storage::compaction::choose_merge`] choose, one
//! shard after the other, and removes the files that this leaves; beside the compactor, so that a long merge holds up
//! neither sealing nor rollups.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use galoo_proto::{Keyspace, SegmentId, Seq, ShardId, record};
use galoo_storage::{
    compaction::{
        Eagerness, Expired, Retired, choose_erasure, choose_expired, choose_merge, clean, commit_clean, commit_drop,
        commit_merge, covered_seq, kept, merge_segments,
    },
    engine::Family,
    key,
    segment::{Kept, Step},
    view::{Source, View},
};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{debug, warn};

use crate::node::Node;

/// Between two rounds over the shards in which nothing was merged.
const ROUND: Duration = Duration::from_secs(1);
/// Bytes of old files that wait to be removed at which no further merge begins.
const RETIRED_BYTES_MAX: u64 = 4 << 30;
/// Between two looks at a shard for what is hidden in its segments.
const ERASURE_ROUND: Duration = Duration::from_secs(5);
/// A shard whose merge failed is left alone for so long.
const FAILED_DELAY: Duration = Duration::from_secs(60);

/// While callers write, a merge rests for so many times as long as it works: a twentieth of a core.
const REST: u32 = 19;
/// The same for a merge that somebody asked for: a quarter.
const REST_EAGER: u32 = 3;
/// The longest rest at a time: it is looked again whether callers write, and whether the node stops.
const REST_MAX: Duration = Duration::from_millis(250);

/// Works until `stopped` resolves.
pub async fn run(node: Arc<Node>, mut stopped: watch::Receiver<bool>) {
    let mut retired = Retired::default();
    // When it was last looked for what is hidden of each shard.
    let mut looked: HashMap<ShardId, Instant> = HashMap::new();
    // Shards whose merge failed, with when it is tried again.
    let mut failed: HashMap<ShardId, Instant> = HashMap::new();
    loop {
        let mut merged = false;
        let now = Instant::now();
        failed.retain(|_, again_at| *again_at > now);
        for (shard, keyspace) in node.open_shards() {
            if failed.contains_key(&shard) {
                continue;
            }
            // What is merged is there twice until its old files go.
            let has_room = retired.bytes() <= RETIRED_BYTES_MAX && node.disk_room().is_ok();
            let looks = looked.get(&shard).is_none_or(|looked| looked.elapsed() >= ERASURE_ROUND);
            match (Work { node: &node, shard, keyspace, has_room, looks, stopped: &stopped }).next().await {
                Ok(Some(segments)) => {
                    retired.add(node.engine().as_ref(), keyspace, &segments, Instant::now());
                    merged = true;
                }
                Ok(None) if looks => drop(looked.insert(shard, Instant::now())),
                Ok(None) => {}
                Err(failure) => {
                    warn!(%shard, %failure, again_in = ?FAILED_DELAY, "segments could not be merged; it is tried again");
                    node.eager().failed(shard);
                    failed.insert(shard, Instant::now() + FAILED_DELAY);
                }
            }
        }
        if let Err(failure) = sweep(&node, &mut retired).await {
            warn!(%failure, "files of merged segments could not be removed; it is tried again");
        }
        tokio::select! {
            () = tokio::time::sleep(if merged { Duration::ZERO } else { ROUND }) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// A shard as a worker sees it, beside which nothing of its content is written anew.
struct Work<'w> {
    node: &'w Arc<Node>,
    shard: ShardId,
    keyspace: Keyspace,
    /// Whether files may be written; others are dropped also where there is no room.
    has_room: bool,
    /// Whether it is looked for what is hidden.
    looks: bool,
    stopped: &'w watch::Receiver<bool>,
}

impl Work<'_> {
    /// Does what is chosen of a shard; returns the segments that are not there any more.
    async fn next(&self) -> anyhow::Result<Option<Vec<record::Segment>>> {
        let view = match self.node.stale_view(self.shard) {
            // Nothing is applied here yet.
            Err(error) if error.is_passing() => return Ok(None),
            view => view?,
        };
        let (from_ms, open) = (view.state().events_from_ms, view.state().open.unwrap_or_default().id);
        let is_closed = |source: &&Source| !matches!(source, Source::Chunk(chunk) if chunk.id == open);
        let sources: Vec<_> = view.sources()?.iter().filter(is_closed).cloned().collect();
        let covered = covered_seq(&view)?;
        let now_ms = view.hlc().millis().cast_signed();
        let segment = match choose_expired(&sources, from_ms, covered, now_ms) {
            Some(Expired::Drop(range)) => return self.drop_sources(view, sources[range].to_vec()).await,
            _ if !self.has_room => return Ok(None),
            Some(Expired::Rewrite(segment)) => Some(segment),
            None if self.looks => choose_erasure(&view, self.node.files(), covered)?,
            None => None,
        };
        if let Some(segment) = segment {
            let kept = kept(&view, Seq(segment.last_seq))?;
            // A view keeps the files of what was merged before.
            drop(view);
            return self.rewrite(vec![record::Segment::clone(&segment)], kept, REST).await;
        }
        if self.looks && !view.erasures()?.is_empty() {
            self.clean(&view).await?;
        }
        self.merge(view).await
    }

    /// Has the engine rewrite what it holds of forgotten players of whom nothing else is left, and forgets that they were
    /// forgotten.
    async fn clean(&self, view: &View) -> anyhow::Result<()> {
        let (view, files, engine) = (view.clone(), self.node.files().clone(), self.node.engine().clone());
        let (shard, keyspace) = (self.shard, self.keyspace);
        let work = move || -> galoo_storage::Result<(View, Vec<String>)> {
            let players = clean(&view, &files)?;
            for player in &players {
                let range = key::player(keyspace, player);
                for family in [Family::Cells, Family::History] {
                    engine.compact(family, Some(&range.start..&range.end))?;
                }
            }
            if !players.is_empty() {
                // Their events' chunks became segments.
                let range = key::keyspace_range(keyspace);
                engine.compact(Family::Chunks, Some(&range.start..&range.end))?;
            }
            Ok((view, players))
        };
        let (view, players) = spawn_blocking(work).await??;
        for player in players {
            let (engine, view) = (self.node.engine().clone(), view.clone());
            let commit = move || commit_clean(&engine, &view, &player);
            let committed = self.node.commit(shard, keyspace, commit).await?;
            debug!(%shard, committed, "nothing is left of a player that was forgotten");
        }
        Ok(())
    }

    /// Lets go of sources whose events are not read any more.
    async fn drop_sources(&self, view: View, sources: Vec<Source>) -> anyhow::Result<Option<Vec<record::Segment>>> {
        let events: u64 = sources.iter().map(Source::rows).sum();
        let engine = self.node.engine().clone();
        let commit = move || commit_drop(&engine, &view, &sources);
        let dropped = self.node.commit(self.shard, self.keyspace, commit).await?;
        debug!(shard = %self.shard, events, committed = dropped.is_some(), "dropped events that are too old");
        Ok(dropped)
    }

    /// Merges segments.
    async fn merge(&self, view: View) -> anyhow::Result<Option<Vec<record::Segment>>> {
        let eager_through = self.node.eager().through(self.shard);
        let (mut segments, mut is_built) = (Vec::new(), true);
        for source in view.sources()? {
            match source {
                // What came since is not meant, or it would never end.
                Source::Segment(segment) if eager_through.is_none_or(|through| segment.first_seq <= through.0) => {
                    segments.push(record::Segment::clone(segment));
                }
                Source::Segment(_) => {}
                Source::Chunk(_) => is_built &= eager_through.is_none_or(|through| source.first_seq() > through),
            }
        }
        let eagerness = if eager_through.is_some() { Eagerness::Always } else { Eagerness::WhenMany };
        let Some(chosen) = choose_merge(&self.node.config().compaction, &segments, eagerness) else {
            if let Some(through) = eager_through.filter(|_| is_built) {
                self.node.eager().done(self.shard, through);
            }
            return Ok(None);
        };
        let segments = segments[chosen].to_vec();
        let kept = kept(&view, Seq(segments.last().map_or(0, |last| last.last_seq)))?;
        drop(view);
        self.rewrite(segments, kept, if eagerness == Eagerness::Always { REST_EAGER } else { REST }).await
    }

    /// Writes what is kept of segments anew as one.
    async fn rewrite(
        &self,
        segments: Vec<record::Segment>,
        kept: Kept,
        rest: u32,
    ) -> anyhow::Result<Option<Vec<record::Segment>>> {
        let (keyspace, files, inputs) = (self.keyspace, self.node.files().clone(), segments.clone());
        let (stopping, node) = (self.stopped.clone(), self.node.clone());
        let started = Instant::now();
        let work = move || {
            let mut worked_since = Instant::now();
            let mut pace = || {
                let busy = || node.is_busy().load(Ordering::Relaxed);
                let mut left = worked_since.elapsed() * rest;
                while busy() && !left.is_zero() && !*stopping.borrow() {
                    let nap = left.min(REST_MAX);
                    thread::sleep(nap);
                    left -= nap;
                }
                worked_since = Instant::now();
                if *stopping.borrow() { Step::Cancel } else { Step::On }
            };
            merge_segments(&files, keyspace, &inputs, &kept, &mut pace)
        };
        let Some(merged) = spawn_blocking(work).await?? else { return Ok(None) };
        let (engine, inputs, record) = (self.node.engine().clone(), segments.clone(), merged.clone());
        let commit = move || commit_merge(&engine, keyspace, &inputs, &record);
        let committed = self.node.commit(self.shard, keyspace, commit).await?;
        let (count, rows, bytes, took) = (segments.len(), merged.rows, merged.file_bytes, started.elapsed());
        debug!(shard = %self.shard, count, rows, bytes, committed, ?took, "merged segments");
        if !committed {
            self.node.files().remove(keyspace, SegmentId(merged.id))?;
        }
        Ok(committed.then_some(segments))
    }
}

async fn sweep(node: &Arc<Node>, retired: &mut Retired) -> anyhow::Result<()> {
    if retired.is_empty() {
        return Ok(());
    }
    if retired.wants_flush(Instant::now()) {
        let (engine, count) = (node.engine().clone(), retired.len());
        spawn_blocking(move || engine.flush()).await??;
        retired.flushed(count);
    }
    let removed = retired.sweep(node.engine().as_ref(), node.files())?;
    if removed > 0 {
        debug!(removed, left = retired.len(), "removed files of merged segments");
    }
    Ok(())
}
