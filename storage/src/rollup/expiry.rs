//! Retention of tiers: buckets that began too long ago are not read any more, and their cells go.
//!
//! The first bucket that is kept moves by command ([`cuts`], on the leader), so that all replicas stop reading older ones at the
//! same place of the log; a read over several shards begins where all of them do. Cells go with the command, as one range,
//! except where they follow players: there each replica looks for them ([`sweep`]) player by player. Events of an earlier
//! bucket that are covered later are left out of the tier.

use std::{collections::HashMap, ops::Range};

use galoo_proto::{
    Hlc, Keyspace, RollupId, Token,
    command::DropBuckets,
    record::{RollupMark, rollup_mark},
};

use super::{
    Definition, bucket_start,
    cell::{bucket_bytes, bucket_of},
    counted::Counted,
    cover::{Cover, Stored},
};
use crate::{
    Error, Result,
    compaction::step_ms,
    engine::{Direction, Family},
    key,
    view::View,
};

/// Returns which buckets of a shard's rollups are to be dropped (on the leader).
///
/// The first bucket that is kept follows `now` at the distance of the tier's retention, in steps of at least a hundredth of
/// that, while there are buckets before it.
pub fn cuts(view: &View, now: Hlc) -> Result<Vec<DropBuckets>> {
    let mut cuts = Vec::new();
    for rollup in view.rollups()?.iter().filter(|rollup| rollup.tiers.iter().any(|tier| tier.retention_ms > 0)) {
        let definition = Definition::of_row(rollup)?;
        for (place, tier) in rollup.tiers.iter().enumerate().filter(|(_, tier)| tier.retention_ms > 0) {
            let Some(to_ms) = kept_from(now, tier.retention_ms, tier.bucket_ms) else { continue };
            let step_ms = step_ms(tier.retention_ms);
            if to_ms >= tier.from_ms.map_or(i64::MIN, |from_ms| from_ms.saturating_add(step_ms))
                && oldest(view, &definition, place)?.is_some_and(|oldest| oldest < to_ms)
            {
                cuts.push(DropBuckets { rollup: rollup.id, tier: place as u32, before_ms: to_ms });
            }
        }
    }
    Ok(cuts)
}

/// The first bucket that a tier keeps at a time.
pub(crate) fn kept_from(now: Hlc, retention_ms: u64, bucket_ms: i64) -> Option<i64> {
    let from_ms = i64::try_from(now.millis().checked_sub(retention_ms)?).ok()?;
    Some(bucket_start(from_ms, bucket_ms))
}

/// Keys of a tier's cells in the buckets before one, but for those that follow players.
pub(crate) fn cells_before(keyspace: Keyspace, rollup: RollupId, tier: u32, bucket_ms: i64) -> Range<Vec<u8>> {
    // A rollup has at most `ROLLUP_TIERS_MAX` tiers.
    let start = key::rollup_tier(keyspace, rollup, tier as u8).start;
    let end = [start.as_slice(), &[0; 8], &bucket_bytes(bucket_ms)].concat();
    start..end
}

/// The first bucket of which a tier has cells: each has a sum, and sums come before what follows players.
fn oldest(view: &View, definition: &Definition, tier: usize) -> Result<Option<i64>> {
    let range = definition.cells(view.keyspace(), tier);
    let mut rows = view.reader().rows(Family::Rollups, &range.start..&range.end, Direction::Forward)?;
    Ok(rows.next()?.and_then(|(key, _)| bucket_of(&key[key::ROLLUP_CELL_PREFIX_BYTES..])))
}

/// Works out which cells of players go next; `None` when none is left of a bucket that was dropped.
///
/// It looks at about `piece_cells` of them that go, and at most [`SCAN_CELLS`] others, and then on to the end of a player.
pub(super) fn sweep(shard: &Counted, definition: &Definition, piece_cells: usize) -> Result<Option<Cover>> {
    if !definition.groups_by_player() {
        return Ok(None);
    }
    let (view, mark) = (&shard.view, &shard.mark);
    let tier_mark = |tier: usize| mark.tiers.get(tier).copied().unwrap_or_default();
    let is_behind = |tier: &usize| {
        shard.kept_from[*tier].is_some_and(|from_ms| tier_mark(*tier).swept_to_ms.is_none_or(|swept| swept < from_ms))
    };
    let Some(tier) = (0..definition.tiers.len()).find(is_behind) else { return Ok(None) };
    let Some(from_ms) = shard.kept_from[tier] else { return Ok(None) };
    let begun = tier_mark(tier);
    let to_ms = begun.sweeping_to_ms.unwrap_or(from_ms);
    let (stored, range) = (Stored::of(view, definition, tier), definition.cells(view.keyspace(), tier));
    let start = definition.cells_of(view.keyspace(), tier, Token(begun.sweep_token)).start;
    let mut rows = view.reader().rows(Family::Rollups, &start..&range.end, Direction::Forward)?;
    let (mut changes, mut seen, mut at, mut next) = (HashMap::new(), 0, begun.sweep_token, None);
    while let Some((key, _)) = rows.next()? {
        let place = &key[key::ROLLUP_CELL_PREFIX_BYTES..];
        let malformed = || Error::row("rollup cell key", "malformed");
        let token = key::take_u64(&mut &*place).ok_or_else(malformed)?;
        if token != at && (seen >= SCAN_CELLS || changes.len() >= piece_cells) {
            next = Some(token);
            break;
        }
        (at, seen) = (token, seen + 1);
        if bucket_of(place).ok_or_else(malformed)? < to_ms {
            changes.insert(stored.key(place), None);
        }
    }
    let swept = match next {
        Some(token) => {
            rollup_mark::Tier { sweep_token: token, sweeping_to_ms: Some(to_ms), swept_to_ms: begun.swept_to_ms }
        }
        None => rollup_mark::Tier { swept_to_ms: Some(to_ms), ..Default::default() },
    };
    let mut tiers: Vec<_> = (0..definition.tiers.len()).map(tier_mark).collect();
    tiers[tier] = swept;
    Ok(Some(Cover::new(definition, view, mark.clone(), RollupMark { tiers, ..mark.clone() }, changes)))
}

/// Cells that are looked at in one sweep.
const SCAN_CELLS: usize = 262_144;
