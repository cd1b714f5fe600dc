//! raft-rs's view of one group: its part of the shared log, its record, and what is offered to those behind the cut.

use std::{cell::RefCell, collections::BTreeSet, sync::Arc};

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

pub(crate) struct GroupLog {
    store: Arc<dyn LogStore>,
    group: GroupId,
    pub(crate) record: GroupRecord,
    hard_state: HardState,
    pub(crate) standing: Option<Standing>,
    /// Nodes for which raft-rs asked for a snapshot while none was offered. It asks through a shared reference.
    pub(crate) wanted: RefCell<BTreeSet<u64>>,
}

impl GroupLog {
    pub(crate) fn new(store: Arc<dyn LogStore>, group: GroupId, record: GroupRecord, hard_state: HardState) -> Self {
        Self { store, group, record, hard_state, standing: None, wanted: RefCell::default() }
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
        self.store.entries(self.group, low, high, bytes_max.into()).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.record.cut_index {
            return Ok(self.record.cut_term);
        }
        if index < self.record.cut_index {
            return Err(raft::Error::Store(StorageError::Compacted));
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
