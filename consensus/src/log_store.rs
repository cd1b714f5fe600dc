//! The log that all groups of a node share, and the authority on which groups the node holds.
//!
//! Two stores implement it: [`shared`] (raft-engine, one `fdatasync` a write) and [`memory`] (for the simulator: what
//! was written survives a crash, because a write returns only when it is durable).

pub mod memory;
pub mod shared;

use raft::eraftpb::{Entry, HardState};

use crate::{GroupId, Result};

/// What the log keeps of a group beside its entries.
///
/// ```text
/// version u8 = 1 | destroyed u8 | place u64 | cut index u64 | cut term u64 | voter count u32 | voter u64 ...   (little-endian)
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRecord {
    /// The group was removed from this node: it is never made here again (a tombstone).
    pub destroyed: bool,
    /// Where the node keeps the group's state; opaque to consensus.
    pub place: u64,
    /// Last index that was cut off the front of the log.
    pub cut_index: u64,
    /// The term of that entry.
    pub cut_term: u64,
    /// Members that vote.
    pub voters: Vec<u64>,
}

const RECORD_VERSION: u8 = 1;

impl GroupRecord {
    /// Encodes the record as above.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION, u8::from(self.destroyed)];
        for number in [self.place, self.cut_index, self.cut_term] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&u32::try_from(self.voters.len()).unwrap_or(u32::MAX).to_le_bytes());
        for voter in &self.voters {
            bytes.extend_from_slice(&voter.to_le_bytes());
        }
        bytes
    }

    /// Decodes a record; `None` when it is malformed or of a newer version.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        fn number(bytes: &mut &[u8]) -> Option<u64> {
            let (head, tail) = bytes.split_first_chunk::<8>()?;
            *bytes = tail;
            Some(u64::from_le_bytes(*head))
        }
        let ([version, destroyed], rest) = bytes.split_first_chunk::<2>()?;
        let (known, destroyed) = (*version == RECORD_VERSION, *destroyed != 0);
        bytes = rest;
        let (place, cut_index, cut_term) = (number(&mut bytes)?, number(&mut bytes)?, number(&mut bytes)?);
        let (count, rest) = bytes.split_first_chunk::<4>()?;
        bytes = rest;
        let voters = (0..u32::from_le_bytes(*count)).map(|_| number(&mut bytes)).collect::<Option<Vec<_>>>()?;
        (known && bytes.is_empty()).then_some(Self { destroyed, place, cut_index, cut_term, voters })
    }
}

/// What one write changes of one group.
#[derive(Clone, Debug, Default)]
pub struct GroupWrite {
    /// The group's record.
    pub record: Option<GroupRecord>,
    /// Term, vote and commit index.
    pub hard_state: Option<HardState>,
    /// Entries to append; from the first one's index on, older entries are replaced.
    pub entries: Vec<Entry>,
    /// Entries at or below are dropped.
    pub cut: Option<u64>,
    /// Everything of the group but its record is dropped, before anything else of this write is done.
    pub clear: bool,
}

/// The shared log.
pub trait LogStore: Send + Sync {
    /// Returns every group that was ever made here, destroyed ones included.
    fn groups(&self) -> Result<Vec<(GroupId, GroupRecord)>>;

    /// Returns a group's record; `None` when it was never made here.
    fn record(&self, group: GroupId) -> Result<Option<GroupRecord>>;

    /// Returns a group's term, vote and commit index as they were last written.
    fn hard_state(&self, group: GroupId) -> Result<Option<HardState>>;

    /// Makes all changes durable together, with one sync: after a crash all of them are there or none. Groups appear once.
    fn write(&self, writes: &[(GroupId, GroupWrite)]) -> Result<()>;

    /// Returns the entries `[low, high)` that fit into `bytes_max` (and at least one). All are in the log.
    fn entries(&self, group: GroupId, low: u64, high: u64, bytes_max: Option<u64>) -> Result<Vec<Entry>>;

    /// Returns the first and the last index in the log; `None` when it holds no entry.
    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{memory::MemoryLog, shared::SharedLog, *};

    proptest! {
        #[test]
        fn a_record_comes_back(destroyed: bool, place: u64, cut_index: u64, cut_term: u64, voters: Vec<u64>) {
            let record = GroupRecord { destroyed, place, cut_index, cut_term, voters };
            let bytes = record.encode();
            prop_assert_eq!(GroupRecord::decode(&bytes), Some(record));
            prop_assert_eq!(GroupRecord::decode(&bytes[..bytes.len() - 1]), None);
        }
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![term as u8; 100].into(), ..Default::default() }
    }

    fn terms(log: &dyn LogStore, group: GroupId) -> Vec<(u64, u64)> {
        let Some((first, last)) = log.bounds(group).expect("bounds") else { return vec![] };
        let entries = log.entries(group, first, last + 1, None).expect("entries");
        entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    /// Appends, replaces, cuts, destroys: both stores hold the same afterwards, the shared log also after a reopening.
    #[test]
    fn stores_agree() {
        let folder = tempfile::tempdir().expect("folder");
        let memory = MemoryLog::default();
        let (a, b, c) = (GroupId(1), GroupId(2), GroupId(3));
        let record = GroupRecord { place: 7, voters: vec![1], ..Default::default() };
        let cut = GroupRecord { cut_index: 2, cut_term: 1, ..record.clone() };
        let hard = HardState { term: 3, vote: 1, commit: 2, ..Default::default() };
        let gone = GroupRecord { destroyed: true, ..record.clone() };
        let made = GroupWrite { record: Some(record.clone()), ..Default::default() };
        let entries = |entries: Vec<Entry>| GroupWrite { entries, ..Default::default() };
        let other = GroupRecord { place: 8, cut_index: 90, cut_term: 3, ..record.clone() };
        let at_90 = HardState { commit: 90, ..hard.clone() };
        let switch = GroupWrite {
            record: Some(other.clone()),
            hard_state: Some(at_90.clone()),
            clear: true,
            ..entries(vec![entry(91, 3)])
        };
        let rounds: Vec<Vec<(GroupId, GroupWrite)>> = vec![
            vec![(a, made.clone()), (b, made)],
            vec![(a, entries((1..=5).map(|i| entry(i, 1)).collect())), (b, entries(vec![entry(1, 1)]))],
            vec![(a, GroupWrite { hard_state: Some(hard.clone()), ..entries(vec![entry(4, 2)]) })],
            vec![(a, GroupWrite { record: Some(cut.clone()), cut: Some(2), ..Default::default() })],
            vec![(b, GroupWrite { record: Some(gone.clone()), clear: true, ..Default::default() })],
            // A snapshot is switched to, and entries behind it come with it.
            vec![(c, GroupWrite { record: Some(record.clone()), ..entries(vec![entry(1, 1), entry(2, 1)]) })],
            vec![(c, GroupWrite { hard_state: Some(hard.clone()), ..Default::default() })],
            vec![(c, switch)],
        ];
        let check = |log: &dyn LogStore| {
            let mut groups = log.groups().expect("groups");
            groups.sort_by_key(|(group, _)| *group);
            assert_eq!(groups, vec![(a, cut.clone()), (b, gone.clone()), (c, other.clone())]);
            assert_eq!(log.record(c).expect("record"), Some(other.clone()));
            assert_eq!(log.record(GroupId(4)).expect("record"), None);
            assert_eq!(terms(log, c), vec![(91, 3)]);
            assert_eq!(log.hard_state(c).expect("hard state"), Some(at_90.clone()));
            assert_eq!(terms(log, a), vec![(3, 1), (4, 2)]);
            assert_eq!(terms(log, b), vec![]);
            assert_eq!(log.hard_state(a).expect("hard state"), Some(hard.clone()));
            assert_eq!(log.hard_state(b).expect("hard state"), None);
            assert_eq!(log.entries(a, 3, 5, Some(1)).expect("entries").len(), 1, "at least one");
        };
        {
            let shared = SharedLog::open(folder.path(), 1 << 30).expect("open");
            for writes in &rounds {
                memory.write(writes).expect("write");
                shared.write(writes).expect("write");
            }
            check(&memory);
            check(&shared);
        }
        check(&SharedLog::open(folder.path(), 1 << 30).expect("open again"));
    }
}
