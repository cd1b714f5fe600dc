//! The shared log in memory: every write is durable at once.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use protobuf::Message;
use raft::eraftpb::{Entry, HardState};

use super::{GroupRecord, GroupWrite, LogStore};
use crate::{GroupId, Result};

#[derive(Clone, Default)]
struct Group {
    record: GroupRecord,
    hard_state: Option<HardState>,
    entries: BTreeMap<u64, Entry>,
}

/// The log; clones share it, so that a restarted node finds what it wrote.
#[derive(Clone, Default)]
pub struct MemoryLog {
    groups: Arc<Mutex<BTreeMap<GroupId, Group>>>,
}

impl MemoryLog {
    /// Returns a log of its own that holds the same.
    pub fn fork(&self) -> Self {
        Self { groups: Arc::new(Mutex::new(self.lock().clone())) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupId, Group>> {
        self.groups.lock().expect("a thread that held the log panicked")
    }
}

impl LogStore for MemoryLog {
    fn groups(&self) -> Result<Vec<(GroupId, GroupRecord)>> {
        Ok(self.lock().iter().map(|(group, state)| (*group, state.record.clone())).collect())
    }

    fn record(&self, group: GroupId) -> Result<Option<GroupRecord>> {
        Ok(self.lock().get(&group).map(|state| state.record.clone()))
    }

    fn hard_state(&self, group: GroupId) -> Result<Option<HardState>> {
        Ok(self.lock().get(&group).and_then(|state| state.hard_state.clone()))
    }

    fn write(&self, writes: &[(GroupId, GroupWrite)]) -> Result<()> {
        let mut groups = self.lock();
        for (group, write) in writes {
            let state = groups.entry(*group).or_default();
            if write.clear {
                *state = Group { record: std::mem::take(&mut state.record), ..Default::default() };
            }
            if let Some(record) = &write.record {
                state.record = record.clone();
            }
            if let Some(hard_state) = &write.hard_state {
                state.hard_state = Some(hard_state.clone());
            }
            if let Some(first) = write.entries.first() {
                state.entries.split_off(&first.index);
                state.entries.extend(write.entries.iter().map(|entry| (entry.index, entry.clone())));
            }
            if let Some(cut) = write.cut {
                state.entries = state.entries.split_off(&(cut + 1));
            }
        }
        Ok(())
    }

    fn entries(&self, group: GroupId, low: u64, high: u64, bytes_max: Option<u64>) -> Result<Vec<Entry>> {
        let groups = self.lock();
        let Some(state) = groups.get(&group) else { return Ok(Vec::new()) };
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += u64::from(entry.compute_size());
            first || bytes_max.is_none_or(|max| bytes <= max)
        };
        Ok(state.entries.range(low..high).map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>> {
        let groups = self.lock();
        let entries = groups.get(&group).map(|state| &state.entries);
        Ok(entries.and_then(|entries| Some((*entries.first_key_value()?.0, *entries.last_key_value()?.0))))
    }
}
