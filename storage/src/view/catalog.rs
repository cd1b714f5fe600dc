//! What the properties of events are: the type of each one's column, and how many values it has of each kind.

use std::collections::BTreeMap;

use galoo_proto::{
    record,
    value::{PropertyDeclarations, ValueKind},
};

use super::{Source, View};
use crate::{
    Result,
    chunk::Run,
    engine::{Direction, Family},
    key,
    properties::{self, ColumnType, Kinds, Property},
};

/// The properties of some shards' events, by name, and those that are declared.
#[derive(Clone, Debug, Default)]
pub struct Catalog(BTreeMap<String, CatalogEntry>);

/// What is known of a property.
#[derive(Clone, Copy, Debug)]
pub struct CatalogEntry {
    /// Its values over all of the shards; of one that was only declared nothing.
    pub property: record::Property,
    /// What they are declared to be.
    pub declared: ValueKind,
    /// Its column's type: what is declared, or what holds all values.
    pub column_type: ColumnType,
}

impl Catalog {
    /// Reads the shards' catalogs. A declaration that only some of them know of yet holds for all.
    pub fn of(views: &[View]) -> Result<Self> {
        let mut all: BTreeMap<String, record::Property> = BTreeMap::new();
        let mut declared = PropertyDeclarations::default();
        for view in views {
            for (name, property) in view.properties()? {
                let known = all.entry(name).or_insert(property);
                known.kinds |= property.kinds;
                known.first_seen_ms = known.first_seen_ms.min(property.first_seen_ms);
                known.last_seen_ms = known.last_seen_ms.max(property.last_seen_ms);
            }
            let known = view.declared()?;
            if known.revision > declared.revision {
                declared = known;
            }
        }
        let entry = |(name, property): (String, record::Property)| {
            let (declared, column_type) = (ValueKind::Any, Kinds(property.kinds as u8).column_type());
            (name, CatalogEntry { property, declared, column_type })
        };
        let mut entries: BTreeMap<_, _> = all.into_iter().map(entry).collect();
        for one in declared.properties {
            let Some(column_type) = ColumnType::of_kind(one.kind()) else { continue };
            let property = entries.get(&one.name).map(|known| known.property).unwrap_or_default();
            let declared = one.kind();
            entries.insert(one.name, CatalogEntry { property, declared, column_type });
        }
        Ok(Self(entries))
    }

    /// Each property, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &CatalogEntry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// A property; `None` of one that has no column.
    pub fn get(&self, name: &str) -> Option<&CatalogEntry> {
        self.0.get(name)
    }
}

/// How many values there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounts([u64; 8]);

impl KindCounts {
    /// Values of any of these kinds.
    pub fn of(&self, kinds: Kinds) -> u64 {
        (0..8).filter(|bit| Kinds(1 << bit).within(kinds)).map(|bit| self.0[bit]).sum()
    }

    fn add(&mut self, kind: Kinds, count: u64) {
        self.0[kind.0.trailing_zeros() as usize % 8] += count;
    }
}

impl View {
    /// Counts the values of each property in all stored events: those that are hidden or dropped count until they are gone
    /// from their file.
    ///
    /// What a segment's footer says is not read from its pages: only values whose kind the column does not tell are.
    pub fn count_properties(&self, counts: &mut BTreeMap<String, KindCounts>) -> Result<()> {
        let mut add = |name: &str, kind: Kinds, count: u64| match counts.get_mut(name) {
            Some(known) => known.add(kind, count),
            None => counts.entry(name.to_owned()).or_default().add(kind, count),
        };
        for source in self.sources()?.iter().filter(|source| source.rows() > 0) {
            match source {
                Source::Segment(record) => self.files.open(self.keyspace, record)?.count_kinds(&mut add)?,
                Source::Chunk(chunk) => {
                    let range = key::chunk_rows(self.keyspace, Source::chunk_id(chunk));
                    let mut rows = self.reader.rows(Family::Chunks, &range.start..&range.end, Direction::Forward)?;
                    while let Some((key, value)) = rows.next()? {
                        for event in Run::of(key, value)? {
                            count_members(event?.properties, &mut add)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Counts the values of an event's properties.
pub(crate) fn count_members(json: &str, add: &mut dyn FnMut(&str, Kinds, u64)) -> Result<()> {
    for member in properties::members(json) {
        let (name, raw) = member?;
        if let Some(value) = Property::parse(raw) {
            add(&name, value.kind(), 1);
        }
    }
    Ok(())
}
