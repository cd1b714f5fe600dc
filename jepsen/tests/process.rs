//! Three real nodes under `kill -9`, one, two or all at a time, while clients append, count and read.
//!
//! In the end nothing acknowledged is lost or doubled (P1, P3), no read went back (P2), the rollup equals the raw events
//! on every node (P4), and the replicas of every shard are the same (P5). `GALOO_CHAOS_SECONDS` says how long nodes are
//! killed (60); `GALOO_CHAOS_SEED` chooses which, and a failure prints it. What the machine does between is not seeded:
//! the simulator is the place where a failure replays.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use galoo_client::{Answer, Client, Error, Producer};
use galoo_jepsen::{
    calls,
    history::{Appends, Counter},
    process::{self, Cluster, Replica},
};
use galoo_proto::{
    command::BatchId,
    data::{AppendRequest, GetRequest, MutateRequest},
    value::{Event, Value},
};
use galoo_workload::Rng;
use tokio::{sync::watch, task::JoinSet};

const NODES: usize = 3;
const GAME: &str = "chaos";
const SHARDS: u32 = 4;
/// Small chunks, segments and logs, so that a minute goes through every tier, and a node that was away needs a snapshot.
const CONFIG: &str = "[storage]\nseal_bytes = 65536\nsegment_bytes_min = 65536\nsegment_bytes_max = 262144\n\
     log_bytes = 4194304\nhistory_ms = 1000\n";
const ROLLUP: &str = "SELECT time_bucket('1 minute', event_time) AS bucket, event_type, count(*) AS events, \
                      count(distinct player_id) AS players FROM events GROUP BY 1, 2";
/// Clients that append batch by batch, and over a stream.
const WRITERS: usize = 6;
const STREAMERS: usize = 2;
/// Clients that count without a number (outcomes may be unknown), with one (they never are), and that read.
const COUNTERS: usize = 4;
const EXACT_COUNTERS: usize = 2;
const READERS: usize = 2;
/// Batches of a stream on their way at once.
const WINDOW: usize = 8;
/// Where a majority runs, something is acknowledged within this.
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// What counts as progress: more acknowledgements than were on their way.
const PROGRESS: u64 = 40;
/// When all nodes run, everything ends within this.
const END_MAX: Duration = Duration::from_secs(180);
/// The round in which all nodes are killed at once, counted from 0; in others it happens by chance.
const ROUND_OF_ALL: u32 = 1;
/// Between two nodes that are told to compact.
const COMPACT_DELAY: Duration = Duration::from_secs(1);
/// Before a call that failed is tried at another node.
const PAUSE: Duration = Duration::from_millis(20);

/// What all clients share.
struct Shared {
    nodes: Vec<String>,
    appends: Mutex<Appends>,
    counters: Vec<Mutex<Counter>>,
    /// Acknowledgements of all clients.
    acknowledged: watch::Sender<u64>,
    stop: watch::Receiver<bool>,
}

/// A test's thread that panicked fails the test by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no client panicked")
}

impl Shared {
    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    fn done(&self, operations: u64) {
        self.acknowledged.send_modify(|count| *count += operations);
    }
}

/// A client's connection to some node, and chance of its own.
struct Actor {
    shared: Arc<Shared>,
    rng: Rng,
    client: Option<Client>,
}

impl Actor {
    /// A connection to the last node that answered, or to another.
    async fn client(&mut self) -> Client {
        loop {
            if let Some(client) = &self.client {
                return client.clone();
            }
            let node = self.rng.pick(&self.shared.nodes).clone();
            match Client::connect(&node).await {
                Ok(client) => self.client = Some(client),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// A call failed: it may be tried at another node, or the test has found something.
    async fn elsewhere(&mut self, error: &Error) {
        assert!(error.is_retryable(), "refused for good: {error}");
        self.client = None;
        tokio::time::sleep(PAUSE).await;
    }

    async fn producer(&mut self, id: &str) -> Producer {
        loop {
            let client = self.client().await;
            match Producer::register(&client, GAME, id).await {
                Ok(producer) => return producer,
                Err(error) => self.elsewhere(&error).await,
            }
        }
    }

    /// Makes a batch whose events have ids of their own, and notes them as sent.
    fn batch(&mut self, name: &str, number: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for place in 0..=self.rng.below(40) {
            let id = format!("{name}-{number}-{place}");
            lock(&self.shared.appends).sent(&id);
            let (player, time) = (format!("player{}", self.rng.below(64)), self.rng.within(0, 3_600_000));
            let event_type = self.rng.pick(&["login", "kill", "loot"]);
            events.push(calls::event(&id, &player, 1_767_225_600_000 + time, event_type, self.rng.below(100)));
        }
        events
    }

    fn acknowledge(&self, events: &[Event]) {
        let mut appends = lock(&self.shared.appends);
        events.iter().for_each(|event| appends.acknowledged(&calls::id_of(event).expect("an id")));
        drop(appends);
        self.shared.done(1);
    }

    /// Appends numbered batches, each until it is acknowledged.
    async fn write(mut self, name: String) {
        let producer = self.producer(&name).await;
        let mut number = 0;
        while !self.shared.stopped() {
            let events = self.batch(&name, number);
            let request = AppendRequest {
                game: GAME.to_owned(),
                producer: Some(producer.stamp(number, number)),
                events: events.clone(),
            };
            loop {
                let client = self.client().await;
                match client.append(request.clone()).await {
                    Ok(_) => break self.acknowledge(&events),
                    Err(error) => self.elsewhere(&error).await,
                }
            }
            number += 1;
        }
    }

    /// Appends numbered batches over streams; what a broken stream leaves unanswered is sent again.
    async fn stream(mut self, name: String) {
        let mut waiting: VecDeque<(u64, Vec<Event>)> = VecDeque::new();
        let mut number = 0;
        while !(self.shared.stopped() && waiting.is_empty()) {
            // A producer belongs to the connection that registered it.
            let producer = self.producer(&name).await;
            if let Err(error) = self.one_stream(&producer, &name, &mut number, &mut waiting).await {
                self.elsewhere(&error).await;
            }
        }
    }

    async fn one_stream(
        &mut self,
        producer: &Producer,
        name: &str,
        number: &mut u64,
        waiting: &mut VecDeque<(u64, Vec<Event>)>,
    ) -> Result<(), Error> {
        let mut stream = producer.stream(WINDOW).await?;
        for (number, events) in waiting.clone() {
            let answers = stream.send(number, events, false).await?;
            self.answered(answers, waiting);
        }
        for _ in 0..WINDOW * 8 {
            if self.shared.stopped() {
                break;
            }
            let events = self.batch(name, *number);
            waiting.push_back((*number, events.clone()));
            *number += 1;
            let answers = stream.send(*number - 1, events, false).await?;
            self.answered(answers, waiting);
        }
        let answers = stream.finish().await?;
        self.answered(answers, waiting);
        Ok(())
    }

    fn answered(&self, answers: Vec<Answer>, waiting: &mut VecDeque<(u64, Vec<Event>)>) {
        for answer in answers {
            let (number, events) = waiting.pop_front().expect("an answer to a batch that was sent");
            assert_eq!((number, events.len() as u64), (answer.number, answer.stored.stored + answer.stored.duplicates));
            self.acknowledge(&events);
        }
    }

    /// Counts without numbers: a call that fails may have counted.
    async fn count(mut self, counters: usize) {
        while !self.shared.stopped() {
            let place = usize::try_from(self.rng.below(counters as u64)).expect("small");
            let client = self.client().await;
            let begun = lock(&self.shared.counters[place]).increment();
            match client.mutate(increment(place, None)).await {
                Ok(mutated) => {
                    let value = int(mutated.expect("an increment fits").values.first());
                    lock(&self.shared.counters[place]).incremented(begun, value);
                    self.shared.done(1);
                }
                Err(error) => {
                    lock(&self.shared.counters[place]).unknown();
                    self.elsewhere(&error).await;
                }
            }
        }
    }

    /// Counts with numbers: each increment is repeated until it is acknowledged, and counts once.
    async fn count_exactly(mut self, place: usize) {
        let producer = self.producer(&counter(place)).await;
        let mut number = 0;
        while !self.shared.stopped() {
            let begun = lock(&self.shared.counters[place]).increment();
            loop {
                let client = self.client().await;
                let stamp = Some(producer.stamp(number, number));
                match client.mutate(increment(place, stamp)).await {
                    Ok(mutated) => {
                        let value = int(mutated.expect("an increment fits").values.first());
                        lock(&self.shared.counters[place]).incremented(begun, value);
                        self.shared.done(1);
                        break;
                    }
                    Err(error) => self.elsewhere(&error).await,
                }
            }
            number += 1;
        }
    }

    /// Compacts one node after the other, so that segments are merged all the time.
    async fn compact(mut self) {
        while !self.shared.stopped() {
            let node = self.rng.below(self.shared.nodes.len() as u64) as usize;
            if let Ok(client) = Client::connect(&self.shared.nodes[node]).await {
                // A node that was just killed does not: the next one may.
                let _ = client.compact(GAME, true).await;
            }
            tokio::time::sleep(COMPACT_DELAY).await;
        }
    }

    async fn read(mut self) {
        while !self.shared.stopped() {
            let place = usize::try_from(self.rng.below(self.shared.counters.len() as u64)).expect("small");
            let client = self.client().await;
            let begun = lock(&self.shared.counters[place]).read();
            match client.get(count_of(place)).await {
                Ok(cells) => {
                    let value = cells.first().map_or(0, |cell| int(cell.value.as_ref()));
                    lock(&self.shared.counters[place]).was_read(begun, value);
                }
                Err(error) => self.elsewhere(&error).await,
            }
        }
    }
}

fn counter(place: usize) -> String {
    format!("counter{place}")
}

fn increment(place: usize, producer: Option<BatchId>) -> MutateRequest {
    calls::increment(GAME, &counter(place), producer)
}

fn count_of(place: usize) -> GetRequest {
    calls::count_of(GAME, &counter(place))
}

fn int(value: Option<&Value>) -> u64 {
    calls::int(value).expect("a count")
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it must be a number")))
}

/// Waits until more is acknowledged than can have been on its way.
async fn progress(acknowledged: &mut watch::Receiver<u64>, when: &str) {
    let enough = *acknowledged.borrow_and_update() + PROGRESS;
    let seen = tokio::time::timeout(PROGRESS_MAX, acknowledged.wait_for(|count| *count >= enough)).await;
    assert!(seen.is_ok(), "nothing was acknowledged for {PROGRESS_MAX:?} {when}");
}

/// Kills nodes at random for a while, in at least one round all of them; a majority that runs must serve, and all must
/// come back.
async fn disasters(cluster: &mut Cluster, rng: &mut Rng, seconds: u64, mut acknowledged: watch::Receiver<u64>) -> u64 {
    let (since, mut kills, mut round) = (Instant::now(), 0, 0);
    while round <= ROUND_OF_ALL || since.elapsed() < Duration::from_secs(seconds) {
        progress(&mut acknowledged, "with all nodes up").await;
        cluster.all_run().expect("every node runs");
        let drawn = [1, 1, 1, 2, NODES][rng.weighted(&[1; 5])];
        let count = if round == ROUND_OF_ALL { NODES } else { drawn };
        round += 1;
        let first = usize::try_from(rng.below(NODES as u64)).expect("small");
        let victims: Vec<_> = (first..first + count).map(|node| node % NODES).collect();
        tokio::time::sleep(Duration::from_millis(rng.below(1_500))).await;
        cluster.kill(&victims).await.expect("kills");
        kills += victims.len() as u64;
        if count == 1 {
            progress(&mut acknowledged, &format!("with node {first} down")).await;
        }
        tokio::time::sleep(Duration::from_millis(rng.below(1_500))).await;
        cluster.start_again(&victims).await.expect("starts again");
    }
    progress(&mut acknowledged, "after the last restart").await;
    cluster.all_run().expect("every node runs");
    kills
}

/// Every node's replicas, or what one answered that cannot tell yet.
async fn replicas(cluster: &Cluster) -> anyhow::Result<Vec<BTreeMap<u64, Replica>>> {
    let mut nodes = Vec::new();
    for node in 0..cluster.count() {
        nodes.push(cluster.replicas(node, GAME).await?);
    }
    Ok(nodes)
}

/// Waits until all replicas have applied as much, compares them, and returns how many events each node holds.
async fn replicas_that_agree(cluster: &Cluster) -> u64 {
    let since = Instant::now();
    loop {
        let found = replicas(cluster).await;
        if let Ok(nodes) = &found {
            for (shard, replica) in nodes.iter().flatten() {
                let differs = |other: &Replica| other.applied == replica.applied && other != replica;
                let other = nodes.iter().filter_map(|node| node.get(shard)).find(|other| differs(other));
                assert!(other.is_none(), "s{shard} differs: {other:?}, {replica:?}");
            }
            // A replica that waits for a snapshot is not in the list.
            if nodes[0].len() == SHARDS as usize && nodes.iter().all(|replicas| *replicas == nodes[0]) {
                return nodes[0].values().map(|replica| replica.events).sum();
            }
        }
        assert!(since.elapsed() < END_MAX, "the replicas did not come together: {found:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Compares the rollup with its aggregate over the raw events, on every node.
async fn assert_rollup_is_raw(cluster: &Cluster, events: u64) {
    let mut answers = Vec::new();
    for node in 0..cluster.count() {
        let addr = cluster.grpc(node);
        for sql in [
            "SELECT bucket, event_type, events, players FROM per_minute ORDER BY 1, 2".to_owned(),
            format!("SET galoo.rewrite = off; {ROLLUP} ORDER BY 1, 2"),
        ] {
            let asked = cluster.galoo().run(&["sql", "--json", "--addr", &addr, "--game", GAME, "-c", &sql]).await;
            answers.push(asked.expect("an answer"));
        }
    }
    let count = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        row["events"].as_u64().expect("a count")
    };
    assert_eq!(answers[0].lines().map(count).sum::<u64>(), events);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "the rollup or a node differs");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_or_doubled_whoever_is_killed() {
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64 & 0xffff_ffff);
    let seed = number_of("GALOO_CHAOS_SEED").unwrap_or_else(clock);
    let seconds = number_of("GALOO_CHAOS_SECONDS").unwrap_or(60);
    // Shown when the test fails.
    println!("GALOO_CHAOS_SEED={seed} GALOO_CHAOS_SECONDS={seconds}");
    let mut rng = Rng::new(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = process::start(folder.path(), NODES, CONFIG).await.expect("three nodes");
    let nodes: Vec<_> = (0..NODES).map(|node| cluster.grpc(node)).collect();
    let client = Client::connect(&nodes[0]).await.expect("connects");
    client.create_game(GAME, SHARDS, 3).await.expect("a game");
    let create = format!("CREATE ROLLUP per_minute AS {ROLLUP}");
    cluster.galoo().run(&["sql", "--addr", &nodes[0], "--game", GAME, "-c", &create]).await.expect("a rollup");

    let (stop, stopped) = watch::channel(false);
    let (acknowledged, seen) = watch::channel(0);
    let counters = (0..COUNTERS + EXACT_COUNTERS).map(|_| Mutex::new(Counter::default())).collect();
    let shared = Arc::new(Shared { nodes, appends: Mutex::default(), counters, acknowledged, stop: stopped });
    let mut clients = JoinSet::new();
    let mut actor = || Actor { shared: shared.clone(), rng: Rng::new(rng.next_u64()), client: None };
    for writer in 0..WRITERS {
        clients.spawn(actor().write(format!("writer{writer}")));
    }
    for streamer in 0..STREAMERS {
        clients.spawn(actor().stream(format!("streamer{streamer}")));
    }
    for _ in 0..COUNTERS {
        clients.spawn(actor().count(COUNTERS));
    }
    for place in COUNTERS..COUNTERS + EXACT_COUNTERS {
        clients.spawn(actor().count_exactly(place));
    }
    for _ in 0..READERS {
        clients.spawn(actor().read());
    }

    clients.spawn(actor().compact());

    let kills = disasters(&mut cluster, &mut rng, seconds, seen).await;
    stop.send(true).expect("clients run");
    let all_end = async {
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client")
        }
    };
    tokio::time::timeout(END_MAX, all_end).await.expect("every client ends once all nodes are up");

    // Also waits for a node that has to catch up.
    let held = replicas_that_agree(&cluster).await;
    let client = Client::connect(&shared.nodes.join(",")).await.expect("connects");
    let events = calls::stored(&client, GAME).await.expect("scans");
    assert_eq!(events.len() as u64, held);
    let appends = lock(&shared.appends).clone();
    if let Err(wrong) = appends.check(events.values().map(String::as_str)) {
        panic!("{} events are wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    }
    // Sequence numbers of a shard are dense: the last one counts them.
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    events.keys().for_each(|(shard, seq)| _ = last.insert(*shard, *seq));
    assert_eq!(last.values().sum::<u64>(), events.len() as u64);
    let (mut counted, mut unknown) = (0, 0);
    for (place, counter_of) in shared.counters.iter().enumerate() {
        let cells = client.get(count_of(place)).await.expect("reads");
        let value = cells.first().map_or(0, |cell| int(cell.value.as_ref()));
        let history = lock(counter_of).clone();
        assert_eq!(history.check(value), Ok(()), "counter {place}");
        counted += history.counts().0;
        unknown += history.counts().1;
    }
    assert_rollup_is_raw(&cluster, events.len() as u64).await;
    println!(
        "{kills} kills: {} events and {counted} increments acknowledged, {unknown} increments unknown",
        appends.counts().0
    );
}
