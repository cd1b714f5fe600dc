//! raft-rs's view of one group: its part of the shared log, its record, and what is offered to those behind the cut.
//!
//! The newest entries are also in memory: what was just written is handed out to be applied, and its term looked up,
//! without reading the log back.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use protobuf::Message as _;
use raft::{
    GetEntriesContext, RaftState, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
    storage::Storage,
};

use crate::{
    Error, GroupId,
    log_store::{GroupRecord, LogStore},
    snapshot::Standing,
};

/// Bytes of one group's newest entries in memory; beyond it the oldest are read from the log.
const RECENT_BYTES_MAX: usize = 4 << 20;

pub(crate) struct GroupLog {
    store: Arc<dyn LogStore>,
    group: GroupId,
    pub(crate) record: GroupRecord,
    hard_state: HardState,
    pub(crate) standing: Option<Standing>,
    /// Nodes for which raft-rs asked for a snapshot while none was offered. It asks through a shared reference.
    pub(crate) wanted: RefCell<BTreeSet<u64>>,
    recent: Recent,
}

/// The log's newest entries, without a gap up to the last one. May be empty.
#[derive(Default)]
struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// What was applied when they were last looked through: nobody is likely to ask for it again.
    applied: u64,
}

impl Recent {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.index)
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.data.len();
        }
    }

    fn drop_through(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.drop_first();
        }
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        while let Some(replaced) = self.entries.pop_back_if(|entry| entry.index >= first) {
            self.bytes -= replaced.data.len();
        }
        if self.entries.back().is_some_and(|last| last.index + 1 != first) {
            *self = Self { applied: self.applied, ..Self::default() };
        }
        for entry in entries {
            self.bytes += entry.data.len();
            self.entries.push_back(entry.clone());
        }
        while self.bytes > RECENT_BYTES_MAX {
            self.drop_first();
        }
    }

    /// The entries `[low, high)`, if they are all here.
    fn range(&self, low: u64, high: u64) -> Option<impl Iterator<Item = &Entry>> {
        let begin = usize::try_from(low.checked_sub(self.first()?)?).ok()?;
        let end = begin + usize::try_from(high.checked_sub(low)?).ok()?;
        (end <= self.entries.len()).then(|| self.entries.range(begin..end))
    }
}

impl GroupLog {
    pub(crate) fn new(store: Arc<dyn LogStore>, group: GroupId, record: GroupRecord, hard_state: HardState) -> Self {
        Self { store, group, record, hard_state, standing: None, wanted: RefCell::default(), recent: Recent::default() }
    }

    /// Takes what is being written.
    pub(crate) fn writing(&mut self, entries: &[Entry]) {
        self.recent.append(entries);
    }

    /// Lets go of what was applied a tick ago.
    pub(crate) fn tick(&mut self, applied: u64) {
        let before = std::mem::replace(&mut self.recent.applied, applied);
        self.recent.drop_through(before);
    }

    /// Forgets what is in memory: the log does not hold it any more.
    pub(crate) fn cleared(&mut self) {
        self.recent = Recent::default();
    }

    fn first(&self) -> u64 {
        self.record.cut_index + 1
    }
}

fn other(error: Error) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl Storage for GroupLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState::from((self.record.voters.clone(), Vec::new()));
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        bytes_max: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let bytes_max = bytes_max.into();
        if let Some(entries) = self.recent.range(low, high) {
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                let first = bytes == 0;
                bytes += u64::from(entry.compute_size());
                first || bytes_max.is_none_or(|max| bytes <= max)
            };
            return Ok(entries.take_while(fits).cloned().collect());
        }
        self.store.entries(self.group, low, high, bytes_max).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.record.cut_index {
            return Ok(self.record.cut_term);
        }
        if index < self.record.cut_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if let Some(entry) = self.recent.range(index, index + 1).and_then(|mut entries| entries.next()) {
            return Ok(entry.term);
        }
        if index > self.last_index()? {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let found = self.store.entries(self.group, index, index + 1, None).map_err(other)?;
        found.first().map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        let bounds = self.store.bounds(self.group).map_err(other)?;
        Ok(bounds.map_or(self.record.cut_index, |(_, last)| last.max(self.record.cut_index)))
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match &self.standing {
            Some(standing) if standing.offer.index >= request_index => Ok(standing.send(to, &self.record.voters)),
            _ => {
                self.wanted.borrow_mut().insert(to);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
