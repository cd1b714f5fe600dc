//! `galoo demo`: a cluster of three on this machine, a million events, a node killed on the way, the answers, and the
//! proofs that nothing went wrong.
//!
//! The nodes are processes of this same binary with folders and ports of their own; the demo speaks to them as anybody
//! would: with the client library, the command line and SQL over the Postgres protocol. It ends its processes and removes
//! their folders however it ends itself, unless it was asked to keep them or a proof failed. It ends also when nobody reads
//! what it says any more.

mod answers;
mod cluster;
mod loader;
mod proofs;
mod tell;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use galoo_client::Client;
use galoo_workload::Config;
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use self::{
    answers::Sql,
    cluster::Cluster,
    loader::{Loaded, Source},
    tell::{Tell, grouped, seconds},
};
use super::Failure;

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Load this file (NDJSON, plain, gzip or zstd) instead of a simulated game
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Events of the simulated game
    #[arg(long, default_value_t = 1_000_000, conflicts_with = "data")]
    events: u64,
    /// Where the simulation's chance comes from
    #[arg(long, default_value_t = 1, conflicts_with = "data")]
    seed: u64,
    /// End after the proofs, with exit code 1 when one failed, instead of serving until Ctrl-C
    #[arg(long)]
    once: bool,
    /// Make the nodes' folders in this one [default: the system's folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Keep the nodes' folders
    #[arg(long)]
    keep: bool,
    /// Print one JSON object in the end
    #[arg(long)]
    json: bool,
}

/// The demo's game.
const GAME: &str = "demo";
/// The rollup that is kept while events come in.
const ROLLUP: &str = "per_hour";
/// What the rollup holds, asked of the raw events.
const ROLLUP_SELECT: &str = "SELECT time_bucket('1 hour', event_time) AS bucket, event_type, count(*) AS events, \
                             count(distinct player_id) AS players FROM events GROUP BY 1, 2";
/// The leader is killed when so much is loaded, in thousandths.
const KILL_AT_PERMILLE: u64 = 400;
/// A replica that is so long behind has failed to catch up.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);
/// How often a node is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Runs the demo until it is over, until Ctrl-C, or until nobody reads what it says.
pub(super) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("galoo-demo-");
    let folder = match &args.dir {
        Some(dir) => builder.tempdir_in(dir).with_context(|| format!("cannot make a folder in {}", dir.display())),
        None => builder.tempdir().context("cannot make a temporary folder"),
    }?;
    let mut cluster = Cluster::new(folder.path())?;
    let mut tell = Tell::new(args.json);
    let done = tokio::select! {
        done = story(&args, &mut cluster, &mut tell) => Some(done),
        () = signals.any() => None,
    };
    // Who reads no further ends it as a signal does.
    let done = done.filter(|done| !matches!(done, Err(Failure::Unread)));
    if let Some(Ok(())) = &done
        && !args.once
        && tell.line("The cluster is up until Ctrl-C.").is_ok()
    {
        signals.any().await;
    }
    tell.end();
    cluster.stop();
    if args.keep || matches!(done, Some(Err(_))) {
        let kept = folder.keep();
        // They are kept whether somebody reads it or not.
        let _ = tell.line(&format!("The nodes' folders and logs are kept in {}", kept.display()));
    } else {
        folder.close().context("cannot remove the nodes' folders")?;
    }
    done.unwrap_or_else(|| Err(anyhow::anyhow!("interrupted").into()))
}

/// What ends the demo from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn story(args: &DemoArgs, cluster: &mut Cluster, tell: &mut Tell) -> Result<(), Failure> {
    let source = match &args.data {
        Some(file) => Source::File(file.clone()),
        None => Source::Game(Config::new(args.seed, args.events)),
    };
    tell.line(&format!("Galoo demo: {}\n", source.title()))?;
    let client = formed(cluster, tell).await?;
    let (meter, progress) = loader::meter(&source, tell)?;
    let started = Instant::now();
    let mut load = JoinSet::new();
    load.spawn(loader::load(source, client, cluster.folder().to_owned(), meter));
    let disaster = disaster(cluster, tell, progress).await;
    if let Err(Failure::Unread) = disaster {
        return disaster;
    }
    let loaded = load.join_next().await.context("the load")?.context("the load")??;
    tell.end();
    told(&loaded, started, tell)?;
    disaster?;
    let mut sql = Sql::connect(cluster.pg()).await?;
    tell.heading(&format!("Answers, asked through the Postgres protocol of {}", cluster.last_started()))?;
    answers::all(&mut sql, tell).await?;
    tell.heading("Proofs")?;
    proofs::rollup_is_raw(&mut sql, tell).await?;
    proofs::acknowledged_is_stored(&mut sql, &loaded, tell).await?;
    proofs::same_everywhere(cluster, &loaded, tell).await?;
    connect(cluster, tell)?;
    tell.verdict()
}

/// Starts the nodes, makes a cluster of them, a game and its rollup.
async fn formed(cluster: &mut Cluster, tell: &mut Tell) -> Result<Client, Failure> {
    let started = Instant::now();
    cluster.start().await?;
    let client = Client::connect(&cluster.addresses()).await?;
    let game = client.create_game(GAME, 0, 0).await?;
    let mut sql = Sql::connect(cluster.pg()).await?;
    sql.rows(&format!("CREATE ROLLUP {ROLLUP} AS {ROLLUP_SELECT}")).await?;
    tell.table("nodes", "nodes", &["node", "gRPC", "Postgres", "HTTP", "process"], cluster.rows())?;
    let (shards, replicas) = (game.shards, game.replicas);
    tell.line(&format!(
        "Three nodes formed a cluster, made the game {GAME} with {shards} shards of {replicas} replicas each and the \
         rollup {ROLLUP} in {}.\n",
        seconds(started.elapsed())
    ))?;
    Ok(client)
}

/// Kills the node that leads a shard, sees the load go on, starts the node again and sees it catch up.
async fn disaster(
    cluster: &mut Cluster,
    tell: &mut Tell,
    mut progress: watch::Receiver<loader::Progress>,
) -> Result<(), Failure> {
    // The load ends first where there is little of it: the node dies all the same.
    let _ = progress.wait_for(|progress| progress.permille >= KILL_AT_PERMILLE).await;
    let (victim, shard, leads, shards) = cluster.leader().await?;
    let process = cluster.kill(victim).await?;
    let before = *progress.borrow();
    tell.line(&format!(
        "{} events in: kill -9 {process}, which is {}; it led s{shard} and {} of {shards} shards.",
        grouped(before.events),
        cluster.name(victim),
        leads,
    ))?;
    let pause = longest_pause(&mut progress, before.events + loader::ON_THE_WAY_MAX).await;
    tell.line(&format!("The load goes on by itself: the longest wait for an answer was {}.", seconds(pause)))?;
    let target = cluster.applied().await?;
    cluster.start_again(victim).await?;
    let back = Instant::now();
    let lag = cluster.behind(victim, &target).await?;
    while cluster.behind(victim, &target).await? > 0 {
        if back.elapsed() > CATCH_UP_MAX {
            return Err(anyhow::anyhow!("{} did not catch up within {CATCH_UP_MAX:?}", cluster.name(victim)).into());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let index: u64 = target.values().sum();
    tell.fact(
        "restart",
        json!({"killed": cluster.name(victim), "pause_s": pause.as_secs_f64(), "behind": lag,
               "caught_up_s": back.elapsed().as_secs_f64()}),
        &format!(
            "{} is back, {} log entries behind the others' {}, and has caught up after {}.",
            cluster.name(victim),
            grouped(lag),
            grouped(index),
            seconds(back.elapsed())
        ),
    )
}

/// Returns the longest time without an acknowledgement until `events` are acknowledged or the load is over.
async fn longest_pause(progress: &mut watch::Receiver<loader::Progress>, events: u64) -> Duration {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while progress.borrow().events < events && progress.changed().await.is_ok() {
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

/// Says what was loaded and how fast.
fn told(loaded: &Loaded, started: Instant, tell: &mut Tell) -> Result<(), Failure> {
    let elapsed = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let rate = (loaded.events as f64 / elapsed) as u64;
    let changes = match loaded.changes {
        0 => String::new(),
        changes => format!(" and {} changes of players' state", grouped(changes)),
    };
    tell.fact(
        "load",
        json!({"events": loaded.events, "changes": loaded.changes, "seconds": elapsed, "events_per_s": rate}),
        &format!(
            "{} events{changes} are acknowledged after {elapsed:.1} s: {} events/s, outage and all.",
            grouped(loaded.events),
            grouped(rate)
        ),
    )
}

/// Says how to reach the cluster.
fn connect(cluster: &Cluster, tell: &mut Tell) -> Result<(), Failure> {
    let (grpc, pg) = (cluster.grpc(), cluster.pg());
    let galoo = cluster.binary().display();
    tell.heading("Connect")?;
    tell.line(&format!("  psql \"host={} port={} dbname={GAME} user=galoo\"", pg.ip(), pg.port()))?;
    tell.line(&format!("  {galoo} sql --addr {grpc} --game {GAME}"))?;
    tell.line(&format!("  {galoo} status --addr {grpc}\n"))
}
