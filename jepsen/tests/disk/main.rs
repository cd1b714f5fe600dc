//! One real node whose writes to disk are recorded, and then its power is cut, or it is killed, at every kind of write.
//!
//! The node goes through every tier: log, engine, chunks, segments, merges, covers, an erasure, cuts of the log. Each cut
//! makes a folder of what the disk may hold then, on which a node is started: nothing acknowledged is lost or doubled
//! (P1, P3), the rollup equals the raw events (P4), a forgotten player stays forgotten, nothing is reported damaged, and
//! what is there is the same after another start (P5). A kill leaves what was written; only what is written can tell one
//! instant from another, so cuts between all kinds of writes are kills at every step of every worker.
//!
//! `GALOO_DISK_CUTS` says how many cuts of each kind of write are tried (2), `GALOO_DISK_SEED` chooses them. What the
//! node does between is not seeded: a failure keeps what the disk held, and prints where.

mod hang;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use galoo_client::{Client, Producer};
use galoo_harness::{Cluster, Galoo};
use galoo_jepsen::{
    calls,
    disk::{self, FOLDER_VARIABLE, JOURNAL_VARIABLE, Journal, Kind, Loss},
    history::Appends,
    process,
};
use galoo_proto::{admin::VerifyRollupRequest, data::AppendRequest};
use galoo_workload::Rng;

const GAME: &str = "power";
const SHARDS: u32 = 2;
/// Small files, so that a short run makes many of each.
const CONFIG: &str = "[storage]\nseal_bytes = 16384\nsegment_bytes_min = 16384\nsegment_bytes_max = 131072\n\
     log_bytes = 1048576\n";
/// While it is recorded, commands that time brings are part of it; later they would be no failure and look like one.
const RECORDED: &str = "history_ms = 1000\nseal_age_ms = 500\n";
const CUT: &str = "history_ms = 3600000\nseal_age_ms = 3600000\n";
const ROLLUP: &str = "CREATE ROLLUP per_minute AS SELECT time_bucket('1 minute', event_time) AS bucket, event_type, \
     count(*) AS events, sum(gold) AS gold FROM events GROUP BY 1, 2 WITH (erasure = 'subtract')";
const TABLE: &str = "per_minute";
/// Batches that are appended, one after the other, and events in each.
const BATCHES: u64 = 140;
const EVENTS: u64 = 200;
/// In batches: how often all is compacted, and how often a player is forgotten.
const COMPACT_EVERY: u64 = 20;
const FORGET_EVERY: u64 = 35;
const PLAYERS: u64 = 24;
const COUNTER: &str = "counter";
/// Ids of players' events who are forgotten end so.
const GONE: &str = "-gone";
/// A node that has nothing to do but compact a megabyte is done after this, or never.
const COMPACT_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Nodes that are started at once.
const AT_ONCE: usize = 2;

/// What must have happened on the disk, or the test did not see what it is for.
const STEPS: &[(Kind, &str)] = &[
    (Kind::Write, "log/#.raftlog"),
    (Kind::Sync, "log/#.raftlog"),
    (Kind::Remove, "log/#.raftlog"),
    (Kind::Write, "log/#.rewrite"),
    (Kind::Write, "data/#.sst"),
    (Kind::Sync, "data/#.sst"),
    (Kind::Remove, "data/#.sst"),
    (Kind::Write, "data/MANIFEST-#"),
    (Kind::Sync, "data/MANIFEST-#"),
    (Kind::Rename, "data/#.dbtmp"),
    (Kind::Create, "segments/k#/#.parquet"),
    (Kind::Write, "segments/k#/#.parquet"),
    (Kind::Sync, "segments/k#/#.parquet"),
    (Kind::Sync, "segments/k#"),
    (Kind::Remove, "segments/k#/#.parquet"),
];

/// What a client was told.
enum Fact {
    Stored(Vec<String>),
    Counted(u64),
    Forgotten(String),
}

/// What clients did, in order, and how long the journal was at least when they were told.
#[derive(Default)]
struct Story {
    /// Whose each event is that was sent.
    sent: HashMap<String, String>,
    increments: u64,
    told: Vec<(u64, Fact)>,
    journal: PathBuf,
}

impl Story {
    fn tell(&mut self, fact: Fact) {
        let position = fs::metadata(&self.journal).expect("the journal").len();
        self.told.push((position, fact));
    }

    /// Goes on, on a node that runs.
    async fn go_on(&mut self, client: &Client, rng: &mut Rng, batches: std::ops::Range<u64>) -> Result<()> {
        let producer = Producer::register(client, GAME, &format!("producer{}", batches.start)).await?;
        for batch in batches.clone() {
            let mut events = Vec::new();
            for place in 0..EVENTS {
                let (id, player) = (format!("{batch}-{place}"), format!("player{}", rng.below(PLAYERS)));
                let time = 1_767_225_600_000 + rng.within(0, 3_600_000);
                let event_type = *rng.pick(&["login", "kill", "loot"]);
                events.push(calls::event(&id, &player, time, event_type, rng.below(100)));
                self.sent.insert(id, player);
            }
            let ids = events.iter().map(calls::id_of).collect::<Result<_>>()?;
            let number = batch - batches.start;
            let stamp = Some(producer.stamp(number, number));
            client.append(AppendRequest { game: GAME.to_owned(), producer: stamp, events }).await?;
            self.tell(Fact::Stored(ids));
            self.increments += 1;
            let mutated = client.mutate(calls::increment(GAME, COUNTER, None)).await?.expect("an increment fits");
            self.tell(Fact::Counted(calls::int(mutated.values.first())?));
            if batch % FORGET_EVERY == FORGET_EVERY - 1 {
                // Players that are forgotten never come back: what is theirs and stored is wrong.
                let player = format!("player{}", PLAYERS + batch);
                let (id, time) = (format!("{batch}{GONE}"), 1_767_225_600_000);
                self.sent.insert(id.clone(), player.clone());
                let events = vec![calls::event(&id, &player, time, "login", 1)];
                client.append(AppendRequest { game: GAME.to_owned(), producer: None, events }).await?;
                client.forget_player(GAME, &player).await?;
                self.tell(Fact::Forgotten(player));
            }
            if batch % COMPACT_EVERY == COMPACT_EVERY - 1 {
                compact(client).await?;
            }
        }
        Ok(())
    }

    /// Compares a node with what was told while the journal was so long.
    async fn check(&self, client: &Client, position: u64) -> Result<()> {
        let told = || self.told.iter().filter(|(at, _)| *at <= position).map(|(_, fact)| fact);
        let forgotten: Vec<_> =
            told().filter_map(|fact| if let Fact::Forgotten(name) = fact { Some(name) } else { None }).collect();
        let mut appends = Appends::default();
        self.sent.iter().filter(|(_, player)| !forgotten.contains(player)).for_each(|(id, _)| appends.sent(id));
        let mut counted = 0;
        for fact in told() {
            match fact {
                Fact::Stored(ids) => ids.iter().for_each(|id| appends.acknowledged(id)),
                Fact::Counted(count) => counted = *count,
                Fact::Forgotten(_) => {}
            }
        }
        let stored = calls::stored(client, GAME).await?;
        let wrong = appends.check(stored.values().map(String::as_str)).err().unwrap_or_default();
        ensure!(wrong.is_empty(), "{} events are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
        let cells = client.get(calls::count_of(GAME, COUNTER)).await?;
        let count = cells.first().map_or(Ok(0), |cell| calls::int(cell.value.as_ref()))?;
        ensure!((counted..=self.increments).contains(&count), "the counter is {count}; {counted} was acknowledged");
        let (game, table) = (GAME.to_owned(), TABLE.to_owned());
        let verified = client.verify_rollup(VerifyRollupRequest { game, table, ..Default::default() }).await?;
        ensure!(verified.different == 0, "{} buckets of the rollup are not what the events give", verified.different);
        // What was forgotten is in the rollup until it is taken out of it, and then it is not; that it is forgotten may
        // not have been told yet.
        let gone = self.sent.keys().filter(|id| id.ends_with(GONE)).count() as u64;
        let rows = stored.len() as u64;
        ensure!(
            (rows..=rows + gone).contains(&verified.events),
            "{} events in the rollup, {rows} raw",
            verified.events
        );
        let damaged = client.status().await?.damaged;
        ensure!(damaged.is_empty(), "reported damaged: {damaged:?}");
        Ok(())
    }
}

async fn compact(client: &Client) -> Result<()> {
    let since = Instant::now();
    let mut left = client.compact(GAME, true).await?;
    while left.shards_left > 0 {
        ensure!(left.shards_failed == 0 && since.elapsed() < COMPACT_MAX, "{left:?}");
        tokio::time::sleep(PAUSE).await;
        left = client.compact(GAME, false).await?;
    }
    Ok(())
}

fn number_of(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The kind of a write: where only numbers differ it is the same kind of file.
fn step(kind: Kind, path: &str) -> (&'static str, String) {
    let kind = match kind {
        Kind::Create | Kind::MakeFolder => "make",
        Kind::Write => "write",
        Kind::Resize => "resize",
        Kind::Sync => "sync",
        Kind::Rename => "rename",
        Kind::Link => "link",
        Kind::Remove => "remove",
    };
    (kind, class(path))
}

fn class(path: &str) -> String {
    let mut class = String::new();
    for c in path.chars() {
        match c.is_ascii_digit() {
            true if class.ends_with('#') => {}
            true => class.push('#'),
            false => class.push(c),
        }
    }
    class
}

/// One node on what is left, compared with what was told while the journal was so long.
async fn cut(folder: &Path, story: &Story, journal: &Journal, count: usize, loss: Loss, position: u64) -> Result<()> {
    fs::create_dir(folder)?;
    let mut cluster = one(folder, CUT)?;
    let data = cluster.nodes()[0].data.clone();
    fs::create_dir(&data)?;
    journal.leave(count, loss.clone(), &data)?;
    let tried = async {
        let mut before = None;
        // What is applied again from the log is what was there.
        for _ in 0..2 {
            cluster.launch(0)?;
            cluster.ready(0).await?;
            let client = Client::connect(&cluster.grpc(0)).await?;
            story.check(&client, position).await?;
            let replicas: Vec<_> =
                cluster.replicas(0, GAME).await?.into_values().map(|shard| (shard.events, shard.checksum)).collect();
            ensure!(before.as_ref().is_none_or(|before| *before == replicas), "{before:?} became {replicas:?}");
            before = Some(replicas);
            cluster.kill(&[0]).await?;
        }
        anyhow::Ok(())
    };
    let tried = tried.await;
    if tried.is_err() {
        let left = folder.join("left");
        fs::create_dir(&left)?;
        journal.leave(count, loss, &left)?;
    } else {
        fs::remove_dir_all(folder)?;
    }
    tried
}

/// A node that is to be started in a folder.
fn one(folder: &Path, then: &str) -> Result<Cluster> {
    let file = folder.join("galoo.toml");
    fs::write(&file, format!("{CONFIG}{then}"))?;
    let file = file.to_str().context("a folder whose name is UTF-8")?;
    Ok(Cluster::new(Galoo::new(process::binary()?), folder, 1)?.with_arguments(&["--config", file]))
}

/// One node whose writes are recorded, from before its first start on.
fn recorded(folder: &Path, then: &str, journal: &Path) -> Result<Cluster> {
    let cluster = one(folder, then)?;
    let data = cluster.nodes()[0].data.clone();
    fs::create_dir(&data)?;
    // Cargo built the library beside this test.
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("a test outside of a target folder")?;
    let library = profile.join("examples/libgaloo_disk_recorder.so");
    ensure!(library.is_file(), "no {}: `cargo build --release --workspace --examples` makes it", library.display());
    let cluster = cluster.with_variable("LD_PRELOAD", library).with_variable(FOLDER_VARIABLE, data);
    Ok(cluster.with_variable(JOURNAL_VARIABLE, journal))
}

/// What is there to cut: a node that was started, stopped in order, started again and killed.
struct Recorded {
    story: Story,
    journal: Journal,
    /// How long the journal was when the game was there.
    begin: u64,
    /// How many records there were when the node was stopped.
    stopped: usize,
}

async fn record(root: &Path, rng: &mut Rng) -> Result<Recorded> {
    let mut story = Story { journal: root.join("journal"), ..Default::default() };
    let mut cluster = recorded(root, RECORDED, &story.journal)?;
    let data = cluster.nodes()[0].data.clone();
    cluster.form().await?;
    let client = Client::connect(&cluster.grpc(0)).await?;
    client.create_game(GAME, SHARDS, 1).await?;
    let at = ["--game", GAME, "--addr", &cluster.grpc(0)];
    for command in [&["property", "declare", "gold", "int"][..], &["sql", "-c", ROLLUP]] {
        cluster.galoo().run(&[command, &at].concat()).await?;
    }
    let begin = fs::metadata(&story.journal)?.len();
    story.go_on(&client, rng, 0..BATCHES).await?;
    ensure!(cluster.stop(0).await?.success(), "the node does not stop in order");

    // All of the journal makes what is there.
    let (journal, whole) = (Journal::read(&story.journal)?, root.join("whole"));
    let stopped = journal.records().len();
    journal.leave(stopped, Loss::Nothing, &whole)?;
    let (left, real) = (disk::files(&whole)?, disk::files(&data)?);
    let differs: Vec<_> = real.iter().filter(|(path, content)| left.get(*path) != Some(content)).collect();
    let names: Vec<_> = differs.iter().map(|(path, _)| path).collect();
    ensure!(left.len() == real.len() && names.is_empty(), "not as recorded: {names:?} of {:?}", left.keys());

    cluster.start_again(&[0]).await?;
    let client = Client::connect(&cluster.grpc(0)).await?;
    story.go_on(&client, rng, BATCHES..BATCHES + COMPACT_EVERY).await?;
    story.check(&client, u64::MAX).await.context("before any cut")?;
    cluster.kill(&[0]).await?;
    Ok(Recorded { journal: Journal::read(&story.journal)?, story, begin, stopped })
}

/// Where to cut: before some records of each kind, with what is lost and the kind's name.
fn cuts(recorded: &Recorded, each: u64, rng: &mut Rng) -> Vec<(usize, Loss, String)> {
    let mut steps: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (count, record) in recorded.journal.records().iter().enumerate() {
        if recorded.journal.position(count) >= recorded.begin {
            steps.entry(step(record.kind, &record.path)).or_default().push(count);
        }
    }
    let missing: Vec<_> = STEPS.iter().filter(|(kind, path)| !steps.contains_key(&step(*kind, path))).collect();
    assert!(missing.is_empty(), "these never happened: {missing:?}");
    let mut cuts = Vec::new();
    for ((kind, class), counts) in &steps {
        println!("{:>6} times {kind} {class}", counts.len());
        for _ in 0..each.min(counts.len() as u64) {
            let loss = match cuts.len() % 3 {
                0 => Loss::Some(Rng::new(rng.next_u64())),
                1 => Loss::Unsynced,
                _ => Loss::Nothing,
            };
            cuts.push((*rng.pick(counts), loss, format!("{kind} {class}")));
        }
    }
    cuts
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_wherever_the_power_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = &fs::canonicalize(folder.path()).expect("a folder without links");
    let (seed, each) = (number_of("GALOO_DISK_SEED", 1), number_of("GALOO_DISK_CUTS", 2));
    let mut rng = Rng::new(seed);
    let recorded = record(root, &mut rng).await.expect("a recording");
    let cuts = cuts(&recorded, each, &mut rng);
    let Recorded { story, journal, stopped, .. } = &recorded;
    println!("GALOO_DISK_SEED={seed} GALOO_DISK_CUTS={each}: {} records, {} cuts", journal.records().len(), cuts.len());

    // The test sees what it is for: what was told later than a node's state is missing in it, and a disk that does not sync
    // the log is found out.
    let (half, told) = (stopped / 2, |count| journal.position(count));
    let early = cut(&root.join("early"), story, journal, half, Loss::Nothing, told(*stopped)).await;
    let early = format!("{:#}", early.expect_err("what came later is missing"));
    assert!(early.contains("events are wrong"), "{early}");
    let lying = journal.with_lies_of("log/0");
    let lies = cut(&root.join("lies"), story, &lying, half, Loss::Unsynced, told(half)).await;
    println!("a disk that lies: {:#}", lies.expect_err("what was acknowledged is lost"));

    let tries = cuts.into_iter().map(|(count, loss, step)| async move {
        let name = match &loss {
            Loss::Nothing => "killed",
            Loss::Unsynced => "without-unsynced",
            Loss::Some(_) => "with-some-unsynced",
        };
        let folder = root.join(format!("{count}-{name}"));
        let tried = cut(&folder, story, journal, count, loss, journal.position(count)).await;
        tried.with_context(|| format!("before record {count}, {step}, {name}: {}", folder.display()))
    });
    let tried: Vec<_> = stream::iter(tries).buffer_unordered(AT_ONCE).collect().await;
    let failed: Vec<_> = tried.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        let kept = folder.keep();
        panic!("{} cuts failed; what is left is in {}: {failed:#?}", failed.len(), kept.display());
    }
}
