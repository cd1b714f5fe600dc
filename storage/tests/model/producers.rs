//! Exactly once, told as stories: what may grow, what is evicted, what is refused, and what an event's id stands for (P3).

use galoo_proto::{
    command::{SetEventIdWindow, rejection::Reason},
    limits::{EVENT_ID_WINDOW_MS_DEFAULT, OUTCOME_BYTES_MAX, PRODUCER_OUTCOME_BYTES_MAX, PRODUCERS_MAX},
};

use super::*;

/// An appended file's last run is sent again with more events behind the first ones: only these are stored.
#[test]
fn a_batch_that_may_grow_stores_what_is_new_once() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    let mut send = |count: u8, may_grow: bool| {
        let Body::Append(mut body) = append(Some(4), (0..count).map(|i| event((0, i64::from(i), 1))).collect()) else {
            panic!("not an append")
        };
        body.batch.as_mut().expect("numbered").may_grow = may_grow;
        match world.apply(Body::Append(body)).result {
            Some(outcome::Result::Appended(appended)) => Some((appended.count, appended.duplicate)),
            _ => None,
        }
    };
    assert_eq!(send(3, true), Some((3, false)));
    assert_eq!(send(3, true), Some((3, true)));
    assert_eq!(send(5, false), Some((2, false)));
    assert_eq!(send(5, false), Some((2, true)));
    assert_eq!(send(6, false), None, "a batch that was complete does not grow");
    assert_eq!(send(4, false), None, "nor does it shrink");
    assert_eq!(world.shard.state().events, 5);
}

/// A producer's batch of one event.
fn numbered(producer: u64, number: u64, acked_below: u64, registered_at: u64) -> Vec<u8> {
    let producer_id = format!("p{producer:05}");
    let batch = BatchId { producer_id, number, acked_below, registered_at, ..Default::default() };
    let range = Some(TokenRange::FULL.into());
    let body = AppendEvents { range, batch: Some(batch), events: vec![event((0, 1, 0))], properties: vec![] };
    Command { version: 1, hlc: 0, body: Some(Body::Append(body)) }.encode_to_vec()
}

/// Applies commands as one entry, and says of each whether its events were stored now; `None` if it was refused.
fn stored(world: &mut World, commands: &[Vec<u8>]) -> Vec<Option<bool>> {
    let entry: Vec<_> = commands.iter().map(Vec::as_slice).collect();
    let index = world.shard.applied() + 1;
    let outcomes = world.shard.apply(index, &entry).expect("applies");
    let stored = outcomes.iter().map(|outcome| match &outcome.result {
        Some(outcome::Result::Appended(appended)) => Some(!appended.duplicate),
        _ => None,
    });
    stored.collect()
}

/// Fills the table with the producers from the `first` on, each registered one later than the one before.
fn fill_table(world: &mut World, first: u64) {
    for first in (first..PRODUCERS_MAX).step_by(512) {
        let producers = first..(first + 512).min(PRODUCERS_MAX);
        let entry: Vec<_> = producers.map(|producer| numbered(producer, 0, 0, 1 + producer)).collect();
        assert!(stored(world, &entry).iter().all(|stored| *stored == Some(true)));
    }
}

/// A full table lets go of the producers whose use lies furthest back, one for each new one, also when an entry brings
/// several; whether an evicted one's batch was stored before is not known, and that is what it is told.
#[test]
fn a_full_table_evicts_in_the_order_of_use() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    fill_table(&mut world, 0);
    assert_eq!(stored(&mut world, &[numbered(0, 0, 0, 1)]), [Some(false)], "known while the table has room");
    let new: Vec<_> = (0..3).map(|more| numbered(PRODUCERS_MAX + more, 0, 0, u64::MAX)).collect();
    assert_eq!(stored(&mut world, &new), [Some(true); 3]);
    for evicted in 0..3 {
        assert_eq!(stored(&mut world, &[numbered(evicted, 0, 0, 1 + evicted)]), [None], "p{evicted} is expired");
    }
    assert_eq!(stored(&mut world, &[numbered(3, 0, 0, 4)]), [Some(false)], "p3 is known");
}

/// A producer whose answers went and who was evicted in one entry comes back in it: what it had is not found again.
#[test]
fn an_evicted_producer_finds_nothing_that_it_had() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    for number in 0..5 {
        assert_eq!(stored(&mut world, &[numbered(0, number, 0, 1)]), [Some(true)], "{number}");
    }
    fill_table(&mut world, 1);
    assert_eq!(stored(&mut world, &[numbered(0, 3, 0, 1)]), [Some(false)], "it is known");
    let later = u64::MAX;
    let entry = [
        numbered(0, 5, 5, 1),
        numbered(PRODUCERS_MAX, 0, 0, later),
        numbered(0, 1, 0, later),
        numbered(0, 4, 0, later),
        numbered(0, 3, 0, later),
        numbered(0, 2, 0, later),
    ];
    assert_eq!(stored(&mut world, &entry), [Some(true); 6]);
    let again = [numbered(0, 3, 0, later), numbered(0, 2, 0, later)];
    assert_eq!(stored(&mut world, &again), [Some(false); 2]);
}

/// A change of a player that leaves a value of a mebibyte, under a producer's number.
fn large(producer: u64, number: u64, acked_below: u64) -> Vec<u8> {
    let value = Value { kind: Some(Kind::String("x".repeat((1 << 20) - 1))) };
    let (family, qualifier, change) = ("s".into(), "q".into(), Some(Change::Put(value)));
    let mutate = MutatePlayer {
        range: Some(TokenRange::FULL.into()),
        batch: Some(BatchId {
            producer_id: format!("p{producer:05}"),
            number,
            acked_below,
            registered_at: 1 + producer,
            ..Default::default()
        }),
        player_id: "p0".into(),
        mutations: vec![Mutation { family, qualifier, change, ..Mutation::default() }],
        ..Default::default()
    };
    Command { version: 1, hlc: 0, body: Some(Body::Mutate(mutate)) }.encode_to_vec()
}

/// `Ok` says whether it was stored now.
fn mutated(outcome: &Outcome) -> Result<bool, Reason> {
    match &outcome.result {
        Some(outcome::Result::Mutated(mutated)) => Ok(!mutated.duplicate),
        Some(outcome::Result::Rejected(rejection)) => Err(rejection.reason()),
        other => panic!("{other:?}"),
    }
}

/// A producer whose answers take much is told to say which it has; then it goes on, and nothing is counted twice.
#[test]
fn answers_that_are_kept_are_bounded_in_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    let apply = |world: &mut World, producer, number, acked_below| {
        let index = world.shard.applied() + 1;
        mutated(&world.shard.apply(index, &[&large(producer, number, acked_below)]).expect("applies")[0])
    };
    let fit = PRODUCER_OUTCOME_BYTES_MAX >> 20;
    for number in 0..fit {
        assert_eq!(apply(&mut world, 0, number, 0), Ok(true), "{number}");
    }
    assert_eq!(apply(&mut world, 0, fit, 0), Err(Reason::OutcomesFull));
    assert_eq!(apply(&mut world, 0, 3, 0), Ok(false), "answers are kept");
    assert_eq!(apply(&mut world, 0, fit, 1), Ok(true), "one of them is let go of");
    assert_eq!(apply(&mut world, 0, 0, 1), Ok(false), "it is below the floor");
    assert_eq!(apply(&mut world, 0, fit + 1, 1), Err(Reason::OutcomesFull));
    assert_eq!(apply(&mut world, 0, fit + 100, fit + 100), Ok(true), "all of them are");
    let left = world.shard.state().outcome_bytes;
    assert!((1 << 20..(1 << 20) + 200).contains(&left), "{left} bytes of one answer");

    // All producers' together: the one that was used longest ago goes, but not the one that comes.
    let producers = OUTCOME_BYTES_MAX / PRODUCER_OUTCOME_BYTES_MAX;
    for producer in 1..=producers {
        for number in 0..fit {
            assert_eq!(apply(&mut world, producer, number, 0), Ok(true), "{producer}:{number}");
        }
    }
    assert!(world.shard.state().outcome_bytes < OUTCOME_BYTES_MAX + (2 << 20));
    assert_eq!(apply(&mut world, 0, fit + 100, fit + 100), Err(Reason::ProducerExpired));
    assert_eq!(apply(&mut world, producers, 0, 0), Ok(false));
    assert_eq!(world.shard.state().producers, producers);
}

/// A producer whose answers take too much is still given the one that it waits for: with it, it can let go of the others.
#[test]
fn the_number_that_a_producer_waits_for_is_taken() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
    let apply = |world: &mut World, number, acked_below| {
        let index = world.shard.applied() + 1;
        mutated(&world.shard.apply(index, &[&large(0, number, acked_below)]).expect("applies")[0])
    };
    let fit = PRODUCER_OUTCOME_BYTES_MAX >> 20;
    for number in 1..=fit {
        assert_eq!(apply(&mut world, number, 0), Ok(true), "{number}");
    }
    assert_eq!(apply(&mut world, fit + 1, 0), Err(Reason::OutcomesFull));
    assert_eq!(apply(&mut world, 0, 0), Ok(true), "it was lost on the way");
    assert_eq!(apply(&mut world, fit + 1, fit + 1), Ok(true));
}

/// A replica applies as many commands in one turn as wait for it: what an id counts as must not depend on that.
#[test]
fn an_id_counts_the_same_however_commands_come_together() {
    let send = |at_ms: u64, id: &str| {
        let named = Event { event_id: id.to_owned(), ..event((0, 1, 1)) };
        Command { version: 1, hlc: Hlc::from_millis(at_ms).0, body: Some(append(None, vec![named])) }.encode_to_vec()
    };
    let window = |at_ms: u64, window_ms| {
        let body = Some(Body::SetEventIdWindow(SetEventIdWindow { window_ms }));
        Command { version: 1, hlc: Hlc::from_millis(at_ms).0, body }.encode_to_vec()
    };
    // Three slices of a short window, then a long one: the first slice is gone by then.
    let commands = [
        window(1_000, 1_000),
        send(2_000, "x"),
        send(3_000, "y"),
        send(4_000, "z"),
        window(4_500, 0),
        send(5_000, "x"),
        send(5_001, "y"),
        send(5_002, "z"),
    ];
    let commands: Vec<_> = commands.iter().map(Vec::as_slice).collect();
    let run = |each: usize| {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = World::new(folder.path(), Arc::new(MemoryEngine::default()), None);
        let mut outcomes = Vec::new();
        for (turn, commands) in commands.chunks(each).enumerate() {
            let first = 1 + (turn * each) as u64;
            let entries =
                commands.iter().enumerate().map(|(at, command)| (first + at as u64, std::slice::from_ref(command)));
            outcomes.extend(world.shard.apply_all(entries).expect("applies"));
        }
        let repeated = outcomes.iter().filter_map(|outcome| match &outcome.result {
            Some(outcome::Result::Appended(appended)) => Some(appended.repeated),
            _ => None,
        });
        (repeated.collect::<Vec<_>>(), world.shard.state().last_seq)
    };
    let one_by_one = run(1);
    assert_eq!(one_by_one, (vec![0, 0, 0, 0, 1, 1], 4));
    for each in 2..=commands.len() {
        assert_eq!(run(each), one_by_one, "{each} in a turn");
    }
}

/// An id is its player's, whoever sends it, for the window from when its event was stored; older ids take no space.
#[test]
fn an_events_id_is_known_for_the_window() {
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    let ids = |world: &World| {
        let range = key::event_id_slices(KEYSPACE, 0..u64::MAX);
        let mut rows =
            world.engine.rows(Family::Producers, &range.start..&range.end, Direction::Forward).expect("reads");
        let mut count = 0;
        while rows.next().expect("reads").is_some() {
            count += 1;
        }
        count
    };
    let send = |world: &mut World, at_ms: u64, number: Option<u64>, named: &[(u8, &str)]| {
        let named = named.iter().map(|(player, id)| Event { event_id: (*id).to_owned(), ..event((*player, 1, 1)) });
        let command =
            Command { version: 1, hlc: Hlc::from_millis(at_ms).0, body: Some(append(number, named.collect())) };
        let command = command.encode_to_vec();
        let outcome = one(world.shard.apply(world.log.len() as u64 + 1, &[&command]).expect("applies"));
        world.log.push(command);
        world.outcomes.push(outcome.clone());
        match outcome.result {
            Some(outcome::Result::Appended(appended)) => (appended.count, appended.repeated),
            other => panic!("{other:?}"),
        }
    };
    let window =
        |world: &mut World, window_ms| drop(world.apply(Body::SetEventIdWindow(SetEventIdWindow { window_ms })));
    let (day, start) = (EVENT_ID_WINDOW_MS_DEFAULT, 10_000_000);
    assert_eq!(send(&mut world, start, None, &[(0, "a"), (0, "b"), (1, "a"), (0, "a"), (0, "")]), (4, 1));
    assert_eq!(send(&mut world, start + 1, Some(1), &[(0, "a"), (0, "c"), (0, "")]), (2, 1), "of whatever producer");
    assert_eq!(send(&mut world, start + 1, Some(1), &[(0, "a"), (0, "c"), (0, "")]), (2, 1), "as the first time");
    world.crash();
    assert_eq!(send(&mut world, start + day - 1, None, &[(0, "a"), (1, "a")]), (0, 2), "before the window ends");
    assert_eq!(send(&mut world, start + day, None, &[(0, "a"), (0, "c")]), (1, 1), "at its end, and within it");
    assert_eq!(ids(&world), 5, "two slices: the first one's four, and the new one");
    assert_eq!(send(&mut world, start + 2 * day, None, &[(0, "d")]), (1, 0));
    assert_eq!(ids(&world), 2, "the first slice is gone");
    // A shorter window holds at once, for what is kept too; a longer one cannot bring back what is gone.
    window(&mut world, 1_000);
    assert_eq!(send(&mut world, start + 2 * day + 999, None, &[(0, "d")]), (0, 1));
    assert_eq!(send(&mut world, start + 2 * day + 1_000, None, &[(0, "d")]), (1, 0));
    assert_eq!(send(&mut world, start + 2 * day + 2_000, None, &[(0, "e")]), (1, 0));
    window(&mut world, 0);
    assert_eq!(send(&mut world, start + 2 * day + 4_000, None, &[(0, "d"), (0, "e"), (0, "c")]), (1, 2));
    // A player who is forgotten does not come back with what is sent again.
    world.apply(Body::ForgetPlayer(ForgetPlayer { range: Some(TokenRange::FULL.into()), player_id: "p0".into() }));
    assert_eq!(send(&mut world, start + 2 * day + 5_000, None, &[(0, "e"), (0, "f")]), (1, 1));
    let state = world.shard.state();
    assert_eq!((state.events, state.event_ids.unwrap_or_default().repeated), (12, 9));
}
