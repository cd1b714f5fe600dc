//! Hidden events go: segments that may hold some are written anew, and an entry goes once nothing holds what it hides.

use std::sync::Arc;

use galoo_proto::{Keyspace, record};

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
    if hidden.is_empty() {
        return Ok(None);
    }
    for source in view.sources()? {
        if let Source::Segment(segment) = source
            && segment.last_seq <= covered_seq
            && may_hold(files, view.keyspace(), segment, &hidden.in_segment(segment))?
        {
            return Ok(Some(segment.clone()));
        }
    }
    Ok(None)
}

fn may_hold(files: &SegmentFiles, keyspace: Keyspace, segment: &record::Segment, players: &[String]) -> Result<bool> {
    Ok(!players.is_empty() && files.open(keyspace, segment)?.may_hold(players)?)
}

/// Returns the forgotten players of whom nothing is stored any more, but for what the engine has not rewritten.
pub fn clean(view: &View, files: &SegmentFiles) -> Result<Vec<String>> {
    let hidden = view.erasures()?;
    let mut clean = Vec::new();
    for (player, _) in hidden.players() {
        let through = hidden.through(player);
        let mut holds = false;
        for source in view.sources()?.iter().filter(|source| source.first_seq() <= through) {
            holds |= match source {
                Source::Chunk(_) => true,
                Source::Segment(segment) => {
                    let dirty = hidden.in_segment(segment);
                    dirty.iter().any(|one| one == player)
                        && may_hold(files, view.keyspace(), segment, &[player.to_owned()])?
                }
            };
        }
        if !holds {
            clean.push(player.to_owned());
        }
    }
    Ok(clean)
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
