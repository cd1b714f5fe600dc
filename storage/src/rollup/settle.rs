//! Settling what a rollup owes: forgotten players are taken out of its cells, as it declares.
//!
//! A rollup that declares `keep` owes nothing. One that declares `subtract` or `recompute` goes on counting a player who was
//! forgotten until that is settled, command by command in their order, and within a command from the oldest bucket of the
//! widest tier to the newest. The mark says how far that is, so that at any moment the rollup counts exactly the events that the
//! mark says (P4): of cells and of what lies behind them alike. Each piece is one batch ([`Piece`]), and whatever a rollup owes
//! stays stored until it is settled.
//!
//! `subtract` folds the player's events alone and takes them out of the cells. `recompute` folds all events of the buckets in
//! which the player has some, but the player's.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use galoo_proto::{record::RollupMark, rollup::Erasure};

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
    let Some((player, time)) = erasures.first_behind(shard.counts.erased()) else { return Ok(None) };
    let from_ms = whole_from(definition, time.events_from_ms);
    let settled = RollupMark { erased_hlc: time.hlc, erased_to_ms: None, ..mark.clone() };
    let cover = |to, changes| Cover::new(definition, view, mark.clone(), to, changes);
    let left = EventFilter {
        time_ms: from_ms.max(mark.erased_to_ms.unwrap_or(i64::MIN))..i64::MAX,
        event_types: definition.event_types.clone(),
        seqs: 0..=mark.seq.min(time.through_seq),
        ..EventFilter::player(player)
    };
    let first = shard.events.player_page(&left, &Column::event(Some(&[])), Direction::Forward, None, 1)?;
    let Some(first_ms) = first.events.first().and_then(|first| first.event.as_ref()).map(|event| event.event_time_ms)
    else {
        return Ok(Some(cover(settled, HashMap::new())));
    };
    let start_ms = bucket_start(first_ms, definition.widest_ms());
    let (mut end_ms, mut folded) = (piece_end(shard, definition, start_ms, piece.cells)?, Partial::default());
    loop {
        let half_ms = half(view, definition, start_ms..end_ms)?;
        // One bucket of the widest tier is settled whatever it takes.
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
    let to = if end_ms == i64::MAX { settled } else { RollupMark { erased_to_ms: Some(end_ms), ..mark.clone() } };
    Ok(Some(cover(to, cells)))
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

/// Where half of a piece ends, at the end of a bucket of the widest tier; `None` when it is one bucket.
fn half(view: &View, definition: &Definition, piece_ms: Range<i64>) -> Result<Option<i64>> {
    let widest_ms = definition.widest_ms();
    let last_ms = view.sources()?.iter().map(|source| source.times().1).max().unwrap_or(piece_ms.start);
    let end_ms = piece_ms.end.min(last_ms.saturating_add(1));
    let first_end_ms = piece_ms.start.saturating_add(widest_ms);
    let middle_ms = bucket_start(piece_ms.start + end_ms.saturating_sub(piece_ms.start) / 2, widest_ms);
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
