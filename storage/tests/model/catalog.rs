//! Columns of properties hold what fits their type, declared or chosen, wherever an event is stored; and the catalog counts
//! what there is.

use arrow::array::{Array, AsArray};
use galoo_proto::{
    command::PropertiesDeclared,
    value::{PropertyDeclarations, PropertyDefinition, ValueKind},
};
use galoo_storage::{
    properties::{ColumnType, Kinds, Property, exact_float},
    view::{Catalog, KindCounts},
};

use super::*;

/// Declares a kind for some properties: two bits of `choice` for each.
pub(super) fn declaration(choice: u8, revision: u64) -> PropertyDeclarations {
    let kinds = [ValueKind::Any, ValueKind::Int, ValueKind::Float, ValueKind::String];
    let property = |(place, name): (usize, &str)| PropertyDefinition {
        name: name.to_owned(),
        kind: kinds[usize::from(choice >> (2 * place)) % 4].into(),
    };
    let all = ["name", "never", "ok", "x"].into_iter().enumerate().map(property);
    PropertyDeclarations { properties: all.filter(|one| one.kind() != ValueKind::Any).collect(), revision }
}

pub(super) fn declare(world: &mut World, choice: u8) {
    let revision = world.log.len() as u64 + 1;
    let outcome = world.apply(Body::DeclareProperties(declaration(choice, revision)));
    let declared = |changed| Some(outcome::Result::PropertiesDeclared(PropertiesDeclared { changed }));
    assert_eq!(outcome.result, declared(true));
    // What comes late changes nothing.
    let late = world.apply(Body::DeclareProperties(declaration(!choice, revision)));
    assert_eq!(late.result, declared(false));
}

/// What a column of this type holds of a value, as text.
fn shown(column_type: ColumnType, value: &Property<'_>) -> Option<String> {
    match (column_type, value) {
        (_, Property::Null) => None,
        (ColumnType::Bool, Property::Bool(value)) => Some(value.to_string()),
        (ColumnType::Int, Property::Int(value)) => Some(value.to_string()),
        (ColumnType::Float, Property::Float(value)) => Some(format!("{value:?}")),
        (ColumnType::Float, Property::Int(value)) => exact_float(*value).map(|value| format!("{value:?}")),
        (ColumnType::Text, value) => Some(value.text().into_owned()),
        _ => None,
    }
}

pub(super) fn check(view: &View, model: &Model, readable: &[(u64, Event)]) {
    let catalog = Catalog::of(std::slice::from_ref(view)).expect("reads");
    let mut columns = vec![Column::Seq];
    let named = catalog.iter().map(|(name, entry)| (name.to_owned(), entry.column_type)).collect::<Vec<_>>();
    columns.extend(
        named.iter().map(|(name, column_type)| Column::Property { name: name.clone(), column_type: *column_type }),
    );
    let (columns, filter) = (columns.into(), Arc::new(EventFilter::default()));
    let mut found: BTreeMap<u64, Vec<Option<String>>> = BTreeMap::new();
    for source in view.sources().expect("reads") {
        for batch in view.source_batches(source, &columns, &filter).expect("reads") {
            let batch = batch.expect("reads");
            for row in 0..batch.num_rows() {
                let text = |(place, (_, column_type)): (usize, &(String, ColumnType))| {
                    let column = batch.column(place + 1);
                    column.is_valid(row).then(|| match column_type {
                        ColumnType::Bool => column.as_boolean().value(row).to_string(),
                        ColumnType::Int => column.as_primitive::<arrow::datatypes::Int64Type>().value(row).to_string(),
                        ColumnType::Float => {
                            format!("{:?}", column.as_primitive::<arrow::datatypes::Float64Type>().value(row))
                        }
                        ColumnType::Text => column.as_string_view().value(row).to_owned(),
                    })
                };
                let seq = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().value(row);
                found.insert(seq.cast_unsigned(), named.iter().enumerate().map(text).collect());
            }
        }
    }
    let mut counts: BTreeMap<(String, u8), u64> = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for (seq, event) in readable {
        let mut row = vec![None; named.len()];
        for member in properties::members(&event.properties) {
            let (name, raw) = member.expect("JSON");
            let value = Property::parse(raw).expect("a value");
            let place = named.iter().position(|(known, _)| *known == name).expect("in the catalog");
            row[place] = shown(named[place].1, &value);
            *counts.entry((name.into_owned(), value.kind().0)).or_default() += 1;
        }
        expected.insert(*seq, row);
    }
    assert_eq!(found, expected, "{named:?}");
    if model.from_ms == 0 && model.forgotten.is_empty() {
        let mut counted: BTreeMap<String, KindCounts> = BTreeMap::new();
        view.count_properties(&mut counted).expect("reads");
        for (name, of) in &counted {
            for bit in 0..8 {
                let expected = counts.remove(&(name.clone(), 1 << bit)).unwrap_or_default();
                assert_eq!(of.of(Kinds(1 << bit)), expected, "{name} {:?}", Kinds(1 << bit));
            }
        }
        assert!(counts.is_empty(), "not counted: {counts:?}");
    }
}

/// A declared type holds from when it is declared, for what is stored already too; what does not fit stays in its event,
/// beside the columns of new segments.
#[test]
fn what_does_not_fit_its_declaration_is_kept_and_counted() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    let seal = |world: &mut World| {
        let chunk = world.shard.state().open.unwrap_or_default().id;
        world.apply(Body::Seal(Seal { chunk }));
        world.build();
    };
    let with = |values: &[&str]| {
        let of = |(at, value): (usize, &&str)| Event {
            properties: format!(r#"{{"x":{value},"y":1}}"#),
            ..event((0, at as i64, 0))
        };
        append(None, values.iter().enumerate().map(of).collect())
    };
    let values = ["1", "2.5", "\"three\"", "null", "9007199254740993"];
    world.apply(with(&values));
    seal(&mut world);
    let types = |world: &World| Catalog::of(&[world.view()]).expect("reads").get("x").map(|entry| entry.column_type);
    assert_eq!(types(&world), Some(ColumnType::Text));
    let float = PropertyDefinition { name: "x".into(), kind: ValueKind::Float.into() };
    world.apply(Body::DeclareProperties(PropertyDeclarations { properties: vec![float], revision: 1 }));
    assert_eq!(types(&world), Some(ColumnType::Float));
    world.apply(with(&values));
    seal(&mut world);
    world.apply(with(&values));
    let read = |world: &World| {
        let (view, mut texts) = (world.view(), Vec::new());
        let columns =
            [Column::Property { name: "x".into(), column_type: ColumnType::Float }, Column::Properties].into();
        for source in view.sources().expect("reads") {
            for batch in view.source_batches(source, &columns, &Arc::default()).expect("reads") {
                let batch = batch.expect("reads");
                let floats = batch.column(0).as_primitive::<arrow::datatypes::Float64Type>();
                texts.extend(floats.iter().zip(batch.column(1).as_string_view()).map(|(float, all)| {
                    (float, serde_json::from_str::<serde_json::Value>(all.expect("never null")).expect("JSON"))
                }));
            }
        }
        texts
    };
    let all = |times: usize| -> Vec<_> {
        let floats = [Some(1.0), Some(2.5), None, None, None];
        let of = |at: usize| serde_json::from_str(&format!(r#"{{"x":{},"y":1}}"#, values[at])).expect("JSON");
        (0..times).flat_map(|_| (0..5).map(|at| (floats[at], of(at)))).collect()
    };
    let counts = |world: &World| {
        let mut counts = BTreeMap::new();
        world.view().count_properties(&mut counts).expect("reads");
        let (x, fits): (KindCounts, _) = (counts["x"], ColumnType::Float.kinds());
        assert_eq!(counts["y"].of(Kinds::INT), x.of(Kinds(0xff)));
        (x.of(fits), x.of(Kinds(!fits.0)))
    };
    let columns = |world: &World, place: usize| {
        let segment = &merges::segments(world)[place];
        let file = std::fs::File::open(world.files.path(KEYSPACE, galoo_proto::SegmentId(segment.id))).expect("opens");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("reads");
        let names = reader.schema().fields().iter().map(|field| field.name().clone()).skip(6);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(read(&world), all(3));
    assert_eq!(counts(&world), (9, 6));
    assert_eq!(
        (columns(&world, 0), columns(&world, 1)),
        ("i:x f:x s:x j:x i:y".into(), "i:x f:x j:x i:y extra".into())
    );
    let segments = merges::segments(&world);
    assert!(merges::merge(&mut world, &segments));
    world.crash();
    let mut merged = read(&world);
    merged.sort_by_key(|(_, all)| all.to_string());
    let mut expected = all(3);
    expected.sort_by_key(|(_, all)| all.to_string());
    assert_eq!(merged, expected);
    assert_eq!(counts(&world), (9, 6));
}
