//! Replaces what was found damaged: the shard's state is pulled anew from another replica. Until it is there the node takes part
//! as before, and does not read what is damaged.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use galoo_proto::ShardId;
use galoo_storage::{segment::DamagedSegment, view::Source};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::node::Node;

/// Between two looks at what was found.
const ROUND: Duration = Duration::from_secs(1);
/// A shard is left alone for so long after it was rebuilt or could not be: on a disk that goes bad it may be damaged again.
const REST: Duration = Duration::from_secs(30);

/// Works until `stopped` resolves.
pub async fn run(node: Arc<Node>, mut stopped: watch::Receiver<bool>) {
    let mut told = BTreeSet::new();
    let mut tried: HashMap<ShardId, Instant> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        node.give_up_lent_states();
        let damaged = node.damaged();
        for (shard, one) in &damaged {
            if told.insert((*shard, one.keyspace, one.segment)) {
                metrics::counter!("galoo_damage_found_total").increment(1);
                let (failure, first, last) = (&one.error, one.seqs.start(), one.seqs.end());
                error!(%shard, first, last, %failure, "a segment is damaged and not read any more");
            }
        }
        told.retain(|(shard, keyspace, segment)| {
            damaged.iter().any(|(of, one)| (*of, one.keyspace, one.segment) == (*shard, *keyspace, *segment))
        });
        tried.retain(|_, at| at.elapsed() < REST);
        let shards: BTreeSet<ShardId> = damaged.iter().map(|(shard, _)| *shard).collect();
        for shard in shards {
            if tried.contains_key(&shard) {
                continue;
            }
            tokio::select! {
                () = rebuild(&node, shard) => drop(tried.insert(shard, Instant::now())),
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }
}

/// Rebuilds a shard from the first of its other replicas that can help.
async fn rebuild(node: &Node, shard: ShardId) {
    let others = node.other_replicas(shard);
    if others.is_empty() {
        error!(%shard, "no other node has a replica of a damaged shard: what is damaged can only come from a backup");
    }
    for from in others {
        let started = Instant::now();
        match node.rebuild(shard, from).await {
            Ok(bytes) => {
                info!(%shard, %from, bytes, took = ?started.elapsed(), "rebuilt from another replica");
                metrics::counter!("galoo_shards_rebuilt_total").increment(1);
                return;
            }
            Err(failure) => warn!(%shard, %from, %failure, "a damaged shard could not be rebuilt from a replica"),
        }
    }
}

impl Node {
    /// What is damaged in the shards that are open here.
    pub fn damaged(&self) -> Vec<(ShardId, DamagedSegment)> {
        let damaged = self.files().damaged();
        if damaged.is_empty() {
            return Vec::new();
        }
        let shards = self.open_shards();
        // What was merged or dropped since it was found is not a part of the shard any more.
        let is_named = |shard: ShardId, one: &DamagedSegment| {
            let Ok(view) = self.stale_view(shard) else { return true };
            let names = |source: &Source| {
                matches!(source, Source::Segment(segment) if segment.id == one.segment.0) && source.rows() > 0
            };
            view.sources().map_or(true, |sources| sources.iter().any(names))
        };
        let of = |one: DamagedSegment| {
            let (shard, _) = shards.iter().find(|(_, keyspace)| *keyspace == one.keyspace)?;
            is_named(*shard, &one).then_some((*shard, one))
        };
        damaged.into_iter().filter_map(of).collect()
    }
}
