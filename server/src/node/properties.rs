//! Declared properties of events, and what properties there are: declared in the meta group, then told to every shard of
//! the game, as families are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use galoo_cluster::META_GROUP;
use galoo_proto::{
    GameId, ShardId,
    admin::{ListPropertiesResponse, PropertyStatus},
    command::command::Body,
    limits::DECLARED_PROPERTIES_MAX,
    meta::{DeclareProperty, meta_command, meta_outcome, rejection::Reason},
    validate,
    value::PropertyDefinition,
};
use galoo_storage::{
    properties::{ColumnType, Kinds},
    view::{Catalog, Source, View},
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

    /// What a shard must still be told of its game's declarations. Of a game without any nothing is read.
    pub fn missing_declarations(&self, game: GameId, view: &View) -> Result<Option<Body>, NodeError> {
        let Some(declared) = self.meta.borrow().properties(game).cloned() else { return Ok(None) };
        let is_new = view.declared()?.revision < declared.revision;
        Ok(is_new.then_some(Body::DeclareProperties(declared)))
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
    let (mut counts, mut events) = (BTreeMap::new(), 0);
    for view in views {
        view.count_properties(&mut counts)?;
        events += view.sources()?.iter().map(Source::rows).sum::<u64>();
    }
    let catalog = Catalog::of(views)?;
    // Beyond the limit of columns a property has counts alone, and one that was only declared has none.
    let names: BTreeSet<_> = counts.keys().map(String::as_str).chain(catalog.iter().map(|(name, _)| name)).collect();
    let status = |name: &str| {
        let (of, entry) = (counts.get(name).copied().unwrap_or_default(), catalog.get(name));
        let fits = entry.and_then(|entry| ColumnType::of_kind(entry.declared)).map(ColumnType::kinds);
        PropertyStatus {
            name: name.to_owned(),
            declared: entry.map(|entry| entry.declared).unwrap_or_default().into(),
            column_type: entry.map_or("", |entry| sql_type(entry.column_type)).to_owned(),
            nulls: of.of(Kinds::NULL),
            bools: of.of(Kinds::BOOL),
            ints: of.of(Kinds::INT.with(Kinds::WIDE_INT)),
            floats: of.of(Kinds::FLOAT),
            strings: of.of(Kinds::STRING),
            objects_and_arrays: of.of(Kinds::NESTED),
            other_numbers: of.of(Kinds::NUMBER),
            misfits: fits.map_or(0, |fits| of.of(Kinds(!fits.0))),
            first_seen_ms: entry.map_or(0, |entry| entry.property.first_seen_ms),
            last_seen_ms: entry.map_or(0, |entry| entry.property.last_seen_ms),
        }
    };
    Ok(ListPropertiesResponse { events, properties: names.into_iter().map(status).collect() })
}

fn sql_type(column_type: ColumnType) -> &'static str {
    match column_type {
        ColumnType::Bool => "boolean",
        ColumnType::Int => "bigint",
        ColumnType::Float => "double precision",
        ColumnType::Text => "text",
    }
}
