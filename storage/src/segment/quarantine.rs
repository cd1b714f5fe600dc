//! Files that were found damaged: they are not read again, whoever found it and whatever was checked before.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

use galoo_proto::{Keyspace, SegmentId};

use crate::Error;

/// The damaged segments of a node.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<BTreeMap<(Keyspace, SegmentId), Damage>>);

/// A segment that is not read any more.
#[derive(Debug)]
pub struct DamagedSegment {
    /// The keyspace that it belongs to.
    pub keyspace: Keyspace,
    /// The segment.
    pub segment: SegmentId,
    /// Events that cannot be read here.
    pub seqs: RangeInclusive<u64>,
    /// What was found, with file and offset.
    pub error: Error,
}

/// What is wrong with a file.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) path: PathBuf,
    /// The events in it.
    pub(super) seqs: RangeInclusive<u64>,
    /// The first byte of the block that is not what was written.
    pub(super) offset: u64,
    pub(super) reason: String,
}

impl Damage {
    pub(super) fn error(&self) -> Error {
        let Self { path, offset, reason, .. } = self.clone();
        Error::CorruptFile { what: "segment", path, offset, reason }
    }
}

impl Quarantine {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Keyspace, SegmentId), Damage>> {
        self.0.lock().expect("nobody panics with the damaged segments in hand")
    }

    /// Takes a segment in and returns the error that says why; of one that is in already the first.
    pub(super) fn put(&self, keyspace: Keyspace, segment: SegmentId, damage: Damage) -> Error {
        self.lock().entry((keyspace, segment)).or_insert(damage).error()
    }

    /// Why a segment is not read, if it is not.
    pub(super) fn error(&self, keyspace: Keyspace, segment: SegmentId) -> Option<Error> {
        self.lock().get(&(keyspace, segment)).map(Damage::error)
    }

    /// All that are in.
    pub(super) fn all(&self) -> Vec<DamagedSegment> {
        let all = self.lock();
        let told = all.iter().map(|((keyspace, segment), damage)| DamagedSegment {
            keyspace: *keyspace,
            segment: *segment,
            seqs: damage.seqs.clone(),
            error: damage.error(),
        });
        told.collect()
    }

    /// Lets go of the segments that are not `kept`: their files are gone.
    pub(super) fn retain(&self, kept: impl Fn(Keyspace, SegmentId) -> bool) {
        self.lock().retain(|(keyspace, segment), _| kept(*keyspace, *segment));
    }
}
