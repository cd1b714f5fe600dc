//! A game's tables, each made when a statement names it: what a table of all properties costs, only those pay who read it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    error::Result,
};
use galoo_storage::{
    rollup::{Definition, cache::RollupCache},
    view::View,
};

use crate::{EventsTable, RollupTable, StateTable};

const EVENTS: &str = "events";
const STATE: &str = "state";
const PLAYERS: &str = "players";

/// The tables over one cut of a game's shards; none without views.
pub(crate) struct GameTables {
    views: Arc<[View]>,
    rollups: Vec<Arc<Definition>>,
    cache: Arc<RollupCache>,
    partitions: usize,
}

impl GameTables {
    pub(crate) fn new(
        views: Arc<[View]>,
        rollups: Vec<Arc<Definition>>,
        cache: Arc<RollupCache>,
        partitions: usize,
    ) -> Self {
        Self { views, rollups, cache, partitions }
    }
}

impl fmt::Debug for GameTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GameTables").field("names", &self.table_names()).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for GameTables {
    fn table_names(&self) -> Vec<String> {
        if self.views.is_empty() {
            return Vec::new();
        }
        let own = [EVENTS, STATE, PLAYERS].map(str::to_owned);
        own.into_iter().chain(self.rollups.iter().map(|rollup| rollup.name.clone())).collect()
    }

    fn table_exist(&self, name: &str) -> bool {
        !self.views.is_empty()
            && ([EVENTS, STATE, PLAYERS].contains(&name) || self.rollups.iter().any(|rollup| rollup.name == name))
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if self.views.is_empty() {
            return Ok(None);
        }
        let views = self.views.clone();
        // A rollup of such a name would hide the game's own table, and is not made.
        Ok(match name {
            EVENTS => Some(Arc::new(EventsTable::new(views, self.partitions)?)),
            STATE => Some(Arc::new(StateTable::cells(views))),
            PLAYERS => Some(Arc::new(StateTable::players(views)?)),
            _ => {
                let definition = self.rollups.iter().find(|rollup| rollup.name == name);
                let table =
                    |definition: &Arc<Definition>| RollupTable::new(views, definition.clone(), self.cache.clone());
                definition.map(|definition| Arc::new(table(definition)) as Arc<dyn TableProvider>)
            }
        })
    }
}
