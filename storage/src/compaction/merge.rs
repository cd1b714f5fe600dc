//! Adjacent segments become one: chosen by size, made beside everything else, put in their place in one write.
//!
//! The files of what was merged stay until no crash and no living snapshot can lead back to them ([`Retired`]).

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use galoo_proto::{Keyspace, SegmentId, record};
use prost::Message;

use super::Policy;
use crate::{
    Result,
    engine::{Engine, Family, WriteBatch},
    key,
    segment::{Kept, SegmentFiles, Step, has_file, merge},
};

/// So many adjacent segments of a size are merged, so that an event is written again once for each eightfold growth.
const FAN_IN: usize = 8;
/// Segments that one merge reads at most: a batch of each is in memory.
const INPUTS_MAX: usize = 64;
/// Bits of a segment's id that its first chunk has; those above count how often its events were merged.
const CHUNK_BITS: u32 = 48;

/// Which segments a merge takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eagerness {
    /// Those of which there are many.
    WhenMany,
    /// All that make a larger one.
    Always,
}

/// Returns the places of the segments to merge next, if any. `segments` are a shard's, in order of seq.
pub fn choose_merge(policy: &Policy, segments: &[record::Segment], eagerness: Eagerness) -> Option<Range<usize>> {
    let most = policy.merged_bytes_max;
    // From `start` on, as many as fit together and are each smaller than `below`. Those without a file come along.
    let run = |start: usize, below: u64| {
        let mut bytes = 0;
        let fits = segments[start..].iter().take(INPUTS_MAX).take_while(|segment| {
            bytes += segment.event_bytes;
            segment.event_bytes < below && bytes <= most
        });
        start..start + fits.count()
    };
    let (sizes, least) = match eagerness {
        Eagerness::Always => (vec![most], 2),
        Eagerness::WhenMany => {
            let smaller = |size: &u64| Some(size / FAN_IN as u64).filter(|size| *size >= policy.segment_bytes_min);
            let mut sizes: Vec<_> = std::iter::successors(Some(most), smaller).collect();
            sizes.reverse();
            (sizes, FAN_IN)
        }
    };
    let runs = sizes.iter().flat_map(|below| (0..segments.len()).map(|start| run(start, *below)));
    runs.into_iter().find(|run| segments[run.clone()].iter().filter(|segment| has_file(segment)).count() >= least)
}

/// Returns the id of the segment that these are merged into: it is of no other one, ever.
fn merged_id(segments: &[record::Segment]) -> Option<SegmentId> {
    let merges = segments.iter().map(|segment| segment.id >> CHUNK_BITS).max()? + 1;
    let first = segments.first()?.first_chunk;
    (merges < 1 << (u64::BITS - CHUNK_BITS)).then_some(SegmentId(merges << CHUNK_BITS | first))
}

/// Writes the file of a segment that holds what is kept of adjacent segments, and returns its record; `None` when `pace`,
/// which is asked between batches, cancels it.
///
/// Nothing names the file until [`commit_merge`]. There is none when no event is left.
pub fn merge_segments(
    files: &SegmentFiles,
    keyspace: Keyspace,
    segments: &[record::Segment],
    kept: &Kept,
    pace: &mut dyn FnMut() -> Step,
) -> Result<Option<record::Segment>> {
    let Some(id) = merged_id(segments) else { return Ok(None) };
    let mut inputs = Vec::with_capacity(segments.len());
    for segment in segments {
        // Opened anew: what was checked long ago is checked again before its file goes.
        let file = has_file(segment).then(|| files.open_anew(keyspace, segment)).transpose()?;
        inputs.push((segment.clone(), file));
    }
    merge(&inputs, &files.path(keyspace, id), id, kept, pace)
}

/// Puts a segment in the place of those that it was merged from, in one write.
///
/// Returns false, and changes nothing, when they are not there any more. Runs on the thread that applies, so that nothing
/// else writes the shard.
pub fn commit_merge(
    engine: &Arc<dyn Engine>,
    keyspace: Keyspace,
    segments: &[record::Segment],
    merged: &record::Segment,
) -> Result<bool> {
    let mut batch = WriteBatch::default();
    let mut next = merged.first_seq;
    for segment in segments {
        let key = key::segment(keyspace, SegmentId(segment.id));
        if engine.get(Family::Meta, &key)? != Some(segment.encode_to_vec()) {
            return Ok(false);
        }
        assert!(segment.first_seq == next, "INV-S5: a segment from #{} on where #{next} comes", segment.first_seq);
        next = segment.last_seq + 1;
        batch.delete(Family::Meta, key);
    }
    let (rows, span) = (merged.rows + merged.gone, next - merged.first_seq);
    assert!(rows == span && next == merged.last_seq + 1, "INV-S5: {rows} events of {span}");
    batch.put(Family::Meta, key::segment(keyspace, SegmentId(merged.id)), merged.encode_to_vec());
    engine.write(batch)?;
    Ok(true)
}

/// Bytes of retired files that make a flush worth its while, so that they can go.
const FLUSH_BYTES: u64 = 256 << 20;
/// How long retired files wait for somebody else's flush.
const FLUSH_DELAY: Duration = Duration::from_secs(60);

/// Files that no row names any more.
#[derive(Debug, Default)]
pub struct Retired {
    files: Vec<RetiredFile>,
}

#[derive(Debug)]
struct RetiredFile {
    keyspace: Keyspace,
    segment: SegmentId,
    bytes: u64,
    /// Snapshots before it may name the file.
    mark: u64,
    since: Instant,
    /// That no row names the file survives a crash.
    flushed: bool,
}

impl Retired {
    /// Takes the files of segments whose rows were just removed.
    pub fn add(&mut self, engine: &dyn Engine, keyspace: Keyspace, segments: &[record::Segment], now: Instant) {
        let mark = engine.snapshot_mark();
        self.files.extend(segments.iter().filter(|segment| has_file(segment)).map(|segment| RetiredFile {
            keyspace,
            segment: SegmentId(segment.id),
            bytes: segment.file_bytes,
            mark,
            since: now,
            flushed: false,
        }));
    }

    /// Files that wait.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Whether no file waits.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether the engine should be flushed, so that files can go.
    pub fn wants_flush(&self, now: Instant) -> bool {
        let unflushed = || self.files.iter().filter(|file| !file.flushed);
        let bytes: u64 = unflushed().map(|file| file.bytes).sum();
        bytes >= FLUSH_BYTES || unflushed().any(|file| now.duration_since(file.since) >= FLUSH_DELAY)
    }

    /// A flush of the engine has ended that began when so many files waited.
    ///
    /// What is persisted of a single row does not tell: a flush that is under way may still bring back an older one.
    pub fn flushed(&mut self, count: usize) {
        self.files.iter_mut().take(count).for_each(|file| file.flushed = true);
    }

    /// Removes the files that no crash and no living snapshot leads back to; returns how many.
    pub fn sweep(&mut self, engine: &dyn Engine, files: &SegmentFiles) -> Result<usize> {
        let before = self.files.len();
        let mut left = Vec::new();
        for file in std::mem::take(&mut self.files) {
            if file.flushed && !engine.has_snapshot_before(file.mark) {
                files.remove(file.keyspace, file.segment)?;
            } else {
                left.push(file);
            }
        }
        self.files = left;
        Ok(before - self.files.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(bytes: &[u64], eagerness: Eagerness) -> Option<Range<usize>> {
        let policy = Policy { segment_bytes_min: 4, merged_bytes_max: 256, ..Policy::default() };
        let segments: Vec<_> = bytes
            .iter()
            .map(|bytes| record::Segment { rows: *bytes, event_bytes: *bytes, ..Default::default() })
            .collect();
        choose_merge(&policy, &segments, eagerness)
    }

    #[test]
    fn eight_neighbours_of_a_size_are_merged() {
        let when_many = |bytes: &[u64]| chosen(bytes, Eagerness::WhenMany);
        assert_eq!(when_many(&[]), None);
        assert_eq!(when_many(&[1; 7]), None);
        assert_eq!(when_many(&[1; 8]), Some(0..8));
        assert_eq!(when_many(&[&[200, 200][..], &[3; 9]].concat()), Some(2..11), "the large ones stay");
        assert_eq!(when_many(&[&[3; 4][..], &[200], &[3; 4]].concat()), Some(0..9), "or are written again with many");
        assert_eq!(when_many(&[&[3; 4][..], &[256], &[3; 4]].concat()), None, "a full one never is");
        assert_eq!(when_many(&[&[31; 8][..], &[3; 8]].concat()), Some(8..16), "small ones first");
        assert_eq!(when_many(&[31; 8]), Some(0..8));
        assert_eq!(when_many(&[33; 8]), None, "too many bytes");
        assert_eq!(when_many(&[1; 100]), Some(0..64));
    }

    #[test]
    fn always_merges_whatever_fits_together() {
        let always = |bytes: &[u64]| chosen(bytes, Eagerness::Always);
        assert_eq!(always(&[100]), None);
        assert_eq!(always(&[100, 156]), Some(0..2));
        assert_eq!(always(&[100, 157, 99, 100]), Some(1..3));
        assert_eq!(always(&[256, 1, 256]), None);
        assert_eq!(always(&[100, 0]), None, "where nothing is left there is nothing to merge");
        assert_eq!(always(&[0, 100, 0, 100]), Some(0..4));
    }

    #[test]
    fn a_merged_segment_has_an_id_of_its_own() {
        let segment = |id, first_chunk| record::Segment { id, first_chunk, ..Default::default() };
        let once = merged_id(&[segment(3, 3), segment(7, 7)]).expect("fits");
        let twice = merged_id(&[segment(once.0, 3), segment(9, 9)]).expect("fits");
        assert_eq!((once.0, twice.0), ((1 << 48) + 3, (2 << 48) + 3));
        assert_eq!(merged_id(&[segment(0xffff << 48, 3)]), None);
    }
}
