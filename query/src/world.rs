//! One shard in memory, for the tests of its tables.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::prelude::SessionContext;
use galoo_proto::{
    ChunkId, GameId, Keyspace, ShardId, TokenRange,
    command::{AppendEvents, Command, MutatePlayer, PropertyKinds, Seal, command::Body},
    rollup::Rollup,
    value::{Event, Mutation, Value, mutation::Change, value::Kind},
};
use galoo_storage::{
    compaction::{build_segment, commit_segment},
    engine::memory::MemoryEngine,
    properties,
    rollup::{
        Definition,
        cover::{self, First, Piece},
    },
    segment::SegmentFiles,
    shard::Shard,
    view::View,
};
use prost::Message;

use crate::{
    Engine, Options,
    rollup::{
        define::{self, DefineError},
        statement::Statement,
    },
};

pub(crate) const KEYSPACE: Keyspace = Keyspace(1);

pub(crate) fn event(player: &str, event_time_ms: i64, event_type: &str, properties: &str) -> Event {
    Event {
        player_id: player.to_owned(),
        event_time_ms,
        event_type: event_type.to_owned(),
        properties: properties.to_owned(),
        ..Default::default()
    }
}

/// One shard in memory.
pub(crate) struct World {
    pub(crate) engine: Arc<dyn galoo_storage::engine::Engine>,
    shard: Shard,
    files: Arc<SegmentFiles>,
    pub(crate) queries: Engine,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn empty() -> Self {
        let engine: Arc<dyn galoo_storage::engine::Engine> = Arc::new(MemoryEngine::default());
        let folder = tempfile::tempdir().expect("folder");
        let files = Arc::new(SegmentFiles::new(folder.path()).expect("files"));
        let shard = Shard::open(engine.clone(), KEYSPACE, ShardId(2), GameId(1), TokenRange::FULL).expect("opens");
        let queries = Engine::new(Options::default()).expect("engine");
        Self { engine, shard, files, queries, _folder: folder }
    }

    /// A shard with 600 events.
    pub(crate) fn new() -> Self {
        let mut world = Self::empty();
        let events = (0..600i64).map(|i| {
            let properties = match i % 5 {
                0 => String::new(),
                1 => format!(r#"{{"item":"sword","price":{i}}}"#),
                2 => format!(r#"{{"item":null,"price":{i},"weight":0.{i}}}"#),
                3 => format!(r#"{{"item":"bow","weight":{i}.25,"pve":true}}"#),
                _ => r#"{"pve":false,"price":-3}"#.to_owned(),
            };
            event(&format!("p{}", i % 7), i * 61_000, ["login", "buy", "kill"][i as usize % 3], &properties)
        });
        world.append(events.collect());
        world
    }

    fn apply(&mut self, body: Body) {
        let index = self.shard.applied() + 1;
        let command = Command { version: 1, hlc: index << 16, body: Some(body) };
        self.shard.apply(index, &[&command.encode_to_vec()]).expect("applies");
    }

    pub(crate) fn append(&mut self, events: Vec<Event>) {
        let mut kinds: BTreeMap<String, properties::Kinds> = BTreeMap::new();
        for (name, kind) in events.iter().flat_map(|event| properties::check(&event.properties).expect("valid")) {
            let known = kinds.entry(name.into_owned()).or_default();
            *known = known.with(kind);
        }
        let properties = kinds.into_iter().map(|(name, kinds)| PropertyKinds { name, kinds: kinds.0.into() });
        self.apply(Body::Append(AppendEvents {
            range: Some(TokenRange::FULL.into()),
            batch: None,
            events,
            properties: properties.collect(),
        }));
    }

    /// Puts integers into a player's cells, named by family and qualifier.
    pub(crate) fn put(&mut self, player: &str, cells: &[(&str, &str, i64)]) {
        let mutations = cells.iter().map(|(family, qualifier, value)| Mutation {
            family: (*family).to_owned(),
            qualifier: (*qualifier).to_owned(),
            change: Some(Change::Put(Value { kind: Some(Kind::Int(*value)) })),
            ..Default::default()
        });
        self.apply(Body::Mutate(MutatePlayer {
            range: Some(TokenRange::FULL.into()),
            batch: None,
            player_id: player.to_owned(),
            preconditions: Vec::new(),
            mutations: mutations.collect(),
            ..Default::default()
        }));
    }

    pub(crate) fn view(&self) -> View {
        View::open(self.engine.snapshot(), KEYSPACE, self.files.clone()).expect("opens").expect("there")
    }

    fn context(&self) -> SessionContext {
        self.queries.context("g", &[self.view()]).expect("context")
    }

    pub(crate) async fn define(&mut self, id: u64, name: &str, select: &str) -> Result<(), DefineError> {
        let statement = format!("CREATE ROLLUP \"{name}\" AS {select}");
        let Some(Statement::Create { name, select, options, .. }) = Statement::parse(&statement)? else {
            panic!("{statement} creates none");
        };
        let rollup = define::plan(&self.context(), &name, &select, &options).await?;
        self.apply(Body::DefineRollup(Rollup { id, ..rollup }));
        Ok(())
    }

    fn seal(&mut self) -> ChunkId {
        let chunk = self.shard.state().open.unwrap_or_default().id;
        self.apply(Body::Seal(Seal { chunk }));
        ChunkId(chunk)
    }

    /// Seals the open chunk and builds a segment of it.
    pub(crate) fn build(&mut self) {
        let chunk = self.seal();
        let record = build_segment(&self.view(), &self.files, KEYSPACE, chunk, chunk).expect("builds");
        assert!(commit_segment(&self.engine, KEYSPACE, &record).expect("commits"));
    }

    /// Seals the open chunk and covers what is sealed in all rollups.
    pub(crate) fn cover(&mut self) {
        self.seal();
        for rollup in self.view().rollups().expect("reads") {
            let definition = Definition::parse(&rollup).expect("valid");
            let next = |view: &View| cover::prepare_one(view, &definition, First::Covering, &Piece::default());
            while let Some(cover) = next(&self.view()).expect("prepares") {
                assert!(cover::commit(&self.engine, KEYSPACE, cover).expect("commits"));
            }
        }
    }

    /// The rows of a query as text, in the order in which they come.
    pub(crate) async fn ordered(&self, sql: &str) -> Vec<String> {
        let batches = self.context().sql(sql).await.expect("plans").collect().await.expect("runs");
        let text = arrow::util::pretty::pretty_format_batches(&batches).expect("prints").to_string();
        text.lines().skip(3).filter(|line| line.starts_with('|')).map(str::to_owned).collect()
    }

    /// The rows of a query as text, sorted.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let mut rows = self.ordered(sql).await;
        rows.sort();
        rows
    }
}
