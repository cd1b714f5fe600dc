//! Rollups against the model: what a rollup answers is the same aggregate over the plain list, however far covering is (P4).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use galoo_proto::{
    rollup::{Aggregate, Bucket, Column, Field, Function, Operand, Property, PropertyType, Rollup, column, operand},
    value::Event,
};
use galoo_storage::{
    rollup::{
        Definition,
        accumulator::Number,
        bucket_start,
        cell::GroupValue,
        cover,
        read::{PartialCache, RollupRows},
    },
    view::View,
};

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

fn rows(view: &View, definition: &Arc<Definition>, cache: &PartialCache) -> Rows {
    let read = RollupRows::open(std::slice::from_ref(view), definition, &(i64::MIN..i64::MAX), cache).expect("opens");
    let mut rows = Rows::new();
    for row in read {
        let row = row.expect("reads");
        let groups = row.groups.iter().map(|group| match group {
            GroupValue::Null => "null".to_owned(),
            GroupValue::Bool(value) => value.to_string(),
            GroupValue::Int(value) => value.to_string(),
            GroupValue::Text(value) => value.clone(),
        });
        let values = row.cell.0.iter().zip(&definition.aggregates);
        let values = values.map(|(accumulator, aggregate)| accumulator.value(aggregate).expect("fits")).collect();
        let before = rows.insert((row.bucket_ms, groups.collect()), values);
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

/// Every rollup of the shard, with a cold and with a warm cache.
pub fn check(view: &View, live: &BTreeSet<u64>, events: &[Event], warm: &PartialCache) {
    let known: BTreeSet<u64> = view.rollups().expect("reads").iter().map(|rollup| rollup.id).collect();
    assert_eq!(&known, live);
    for id in live {
        let definition = Arc::new(Definition::parse(&definition(*id)).expect("valid"));
        let expected = expected(*id, events);
        assert_eq!(rows(view, &definition, &PartialCache::default()), expected, "r{id}");
        assert_eq!(rows(view, &definition, warm), expected, "r{id} with partials of earlier reads");
    }
}

/// Covers the next source of each rollup, if `commit` is asked for again after something else was committed.
pub fn cover_all(view: &View, engine: &Arc<dyn galoo_storage::engine::Engine>, live: &BTreeSet<u64>) {
    for id in live {
        let definition = Definition::parse(&definition(*id)).expect("valid");
        let Some(prepared) = cover::prepare(view, &definition).expect("prepares") else { continue };
        let stale = prepared.clone();
        assert!(cover::commit(engine, view.keyspace(), prepared).expect("commits"));
        assert!(!cover::commit(engine, view.keyspace(), stale).expect("reads"), "a stale cover counts events twice");
    }
}
