//! Families of cells: declared in the meta group, then told to every shard of the game, as rollups are.

use std::{collections::BTreeMap, sync::Arc};

use galoo_cluster::META_GROUP;
use galoo_proto::{
    GameId, ShardId, command,
    meta::{DefineFamily, DropFamily, MetaOutcome, meta_command, meta_outcome, rejection::Reason},
    validate,
    value::FamilyDefinition,
};

use super::{Node, NodeError};

impl Node {
    /// Declares a family, or declares it anew; returns when every shard of the game keeps it.
    pub async fn define_family(
        self: &Arc<Self>,
        game: &str,
        family: FamilyDefinition,
    ) -> Result<FamilyDefinition, NodeError> {
        validate::family(&family)?;
        let name = family.name.clone();
        let define = DefineFamily { game: game.to_owned(), family: Some(family) };
        let outcome = self.propose_meta(meta_command::Body::DefineFamily(define)).await?;
        let family = declared(game, &name, outcome)?;
        self.tell_shards(game, &command::command::Body::DefineFamily(family.clone())).await?;
        Ok(family)
    }

    /// Takes a family's declaration back; its cells stay.
    pub async fn drop_family(self: &Arc<Self>, game: &str, name: &str) -> Result<(), NodeError> {
        let drop = DropFamily { game: game.to_owned(), name: name.to_owned() };
        let outcome = self.propose_meta(meta_command::Body::DropFamily(drop)).await?;
        let gone = declared(game, name, outcome)?;
        self.tell_shards(game, &command::command::Body::DropFamily(dropped(&gone))).await
    }

    /// A game's declared families, by name.
    pub async fn families(&self, game: &str) -> Result<Vec<FamilyDefinition>, NodeError> {
        self.barrier(ShardId(META_GROUP)).await?;
        let meta = self.meta.borrow().clone();
        let game = meta.game(game).ok_or_else(|| NodeError::UnknownGame(game.to_owned()))?;
        Ok(meta.families(GameId(game.id)).cloned().collect())
    }

    /// Returns what a shard that knows these families must still be told of its game's.
    pub fn missing_families(
        &self,
        game: GameId,
        known: &BTreeMap<String, FamilyDefinition>,
    ) -> Vec<command::command::Body> {
        let meta = self.meta.borrow().clone();
        let is_new =
            |family: &&FamilyDefinition| known.get(&family.name).is_none_or(|known| known.revision < family.revision);
        let new = meta.families(game).filter(is_new);
        let mut missing: Vec<_> = new.map(|family| command::command::Body::DefineFamily(family.clone())).collect();
        let is_gone = |family: &&FamilyDefinition| {
            meta.family(game, &family.name).is_none() && meta.knows_family_revision(family.revision)
        };
        missing.extend(known.values().filter(is_gone).map(|gone| command::command::Body::DropFamily(dropped(gone))));
        missing
    }
}

fn dropped(family: &FamilyDefinition) -> command::DropFamily {
    command::DropFamily { name: family.name.clone(), revision: family.revision }
}

fn declared(game: &str, name: &str, outcome: MetaOutcome) -> Result<FamilyDefinition, NodeError> {
    match outcome.result {
        Some(meta_outcome::Result::Family(record)) => Ok(record.family.unwrap_or_default()),
        Some(meta_outcome::Result::Rejected(rejection)) => Err(match rejection.reason() {
            Reason::GameUnknown => NodeError::UnknownGame(game.to_owned()),
            Reason::FamilyUnknown => NodeError::UnknownFamily(name.to_owned()),
            _ => NodeError::Refused(format!(
                "families: game {game:?} has {}; the limit is {}",
                rejection.found, rejection.limit
            )),
        }),
        _ => Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
    }
}
