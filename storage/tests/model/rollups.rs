//! Rollups against the model: what a rollup answers is the same aggregate over the plain list, however far covering is (P4).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
};

use galoo_proto::{
    Keyspace,
    command::{Seal, command::Body},
    record::RollupMark,
    rollup::{
        Aggregate, Bucket, Column, Erasure, Field, Function, Group, Literal, Operand, Predicate, Property,
        PropertyType, Rollup, Test, Tier, column, group, literal, operand,
    },
    value::Event,
};
use galoo_storage::{
    engine::{Direction, Family, WriteBatch, memory::MemoryEngine},
    rollup::{
        Definition, bucket_start,
        cache::{Limits, RollupCache},
        cell::Value,
        cover::{self, First, Piece},
        mark,
        read::{RollupRows, Slice},
        verify::verify,
    },
    view::View,
};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{Forgotten, World, append, event};

fn field(field: Field) -> Operand {
    Operand { column: Some(operand::Column::Field(field.into())) }
}

fn property(name: &str, kind: PropertyType) -> Operand {
    Operand { column: Some(operand::Column::Property(Property { name: name.to_owned(), r#type: kind.into() })) }
}

fn aggregate(name: &str, function: Function, operand: Option<Operand>) -> Column {
    let aggregate = Aggregate { function: function.into(), operand, quantile: 0.5, skips_nulls: name == "skips" };
    Column { name: name.to_owned(), kind: Some(column::Kind::Aggregate(aggregate)) }
}

fn group(name: &str, operand: Operand, width: Option<group::Width>) -> Column {
    Column { name: name.to_owned(), kind: Some(column::Kind::Group(Group { operand: Some(operand), width })) }
}

/// What a rollup is, by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Nothing but the bucket.
    Whole,
    /// By player and a property, of two types.
    Player,
    /// By type.
    Type,
    /// By ranges of a number, of some events, two ranges a bucket and the rest.
    Ranges,
    /// By type, of what can be taken out again.
    Sums,
}

/// Kinds of rollups: what each is and what it does about forgotten players goes by its number.
pub const KINDS: u64 = 8;

fn kind(id: u64) -> (Shape, Erasure) {
    [
        (Shape::Whole, Erasure::Keep),
        (Shape::Player, Erasure::Keep),
        (Shape::Type, Erasure::Keep),
        (Shape::Ranges, Erasure::Keep),
        (Shape::Sums, Erasure::Subtract),
        (Shape::Type, Erasure::Recompute),
        (Shape::Ranges, Erasure::Recompute),
        (Shape::Whole, Erasure::Recompute),
    ][(id % KINDS) as usize]
}

fn shape(id: u64) -> Shape {
    kind(id).0
}

fn erasure(id: u64) -> Erasure {
    kind(id).1
}

const RANGE_WIDTH: i64 = 7;
const RANGES_MAX: usize = 2;
const X_MAX: i64 = 25;

/// A rollup of one of the kinds.
pub fn definition(id: u64) -> Rollup {
    let bucket = Column { name: "bucket".into(), kind: Some(column::Kind::Bucket(Bucket {})) };
    let (ints, floats) = (|| Some(property("x", PropertyType::Int)), || Some(property("x", PropertyType::Float)));
    let predicate = |operand, test: Test, kind| Predicate {
        operand: Some(operand),
        test: test.into(),
        literals: vec![Literal { kind: Some(kind) }],
    };
    let (mut event_types, mut predicates, mut groups_max) = (vec![], vec![], 0);
    let (columns, widths_ms): (_, &[i64]) = match shape(id) {
        Shape::Whole => (
            vec![
                aggregate("first", Function::First, Some(property("name", PropertyType::Text))),
                bucket,
                aggregate("skips", Function::Last, Some(property("name", PropertyType::Text))),
                aggregate("last", Function::Last, Some(property("ok", PropertyType::Bool))),
            ],
            &[10, 30],
        ),
        Shape::Player => {
            event_types = vec!["t0".to_owned(), "t1".to_owned()];
            (
                vec![
                    group("player_id", field(Field::PlayerId), None),
                    group("ok", property("ok", PropertyType::Bool), None),
                    bucket,
                    aggregate("sum", Function::Sum, floats()),
                    aggregate("avg", Function::Avg, floats()),
                    aggregate("greatest", Function::Max, floats()),
                    aggregate("latest", Function::Max, Some(field(Field::EventTime))),
                ],
                &[10, 20],
            )
        }
        Shape::Type => (
            vec![
                bucket,
                group("event_type", field(Field::EventType), None),
                aggregate("events", Function::Count, None),
                aggregate("named", Function::Count, Some(property("name", PropertyType::Text))),
                aggregate("sum", Function::Sum, ints()),
                aggregate("least", Function::Min, ints()),
                aggregate("players", Function::CountDistinct, Some(field(Field::PlayerId))),
                aggregate("median", Function::Quantile, ints()),
            ],
            &[5, 10, 20, 60],
        ),
        Shape::Sums => (
            vec![
                bucket,
                group("event_type", field(Field::EventType), None),
                aggregate("events", Function::Count, None),
                aggregate("named", Function::Count, Some(property("name", PropertyType::Text))),
                aggregate("sum", Function::Sum, ints()),
                aggregate("floats", Function::Avg, floats()),
                aggregate("median", Function::Quantile, ints()),
            ],
            &[5, 15],
        ),
        Shape::Ranges => {
            predicates = vec![
                predicate(field(Field::EventType), Test::IsNot, literal::Kind::Text("t2".into())),
                predicate(property("x", PropertyType::Int), Test::AtMost, literal::Kind::Int(X_MAX)),
            ];
            groups_max = RANGES_MAX as u64;
            (
                vec![
                    bucket,
                    group("range", property("x", PropertyType::Int), Some(group::Width::IntWidth(RANGE_WIDTH))),
                    aggregate("events", Function::Count, None),
                    aggregate("sum", Function::Sum, ints()),
                ],
                &[10, 40],
            )
        }
    };
    let tiers = widths_ms.iter().map(|bucket_ms| Tier { bucket_ms: *bucket_ms, ..Tier::default() }).collect();
    let name = format!("r{id}");
    let erasure = erasure(id).into();
    Rollup { version: 1, id, name, tiers, event_types, columns, predicates, groups_max, erasure, ..Default::default() }
}

/// Bucket and groups of a row; of `other`, that alone.
type Place = (i64, Vec<String>);
type Rows = BTreeMap<Place, Vec<Value<'static>>>;

const OTHER: &str = "other";

fn rows(views: &[View], slice: &Slice, cache: &RollupCache) -> Rows {
    let definition = &slice.definition;
    let mut read = RollupRows::open(views, slice, cache).expect("opens");
    let mut rows = Rows::new();
    while let Some(row) = read.next().expect("reads") {
        let text = |value: Value<'_>| match value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Text(value) => value.into_owned(),
        };
        let groups = row.groups().expect("reads").into_iter().map(text).collect();
        let groups = if row.is_other() { vec![OTHER.to_owned()] } else { groups };
        let place = (row.bucket_ms().expect("reads"), groups);
        let is_behind = |(last, _): (&Place, _)| last.0 <= place.0;
        // By player, rows come in the order of tokens.
        assert!(definition.groups_by_player() || rows.last_key_value().is_none_or(is_behind), "{place:?} comes late");
        let values = 0..definition.aggregates.len();
        let values = values.map(|aggregate| row.value(aggregate).expect("fits").into_owned()).collect();
        let before = rows.insert(place, values);
        assert!(before.is_none(), "a group has two rows");
    }
    rows
}

/// Whether rows are as expected; quantiles within 1 %.
fn alike(id: u64, found: &Rows, expected: &Rows) -> bool {
    let near = |(found, expected): (&Value<'_>, &Value<'_>)| match (found, expected) {
        (Value::Float(found), Value::Float(expected)) => (found - expected).abs() <= expected.abs() * 0.01,
        (found, expected) => found == expected,
    };
    if !matches!(shape(id), Shape::Type | Shape::Sums) {
        return found == expected;
    }
    found.keys().eq(expected.keys())
        && found.values().flatten().count() == expected.values().flatten().count()
        && found.values().flatten().zip(expected.values().flatten()).all(near)
}

fn member(event: &Event, name: &str) -> Option<serde_json::Value> {
    let text = if event.properties.is_empty() { "{}" } else { &event.properties };
    serde_json::from_str::<serde_json::Value>(text).expect("JSON").get(name).cloned()
}

fn text(event: &Event, name: &str) -> Value<'static> {
    match member(event, name) {
        Some(serde_json::Value::String(text)) => Value::Text(text.into()),
        Some(serde_json::Value::Bool(bool)) => Value::Bool(bool),
        _ => Value::Null,
    }
}

/// The group that an event is in, and how it is hashed if that matters; `None` if it does not count.
fn group_of(id: u64, event: &Event) -> Option<(Vec<String>, u64)> {
    match shape(id) {
        Shape::Whole => Some((vec![], 0)),
        Shape::Type | Shape::Sums => Some((vec![event.event_type.clone()], 0)),
        Shape::Player => {
            let ok = member(event, "ok").map_or_else(|| "null".to_owned(), |ok| ok.to_string());
            (event.event_type != "t2").then(|| (vec![event.player_id.clone(), ok], 0))
        }
        Shape::Ranges => {
            let x = member(event, "x")?.as_i64().filter(|x| *x <= X_MAX && event.event_type != "t2")?;
            let start = x.div_euclid(RANGE_WIDTH) * RANGE_WIDTH;
            let bytes = [&[1], (start.cast_unsigned() ^ 1 << 63).to_be_bytes().as_slice()].concat();
            Some((vec![start.to_string()], xxh3_64(&bytes)))
        }
    }
}

fn aggregates(id: u64, events: &[&Event]) -> Vec<Value<'static>> {
    let optional = |value: Option<Value<'static>>| value.unwrap_or(Value::Null);
    let xs = || events.iter().filter_map(|event| member(event, "x"));
    let mut ints: Vec<i64> = xs().filter_map(|x| x.as_i64()).collect();
    ints.sort_unstable();
    let sum = (!ints.is_empty()).then(|| Value::Int(ints.iter().sum()));
    // An integer that no float is exactly does not fit into a column of floats, and a number that no 64 bits hold into none.
    let fits = |x: &serde_json::Value| match x.as_i64() {
        Some(int) => galoo_storage::properties::exact_float(int).is_some(),
        None => x.as_f64().is_some_and(|x| x < 1e20),
    };
    let floats: Vec<f64> = xs().filter(fits).filter_map(|x| x.as_f64()).collect();
    let mean = (!floats.is_empty()).then(|| Value::Float(floats.iter().sum::<f64>() / floats.len() as f64));
    let named = events.iter().filter(|event| member(event, "name").is_some()).count();
    let median = ints.len().checked_sub(1).map(|last| Value::Float(ints[last / 2] as f64));
    match shape(id) {
        Shape::Whole => {
            let mut sorted = events.to_vec();
            // Stable: of one time, by seq.
            sorted.sort_by_key(|event| event.event_time_ms);
            let named = sorted.iter().rev().map(|event| text(event, "name")).find(|name| *name != Value::Null);
            let (first, last) =
                (sorted.first().map(|event| text(event, "name")), sorted.last().map(|event| text(event, "ok")));
            vec![optional(first), optional(named), optional(last)]
        }
        Shape::Player => {
            let sum: f64 = floats.iter().sum();
            let latest = events.iter().map(|event| event.event_time_ms).max();
            vec![
                optional((!floats.is_empty()).then_some(Value::Float(sum))),
                optional(mean),
                optional(floats.iter().copied().reduce(f64::max).map(Value::Float)),
                optional(latest.map(Value::Int)),
            ]
        }
        Shape::Type => {
            let players: BTreeSet<_> = events.iter().map(|event| &event.player_id).collect();
            vec![
                Value::Int(events.len() as i64),
                Value::Int(named as i64),
                optional(sum),
                optional(ints.first().map(|least| Value::Int(*least))),
                Value::Int(players.len() as i64),
                optional(median),
            ]
        }
        Shape::Ranges => vec![Value::Int(events.len() as i64), optional(sum)],
        Shape::Sums => vec![
            Value::Int(events.len() as i64),
            Value::Int(named as i64),
            optional(sum),
            optional(mean),
            optional(median),
        ],
    }
}

fn expected(id: u64, bucket_ms: i64, events: &[Event]) -> Rows {
    type Groups<'a> = BTreeMap<(u64, Vec<String>), Vec<&'a Event>>;
    let mut buckets: BTreeMap<i64, Groups<'_>> = BTreeMap::new();
    for event in events {
        let Some((group, hash)) = group_of(id, event) else { continue };
        let bucket = buckets.entry(bucket_start(event.event_time_ms, bucket_ms)).or_default();
        bucket.entry((hash, group)).or_default().push(event);
    }
    let mut rows = Rows::new();
    for (bucket, groups) in buckets {
        let mut other = Vec::new();
        for (place, ((_, group), events)) in groups.into_iter().enumerate() {
            if shape(id) == Shape::Ranges && place >= RANGES_MAX {
                other.extend(events);
            } else {
                rows.insert((bucket, group), aggregates(id, &events));
            }
        }
        if !other.is_empty() {
            rows.insert((bucket, vec![OTHER.to_owned()]), aggregates(id, &other));
        }
    }
    rows
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
    /// But for those of so many players who were forgotten before it was made.
    pub forgotten: usize,
    /// For each tier, the first bucket that is kept.
    pub kept_from: [Option<i64>; 4],
}

impl Counts {
    /// Whether an event is counted by cells that are this far; `forgotten` are all who were forgotten by now.
    fn count(&self, id: u64, seq: u64, event: &Event, forgotten: &[Forgotten], mark: &RollupMark) -> bool {
        let widest_ms = definition(id).tiers.last().expect("a tier").bucket_ms;
        let next = forgotten.iter().skip(self.forgotten).find(|one| one.hlc > mark.erased_hlc);
        let is_out = |(place, one): (usize, &Forgotten)| {
            let from_ms = match erasure(id) {
                // A rollup that names players says nothing of one who was forgotten.
                _ if place < self.forgotten || shape(id) == Shape::Player => return true,
                Erasure::Keep => return false,
                Erasure::Subtract => one.dropped_ms,
                // Buckets of which nothing had been dropped.
                Erasure::Recompute => (one.dropped_ms + widest_ms - 1) / widest_ms * widest_ms,
            };
            let is_settled = one.hlc <= mark.erased_hlc
                || Some(one) == next && mark.erased_to_ms.is_some_and(|to_ms| event.event_time_ms < to_ms);
            is_settled && event.event_time_ms >= from_ms
        };
        let hiding = forgotten.iter().enumerate().filter(|(_, one)| one.hides(seq, event));
        event.event_time_ms >= self.from_ms && !hiding.into_iter().any(is_out)
    }
}

/// Every rollup of a cut, over all buckets and some: what earlier reads left changes no answer, nor does streaming.
pub fn check(views: &[View], live: &Live, events: &[Event], forgotten: &[Forgotten], caches: &Caches) {
    for view in views {
        let rollups = view.rollups().expect("reads");
        let known: Vec<_> = rollups.iter().map(|rollup| (rollup.id, rollup.events_from_ms)).collect();
        assert_eq!(known, live.iter().map(|(id, counts)| (*id, counts.from_ms)).collect::<Vec<_>>());
    }
    for (id, counts) in live {
        let definition = Arc::new(Definition::parse(&definition(*id)).expect("valid"));
        // Where there are two shards nobody is forgotten.
        let mark = mark::of(&views[0], definition.id).expect("reads");
        let all = (1..).zip(events).filter(|(seq, event)| counts.count(*id, *seq, event, forgotten, &mark));
        let counted: Vec<_> = all.map(|(_, event)| event.clone()).collect();
        let streaming = RollupCache::new(Limits { merged_bytes_max: 0, ..Limits::default() });
        for (tier, width) in definition.tiers.iter().enumerate() {
            let mut all = expected(*id, width.bucket_ms, &counted);
            all.retain(|(bucket, _), _| counts.kept_from[tier].is_none_or(|from_ms| *bucket >= from_ms));
            let everything = Slice { definition: definition.clone(), tier, buckets_ms: i64::MIN..i64::MAX };
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
                    let slice = Slice { buckets_ms, ..everything.clone() };
                    let found = rows(views, &slice, cache);
                    let at = (width.bucket_ms, &slice.buckets_ms);
                    assert!(alike(*id, &found, &expected), "r{id} of {at:?} with {name}: {found:?}, not {expected:?}");
                }
            }
            // What still counts a forgotten player differs from what is left of the events.
            if forgotten.is_empty() || erasure(*id) != Erasure::Keep {
                let verified = verify(views, &everything).expect("reads");
                assert_eq!(verified.different, 0, "r{id} of {} ms: {verified:?}", width.bucket_ms);
            }
        }
    }
}

/// Does what is next for each rollup's cells: few cells are settled or swept at a time.
pub fn cover_all(view: &View, engine: &Arc<dyn galoo_storage::engine::Engine>, live: &Live) {
    cover_pieces(view, engine, live, First::TakingOut, &Piece { cells: 3, ..Piece::default() });
}

/// Does a piece of what is next for each rollup's cells; it is not committed a second time.
pub fn cover_pieces(
    view: &View,
    engine: &Arc<dyn galoo_storage::engine::Engine>,
    live: &Live,
    first: First,
    piece: &Piece,
) {
    let definitions: Vec<_> = live.keys().map(|id| Definition::parse(&definition(*id)).expect("valid")).collect();
    cover::prepare(view, &definitions, first, piece, &mut |_, prepared| {
        let prepared = prepared.expect("prepares");
        let stale = prepared.clone();
        assert!(cover::commit(engine, view.keyspace(), prepared).expect("commits"));
        assert!(!cover::commit(engine, view.keyspace(), stale).expect("reads"), "a stale cover counts events twice");
        ControlFlow::Continue(())
    });
}

/// Whether a rollup's tiers hold cells of buckets that were dropped.
pub fn holds_dropped(world: &World, id: u64, counts: &Counts) -> bool {
    let snapshot = world.engine.snapshot();
    counts.kept_from.iter().enumerate().any(|(tier, kept_from)| {
        let range = galoo_storage::key::rollup_tier(world.keyspace, galoo_proto::RollupId(id), tier as u8);
        let mut rows = snapshot.rows(Family::Rollups, &range.start..&range.end, Direction::Forward).expect("reads");
        let mut old = false;
        while let Some((key, _)) = rows.next().expect("reads") {
            let bucket: [u8; 8] = key[range.start.len() + 8..][..8].try_into().expect("a bucket");
            let bucket = (u64::from_be_bytes(bucket) ^ 1 << 63).cast_signed();
            old |= kept_from.is_some_and(|from_ms| bucket < from_ms);
        }
        old
    })
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
        // Which of two shards' events of one time is the first depends on their numbers: no `Whole`.
        let live = Live::from([1, 2, 3].map(|id| (id, Counts::default())));
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
            check(&views, &live, &events, &[], &caches);
            if let Some((views, events)) = &older {
                check(views, &live, events, &[], &caches);
            }
            if at % 3 == 0 {
                older = Some((views, events.clone()));
            }
        }
    }
}

/// A bucket that is covered again, by a group that is not kept, loses nothing of what was folded into `other` before.
#[test]
fn what_was_folded_into_other_stays_when_the_bucket_is_covered_again() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::in_keyspace(folder.path(), Arc::new(memory.clone()), Some(memory), Keyspace(1));
    let (live, caches) = (Live::from([(3, Counts::default())]), Caches::default());
    world.apply(Body::DefineRollup(definition(3)));
    let starts: Vec<i64> = (0..=X_MAX / RANGE_WIDTH).map(|n| n * RANGE_WIDTH).collect();
    let mut events: Vec<Event> = Vec::new();
    // Each alone, all, and each again: whichever are kept, some are not, and some are until the others come.
    let each = starts.iter().map(|start| vec![event((0, *start, 1))]);
    let all = std::iter::once(starts.iter().map(|start| event((1, *start, 1))).collect());
    for batch in each.clone().chain(all).chain(each.clone()).chain(each.rev()) {
        events.extend(batch.clone());
        world.apply(append(None, batch));
        let chunk = world.shard.state().open.unwrap_or_default().id;
        world.apply(Body::Seal(Seal { chunk }));
        cover_all(&world.view(), &world.engine, &live);
        check(&[world.view()], &live, &events, &[], &caches);
    }
    assert!(starts.len() > RANGES_MAX + 1);
}

/// P4: a cell that was lost, that is wrong or that should not be there is found, in the bucket that it is in, also where
/// what is shown stays the same.
#[test]
fn a_wrong_cell_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::in_keyspace(folder.path(), Arc::new(memory.clone()), Some(memory), Keyspace(1));
    world.apply(Body::DefineRollup(definition(2)));
    world.apply(append(None, (0..60).map(|n| event((n as u8 % 3, n, 1))).collect()));
    let chunk = world.shard.state().open.unwrap_or_default().id;
    world.apply(Body::Seal(Seal { chunk }));
    cover_all(&world.view(), &world.engine, &Live::from([(2, Counts::default())]));
    let definition = Arc::new(Definition::parse(&definition(2)).expect("valid"));
    for (tier, width) in definition.tiers.iter().enumerate() {
        let slice = Slice { definition: definition.clone(), tier, buckets_ms: i64::MIN..i64::MAX };
        let different = |world: &World| verify(&[world.view()], &slice).expect("reads").different_ms;
        let range = galoo_storage::key::rollup_tier(Keyspace(1), definition.id, tier as u8);
        let snapshot = world.engine.snapshot();
        let mut rows = snapshot.rows(Family::Rollups, &range.start..&range.end, Direction::Forward).expect("reads");
        let mut cells = Vec::new();
        while let Some((key, value)) = rows.next().expect("reads") {
            cells.push((key.to_vec(), value.to_vec()));
        }
        let write = |key: &[u8], value: Option<Vec<u8>>| {
            let mut batch = WriteBatch::default();
            match value {
                Some(value) => batch.put(Family::Rollups, key.to_vec(), value),
                None => batch.delete(Family::Rollups, key.to_vec()),
            }
            world.engine.write(batch).expect("writes");
        };
        // The last two are a group and its bucket's sum, which no row shows.
        let last = bucket_start(59, width.bucket_ms);
        for (key, value) in &cells[cells.len() - 2..] {
            let mut flipped = value.clone();
            *flipped.last_mut().expect("bytes") ^= 1;
            for wrong in [None, Some(flipped)] {
                write(key, wrong.clone());
                assert_eq!(different(&world), [last], "{wrong:?} for {value:?}");
                write(key, Some(value.clone()));
            }
            assert_eq!(different(&world), Vec::<i64>::new());
        }
        let more = [&range.start, [0; 8].as_slice(), &(900u64 | 1 << 63).to_be_bytes(), &[0]].concat();
        write(&more, Some(cells[0].1.clone()));
        assert_eq!(different(&world), [900]);
        write(&more, None);
    }
}
