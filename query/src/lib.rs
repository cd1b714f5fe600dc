//! Galoo's SQL: a game's tables on DataFusion.
//!
//! [`Engine::context`] makes a DataFusion session over views of a game's shards: one consistent cut, taken by the caller after
//! everything acknowledged was applied. Tables: `events` ([`events`]), `state` and `players` ([`state`]), and each
//! [`rollup`], made when they are named ([`game`]). Filters on player, time and type are pushed down to the shards
//! ([`pushdown`]); DataFusion checks them again.
//!
//! Query knows no Raft and no network: it reads [`View`]s.

mod approx_quantile;
mod events;
mod game;
mod number_bucket;
mod pushdown;
pub mod rollup;
mod state;
mod stream;
mod time_bucket;
#[cfg(test)]
mod world;

use std::{num::NonZeroUsize, sync::Arc};

use datafusion::{
    catalog::{CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList},
    error::Result,
    execution::{
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::RuntimeEnvBuilder,
        session_state::{SessionState, SessionStateBuilder},
    },
    logical_expr::registry::FunctionRegistry,
    prelude::{SessionConfig, SessionContext},
};
use galoo_proto::rollup::Rollup;
use galoo_storage::{
    rollup::{Definition, cache::RollupCache},
    view::View,
};

use crate::game::GameTables;
pub use crate::{events::EventsTable, rollup::RollupTable, state::StateTable};

/// Names of the columns that the store itself gives to `events`; a property of such a name is the column `prop.NAME`.
pub const EVENT_COLUMNS: [&str; 6] = ["player_id", "event_time", "event_type", "seq", "ingest_time", "properties"];

/// Before the name of a property that the store uses for a column of its own.
const PROPERTY_PREFIX: &str = "prop.";

/// The schema of a game's tables.
const PUBLIC: &str = "public";

/// Memory and threads of all queries of a node together.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes that sorts, joins and aggregates may hold; beyond it they spill to disk or are refused.
    pub memory_bytes_max: usize,
    /// Partitions that one query works on at once.
    pub partitions: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory_bytes_max: 384 << 20, partitions: 2 }
    }
}

/// What all queries of a node share.
pub struct Engine {
    /// A session without a catalog: functions, optimizer, memory pool and the place to spill to. Every context is a copy.
    session: SessionState,
    options: Options,
    /// What reads of rollups leave for the next ones.
    cache: Arc<RollupCache>,
}

impl Engine {
    /// Makes the memory pool and the place to spill to.
    pub fn new(options: Options) -> Result<Self> {
        let consumers = NonZeroUsize::new(5).unwrap_or(NonZeroUsize::MIN);
        let pool = TrackConsumersPool::new(FairSpillPool::new(options.memory_bytes_max), consumers);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc()?;
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_target_partitions(options.partitions)
            .with_create_default_catalog_and_schema(false);
        let mut session =
            SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
        session.register_udf(Arc::new(time_bucket::function()))?;
        session.register_udf(Arc::new(number_bucket::function()))?;
        session.register_udaf(Arc::new(approx_quantile::function()))?;
        Ok(Self { session, options, cache: Arc::default() })
    }

    /// Bytes that reads of rollups left for the next ones, about, and may leave.
    pub fn rollup_memory(&self) -> (usize, usize) {
        self.cache.memory()
    }

    /// Bytes that queries hold to sort, join and aggregate, and may hold.
    pub fn query_memory(&self) -> (usize, usize) {
        (self.session.runtime_env().memory_pool.reserved(), self.options.memory_bytes_max)
    }

    /// Makes a session whose catalog is the game, over one cut of its shards. Without views the catalog is empty.
    pub fn context(&self, game: &str, views: &[View]) -> Result<SessionContext> {
        let rollups = definitions(views).map_err(external)?;
        let tables = GameTables::new(views.into(), rollups, self.cache.clone(), self.options.partitions);
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(PUBLIC, Arc::new(tables))?;
        let mut session = self.session.clone();
        // A copy shares the list of what it is a copy of.
        session.register_catalog_list(Arc::new(MemoryCatalogProviderList::new()));
        let names = &mut session.config_mut().options_mut().catalog;
        (names.default_catalog, names.default_schema) = (game.to_owned(), PUBLIC.to_owned());
        let context = SessionContext::new_with_state(session);
        context.register_catalog(game, Arc::new(catalog));
        Ok(context)
    }
}

/// Returns the rollups that every shard of the cut knows: one that is on its way to the others is not there yet.
fn definitions(views: &[View]) -> galoo_storage::Result<Vec<Arc<Definition>>> {
    let mut known: Option<Vec<Rollup>> = None;
    for view in views {
        let rollups = view.rollups()?;
        known = Some(match known {
            None => rollups,
            Some(known) => known.into_iter().filter(|one| rollups.iter().any(|other| other.id == one.id)).collect(),
        });
    }
    known.unwrap_or_default().iter().map(|rollup| Ok(Arc::new(Definition::parse(rollup)?))).collect()
}

fn external(error: galoo_storage::Error) -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::External(Box::new(error))
}
