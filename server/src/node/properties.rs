//! Declared properties of events, and what properties there are: declared in the meta group, then told to every shard of
//! the game, as families are.

use std::{collections::BTreeMap, sync::Arc};

use galoo_cluster::META_GROUP;
use galoo_proto::{
    GameId, ShardId,
    admin::{ListPropertiesResponse, PropertyStatus},
    command::command::Body,
    limits::DECLARED_PROPERTIES_MAX,
    meta::{DeclareProperty, meta_command, meta_outcome, rejection::Reason},
    validate,
    value::{PropertyDeclarations, PropertyDefinition},
};
use galoo_storage::{
    properties::{ColumnType, Kinds},
    view::{KindCounts, PropertyTypes, View},
};
use tokio::task::spawn_blocking;

use super::{Node, NodeError};

impl Node {
    /// Declares what a property's values are meant to be, or takes that back; returns when every shard of the game knows.
    pub async fn declare_property(self: &Arc<Self>, game: &str, property: PropertyDefinition) -> Result<(), NodeError> {
        validate::property(&property)?;
        let name = property.name.clone();
        let declare = DeclareProperty { game: game.to_owned(), property: Some(property) };
        let outcome = self.propose_meta(meta_command::Body::DeclareProperty(declare)).await?;
        let declared = match outcome.result {
            Some(meta_outcome::Result::Properties(record)) => record.declared.unwrap_or_default(),
            Some(meta_outcome::Result::Rejected(rejection)) => {
                return Err(match rejection.reason() {
                    Reason::GameUnknown => NodeError::UnknownGame(game.to_owned()),
                    Reason::PropertyUnknown => NodeError::UnknownProperty(name),
                    _ => NodeError::Refused(format!(
                        "declared properties: game {game:?} has {}; the limit is {DECLARED_PROPERTIES_MAX}",
                        rejection.found
                    )),
                });
            }
            _ => return Err(NodeError::OutcomeUnknown { shard: ShardId(META_GROUP) }),
        };
        self.tell_shards(game, &Body::DeclareProperties(declared)).await
    }

    /// What a shard that knows these declarations must still be told of its game's.
    pub fn missing_declarations(&self, game: GameId, known: &PropertyDeclarations) -> Option<Body> {
        let meta = self.meta.borrow();
        let declared = meta.properties(game).filter(|declared| declared.revision > known.revision)?;
        Some(Body::DeclareProperties(declared.clone()))
    }

    /// The properties of a game's events, counted over one cut of its shards.
    pub async fn properties(&self, game: &str) -> Result<ListPropertiesResponse, NodeError> {
        let views = self.game_views(game).await?;
        let one = self.begin_survey()?;
        let work = move || {
            // It works on also when the caller is gone.
            let _one = one;
            survey(&views)
        };
        Ok(spawn_blocking(work).await.map_err(|_| NodeError::Stopping)??)
    }
}

fn survey(views: &[View]) -> galoo_storage::Result<ListPropertiesResponse> {
    let mut counts = BTreeMap::new();
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut declared = PropertyDeclarations::default();
    let mut events = 0;
    for view in views {
        view.count_properties(&mut counts)?;
        for source in view.sources()? {
            events += source.rows();
        }
        for (name, property) in view.properties()? {
            let (first, last) = seen.entry(name).or_insert((property.first_seen_ms, property.last_seen_ms));
            (*first, *last) = ((*first).min(property.first_seen_ms), (*last).max(property.last_seen_ms));
        }
        let known = view.declared()?;
        if known.revision > declared.revision {
            declared = known;
        }
    }
    let types = PropertyTypes::of(views)?;
    let mut properties = BTreeMap::new();
    // Beyond the limit of columns a property has counts alone, and one that was only declared has none.
    let names = counts.keys().chain(seen.keys()).cloned().chain(types.iter().map(|(name, _)| name.to_owned()));
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let of: KindCounts = counts.get(&name).copied().unwrap_or_default();
        let kind = declared.properties.iter().find(|one| one.name == name).map(PropertyDefinition::kind);
        let fits = kind.and_then(ColumnType::of_kind).map(ColumnType::kinds);
        let (first_seen_ms, last_seen_ms) = seen.get(&name).copied().unwrap_or_default();
        let status = PropertyStatus {
            name: name.clone(),
            declared: kind.unwrap_or_default().into(),
            column_type: types.get(&name).map_or("", sql_type).to_owned(),
            nulls: of.of(Kinds::NULL),
            bools: of.of(Kinds::BOOL),
            ints: of.of(Kinds::INT.with(Kinds::WIDE_INT)),
            floats: of.of(Kinds::FLOAT),
            strings: of.of(Kinds::STRING),
            objects_and_arrays: of.of(Kinds::NESTED),
            other_numbers: of.of(Kinds::NUMBER),
            misfits: fits.map_or(0, |fits| of.of(Kinds(!fits.0))),
            first_seen_ms,
            last_seen_ms,
        };
        properties.insert(name, status);
    }
    Ok(ListPropertiesResponse { events, properties: properties.into_values().collect() })
}

fn sql_type(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Bool => "boolean",
        ColumnType::Int => "bigint",
        ColumnType::Float => "double precision",
        ColumnType::Text => "text",
    }
}
