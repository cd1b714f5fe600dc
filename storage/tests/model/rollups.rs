//! Rollups against the model: what a rollup answers is the same aggregate over the plain list, however far covering is (P4).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use galoo_proto::{
    Keyspace,
    command::{Seal, command::Body},
    rollup::{Aggregate, Bucket, Column, Field, Function, Operand, Property, PropertyType, Rollup, column, operand},
    value::Event,
};
use galoo_storage::{
    engine::memory::MemoryEngine,
    rollup::{
        Definition,
        accumulator::Number,
        bucket_start,
        cache::{Limits, RollupCache},
        cell::GroupValue,
        cover,
        read::RollupRows,
    },
    view::View,
};
use proptest::prelude::*;

use super::{World, append, event};

const BUCKET_MS: i64 = 10;

fn field(field: Field) -> Operand {
    Operand { column: Some(operand::Column::Field(field.into())) }
}

fn property(name: &str, kind: PropertyType) -> Operand {
    Operand { column: Some(operand::Column::Property(Property { name: name.to_owned(), r#type: kind.into() })) }
}

fn aggregate(name: &str, function: Function, operand: Option<Operand>) -> Column {
    let kind = column::Kind::Aggregate(Aggregate { function: function.into(), operand });
    Column { name: name.to_owned(), kind: Some(kind) }
}

fn group(name: &str, operand: Operand) -> Column {
    Column { name: name.to_owned(), kind: Some(column::Kind::Group(operand)) }
}

/// A rollup of one of two shapes: by type, and by player and a property.
pub fn definition(id: u64) -> Rollup {
    let bucket = Column { name: "bucket".into(), kind: Some(column::Kind::Bucket(Bucket {})) };
    let columns = if id.is_multiple_of(2) {
        vec![
            bucket,
            group("event_type", field(Field::EventType)),
            aggregate("events", Function::Count, None),
            aggregate("named", Function::Count, Some(property("name", PropertyType::Text))),
            aggregate("sum", Function::Sum, Some(property("x", PropertyType::Int))),
            aggregate("least", Function::Min, Some(property("x", PropertyType::Int))),
            aggregate("players", Function::CountDistinct, Some(field(Field::PlayerId))),
        ]
    } else {
        vec![
            group("player_id", field(Field::PlayerId)),
            group("ok", property("ok", PropertyType::Bool)),
            bucket,
            aggregate("sum", Function::Sum, Some(property("x", PropertyType::Float))),
            aggregate("avg", Function::Avg, Some(property("x", PropertyType::Float))),
            aggregate("greatest", Function::Max, Some(property("x", PropertyType::Float))),
            aggregate("latest", Function::Max, Some(field(Field::EventTime))),
        ]
    };
    let event_types = if id.is_multiple_of(2) { vec![] } else { vec!["t0".to_owned(), "t1".to_owned()] };
    Rollup { version: 1, id, name: format!("r{id}"), bucket_ms: BUCKET_MS, event_types, columns, ..Default::default() }
}

type Rows = BTreeMap<(i64, Vec<String>), Vec<Number>>;

fn rows(views: &[View], definition: &Arc<Definition>, buckets_ms: &Range<i64>, cache: &RollupCache) -> Rows {
    let mut read = RollupRows::open(views, definition, buckets_ms, cache).expect("opens");
    let mut rows = Rows::new();
    while let Some(row) = read.next().expect("reads") {
        let groups = row.groups().expect("reads").into_iter().map(|group| match group {
            GroupValue::Null => "null".to_owned(),
            GroupValue::Bool(value) => value.to_string(),
            GroupValue::Int(value) => value.to_string(),
            GroupValue::Text(value) => value.into_owned(),
        });
        let place = (row.bucket_ms().expect("reads"), groups.collect());
        let is_behind = |(last, _): (&(i64, Vec<String>), _)| *last < place;
        // By player, rows come in the order of tokens.
        assert!(definition.groups_by_player() || rows.last_key_value().is_none_or(is_behind), "{place:?} comes late");
        let values = row.cell.0.iter().zip(&definition.aggregates);
        let values = values.map(|(accumulator, aggregate)| accumulator.value(aggregate).expect("fits")).collect();
        let before = rows.insert(place, values);
        assert!(before.is_none(), "a group has two rows");
    }
    rows
}

fn member(event: &Event, name: &str) -> Option<serde_json::Value> {
    let text = if event.properties.is_empty() { "{}" } else { &event.properties };
    serde_json::from_str::<serde_json::Value>(text).expect("JSON").get(name).cloned()
}

fn expected(id: u64, events: &[Event]) -> Rows {
    let mut groups: BTreeMap<(i64, Vec<String>), Vec<&Event>> = BTreeMap::new();
    for event in events {
        let bucket = bucket_start(event.event_time_ms, BUCKET_MS);
        let group = if id.is_multiple_of(2) {
            vec![event.event_type.clone()]
        } else if event.event_type == "t2" {
            continue;
        } else {
            let ok = member(event, "ok").map_or_else(|| "null".to_owned(), |ok| ok.to_string());
            vec![event.player_id.clone(), ok]
        };
        groups.entry((bucket, group)).or_default().push(event);
    }
    let optional = |value: Option<Number>| value.unwrap_or(Number::Null);
    groups
        .into_iter()
        .map(|(place, events)| {
            let xs = || events.iter().filter_map(|event| member(event, "x"));
            let values = if id.is_multiple_of(2) {
                let ints: Vec<i64> = xs().filter_map(|x| x.as_i64()).collect();
                let named = events.iter().filter(|event| member(event, "name").is_some()).count();
                let players: BTreeSet<_> = events.iter().map(|event| &event.player_id).collect();
                vec![
                    Number::Int(events.len() as i64),
                    Number::Int(named as i64),
                    optional((!ints.is_empty()).then(|| Number::Int(ints.iter().sum()))),
                    optional(ints.iter().min().map(|least| Number::Int(*least))),
                    Number::Int(players.len() as i64),
                ]
            } else {
                // A number that no 64 bits hold exactly is kept as JSON: no float.
                let fits = |x: &serde_json::Value| x.is_i64() || x.as_f64().is_some_and(|x| x < 1e20);
                let floats: Vec<f64> = xs().filter(fits).filter_map(|x| x.as_f64()).collect();
                let sum: f64 = floats.iter().sum();
                let latest = events.iter().map(|event| event.event_time_ms).max();
                vec![
                    optional((!floats.is_empty()).then_some(Number::Float(sum))),
                    optional((!floats.is_empty()).then_some(Number::Float(sum / floats.len() as f64))),
                    optional(floats.iter().copied().reduce(f64::max).map(Number::Float)),
                    optional(latest.map(Number::Int)),
                ]
            };
            (place, values)
        })
        .collect()
}

/// Caches that live as long as a shard.
pub struct Caches {
    warm: RollupCache,
    /// Lets partials and merged cells go all the time.
    tight: RollupCache,
}

impl Default for Caches {
    fn default() -> Self {
        let tight = Limits { bytes_max: 6_000, merged_bytes_max: 2_000 };
        Self { warm: RollupCache::default(), tight: RollupCache::new(tight) }
    }
}

/// Rollups that are there, each with what it counts.
pub type Live = BTreeMap<u64, Counts>;

/// Which events a rollup counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Those from this time on.
    pub from_ms: i64,
    /// But for those of players up to a sequence number, who were forgotten before it was made.
    pub forgotten: BTreeMap<String, u64>,
}

impl Counts {
    /// Whether an event is counted; `forgotten` are those who were forgotten by now.
    fn count(&self, id: u64, seq: u64, event: &Event, forgotten: &BTreeMap<String, u64>) -> bool {
        // A rollup that names players says nothing of one who was forgotten.
        let hidden = if id.is_multiple_of(2) { &self.forgotten } else { forgotten };
        event.event_time_ms >= self.from_ms && hidden.get(&event.player_id).is_none_or(|through| seq > *through)
    }
}

/// Every rollup of a cut, over all buckets and some: what earlier reads left changes no answer, nor does streaming.
pub fn check(views: &[View], live: &Live, events: &[Event], forgotten: &BTreeMap<String, u64>, caches: &Caches) {
    for view in views {
        let rollups = view.rollups().expect("reads");
        let known: Vec<_> = rollups.iter().map(|rollup| (rollup.id, rollup.events_from_ms)).collect();
        assert_eq!(known, live.iter().map(|(id, counts)| (*id, counts.from_ms)).collect::<Vec<_>>());
    }
    for (id, counts) in live {
        let definition = Arc::new(Definition::parse(&definition(*id)).expect("valid"));
        let all = (1..).zip(events).filter(|(seq, event)| counts.count(*id, *seq, event, forgotten));
        let counted: Vec<_> = all.map(|(_, event)| event.clone()).collect();
        let all = expected(*id, &counted);
        let streaming = RollupCache::new(Limits { merged_bytes_max: 0, ..Limits::default() });
        for (name, cache) in [
            ("nothing", &RollupCache::default()),
            ("what earlier reads left", &caches.warm),
            ("what little of it there is room for", &caches.tight),
            ("no room for merged cells", &streaming),
        ] {
            let some = 10 * (events.len() as i64 % 3)..30;
            for buckets_ms in [some, 20..50, i64::MIN..i64::MAX] {
                let inside = all.iter().filter(|((bucket, _), _)| buckets_ms.contains(bucket));
                let expected: Rows = inside.map(|(place, values)| (place.clone(), values.clone())).collect();
                let found = rows(views, &definition, &buckets_ms, cache);
                assert_eq!(found, expected, "r{id} of buckets {buckets_ms:?} with {name}");
            }
        }
    }
}

/// Covers the next source of each rollup, if `commit` is asked for again after something else was committed.
pub fn cover_all(view: &View, engine: &Arc<dyn galoo_storage::engine::Engine>, live: &Live) {
    for id in live.keys() {
        let definition = Definition::parse(&definition(*id)).expect("valid");
        let Some(prepared) = cover::prepare(view, &definition).expect("prepares") else { continue };
        let stale = prepared.clone();
        assert!(cover::commit(engine, view.keyspace(), prepared).expect("commits"));
        assert!(!cover::commit(engine, view.keyspace(), stale).expect("reads"), "a stale cover counts events twice");
    }
}

/// What happens to one of two shards.
#[derive(Clone, Debug)]
enum Turn {
    Append(Vec<(u8, i64, u8)>),
    Seal,
    Build,
    Cover,
}

fn turn() -> impl Strategy<Value = (usize, Turn)> {
    let events = prop::collection::vec((0u8..4, 0i64..40, 0u8..6), 1..6);
    let turn = prop_oneof![
        3 => events.prop_map(Turn::Append),
        2 => Just(Turn::Seal),
        1 => Just(Turn::Build),
        1 => Just(Turn::Cover),
    ];
    (0usize..2, turn)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Two shards whose chunks are sealed, covered and turned into segments at different moments: a rollup over both is
    /// right, also for a read that began before and ends after others.
    #[test]
    fn a_rollup_over_two_shards_is_right_whatever_earlier_reads_left(turns in prop::collection::vec(turn(), 1..20)) {
        let folder = tempfile::tempdir().expect("folder");
        let live = Live::from([(1, Counts::default()), (2, Counts::default())]);
        let mut shards = [1, 2].map(|place| {
            let memory = MemoryEngine::default();
            let folder = folder.path().join(place.to_string());
            let mut world = World::in_keyspace(&folder, Arc::new(memory.clone()), Some(memory), Keyspace(place));
            live.keys().for_each(|id| drop(world.apply(Body::DefineRollup(definition(*id)))));
            world
        });
        let (mut events, caches) = (Vec::new(), Caches::default());
        let mut older: Option<([View; 2], Vec<Event>)> = None;
        for (at, (shard, turn)) in turns.into_iter().enumerate() {
            let world = &mut shards[shard];
            match turn {
                Turn::Append(new) => {
                    let new: Vec<Event> = new.into_iter().map(event).collect();
                    events.extend(new.clone());
                    world.apply(append(None, new));
                }
                Turn::Seal => {
                    let chunk = world.shard.state().open.unwrap_or_default().id;
                    world.apply(Body::Seal(Seal { chunk }));
                }
                Turn::Build => world.build(),
                Turn::Cover => cover_all(&world.view(), &world.engine, &live),
            }
            let views = [shards[0].view(), shards[1].view()];
            check(&views, &live, &events, &BTreeMap::new(), &caches);
            if let Some((views, events)) = &older {
                check(views, &live, events, &BTreeMap::new(), &caches);
            }
            if at % 3 == 0 {
                older = Some((views, events.clone()));
            }
        }
    }
}
