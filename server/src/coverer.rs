//! Keeps rollups: what [`cover::prepare`] finds next is committed, one shard after the other; beside the compactor, so that
//! rollups wait for no segment, and segments for no rollup.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use galoo_proto::{Keyspace, RollupId, ShardId};
use galoo_storage::rollup::{
    Definition,
    cover::{self, First, Piece},
};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{debug, warn};

use crate::node::Node;

/// Between two rounds over the shards in which nothing was covered.
const ROUND: Duration = Duration::from_millis(250);

/// Works until `stopped` resolves.
pub async fn run(node: Arc<Node>, mut stopped: watch::Receiver<bool>) {
    let mut first = First::Covering;
    loop {
        let mut covered = false;
        for (shard, keyspace) in node.open_shards() {
            match cover_next(&node, shard, keyspace, first, &stopped).await {
                Ok(more) => covered |= more,
                Err(failure) => warn!(%shard, %failure, "rollups of a shard could not be covered; it is tried again"),
            }
        }
        // Neither keeps the other waiting.
        first = if first == First::Covering { First::TakingOut } else { First::Covering };
        tokio::select! {
            () = tokio::time::sleep(if covered { Duration::ZERO } else { ROUND }) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// Does what is next for each of a shard's rollups; returns whether anything was.
async fn cover_next(
    node: &Arc<Node>,
    shard: ShardId,
    keyspace: Keyspace,
    first: First,
    stopped: &watch::Receiver<bool>,
) -> anyhow::Result<bool> {
    let view = match node.stale_view(shard) {
        // Nothing is applied here yet.
        Err(error) if error.is_passing() => return Ok(false),
        view => view?,
    };
    let rollups = view.rollups()?;
    if rollups.is_empty() {
        return Ok(false);
    }
    let definitions = rollups.iter().map(Definition::parse).collect::<Result<Vec<_>, _>>()?;
    let (node, stopped) = (node.clone(), stopped.clone());
    spawn_blocking(move || {
        let (mut more, mut failed) = (false, None);
        let runtime = tokio::runtime::Handle::current();
        let name = |id: RollupId| rollups.iter().find(|rollup| rollup.id == id.0).map_or("", |rollup| &rollup.name);
        let mut started = Instant::now();
        cover::prepare(&view, &definitions, first, &Piece::default(), &mut |id, cover| {
            let cover = match cover {
                Ok(cover) => cover,
                Err(failure) => {
                    // The others do not wait for it.
                    warn!(%shard, rollup = name(id), %failure, "a rollup could not be covered; it is tried again");
                    return ControlFlow::Continue(());
                }
            };
            let (engine, through, cells) = (node.engine().clone(), cover.to.seq, cover.cells());
            let commit = node.commit(shard, keyspace, move || cover::commit(&engine, keyspace, cover));
            let committed = match runtime.block_on(commit) {
                Ok(committed) => committed,
                Err(failure) => {
                    failed = Some(failure);
                    return ControlFlow::Break(());
                }
            };
            debug!(%shard, rollup = name(id), through, cells, committed, took = ?started.elapsed(), "covered");
            started = Instant::now();
            more |= committed;
            if *stopped.borrow() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        failed.map_or(Ok(more), |failure| Err(failure.into()))
    })
    .await?
}
