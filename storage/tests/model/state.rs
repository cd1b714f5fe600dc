//! Players' state against a model that remembers every moment: whatever is changed, dropped, lost and applied again, each
//! read gives what the model knows of that moment, and each command is answered as the model answers it.

use std::{collections::BTreeMap, sync::Arc};

use galoo_proto::{
    Hlc, TokenRange,
    command::{DropFamily, MoveGcTime, MutatePlayer, command::Body, outcome, rejection::Reason},
    value::{
        Cell, FamilyDefinition, IntRange, ListAppend, Mutation, Null, Precondition, Value, mutation::Change,
        precondition::Test, value::Kind,
    },
};
use galoo_storage::{
    Error, cell,
    engine::{Direction, Engine, Family, memory::MemoryEngine, rocks, rocks::RocksEngine},
    key::{self, Selection},
    shard::Checksum,
    view::{CellQuery, View},
};
use proptest::prelude::*;

use super::{World, event};

const PLAYERS: u8 = 2;
const FAMILIES: [&str; 2] = ["bag", "s"];
const QUALIFIERS: [&str; 3] = ["gold", "gold\0", "list"];

/// A cell of a player: family and qualifier by their places.
pub(super) type Place = (u8, u8);

/// An edit of a cell, and how many commands its value lives when not as its family says.
pub(super) type Placed = (Place, Edit, Option<u64>);

#[derive(Clone, Debug)]
pub(super) enum Edit {
    Put(i64),
    Delete,
    Increment { by: i64, floor: Option<i64> },
    Append { element: i64, elements_max: u32 },
    SetAdd(i64),
    SetRemove(i64),
    DeleteFamily,
    DeleteRow,
}

#[derive(Clone, Debug)]
pub(super) enum Asked {
    Absent,
    Exists,
    Equals(i64),
    /// The version that the cell, or the row, had after so many commands.
    Version(usize),
    Within(i64, i64),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Tests (of the row without a place) and changes of a player; with an event or without.
    Change {
        player: u8,
        asked: Option<(Option<Place>, Asked)>,
        edits: Vec<Placed>,
        with_event: bool,
    },
    /// Declares a family: how many versions, and how many commands its values live (0: for ever).
    Declare {
        family: u8,
        versions_max: u32,
        ttl_ms: u64,
    },
    /// Takes the declaration back.
    Undeclare(u8),
    /// Moves the garbage collection time to so many commands ago.
    MoveGcTime(u64),
    /// Drops what can be dropped.
    Compact,
    Flush,
    Crash,
    /// Begins a read that lasts for a while.
    Look,
}

fn place() -> impl Strategy<Value = Place> {
    // Half of all meet in one cell.
    prop_oneof![Just((1, 0)), (0..FAMILIES.len() as u8, 0..QUALIFIERS.len() as u8)]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (0i64..4).prop_map(Edit::Put),
        2 => Just(Edit::Delete),
        3 => (-3i64..4, prop::option::of(Just(0))).prop_map(|(by, floor)| Edit::Increment { by, floor }),
        2 => (0i64..4, 0u32..3).prop_map(|(element, elements_max)| Edit::Append { element, elements_max }),
        1 => (0i64..4).prop_map(Edit::SetAdd),
        1 => (0i64..4).prop_map(Edit::SetRemove),
        1 => Just(Edit::DeleteFamily),
        1 => Just(Edit::DeleteRow),
    ]
}

fn asked() -> impl Strategy<Value = (Option<Place>, Asked)> {
    let of_any = || prop_oneof![Just(Asked::Absent), Just(Asked::Exists), (0usize..12).prop_map(Asked::Version)];
    let of_cell = prop_oneof![
        of_any(),
        (0i64..4).prop_map(Asked::Equals),
        (0i64..3, 0i64..3).prop_map(|(min, width)| Asked::Within(min, min + width)),
    ];
    prop_oneof![1 => of_any().prop_map(|asked| (None, asked)), 3 => (place().prop_map(Some), of_cell)]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let ttl_ms = prop_oneof![4 => Just(None), 1 => (0u64..6).prop_map(Some)];
    let edits = prop::collection::vec((place(), edit(), ttl_ms), 1..4);
    let lives = prop_oneof![Just(0), 1u64..8];
    prop_oneof![
        2 => (0..FAMILIES.len() as u8, 1u32..5, lives)
            .prop_map(|(family, versions_max, ttl_ms)| Step::Declare { family, versions_max, ttl_ms }),
        1 => (0..FAMILIES.len() as u8).prop_map(Step::Undeclare),
        12 => (0..PLAYERS, prop::option::of(asked()), edits, any::<bool>())
            .prop_map(|(player, asked, edits, with_event)| Step::Change { player, asked, edits, with_event }),
        3 => (0u64..8).prop_map(Step::MoveGcTime),
        4 => Just(Step::Compact),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        2 => Just(Step::Look),
    ]
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Int(i64),
    List(Vec<i64>),
}

/// A value of a cell: when it was written, when it expires.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    version: u64,
    expires: u64,
    content: Content,
}

/// What a player's cells hold, each its values, the newest first.
type Row = BTreeMap<Place, Vec<Held>>;

/// A cell's newest value at a time, if it is there then.
fn newest(row: &Row, place: Place, at: u64) -> Option<&Held> {
    row.get(&place)?.first().filter(|newest| newest.expires > at)
}

/// A row without what has expired.
fn living(row: &Row, at: u64) -> Row {
    row.iter().filter(|(place, _)| newest(row, **place, at).is_some()).map(|(at, held)| (*at, held.clone())).collect()
}

/// All players' rows after a command, and the versions of the rows that have cells.
#[derive(Clone, Debug, Default)]
struct Moment {
    hlc: u64,
    rows: [Row; PLAYERS as usize],
    versions: [u64; PLAYERS as usize],
}

impl Moment {
    /// A row's version, and 0 where it has no cell that is there.
    fn row_version(&self, player: usize, at: u64) -> u64 {
        if living(&self.rows[player], at).is_empty() { 0 } else { self.versions[player] }
    }
}

#[derive(Default)]
struct Model {
    /// Versions kept and time to live of the declared families.
    families: [Option<(usize, u64)>; FAMILIES.len()],
    /// The first one is before everything.
    moments: Vec<Moment>,
    gc: u64,
    events: u64,
}

/// A view, how many moments it knows, and its garbage collection time.
type Looking = (View, usize, u64);

fn int(value: i64) -> Value {
    Value { kind: Some(Kind::Int(value)) }
}

fn value(content: &Content) -> Value {
    match content {
        Content::Int(value) => int(*value),
        Content::List(elements) => {
            let text: Vec<_> = elements.iter().map(i64::to_string).collect();
            Value { kind: Some(Kind::Json(format!("[{}]", text.join(",")))) }
        }
    }
}

fn mutation(((family, qualifier), edit, ttl_ms): &Placed) -> Mutation {
    let null = i32::from(Null::Null);
    let (mut family, mut qualifier) =
        (FAMILIES[usize::from(*family)].to_owned(), QUALIFIERS[usize::from(*qualifier)].to_owned());
    let mut lowest = None;
    let change = match edit {
        Edit::Put(value) => Change::Put(int(*value)),
        Edit::Delete => Change::Delete(null),
        Edit::Increment { by, floor } => {
            lowest = *floor;
            Change::Increment(*by)
        }
        Edit::Append { element, elements_max } => {
            Change::Append(ListAppend { value: Some(int(*element)), elements_max: *elements_max })
        }
        Edit::SetAdd(element) => Change::SetAdd(int(*element)),
        Edit::SetRemove(element) => Change::SetRemove(int(*element)),
        Edit::DeleteFamily => {
            qualifier.clear();
            Change::DeleteFamily(null)
        }
        Edit::DeleteRow => {
            family.clear();
            qualifier.clear();
            Change::DeleteRow(null)
        }
    };
    Mutation { family, qualifier, change: Some(change), floor: lowest, ceiling: None, ttl_ms: *ttl_ms }
}

/// What an edit makes of a cell; `None` when it does not fit.
fn edited(known: Option<&Content>, edit: &Edit) -> Option<Option<Content>> {
    let list = || match known {
        None => Some(Vec::new()),
        Some(Content::List(elements)) => Some(elements.clone()),
        Some(Content::Int(_)) => None,
    };
    Some(match edit {
        Edit::Put(value) => Some(Content::Int(*value)),
        Edit::Delete | Edit::DeleteFamily | Edit::DeleteRow => None,
        Edit::Increment { by, floor } => match known {
            Some(Content::List(_)) => return None,
            known => {
                let new = by + known.map_or(0, |known| if let Content::Int(value) = known { *value } else { 0 });
                if floor.is_some_and(|floor| new < floor) {
                    return None;
                }
                Some(Content::Int(new))
            }
        },
        Edit::Append { element, elements_max } => {
            let mut list = list()?;
            list.push(*element);
            let surplus = list.len().saturating_sub(*elements_max as usize);
            Some(Content::List(if *elements_max == 0 { list } else { list.split_off(surplus) }))
        }
        Edit::SetAdd(element) => {
            let mut set = list()?;
            if !set.contains(element) {
                set.push(*element);
            }
            Some(Content::List(set))
        }
        Edit::SetRemove(element) => {
            let mut set = list()?;
            set.retain(|one| one != element);
            Some(Content::List(set))
        }
    })
}

impl Model {
    /// A command was applied that changes no state.
    fn pass(&mut self, world: &World) {
        let hlc = Hlc::from_millis(999 + world.log.len() as u64).0;
        self.moments.push(Moment { hlc, ..self.now().clone() });
    }

    fn now(&self) -> &Moment {
        self.moments.last().expect("a first moment")
    }

    /// The version that a test asks for, and whether it holds now.
    fn holds(&self, player: usize, hlc: u64, place: Option<Place>, asked: &Asked) -> (u64, bool) {
        let of = |moment: &Moment, at| match place {
            None => moment.row_version(player, at),
            Some(place) => newest(&moment.rows[player], place, at).map_or(0, |held| held.version),
        };
        let content = place.and_then(|place| newest(&self.now().rows[player], place, hlc)).map(|held| &held.content);
        let found = of(self.now(), hlc);
        let expected = match asked {
            Asked::Version(after) => {
                let moment = &self.moments[(*after).min(self.moments.len() - 1)];
                of(moment, moment.hlc)
            }
            _ => 0,
        };
        let holds = match asked {
            Asked::Absent => found == 0,
            Asked::Exists => found != 0,
            Asked::Equals(value) => content == Some(&Content::Int(*value)),
            Asked::Version(_) => found == expected,
            Asked::Within(min, max) => matches!(content, Some(Content::Int(value)) if (min..=max).contains(&value)),
        };
        (expected, holds)
    }

    /// The row after edits, and the new value of each; or the first one that does not fit.
    fn edited(&self, player: usize, hlc: u64, edits: &[Placed]) -> Result<(Row, Vec<Value>), u32> {
        let mut row = living(&self.now().rows[player], hlc);
        let mut values = Vec::new();
        for (at, (place, edit, ttl_ms)) in edits.iter().enumerate() {
            let known = row.get(place).and_then(|held| held.first());
            let content = edited(known.map(|held| &held.content), edit).ok_or(at as u32)?;
            values.push(content.as_ref().map_or(Value { kind: Some(Kind::Null(Null::Null.into())) }, value));
            match (edit, content) {
                (Edit::DeleteRow, _) => row.clear(),
                (Edit::DeleteFamily, _) => row.retain(|(family, _), _| *family != place.0),
                (_, None) => drop(row.remove(place)),
                (_, Some(content)) => {
                    let (versions_max, of_family) = self.families[usize::from(place.0)].unwrap_or((1, 0));
                    let expires = match ttl_ms.unwrap_or(of_family) {
                        0 => u64::MAX,
                        ttl_ms => Hlc::from_millis(Hlc(hlc).millis() + ttl_ms).0,
                    };
                    let held = row.entry(*place).or_default();
                    held.retain(|older| older.version != hlc);
                    held.truncate(held.iter().take_while(|older| older.expires > hlc).count());
                    held.insert(0, Held { version: hlc, expires, content });
                    held.truncate(versions_max);
                }
            }
        }
        Ok((row, values))
    }
}

fn player_id(player: usize) -> String {
    format!("p{player}")
}

fn change(world: &mut World, model: &mut Model, step: &Step) {
    let Step::Change { player, asked, edits, with_event } = step else { return };
    let player = usize::from(*player);
    let hlc = Hlc::from_millis(1_000 + world.log.len() as u64).0;
    let mut preconditions = Vec::new();
    let mut is_refused = false;
    if let Some((place, asked)) = asked {
        let (version, holds) = model.holds(player, hlc, *place, asked);
        is_refused = !holds;
        let null = i32::from(Null::Null);
        let test = match asked {
            Asked::Absent => Test::Absent(null),
            Asked::Exists => Test::Exists(null),
            Asked::Equals(value) => Test::Equals(int(*value)),
            Asked::Version(_) => Test::Version(version),
            Asked::Within(min, max) => Test::Within(IntRange { min: Some(*min), max: Some(*max) }),
        };
        let name = |names: &[&str], place: u8| names[usize::from(place)].to_owned();
        let (family, qualifier) = place.map_or_else(Default::default, |(family, qualifier)| {
            (name(&FAMILIES, family), name(&QUALIFIERS, qualifier))
        });
        preconditions.push(Precondition { family, qualifier, test: Some(test) });
    }
    let events = with_event.then(|| event((player as u8, hlc as i64 % 40, 1)));
    let outcome = world.apply(Body::Mutate(MutatePlayer {
        range: Some(TokenRange::FULL.into()),
        player_id: player_id(player),
        preconditions,
        mutations: edits.iter().map(mutation).collect(),
        events: events.into_iter().collect(),
        ..MutatePlayer::default()
    }));
    let mut moment = Moment { hlc, ..model.now().clone() };
    match (is_refused, model.edited(player, hlc, edits), outcome.result) {
        (true, _, Some(outcome::Result::Rejected(rejection))) => {
            assert_eq!(rejection.reason(), Reason::PreconditionFailed);
        }
        (false, Err(at), Some(outcome::Result::Rejected(rejection))) => {
            assert_eq!((rejection.reason(), rejection.index), (Reason::CellConflict, at));
        }
        (false, Ok((row, values)), Some(outcome::Result::Mutated(mutated))) => {
            let first_seq = if *with_event { model.events + 1 } else { 0 };
            assert_eq!((mutated.values, mutated.version, mutated.first_seq), (values, hlc, first_seq));
            model.events += u64::from(*with_event);
            // Touching only what is not there, before and after, changes nothing.
            let touches = |(place, edit, _): &Placed, cell: &Place| match edit {
                Edit::DeleteRow => true,
                Edit::DeleteFamily => place.0 == cell.0,
                _ => place == cell,
            };
            let before = living(&moment.rows[player], hlc);
            let mut known = before.keys().chain(row.keys());
            if known.any(|cell| edits.iter().any(|edit| touches(edit, cell))) {
                moment.versions[player] = hlc;
            }
            moment.rows[player] = row;
        }
        (is_refused, expected, found) => panic!("{found:?} where refused is {is_refused}, {expected:?}"),
    }
    model.moments.push(moment);
}

/// The values of a moment's cells that a read at a time shows.
fn cells(row: &Row, at: u64, versions: usize, takes: impl Fn(&str, &str) -> bool) -> Vec<Cell> {
    let living = living(row, at);
    let values = living.iter().flat_map(|(place, held)| {
        let held = held.iter().take_while(|held| held.expires > at).take(versions);
        held.map(|held| Cell {
            family: FAMILIES[usize::from(place.0)].to_owned(),
            qualifier: QUALIFIERS[usize::from(place.1)].to_owned(),
            value: Some(value(&held.content)),
            version: held.version,
            expires_ms: if held.expires == u64::MAX { 0 } else { Hlc(held.expires).millis() },
        })
    });
    values.filter(|cell| takes(&cell.family, &cell.qualifier)).collect()
}

/// Whatever a view may be asked of the moments that it knows is answered as they were.
fn check(view: &View, moments: &[Moment], gc: u64) {
    let now = moments.last().expect("a moment");
    for player in 0..usize::from(PLAYERS) {
        let id = player_id(player);
        let row = &now.rows[player];
        // What expires does so without a further command.
        for later_ms in [0, 1, 4] {
            let at = Hlc(now.hlc).millis() + later_ms;
            let at = if later_ms == 0 { now.hlc } else { Hlc::from_millis(at).0 };
            let later = view.clone().at(Hlc(at));
            let found = |selection: Selection<'_>| later.cells(&id, &selection.into()).expect("reads");
            let expected = |takes: &dyn Fn(&str, &str) -> bool| cells(row, at, 1, takes);
            assert_eq!(found(Selection::Row), expected(&|_, _| true));
            for family in FAMILIES {
                assert_eq!(found(Selection::Family(family)), expected(&|of, _| of == family));
                let prefixed = expected(&|of, name| of == family && name.starts_with("gold"));
                assert_eq!(found(Selection::Prefix(family, "gold")), prefixed);
                let from = expected(&|of, name| of == family && ("gold\0".."m").contains(&name));
                assert_eq!(found(Selection::Range(family, "gold\0".."m")), from);
                for qualifier in QUALIFIERS {
                    let one = expected(&|of, name| of == family && name == qualifier);
                    assert_eq!(found(Selection::Cell(family, qualifier)), one);
                }
            }
            let scanned: Vec<_> = later.state_rows(None).map(|page| page.expect("reads")).collect();
            let scanned = scanned.concat().into_iter().filter(|one| one.player == id).flat_map(|one| one.cells);
            assert_eq!(scanned.collect::<Vec<_>>(), expected(&|_, _| true));
        }
        for (moment, versions) in moments.iter().flat_map(|moment| [1, 2, 100].map(|versions| (moment, versions))) {
            let read = |selection| {
                let found = view.cells(&id, &CellQuery { selection, as_of: Some(Hlc(moment.hlc)), versions });
                // When a value would have expired that was replaced since is not kept.
                found.map(|cells| cells.into_iter().map(|cell| Cell { expires_ms: 0, ..cell }).collect::<Vec<_>>())
            };
            let was = read(Selection::Row);
            if moment.hlc < gc {
                assert!(matches!(was, Err(Error::HistoryGone { .. })), "{was:?}");
                continue;
            }
            let expected = |takes: &dyn Fn(&str, &str) -> bool| {
                let cells = cells(&moment.rows[player], moment.hlc, versions, takes);
                cells.into_iter().map(|cell| Cell { expires_ms: 0, ..cell }).collect::<Vec<_>>()
            };
            assert_eq!(was.expect("reads"), expected(&|_, _| true), "{id} as of {}", moment.hlc);
            let one = read(Selection::Cell("s", "gold")).expect("reads");
            assert_eq!(one, expected(&|of, name| (of, name) == ("s", "gold")), "{id} as of {}", moment.hlc);
        }
    }
}

/// Rows of a family that nobody can read any more.
pub(super) fn dead_rows(engine: &dyn Engine, family: Family, gc: u64) -> usize {
    let all = key::keyspace_range(super::KEYSPACE);
    let mut rows = engine.rows(family, &all.start..&all.end, Direction::Forward).expect("reads");
    let mut dead = 0;
    while let Some((_, row)) = rows.next().expect("reads") {
        dead += usize::from(!cell::is_readable(family, row, Hlc(gc)));
    }
    dead
}

pub(super) fn run(steps: &[Step], world: &mut World) {
    let mut model = Model { moments: vec![Moment::default()], ..Model::default() };
    let mut looking: Option<Looking> = None;
    for step in steps {
        match step {
            Step::Change { .. } => change(world, &mut model, step),
            Step::Declare { family, versions_max, ttl_ms } => {
                let (name, revision) = (FAMILIES[usize::from(*family)].to_owned(), world.log.len() as u64 + 1);
                model.families[usize::from(*family)] = Some((*versions_max as usize, *ttl_ms));
                let (versions_max, ttl_ms) = (*versions_max, *ttl_ms);
                let family = FamilyDefinition { name, versions_max, ttl_ms, kind: 0, revision };
                world.apply(Body::DefineFamily(family.clone()));
                model.pass(world);
                // What was declared before is told too late.
                let late = FamilyDefinition { versions_max: 100, ttl_ms: 1, revision: revision - 1, ..family };
                world.apply(Body::DefineFamily(late));
                model.pass(world);
            }
            Step::Undeclare(family) => {
                model.families[usize::from(*family)] = None;
                let (name, revision) = (FAMILIES[usize::from(*family)].to_owned(), world.log.len() as u64);
                world.apply(Body::DropFamily(DropFamily { name, revision }));
                model.pass(world);
            }
            Step::MoveGcTime(back) => {
                let now = Hlc::from_millis(1_000 + world.log.len() as u64).0;
                let to = Hlc::from_millis((1_000 + world.log.len() as u64).saturating_sub(*back)).0;
                model.gc = model.gc.max(to.min(now - 1));
                match world.apply(Body::MoveGcTime(MoveGcTime { to })).result {
                    Some(outcome::Result::GcTimeMoved(moved)) => assert_eq!(moved.gc_hlc, model.gc),
                    other => panic!("{other:?}"),
                }
                model.pass(world);
            }
            Step::Compact if world.log.is_empty() => {}
            Step::Compact => {
                world.engine.flush().expect("flushes");
                world.shard.persisted().expect("reads");
                for family in [Family::Cells, Family::History] {
                    world.engine.compact(family, None).expect("compacts");
                }
                for family in [Family::Cells, Family::History].into_iter().filter(|_| looking.is_none()) {
                    assert_eq!(
                        dead_rows(world.engine.as_ref(), family, model.gc),
                        0,
                        "what may go of {family:?} is there"
                    );
                }
            }
            Step::Flush => world.engine.flush().expect("flushes"),
            Step::Crash => {
                looking = None;
                world.crash();
            }
            Step::Look if world.log.is_empty() => {}
            Step::Look => looking = Some((world.view(), model.moments.len(), model.gc)),
        }
        if !world.log.is_empty() {
            check(&world.view(), &model.moments, model.gc);
        }
        if let Some((view, count, gc)) = &looking {
            check(view, &model.moments[..*count], *gc);
        }
    }
}

/// Applies a world's log once more, several commands an entry, on an engine that drops nothing: the outcomes and the content
/// are the same.
fn check_replica(world: &World, folder: &std::path::Path) {
    let mut other = World::new(&folder.join("other"), Arc::new(MemoryEngine::default()), None);
    let mut outcomes = Vec::new();
    for (at, entry) in world.log.chunks(3).enumerate() {
        let commands: Vec<_> = entry.iter().map(Vec::as_slice).collect();
        outcomes.extend(other.shard.apply(at as u64 + 1, &commands).expect("applies"));
    }
    assert_eq!(outcomes, world.outcomes);
    if !world.log.is_empty() {
        let sum = |world: &World| Checksum::of(&world.view()).expect("sums").sum;
        assert_eq!(sum(&other), sum(world), "replicas that dropped other rows differ");
    }
}

/// A row's cells lie side by side: they are found by one seek, whatever their number.
#[test]
fn a_row_of_ten_cells_is_read_in_one_seek() {
    use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
    let folder = tempfile::tempdir().expect("folder");
    let engine = RocksEngine::open(&folder.path().join("rocks"), &rocks::Options::default()).expect("opens");
    let mut world = World::new(folder.path(), Arc::new(engine), None);
    for player in 0..50 {
        let cells = if player == 25 { 10 } else { 3 };
        let put = |place: usize| Mutation {
            family: "s".to_owned(),
            qualifier: place.to_string(),
            change: Some(Change::Put(int(1))),
            ..Mutation::default()
        };
        let (range, player_id) = (Some(TokenRange::FULL.into()), format!("p{player}"));
        let mutations = (0..cells).map(put).collect();
        world.apply(Body::Mutate(MutatePlayer { range, player_id, mutations, ..MutatePlayer::default() }));
    }
    // In a file, and with nothing of it in the memtable.
    world.engine.flush().expect("flushes");
    let view = world.view();
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut context = PerfContext::default();
    context.reset();
    let cells = view.cells("p25", &Selection::Row.into()).expect("reads");
    let [seeks, gets] =
        [PerfMetric::SeekOnMemtableCount, PerfMetric::GetFromMemtableCount].map(|metric| context.metric(metric));
    set_perf_stats(PerfStatsLevel::Disable);
    assert_eq!((cells.len(), seeks, gets), (10, 1, 0), "{}", context.report(true));
}

/// A compaction filter sees no snapshots: what a read that lasts still needs is kept for it, and goes once it ends.
#[test]
fn what_a_lasting_read_sees_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let engine = RocksEngine::open(&folder.path().join("rocks"), &rocks::Options::default()).expect("opens");
    let mut world = World::new(folder.path(), Arc::new(engine), None);
    let put = |value| Step::Change {
        player: 0,
        asked: None,
        edits: vec![((1, 0), Edit::Put(value), None)],
        with_event: false,
    };
    let mut model = Model { moments: vec![Moment::default()], ..Model::default() };
    for value in 1..4 {
        change(&mut world, &mut model, &put(value));
    }
    let (view, known) = (world.view(), model.moments.clone());
    let to = Hlc::from_millis(1_003).0;
    world.apply(Body::MoveGcTime(MoveGcTime { to }));
    let collect = |world: &World| {
        world.engine.flush().expect("flushes");
        world.shard.persisted().expect("reads");
        world.engine.compact(Family::History, None).expect("compacts");
        dead_rows(world.engine.as_ref(), Family::History, to)
    };
    assert_eq!(collect(&world), 2);
    check(&view, &known, 0);
    drop(view);
    assert_eq!(collect(&world), 0);
    check(&world.view(), &known[3..], to);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10000))]
    #[test]
    fn any_run_of_changes_is_read_as_the_model_remembers_it(steps in prop::collection::vec(step(), 1..24)) {
        let folder = tempfile::tempdir().expect("folder");
        let memory = MemoryEngine::default();
        let mut world = World::new(folder.path(), Arc::new(memory.clone()), Some(memory));
        run(&steps, &mut world);
        check_replica(&world, folder.path());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// RocksDB's compaction filter drops what nobody can read, and never what somebody can.
    #[test]
    fn what_the_compaction_filter_drops_nobody_can_read(steps in prop::collection::vec(step(), 8..32)) {
        let folder = tempfile::tempdir().expect("folder");
        let engine = RocksEngine::open(&folder.path().join("rocks"), &rocks::Options::default()).expect("opens");
        let mut world = World::new(folder.path(), Arc::new(engine), None);
        run(&steps, &mut world);
        check_replica(&world, folder.path());
    }
}
