//! Retention: events before a time are not read any more, and what holds nothing else goes.
//!
//! The time moves by command ([`events_from`], on the leader), and all replicas stop reading at the same place of the log.
//! Each then lets go of what it holds when it likes: a chunk or segment whose every event is too old goes as a whole
//! ([`commit_drop`]), one of which much is too old is written anew without that, and merges leave it out. What a rollup has
//! not covered stays until it has. A record of what went stays in the place of its sequence numbers, without a file, so that
//! none is missing unnoticed (INV-S4).

use std::{ops::Range, sync::Arc};

use galoo_proto::{ChunkId, Hlc, RollupId, SegmentId, Seq, record};
use prost::Message;

use crate::{
    Result,
    engine::{Engine, Family, WriteBatch},
    key,
    rollup::{mark, settle},
    segment::{FORMAT_VERSION, Kept},
    view::{Source, View},
};

/// The shortest step of the time before which events are dropped: each is a command of its own.
const STEP_MS_MIN: u64 = 1_000;
/// The longest.
const STEP_MS_MAX: u64 = 3_600_000;

/// Returns the time from which on a shard's events are to be read, if it is to be moved (on the leader).
///
/// It follows `now` at the distance of `retention_ms`, in steps of a hundredth of that, while there are events before it.
pub fn events_from(retention_ms: u64, view: &View, now: Hlc) -> Result<Option<i64>> {
    let sources = view.sources()?.iter().filter(|source| source.rows() > 0);
    let oldest_ms = sources.map(|source| source.times().0).min();
    Ok(next_from(retention_ms, view.state().events_from_ms, oldest_ms, now))
}

/// How far the time moves at least.
pub(crate) fn step_ms(retention_ms: u64) -> i64 {
    (retention_ms / 100).clamp(STEP_MS_MIN, STEP_MS_MAX).cast_signed()
}

fn next_from(retention_ms: u64, from_ms: i64, oldest_ms: Option<i64>, now: Hlc) -> Option<i64> {
    let to_ms = i64::try_from(now.millis().checked_sub(retention_ms)?).ok()?;
    let step_ms = step_ms(retention_ms);
    (to_ms >= from_ms.saturating_add(step_ms) && oldest_ms? < to_ms).then_some(to_ms)
}

/// Returns the seq up to which every rollup of the shard holds its events in cells; 0 while one owes that a forgotten player
/// is taken out, for which the events are needed.
pub fn covered_seq(view: &View) -> Result<u64> {
    if settle::is_owed(view)? {
        return Ok(0);
    }
    let mut covered = u64::MAX;
    for one in view.rollups()? {
        covered = covered.min(mark::of(view, RollupId(one.id))?.seq);
    }
    Ok(covered)
}

/// Returns what of a shard's segments up to a seq is to be written anew: everything that is read, or that a rollup lacks.
pub fn kept(view: &View, through: Seq) -> Result<Kept> {
    if through.0 > covered_seq(view)? {
        return Ok(Kept::ALL);
    }
    Ok(Kept { from_ms: view.state().events_from_ms, hidden: Some((view.erased(), view.erasures()?)) })
}

/// What to do about events that are not read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expired {
    /// Drop these sources: none of their events is read.
    Drop(Range<usize>),
    /// Write this segment anew: much of it is not read.
    Rewrite(Arc<record::Segment>),
}

/// Returns what to do next about the events before `from_ms`, if anything. `sources` are a shard's without its open chunk, in
/// order of seq; what lies behind `covered_seq` is still to be counted by a rollup. `now_ms` is the shard's time: events of a
/// later time do not make what came with them any younger.
///
/// A chunk behind one that is read waits until they are a segment: segments are built of adjacent chunks, and merged with
/// adjacent segments, so that nothing that went may come between chunks.
pub fn choose_expired(sources: &[Source], from_ms: i64, covered_seq: u64, now_ms: i64) -> Option<Expired> {
    let is_read = |source: &Source| source.last_seq().0 > covered_seq || source.times().1 >= from_ms;
    let first_read = sources.iter().position(|source| matches!(source, Source::Chunk(_)) && is_read(source));
    let sources = &sources[..first_read.unwrap_or(sources.len())];
    let is_counted = |source: &Source| source.last_seq().0 <= covered_seq;
    let is_gone = |source: &Source| source.rows() == 0;
    let is_old = |source: &Source| is_counted(source) && source.times().1 < from_ms;
    if let Some(first) = sources.iter().position(|source| is_old(source) && !is_gone(source)) {
        let mut taken = first..first + 1;
        while taken.start > 0 && (is_gone(&sources[taken.start - 1]) || is_old(&sources[taken.start - 1])) {
            taken.start -= 1;
        }
        while sources.get(taken.end).is_some_and(|source| is_gone(source) || is_old(source)) {
            taken.end += 1;
        }
        return Some(Expired::Drop(taken));
    }
    let half_old = |source: &Source| {
        let Source::Segment(segment) = source else { return None };
        let (first, last) = source.times();
        // As if events were spread evenly over its time.
        let half = first.saturating_add(last.min(now_ms).saturating_sub(first) / 2);
        let is_half_old = !is_gone(source) && is_counted(source) && first < from_ms && half < from_ms;
        is_half_old.then(|| Expired::Rewrite(segment.clone()))
    };
    sources.iter().find_map(half_old)
}

/// Puts a record of what went in the place of adjacent sources, in one write, and returns the segments whose files nothing
/// names any more; `None`, and nothing is changed, when the sources are not there any more.
///
/// Runs on the thread that applies, so that nothing else writes the shard.
pub fn commit_drop(engine: &Arc<dyn Engine>, view: &View, sources: &[Source]) -> Result<Option<Vec<record::Segment>>> {
    let keyspace = view.keyspace();
    let (mut batch, mut segments) = (WriteBatch::default(), Vec::new());
    let mut gone = record::Segment { version: FORMAT_VERSION, ..Default::default() };
    for source in sources {
        let (key, row, chunks) = match source {
            Source::Chunk(chunk) => {
                let id = ChunkId(chunk.id);
                batch.delete_range(Family::Chunks, key::chunk_rows(keyspace, id));
                (key::chunk(keyspace, id), chunk.encode_to_vec(), (chunk.id, chunk.id))
            }
            Source::Segment(segment) => {
                segments.push(record::Segment::clone(segment));
                let id = SegmentId(segment.id);
                (key::segment(keyspace, id), segment.encode_to_vec(), (segment.first_chunk, segment.last_chunk))
            }
        };
        if engine.get(Family::Meta, &key)? != Some(row) {
            return Ok(None);
        }
        batch.delete(Family::Meta, key);
        if gone.gone == 0 {
            (gone.first_chunk, gone.first_seq) = (chunks.0, source.first_seq().0);
            gone.id = if let Source::Segment(segment) = source { segment.id } else { chunks.0 };
        }
        (gone.last_chunk, gone.last_seq) = (chunks.1, source.last_seq().0);
        gone.gone += source.rows() + source.gone();
    }
    let span = gone.last_seq + 1 - gone.first_seq;
    assert!(gone.gone == span, "INV-S5: {} events dropped of {span}", gone.gone);
    batch.put(Family::Meta, key::segment(keyspace, SegmentId(gone.id)), gone.encode_to_vec());
    engine.write(batch)?;
    segments.retain(crate::segment::has_file);
    Ok(Some(segments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_dropped_in_steps_and_only_while_there_are_some() {
        let next = |from_ms, oldest_ms, now_ms| next_from(1_000_000, from_ms, oldest_ms, Hlc::from_millis(now_ms));
        assert_eq!(next(0, Some(5), 999_999), None, "younger than its retention");
        assert_eq!(next(0, Some(5), 1_009_999), None, "less than a hundredth of it");
        assert_eq!(next(0, Some(5), 1_010_000), Some(10_000));
        assert_eq!(next(0, Some(10_000), 1_010_000), None, "nothing is old enough");
        assert_eq!(next(0, None, 1_010_000), None, "nothing is there");
        assert_eq!(next(10_000, Some(5), 1_019_999), None);
        assert_eq!(next(10_000, Some(5), 1_020_000), Some(20_000));
    }

    fn segment(seqs: Range<u64>, rows: u64, time_min_ms: i64, time_max_ms: i64) -> Source {
        let span = seqs.end - seqs.start;
        Source::Segment(Arc::new(record::Segment {
            first_seq: seqs.start,
            last_seq: seqs.end - 1,
            rows,
            gone: span - rows,
            time_min_ms,
            time_max_ms,
            ..Default::default()
        }))
    }

    #[test]
    fn what_is_too_old_goes_with_its_neighbours_once_rollups_hold_it() {
        let gone = segment(1..5, 0, 0, 9);
        let sources = [gone.clone(), segment(5..7, 2, 3, 9), segment(7..9, 2, 0, 8), segment(9..11, 2, 5, 20), gone];
        let choose = |from_ms, covered| choose_expired(&sources, from_ms, covered, i64::MAX);
        let rewrite = |place: usize| match &sources[place] {
            Source::Segment(segment) => Some(Expired::Rewrite(segment.clone())),
            Source::Chunk(_) => None,
        };
        assert_eq!(choose(8, u64::MAX), rewrite(1), "most of it is too old");
        assert_eq!(choose(6, u64::MAX), rewrite(2), "half of another's time is not over");
        assert_eq!(choose(9, u64::MAX), Some(Expired::Drop(2..3)));
        assert_eq!(choose(10, u64::MAX), Some(Expired::Drop(0..3)), "with those that went before");
        assert_eq!(choose(10, 7), Some(Expired::Drop(0..2)), "a rollup lacks the others");
        assert_eq!(choose(10, 5), None);
        assert_eq!(choose(0, u64::MAX), None);
        assert_eq!(choose(21, u64::MAX), Some(Expired::Drop(0..5)));
        assert_eq!(choose_expired(&sources[..1], 100, u64::MAX, i64::MAX), None, "nothing is left to drop");
    }

    /// One event of a clock that is wrong does not keep a file's others for ever.
    #[test]
    fn an_event_of_the_future_makes_nothing_younger() {
        let sources = [segment(1..9, 8, 0, 1_000_000)];
        assert_eq!(choose_expired(&sources, 50, u64::MAX, i64::MAX), None);
        assert!(matches!(choose_expired(&sources, 51, u64::MAX, 100), Some(Expired::Rewrite(_))));
        assert_eq!(choose_expired(&sources, 50, u64::MAX, 100), None, "half of its time is not over");
    }

    /// A chunk that went between two others could be in no segment with either, nor be merged past them.
    #[test]
    fn nothing_goes_from_between_chunks() {
        let chunk = |id: u64, time_max_ms| {
            Source::Chunk(record::Chunk { id, first_seq: id, last_seq: id, time_max_ms, ..Default::default() })
        };
        let old = segment(1..2, 1, 0, 5);
        let sources = [old, chunk(2, 5), chunk(3, 20), chunk(4, 5)];
        assert_eq!(choose_expired(&sources, 10, u64::MAX, 100), Some(Expired::Drop(0..2)));
        assert_eq!(choose_expired(&sources[2..], 10, u64::MAX, 100), None);
        assert_eq!(choose_expired(&sources[1..], 10, 1, 100), None, "a rollup lacks the first");
        assert_eq!(choose_expired(&sources, 30, u64::MAX, 100), Some(Expired::Drop(0..4)));
    }
}
