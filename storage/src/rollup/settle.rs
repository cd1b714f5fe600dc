//! Settling what a rollup owes: forgotten players are taken out of its cells, as it declares.
//!
//! A rollup that declares `keep` owes nothing. One that declares `subtract` or `recompute` goes on counting a player who was
//! forgotten until that is settled, command by command in their order, and within a command from the oldest events to the
//! newest. The mark says how far that is, so that at any moment the rollup counts exactly the events that the mark says (P4): of
//! cells and of what lies behind them alike. Each piece is one batch ([`Piece`]), and whatever a rollup owes stays stored until
//! it is settled. Replicas settle for themselves: until all have, what a rollup answers about who was forgotten depends on
//! which of them is asked.
//!
//! `subtract` folds the player's events alone and takes them out of the cells; a piece may end anywhere. `recompute` folds all
//! events of the buckets of the widest tier in which the player has some, but the player's; buckets in which there are none are
//! passed over.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use galoo_proto::{Hlc, record::RollupMark, rollup::Erasure};

use super::{
    Definition, bucket_start,
    cell::{Cell, bucket_bytes, bucket_of},
    counted::{Counted, whole_from},
    cover::{Cover, Piece, Stored},
    partial::Partial,
};
use crate::{
    Error, Result,
    engine::{Direction, Family},
    key,
    view::{Column, EventFilter, View},
};

/// Buckets that are made anew in one piece, at most.
const RUN_BUCKETS_MAX: usize = 64;

/// Whether any rollup of a shard owes anything.
pub fn is_owed(view: &View) -> Result<bool> {
    if view.erasures()?.is_empty() {
        return Ok(false);
    }
    for rollup in view.rollups()?.iter().filter(|rollup| rollup.erasure() != Erasure::Keep) {
        let shard = Counted::open(view, &Definition::of_row(rollup)?)?;
        if view.erasures()?.first_behind(shard.counts.erased()).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Works out the next piece of what a rollup owes; `None` when it owes nothing.
pub(super) fn prepare(shard: &Counted, definition: &Definition, piece: &Piece) -> Result<Option<Cover>> {
    if definition.erasure == Erasure::Keep {
        return Ok(None);
    }
    let (view, mark) = (&shard.view, &shard.mark);
    let erasures = view.erasures()?;
    let cover = |to, changes| Cover::new(definition, view, mark.clone(), to, changes);
    let mut settled = mark.clone();
    let mut behind = shard.counts.erased();
    // Commands that leave nothing to take out are settled together.
    let (left, first_ms, time) = loop {
        let Some((player, time)) = erasures.first_behind(behind) else {
            return Ok((settled != *mark).then(|| cover(settled, HashMap::new())));
        };
        let from_ms = whole_from(definition, time.events_from_ms);
        let left = EventFilter {
            time_ms: from_ms.max(settled.erased_to_ms.unwrap_or(i64::MIN))..i64::MAX,
            event_types: definition.event_types.clone(),
            seqs: 0..=mark.seq.min(time.through_seq),
            ..EventFilter::player(player)
        };
        match first_of(shard, &left)? {
            Some(_) if settled != *mark => return Ok(Some(cover(settled, HashMap::new()))),
            Some(first_ms) => break (left, first_ms, time),
            None => settled = RollupMark { erased_hlc: time.hlc, erased_to_ms: None, ..settled },
        }
        behind = Hlc(time.hlc);
    };
    let unit_ms = match definition.erasure {
        Erasure::Recompute => definition.widest_ms(),
        Erasure::Keep | Erasure::Subtract => 1,
    };
    let start_ms = bucket_start(first_ms, unit_ms);
    let mut end_ms = match definition.erasure {
        Erasure::Recompute => {
            piece_end(shard, definition, start_ms, piece.cells)?.min(run_end(shard, &left, start_ms, unit_ms)?)
        }
        Erasure::Keep | Erasure::Subtract => i64::MAX,
    };
    let mut folded = Partial::default();
    loop {
        let half_ms = half(view, unit_ms, start_ms..end_ms)?;
        // One bucket of the widest tier, or one millisecond, is settled whatever it takes.
        let bytes_max = if half_ms.is_some() { piece.bytes } else { usize::MAX };
        let fits = match definition.erasure {
            Erasure::Recompute => {
                let others = Counted::events(view, definition, &shard.counts.with_erased_to(end_ms))?;
                let filter = EventFilter { time_ms: start_ms..end_ms, seqs: 0..=mark.seq, ..EventFilter::default() };
                fold(&mut folded, &others, definition, &filter, bytes_max)?
            }
            _ => {
                let filter = EventFilter { time_ms: first_ms..end_ms, ..left.clone() };
                fold(&mut folded, &shard.events, definition, &filter, bytes_max)?
            }
        };
        match half_ms.filter(|_| !fits) {
            Some(half_ms) => (end_ms, folded) = (half_ms, Partial::default()),
            None => break,
        }
    }
    let mut cells = HashMap::new();
    match definition.erasure {
        Erasure::Keep => {}
        Erasure::Subtract => {
            for (tier, stored, partial) in tiers(view, definition, &folded) {
                for (place, out) in partial.cells().filter(|(place, _)| shard.keeps(tier, place)) {
                    let known = stored.cell(place)?;
                    let rest = known.map(|mut cell| cell.subtract(out).then_some(cell)).unwrap_or_default();
                    let rest = rest.ok_or_else(|| Error::row("rollup cell", "holds less than is to be taken out"))?;
                    cells.insert(stored.key(place), Some(rest).filter(|cell| cell.events > 0));
                }
            }
        }
        Erasure::Recompute => {
            for (tier, stored, partial) in tiers(view, definition, &folded) {
                for place in stored.places_between(start_ms, end_ms)? {
                    cells.insert(stored.key(&place), None);
                }
                let kept = partial.cells().filter(|(place, _)| shard.keeps(tier, place));
                cells.extend(kept.map(|(place, cell)| (stored.key(place), Some(cell.clone()))));
            }
        }
    }
    let behind = EventFilter { time_ms: end_ms..i64::MAX, ..left };
    let next_ms = if end_ms == i64::MAX { None } else { first_of(shard, &behind)? };
    let to = match next_ms {
        Some(next_ms) => RollupMark { erased_to_ms: Some(bucket_start(next_ms, unit_ms)), ..mark.clone() },
        None => RollupMark { erased_hlc: time.hlc, erased_to_ms: None, ..mark.clone() },
    };
    Ok(Some(cover(to, cells)))
}

/// The time of the first event that passes a player's filter.
fn first_of(shard: &Counted, filter: &EventFilter) -> Result<Option<i64>> {
    let page = shard.events.player_page(filter, &Column::event(Some(&[])), Direction::Forward, None, 1)?;
    Ok(page.events.first().and_then(|first| first.event.as_ref()).map(|event| event.event_time_ms))
}

/// The end of the buckets without a gap, from one on, in which a player has events; or of some of them, if they are many.
fn run_end(shard: &Counted, left: &EventFilter, start_ms: i64, bucket_ms: i64) -> Result<i64> {
    let mut end_ms = start_ms.saturating_add(bucket_ms);
    for _ in 1..RUN_BUCKETS_MAX {
        let next = EventFilter { time_ms: end_ms..end_ms.saturating_add(bucket_ms), ..left.clone() };
        if first_of(shard, &next)?.is_none() {
            break;
        }
        end_ms = next.time_ms.end;
    }
    Ok(end_ms)
}

/// Adds the events that pass a filter; returns false, with some missing, when the cells take more than `bytes_max`.
fn fold(
    folded: &mut Partial,
    events: &View,
    definition: &Definition,
    filter: &EventFilter,
    bytes_max: usize,
) -> Result<bool> {
    for source in events.sources()?.iter().filter(|source| source.first_seq().0 <= *filter.seqs.end()) {
        if !folded.fold(definition, events, source, filter.clone(), bytes_max)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where half of a piece ends, at the end of a bucket; `None` when it is one bucket.
fn half(view: &View, bucket_ms: i64, piece_ms: Range<i64>) -> Result<Option<i64>> {
    let last_ms = view.sources()?.iter().map(|source| source.times().1).max().unwrap_or(piece_ms.start);
    let end_ms = piece_ms.end.min(last_ms.saturating_add(1));
    let first_end_ms = piece_ms.start.saturating_add(bucket_ms);
    let middle_ms = bucket_start(piece_ms.start + end_ms.saturating_sub(piece_ms.start) / 2, bucket_ms);
    Ok((end_ms > first_end_ms).then(|| middle_ms.max(first_end_ms)))
}

/// The stored cells of each tier, and the cells of a partial in its buckets.
fn tiers<'a>(
    view: &'a View,
    definition: &'a Definition,
    partial: &'a Partial,
) -> impl Iterator<Item = (usize, Stored<'a>, Cow<'a, Partial>)> {
    let tiers = 0..definition.tiers.len();
    tiers.map(move |tier| (tier, Stored::of(view, definition, tier), partial.of_tier(definition, tier)))
}

/// Where a piece that begins with a bucket of the widest tier ends: before one, or at the end of time.
///
/// Cells are counted in the narrowest tier that keeps them.
fn piece_end(shard: &Counted, definition: &Definition, start_ms: i64, piece_cells: usize) -> Result<i64> {
    let keeps = |tier: &usize| shard.kept_from[*tier].is_none_or(|from_ms| from_ms <= start_ms);
    let tier = (0..definition.tiers.len()).find(keeps).unwrap_or(definition.tiers.len() - 1);
    let (view, range) = (&shard.view, definition.cells(shard.view.keyspace(), tier));
    let from = [range.start.as_slice(), &[0; 8], &bucket_bytes(start_ms)].concat();
    let mut rows = view.reader().rows(Family::Rollups, from.as_slice()..&range.end, Direction::Forward)?;
    let mut cells = 0;
    while let Some((key, _)) = rows.next()? {
        cells += 1;
        if cells <= piece_cells {
            continue;
        }
        let bucket = bucket_of(&key[key::ROLLUP_CELL_PREFIX_BYTES..]);
        let bucket = bucket.ok_or_else(|| Error::row("rollup cell key", "malformed"))?;
        let end_ms = bucket_start(bucket, definition.widest_ms());
        if end_ms > start_ms {
            return Ok(end_ms);
        }
    }
    Ok(i64::MAX)
}

/// Cells to write by key, or nothing where one goes.
pub(super) type Changes = HashMap<Vec<u8>, Option<Cell>>;
