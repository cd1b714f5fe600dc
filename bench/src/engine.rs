//! Galoo's engine by itself, without network, log and replicas, beside bare RocksDB on the same disk.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use galoo_proto::{
    GameId, Hlc, Keyspace, ShardId, TokenRange,
    command::{
        AppendEvents, BatchId, Command, MutatePlayer, PropertyKinds, RegisterProducer, Seal, command::Body, outcome,
    },
    record,
    rollup::{
        Aggregate, Bucket, Column, Field, Function, Group, Operand, Property, PropertyType, Rollup, Tier, column,
        operand,
    },
    value::{Event, Mutation, Value, mutation::Change, value::Kind},
};
use galoo_storage::{
    chunk::index::ChunkIndexes,
    compaction::{self, Choice, Policy, build_segment, commit_merge, commit_segment, covered_seq, merge_segments},
    engine::{Direction, Engine, Family, rocks, rocks::RocksEngine},
    key::Selection,
    properties::Kinds,
    rollup::{
        Definition,
        cover::{self, First, Piece},
    },
    segment::{Kept, SegmentFiles, Step},
    shard::Shard,
    view::{self, EventFilter, Source, View},
};
use prost::Message;
use serde_json::{Value as Json, json};

/// What is measured.
#[derive(Subcommand)]
pub enum Measure {
    /// Events that one thread applies, beside puts of the rows that they became
    Apply {
        /// How many
        #[arg(long, default_value_t = 2_000_000)]
        events: u64,
        #[command(flatten)]
        at: At,
    },
    /// Events that are applied for a while, as fast as segments are built and rollups cover them
    Sustain {
        /// For so long
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Rollups: by type; by type and a property of 100 values; distinct players
        #[arg(long)]
        rollups: bool,
        #[command(flatten)]
        at: At,
    },
    /// A cell's newest value, beside a bare get of the same value
    Read {
        /// Players with one cell
        #[arg(long, default_value_t = 200_000)]
        players: u64,
        #[command(flatten)]
        at: At,
    },
    /// All events of a player with 1,000, from segments as their usual compaction leaves them; writes them as tab-separated text for a peer
    Range {
        /// Players
        #[arg(long, default_value_t = 1_000)]
        players: u64,
        /// Where the text goes
        #[arg(long)]
        text: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

/// Where it is measured.
#[derive(Args)]
pub struct At {
    /// An empty folder on the disk that is measured
    #[arg(long)]
    folder: PathBuf,
}

/// Events of a command: what a client sends in one call.
const BATCH: u64 = 100;
const EVENT_BYTES: usize = 200;
const PAD: &str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const PLAYERS: u64 = 10_000;
const TYPES: [&str; 5] = ["login", "move", "kill", "loot", "buy"];
const START_MS: i64 = 1_767_225_600_000;
/// Events of a millisecond of the game's time.
const EVENTS_PER_MS: u64 = 20;
/// Commands that are made before they are applied: making them is not measured.
const PREPARED: u64 = 500;
const KEYSPACE: Keyspace = Keyspace(1);
/// Reads that are measured.
const READS: u64 = 200_000;
const RANGE_EVENTS: u64 = 1_000;
/// Commands after which it is looked whether there is something to compact.
const COMPACT_EVERY: u64 = 50;
/// Events that are in no segment yet, or that a rollup has not covered, at which applying waits.
const BEHIND_MAX: u64 = 1 << 20;

/// Measures, and returns what a report says.
pub fn run(measure: Measure) -> Result<Json> {
    match measure {
        Measure::Apply { events, at } => apply(events, &at.folder),
        Measure::Sustain { seconds, rollups, at } => sustain(Duration::from_secs(seconds), rollups, &at.folder),
        Measure::Read { players, at } => read(players, &at.folder),
        Measure::Range { players, text, at } => range(players, &text, &at.folder),
    }
}

/// A shard that is told commands as the log would.
struct Driven {
    engine: Arc<dyn Engine>,
    files: Arc<SegmentFiles>,
    shard: Shard,
    index: u64,
}

impl Driven {
    fn new(folder: &Path) -> Result<Self> {
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&folder.join("data"), &rocks::Options::default())?);
        let files = Arc::new(SegmentFiles::new(&folder.join("segments"))?);
        let shard = Shard::open(engine.clone(), KEYSPACE, ShardId(1), GameId(1), TokenRange::FULL)?;
        let mut driven = Self { engine, files, shard, index: 0 };
        let register = RegisterProducer { range: Some(TokenRange::FULL.into()), producer_id: "bench".to_owned() };
        driven.tell(&encode(1, Body::RegisterProducer(register)))?;
        Ok(driven)
    }

    fn tell(&mut self, command: &[u8]) -> Result<()> {
        self.index += 1;
        let outcomes = self.shard.apply(self.index, &[command])?;
        match outcomes.into_iter().next().and_then(|outcome| outcome.result) {
            Some(outcome::Result::Rejected(rejection)) => bail!("rejected: {rejection:?}"),
            Some(_) => Ok(()),
            None => bail!("a command without an outcome"),
        }
    }

    /// Seals, builds segments and merges them until nothing is chosen any more.
    fn compact(&mut self, policy: &Policy) -> Result<()> {
        loop {
            let view = self.view()?;
            let open = view.state().open.unwrap_or_default();
            let (mut chunks, mut segments) = (Vec::new(), Vec::new());
            for source in view.sources()?.iter() {
                match source {
                    Source::Chunk(chunk) if chunk.id == open.id => {}
                    Source::Chunk(chunk) => chunks.push(*chunk),
                    Source::Segment(segment) => segments.push(record::Segment::clone(segment)),
                }
            }
            let choices = compaction::choose(policy, &open, &chunks, view.hlc());
            let merged = compaction::choose_merge(policy, &segments, compaction::Eagerness::WhenMany);
            if choices.is_empty() && merged.is_none() {
                return Ok(());
            }
            for choice in choices {
                match choice {
                    Choice::Seal(chunk) => {
                        let now_ms = self.shard.hlc().millis() - START_MS.cast_unsigned();
                        self.tell(&encode(now_ms, Body::Seal(Seal { chunk: chunk.0 })))?;
                    }
                    Choice::Build { first, last, .. } => {
                        let built = build_segment(&view, &self.files, KEYSPACE, first, last)?;
                        commit_segment(&self.engine, KEYSPACE, &built)?;
                    }
                }
            }
            if let Some(range) = merged {
                let inputs = &segments[range];
                let merged = merge_segments(&self.files, KEYSPACE, inputs, &Kept::ALL, &mut || Step::On)?;
                commit_merge(&self.engine, KEYSPACE, inputs, &merged.context("nobody cancels")?)?;
            }
        }
    }

    fn view(&self) -> Result<View> {
        let view = View::open(self.engine.snapshot(), KEYSPACE, self.files.clone())?;
        view.context("an empty keyspace")
    }
}

fn encode(milliseconds: u64, body: Body) -> Vec<u8> {
    let hlc = Hlc::from_millis(START_MS.cast_unsigned() + milliseconds).0;
    Command { version: 1, hlc, body: Some(body) }.encode_to_vec()
}

/// The `number`th event, of one player after the other.
fn event(number: u64, players: u64) -> Event {
    let player_id = format!("player-{:06}", number % players);
    let event_type = TYPES[(number % 5) as usize].to_owned();
    let mut properties = format!(r#"{{"n":{number},"k":{},"pad":""#, number / 7 % 100);
    let pad = EVENT_BYTES.saturating_sub(player_id.len() + event_type.len() + properties.len() + 2);
    properties.push_str(&PAD[..pad.min(PAD.len())]);
    properties.push_str("\"}");
    let event_time_ms = START_MS + (number / EVENTS_PER_MS).cast_signed();
    Event { player_id, event_time_ms, event_type, properties, ..Default::default() }
}

/// The `number`th command of events.
fn append(registered_at: Hlc, number: u64, players: u64) -> Vec<u8> {
    let kinds = |name: &str, kinds: Kinds| PropertyKinds { name: name.to_owned(), kinds: kinds.0.into() };
    let properties = vec![kinds("k", Kinds::INT), kinds("n", Kinds::INT), kinds("pad", Kinds::STRING)];
    let batch = BatchId {
        producer_id: "bench".to_owned(),
        number,
        acked_below: number,
        registered_at: registered_at.0,
        ..Default::default()
    };
    let events = (number * BATCH..(number + 1) * BATCH).map(|number| event(number, players)).collect();
    let body = AppendEvents { range: Some(TokenRange::FULL.into()), batch: Some(batch), events, properties };
    encode(2 + number * BATCH / EVENTS_PER_MS, Body::Append(body))
}

/// When the producer was registered: at the first command.
fn registered_at() -> Hlc {
    Hlc::from_millis(START_MS.cast_unsigned() + 1)
}

fn apply(events: u64, folder: &Path) -> Result<Json> {
    let mut driven = Driven::new(&folder.join("galoo"))?;
    let (mut applied, mut took) = (0, Duration::ZERO);
    while applied < events {
        let first = applied / BATCH;
        let commands: Vec<_> =
            (first..first + PREPARED).map(|number| append(registered_at(), number, PLAYERS)).collect();
        let begin = Instant::now();
        commands.iter().try_for_each(|command| driven.tell(command))?;
        took += begin.elapsed();
        applied += PREPARED * BATCH;
    }
    drop(driven);
    // What a store of rows would put: a row an event, by place in the log.
    let bare = bare(&folder.join("bare"))?;
    let (options, mut bare_took) = (without_log(), Duration::ZERO);
    for first in (0..applied).step_by((PREPARED * BATCH) as usize) {
        let rows: Vec<_> = (first..first + PREPARED * BATCH)
            .map(|number| (row_key(number), event(number, PLAYERS).encode_to_vec()))
            .collect();
        let begin = Instant::now();
        rows.iter().try_for_each(|(key, value)| bare.put_opt(key, value, &options))?;
        bare_took += begin.elapsed();
    }
    let rate = |took: Duration| applied as f64 / took.as_secs_f64();
    Ok(json!({ "events": applied, "events_per_second": rate(took), "puts_per_second": rate(bare_took) }))
}

/// Keyspace, chunk, place: as long as Galoo's key of one event.
fn row_key(number: u64) -> Vec<u8> {
    [KEYSPACE.0, number >> 16, number].map(u64::to_be_bytes).concat()
}

/// RocksDB as one would use it for the same rows: a memtable of the same size, LZ4, bloom filters.
fn bare(folder: &Path) -> Result<rocksdb::DB> {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_write_buffer_size(64 << 20);
    options.set_max_write_buffer_number(4);
    options.set_max_background_jobs(2);
    let mut table = rocksdb::BlockBasedOptions::default();
    table.set_block_cache(&rocksdb::Cache::new_lru_cache(128 << 20));
    table.set_bloom_filter(10.0, false);
    options.set_block_based_table_factory(&table);
    Ok(rocksdb::DB::open(&options, folder)?)
}

fn without_log() -> rocksdb::WriteOptions {
    let mut options = rocksdb::WriteOptions::default();
    options.disable_wal(true);
    options
}

/// Three rollups of three tiers each.
fn rollups() -> Vec<Rollup> {
    let column = |name: &str, kind| Column { name: name.to_owned(), kind: Some(kind) };
    let field = |field: Field| Operand { column: Some(operand::Column::Field(field.into())) };
    let group = |operand| column::Kind::Group(Group { operand: Some(operand), width: None });
    let aggregate = |function: Function, operand| {
        column::Kind::Aggregate(Aggregate { function: function.into(), operand, ..Default::default() })
    };
    let property = Property { name: "k".to_owned(), r#type: PropertyType::Int.into() };
    let k = Operand { column: Some(operand::Column::Property(property)) };
    let bucket = || column("bucket", column::Kind::Bucket(Bucket {}));
    let by_type = || column("event_type", group(field(Field::EventType)));
    let count = || column("events", aggregate(Function::Count, None));
    let columns = [
        vec![bucket(), by_type(), count()],
        vec![bucket(), by_type(), column("k", group(k)), count()],
        vec![bucket(), column("players", aggregate(Function::CountDistinct, Some(field(Field::PlayerId))))],
    ];
    let tiers = [60_000, 3_600_000, 86_400_000].map(|bucket_ms| Tier { bucket_ms, ..Default::default() });
    let rollup = |(id, columns)| Rollup {
        version: 1,
        id,
        name: format!("r{id}"),
        tiers: tiers.to_vec(),
        columns,
        ..Default::default()
    };
    (1..).zip(columns).map(rollup).collect()
}

fn sustain(time: Duration, with_rollups: bool, folder: &Path) -> Result<Json> {
    let mut driven = Driven::new(folder)?;
    let rollups = if with_rollups { rollups() } else { Vec::new() };
    for rollup in &rollups {
        driven.tell(&encode(1, Body::DefineRollup(rollup.clone())))?;
    }
    let (engine, files) = (driven.engine.clone(), driven.files.clone());
    let driven = Mutex::new(driven);
    let lock = || driven.lock().expect("neither thread panicked");
    // The last event that is in a segment, and the last one that every rollup covers.
    let (stop, built, covered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (segments, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let definitions = rollups.iter().map(Definition::parse).collect::<Result<Vec<_>, _>>()?;
    let (indexes, policy) = (Arc::new(ChunkIndexes::default()), Policy::default());
    let build = || -> Result<()> {
        loop {
            let ends = stop.load(Ordering::Relaxed);
            let view = lock().view()?.with_indexes(indexes.clone());
            let open = view.state().open.unwrap_or_default();
            let chunks = view.sources()?.iter().filter_map(|source| match source {
                Source::Chunk(chunk) if chunk.id != open.id => Some(*chunk),
                _ => None,
            });
            let chunks: Vec<_> = chunks.collect();
            let choices = compaction::choose(&policy, &open, &chunks, view.hlc());
            if choices.is_empty() {
                if ends {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            for choice in choices {
                match choice {
                    Choice::Seal(chunk) => {
                        let mut driven = lock();
                        let now_ms = driven.shard.hlc().millis() - START_MS.cast_unsigned();
                        driven.tell(&encode(now_ms, Body::Seal(Seal { chunk: chunk.0 })))?;
                    }
                    Choice::Build { first, last, .. } => {
                        let segment = build_segment(&view, &files, KEYSPACE, first, last)?;
                        let _turn = lock();
                        commit_segment(&engine, KEYSPACE, &segment)?;
                        built.store(segment.last_seq, Ordering::Relaxed);
                        segments.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    let cover = || -> Result<()> {
        loop {
            let ends = stop.load(Ordering::Relaxed);
            let view = lock().view()?.with_indexes(indexes.clone());
            covered.store(covered_seq(&view)?, Ordering::Relaxed);
            let mut more = Ok(false);
            cover::prepare(&view, &definitions, First::Covering, &Piece::default(), &mut |_, cover| {
                let _turn = lock();
                more = cover.and_then(|cover| cover::commit(&engine, KEYSPACE, cover));
                if more.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            if !more? {
                if ends {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    let begin = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let workers = [named("build").spawn_scoped(scope, build)?, named("cover").spawn_scoped(scope, cover)?];
        let mut number = 0;
        while begin.elapsed() < time && !workers.iter().any(|worker| worker.is_finished()) {
            let done = built.load(Ordering::Relaxed).min(covered.load(Ordering::Relaxed));
            if number * BATCH >= done.saturating_add(BEHIND_MAX) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let command = append(registered_at(), number, PLAYERS);
            lock().tell(&command)?;
            number += 1;
            events.fetch_add(BATCH, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(|worker| worker.join().expect("the worker did not panic"))
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let events = events.into_inner();
    Ok(json!({
        "events": events, "events_per_second": events as f64 / seconds, "segments": segments.into_inner(),
    }))
}

fn read(players: u64, folder: &Path) -> Result<Json> {
    let mut driven = Driven::new(&folder.join("galoo"))?;
    let name = |player: u64| format!("player-{player:06}");
    let value = "x".repeat(100);
    let put = |qualifier: &str| Mutation {
        family: "s".to_owned(),
        qualifier: qualifier.to_owned(),
        change: Some(Change::Put(Value { kind: Some(Kind::String(value.clone())) })),
        ..Default::default()
    };
    for player in 0..players {
        let range = Some(TokenRange::FULL.into());
        let body = MutatePlayer { range, player_id: name(player), mutations: vec![put("name")], ..Default::default() };
        driven.tell(&encode(2 + player, Body::Mutate(body)))?;
    }
    driven.engine.flush()?;
    driven.engine.compact(Family::Cells, None)?;
    let bare = bare(&folder.join("bare"))?;
    for player in 0..players {
        bare.put_opt(name(player), &value, &without_log())?;
    }
    bare.flush()?;
    bare.compact_range::<&[u8], &[u8]>(None, None);
    let order = |read: u64| name(read.wrapping_mul(0x9e37_79b9_7f4a_7c15) % players);
    let rate = |read: &dyn Fn(&str) -> Result<()>| -> Result<f64> {
        // Once without the clock: what is read is in the cache.
        (0..players).try_for_each(|place| read(&name(place)))?;
        let begin = Instant::now();
        (0..READS).try_for_each(|place| read(&order(place)))?;
        Ok(READS as f64 / begin.elapsed().as_secs_f64())
    };
    let gets = rate(&|player| bare.get(player)?.map(drop).context("a row"))?;
    let query = Selection::Cell("s", "name").into();
    let kept = driven.view()?;
    let of_one_view = rate(&|player| kept.cells(player, &query)?.pop().map(drop).context("a cell"))?;
    let reads = rate(&|player| driven.view()?.cells(player, &query)?.pop().map(drop).context("a cell"))?;
    Ok(json!({ "gets_per_second": gets, "reads_per_second": reads, "reads_of_one_view_per_second": of_one_view }))
}

fn range(players: u64, text: &Path, folder: &Path) -> Result<Json> {
    let mut driven = Driven::new(folder)?;
    let mut lines = std::io::BufWriter::new(fs::File::create(text)?);
    for number in 0..players * RANGE_EVENTS / BATCH {
        driven.tell(&append(registered_at(), number, players))?;
        if number % COMPACT_EVERY == 0 {
            driven.compact(&Policy::default())?;
        }
        for number in number * BATCH..(number + 1) * BATCH {
            let event = event(number, players);
            let Event { player_id, event_time_ms, event_type, properties, .. } = &event;
            use std::io::Write;
            writeln!(lines, "{player_id}\t{event_time_ms}\t{event_type}\t{number}\t{properties}")?;
        }
    }
    lines.into_inner()?.sync_all()?;
    driven.compact(&Policy { seal_age_ms: 0, segment_age_ms: 0, ..Policy::default() })?;
    let segments = driven.view()?.sources()?.iter().filter(|source| matches!(source, Source::Segment(_))).count();
    let columns = view::Column::event(None);
    let mut micros = Vec::new();
    for round in 0..2 * players.min(200) {
        let player = format!("player-{:06}", round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % players);
        let begin = Instant::now();
        let page = driven.view()?.player_page(
            &EventFilter::player(&player),
            &columns,
            Direction::Forward,
            None,
            RANGE_EVENTS as usize,
        )?;
        micros.push(begin.elapsed().as_secs_f64() * 1e6);
        if page.events.len() < RANGE_EVENTS as usize {
            bail!("{player} has {} events", page.events.len());
        }
    }
    micros.sort_unstable_by(f64::total_cmp);
    Ok(json!({ "p50_ms": micros[micros.len() / 2] / 1e3, "segments": segments }))
}
