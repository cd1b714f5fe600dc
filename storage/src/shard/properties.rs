//! Properties of events, as commands leave them: the catalog of names and kinds that came, and what a game declares.
//!
//! A property's kinds and when it was first and last seen are in its row, which is written anew only when one of them
//! changes: the last time is kept to the hour. What is declared decides how values are stored and read, never whether.

use std::collections::HashMap;

use galoo_proto::{
    Keyspace,
    command::{Outcome, PropertiesDeclared, PropertyKinds, outcome},
    limits::PROPERTIES_MAX,
    record,
    value::PropertyDeclarations,
};
use prost::Message;

use super::turn::Turn;
use crate::{
    Error, Result,
    engine::{Direction, Family, Reader},
    key,
    properties::Kinds,
};

/// How exactly it is kept when a property was last seen.
const SEEN_MS: u64 = 3_600_000;

impl Turn<'_> {
    /// Adds new names and kinds to the catalog. Beyond its limit a name gets no column; its values are kept all the same.
    pub(super) fn learn_properties(&mut self, properties: Vec<PropertyKinds>) {
        let now_ms = self.hlc.millis();
        for PropertyKinds { name, kinds } in properties {
            let known = self.new_properties.get(&name).or_else(|| self.shard.properties.get(&name)).copied();
            if known.is_none() && self.state.properties >= PROPERTIES_MAX {
                continue;
            }
            let before = known.unwrap_or(record::Property { first_seen_ms: now_ms, ..Default::default() });
            let kinds = Kinds(before.kinds as u8).with(Kinds(kinds as u8)).0.into();
            let last_seen_ms = before.last_seen_ms.max(now_ms / SEEN_MS * SEEN_MS);
            let seen = record::Property { kinds, last_seen_ms, ..before };
            if known == Some(seen) {
                continue;
            }
            self.state.properties += u64::from(known.is_none());
            self.put(Family::Meta, key::property(self.shard.keyspace, &name), seen.encode_to_vec());
            self.new_properties.insert(name, seen);
        }
    }

    /// Takes what a game declares of its properties, in the place of what it declared before.
    pub(super) fn declare_properties(&mut self, declared: &PropertyDeclarations) -> Result<Outcome> {
        let key = key::declared(self.shard.keyspace);
        let known = self.get(Family::Meta, &key)?.map(|row| decode_declared(&row)).transpose()?;
        let changed = known.is_none_or(|known| known.revision < declared.revision);
        if changed {
            self.set(Family::Meta, key, declared.encode_to_vec());
        }
        Ok(Outcome { result: Some(outcome::Result::PropertiesDeclared(PropertiesDeclared { changed })) })
    }
}

/// Reads a shard's catalog of properties.
pub(crate) fn read_properties(reader: &dyn Reader, keyspace: Keyspace) -> Result<HashMap<String, record::Property>> {
    let range = key::properties(keyspace);
    let mut rows = reader.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
    let mut properties = HashMap::new();
    while let Some((key, value)) = rows.next()? {
        let property = record::Property::decode(value).map_err(|error| Error::row("property", error))?;
        properties.insert(key::property_name(key)?, property);
    }
    Ok(properties)
}

/// Reads what a shard was told of declared properties.
pub(crate) fn read_declared(reader: &dyn Reader, keyspace: Keyspace) -> Result<PropertyDeclarations> {
    let row = reader.get(Family::Meta, &key::declared(keyspace))?;
    Ok(row.map(|row| decode_declared(&row)).transpose()?.unwrap_or_default())
}

fn decode_declared(row: &[u8]) -> Result<PropertyDeclarations> {
    PropertyDeclarations::decode(row).map_err(|error| Error::row("declared properties", error))
}
