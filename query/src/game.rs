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

    /// Every tier of every rollup, with its table's name.
    fn tiers<'a>(&'a self) -> impl Iterator<Item = (&'a Arc<Definition>, usize, String)> {
        let tiers =
            |rollup: &'a Arc<Definition>| (0..rollup.tiers.len()).map(move |tier| (rollup, tier, rollup.table(tier)));
        self.rollups.iter().flat_map(tiers)
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
        own.into_iter().chain(self.tiers().map(|(_, _, name)| name)).collect()
    }

    fn table_exist(&self, name: &str) -> bool {
        !self.views.is_empty()
            && ([EVENTS, STATE, PLAYERS].contains(&name) || self.tiers().any(|(_, _, table)| table == name))
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
                let found = self.tiers().find(|(_, _, table)| table == name);
                found.map(|(definition, tier, _)| {
                    let table = RollupTable::new(views, definition.clone(), tier, self.cache.clone());
                    Arc::new(table) as Arc<dyn TableProvider>
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use galoo_storage::{
        engine::{Family, WriteBatch},
        key,
    };

    use crate::world::{KEYSPACE, World, event};

    /// Names that the store uses, and what would collide with how they are written.
    #[tokio::test]
    async fn every_property_has_a_column_of_its_own() {
        let mut world = World::empty();
        let properties =
            r#"{"seq":7,"prop.seq":8,"prop.prop.seq":9,"prop.x":1,"x":2,"player_id":"other","properties":true}"#;
        world.append(vec![event("ann", 5, "login", properties), event("bob", 6, "login", "{}")]);
        for step in ["chunk", "segment"] {
            let columns = r#"player_id, seq, "prop.seq", "prop.prop.seq", "prop.prop.prop.seq", "prop.x", x, "prop.player_id", "prop.properties""#;
            let rows = world.rows(&format!("SELECT {columns} FROM events")).await;
            let words =
                |row: &String| row.replace(['|', ' '], " ").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let rows: Vec<_> = rows.iter().map(words).collect();
            assert_eq!(rows[0][2..], ["7", "8", "9", "1", "2", "other", "true"], "{step}");
            assert_eq!(rows[1].len(), 2, "{step}: {rows:?}");
            assert_eq!(world.rows("SELECT * FROM events").await.len(), 2, "{step}");
            assert_eq!(
                world.rows(r#"SELECT count(*), count("prop.seq") FROM events"#).await,
                ["| 2        | 1                      |"]
            );
            if step == "chunk" {
                world.build();
            }
        }
    }

    #[tokio::test]
    async fn every_cell_has_a_column_of_its_own() {
        let mut world = World::empty();
        world.put("ann", &[("f", "b", 1), ("g", "b", 2), ("h", "f:b", 3), ("f", "player_id", 4), ("f", "gold", 5)]);
        let rows = world.rows(r#"SELECT player_id, "f:b", "g:b", "h:f:b", "f:player_id", gold FROM players"#).await;
        assert_eq!(rows[0].split('|').map(str::trim).collect::<Vec<_>>(), ["", "ann", "1", "2", "3", "4", "5", ""]);
        assert_eq!(world.rows("SELECT * FROM players").await.len(), 1);
    }

    /// A row that does not decode is in the way of whoever reads it, and of nobody else.
    #[tokio::test]
    async fn state_of_some_players_is_read_without_the_others() {
        let mut world = World::empty();
        for player in ["ann", "bob", "cid"] {
            world.put(player, &[("s", "gold", 5)]);
        }
        let mut batch = WriteBatch::default();
        batch.put(Family::Cells, key::row(KEYSPACE, "broken"), Vec::new());
        batch.put(Family::Cells, key::cell(KEYSPACE, "broken", "s", "gold"), vec![0xff]);
        world.engine.write(batch).expect("writes");
        let all: Result<Vec<_>, _> = world.view().state_rows(None).collect();
        assert!(all.is_err(), "the row can be read");
        for table in ["state", "players"] {
            for (filter, count) in [
                ("player_id = 'ann'", 1),
                ("player_id IN ('cid', 'nobody', 'ann', 'ann')", 2),
                ("player_id = 'nobody'", 0),
                ("player_id = 'ann' AND player_id = 'bob'", 0),
            ] {
                let rows = world.rows(&format!("SELECT * FROM {table} WHERE {filter}")).await;
                assert_eq!(rows.len(), count, "{table} where {filter}");
            }
        }
    }
}
