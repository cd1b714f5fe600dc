//! What reads bytes from disk or network, as functions that must survive any bytes: no panic, no endless loop, no memory
//! beyond what the bytes are worth; and what reads must say the same when it is written and read again.
//!
//! `make fuzz` runs libFuzzer over each from its seeds in `corpus/`; the tests here run the seeds, and changes of them, in
//! every build. Bytes that were found to break something are kept there as seeds too.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use galoo_consensus::{entry, log_store::GroupRecord, wire};
use galoo_import::{detect::MappingOptions, fields::Fields, instant::TimeUnit, mapping::Mapping};
use galoo_proto::{
    Keyspace,
    command::{Command, Outcome},
    meta::MetaCommand,
};
use galoo_storage::{
    engine::{Direction, Engine, Family, Reader, WriteBatch, memory::MemoryEngine},
    inspect::Inspector,
    key,
    properties::{self, Property},
    segment::SegmentFiles,
    snapshot::Import,
};
use prost::Message;
use serde::de::IgnoredAny;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// What can be attacked, by name.
pub const TARGETS: [(&str, Target); 5] =
    [("rows", rows), ("blocks", blocks), ("log", log), ("properties", properties), ("lines", lines)];

/// The names of all targets.
pub fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|(name, _)| *name).collect()
}

/// Rows of every kind, byte for byte as they are stored: `family key value`, in hex.
const GOLDEN: &str = include_str!("../../storage/tests/golden/v6/rows.txt");
const KEYSPACE: Keyspace = Keyspace(3);

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// The stored rows, decoded from hex.
fn golden() -> impl Iterator<Item = (Family, Vec<u8>, Vec<u8>)> {
    GOLDEN.lines().map(|line| {
        let [family, key, value] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let family = Family::ALL.into_iter().find(|one| one.name() == family).expect("a family");
        (family, bytes_of(key), bytes_of(value))
    })
}

static INSPECTOR: LazyLock<Inspector> = LazyLock::new(|| {
    let (engine, mut batch) = (MemoryEngine::default(), WriteBatch::default());
    golden().for_each(|(family, key, value)| batch.put(family, key, value));
    engine.write(batch).expect("memory takes it");
    Inspector::open(Arc::new(engine), [KEYSPACE]).expect("whole rows")
});

/// A row of the engine: family u8 | key length u8 | key | value. Its key, its value and what is in it are decoded: cells,
/// events, segment records, rollups' definitions and cells.
fn rows(bytes: &[u8]) {
    let Some(([family, length], rest)) = bytes.split_first_chunk::<2>() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(*length)) else { return };
    let family = Family::ALL[usize::from(*family) % Family::ALL.len()];
    let _ = INSPECTOR.row(family, key, value);
}

/// A block of a snapshot without its CRC, which is put right: what it brings is read as rows, or refused.
fn blocks(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Arc::new(MemoryEngine::default());
    let files = Arc::new(SegmentFiles::new(folder.path()).expect("a folder"));
    let mut import = Import::new(engine.clone(), KEYSPACE, Some(files)).expect("is empty");
    let block = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    let before = count(engine.as_ref());
    if import.take(&block).is_err() {
        assert_eq!(count(engine.as_ref()), before, "a block that was refused left rows");
    }
    let _ = import.finish_shard(galoo_proto::ShardId(5), 1);
}

fn count(engine: &MemoryEngine) -> usize {
    let range = key::keyspace_range(KEYSPACE);
    let mut count = 0;
    for family in Family::ALL {
        let mut rows = engine.rows(family, &range.start..&range.end, Direction::Forward).expect("memory reads");
        while rows.next().expect("memory reads").is_some() {
            count += 1;
        }
    }
    count
}

/// What the Raft log and its messages hold: kind u8, then an entry with its commands, a group's record, a message, a
/// command of a shard or of the meta group, an outcome.
fn log(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => {
            if let Some(commands) = entry::commands(bytes) {
                commands.iter().for_each(|command| drop(Command::decode(*command)));
            }
        }
        1 => {
            if let Some(record) = GroupRecord::decode(bytes) {
                assert_eq!(GroupRecord::decode(&record.encode()), Some(record));
            }
        }
        2 => {
            let message = [&wire::crc(bytes).to_le_bytes(), bytes].concat();
            if let Some(message) = wire::decode(&Bytes::from(message)) {
                // Fields that are not known are kept, in any order.
                assert!(wire::decode(&wire::encode(&message).into()).is_some());
            }
        }
        3 => drop(MetaCommand::decode(bytes)),
        _ => drop(Outcome::decode(bytes)),
    }
}

/// An event's properties: what passes the check is read value by value, and says the same when it is written again.
fn properties(bytes: &[u8]) {
    let Ok(json) = std::str::from_utf8(bytes) else { return };
    let Ok(kinds) = properties::check(json) else { return };
    let mut members = Vec::new();
    for member in properties::members(json) {
        let (name, raw) = member.expect("it was checked");
        let value = Property::parse(raw).expect("it was checked");
        let mut written = String::new();
        value.write_json(&mut written);
        assert_eq!(Property::parse(&written).as_ref(), Some(&value), "{raw}");
        members.push((name, value.kind()));
    }
    assert_eq!(members, kinds);
    // The empty text is an object here; and numbers are of any size, as JSON has them.
    assert!(json.is_empty() || serde_json::from_str::<BTreeMap<String, IgnoredAny>>(json).is_ok());
}

/// A line of an import: an event that the store takes, or a reason.
fn lines(bytes: &[u8]) {
    let named = |name: &str| name.to_owned();
    let fields = Fields {
        player: named("p"),
        time: named("t.at"),
        time_unit: if bytes.len().is_multiple_of(2) { TimeUnit::Milliseconds } else { TimeUnit::Rfc3339 },
        event_type: named("e"),
        event_id: Some(named("i")),
    };
    let mut mapping = Mapping::new(fields).expect("names");
    if let Ok(event) = mapping.map(bytes) {
        properties::check(&event.properties).expect("the store takes what an import gives it");
        assert!(!event.player_id.is_empty() && !event.event_type.is_empty());
    }
    drop(galoo_import::detect::detect(MappingOptions::default(), [bytes]));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use galoo_proto::command::Seal;
    use galoo_storage::snapshot::Export;

    use super::*;

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");

    /// One small seed of each shape.
    fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
        let mut kinds = BTreeMap::new();
        for (family, key, value) in golden() {
            let kind = INSPECTOR.row(family, &key, &value).expect("reads").kind.replace(' ', "_");
            let number = Family::ALL.iter().position(|one| *one == family).expect("a family");
            let head = [u8::try_from(number).expect("few"), u8::try_from(key.len()).expect("short")];
            kinds.entry(kind).or_insert([head.as_slice(), &key, &value].concat());
        }
        let mut seeds: Vec<_> = kinds.into_iter().map(|(kind, bytes)| ("rows", kind, bytes)).collect();
        let (engine, mut batch) = (MemoryEngine::default(), WriteBatch::default());
        golden()
            .filter(|(family, ..)| *family == Family::Producers)
            .for_each(|(family, key, value)| batch.put(family, key, value));
        engine.write(batch).expect("memory takes it");
        let export = Export::of_rows(engine.snapshot(), KEYSPACE).with_block_bytes(200);
        let block = export.block(&[]).expect("reads");
        seeds.push(("blocks", "rows".to_owned(), block[..block.len() - 4].to_vec()));
        let command = galoo_proto::command::command::Body::Seal(Seal { chunk: 7 });
        let command = Command { version: 1, hlc: 9, body: Some(command) }.encode_to_vec();
        let record = GroupRecord { place: 3, cut_index: 9, cut_term: 2, voters: vec![1, 2, 3], ..Default::default() };
        let message = wire::Message { from: 1, to: 2, term: 7, context: vec![9; 10].into(), ..Default::default() };
        let meta = MetaCommand { version: 1, hlc: 1, body: None };
        for (name, kind, bytes) in [
            ("entry", 0, [&[1, u8::try_from(command.len()).expect("short"), 0, 0, 0], command.as_slice()].concat()),
            ("record", 1, record.encode()),
            ("message", 2, wire::encode(&message)[4..].to_vec()),
            ("meta", 3, meta.encode_to_vec()),
            ("outcome", 4, Outcome::default().encode_to_vec()),
        ] {
            seeds.push(("log", name.to_owned(), [&[kind], bytes.as_slice()].concat()));
        }
        let json = r#"{"a":1,"b":-0.5e3,"c":"\u00e9\n","d":null,"e":[true,{"f":[]}],"g":12345678901234567890123}"#;
        seeds.push(("properties", "all".to_owned(), json.into()));
        let line = r#" {"p":"ann","t":{"at":1500000000000},"e":"login","i":17,"x":{"y":[1,2.50,"\u0061"]}} "#;
        seeds.push(("lines", "milliseconds".to_owned(), line.into()));
        let line = r#"{"p":7,"t.at":"2017-07-14T02:40:00.123+02:00","e":"x"}"#;
        seeds.push(("lines", "rfc3339".to_owned(), line.into()));
        seeds
    }

    /// Every seed, cut anywhere and with any bit flipped.
    #[test]
    fn seeds_and_what_is_next_to_them_are_survived() {
        for (target, name, bytes) in seeds() {
            let path = Path::new(CORPUS).join(target).join(name);
            if std::env::var_os("GALOO_BLESS").is_some() {
                fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
                fs::write(&path, &bytes).expect("writes");
            }
            assert!(fs::read(&path).is_ok_and(|known| known == bytes), "{} is another", path.display());
        }
        let mut files = 0;
        for (name, target) in TARGETS {
            for file in fs::read_dir(Path::new(CORPUS).join(name)).expect("lists") {
                let bytes = fs::read(file.expect("lists").path()).expect("reads");
                files += 1;
                target(&bytes);
                // A block makes a folder each time.
                let step = if name == "blocks" { 7 } else { 1 };
                for at in (0..bytes.len()).step_by(step) {
                    target(&bytes[..at]);
                    for bit in 0..8 {
                        let mut bad = bytes.clone();
                        bad[at] ^= 1 << bit;
                        target(&bad);
                    }
                }
            }
        }
        assert!(files >= 28, "{files} seeds");
    }
}
