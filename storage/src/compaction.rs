//! What becomes of chunks: pure choices, and the workers that carry them out.
//!
//! [`choose`] looks at a shard and says what to do next; it is a function of its arguments alone. Sealing is a command
//! (every replica closes the same chunk at the same log position); building segments is local to a replica, because
//! it changes where events are and not which: [`build_segment`] works from a view, off the thread that applies, and
//! [`commit_segment`] swaps chunks for the segment in one write. Adjacent segments are merged likewise ([`choose_merge`],
//! [`merge_segments`], [`commit_merge`]).

mod erasure;
mod merge;
mod retention;

use std::sync::Arc;

use galoo_proto::{ChunkId, Hlc, Keyspace, SegmentId, Token, record};
use prost::Message;

pub(crate) use self::retention::step_ms;
pub use self::{
    erasure::{choose_erasure, clean, commit_clean},
    merge::{Eagerness, Retired, choose_merge, commit_merge, merge_segments},
    retention::{Expired, choose_expired, commit_drop, covered_seq, events_from, kept},
};
use crate::{
    Error, Result,
    chunk::{EventRow, Run},
    engine::{Direction, Engine, Family, WriteBatch},
    key,
    segment::{SegmentFiles, SegmentWriter, has_file},
    view::{Source, View},
};

/// When chunks are sealed and segments built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// An open chunk of so many bytes is sealed.
    pub seal_bytes: u64,
    /// An open chunk whose first event is so old is sealed, however small.
    pub seal_age_ms: u64,
    /// Adjacent sealed chunks of so many bytes together become a segment.
    pub segment_bytes_min: u64,
    /// Sealed chunks so old become a segment, however small.
    pub segment_age_ms: u64,
    /// A segment takes chunks until it has so many bytes: its builder holds them in memory.
    pub segment_bytes_max: u64,
    /// Adjacent segments are merged until their events had so many bytes in chunks: whoever reads in order of seq holds a
    /// part of them in memory.
    pub merged_bytes_max: u64,
    /// Building segments gives way to everything else until sealed chunks of so many bytes wait for it.
    pub backlog_bytes_max: u64,
    /// State can be read as it was for so long.
    pub history_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            seal_bytes: 16 << 20,
            seal_age_ms: 60_000,
            segment_bytes_min: 4 << 20,
            segment_age_ms: 600_000,
            segment_bytes_max: 32 << 20,
            merged_bytes_max: 256 << 20,
            backlog_bytes_max: 256 << 20,
            history_ms: 600_000,
        }
    }
}

/// What to do next with a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Propose to seal this chunk (on the leader).
    Seal(ChunkId),
    /// Build a segment of the chunks `first..=last`.
    Build {
        /// The first chunk.
        first: ChunkId,
        /// The last chunk.
        last: ChunkId,
        /// Whether what callers wait for comes first.
        gives_way: bool,
    },
}

/// Returns what to do with a shard's open and sealed chunks at `now`, most urgent first.
///
/// `chunks` are the sealed chunks that are in no segment, in order of id.
pub fn choose(policy: &Policy, open: &record::Chunk, chunks: &[record::Chunk], now: Hlc) -> Vec<Choice> {
    let age_ms = |since: u64| now.millis().saturating_sub(Hlc(since).millis());
    let mut choices = Vec::new();
    let empty = open.last_seq < open.first_seq;
    if !empty && (open.bytes >= policy.seal_bytes || age_ms(open.opened_hlc) >= policy.seal_age_ms) {
        choices.push(Choice::Seal(ChunkId(open.id)));
    }
    if let Some(first) = chunks.first() {
        let mut bytes = 0;
        let fits = chunks.iter().take_while(|chunk| {
            bytes += chunk.bytes;
            chunk.id == first.id || bytes <= policy.segment_bytes_max
        });
        let taken: Vec<_> = fits.collect();
        let bytes: u64 = taken.iter().map(|chunk| chunk.bytes).sum();
        if let Some(last) = taken.last()
            && (bytes >= policy.segment_bytes_min || age_ms(first.sealed_hlc) >= policy.segment_age_ms)
        {
            let backlog: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
            let gives_way = backlog <= policy.backlog_bytes_max;
            choices.push(Choice::Build { first: ChunkId(first.id), last: ChunkId(last.id), gives_way });
        }
    }
    choices
}

/// The shortest step of a garbage collection time: each is a command of its own.
const GC_STEP_MS_MIN: u64 = 1_000;

/// The step where nothing changes but that values expire.
const EXPIRY_STEP_MS: u64 = 3_600_000;

/// Returns where to move a shard's garbage collection time (on the leader), if it is to be moved.
///
/// It follows `now` at the distance of the history that is kept, in steps of an eighth of it. A shard whose state nobody
/// changes is left alone once its history is over, but for an hourly step until everything in it has expired that will.
pub fn gc_time(policy: &Policy, state: &record::ShardState, now: Hlc) -> Option<Hlc> {
    let to_ms = now.millis().checked_sub(policy.history_ms)?;
    let step_ms = if state.state_hlc > state.gc_hlc {
        (policy.history_ms / 8).max(GC_STEP_MS_MIN)
    } else if state.expires_hlc > state.gc_hlc {
        EXPIRY_STEP_MS
    } else {
        return None;
    };
    (to_ms >= Hlc(state.gc_hlc).millis() + step_ms).then(|| Hlc::from_millis(to_ms))
}

/// Writes the file of a segment of the chunks `first..=last` of a view and returns its record. Holds them in memory.
///
/// Nothing names the file until [`commit_segment`].
pub fn build_segment(
    view: &View,
    files: &SegmentFiles,
    keyspace: Keyspace,
    first: ChunkId,
    last: ChunkId,
) -> Result<record::Segment> {
    let range = first.0..=last.0;
    let chunks = view.sources()?.iter().filter_map(|source| match source {
        Source::Chunk(chunk) if range.contains(&chunk.id) => Some(ChunkId(chunk.id)),
        _ => None,
    });
    let mut runs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for chunk in chunks {
        let range = key::chunk_rows(keyspace, chunk);
        let mut rows = view.reader().rows(Family::Chunks, &range.start..&range.end, Direction::Forward)?;
        while let Some((key, value)) = rows.next()? {
            runs.push((key.to_vec(), value.to_vec()));
        }
    }
    let mut events = Vec::new();
    for (key, value) in &runs {
        for event in Run::of(key, value)? {
            events.push(event?);
        }
    }
    let mut writer = SegmentWriter::new(&view.declared()?);
    in_order(&events, Token::of, |token, event| writer.push(token, event))?;
    // The first chunk's id names the file: another attempt at the same chunks overwrites what a crash left.
    let id = SegmentId(first.0);
    let record = writer.finish(&files.path(keyspace, id), id)?;
    Ok(record::Segment { first_chunk: first.0, last_chunk: last.0, ..record })
}

/// Gives events, which are in order of seq, in that of a segment: (token, player, event time, seq).
///
/// What an event is lies anywhere in memory. So it is not looked at to be sorted: nearly always a token is of one player.
fn in_order<'e>(
    events: &[EventRow<'e>],
    token: impl Fn(&str) -> Token,
    mut take: impl FnMut(Token, &EventRow<'e>) -> Result<()>,
) -> Result<()> {
    let order = |(place, event): (usize, &EventRow<'_>)| (token(event.player), event.time_ms, place);
    let mut order: Vec<_> = events.iter().enumerate().map(order).collect();
    order.sort_unstable();
    let player = |place: usize| events[place].player;
    for alike in order.chunk_by_mut(|(one, ..), (other, ..)| one == other) {
        let (token, _, first) = alike[0];
        if alike.iter().any(|(.., place)| player(*place) != player(first)) {
            alike.sort_unstable_by_key(|(_, time_ms, place)| (player(*place), *time_ms, *place));
        }
        alike.iter().try_for_each(|(.., place)| take(token, &events[*place]))?;
    }
    Ok(())
}

/// Puts a segment in the place of its chunks, in one write.
///
/// Returns false, and changes nothing, when the chunks are no longer what the segment was built from. Runs on the
/// thread that applies, so that nothing else writes the shard.
pub fn commit_segment(engine: &Arc<dyn Engine>, keyspace: Keyspace, segment: &record::Segment) -> Result<bool> {
    let mut batch = WriteBatch::default();
    let mut rows = 0;
    for id in (segment.first_chunk..=segment.last_chunk).map(ChunkId) {
        let key = key::chunk(keyspace, id);
        let Some(chunk) = engine.get(Family::Meta, &key)? else { return Ok(false) };
        let chunk = record::Chunk::decode(chunk.as_slice()).map_err(|error| Error::row("chunk", error))?;
        rows += chunk.last_seq + 1 - chunk.first_seq;
        batch.delete(Family::Meta, key);
        batch.delete_range(Family::Chunks, key::chunk_rows(keyspace, id));
    }
    assert!(
        rows == segment.rows && segment.last_seq + 1 - segment.first_seq == rows,
        "INV-S5: a segment of {} rows for {rows} events of chunks",
        segment.rows
    );
    batch.put(Family::Meta, key::segment(keyspace, SegmentId(segment.id)), segment.encode_to_vec());
    engine.write(batch)?;
    Ok(true)
}

/// Removes everything that a keyspace holds in the engine; its files follow once that is durable.
pub fn destroy_keyspace(engine: &Arc<dyn Engine>, keyspace: Keyspace) -> Result<()> {
    let mut batch = WriteBatch::default();
    for family in Family::ALL {
        batch.delete_range(family, key::keyspace_range(keyspace));
    }
    engine.write(batch)?;
    engine.flush()
}

/// Returns every keyspace that holds rows. Costs a seek each.
pub fn keyspaces(engine: &dyn Engine) -> Result<std::collections::BTreeSet<Keyspace>> {
    let mut found = std::collections::BTreeSet::new();
    for family in Family::ALL {
        let mut from = Some(0);
        while let Some(start) = from {
            let (start, end) =
                (key::keyspace_range(Keyspace(start)).start, key::keyspace_range(Keyspace(u64::MAX)).end);
            let mut rows = engine.rows(family, &start..&end, Direction::Forward)?;
            let first = rows.next()?.and_then(|(key, _)| key.first_chunk::<8>().copied()).map(u64::from_be_bytes);
            found.extend(first.map(Keyspace));
            from = first.and_then(|keyspace| keyspace.checked_add(1));
        }
    }
    Ok(found)
}

/// Returns the segments whose files rows of the engine name, in any of the keyspaces.
pub fn known_segments(
    engine: &dyn Engine,
    keyspaces: impl IntoIterator<Item = Keyspace>,
) -> Result<std::collections::HashSet<(Keyspace, SegmentId)>> {
    let mut known = std::collections::HashSet::new();
    for keyspace in keyspaces {
        let segments = crate::view::read_segments(engine, keyspace)?;
        known.extend(segments.iter().filter(|one| has_file(one)).map(|one| (keyspace, SegmentId(one.id))));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use galoo_proto::Seq;
    use proptest::prelude::*;

    use super::*;

    fn chunk(id: u64, bytes: u64, sealed_ms: u64) -> record::Chunk {
        record::Chunk {
            id,
            first_seq: id,
            last_seq: id,
            bytes,
            sealed_hlc: Hlc::from_millis(sealed_ms).0,
            ..Default::default()
        }
    }

    fn choices(open_bytes: u64, opened_ms: u64, chunks: &[record::Chunk], now_ms: u64) -> Vec<Choice> {
        let policy = Policy {
            seal_bytes: 100,
            seal_age_ms: 60,
            segment_bytes_min: 50,
            segment_age_ms: 600,
            segment_bytes_max: 150,
            merged_bytes_max: 1_000,
            backlog_bytes_max: 1_000,
            history_ms: 0,
        };
        let open = record::Chunk {
            id: 9,
            first_seq: 9,
            last_seq: 9,
            bytes: open_bytes,
            opened_hlc: Hlc::from_millis(opened_ms).0,
            ..Default::default()
        };
        choose(&policy, &open, chunks, Hlc::from_millis(now_ms))
    }

    #[test]
    fn chunks_are_sealed_by_size_or_age_and_built_in_batches() {
        let build = |first, last| Choice::Build { first: ChunkId(first), last: ChunkId(last), gives_way: true };
        let seal = Choice::Seal(ChunkId(9));
        assert_eq!(choices(99, 0, &[], 59), vec![]);
        assert_eq!(choices(100, 0, &[], 59), vec![seal.clone()]);
        assert_eq!(choices(1, 0, &[], 60), vec![seal]);
        assert_eq!(choices(1, 0, &[chunk(1, 20, 0), chunk(2, 29, 0)], 1), vec![], "too small and too young");
        assert_eq!(choices(1, 0, &[chunk(1, 20, 0), chunk(2, 30, 0)], 1), vec![build(1, 2)]);
        assert_eq!(choices(1, 0, &[chunk(1, 100, 0), chunk(2, 60, 0)], 1), vec![build(1, 1)], "two would be too large");
        assert_eq!(choices(1, 0, &[chunk(1, 900, 0)], 1), vec![build(1, 1)], "one is taken whatever its size");
        assert_eq!(choices(1, 599, &[chunk(1, 1, 0)], 600), vec![build(1, 1)], "old");
        let behind = Choice::Build { first: ChunkId(1), last: ChunkId(1), gives_way: false };
        assert_eq!(choices(1, 0, &[chunk(1, 900, 0), chunk(2, 101, 0)], 1), vec![behind], "too much waits");
    }

    #[test]
    fn garbage_collection_follows_in_steps_and_rests_where_nothing_changes() {
        let policy = Policy { history_ms: 80_000, ..Policy::default() };
        let next = |gc_ms, changed_ms, now_ms| {
            let (gc_hlc, state_hlc) = (Hlc::from_millis(gc_ms).0, Hlc::from_millis(changed_ms).0);
            let state = record::ShardState { gc_hlc, state_hlc, ..Default::default() };
            gc_time(&policy, &state, Hlc::from_millis(now_ms)).map(Hlc::millis)
        };
        assert_eq!(next(0, 5_000, 79_999), None, "younger than its history");
        assert_eq!(next(0, 5_000, 89_999), None, "less than a step");
        assert_eq!(next(0, 5_000, 90_000), Some(10_000));
        assert_eq!(next(10_000, 5_000, 900_000), None, "nothing changed since");
        assert_eq!(next(10_000, 10_001, 900_000), Some(820_000));
        assert_eq!(next(0, 0, 900_000), None, "there is no state");
        let expiring = |now_ms| {
            let expires_hlc = Hlc::from_millis(10_000_000).0;
            let state = record::ShardState { expires_hlc, ..Default::default() };
            gc_time(&policy, &state, Hlc::from_millis(now_ms)).map(Hlc::millis)
        };
        assert_eq!((expiring(3_679_999), expiring(3_680_000)), (None, Some(3_600_000)), "once an hour");
    }

    #[test]
    fn an_empty_chunk_is_never_sealed() {
        let open = record::Chunk { id: 1, first_seq: 1, last_seq: 0, ..Default::default() };
        assert_eq!(choose(&Policy::default(), &open, &[], Hlc::from_millis(1 << 40)), vec![]);
    }

    proptest! {
        /// Players who share a token stand beside each other, each by time.
        #[test]
        fn events_are_put_in_a_segments_order(events in prop::collection::vec((0u8..6, 0i64..4), 0..40)) {
            let names: Vec<_> = events.iter().map(|(player, _)| format!("p{player}")).collect();
            let rows: Vec<_> = (1..).zip(&names).zip(&events).map(|((seq, player), (_, time_ms))| EventRow {
                player, time_ms: *time_ms, seq: Seq(seq), ingest: Hlc(0), event_type: "t", properties: "",
            }).collect();
            let token = |player: &str| Token(u64::from(player.as_bytes()[1] % 2));
            let mut found = Vec::new();
            in_order(&rows, token, |token, row| {
                found.push((token, *row));
                Ok(())
            }).expect("takes all");
            let mut expected: Vec<_> = rows.iter().map(|row| (token(row.player), *row)).collect();
            expected.sort_by_key(|(token, row)| (*token, row.player, row.time_ms, row.seq));
            prop_assert_eq!(found, expected);
        }
    }
}
