//! A shard that is pulled block by block is the same shard: equal checksum, on either engine, with events in chunks and
//! in segments. No damaged, missing or misplaced block gets in (P5, P7).

use std::{path::Path, sync::Arc};

use galoo_proto::{
    ChunkId, GameId, Hlc, Keyspace, ShardId, TokenRange,
    command::{AppendEvents, BatchId, Command, MutatePlayer, Seal, command::Body},
    value::{Event, Mutation, mutation::Change},
};
use galoo_storage::{
    compaction::{build_segment, commit_segment},
    engine::{Engine, Family, memory::MemoryEngine, rocks, rocks::RocksEngine},
    segment::SegmentFiles,
    shard::{Checksum, Shard},
    snapshot::{Export, Import},
    view::View,
};
use proptest::prelude::*;
use prost::Message;

const FROM: Keyspace = Keyspace(3);
const TO: Keyspace = Keyspace(9);
const SHARD: ShardId = ShardId(5);

#[derive(Clone, Debug)]
enum Step {
    Append { player: u8, count: usize },
    Increment(u8),
    Seal,
    Build,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..6, 1usize..40).prop_map(|(player, count)| Step::Append { player, count }),
        2 => (0u8..6).prop_map(Step::Increment),
        2 => Just(Step::Seal),
        1 => Just(Step::Build),
    ]
}

fn engine(folder: &Path, rocks: bool) -> Arc<dyn Engine> {
    if rocks {
        Arc::new(RocksEngine::open(&folder.join("db"), &rocks::Options::default()).expect("opens"))
    } else {
        Arc::new(MemoryEngine::default())
    }
}

fn body(step: &Step, at: u64, open: u64) -> Body {
    let range = Some(TokenRange::FULL.into());
    let batch = Some(BatchId { producer_id: "file:a:1:00".into(), number: at, registered_at: 1, ..Default::default() });
    match step {
        Step::Append { player, count } => {
            let event = |i: &usize| Event {
                player_id: format!("p{player}"),
                event_time_ms: i64::try_from(at).expect("small") * 100 + i64::try_from(*i).expect("small"),
                event_type: format!("t{}", i % 3),
                // Long and hard to compress: a file of several pieces.
                properties: format!(r#"{{"x":{i},"text":"{}"}}"#, noise(at * 1_000 + *i as u64, 400)),
                ..Default::default()
            };
            let events = (0..*count).collect::<Vec<_>>().iter().map(event).collect();
            Body::Append(AppendEvents { range, batch, events, properties: vec![] })
        }
        Step::Increment(player) => {
            let change = Some(Change::Increment(1));
            let one = Mutation { family: "s".into(), qualifier: "gold".into(), change, ..Mutation::default() };
            let player_id = format!("p{player}");
            Body::Mutate(MutatePlayer { range, batch, player_id, mutations: vec![one], ..MutatePlayer::default() })
        }
        Step::Seal | Step::Build => Body::Seal(Seal { chunk: open }),
    }
}

fn noise(mut state: u64, length: usize) -> String {
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + u8::try_from((state >> 33) % 26).expect("small"))
    };
    (0..length).map(letter).collect()
}

fn view(engine: &Arc<dyn Engine>, keyspace: Keyspace, files: &Arc<SegmentFiles>) -> View {
    View::open(engine.snapshot(), keyspace, files.clone()).expect("opens").expect("holds a shard")
}

/// Applies the steps and returns the last index.
fn fill(engine: &Arc<dyn Engine>, files: &Arc<SegmentFiles>, steps: &[Step]) -> u64 {
    let mut shard = Shard::open(engine.clone(), FROM, SHARD, GameId(1), TokenRange::FULL).expect("opens");
    for (at, step) in (1..).zip(steps) {
        let open = shard.state().open.unwrap_or_default().id;
        let command = Command { version: 1, hlc: Hlc::from_millis(at).0, body: Some(body(step, at, open)) };
        shard.apply(at, &[&command.encode_to_vec()]).expect("applies");
        if matches!(step, Step::Build) {
            let sealed = shard.state().open.unwrap_or_default().id - 1;
            let view = view(engine, FROM, files);
            let first = view.sources().expect("reads").iter().find_map(|source| match source {
                galoo_storage::view::Source::Chunk(chunk) if chunk.id <= sealed => Some(chunk.id),
                _ => None,
            });
            if let Some(first) = first {
                let record = build_segment(&view, files, FROM, ChunkId(first), ChunkId(sealed)).expect("builds");
                assert!(commit_segment(engine, FROM, &record).expect("commits"));
            }
        }
    }
    shard.applied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_pulled_shard_is_the_same(steps in prop::collection::vec(step(), 1..30), rocks: bool, block_bytes in 200usize..20_000, flip: u64) {
        let folders = [tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder")];
        let engines = [engine(folders[0].path(), rocks), engine(folders[1].path(), !rocks)];
        let files = folders.each_ref().map(|folder| Arc::new(SegmentFiles::new(&folder.path().join("segments")).expect("folder")));
        let applied = fill(&engines[0], &files[0], &steps);
        let expected = Checksum::of(&view(&engines[0], FROM, &files[0])).expect("reads");
        let export = Export::of_shard(engines[0].snapshot(), FROM, &files[0]).expect("freezes").with_block_bytes(block_bytes);
        // What becomes of the keyspace does not matter: the export is frozen.
        galoo_storage::compaction::destroy_keyspace(&engines[0], FROM).expect("destroys");
        files[0].remove_keyspace(FROM).expect("removes");

        let mut import = Import::new(engines[1].clone(), TO, Some(files[1].clone())).expect("fresh");
        let mut last: Option<Vec<u8>> = None;
        while let Some(cursor) = import.cursor().map(<[u8]>::to_vec) {
            let block = export.block(&cursor).expect("a block");
            prop_assert_eq!(&block, &export.block(&cursor).expect("again"), "a block does not change");
            let mut damaged = block.to_vec();
            let at = usize::try_from(flip % block.len() as u64).expect("small");
            damaged[at] ^= 1 << (flip >> 61);
            prop_assert!(import.take(&damaged).is_err(), "a flipped bit gets in");
            prop_assert!(import.take(&block[..block.len() - 1]).is_err(), "a torn block gets in");
            if let Some(last) = &last {
                prop_assert!(import.take(last).is_err(), "a block gets in twice");
            }
            import.take(&block).expect("taken");
            last = Some(block.to_vec());
        }
        import.finish_shard(SHARD, applied).expect("finished");
        let found = Checksum::of(&view(&engines[1], TO, &files[1])).expect("reads");
        prop_assert_eq!(found, expected);
        let shard = Shard::open(engines[1].clone(), TO, SHARD, GameId(1), TokenRange::FULL).expect("opens");
        prop_assert_eq!(shard.persisted().expect("reads"), applied, "it survives a crash");
        prop_assert!(Import::new(engines[1].clone(), TO, None).is_err(), "the keyspace is not fresh any more");
    }
}

#[test]
fn rows_alone_are_pulled_and_an_unfinished_or_other_state_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let (from, to) = (engine(folder.path(), false), engine(folder.path(), false));
    let mut batch = galoo_storage::engine::WriteBatch::default();
    for row in 0..100u8 {
        batch.put(Family::Meta, [FROM.0.to_be_bytes().as_slice(), &[row]].concat(), vec![row; 50]);
    }
    batch.put(Family::Meta, [(FROM.0 + 1).to_be_bytes().as_slice(), &[7]].concat(), vec![7]);
    from.write(batch).expect("writes");
    let export = Export::of_rows(from.snapshot(), FROM).with_block_bytes(500);
    let pull = |blocks: usize| {
        let mut import = Import::new(to.clone(), TO, None).expect("fresh");
        for _ in 0..blocks {
            let Some(cursor) = import.cursor().map(<[u8]>::to_vec) else { break };
            import.take(&export.block(&cursor).expect("a block")).expect("taken");
        }
        import
    };
    assert!(pull(3).finish().is_err(), "blocks are missing");
    galoo_storage::compaction::destroy_keyspace(&to, TO).expect("destroys");
    pull(usize::MAX).finish().expect("finished");
    for row in 0..100u8 {
        let key = [TO.0.to_be_bytes().as_slice(), &[row]].concat();
        assert_eq!(to.get_persisted(Family::Meta, &key).expect("reads"), Some(vec![row; 50]));
    }
    galoo_storage::compaction::destroy_keyspace(&to, TO).expect("destroys");
    assert!(pull(usize::MAX).finish_shard(SHARD, 1).is_err(), "there is no such shard in it");
    assert!(export.block(&[9]).is_err(), "a cursor of no block");
}

/// The format, byte by byte: a change of it shows.
#[test]
fn a_block_of_old_bytes_is_still_taken() {
    let golden: &[u8] = &[
        1, 1, 0, 0, 0, 0, 0, 0, 0, 0, // version, rows, from the start, the last
        1, 2, 0, 0, 0, 0xaa, 0xbb, 1, 0, 0, 0, 0xcc, // cells: key aabb, value cc
    ];
    let golden = [golden, &crc32fast::hash(golden).to_le_bytes()].concat();
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    let mut import = Import::new(engine.clone(), TO, None).expect("fresh");
    import.take(&golden).expect("taken");
    import.finish().expect("finished");
    let key = [TO.0.to_be_bytes().as_slice(), &[0xaa, 0xbb]].concat();
    assert_eq!(engine.get(Family::Cells, &key).expect("reads"), Some(vec![0xcc]));
    assert_eq!(Export::of_rows(engine.snapshot(), TO).block(&[]).expect("a block"), golden);
}
