//! Declared families, as commands: a declaration enters the shard's log, so that every replica keeps the same values from
//! the same command on.

use std::{collections::BTreeMap, sync::Arc};

use galoo_proto::{
    Hlc, Keyspace,
    command::{DropFamily, FamilyChanged, Outcome, outcome},
    value::FamilyDefinition,
};
use prost::Message;

use super::turn::Turn;
use crate::{
    Error, Result,
    cell::NEVER,
    engine::{Direction, Family, Reader},
    key,
};

/// A shard's declared families, by name.
pub(crate) type Families = BTreeMap<String, FamilyDefinition>;

/// Reads the families that a keyspace's shard was told of.
pub(crate) fn read_families(reader: &dyn Reader, keyspace: Keyspace) -> Result<Families> {
    let range = key::families(keyspace);
    let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
    let mut families = Families::new();
    while let Some((_, row)) = rows.next()? {
        let family = FamilyDefinition::decode(row).map_err(|error| Error::row("family", error))?;
        families.insert(family.name.clone(), family);
    }
    Ok(families)
}

/// How the values of a cell that is written are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Keeping {
    /// So many values, with the new one.
    pub(super) versions_max: usize,
    /// When the new one expires.
    pub(super) expires: Hlc,
}

impl Turn<'_> {
    pub(super) fn define_family(&mut self, family: FamilyDefinition) -> Outcome {
        let known = self.families.get(&family.name).map_or(0, |known| known.revision);
        let changed = known < family.revision;
        if changed {
            self.put(Family::Meta, key::family(self.shard.keyspace, &family.name), family.encode_to_vec());
            Arc::make_mut(&mut self.families).insert(family.name.clone(), family);
        }
        family_changed(changed)
    }

    pub(super) fn drop_family(&mut self, DropFamily { name, revision }: &DropFamily) -> Outcome {
        let changed = self.families.get(name).is_some_and(|known| known.revision <= *revision);
        if changed {
            self.delete(Family::Meta, key::family(self.shard.keyspace, name));
            Arc::make_mut(&mut self.families).remove(name);
        }
        family_changed(changed)
    }

    /// How a value that the command writes is kept: for its own time, or for its family's.
    pub(super) fn keeping(&self, family: &str, ttl_ms: Option<u64>) -> Keeping {
        let declared = self.families.get(family);
        let ttl_ms = ttl_ms.or(declared.map(|declared| declared.ttl_ms)).filter(|ttl_ms| *ttl_ms > 0);
        let expires = ttl_ms.map_or(NEVER, |ttl_ms| Hlc::from_millis(self.hlc.millis().saturating_add(ttl_ms)));
        let versions_max = declared.map_or(1, |declared| declared.versions_max.max(1) as usize);
        Keeping { versions_max, expires }
    }
}

fn family_changed(changed: bool) -> Outcome {
    Outcome { result: Some(outcome::Result::FamilyChanged(FamilyChanged { changed })) }
}
