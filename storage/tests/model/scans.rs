//! Scans with conditions of properties and with some properties alone, wherever the events are; and what a page costs.

use std::collections::HashSet;

use galoo_proto::command::Seal;
use galoo_storage::view::{Condition, Scalar, Test};

use super::*;

/// Whether a condition holds of an event with these properties.
type Holds = fn(&serde_json::Value) -> bool;

/// Conditions, each with what it says of an event's properties.
fn conditions() -> Vec<(Condition, Holds)> {
    let of = |property: &str, test| Condition { property: property.to_owned(), test };
    let text = |text: &str| Scalar::String(text.to_owned());
    vec![
        (of("x", Test::Exists), |event| event.get("x").is_some()),
        (of("gone", Test::Is(vec![Scalar::Null])), |event| event.get("gone").is_some()),
        (of("name", Test::Absent), |event| event.get("name").is_none()),
        (of("nobody", Test::Absent), |_| true),
        (of("nobody", Test::Exists), |_| false),
        (of("ok", Test::IsNot(Scalar::Bool(true))), |event| event.get("ok") == Some(&false.into())),
        (of("x", Test::Is(vec![text("text"), Scalar::Int(3)])), |event| {
            event.get("x").is_some_and(|x| x == "text" || x == &serde_json::Value::from(3))
        }),
        (of("x", Test::Greater(Scalar::Float(7.25))), |event| {
            event.get("x").and_then(serde_json::Value::as_f64).is_some_and(|x| x > 7.25)
        }),
        (of("name", Test::AtMost(text(""))), |event| event.get("name") == Some(&"".into())),
    ]
}

/// Each condition lets those through of which it holds, and a projection leaves the named properties.
pub(super) fn check(view: &View, events: &[(u64, Event)]) {
    let names = ["x".to_owned(), "nested".to_owned()];
    let columns = Column::event(Some(&names));
    let properties = |event: &Event| said(event).3;
    for (condition, holds) in conditions() {
        let filter = EventFilter { conditions: vec![condition.clone()], ..EventFilter::default() };
        let found = view.events_after(Seq(0), filter.clone()).with_columns(columns.clone());
        let found: Vec<_> = found.map(|event| event.expect("reads")).collect();
        let expected: Vec<_> = events.iter().filter(|(_, event)| holds(&properties(event))).collect();
        let seqs: Vec<u64> = expected.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(found.iter().map(|event| event.seq).collect::<Vec<_>>(), seqs, "{condition:?}");
        for (found, (_, event)) in found.iter().zip(&expected) {
            let mut projected = properties(event);
            projected.as_object_mut().expect("object").retain(|name, _| names.contains(name));
            assert_eq!(properties(found.event.as_ref().expect("event")), projected);
        }
        let filter = EventFilter { conditions: vec![condition], ..EventFilter::player("p1") };
        let page = view.player_page(&filter, &columns, Direction::Backward, None, 1_000).expect("reads");
        let of_player = expected.iter().filter(|(_, event)| event.player_id == "p1").map(|(seq, _)| *seq);
        let paged: HashSet<u64> = page.events.iter().map(|event| event.seq).collect();
        assert_eq!(paged, of_player.collect());
    }
}

/// Events of a player, one a millisecond from a time on, between those of others.
fn busy(from_ms: i64, count: i64) -> Vec<Event> {
    let one = |at: i64, player: &str| Event {
        player_id: player.to_owned(),
        event_time_ms: from_ms + at,
        event_type: "hit".to_owned(),
        properties: format!(r#"{{"damage":{},"by":"p{}"}}"#, at % 97, at % 13),
        ..Default::default()
    };
    (0..count).flat_map(|at| [one(at, "hero"), one(at, &format!("p{}", at % 50))]).collect()
}

/// The last events of a player with many segments behind it cost a few pages, however many segments there are: also when
/// they are merged, and whichever way they are read.
#[test]
fn a_page_reads_no_more_than_it_needs() {
    const SEGMENTS: i64 = 1_000;
    const EVENTS: i64 = 1_000;
    let folder = tempfile::tempdir().expect("folder");
    let memory = MemoryEngine::default();
    let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
    for segment in 0..SEGMENTS {
        world.apply(append(None, busy(segment * EVENTS, EVENTS)));
        let chunk = world.shard.state().open.unwrap_or_default().id;
        world.apply(Body::Seal(Seal { chunk }));
        if segment % 8 == 7 {
            // One view for several segments: what is applied does not matter here.
            world.build_each();
        }
    }
    let view = world.view();
    assert_eq!(view.sources().expect("reads").len() as i64, SEGMENTS);
    // At most three data pages of each column that an event with its two properties is made from; and the dictionaries of
    // the player (which is read to filter, too), the type and the properties, and the two pieces of a bloom filter.
    let pieces_max = 3 * 7 + (2 + 1 + 2) + 2;
    let files = world.files.clone();
    let pages = |view: &View, direction, after, expected: &mut dyn Iterator<Item = i64>| {
        let filter = EventFilter::player("hero");
        let read = || view.player_page(&filter, &Column::event(None), direction, after, 100).expect("reads");
        read();
        let before = files.reads();
        let page = read();
        let times = page.events.iter().map(|event| event.event.as_ref().expect("event").event_time_ms);
        assert!(times.eq(expected.take(100)) && page.more);
        let reads = files.reads() - before;
        assert!(reads <= pieces_max, "{reads} pieces read, {direction:?}");
        reads
    };
    let last = SEGMENTS * EVENTS - 1;
    let middle = Some((500_500, Seq(u64::MAX)));
    let reads = [
        pages(&view, Direction::Backward, None, &mut (0..=last).rev()),
        pages(&view, Direction::Forward, None, &mut (0..=last)),
        pages(&view, Direction::Forward, middle, &mut (500_501..=last)),
    ];
    drop(view);

    let all = merges::segments(&world);
    for some in all.chunks(64) {
        assert!(merges::merge(&mut world, some));
    }
    let view = world.view();
    assert_eq!(view.sources().expect("reads").len(), 16);
    let merged = [
        pages(&view, Direction::Backward, None, &mut (0..=last).rev()),
        pages(&view, Direction::Forward, None, &mut (0..=last)),
    ];
    // Pages follow each other without a gap, over the stretches that a segment is read in.
    let filter = EventFilter::player("hero");
    for direction in [Direction::Forward, Direction::Backward] {
        let (mut after, mut times) = (Some((500_500, Seq(0))), Vec::new());
        while times.len() < 20_000 {
            let page = view.player_page(&filter, &Column::event(None), direction, after, 1_000).expect("reads");
            let position = |event: &StoredEvent| (event.event.as_ref().expect("event").event_time_ms, Seq(event.seq));
            times.extend(page.events.iter().map(|event| position(event).0));
            after = page.events.last().map(position);
        }
        let expected: Vec<i64> = match direction {
            Direction::Forward => (500_500..520_500).collect(),
            Direction::Backward => (480_500..500_500).rev().collect(),
        };
        assert_eq!(times, expected);
    }
    println!("pieces read of {SEGMENTS} segments {reads:?}, of {} merged ones {merged:?}", all.len().div_ceil(64));
}
