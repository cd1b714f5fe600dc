//! An entry whose commands leave more than is written at once is applied in parts. Whatever part of it a crash leaves, the
//! rest follows, each command takes effect once, and the content is what it is when nothing was large (INV-S2).

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use galoo_proto::{Hlc, Keyspace, command::Outcome};
use galoo_storage::{
    Result,
    engine::{Direction, Engine, Family, Reader, Rows, WriteBatch, memory::MemoryEngine},
    segment::Step,
    shard::Checksum,
};
use proptest::prelude::*;

use super::{World, open, state};

/// An engine that flushes behind one of its writes.
struct Flushing {
    memory: MemoryEngine,
    /// Writes until then.
    left: AtomicUsize,
}

impl Reader for Flushing {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.memory.get(family, key)
    }

    fn rows(&self, family: Family, range: Range<&[u8]>, direction: Direction) -> Result<Box<dyn Rows + '_>> {
        self.memory.rows(family, range, direction)
    }
}

impl Engine for Flushing {
    fn write(&self, batch: WriteBatch) -> Result<()> {
        self.memory.write(batch)?;
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 { self.memory.flush() } else { Ok(()) }
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.memory.snapshot()
    }

    fn flush(&self) -> Result<()> {
        self.memory.flush()
    }

    fn compact(&self, family: Family, range: Option<Range<&[u8]>>) -> Result<()> {
        self.memory.compact(family, range)
    }

    fn scrub(&self, pace: &mut dyn FnMut(usize) -> Step) -> Result<bool> {
        self.memory.scrub(pace)
    }

    fn set_gc_time(&self, keyspace: Keyspace, gc: Hlc) {
        self.memory.set_gc_time(keyspace, gc);
    }

    fn snapshot_mark(&self) -> u64 {
        self.memory.snapshot_mark()
    }

    fn has_snapshot_before(&self, mark: u64) -> bool {
        self.memory.has_snapshot_before(mark)
    }

    fn get_persisted(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.memory.get_persisted(family, key)
    }
}

/// Applies a log from where the shard is, so many commands an entry; returns the outcomes.
fn apply(world: &mut World, log: &[Vec<u8>], commands_max: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let applied = world.shard.applied();
    for (index, entry) in (1..).zip(log.chunks(commands_max)).skip(applied as usize) {
        let commands: Vec<_> = entry.iter().map(Vec::as_slice).collect();
        outcomes.extend(world.shard.apply(index, &commands).expect("applies"));
    }
    outcomes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn an_entry_in_parts_takes_effect_once(
        steps in prop::collection::vec(state::step(), 1..16), flushed_at in 1usize..24, bytes_max in 0usize..400,
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let memory = MemoryEngine::default();
        let mut whole = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
        state::run(&steps, &mut whole);
        if whole.log.is_empty() {
            return Ok(());
        }
        let memory = MemoryEngine::default();
        let engine: Arc<dyn Engine> = Arc::new(Flushing { memory: memory.clone(), left: flushed_at.into() });
        let mut parts = World::new(&folder.path().join("parts"), engine.clone(), None);
        parts.shard = parts.shard.with_staged_bytes_max(bytes_max);
        prop_assert_eq!(&apply(&mut parts, &whole.log, 3), &whole.outcomes);
        let sum = |world: &World| Checksum::of(&world.view()).expect("sums").sum;
        prop_assert_eq!(sum(&parts), sum(&whole));

        memory.crash();
        parts.shard = open(&engine, parts.keyspace).with_staged_bytes_max(bytes_max);
        let (applied, done) = (parts.shard.applied() as usize, parts.shard.state().applied_commands as usize);
        let again = apply(&mut parts, &whole.log, 3);
        let first = (applied * 3 + done).min(whole.outcomes.len());
        prop_assert_eq!(&again[done..], &whole.outcomes[first..]);
        prop_assert!(again[..done].iter().all(|outcome| *outcome == Outcome::default()), "nobody waits for these");
        prop_assert_eq!(sum(&parts), sum(&whole));
        prop_assert_eq!(parts.shard.state().applied_commands, 0);
    }
}
