//! What is written stays readable, byte for byte; what is damaged is found, or does no harm, and is never a wrong answer (P7).
//!
//! A shard with rows of every kind is the subject. Its bytes stand in `tests/golden`, a folder for each version of the formats:
//! `GALOO_BLESS=1` writes those of this version, when a change of the format is meant.

use std::{fs, path::Path};

use galoo_proto::{
    SegmentId,
    command::{RegisterProducer, Seal},
    value::{FamilyDefinition, ListAppend},
};
use galoo_storage::{
    engine::{Change as EngineChange, WriteBatch},
    inspect::Inspector,
    shard::FORMAT_VERSION,
};

use proptest::strategy::ValueTree;

use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// A shard with rows of every kind: state with versions and history, producers, chunks, segments, rollups, a forgotten player.
fn populated(folder: &Path, engine: Arc<dyn Engine>) -> World {
    let mut world = World::new(folder, engine, None);
    let range = Some(TokenRange::FULL.into());
    let live: rollups::Live = (0..rollups::KINDS).map(|id| (id, Default::default())).collect();
    live.keys().for_each(|id| drop(world.apply(Body::DefineRollup(rollups::definition(*id)))));
    let family = |name: &str, versions_max| FamilyDefinition { name: name.into(), versions_max, ..Default::default() };
    world.apply(Body::DefineFamily(FamilyDefinition { revision: 1, ttl_ms: 60_000, ..family("matches", 3) }));
    catalog::declare(&mut world, 0b10_00_01_11);
    world.apply(Body::RegisterProducer(RegisterProducer { range, producer_id: "file:a:1:00".into() }));
    let change = |world: &mut World, player: &str, family: &str, change: Change| {
        let (family, qualifier, change) = (family.to_owned(), "one\0two".to_owned(), Some(change));
        let mutation = Mutation { family, qualifier, change, ..Mutation::default() };
        let player_id = player.to_owned();
        world.apply(Body::Mutate(MutatePlayer { range, player_id, mutations: vec![mutation], ..Default::default() }));
    };
    for step in 0..5 {
        change(&mut world, "p0", "matches", Change::Put(int(step)));
        change(&mut world, "p1", "s", Change::Increment(step));
        let text = Value { kind: Some(Kind::String(format!("é{step}"))) };
        change(&mut world, "p2", "s", Change::Append(ListAppend { value: Some(text), elements_max: 3 }));
    }
    change(&mut world, "p1", "s", Change::Delete(Null::Null.into()));
    for batch in 0..5u8 {
        let events = (0..8u8).map(|i| event((i % 4, i64::from(batch) * 7 + i64::from(i), (i + batch) % 6)));
        world.apply(append(Some(u64::from(batch)), events.collect()));
        let named = Event { event_id: format!("id{}", batch % 2), ..event((0, 33, 1)) };
        world.apply(append(None, vec![event((batch % 4, 33, 1)), named]));
        if batch == 1 {
            world.apply(Body::ForgetPlayer(ForgetPlayer { range, player_id: "p3".into() }));
        }
        if batch < 4 {
            let chunk = world.shard.state().open.unwrap_or_default().id;
            world.apply(Body::Seal(Seal { chunk }));
        }
        if batch < 3 {
            world.build();
        }
        if batch % 2 == 0 {
            rollups::cover_all(&world.view(), &world.engine, &live);
        }
    }
    world
}

fn rows(engine: &dyn Engine) -> Vec<(Family, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let range = key::keyspace_range(KEYSPACE);
        let mut rows = engine.rows(family, &range.start..&range.end, Direction::Forward).expect("reads");
        while let Some((key, value)) = rows.next().expect("reads") {
            all.push((family, key.to_vec(), value.to_vec()));
        }
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// Everything that a shard holds, as it is read, or why it cannot be.
fn content(engine: &Arc<dyn Engine>, files: &Arc<SegmentFiles>) -> galoo_storage::Result<Vec<String>> {
    let inspector = Inspector::open(engine.clone(), [KEYSPACE])?;
    let mut all = Vec::new();
    for family in Family::ALL {
        let mut failed = None;
        inspector.rows(KEYSPACE, family, &mut |_, row| {
            row.map(|row| all.push(format!("{row:?}"))).map_err(|error| failed = Some(error)).is_ok()
        })?;
        failed.map_or(Ok(()), Err)?;
    }
    let view = View::open(engine.snapshot(), KEYSPACE, files.clone())?;
    for event in view.iter().flat_map(|view| view.events_after(Seq(0), EventFilter::default())) {
        all.push(format!("{:?}", event?));
    }
    Ok(all)
}

/// Every key and value that this version writes is byte for byte what it was, and so is each command with its answer; what
/// older ones wrote is read.
#[test]
fn every_format_is_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let world = populated(folder.path(), Arc::new(MemoryEngine::default()));
    let found: Vec<_> = rows(world.engine.as_ref())
        .iter()
        .map(|(family, key, value)| format!("{} {} {}", family.name(), hex(key), hex(value)))
        .collect();
    let answered =
        |(command, outcome): (&Vec<u8>, &Outcome)| format!("{} {}", hex(command), hex(&outcome.encode_to_vec()));
    let commands: Vec<_> = world.log.iter().zip(&world.outcomes).map(answered).collect();
    let golden = Path::new(GOLDEN).join(format!("v{FORMAT_VERSION}"));
    let segments = merges::segments(&world);
    let path = |id: u64| world.files.path(KEYSPACE, SegmentId(id));
    if std::env::var_os("GALOO_BLESS").is_some() {
        fs::create_dir_all(&golden).expect("makes");
        fs::write(golden.join("rows.txt"), found.join("\n") + "\n").expect("writes");
        fs::write(golden.join("commands.txt"), commands.join("\n") + "\n").expect("writes");
        for segment in &segments {
            fs::copy(path(segment.id), golden.join(path(segment.id).file_name().expect("a name"))).expect("copies");
        }
    }
    for (name, found) in [("rows.txt", &found), ("commands.txt", &commands)] {
        let expected = fs::read_to_string(golden.join(name)).expect("reads");
        for (found, expected) in found.iter().zip(expected.lines()) {
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(found.len(), expected.lines().count(), "{name}");
    }

    let now = content(&world.engine, &world.files).expect("reads");
    for version in fs::read_dir(GOLDEN).expect("lists") {
        let golden = version.expect("lists").path();
        let (engine, folder) = (MemoryEngine::default(), tempfile::tempdir().expect("folder"));
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let mut batch = WriteBatch::default();
        for line in fs::read_to_string(golden.join("rows.txt")).expect("reads").lines() {
            let [family, key, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let family = Family::ALL.into_iter().find(|one| one.name() == family).expect("a family");
            batch.put(family, bytes(key), bytes(value));
        }
        assert!(batch.changes().iter().all(|change| matches!(change, EngineChange::Put(..))));
        engine.write(batch).expect("writes");
        let files = Arc::new(SegmentFiles::new(folder.path()).expect("folder"));
        for segment in &segments {
            let to = files.path(KEYSPACE, SegmentId(segment.id));
            fs::create_dir_all(to.parent().expect("a folder")).expect("makes");
            fs::copy(golden.join(to.file_name().expect("a name")), to).expect("copies");
        }
        assert_eq!(content(&engine, &files).expect("reads"), now, "{}", golden.display());
        // The log of then leads to the answers of then.
        let mut shard = open(&(Arc::new(MemoryEngine::default()) as Arc<dyn Engine>), KEYSPACE);
        for (index, line) in (1..).zip(fs::read_to_string(golden.join("commands.txt")).expect("reads").lines()) {
            let (command, outcome) = line.split_once(' ').expect("two words");
            let outcome = Outcome::decode(bytes(outcome).as_slice()).expect("decodes");
            assert_eq!(one(shard.apply(index, &[&bytes(command)]).expect("applies")), outcome, "{}", golden.display());
        }
    }
}

/// No flipped, cut or lengthened key or value makes a decoder panic; what they say is behind CRCs.
#[test]
fn decoders_survive_any_byte() {
    let folder = tempfile::tempdir().expect("folder");
    let world = populated(folder.path(), Arc::new(MemoryEngine::default()));
    let inspector = Inspector::open(world.engine.clone(), [KEYSPACE]).expect("opens");
    let (mut decoded, mut refused, mut kinds) = (0u64, 0u64, std::collections::BTreeSet::new());
    for (family, key, value) in rows(world.engine.as_ref()) {
        kinds.insert(inspector.row(family, &key, &value).expect("decodes").kind);
        let mut look = |key: &[u8], value: &[u8]| match inspector.row(family, key, value) {
            Ok(_) => decoded += 1,
            Err(_) => refused += 1,
        };
        for at in 0..key.len() {
            for bit in 0..8 {
                let mut bad = key.clone();
                bad[at] ^= 1 << bit;
                look(&bad, &value);
            }
            look(&key[..at], &value);
        }
        for at in 0..value.len() {
            for bit in 0..8 {
                let mut bad = value.clone();
                bad[at] ^= 1 << bit;
                look(&key, &bad);
            }
            look(&key, &value[..at]);
        }
        look(&[key.as_slice(), &[0]].concat(), &value);
        look(&key, &[value.as_slice(), &[0xff]].concat());
    }
    assert_eq!(kinds.len(), 20, "{kinds:?}");
    assert!(decoded > 10_000 && refused > 10_000, "{decoded} decoded, {refused} refused");
}

/// A byte is flipped anywhere in the files of RocksDB or in a segment: the folder does not open, or a read says what is damaged,
/// or everything is as it was.
#[test]
fn a_flipped_byte_of_a_folder_is_found_or_harmless() {
    let folder = tempfile::tempdir().expect("folder");
    let (data, segments) = (folder.path().join("data"), folder.path().join("segments"));
    let engine = RocksEngine::open(&data, &rocks::Options::default()).expect("opens");
    let world = populated(&segments, Arc::new(engine));
    world.engine.flush().expect("flushes");
    drop(world);
    let read = || -> galoo_storage::Result<Vec<String>> {
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open_read_only(&data)?);
        content(&engine, &Arc::new(SegmentFiles::new(&segments)?))
    };
    let whole = read().expect("reads");
    let mut files: Vec<_> = [data.clone(), segments.join(KEYSPACE.to_string())]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("lists"))
        .map(|file| file.expect("lists").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut found, mut harmless) = (BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
    for round in 0..1_000 {
        let path = &files[round % files.len()];
        let good = fs::read(path).expect("reads");
        if good.is_empty() {
            continue;
        }
        let (at, bit) = (0..good.len(), 0u8..8).new_tree(&mut runner).expect("a value").current();
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        fs::write(path, &bad).expect("writes");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        match read() {
            Err(_) => *found.entry(name).or_default() += 1,
            Ok(content) => {
                assert!(content == whole, "a wrong answer: bit {bit} of byte {at} of {name} ({} bytes)", good.len());
                *harmless.entry(name).or_default() += 1;
            }
        }
        fs::write(path, &good).expect("writes");
    }
    assert_eq!(read().expect("reads"), whole);
    let of = |counts: &BTreeMap<String, u32>, ending: &str| -> u32 {
        counts.iter().filter(|(name, _)| name.ends_with(ending)).map(|(_, count)| count).sum()
    };
    assert!(of(&found, ".sst") > 100 && of(&found, ".parquet") > 50, "found {found:?}, harmless {harmless:?}");
    assert_eq!(of(&harmless, ".parquet"), 0);
}
