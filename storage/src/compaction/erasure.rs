//! Hidden events go: segments that may hold some are written anew, and an entry goes once nothing holds what it hides.

use std::{collections::HashSet, sync::Arc};

use galoo_proto::record;

use crate::{
    Result,
    engine::{Engine, Family, WriteBatch},
    key,
    segment::SegmentFiles,
    view::{Source, View},
};

/// Returns a segment to write anew, if any: it may hold hidden events, and no rollup lacks any of its events.
///
/// Opens the files of segments that are not clean, to look into their bloom filters.
pub fn choose_erasure(view: &View, files: &SegmentFiles, covered_seq: u64) -> Result<Option<Arc<record::Segment>>> {
    let hidden = view.erasures()?;
    for source in view.sources()? {
        if let Source::Segment(segment) = source
            && segment.last_seq <= covered_seq
        {
            let players = hidden.in_segment(segment);
            if !players.is_empty() && !files.open(view.keyspace(), segment)?.held(&players)?.is_empty() {
                return Ok(Some(segment.clone()));
            }
        }
    }
    Ok(None)
}

/// Returns the forgotten players of whom nothing is stored any more, but for what the engine has not rewritten.
///
/// No segment is written anew while a rollup owes that a player is taken out, so that it has been by then.
pub fn clean(view: &View, files: &SegmentFiles) -> Result<Vec<String>> {
    let hidden = view.erasures()?;
    let mut held: HashSet<String> = HashSet::new();
    // The first event that is in no segment yet: what is behind is not looked for.
    let is_chunk = |source: &&Source| matches!(source, Source::Chunk(_));
    let unbuilt = view.sources()?.iter().find(is_chunk).map_or(u64::MAX, |chunk| chunk.first_seq().0);
    held.extend(hidden.reaching(unbuilt).map(str::to_owned));
    for source in view.sources()? {
        if let Source::Segment(segment) = source {
            let mut players = hidden.in_segment(segment);
            players.retain(|player| !held.contains(player));
            if !players.is_empty() {
                held.extend(files.open(view.keyspace(), segment)?.held(&players)?.into_iter().cloned());
            }
        }
    }
    Ok(hidden.players().map(|(player, _)| player).filter(|player| !held.contains(*player)).map(str::to_owned).collect())
}

/// Removes a forgotten player's entry; returns false when the player was forgotten again since the view.
///
/// Runs on the thread that applies, so that nothing else writes the shard.
pub fn commit_clean(engine: &Arc<dyn Engine>, view: &View, player: &str) -> Result<bool> {
    let key = key::erasure(view.keyspace(), player);
    if engine.get(Family::Meta, &key)? != view.erasures()?.row(player) {
        return Ok(false);
    }
    let mut batch = WriteBatch::default();
    batch.delete(Family::Meta, key);
    engine.write(batch)?;
    Ok(true)
}
