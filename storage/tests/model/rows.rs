//! How large a player's row may become, and that it becomes small again.

use galoo_proto::{
    command::{MoveGcTime, rejection::Reason},
    limits::{CELL_BYTES_MAX, CELLS_READ_BYTES_MAX, ROW_BYTES_MAX},
    value::ListAppend,
};
use galoo_storage::{engine::Family, view::SparseRanges};

use super::{state::dead_rows, *};

/// A row is bounded in bytes, so that it can be deleted in one command; what makes it smaller is never refused.
#[test]
fn a_row_that_would_be_too_large_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    let mut apply = |qualifier: &str, change| {
        let (family, qualifier) = (if qualifier.is_empty() { "" } else { "s" }.to_owned(), qualifier.to_owned());
        let mutations = vec![Mutation { family, qualifier, change: Some(change), ..Mutation::default() }];
        let (range, player_id) = (Some(TokenRange::FULL.into()), "p0".to_owned());
        match world.apply(Body::Mutate(MutatePlayer { range, player_id, mutations, ..MutatePlayer::default() })).result
        {
            Some(outcome::Result::Mutated(_)) => None,
            Some(outcome::Result::Rejected(rejection)) => Some((rejection.reason(), rejection.limit)),
            other => panic!("{other:?}"),
        }
    };
    let text = |bytes: usize| Change::Put(Value { kind: Some(Kind::String("x".repeat(bytes))) });
    let element = |bytes: usize| {
        let value = Some(Value { kind: Some(Kind::String("x".repeat(bytes))) });
        ListAppend { value, elements_max: 0 }
    };
    // Keys and stamps count too: the last of them is too much.
    let refused = Some((Reason::RowTooLarge, ROW_BYTES_MAX));
    let full = usize::try_from(ROW_BYTES_MAX).expect("small") / CELL_BYTES_MAX;
    for place in 0..full {
        assert_eq!(apply(&place.to_string(), text(CELL_BYTES_MAX)), refused.filter(|_| place + 1 == full), "{place}");
    }
    assert_eq!(apply("more", text(CELL_BYTES_MAX / 2)), None);
    assert_eq!(apply("more", text(CELL_BYTES_MAX)), refused);
    assert_eq!(apply("more", text(1)), None);
    let null = i32::from(Null::Null);
    assert_eq!(apply("0", Change::Delete(null)), None);
    assert_eq!(apply("more", text(CELL_BYTES_MAX)), None);
    assert_eq!(apply("", Change::DeleteRow(null)), None);
    assert_eq!(apply("list", Change::Append(element(60 << 10))), None);
    assert_eq!(apply("list", Change::Append(element(60 << 10))), Some((Reason::CellConflict, 0)), "a list is small");
    assert_eq!(apply("more", text(CELL_BYTES_MAX)), None);
    assert_eq!(world.view().cells("p0", &Selection::Row.into()).expect("reads").len(), 2);
    // Each is within its limit, and all of them are more than an answer takes.
    let again = |_| Mutation {
        family: "s".to_owned(),
        qualifier: "list".to_owned(),
        change: Some(Change::SetAdd(int(1))),
        ..Mutation::default()
    };
    let outcome = world.apply(Body::Mutate(MutatePlayer {
        range: Some(TokenRange::FULL.into()),
        player_id: "p0".to_owned(),
        mutations: (0..100).map(again).collect(),
        ..MutatePlayer::default()
    }));
    match outcome.result {
        Some(outcome::Result::Rejected(rejection)) => assert_eq!(rejection.limit, CELLS_READ_BYTES_MAX as u64),
        other => panic!("{other:?}"),
    }
}

/// A row through which ever new cells passed is found by whoever reads it, and is small again once it is rewritten.
#[test]
fn a_row_in_which_cells_come_and_go_is_swept() {
    let folder = tempfile::tempdir().expect("folder");
    let engine = RocksEngine::open(&folder.path().join("rocks"), &rocks::Options::default()).expect("opens");
    let mut world = World::new(folder.path(), Arc::new(engine), None);
    let mut apply = |change: &dyn Fn(usize) -> Mutation, count: usize| {
        let mutations = (0..count).map(change).collect();
        let (range, player_id) = (Some(TokenRange::FULL.into()), "p0".to_owned());
        world.apply(Body::Mutate(MutatePlayer { range, player_id, mutations, ..MutatePlayer::default() }));
    };
    let cell = |place: usize, change| Mutation {
        family: "s".to_owned(),
        qualifier: place.to_string(),
        change: Some(change),
        ..Mutation::default()
    };
    apply(&|place| cell(place, Change::Put(int(1))), 1_200);
    apply(&|place| cell(place, Change::Delete(Null::Null.into())), 1_100);
    let read = |world: &World, sparse: &Arc<SparseRanges>| {
        let view = world.view().with_sparse(sparse.clone());
        assert_eq!(view.cells("p0", &Selection::Row.into()).expect("reads").len(), 100);
    };
    let sparse = Arc::<SparseRanges>::default();
    read(&world, &sparse);
    assert_eq!(sparse.take(), None, "the history is kept");
    let to = Hlc::from_millis(1_001).0;
    world.apply(Body::MoveGcTime(MoveGcTime { to }));
    world.engine.flush().expect("flushes");
    world.shard.persisted().expect("reads");
    read(&world, &sparse);
    read(&world, &sparse);
    let range = sparse.take().expect("said once");
    assert_eq!(sparse.take(), None);
    assert_eq!(dead_rows(world.engine.as_ref(), Family::Cells, to), 1_100);
    world.engine.compact(Family::Cells, Some(&range.start..&range.end)).expect("compacts");
    assert_eq!(dead_rows(world.engine.as_ref(), Family::Cells, to), 0);
    read(&world, &sparse);
    assert_eq!(sparse.take(), None);
}
