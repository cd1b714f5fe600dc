//! The demo's proofs: what the store answers against what is known otherwise.

use std::{collections::HashMap, time::Instant};

use anyhow::Context;
use galoo_proto::value::{Value, value::Kind};
use galoo_workload::{StateTally, Tally};

use super::{
    ASK_EVERY, CATCH_UP_MAX, ROLLUP, ROLLUP_SELECT,
    answers::{BY_TYPE, DAILY_ACTIVE, MOST_ACTIVE, Sql},
    cluster::Cluster,
    loader::Loaded,
    tell::{Tell, grouped, seconds},
};
use crate::cli::{Failure, output};

/// Proves that the rollup says what the same aggregate over the raw events says.
pub(super) async fn rollup_is_raw(sql: &mut Sql, tell: &mut Tell) -> Result<(), Failure> {
    let asked = Instant::now();
    let kept = sql.rows(&format!("SELECT bucket, event_type, events, players FROM {ROLLUP} ORDER BY 1, 2")).await?;
    let kept_in = asked.elapsed();
    sql.rows("SET galoo.rewrite = off").await?;
    let asked = Instant::now();
    let raw = sql.rows(&format!("{ROLLUP_SELECT} ORDER BY 1, 2")).await?;
    let raw_in = asked.elapsed();
    sql.rows("SET galoo.rewrite = on").await?;
    let differing = kept.iter().zip(&raw).filter(|(one, other)| one != other).count() + kept.len().abs_diff(raw.len());
    let found = if differing == 0 {
        format!(
            "{} rows of {ROLLUP} ({}) are those of the raw events ({})",
            grouped(kept.len() as u64),
            seconds(kept_in),
            seconds(raw_in)
        )
    } else {
        format!("{differing} rows differ, of {} and {}", kept.len(), raw.len())
    };
    tell.proof("rollup = raw", differing == 0 && !kept.is_empty(), &found)
}

/// Proves that everything acknowledged is there, once, and nothing else.
pub(super) async fn acknowledged_is_stored(sql: &mut Sql, loaded: &Loaded, tell: &mut Tell) -> Result<(), Failure> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, expected: String, stored: String| {
        if expected != stored {
            differences.push(format!("{what}: acknowledged {expected}, stored {stored}"));
        }
    };
    let stored = sql.number("SELECT count(*) FROM events").await?;
    compare("events", loaded.events.to_string(), stored.to_string());
    let mut found = format!("{} events", grouped(loaded.events));
    if let Some((tally, state)) = &loaded.tally {
        let mut by_type: Vec<_> =
            tally.by_type().iter().map(|(name, count)| vec![name.clone(), count.to_string()]).collect();
        by_type.sort_by_key(|row| std::cmp::Reverse(row[1].parse::<u64>().unwrap_or(0)));
        compare("by type", format!("{by_type:?}"), format!("{:?}", sql.rows(BY_TYPE).await?));
        compare("most active", most_active(tally), format!("{:?}", sql.rows(MOST_ACTIVE).await?));
        let days = sql.rows(DAILY_ACTIVE).await?;
        let days: Vec<_> = days.iter().map(|row| row[1].clone()).collect();
        let expected: Vec<_> = tally.daily_active().iter().map(|(_, players)| players.to_string()).collect();
        compare("daily active", expected.join(" "), days.join(" "));
        let stored = sql.rows("SELECT player_id, family, qualifier, value FROM state").await?;
        let wrong = differing_cells(state, &stored);
        compare("cells of state that differ", "0".to_owned(), wrong.to_string());
        found = format!(
            "{found} by type, player and day, {} cells of {} players",
            grouped(state.cells()),
            grouped(state.players())
        );
    }
    let holds = differences.is_empty();
    tell.proof("acknowledged = stored", holds, if holds { &found } else { &differences[0] })
}

fn most_active(tally: &Tally) -> String {
    let rows: Vec<_> =
        tally.most_active(5).iter().map(|(player, count)| vec![(*player).to_owned(), count.to_string()]).collect();
    format!("{rows:?}")
}

/// A cell's value as SQL shows it.
fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::String(text) | Kind::Json(text)) => text.clone(),
        _ => output::value_json(value).to_string(),
    }
}

/// Counts the cells that are missing, too many, or of another value.
fn differing_cells(state: &StateTally, stored: &[Vec<String>]) -> u64 {
    let by_name = |row: &'_ Vec<String>| ((row[0].clone(), row[1].clone(), row[2].clone()), row[3].clone());
    let mut stored: HashMap<_, _> = stored.iter().map(by_name).collect();
    let mut wrong = 0;
    for (player, cells) in state.iter() {
        for ((family, qualifier), value) in cells {
            let found = stored.remove(&(player.to_owned(), family.clone(), qualifier.clone()));
            wrong += u64::from(found.as_deref() != Some(text(value).as_str()));
        }
    }
    wrong + stored.len() as u64
}

/// Proves that every node holds the same: the replicas of each shard have applied the same commands to the same content.
pub(super) async fn same_everywhere(cluster: &Cluster, loaded: &Loaded, tell: &mut Tell) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let nodes = cluster.checksums().await?;
        let (first, others) = nodes.split_first().context("no nodes")?;
        let same = others.iter().all(|other| other == first);
        let counted =
            nodes.iter().all(|node| node.values().map(|replica| replica.events).sum::<u64>() == loaded.events);
        if same && counted {
            let found = format!("{} shards have equal checksums on {} nodes", first.len(), nodes.len());
            return tell.proof("same everywhere", true, &found);
        }
        // Replicas that have applied as much and differ will never be the same.
        let differ = others.iter().flatten().find(|(shard, replica)| {
            first.get(shard).is_some_and(|one| one.applied == replica.applied && one != *replica)
        });
        if differ.is_some() || since.elapsed() > CATCH_UP_MAX {
            let found = match differ {
                Some((shard, replica)) => format!("the replicas of s{shard} differ at index {}", replica.applied),
                None => format!("the nodes hold {nodes:?}, after {}", seconds(since.elapsed())),
            };
            return tell.proof("same everywhere", false, &found);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use async_trait::async_trait;
    use datafusion::prelude::SessionContext;
    use galoo_pg::{PgLimits, SqlBackend, SqlError};
    use galoo_proto::{
        GameId, Keyspace, RollupId, ShardId, TokenRange,
        command::{AppendEvents, Command, Seal, command::Body},
        rollup::Rollup,
        value::Event,
    };
    use galoo_query::rollup::{define, statement::Options};
    use galoo_storage::{
        engine::{Direction, Engine, Family, WriteBatch, memory::MemoryEngine},
        key,
        rollup::{
            Definition,
            cover::{self, First, Piece},
        },
        segment::SegmentFiles,
        shard::Shard,
        view::View,
    };
    use prost::Message;

    use super::*;
    use crate::cli::demo::GAME;

    const KEYSPACE: Keyspace = Keyspace(1);
    const PER_HOUR: RollupId = RollupId(1);

    /// The demo's game, in one shard in memory.
    #[derive(Clone)]
    struct OneShard {
        engine: Arc<dyn Engine>,
        files: Arc<SegmentFiles>,
        queries: Arc<galoo_query::Engine>,
    }

    impl OneShard {
        fn new(folder: &Path) -> Self {
            let files = Arc::new(SegmentFiles::new(folder).expect("a folder"));
            Self { engine: Arc::new(MemoryEngine::default()), files, queries: queries() }
        }

        fn view(&self) -> View {
            View::open(self.engine.snapshot(), KEYSPACE, self.files.clone()).expect("opens").expect("there")
        }

        fn game(&self) -> SessionContext {
            self.queries.context(GAME, &[self.view()]).expect("a context")
        }
    }

    fn queries() -> Arc<galoo_query::Engine> {
        Arc::new(galoo_query::Engine::new(galoo_query::Options::default()).expect("an engine"))
    }

    #[async_trait]
    impl SqlBackend for OneShard {
        fn games(&self) -> Vec<String> {
            vec![GAME.to_owned()]
        }

        async fn context(&self, _: &str) -> Result<SessionContext, SqlError> {
            Ok(self.game())
        }

        async fn define(&self, _: &str, _: &str) -> Result<Option<String>, SqlError> {
            Ok(None)
        }
    }

    fn apply(shard: &mut Shard, body: Body) {
        let index = shard.applied() + 1;
        let command = Command { version: 1, hlc: index << 16, body: Some(body) };
        shard.apply(index, &[&command.encode_to_vec()]).expect("applies");
    }

    /// Stores events of ten hours, and the rollup, which covers them.
    async fn load(game: &OneShard) {
        let open = Shard::open(game.engine.clone(), KEYSPACE, ShardId(2), GameId(1), TokenRange::FULL);
        let mut shard = open.expect("opens");
        let event = |i: i64| Event {
            player_id: format!("p{}", i % 7),
            event_time_ms: i * 360_000,
            event_type: ["login", "kill"][usize::from(i % 3 == 0)].to_owned(),
            properties: String::new(),
            ..Default::default()
        };
        let events = (0..100).map(event).collect();
        let range = Some(TokenRange::FULL.into());
        apply(&mut shard, Body::Append(AppendEvents { range, batch: None, events, properties: Vec::new() }));
        let planned = define::plan(&game.game(), ROLLUP, ROLLUP_SELECT, &Options::default()).await.expect("a rollup");
        let rollup = Rollup { id: PER_HOUR.0, ..planned };
        let definition = Definition::parse(&rollup).expect("valid");
        apply(&mut shard, Body::DefineRollup(rollup));
        let chunk = shard.state().open.unwrap_or_default().id;
        apply(&mut shard, Body::Seal(Seal { chunk }));
        let covered = cover::prepare_one(&game.view(), &definition, First::Covering, &Piece::default());
        let covered = covered.expect("prepares").expect("something to cover");
        assert!(cover::commit(&game.engine, KEYSPACE, covered).expect("commits"));
    }

    /// Changes one bit of one stored cell of the rollup: its count of events.
    fn corrupt(game: &OneShard) {
        let cells = key::rollup_cells(KEYSPACE, PER_HOUR);
        let snapshot = game.engine.snapshot();
        let mut rows = snapshot.rows(Family::Rollups, &cells.start..&cells.end, Direction::Forward).expect("reads");
        let (key, value) = rows.next().expect("reads").expect("a cell");
        let (key, mut value) = (key.to_vec(), value.to_vec());
        value[1] ^= 1;
        let mut batch = WriteBatch::default();
        batch.put(Family::Rollups, key, value);
        game.engine.write(batch).expect("writes");
    }

    /// The proofs that fail when the game is asked through the Postgres protocol.
    async fn failed(game: &OneShard) -> Vec<&'static str> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let front = galoo_pg::serve(listener, Arc::new(game.clone()), std::future::pending(), PgLimits::default());
        let front = tokio::spawn(front);
        let mut tell = Tell::new(true);
        let mut sql = Sql::connect(address).await.expect("connects");
        rollup_is_raw(&mut sql, &mut tell).await.expect("answers");
        front.abort();
        tell.failed()
    }

    #[tokio::test]
    async fn one_wrong_bit_in_a_rollup_fails_the_proof() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut game = OneShard::new(folder.path());
        load(&game).await;
        assert_eq!(failed(&game).await, [""; 0]);
        corrupt(&game);
        // Nothing writes a cell like that, so what is kept in memory does not see it: a restart does.
        game.queries = queries();
        assert_eq!(failed(&game).await, ["rollup = raw"]);
    }
}
