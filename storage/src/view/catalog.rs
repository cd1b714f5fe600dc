//! What the properties of events are: the type of each one's column, and how many values it has of each kind.

use std::collections::BTreeMap;

use galoo_proto::value::PropertyDeclarations;

use super::{Source, View};
use crate::{
    Error, Result,
    chunk::Run,
    engine::{Direction, Family},
    key,
    properties::{self, ColumnType, Kinds, Property},
};

/// The type of each property's column over some shards, by name: what is declared, or what holds all values.
#[derive(Clone, Debug, Default)]
pub struct PropertyTypes(BTreeMap<String, ColumnType>);

impl PropertyTypes {
    /// Reads the shards' catalogs. A declaration that only some of them know of yet holds for all.
    pub fn of(views: &[View]) -> Result<Self> {
        let mut kinds: BTreeMap<String, Kinds> = BTreeMap::new();
        let mut declared = PropertyDeclarations::default();
        for view in views {
            for (name, property) in view.properties()? {
                let known = kinds.entry(name).or_default();
                *known = known.with(Kinds(property.kinds as u8));
            }
            let known = view.declared()?;
            if known.revision > declared.revision {
                declared = known;
            }
        }
        let mut types: BTreeMap<_, _> = kinds.into_iter().map(|(name, kinds)| (name, kinds.column_type())).collect();
        let declared = declared.properties.into_iter();
        types.extend(
            declared.filter_map(|one| Some((ColumnType::of_kind(one.kind())?, one.name))).map(|(of, name)| (name, of)),
        );
        Ok(Self(types))
    }

    /// Each property with its column's type, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ColumnType)> {
        self.0.iter().map(|(name, column_type)| (name.as_str(), *column_type))
    }

    /// A property's column.
    pub fn get(&self, name: &str) -> Option<ColumnType> {
        self.0.get(name).copied()
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
    let read = properties::members(json, &mut |name, raw| {
        if let Some(value) = Property::parse(raw) {
            add(&name, value.kind(), 1);
        }
    });
    read.map_err(|error| Error::row("event properties", error))
}
