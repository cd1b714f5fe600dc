//! Snapshots between nodes: freezing and offering on one side, pulling and installing on the other.

use bytes::Bytes;
use galoo_consensus::{
    GroupId, StateMachine,
    log_store::GroupRecord,
    raft_loop::{Fetch, Offer},
};
use galoo_proto::{Keyspace, ShardId};
use galoo_storage::{
    compaction::destroy_keyspace,
    engine::{Family, WriteBatch},
    key,
    snapshot::Import,
};

use super::{
    Bug, World,
    network::{Packet, Place},
    node::META,
};

/// Bytes of a block: some blocks for a shard of the simulation.
const BLOCK_BYTES: usize = 2_000;
const RETRY_MS: u64 = 400;
const TRIES_MAX: u64 = 6;

/// A state that is to take the place of another.
pub(crate) struct Rebuild {
    group: GroupId,
    index: u64,
    place: Keyspace,
    at: u64,
}

/// A state on its way into a fresh place.
pub(crate) struct Pull {
    from: u64,
    offer: u64,
    index: u64,
    place: Keyspace,
    import: Import,
    ask_at: u64,
    tries: u64,
}

impl World {
    /// Freezes a group's state between two commands and offers it.
    pub(crate) fn freeze(&mut self, at: usize, group: GroupId) {
        let node = &mut self.nodes[at];
        let number = node.disk.number();
        let Some(process) = &mut node.process else { return };
        let Some(machine) = process.machines.get(&group) else { return };
        if process.exports.values().any(|(of, _)| *of == group) {
            return;
        }
        let export = machine.freeze(node.disk.engine.as_ref(), &node.disk.files).expect("the engine reads");
        let offer = Offer { index: machine.applied(), data: Bytes::copy_from_slice(&number.to_le_bytes()) };
        if process.raft.offer(group, offer).is_ok() {
            process.exports.insert(number, (group, export.with_block_bytes(BLOCK_BYTES)));
        }
    }

    /// Replaces the state of a group by another node's, as if it was found damaged; by chance it is pulled long before.
    pub(crate) fn rebuild(&mut self, at: usize, from: usize) {
        let delay = self.chance.below(8);
        let Some(process) = &self.nodes[from].process else { return };
        let groups: Vec<GroupId> = process.machines.keys().copied().collect();
        let group = groups[usize::try_from(self.chance.below(groups.len() as u64)).unwrap_or_default()];
        let (machine, disk) = (&process.machines[&group], &self.nodes[from].disk);
        let (export, index) = (machine.freeze(disk.engine.as_ref(), &disk.files).expect("reads"), machine.applied());
        let node = &mut self.nodes[at];
        let place = Keyspace(node.disk.number());
        let files = (group != META).then(|| node.disk.files.clone());
        let mut import = Import::new(node.disk.engine.clone(), place, files).expect("a fresh place");
        while let Some(cursor) = import.cursor().map(<[u8]>::to_vec) {
            import.take(&export.block(&cursor).expect("a block")).expect("the block that comes next");
        }
        import.finish().expect("the state is whole");
        let Some(process) = &mut node.process else { return };
        process.raft.keep_from(group, Some(index));
        process.rebuilds.push(Rebuild { group, index, place, at: self.now + delay * 100 });
    }

    /// Puts states that were pulled in the place of those that are here.
    pub(crate) fn relocate(&mut self, at: usize) {
        let (now, node) = (self.now, &mut self.nodes[at]);
        let Some(process) = &mut node.process else { return };
        let Some(Rebuild { group, index, place, .. }) = process.rebuilds.pop_if(|rebuild| now >= rebuild.at) else {
            return;
        };
        let relocated = process.raft.relocate(group, index, place.0);
        process.raft.keep_from(group, None);
        let Ok(Ok(Some(unknown))) = relocated else {
            destroy_keyspace(&node.disk.engine, place).expect("the engine writes");
            return;
        };
        process.proposals.retain(|ticket, _| !unknown.contains(ticket));
        process.exports.retain(|_, (of, _)| *of != group);
        // What is handed out again is all that comes behind; whoever proposed what waits learns nothing.
        process.queue.retain(|(of, _)| *of != group);
        if let Some(machine) = process.machines.get_mut(&group) {
            let moved = machine.moved(&node.disk.engine, place).expect("a pulled state opens");
            let old = std::mem::replace(machine, moved).keyspace();
            destroy_keyspace(&node.disk.engine, old).expect("the engine writes");
            process.raft.open(group, GroupRecord::default(), index).expect("the group opens");
        }
        self.trace.report.rebuilds += 1;
        self.trace.note(now, ("rebuilt", at, group.0, index));
        node.reconcile();
    }

    pub(crate) fn begin_pull(&mut self, at: usize, group: GroupId, fetch: &Fetch) {
        let node = &mut self.nodes[at];
        let place = Keyspace(node.disk.number());
        let files = (group != META).then(|| node.disk.files.clone());
        let import = Import::new(node.disk.engine.clone(), place, files).expect("a fresh place");
        let offer = fetch.data.as_ref().try_into().map(u64::from_le_bytes).unwrap_or_default();
        let Some(process) = &mut node.process else { return };
        let pull = Pull { from: fetch.from, offer, index: fetch.index, place, import, ask_at: 0, tries: 0 };
        assert!(process.pulls.insert(group, pull).is_none(), "one fetch of a group at a time");
    }

    /// Asks for the blocks that come next, and again when they do not come.
    pub(crate) fn pull_on(&mut self, at: usize) {
        let Some(process) = &self.nodes[at].process else { return };
        let groups: Vec<GroupId> = process.pulls.keys().copied().collect();
        for group in groups {
            self.ask(at, group);
        }
    }

    fn ask(&mut self, at: usize, group: GroupId) {
        let (now, node) = (self.now, &mut self.nodes[at]);
        let Some(process) = &mut node.process else { return };
        let Some(pull) = process.pulls.get_mut(&group).filter(|pull| now >= pull.ask_at) else { return };
        pull.tries += 1;
        if pull.tries > TRIES_MAX {
            self.give_up(at, group);
            return;
        }
        pull.ask_at = now + RETRY_MS;
        let Some(cursor) = pull.import.cursor().map(<[u8]>::to_vec) else { return };
        let (from, to) = (Place::Node(node.id), Place::Node(pull.from));
        self.network.send(now, from, to, Packet::Pull { group, offer: pull.offer, cursor }, &mut self.chance);
    }

    fn give_up(&mut self, at: usize, group: GroupId) {
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        if let Some(pull) = process.pulls.remove(&group) {
            process.raft.abandon(group);
            destroy_keyspace(&node.disk.engine, pull.place).expect("the engine writes");
        }
    }

    /// Hands out a block of a frozen state.
    pub(crate) fn serve_block(&mut self, at: usize, to: Place, group: GroupId, offer: u64, cursor: Vec<u8>) {
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        let block = process.exports.get(&offer).map(|(_, export)| export.block(&cursor).expect("a block"));
        if block.is_some() {
            process.raft.renew(group);
        }
        let packet = Packet::Pulled { group, offer, cursor, block };
        self.network.send(self.now, Place::Node(node.id), to, packet, &mut self.chance);
    }

    pub(crate) fn take_block(&mut self, at: usize, group: GroupId, offer: u64, cursor: &[u8], block: Option<Bytes>) {
        let damage = self.faults && self.chance.one_in(30);
        let bit = self.chance.next();
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        let awaited = |pull: &Pull| pull.offer == offer && pull.import.cursor() == Some(cursor);
        if !process.pulls.get(&group).is_some_and(awaited) {
            return;
        }
        let (Some(block), Some(pull)) = (block, process.pulls.get_mut(&group)) else {
            self.give_up(at, group);
            return;
        };
        if damage {
            let mut damaged = block.to_vec();
            let byte = usize::try_from(bit % damaged.len() as u64).unwrap_or_default();
            damaged[byte] ^= 1 << (bit >> 61);
            assert!(pull.import.take(&damaged).is_err(), "P7: a damaged block gets in");
            return;
        }
        pull.import.take(&block).expect("the block that comes next");
        (pull.ask_at, pull.tries) = (0, 0);
        if pull.import.cursor().is_some() {
            return;
        }
        let Some(pull) = process.pulls.remove(&group) else { return };
        if self.bug == Bug::SnapshotWithoutProducers {
            let mut batch = WriteBatch::default();
            batch.delete_range(Family::Producers, key::keyspace_range(pull.place));
            node.disk.engine.write(batch).expect("the engine writes");
        }
        let finished = match group {
            META => pull.import.finish(),
            GroupId(shard) => pull.import.finish_shard(ShardId(shard), pull.index),
        };
        finished.expect("the state is whole");
        process.raft.install(group, pull.index, pull.place.0).expect("the group is here");
    }
}
