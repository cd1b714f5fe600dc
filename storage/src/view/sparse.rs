//! Where reads pass many rows that nobody can read any more.
//!
//! Such rows go when the engine rewrites the file that they are in, which may be long after: a row in which cells come and
//! go all the time is read slower and slower until then. So a read that passed many of them says where, and whoever looks
//! after the engine has that range rewritten.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Mutex, MutexGuard},
};

/// Rows that a read passes before it says so.
pub(super) const SPARSE_ROWS_MIN: usize = 1_000;
/// Ranges that are kept; a further one is said again by a later read.
const RANGES_MAX: usize = 64;

/// Key ranges of the cell family that are worth rewriting.
#[derive(Debug, Default)]
pub struct SparseRanges(Mutex<VecDeque<Range<Vec<u8>>>>);

impl SparseRanges {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Range<Vec<u8>>>> {
        self.0.lock().expect("nobody panics with the ranges in hand")
    }

    pub(super) fn add(&self, range: Range<Vec<u8>>) {
        let mut ranges = self.lock();
        if ranges.len() < RANGES_MAX && !ranges.contains(&range) {
            ranges.push_back(range);
        }
    }

    /// Takes the range that was said first.
    pub fn take(&self) -> Option<Range<Vec<u8>>> {
        self.lock().pop_front()
    }
}
