//! The shard against a model: any run of commands, crashes, seals and segments leaves what a plain list would hold.
//!
//! Guards P3 (a batch takes effect once), P5 (the same content on every engine and in every tier) and the recovery rule
//! (after a crash the log is applied again from what was flushed, to the same outcomes).

#[path = "model/catalog.rs"]
mod catalog;
#[path = "model/formats.rs"]
mod formats;
#[path = "model/merges.rs"]
mod merges;
#[path = "model/parts.rs"]
mod parts;
#[path = "model/producers.rs"]
mod producers;
#[path = "model/retention.rs"]
mod retention;
#[path = "model/rollups.rs"]
mod rollups;
#[path = "model/rows.rs"]
mod rows;
#[path = "model/scans.rs"]
mod scans;
#[path = "model/state.rs"]
mod state;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use galoo_proto::{
    ChunkId, GameId, Hlc, Keyspace, Seq, ShardId, TokenRange,
    command::{
        AppendEvents, BatchId, Command, DropBuckets, DropEventsBefore, DropRollup, ForgetPlayer, MutatePlayer, Outcome,
        PropertyKinds, RollupChanged, Seal, SetEventIdWindow, command::Body, outcome,
    },
    value::{
        Cell, Event, Mutation, Null, Precondition, StoredEvent, Value, mutation::Change, precondition::Test,
        value::Kind,
    },
};
use galoo_storage::{
    chunk::index::ChunkIndexes,
    compaction::{Retired, build_segment, commit_segment, known_segments},
    engine::{Direction, Engine, Family, memory::MemoryEngine, rocks, rocks::RocksEngine},
    key::{self, Selection},
    properties,
    rollup::cover::{First, Piece},
    segment::{self, SegmentFiles},
    shard::{Checksum, Shard},
    view::{Column, EventFilter, Source, View},
};
use proptest::prelude::*;
use prost::Message;

const KEYSPACE: Keyspace = Keyspace(3);

#[derive(Clone, Debug)]
enum Step {
    /// Events of (player, time, kind), under number `number` of a producer if there is one.
    Append { number: Option<u64>, events: Vec<(u8, i64, u8)> },
    /// Sends an earlier append command again.
    Repeat(usize),
    /// Events that have an id, but for those with 0.
    Named(Vec<((u8, i64, u8), u8)>),
    /// Ids are known for so many commands; never for more than before.
    Window(u64),
    /// Adds to a counter when it has an expected value.
    Increment { player: u8, by: i64, expected: Option<i64> },
    /// Deletes the counter.
    Delete { player: u8 },
    /// Seals whatever chunk is open.
    Seal,
    /// Turns all sealed chunks into one segment.
    Build,
    /// Merges so many segments from a place on.
    Merge { from: usize, count: usize },
    /// Drops the events before a time.
    DropBefore(i64),
    /// Lets go of what is not read any more, as far as that goes.
    Expire,
    /// Forgets a player.
    Forget { player: u8 },
    /// Declares kinds of properties.
    Declare(u8),
    /// Defines a rollup of this kind.
    Define(u64),
    /// Drops a rollup by its place.
    Drop(usize),
    /// Drops buckets of a tier of a rollup.
    DropBuckets { place: usize, tier: u32, before_ms: i64 },
    /// Does what is next for every rollup.
    Cover,
    /// Flushes the engine.
    Flush,
    /// Loses what was not flushed; the log is applied again.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let events = prop::collection::vec((0u8..4, 0i64..40, 0u8..6), 1..8);
    prop_oneof![
        4 => (prop::option::of(0u64..6), events).prop_map(|(number, events)| Step::Append { number, events }),
        2 => (0usize..8).prop_map(Step::Repeat),
        2 => prop::collection::vec(((0u8..2, 0i64..40, 0u8..6), 0u8..4), 1..5).prop_map(Step::Named),
        1 => (1u64..12).prop_map(Step::Window),
        2 => (0u8..4, -5i64..6, prop::option::of(0i64..4)).prop_map(|(player, by, expected)| Step::Increment { player, by, expected }),
        1 => (0u8..4).prop_map(|player| Step::Delete { player }),
        2 => Just(Step::Seal),
        3 => Just(Step::Build),
        2 => (0usize..3, 2usize..4).prop_map(|(from, count)| Step::Merge { from, count }),
        1 => (0i64..40).prop_map(Step::DropBefore),
        1 => (0u8..4).prop_map(|player| Step::Forget { player }),
        3 => Just(Step::Expire),
        1 => any::<u8>().prop_map(Step::Declare),
        2 => (0..rollups::KINDS).prop_map(Step::Define),
        1 => (0usize..3).prop_map(Step::Drop),
        3 => Just(Step::Cover),
        1 => (0usize..3, 0u32..4, 0i64..40).prop_map(|(place, tier, before_ms)| Step::DropBuckets { place, tier, before_ms }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ]
}

/// Properties of every kind, so that tiers must keep integers, floats, null, absent and nested apart.
fn event((player, time, kind): (u8, i64, u8)) -> Event {
    let properties = match kind {
        0 => String::new(),
        1 => format!(r#"{{"x":{time},"name":"é\"{player}"}}"#),
        2 => format!(r#"{{"x":{time}.5,"gone":null}}"#),
        3 => r#"{"x":"text","nested":{"a":[1,2.0,null]},"ok":true}"#.to_owned(),
        4 => r#"{"x":123456789012345678901234567890,"name":""}"#.to_owned(),
        _ => r#"{"ok":false,"x":9007199254740993}"#.to_owned(),
    };
    Event {
        player_id: format!("p{player}"),
        event_time_ms: time,
        event_type: format!("t{}", kind % 3),
        properties,
        ..Default::default()
    }
}

fn append(number: Option<u64>, events: Vec<Event>) -> Body {
    let mut kinds: BTreeMap<String, properties::Kinds> = BTreeMap::new();
    for event in &events {
        for (name, kind) in properties::check(&event.properties).expect("valid") {
            let known = kinds.entry(name.into_owned()).or_default();
            *known = known.with(kind);
        }
    }
    let batch = number.map(|number| BatchId {
        producer_id: "file:a:1:00".into(),
        number,
        registered_at: 1,
        ..Default::default()
    });
    let properties = kinds.into_iter().map(|(name, kinds)| PropertyKinds { name, kinds: kinds.0.into() }).collect();
    Body::Append(AppendEvents { range: Some(TokenRange::FULL.into()), batch, events, properties })
}

fn int(value: i64) -> Value {
    Value { kind: Some(Kind::Int(value)) }
}

/// A player who was forgotten.
#[derive(Clone, Debug, PartialEq)]
struct Forgotten {
    hlc: u64,
    player: String,
    /// The last event that is hidden.
    through: u64,
    /// Events before had been dropped by then.
    dropped_ms: i64,
}

impl Forgotten {
    fn hides(&self, seq: u64, event: &Event) -> bool {
        seq <= self.through && self.player == event.player_id
    }
}

/// What a shard must hold.
#[derive(Clone, Default)]
struct Model {
    events: Vec<Event>,
    counters: HashMap<String, i64>,
    numbers: HashMap<u64, Vec<Event>>,
    rollups: rollups::Live,
    /// Events before are not read any more.
    from_ms: i64,
    /// Players who were forgotten, in the order of the commands.
    forgotten: Vec<Forgotten>,
    /// Rollups that were ever defined: a number is never used again.
    defined: u64,
    /// When an event with an id was stored, by player and id.
    ids: HashMap<(u8, u8), u64>,
    /// For how long ids are known; none: for longer than any run lasts.
    window: Option<u64>,
}

impl Model {
    /// The events that are read, with their sequence numbers.
    fn readable(&self) -> Vec<(u64, Event)> {
        let all = (1..).zip(self.events.iter().cloned());
        let is_hidden = |seq: u64, event: &Event| self.forgotten.iter().any(|one| one.hides(seq, event));
        all.filter(|(seq, event)| event.event_time_ms >= self.from_ms && !is_hidden(*seq, event)).collect()
    }
}

struct World {
    keyspace: Keyspace,
    engine: Arc<dyn Engine>,
    memory: Option<MemoryEngine>,
    folder: std::path::PathBuf,
    files: Arc<SegmentFiles>,
    indexes: Arc<ChunkIndexes>,
    shard: Shard,
    log: Vec<Vec<u8>>,
    outcomes: Vec<Outcome>,
    caches: rollups::Caches,
    retired: Retired,
}

fn open(engine: &Arc<dyn Engine>, keyspace: Keyspace) -> Shard {
    Shard::open(engine.clone(), keyspace, ShardId(5), GameId(1), TokenRange::FULL).expect("opens")
}

impl World {
    fn new(folder: &std::path::Path, engine: Arc<dyn Engine>, memory: Option<MemoryEngine>) -> Self {
        Self::in_keyspace(folder, engine, memory, KEYSPACE)
    }

    fn in_keyspace(
        folder: &std::path::Path,
        engine: Arc<dyn Engine>,
        memory: Option<MemoryEngine>,
        keyspace: Keyspace,
    ) -> Self {
        let files = Arc::new(SegmentFiles::new(folder).expect("folder"));
        let shard = open(&engine, keyspace);
        Self {
            keyspace,
            engine,
            memory,
            folder: folder.to_owned(),
            files,
            indexes: Arc::default(),
            shard,
            log: vec![],
            outcomes: vec![],
            caches: rollups::Caches::default(),
            retired: Retired::default(),
        }
    }

    fn apply(&mut self, body: Body) -> Outcome {
        let hlc = Hlc::from_millis(1_000 + self.log.len() as u64).0;
        let command = Command { version: 1, hlc, body: Some(body) }.encode_to_vec();
        let outcome = one(self.shard.apply(self.log.len() as u64 + 1, &[&command]).expect("applies"));
        self.log.push(command);
        self.outcomes.push(outcome.clone());
        outcome
    }

    fn view(&self) -> View {
        let view = View::open(self.engine.snapshot(), self.keyspace, self.files.clone()).expect("opens");
        view.expect("something was applied").with_indexes(self.indexes.clone())
    }

    fn build(&mut self) {
        let view = self.view();
        let open = self.shard.state().open.unwrap_or_default().id;
        let sealed: Vec<u64> = view
            .sources()
            .expect("reads")
            .iter()
            .filter_map(|source| match source {
                Source::Chunk(chunk) if chunk.id != open => Some(chunk.id),
                _ => None,
            })
            .collect();
        if let (Some(first), Some(last)) = (sealed.first(), sealed.last()) {
            let record =
                build_segment(&view, &self.files, self.keyspace, ChunkId(*first), ChunkId(*last)).expect("builds");
            assert!(commit_segment(&self.engine, self.keyspace, &record).expect("commits"));
        }
    }

    fn flush(&mut self) {
        let count = self.retired.len();
        self.engine.flush().expect("flushes");
        self.retired.flushed(count);
    }

    /// Builds a segment of each sealed chunk.
    fn build_each(&mut self) {
        let view = self.view();
        let open = self.shard.state().open.unwrap_or_default().id;
        for source in view.sources().expect("reads") {
            if let Source::Chunk(chunk) = source
                && chunk.id != open
            {
                let id = ChunkId(chunk.id);
                let record = build_segment(&view, &self.files, self.keyspace, id, id).expect("builds");
                assert!(commit_segment(&self.engine, self.keyspace, &record).expect("commits"));
            }
        }
    }

    /// Loses what was not flushed and applies the log again: every outcome must be the first one.
    fn crash(&mut self) {
        let Some(memory) = &self.memory else { return };
        self.retired = Retired::default();
        memory.crash();
        // A restarted process has no index and no file open, and removes those that no row names.
        self.indexes = Arc::default();
        self.files = Arc::new(SegmentFiles::new(&self.folder).expect("folder"));
        let known = known_segments(self.engine.as_ref(), [self.keyspace]).expect("reads");
        self.files.remove_unknown(&known).expect("removes");
        self.shard = open(&self.engine, self.keyspace);
        let from = usize::try_from(self.shard.applied()).expect("small");
        for (at, command) in self.log.iter().enumerate().skip(from) {
            let outcome = one(self.shard.apply(at as u64 + 1, &[command]).expect("applies"));
            assert_eq!(outcome, self.outcomes[at], "command {} answers otherwise after a crash", at + 1);
        }
    }
}

/// The outcome of an entry's only command.
fn one(mut outcomes: Vec<Outcome>) -> Outcome {
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// What an event says, whatever the order of its members.
fn said(event: &Event) -> (String, i64, String, serde_json::Value) {
    let text = if event.properties.is_empty() { "{}" } else { &event.properties };
    let properties = serde_json::from_str(text).expect("JSON");
    (event.player_id.clone(), event.event_time_ms, event.event_type.clone(), properties)
}

fn check(world: &World, model: &Model) {
    if world.log.is_empty() {
        return;
    }
    let view = world.view();
    let stored: Vec<_> = view.events_after(Seq(0), EventFilter::default()).collect::<Result<_, _>>().expect("reads");
    let found: Vec<_> = stored.iter().map(|stored| (stored.seq, said(stored.event.as_ref().expect("event")))).collect();
    let readable = model.readable();
    assert_eq!(found, readable.iter().map(|(seq, event)| (*seq, said(event))).collect::<Vec<_>>());
    let kinds: Vec<_> = stored
        .iter()
        .map(|one| one.event.clone().expect("event"))
        .flat_map(|event| {
            properties::check(&event.properties)
                .expect("valid")
                .into_iter()
                .map(|(name, kind)| (name.into_owned(), kind))
                .collect::<Vec<_>>()
        })
        .collect();
    let catalog = view.properties().expect("reads");
    let known = |name: &String| properties::Kinds(u8::try_from(catalog[name].kinds).expect("eight kinds"));
    assert!(kinds.iter().all(|(name, kind)| kind.within(known(name))), "a value's kind is missing in the catalog");
    rollups::check(std::slice::from_ref(&view), &model.rollups, &model.events, &model.forgotten, &world.caches);
    check_reads(&view, &readable);
    catalog::check(&view, model, &readable);
    for player in 0..4u8 {
        let player = format!("p{player}");
        let cells = view.cells(&player, &Selection::Row.into()).expect("reads");
        let found = cells.first().map(|cell| cell.value.clone().expect("value"));
        assert_eq!(found, model.counters.get(&player).map(|value| int(*value)), "{player}");
        assert!(cells.len() <= 1);
    }
}

/// Pages of players and tails from anywhere hold what the list holds, also from a view that is older than the indexes.
fn check_reads(view: &View, events: &[(u64, Event)]) {
    for after in [0, view.state().last_seq / 2, view.state().last_seq] {
        let seqs = view.events_after(Seq(after), EventFilter::default()).map(|event| event.expect("reads").seq);
        let expected = events.iter().map(|(seq, _)| *seq).filter(|seq| *seq > after);
        assert_eq!(seqs.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
    for player in 0..4u8 {
        let player = format!("p{player}");
        for (direction, limit) in [(Direction::Forward, 1_000), (Direction::Backward, 3)] {
            let filter = EventFilter {
                time_ms: 5..30,
                event_types: Some(vec!["t0".into(), "t1".into()]),
                ..EventFilter::player(&player)
            };
            let mut expected: Vec<_> = events.iter().map(|(seq, event)| (event.event_time_ms, *seq, event)).collect();
            expected.retain(|(time, _, event)| {
                event.player_id == player && filter.time_ms.contains(time) && event.event_type != "t2"
            });
            expected.sort_by_key(|(time, seq, _)| (*time, *seq));
            if direction == Direction::Backward {
                expected.reverse();
            }
            let expected: Vec<_> = expected.iter().map(|(_, seq, _)| *seq).collect();
            let mut paged = Vec::new();
            let mut after = None;
            loop {
                let page = view.player_page(&filter, &Column::event(None), direction, after, limit).expect("reads");
                paged.extend(page.events.iter().map(|event| event.seq));
                after =
                    page.events.last().map(|last| (last.event.as_ref().expect("event").event_time_ms, Seq(last.seq)));
                if !page.more {
                    break;
                }
            }
            assert_eq!(paged, expected, "{player} {direction:?}");
        }
    }
    scans::check(view, events);
}

fn forget(world: &mut World, model: &mut Model, player: &str) {
    let (range, player_id) = (Some(TokenRange::FULL.into()), player.to_owned());
    let outcome = world.apply(Body::ForgetPlayer(ForgetPlayer { range, player_id }));
    let Some(outcome::Result::PlayerForgotten(forgotten)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!(forgotten.through_seq, model.events.len() as u64);
    let (hlc, player, through) = (forgotten.hlc, player.to_owned(), forgotten.through_seq);
    model.forgotten.push(Forgotten { hlc, player, through, dropped_ms: model.from_ms });
}

fn define(world: &mut World, model: &mut Model, id: u64) {
    world.apply(Body::DefineRollup(rollups::definition(id)));
    model
        .rollups
        .insert(id, rollups::Counts { from_ms: model.from_ms, forgotten: model.forgotten.len(), ..Default::default() });
}

fn run(steps: &[Step], world: &mut World) -> Model {
    let mut model = Model::default();
    let mut sent: Vec<(Option<u64>, Vec<Event>)> = Vec::new();
    let store = |world: &mut World, model: &mut Model, number: Option<u64>, events: Vec<Event>| {
        let outcome = world.apply(append(number, events.clone()));
        match (number.and_then(|number| model.numbers.get(&number)), outcome.result) {
            (Some(known), Some(outcome::Result::Appended(appended))) => {
                assert!(appended.duplicate && *known == events, "a used number took other content");
            }
            (Some(known), Some(outcome::Result::Rejected(_))) => assert_ne!(*known, events),
            (None, Some(outcome::Result::Appended(appended))) => {
                assert_eq!(
                    (appended.first_seq, appended.count as usize),
                    (model.events.len() as u64 + 1, events.len())
                );
                model.events.extend(events.clone());
                if let Some(number) = number {
                    model.numbers.insert(number, events);
                }
            }
            (known, other) => panic!("{known:?} answered with {other:?}"),
        }
    };
    // What a read that began earlier sees.
    let mut older: Option<([View; 1], Model)> = None;
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Append { number, events } => {
                let events: Vec<_> = events.iter().copied().map(event).collect();
                sent.push((*number, events.clone()));
                store(world, &mut model, *number, events);
            }
            Step::Repeat(at) => {
                if let Some((number, events)) = sent.get(*at).cloned() {
                    store(world, &mut model, number, events);
                }
            }
            Step::Named(named) => {
                let now = world.log.len() as u64;
                let mut events = Vec::new();
                let mut stored = Vec::new();
                for (said, id) in named {
                    let event_id = if *id == 0 { String::new() } else { format!("id{id}") };
                    let event = Event { event_id, ..event(*said) };
                    events.push(event.clone());
                    let known =
                        model.ids.get(&(said.0, *id)).is_some_and(|at| now - at < model.window.unwrap_or(u64::MAX));
                    if *id == 0 || !known {
                        model.ids.insert((said.0, *id), now);
                        stored.push(event);
                    }
                }
                let outcome = world.apply(append(None, events));
                let Some(outcome::Result::Appended(appended)) = outcome.result else { panic!("{outcome:?}") };
                let first = if stored.is_empty() { 0 } else { model.events.len() + 1 };
                assert_eq!((appended.first_seq, appended.count as usize), (first as u64, stored.len()));
                assert_eq!(appended.repeated as usize, named.len() - stored.len());
                model.events.extend(stored);
            }
            Step::Window(window_ms) => {
                let window_ms = model.window.unwrap_or(u64::MAX).min(*window_ms);
                model.window = Some(window_ms);
                world.apply(Body::SetEventIdWindow(SetEventIdWindow { window_ms }));
            }
            Step::Increment { player, by, expected } => {
                let player_id = format!("p{player}");
                let cell = ("counters".to_owned(), "n".to_owned());
                let test = Some(expected.map_or(Test::Absent(Null::Null.into()), |value| Test::Equals(int(value))));
                let precondition = Precondition { family: cell.0.clone(), qualifier: cell.1.clone(), test };
                let change = Some(Change::Increment(*by));
                let mutation = Mutation { family: cell.0, qualifier: cell.1, change, ..Mutation::default() };
                let known = model.counters.get(&player_id).copied();
                let mutate = MutatePlayer {
                    range: Some(TokenRange::FULL.into()),
                    player_id: player_id.clone(),
                    preconditions: vec![precondition],
                    mutations: vec![mutation],
                    ..Default::default()
                };
                match world.apply(Body::Mutate(mutate)).result {
                    Some(outcome::Result::Mutated(mutated)) => {
                        assert_eq!(known, *expected);
                        let new = known.unwrap_or(0) + by;
                        assert_eq!(mutated.values, vec![int(new)]);
                        model.counters.insert(player_id, new);
                    }
                    Some(outcome::Result::Rejected(rejection)) => {
                        assert_ne!(known, *expected);
                        assert_eq!(rejection.found, known.map(int));
                    }
                    other => panic!("{other:?}"),
                }
            }
            Step::Delete { player } => {
                let change = Some(Change::Delete(Null::Null.into()));
                let (family, qualifier) = ("counters".into(), "n".into());
                let mutation = Mutation { family, qualifier, change, ..Mutation::default() };
                let player_id = format!("p{player}");
                model.counters.remove(&player_id);
                let range = Some(TokenRange::FULL.into());
                world.apply(Body::Mutate(MutatePlayer {
                    range,
                    player_id,
                    mutations: vec![mutation],
                    ..Default::default()
                }));
            }
            Step::Seal => {
                let chunk = world.shard.state().open.unwrap_or_default().id;
                world.apply(Body::Seal(Seal { chunk }));
            }
            Step::Build if world.log.is_empty() => {}
            Step::Build => world.build(),
            Step::Merge { .. } if world.log.is_empty() => {}
            Step::Merge { from, count } => {
                let segments = merges::segments(world);
                let chosen = segments.get(*from..(from + count).min(segments.len())).unwrap_or_default();
                if chosen.len() > 1 {
                    assert!(merges::merge(world, chosen));
                }
                world.retired.sweep(world.engine.as_ref(), &world.files).expect("sweeps");
            }
            Step::DropBefore(time_ms) => {
                world.apply(Body::DropEventsBefore(DropEventsBefore { time_ms: *time_ms }));
                model.from_ms = model.from_ms.max(*time_ms);
            }
            Step::Expire if world.log.is_empty() => {}
            Step::Expire => {
                while merges::expire(world) {}
                merges::clean_up(world);
            }
            Step::Forget { player } => {
                let player_id = format!("p{player}");
                forget(world, &mut model, &player_id);
                model.counters.remove(&player_id);
            }
            Step::Declare(choice) => catalog::declare(world, *choice),
            Step::Define(kind) => {
                model.defined += 1;
                let id = model.defined * rollups::KINDS + kind;
                define(world, &mut model, id);
            }
            Step::Drop(place) => {
                let id = model.rollups.keys().nth(*place).copied().unwrap_or(rollups::KINDS);
                world.apply(Body::DropRollup(DropRollup { id }));
                model.rollups.remove(&id);
            }
            Step::DropBuckets { place, tier, before_ms } => {
                let Some((rollup, counts)) = model.rollups.iter_mut().nth(*place) else { continue };
                let (rollup, tier, before_ms) = (*rollup, *tier, *before_ms);
                let outcome = world.apply(Body::DropBuckets(DropBuckets { rollup, tier, before_ms })).result;
                let width = rollups::definition(rollup).tiers.get(tier as usize).map(|tier| tier.bucket_ms);
                let from_ms = width.map(|width| before_ms / width * width);
                let known = &mut counts.kept_from[tier as usize];
                let changed = from_ms.is_some_and(|from_ms| known.is_none_or(|known| known < from_ms));
                assert_eq!(outcome, Some(outcome::Result::RollupChanged(RollupChanged { changed })));
                if changed {
                    *known = from_ms;
                }
            }
            Step::Cover if world.log.is_empty() => {}
            Step::Cover => {
                // Also parts of a chunk or segment.
                let piece = Piece {
                    cells: if at % 3 == 0 { 100 } else { 3 },
                    bytes: if at % 2 == 0 { 1_500 } else { 1 << 20 },
                };
                let first = if at % 4 < 2 { First::Covering } else { First::TakingOut };
                rollups::cover_pieces(&world.view(), &world.engine, &model.rollups, first, &piece);
            }
            Step::Flush => world.flush(),
            Step::Crash => {
                world.crash();
                older = None;
            }
        }
        check(world, &model);
        if let Some((views, model)) = &older {
            rollups::check(views, &model.rollups, &model.events, &model.forgotten, &world.caches);
            check_reads(&views[0], &model.readable());
        }
        if at % 3 == 0 && !world.log.is_empty() {
            older = Some(([world.view()], model.clone()));
        }
    }
    model
}

/// Events and cells, without what depends on their place in the log.
fn content(view: &View) -> (Vec<StoredEvent>, Vec<Vec<Cell>>) {
    let events = view.events_after(Seq(0), EventFilter::default()).map(|event| {
        let event = event.expect("reads");
        let said = event.event.as_ref().map(|event| said(event).3.to_string());
        let whole = event.event.map(|event| Event { properties: said.unwrap_or_default(), ..event });
        StoredEvent { event: whole, ..event }
    });
    let cells = (0..4).map(|player| view.cells(&format!("p{player}"), &Selection::Row.into()).expect("reads"));
    (events.collect(), cells.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn any_run_leaves_what_the_model_holds(steps in prop::collection::vec(step(), 1..24)) {
        let folder = tempfile::tempdir().expect("folder");
        let memory = MemoryEngine::default();
        let mut world = World::new(&folder.path().join("memory"), Arc::new(memory.clone()), Some(memory));
        run(&steps, &mut world);
        if world.log.is_empty() {
            return Ok(());
        }
        let sum = Checksum::of(&world.view()).expect("sums");
        if !steps.len().is_multiple_of(7) {
            return Ok(());
        }

        // The same log on RocksDB, in one tier only: the same content, the same checksum.
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&folder.path().join("rocks"), &rocks::Options::default()).expect("opens"));
        let mut other = World::new(&folder.path().join("segments"), engine, None);
        for (at, command) in world.log.iter().enumerate() {
            let outcome = one(other.shard.apply(at as u64 + 1, &[command]).expect("applies"));
            prop_assert_eq!(&outcome, &world.outcomes[at]);
        }
        prop_assert_eq!(Checksum::of(&other.view()).expect("sums"), sum);

        // The same commands, several a write: each sees what those before it did.
        let mut packed = World::new(&folder.path().join("packed"), Arc::new(MemoryEngine::default()), None);
        let mut outcomes = Vec::new();
        let mut rest = world.log.as_slice();
        for (round, size) in [3, 1, 5, 2].into_iter().cycle().enumerate() {
            let (entry, behind) = rest.split_at(size.min(rest.len()));
            let commands: Vec<_> = entry.iter().map(Vec::as_slice).collect();
            // As one entry, or as two that are applied together.
            let (left, right) = commands.split_at(if round % 2 == 0 { commands.len() } else { commands.len() / 2 });
            let entries = [left, right].into_iter().filter(|commands| !commands.is_empty());
            let index = packed.shard.applied() + 1;
            outcomes.extend(packed.shard.apply_all((index..).zip(entries)).expect("applies"));
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&outcomes, &world.outcomes);
        prop_assert_eq!(content(&packed.view()), content(&world.view()));
    }
}

/// A bit that flips in a segment is reported with file and offset and never returned as data (P7).
#[test]
fn a_flipped_bit_is_an_error_wherever_it_is() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    let events: Vec<_> = (0..200u8).map(|i| event((i % 4, i64::from(i), i % 6))).collect();
    world.apply(append(None, events));
    world.apply(Body::Seal(Seal { chunk: 1 }));
    world.build();
    let before = Checksum::of(&world.view()).expect("sums");
    let Source::Segment(record) = world.view().sources().expect("reads")[0].clone() else { panic!("no segment") };
    let path = world.files.path(KEYSPACE, galoo_proto::SegmentId(record.id));
    let good = std::fs::read(&path).expect("reads");
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).expect("writes");
        // A fresh set of files: nothing is open or verified yet.
        let files = Arc::new(SegmentFiles::new(folder.path()).expect("folder"));
        let view = View::open(world.engine.snapshot(), KEYSPACE, files.clone()).expect("opens").expect("there");
        let error = Checksum::of(&view).expect_err("a flipped bit").to_string();
        assert!(error.contains("corrupt segment at offset 0 of") && error.contains(".parquet"), "{error}");
        // Whoever finds it, nobody reads the file any more.
        let damaged: Vec<_> = files.damaged().iter().map(|one| (one.keyspace, one.seqs.clone())).collect();
        assert_eq!(damaged, [(KEYSPACE, 1..=200)]);
    }
    // A file that was read before is found by the scrubber alone; from then on it is not read.
    let mut bad = good.clone();
    bad[70] ^= 1;
    std::fs::write(&path, &good).expect("writes");
    let files = Arc::new(SegmentFiles::new(folder.path()).expect("folder"));
    let view = View::open(world.engine.snapshot(), KEYSPACE, files.clone()).expect("opens").expect("there");
    let scrub = || files.scrub(KEYSPACE, &record, &mut |_| segment::Step::On);
    assert_eq!(Checksum::of(&view).expect("sums"), before);
    assert!(scrub().expect("is whole") && files.damaged().is_empty());
    std::fs::write(&path, &bad).expect("writes");
    let error = scrub().expect_err("a flipped bit").to_string();
    assert!(error.contains("corrupt segment at offset 0 of"), "{error}");
    assert_eq!(Checksum::of(&view).expect_err("is quarantined").to_string(), error);
    assert_eq!(files.damaged().len(), 1);

    std::fs::write(&path, &good[..good.len() - 1]).expect("writes");
    let files = Arc::new(SegmentFiles::new(folder.path()).expect("folder"));
    let view = View::open(world.engine.snapshot(), KEYSPACE, files).expect("opens").expect("there");
    assert!(Checksum::of(&view).is_err(), "a file cut short");
    std::fs::write(&path, &good).expect("writes");
    let files = Arc::new(SegmentFiles::new(folder.path()).expect("folder"));
    let view = View::open(world.engine.snapshot(), KEYSPACE, files).expect("opens").expect("there");
    assert_eq!(Checksum::of(&view).expect("sums"), before);
}

/// A segment of covered and uncovered chunks lies across a rollup's mark: only what is behind it is added (INV-S6).
#[test]
fn a_segment_across_the_mark_counts_every_event_once() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    let live = rollups::Live::from([(1, Default::default()), (2, Default::default())]);
    live.keys().for_each(|id| drop(world.apply(Body::DefineRollup(rollups::definition(*id)))));
    let mut model = Model { rollups: live.clone(), ..Model::default() };
    for chunk in 1..=2u8 {
        let events: Vec<_> = (0..9u8).map(|i| event((i % 4, i64::from(i * chunk), i % 6))).collect();
        model.events.extend(events.clone());
        world.apply(append(None, events));
        world.apply(Body::Seal(Seal { chunk: chunk.into() }));
        if chunk == 1 {
            rollups::cover_all(&world.view(), &world.engine, &live);
        }
    }
    world.build();
    check(&world, &model);
    rollups::cover_all(&world.view(), &world.engine, &live);
    check(&world, &model);
}
