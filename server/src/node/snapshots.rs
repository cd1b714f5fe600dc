//! States that move between nodes: a follower that is too far behind pulls its leader's state into a fresh keyspace, and a
//! node whose own state is damaged that of any other replica.
//!
//! Blocks are pulled one by one, each with its CRC, under a budget of bytes a second. The keyspace is filled and flushed
//! before the one synced write of the log that switches the group to it, so a crash leaves the old state or the new one
//! whole; what it leaves of the other is removed at the next start.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use galoo_cluster::{
    META_GROUP,
    machine::{META_KEYSPACE, Machine, MachineError},
};
use galoo_consensus::{GroupId, StateMachine, log_store::GroupRecord, raft_loop::Fetch};
use galoo_proto::{Keyspace, NodeId, ShardId};
use galoo_storage::{compaction, engine::Engine, segment::SegmentFiles, snapshot::Import};
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::Instant,
};
use tracing::{info, warn};

use super::{Node, NodeError};
use crate::driver::{DriveError, Move, Relocated};

/// States that are pulled at once; further ones wait.
const PULLS_MAX: usize = 2;
/// Bytes a second that one pull takes from both nodes' disks.
const PULL_BYTES_PER_SECOND: f64 = (64 << 20) as f64;
/// A block that does not come is asked for again so often, then the pull is given up.
const BLOCK_TRIES_MAX: u32 = 5;
/// Delay before a block is asked for again.
const BLOCK_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Reads that began on a state before it was left get so long to end.
const LEFT_STATE_KEPT: Duration = Duration::from_secs(60);

/// Removes what no group's record names: states that were left or not pulled to their end before a crash.
///
/// # Errors
/// Where the log or the engine does not belong to the other, nothing is removed: somebody may still find the right one.
pub(super) fn remove_strays(
    engine: &Arc<dyn Engine>,
    files: &SegmentFiles,
    records: &[(GroupId, GroupRecord)],
) -> anyhow::Result<()> {
    let keyspaces = compaction::keyspaces(engine.as_ref())?;
    let alive = || records.iter().filter(|(_, record)| !record.destroyed);
    // The meta group's first state may be older than its record.
    if records.is_empty() && keyspaces.iter().any(|keyspace| *keyspace != META_KEYSPACE) {
        anyhow::bail!(
            "data folder: its log knows no group, and there is state of groups: its folder `log` is another's or lost"
        );
    }
    if keyspaces.is_empty() && alive().any(|(_, record)| record.cut_index > 0) {
        anyhow::bail!(
            "data folder: its log begins behind entries, and there is no state of them: its folder `data` is another's or lost"
        );
    }
    let mut named: BTreeSet<u64> = alive().map(|(_, record)| record.place).collect();
    if !records.iter().any(|(group, _)| *group == GroupId(META_GROUP)) {
        named.insert(META_KEYSPACE.0);
    }
    for keyspace in keyspaces {
        if !named.contains(&keyspace.0) {
            compaction::destroy_keyspace(engine, keyspace)?;
            files.remove_keyspace(keyspace)?;
            info!(%keyspace, "removed what no group refers to");
        }
    }
    Ok(())
}

/// Delay before a state is put in the place of another once more, when that could not be done at once.
const RELOCATE_RETRY_DELAY: Duration = Duration::from_millis(100);
/// It is given up when the log has not come so far after this long.
const RELOCATE_TRIES_MAX: u32 = 600;

impl Node {
    /// Freezes a group's state here for a node that rebuilds its own; returns its name and what it has applied.
    pub async fn lend_state(&self, group: GroupId) -> Result<(Bytes, u64), NodeError> {
        let unavailable = |reason| NodeError::Unavailable { shard: ShardId(group.0), reason };
        if !self.store.frozen.has_room() {
            return Err(unavailable(DriveError::NotReady("too many states are frozen for other nodes")));
        }
        let store = self.store.clone();
        let freeze = move |machine: &mut Machine| {
            let export = machine.freeze(store.engine.as_ref(), &store.files)?;
            Ok((store.frozen.lend(group, export), machine.applied()))
        };
        match self.driver.with_machine(group, freeze).await {
            Some(Ok(lent)) => Ok(lent),
            Some(Err(MachineError::Storage(failure))) => Err(failure.into()),
            Some(Err(_)) | None => Err(unavailable(DriveError::NotReady("it is not on this node"))),
        }
    }

    /// Gives up states that were lent to nodes and that nobody pulls from any more.
    pub fn give_up_lent_states(&self) {
        self.store.frozen.give_up_idle();
    }

    /// Replaces a shard's state here by that of another node, which may be older: the log leads on from there. Returns the
    /// bytes that were pulled.
    pub async fn rebuild(&self, shard: ShardId, from: NodeId) -> anyhow::Result<u64> {
        let group = GroupId(shard.0);
        let peer = self.transport.peer(from).ok_or_else(|| anyhow::anyhow!("{from} is not known"))?;
        let frozen = peer.freeze_state(group).await;
        let (name, index) = frozen.map_err(|status| anyhow::anyhow!("{from}: {}", status.message()))?;
        self.driver.keep_from(group, Some(index));
        let keyspace = Keyspace(self.next_place());
        let fetch = Fetch { from: from.0, index, term: 0, data: name.into() };
        let rebuilt = self.fill_and_relocate(group, &fetch, keyspace).await;
        self.driver.keep_from(group, None);
        if rebuilt.is_err() {
            self.remove_keyspace(keyspace).await;
        }
        rebuilt
    }

    async fn fill_and_relocate(&self, group: GroupId, fetch: &Fetch, keyspace: Keyspace) -> anyhow::Result<u64> {
        let bytes = self.fill(group, fetch, keyspace).await?;
        for _ in 0..RELOCATE_TRIES_MAX {
            match self.driver.relocate(group, fetch.index, keyspace.0).await {
                Relocated::Done => return Ok(bytes),
                Relocated::NotYet => tokio::time::sleep(RELOCATE_RETRY_DELAY).await,
                Relocated::Never(reason) => anyhow::bail!(reason),
            }
        }
        anyhow::bail!("what it has applied is not committed here yet")
    }

    /// Carries out what the driver asks for.
    pub(super) async fn follow_moves(self: Arc<Self>, mut moves: mpsc::UnboundedReceiver<Move>) {
        let pulls = Arc::new(Semaphore::new(PULLS_MAX));
        while let Some(wanted) = moves.recv().await {
            let (node, pulls) = (self.clone(), pulls.clone());
            tokio::spawn(async move {
                match wanted {
                    Move::Fetch(group, fetch) => {
                        let Ok(_turn) = pulls.acquire().await else { return };
                        node.pull(group, fetch).await;
                    }
                    Move::Left(keyspace) => {
                        tokio::time::sleep(LEFT_STATE_KEPT).await;
                        node.remove_keyspace(keyspace).await;
                    }
                    Move::Discard(keyspace) => node.remove_keyspace(keyspace).await,
                }
            });
        }
    }

    async fn remove_keyspace(&self, keyspace: Keyspace) {
        let (engine, files) = (self.engine.clone(), self.files.clone());
        let removed = spawn_blocking(move || {
            compaction::destroy_keyspace(&engine, keyspace)?;
            files.remove_keyspace(keyspace)
        });
        match removed.await {
            Ok(Ok(())) => info!(%keyspace, "removed a state that is not used any more"),
            Ok(Err(failure)) => warn!(%keyspace, %failure, "a state that is not used stays until the next start"),
            Err(failure) => warn!(%keyspace, %failure, "a state that is not used stays until the next start"),
        }
    }

    async fn pull(&self, group: GroupId, fetch: Fetch) {
        let keyspace = Keyspace(self.next_place());
        let started = Instant::now();
        match self.fill(group, &fetch, keyspace).await {
            Ok(bytes) => {
                let (from, index) = (NodeId(fetch.from), fetch.index);
                info!(%group, %from, index, bytes, %keyspace, took = ?started.elapsed(), "pulled a snapshot");
                metrics::counter!("galoo_snapshot_bytes_pulled_total").increment(bytes);
                self.driver.install(group, fetch.index, keyspace.0);
            }
            Err(failure) => {
                warn!(%group, %failure, "a snapshot could not be pulled; it is asked for again");
                self.remove_keyspace(keyspace).await;
                self.driver.abandon(group);
            }
        }
    }

    /// Fills a fresh keyspace; returns how many bytes came.
    async fn fill(&self, group: GroupId, fetch: &Fetch, keyspace: Keyspace) -> anyhow::Result<u64> {
        let is_shard = group != GroupId(META_GROUP);
        let (engine, files) = (self.engine.clone(), is_shard.then(|| self.files.clone()));
        let mut import = spawn_blocking(move || Import::new(engine, keyspace, files)).await??;
        let started = Instant::now();
        let mut bytes = 0u64;
        while let Some(cursor) = import.cursor().map(<[u8]>::to_vec) {
            // A second copy is written beside what is there.
            self.disk_room()?;
            let block = self.block(group, fetch, cursor).await?;
            bytes += block.len() as u64;
            import = spawn_blocking(move || import.take(&block).map(|()| import)).await??;
            #[expect(clippy::cast_precision_loss, reason = "a pace")]
            let due = started + Duration::from_secs_f64(bytes as f64 / PULL_BYTES_PER_SECOND);
            tokio::time::sleep_until(due).await;
        }
        let index = fetch.index;
        spawn_blocking(move || if is_shard { import.finish_shard(ShardId(group.0), index) } else { import.finish() })
            .await??;
        Ok(bytes)
    }

    async fn block(&self, group: GroupId, fetch: &Fetch, cursor: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let mut tries = 0;
        loop {
            let from = NodeId(fetch.from);
            let peer = self.transport.peer(from).ok_or_else(|| anyhow::anyhow!("{from} is not known"))?;
            match peer.pull_snapshot(group, fetch.data.to_vec(), cursor.clone()).await {
                Ok(block) => return Ok(block),
                Err(status) => {
                    tries += 1;
                    if tries >= BLOCK_TRIES_MAX || status.code() == tonic::Code::NotFound {
                        return Err(anyhow::anyhow!("{from}: {}", status.message()));
                    }
                }
            }
            tokio::time::sleep(BLOCK_RETRY_DELAY).await;
        }
    }
}
