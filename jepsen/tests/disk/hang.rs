//! A disk that hangs for the engine's files: writes are refused before RocksDB holds up whoever applies, so that reads go on,
//! and a metric says why; when the disk goes on, so does everything, and a client that repeats what was refused saw no error.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use galoo_jepsen::disk::HANG_VARIABLE;

use super::*;

const MEMTABLES: &str = "memtable_bytes = 8388608\n";
/// Much more than memtables may hold.
const BATCHES: u64 = 150;
const EVENTS: u64 = 100;
const FILL_BYTES: usize = 8_000;
/// What is waited for comes within this, or never.
const WAIT_MAX: Duration = Duration::from_secs(30);
const READ_MAX: Duration = Duration::from_secs(5);

/// The `place`th event of a batch, with much in it.
fn event(batch: u64, place: u64) -> galoo_proto::value::Event {
    let id = format!("{batch}-{place}");
    let properties = format!(r#"{{"id":"{id}","fill":"{}"}}"#, "x".repeat(FILL_BYTES));
    let event = calls::event(&id, &format!("player{place}"), 1_767_225_600_000, "login", 1);
    galoo_proto::value::Event { properties, ..event }
}

async fn wait_until(what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !done().await? {
        ensure!(since.elapsed() < WAIT_MAX, "not within {WAIT_MAX:?}: {what}");
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Every event that was sent is stored, each once.
async fn check(cluster: &Cluster) -> Result<()> {
    let stored = calls::stored(&Client::connect(&cluster.grpc(0)).await?, GAME).await?;
    let mut appends = Appends::default();
    for id in (0..BATCHES).flat_map(|batch| (0..EVENTS).map(move |place| format!("{batch}-{place}"))) {
        appends.sent(&id);
        appends.acknowledged(&id);
    }
    let wrong = appends.check(stored.values().map(String::as_str)).err().unwrap_or_default();
    ensure!(wrong.is_empty(), "{} events are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    Ok(())
}

async fn hang(root: &Path) -> Result<()> {
    let hang = root.join("hang");
    let mut cluster = recorded(root, MEMTABLES, &root.join("journal"))?.with_variable(HANG_VARIABLE, &hang);
    cluster.form().await?;
    let client = Client::connect(&cluster.grpc(0)).await?;
    client.create_game(GAME, 1, 1).await?;
    fs::write(&hang, "")?;
    let told = Arc::new(AtomicU64::new(0));
    let (writer, count) = (client.clone(), told.clone());
    let writing = tokio::spawn(async move {
        let producer = Producer::register(&writer, GAME, "producer").await?;
        for batch in 0..BATCHES {
            let events = (0..EVENTS).map(|place| event(batch, place)).collect();
            let stamp = Some(producer.stamp(batch, batch));
            writer.append(AppendRequest { game: GAME.to_owned(), producer: stamp, events }).await?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    });
    let refused = || cluster.metric(0, "galoo_refused_total{reason=\"memtables\"}");
    wait_until("writes are refused", async || Ok(refused().await? > 0.0)).await?;
    let at = told.load(Ordering::Relaxed);
    ensure!((1..BATCHES).contains(&at), "refused behind batch {at}");
    // It goes on as long as it lasts, and nothing else waits for it.
    let before = refused().await?;
    wait_until("writes are refused again", async || Ok(refused().await? > before + 1.0)).await?;
    let read = tokio::time::timeout(READ_MAX, client.get(calls::count_of(GAME, COUNTER))).await;
    ensure!(read.context("a read waits for the disk")??.is_empty());
    let stopped = cluster.metric(0, "galoo_engine_writes_stopped").await?;
    ensure!(stopped == 0.0, "RocksDB holds writes up");
    let held = cluster.metric(0, "galoo_memory_bytes{part=\"memtables\"}").await?;
    let budget = cluster.metric(0, "galoo_memory_limit_bytes{part=\"memtables\"}").await?;
    ensure!(held > 2.0 * budget, "memtables hold {held} of {budget}");
    ensure!(told.load(Ordering::Relaxed) == at, "stored while it was refused");
    fs::remove_file(&hang)?;
    tokio::time::timeout(WAIT_MAX, writing).await.context("writes do not go on")???;
    check(&cluster).await?;
    cluster.kill(&[0]).await?;
    cluster.start_again(&[0]).await?;
    check(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_nobody_but_writers() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = fs::canonicalize(folder.path()).expect("a folder without links");
    hang(&root).await.expect("a disk that hangs");
}
