//! Segments that are merged hold what they held, and their files stay as long as anybody may be led back to them.

use arrow::{array::AsArray, datatypes::Int64Type};
use galoo_proto::{command::Seal, record, value::Event};
use galoo_storage::{
    compaction::{
        Eagerness, Expired, Policy, choose_erasure, choose_expired, choose_merge, clean, commit_clean, commit_drop,
        commit_merge, covered_seq, kept, merge_segments,
    },
    segment::{Kept, Step},
    view::{Condition, Test},
};

use super::*;

/// A shard's segments, in order of seq.
pub(super) fn segments(world: &World) -> Vec<record::Segment> {
    let view = world.view();
    let segments = view.sources().expect("reads").iter().filter_map(|source| match source {
        Source::Segment(segment) => Some(record::Segment::clone(segment)),
        Source::Chunk(_) => None,
    });
    segments.collect()
}

/// Merges some segments, and leaves out what is not read any more and no rollup lacks; returns whether that came through.
pub(super) fn merge(world: &mut World, segments: &[record::Segment]) -> bool {
    let through = segments.last().map_or(0, |last| last.last_seq);
    let kept = kept(&world.view(), Seq(through)).expect("reads");
    let merged = merge_segments(&world.files, world.keyspace, segments, &kept, &mut || Step::On).expect("merges");
    let merged = merged.expect("is not cancelled");
    let committed = commit_merge(&world.engine, world.keyspace, segments, &merged).expect("commits");
    if committed {
        world.retired.add(world.engine.as_ref(), world.keyspace, segments, std::time::Instant::now());
    }
    committed
}

/// Does what is to be done next about events that are not read any more; returns whether there was anything.
pub(super) fn expire(world: &mut World) -> bool {
    let view = world.view();
    let open = world.shard.state().open.unwrap_or_default().id;
    let is_closed = |source: &&Source| !matches!(source, Source::Chunk(chunk) if chunk.id == open);
    let sources: Vec<_> = view.sources().expect("reads").iter().filter(is_closed).cloned().collect();
    let covered = covered_seq(&view).expect("reads");
    match choose_expired(&sources, view.state().events_from_ms, covered, i64::MAX) {
        None => {
            let Some(segment) = choose_erasure(&view, &world.files, covered).expect("reads") else { return false };
            assert!(merge(world, &[record::Segment::clone(&segment)]));
        }
        Some(Expired::Drop(range)) => {
            let dropped =
                commit_drop(&world.engine, &view, &sources[range.clone()]).expect("commits").expect("is there");
            assert_eq!(commit_drop(&world.engine, &view, &sources[range]).expect("reads"), None, "twice");
            world.retired.add(world.engine.as_ref(), world.keyspace, &dropped, std::time::Instant::now());
        }
        Some(Expired::Rewrite(segment)) => assert!(merge(world, &[record::Segment::clone(&segment)])),
    }
    true
}

/// Forgets that players were forgotten of whom nothing is stored any more; returns how many.
pub(super) fn clean_up(world: &World) -> usize {
    let view = world.view();
    let players = clean(&view, &world.files).expect("reads");
    for player in &players {
        assert!(commit_clean(&world.engine, &view, player).expect("commits"));
    }
    players.len()
}

/// A world with a segment of each of some batches.
pub(super) fn world(folder: &std::path::Path, batches: &[Vec<Event>]) -> World {
    let memory = MemoryEngine::default();
    let mut world = World::new(folder, Arc::new(memory.clone()), Some(memory));
    for batch in batches {
        world.apply(append(None, batch.clone()));
        let chunk = world.shard.state().open.unwrap_or_default().id;
        world.apply(Body::Seal(Seal { chunk }));
        world.build();
    }
    world
}

fn stored(world: &World) -> Vec<(String, i64, String, serde_json::Value)> {
    let stored = world.view().events_after(Seq(0), EventFilter::default());
    stored.map(|event| said(event.expect("reads").event.as_ref().expect("event"))).collect()
}

/// Properties beyond the columns of one file go to `extra`, and come back.
#[test]
fn a_merge_of_more_properties_than_columns_loses_none() {
    let folder = tempfile::tempdir().expect("folder");
    let batch = |from: usize| -> Vec<Event> {
        let one = |at: usize| {
            let mut event = event((at as u8 % 4, at as i64, 0));
            let member = |name: usize| format!(r#""p{name}":{}"#, ["1", "1.5", "\"x\"", "true", "null"][name % 5]);
            let members: Vec<_> = (0..200).map(|name| member(from + (at * 100 + name) % 1_500)).collect();
            event.properties = format!("{{{}}}", members.join(","));
            event
        };
        (0..15).map(one).collect()
    };
    let mut world = world(folder.path(), &[batch(0), batch(1_000), batch(2_000), batch(0)]);
    let before = stored(&world);
    let texts = |world: &World, name: &str| {
        let property = Column::Property { name: name.to_owned(), column_type: properties::ColumnType::Text };
        let (view, columns) = (world.view(), Arc::from([Column::Seq, property]));
        let mut texts = BTreeMap::new();
        for source in view.sources().expect("reads") {
            for batch in view.source_batches(source, &columns, &Arc::default()).expect("reads") {
                let batch = batch.expect("reads");
                let (seqs, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string_view());
                texts.extend(seqs.values().iter().copied().zip(values.iter().map(|text| text.map(str::to_owned))));
            }
        }
        texts
    };
    let names = ["p0", "p998", "p2101", "p3490"];
    // Wherever a property is, a condition finds it.
    let having = |world: &World, name: &str| {
        let conditions = vec![Condition { property: name.to_owned(), test: Test::Exists }];
        let found = world.view().events_after(Seq(0), EventFilter { conditions, ..EventFilter::default() });
        found.map(|event| event.expect("reads").seq).collect::<Vec<_>>()
    };
    let with = |name: &str| -> Vec<u64> {
        let all = (1..).zip(&before);
        all.filter(|(_, said)| said.3.get(name).is_some()).map(|(seq, _)| seq).collect()
    };
    let read_before = names.map(|name| texts(&world, name));
    assert!(read_before.iter().all(|texts| texts.values().any(Option::is_some)));
    for _ in 0..2 {
        let all = segments(&world);
        let (first, then) = all.split_at(2);
        assert!(merge(&mut world, first));
        assert_eq!(stored(&world), before);
        assert_eq!(names.map(|name| texts(&world, name)), read_before, "a column reads what has no column");
        assert_eq!(names.map(|name| having(&world, name)), names.map(with), "and so does a condition");
        if then.len() > 1 {
            assert!(merge(&mut world, then));
            assert_eq!(stored(&world), before);
        }
    }
    assert_eq!(segments(&world).len(), 1);
    let sum = Checksum::of(&world.view()).expect("sums");
    assert_eq!(sum.events, 60);
}

/// What was merged may be read as long as a view lives that began before, and is there again after a crash.
#[test]
fn files_stay_while_a_view_or_a_crash_leads_back_to_them() {
    let folder = tempfile::tempdir().expect("folder");
    let batches: Vec<_> = (0..4u8).map(|batch| vec![event((batch, 1, 1)), event((0, i64::from(batch), 2))]).collect();
    let mut world = world(folder.path(), &batches);
    let before = stored(&world);
    world.engine.flush().expect("flushes");
    let all = segments(&world);
    let old = world.view();
    assert!(merge(&mut world, &all));
    assert!(!merge(&mut world, &all), "they are merged already");
    let sweep = |world: &mut World| world.retired.sweep(world.engine.as_ref(), &world.files).expect("sweeps");
    world.flush();
    assert_eq!(sweep(&mut world), 0, "a view may still open them");
    let read: Vec<_> = old.events_after(Seq(0), EventFilter::default()).map(|event| event.expect("reads")).collect();
    assert_eq!(read.len(), 8);
    drop(old);
    assert!(!world.retired.wants_flush(std::time::Instant::now() + std::time::Duration::from_secs(3_600)));
    assert_eq!(sweep(&mut world), 4);
    assert_eq!(stored(&world), before);
    let path = |segment: &record::Segment| world.files.path(world.keyspace, galoo_proto::SegmentId(segment.id));
    assert!(all.iter().all(|segment| !path(segment).exists()));

    world.apply(append(None, vec![event((1, 9, 3))]));
    let chunk = world.shard.state().open.unwrap_or_default().id;
    world.apply(Body::Seal(Seal { chunk }));
    world.build();
    let before = stored(&world);
    world.engine.flush().expect("flushes");
    let all = segments(&world);
    assert!(merge(&mut world, &all));
    assert_eq!(sweep(&mut world), 0, "a crash leads back to them");
    world.crash();
    assert_eq!(segments(&world), all);
    assert_eq!(stored(&world), before);
}

#[test]
fn a_cancelled_merge_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), &[vec![event((1, 1, 1))], vec![event((2, 2, 2))]]);
    let all = segments(&world);
    let policy = Policy::default();
    assert_eq!(choose_merge(&policy, &all, Eagerness::WhenMany), None);
    assert_eq!(choose_merge(&policy, &all, Eagerness::Always), Some(0..2));
    let cancelled = merge_segments(&world.files, world.keyspace, &all, &Kept::ALL, &mut || Step::Cancel).expect("ends");
    assert_eq!(cancelled, None);
    let keyspace = folder.path().join(world.keyspace.to_string());
    assert_eq!(std::fs::read_dir(keyspace).expect("lists").count(), 2);
    assert!(merge(&mut world, &all));
}
