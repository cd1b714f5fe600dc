//! What is dropped, and who is forgotten: not read at once, gone from the files in time, and counted by rollups as declared.

use std::ops::ControlFlow;

use galoo_proto::{command::Seal, rollup::Rollup};
use galoo_storage::{
    compaction::covered_seq,
    rollup::cover::{self, Piece},
};

use super::*;

/// A world with a rollup of each shape and a segment of each of some batches, none of which is covered.
fn world(folder: &std::path::Path, batches: &[Vec<Event>]) -> (World, Model) {
    let memory = MemoryEngine::default();
    let mut world = World::new(folder, Arc::new(memory.clone()), Some(memory));
    let live = rollups::Live::from([(1, Default::default()), (2, Default::default())]);
    live.keys().for_each(|id| drop(world.apply(Body::DefineRollup(rollups::definition(*id)))));
    let mut model = Model { rollups: live, defined: 2, ..Model::default() };
    for batch in batches {
        model.events.extend(batch.clone());
        world.apply(append(None, batch.clone()));
        let chunk = world.shard.state().open.unwrap_or_default().id;
        world.apply(Body::Seal(Seal { chunk }));
        world.build();
    }
    check(&world, &model);
    (world, model)
}

/// Everything that the segments' files hold, as text.
fn stored_bytes(world: &World) -> Vec<u8> {
    let segments = merges::segments(world);
    let live = segments.iter().filter(|segment| segment.rows > 0);
    let path = |id| world.files.path(world.keyspace, galoo_proto::SegmentId(id));
    live.flat_map(|segment| std::fs::read(path(segment.id)).expect("reads")).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn what_a_rollup_lacks_is_kept_until_it_has_it() {
    let folder = tempfile::tempdir().expect("folder");
    let batches: Vec<_> =
        (0..3i64).map(|batch| (0..8u8).map(|i| event((i % 4, batch * 10 + 3, i % 6))).collect()).collect();
    let (mut world, mut model) = world(folder.path(), &batches);
    world.apply(Body::DropEventsBefore(DropEventsBefore { time_ms: 20 }));
    model.from_ms = 20;
    check(&world, &model);
    assert!(!merges::expire(&mut world), "rollups lack it");
    // A rollup that is made now never counts it.
    define(&mut world, &mut model, 3);
    check(&world, &model);
    while covered_seq(&world.view()).expect("reads") < 24 {
        rollups::cover_all(&world.view(), &world.engine, &model.rollups);
        check(&world, &model);
    }
    assert!(merges::expire(&mut world) && !merges::expire(&mut world));
    let segments = merges::segments(&world);
    assert_eq!(segments.iter().map(|one| (one.rows, one.gone)).collect::<Vec<_>>(), [(0, 16), (8, 0)]);
    // Cells that reads keep merged in memory began with what is gone.
    check(&world, &model);
    world.crash();
    check(&world, &model);
}

/// Merges leave out what is too old, and so does writing anew what is half too old.
#[test]
fn old_events_go_also_from_files_that_hold_newer_ones() {
    let folder = tempfile::tempdir().expect("folder");
    let batch = |from: i64| -> Vec<Event> { (0..10).map(|at| event((at as u8 % 4, from + at, 1))).collect() };
    let (mut world, mut model) = world(folder.path(), &[batch(0), batch(100)]);
    while covered_seq(&world.view()).expect("reads") < 20 {
        rollups::cover_all(&world.view(), &world.engine, &model.rollups);
    }
    let drop_before = |world: &mut World, model: &mut Model, time_ms| {
        world.apply(Body::DropEventsBefore(DropEventsBefore { time_ms }));
        model.from_ms = time_ms;
        check(world, model);
    };
    drop_before(&mut world, &mut model, 3);
    assert!(!merges::expire(&mut world), "too little of it");
    drop_before(&mut world, &mut model, 6);
    assert!(merges::expire(&mut world) && !merges::expire(&mut world));
    check(&world, &model);
    let rows = |world: &World| merges::segments(world).iter().map(|one| (one.rows, one.gone)).collect::<Vec<_>>();
    assert_eq!(rows(&world), [(4, 6), (10, 0)]);
    drop_before(&mut world, &mut model, 8);
    let all = merges::segments(&world);
    assert!(merges::merge(&mut world, &all));
    assert_eq!(rows(&world), [(12, 8)]);
    check(&world, &model);
}

/// A forgotten player is not read at once, whatever is written behind; the name is in no file once segments are written
/// anew, and then nothing remembers it.
#[test]
fn a_forgotten_player_is_gone_from_every_file() {
    let folder = tempfile::tempdir().expect("folder");
    let of = |player: &str, at: i64| Event { player_id: player.to_owned(), ..event((0, at, 1)) };
    let batches =
        [vec![of("p1", 1), of("hero-to-forget", 2)], vec![of("hero-to-forget", 3), of("p2", 4)], vec![of("p3", 5)]];
    let (mut world, mut model) = world(folder.path(), &batches);
    let hero = "hero-to-forget";
    let put = |world: &mut World, value: i64| {
        let change = Some(Change::Put(int(value)));
        let mutation = Mutation { family: "s".into(), qualifier: "gold".into(), change, ..Mutation::default() };
        let (range, player_id) = (Some(TokenRange::FULL.into()), hero.to_owned());
        world.apply(Body::Mutate(MutatePlayer { range, player_id, mutations: vec![mutation], ..Default::default() }));
    };
    put(&mut world, 7);
    put(&mut world, 8);
    let cells = |world: &World| world.view().cells(hero, &Selection::Row.into()).expect("reads");
    assert_eq!(cells(&world).len(), 1);
    rollups::cover_all(&world.view(), &world.engine, &model.rollups);
    let definitions =
        [1, 2].map(|id| galoo_storage::rollup::Definition::parse(&rollups::definition(id)).expect("valid"));
    let names_players = |id| definitions.iter().any(|one| one.id == id && one.groups_by_player());
    let mut stale = Vec::new();
    cover::prepare(&world.view(), &definitions, First::TakingOut, &Piece::default(), &mut |id, cover| {
        stale.push((names_players(id), cover.expect("prepares")));
        ControlFlow::Continue(())
    });
    assert_eq!(stale.len(), 2);
    forget(&mut world, &mut model, hero);
    assert_eq!(cells(&world), vec![]);
    check(&world, &model);
    for (names_players, cover) in stale {
        let committed = cover::commit(&world.engine, world.keyspace, cover).expect("reads");
        assert!(committed != names_players, "cells that were worked out before would name the player again");
    }
    // The player comes back, and is a new one.
    model.events.push(of(hero, 6));
    world.apply(append(None, vec![of(hero, 6)]));
    put(&mut world, 1);
    assert_eq!(cells(&world).len(), 1);
    check(&world, &model);
    define(&mut world, &mut model, 0);
    check(&world, &model);

    assert!(!merges::expire(&mut world), "rollups lack it");
    assert!(contains(&stored_bytes(&world), hero));
    while covered_seq(&world.view()).expect("reads") < 5 {
        rollups::cover_all(&world.view(), &world.engine, &model.rollups);
        check(&world, &model);
    }
    assert_eq!(merges::clean_up(&world), 0, "files hold it");
    let mut written = 0;
    while merges::expire(&mut world) {
        written += 1;
        check(&world, &model);
    }
    assert_eq!(written, 2, "only what may hold it is written anew");
    assert!(!contains(&stored_bytes(&world), hero));
    assert_eq!(merges::clean_up(&world), 1);
    assert!(world.view().erasures().expect("reads").is_empty());
    check(&world, &model);
    world.flush();
    world.crash();
    check(&world, &model);
    assert_eq!(cells(&world).len(), 1);
}

/// Cells that a read left in memory are a few events behind the store's; these events go before the next read.
#[test]
fn cells_in_memory_miss_nothing_that_went_behind_them() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut world, mut model) =
        world(folder.path(), &[(0..40).map(|at| event((at as u8 % 4, 100 + at, 1))).collect()]);
    rollups::cover_all(&world.view(), &world.engine, &model.rollups);
    check(&world, &model);
    let few: Vec<_> = (0..3).map(|at| event((at as u8, at, 1))).collect();
    model.events.extend(few.clone());
    world.apply(append(None, few));
    world.apply(Body::Seal(Seal { chunk: world.shard.state().open.unwrap_or_default().id }));
    rollups::cover_all(&world.view(), &world.engine, &model.rollups);
    world.apply(Body::DropEventsBefore(DropEventsBefore { time_ms: 50 }));
    model.from_ms = 50;
    assert!(merges::expire(&mut world));
    check(&world, &model);
}

/// A player is taken out of rollups that declare it, a piece at a time, also when it all stops between two pieces; until then
/// no event goes that is needed for it, and behind it nothing of the player is left anywhere.
#[test]
fn what_rollups_owe_is_settled_before_the_events_go() {
    let folder = tempfile::tempdir().expect("folder");
    let batch = |from: i64| (0..30).map(|at| event((at as u8 % 3, from + at, 1 + at as u8 % 2))).collect();
    let (mut world, mut model) = world(folder.path(), &[batch(0), batch(30), batch(90)]);
    (4..8).for_each(|kind| define(&mut world, &mut model, kind));
    let cover = |world: &World, model: &Model| {
        rollups::cover_all(&world.view(), &world.engine, &model.rollups);
        check(world, model);
    };
    (0..3).for_each(|_| cover(&world, &model));
    assert_eq!(covered_seq(&world.view()).expect("reads"), 90);
    // Buckets are at most 60 ms wide: whatever began before 60 may lack events.
    world.apply(Body::DropEventsBefore(DropEventsBefore { time_ms: 35 }));
    model.from_ms = 35;
    check(&world, &model);
    forget(&mut world, &mut model, "p1");
    world.apply(append(None, vec![event((1, 95, 1))]));
    model.events.push(event((1, 95, 1)));
    check(&world, &model);
    forget(&mut world, &mut model, "p2");
    check(&world, &model);
    assert_eq!(covered_seq(&world.view()).expect("reads"), 0);
    assert!(!merges::expire(&mut world), "events are needed to take the players out");
    world.flush();
    let mut pieces = 0;
    while covered_seq(&world.view()).expect("reads") == 0 {
        cover(&world, &model);
        pieces += 1;
        if pieces % 2 == 0 {
            world.crash();
            check(&world, &model);
            // What was not flushed is settled again.
            cover(&world, &model);
            world.flush();
        }
        assert!(pieces < 100);
    }
    assert!(pieces > 2, "{pieces}");
    assert_eq!(merges::clean_up(&world), 0, "files hold them");
    assert!(contains(&stored_bytes(&world), "p2"));
    world.apply(Body::Seal(Seal { chunk: world.shard.state().open.unwrap_or_default().id }));
    world.build();
    (0..2).for_each(|_| cover(&world, &model));
    while merges::expire(&mut world) {
        check(&world, &model);
    }
    assert!(!contains(&stored_bytes(&world), "p2"));
    assert_eq!(merges::clean_up(&world), 2);
    check(&world, &model);
    world.crash();
    check(&world, &model);
}

/// Many players who were forgotten do not keep what is new from being covered, nor one who is forgotten all the time; what
/// leaves nothing to take out is settled together.
#[test]
fn covering_goes_on_while_much_is_owed() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut world, mut model) = world(folder.path(), &[(0..30).map(|at| event((at as u8 % 3, at, 1))).collect()]);
    (4..8).for_each(|kind| define(&mut world, &mut model, kind));
    let cover = |world: &World, model: &Model, first: First| {
        rollups::cover_pieces(&world.view(), &world.engine, &model.rollups, first, &Piece { cells: 1, bytes: 1 << 20 });
        check(world, model);
    };
    (0..2).for_each(|_| cover(&world, &model, First::Covering));
    let behind = |world: &World| {
        let marks = world.view().rollups().expect("reads").into_iter().map(|rollup| {
            galoo_storage::rollup::mark::of(&world.view(), galoo_proto::RollupId(rollup.id)).expect("reads")
        });
        marks.map(|mark| (mark.seq, mark.erased_hlc)).collect::<Vec<_>>()
    };
    (0..3).for_each(|player| forget(&mut world, &mut model, &format!("p{player}")));
    (0..50).for_each(|player| forget(&mut world, &mut model, &format!("nobody{player}")));
    let batch: Vec<_> = (0..9).map(|at| event((at as u8 % 3, 40 + at, 1))).collect();
    model.events.extend(batch.clone());
    world.apply(append(None, batch));
    world.apply(Body::Seal(Seal { chunk: world.shard.state().open.unwrap_or_default().id }));
    cover(&world, &model, First::Covering);
    assert!(behind(&world).iter().all(|(seq, _)| *seq == 39), "{:?}", behind(&world));
    assert_eq!(covered_seq(&world.view()).expect("reads"), 0, "the players are in it");
    let mut rounds = 0;
    while covered_seq(&world.view()).expect("reads") == 0 {
        cover(&world, &model, First::TakingOut);
        rounds += 1;
    }
    assert!(rounds < 10, "{rounds} for three players who were there, and fifty who were not");

    // However often: what is in the row that each replica takes away by itself decides nothing.
    for _ in 0..100 {
        forget(&mut world, &mut model, "p0");
    }
    assert!(world.view().erasures().expect("reads").times("p0") >= 100);
    check(&world, &model);
}

/// Cells of a tier go with the command that drops its buckets, or are swept where they follow players, a few players at a
/// time; what comes late for them is not kept either, and other tiers lose nothing.
#[test]
fn buckets_of_a_tier_are_dropped_for_good() {
    let folder = tempfile::tempdir().expect("folder");
    let batch = |from: i64| (0..40).map(|at| event((at as u8 % 4, from + at, at as u8 % 6))).collect();
    let (mut world, mut model) = world(folder.path(), &[batch(0), batch(20)]);
    let cover = |world: &World, model: &Model| {
        rollups::cover_all(&world.view(), &world.engine, &model.rollups);
        check(world, model);
    };
    (0..2).for_each(|_| cover(&world, &model));
    let drop_buckets = |world: &mut World, model: &mut Model, rollup: u64, tier: u32, before_ms: i64| {
        let outcome = world.apply(Body::DropBuckets(DropBuckets { rollup, tier, before_ms }));
        let changed = Some(outcome::Result::RollupChanged(RollupChanged { changed: true }));
        assert_eq!(outcome.result, changed);
        let width = rollups::definition(rollup).tiers[tier as usize].bucket_ms;
        let counts = model.rollups.get_mut(&rollup).expect("is there");
        counts.kept_from[tier as usize] = Some(before_ms / width * width);
        check(world, model);
    };
    let (older, before) = (world.view(), model.clone());
    drop_buckets(&mut world, &mut model, 2, 1, 25);
    rollups::check(&[older], &before.rollups, &before.events, &before.forgotten, &world.caches);
    drop_buckets(&mut world, &mut model, 1, 0, 31);
    let holds = |world: &World, model: &Model| [1, 2].map(|id| rollups::holds_dropped(world, id, &model.rollups[&id]));
    assert_eq!(holds(&world, &model), [true, false], "cells of players are swept");
    cover(&world, &model);
    // The cut moves on in the middle of a sweep.
    drop_buckets(&mut world, &mut model, 1, 0, 41);
    let mut rounds = 1;
    while holds(&world, &model)[0] {
        cover(&world, &model);
        rounds += 1;
        assert!(rounds < 20);
    }
    assert!(rounds > 2, "{rounds}");
    // Late events of a bucket that went.
    model.events.extend(batch(5));
    world.apply(append(None, batch(5)));
    check(&world, &model);
    world.apply(Body::Seal(Seal { chunk: world.shard.state().open.unwrap_or_default().id }));
    (0..2).for_each(|_| cover(&world, &model));
    assert_eq!(covered_seq(&world.view()).expect("reads"), 120);
    assert_eq!(holds(&world, &model), [false, false]);
    let again = Body::DropBuckets(DropBuckets { rollup: 2, tier: 1, before_ms: 24 });
    let unchanged = Some(outcome::Result::RollupChanged(RollupChanged { changed: false }));
    assert_eq!(world.apply(again).result, unchanged, "never back");
    world.crash();
    check(&world, &model);
}

/// The leader drops buckets in steps, and only while a tier has some that are too old; a rollup that is made begins there.
#[test]
fn tiers_follow_the_time_at_the_distance_of_their_retention() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut world, mut model) = world(folder.path(), &[(0..30).map(|at| event((0, at * 1_000, 1))).collect()]);
    let mut rollup = rollups::definition(10);
    rollup.tiers.iter_mut().zip([10_000, 0, 100_000]).for_each(|(tier, retention_ms)| tier.retention_ms = retention_ms);
    world.apply(Body::DefineRollup(rollup.clone()));
    let view = world.view();
    let from_ms: Vec<_> = view.rollups().expect("reads")[2].tiers.iter().map(|tier| tier.from_ms).collect();
    assert_eq!(from_ms, [None; 4], "the shard's time is about a second");
    model.rollups.insert(10, Default::default());
    let cuts = |world: &World, now_ms: u64| {
        let cuts = galoo_storage::rollup::expiry::cuts(&world.view(), Hlc::from_millis(now_ms)).expect("reads");
        cuts.iter().map(|cut| (cut.rollup, cut.tier, cut.before_ms)).collect::<Vec<_>>()
    };
    assert_eq!(cuts(&world, 20_000), [], "nothing is covered yet");
    rollups::cover_all(&world.view(), &world.engine, &model.rollups);
    assert_eq!(cuts(&world, 9_999), []);
    assert_eq!(cuts(&world, 20_004), [(10, 0, 10_000)]);
    assert_eq!(cuts(&world, 120_000), [(10, 0, 110_000), (10, 2, 20_000)]);
    world.apply(Body::DropBuckets(DropBuckets { rollup: 10, tier: 0, before_ms: 10_000 }));
    model.rollups.get_mut(&10).expect("is there").kept_from[0] = Some(10_000);
    check(&world, &model);
    assert_eq!(cuts(&world, 20_995), [], "less than a step");
    assert_eq!(cuts(&world, 21_000), [(10, 0, 11_000)]);
    world.apply(Body::DropBuckets(DropBuckets { rollup: 10, tier: 0, before_ms: 50_000 }));
    assert_eq!(cuts(&world, 70_000), [], "no bucket is left");
    // Of a later shard's time.
    let hlc = Hlc::from_millis(30_000).0;
    let command = Command { version: 1, hlc, body: Some(Body::DefineRollup(Rollup { id: 18, ..rollup })) };
    world.shard.apply(world.log.len() as u64 + 1, &[&command.encode_to_vec()]).expect("applies");
    let rollups = world.view().rollups().expect("reads");
    let from_ms: Vec<_> = rollups.last().expect("some").tiers.iter().map(|tier| tier.from_ms).collect();
    assert_eq!(from_ms, [Some(20_000), None, None, None]);
}

/// Commands behind one that forgets, in the same entry, do not see what it removed.
#[test]
fn nothing_of_a_forgotten_player_is_seen_by_the_next_command() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    let range = Some(TokenRange::FULL.into());
    let add = || {
        let mutation = Mutation {
            family: "s".into(),
            qualifier: "gold".into(),
            change: Some(Change::Increment(5)),
            ..Mutation::default()
        };
        let player_id = "p1".to_owned();
        Body::Mutate(MutatePlayer { range, player_id, mutations: vec![mutation], ..Default::default() })
    };
    let forget = Body::ForgetPlayer(ForgetPlayer { range, player_id: "p1".into() });
    let commands =
        [add(), add(), forget, add()].map(|body| Command { version: 1, hlc: 0, body: Some(body) }.encode_to_vec());
    let commands: Vec<_> = commands.iter().map(Vec::as_slice).collect();
    let outcomes = world.shard.apply(1, &commands).expect("applies");
    let values = |outcome: &Outcome| match &outcome.result {
        Some(outcome::Result::Mutated(mutated)) => mutated.values.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((values(&outcomes[1]), values(&outcomes[3])), (vec![int(10)], vec![int(5)]));
    let cells = world.view().cells("p1", &Selection::Row.into()).expect("reads");
    assert_eq!(cells.iter().map(|cell| cell.value.clone()).collect::<Vec<_>>(), [Some(int(5))]);
}
