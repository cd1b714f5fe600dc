//! `galoo server`: starts a node and its fronts, and stops them in order.
//!
//! gRPC comes first: a node that was started to `--join` others prints `galoo waiting` and waits on it until a cluster is
//! made, and a node of a cluster hears its peers on it while it starts. `galoo ready` is printed once clients are served.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use tokio::{net::TcpListener, runtime::Handle, signal::unix::SignalKind, sync::watch};
use tracing::{info, warn};
use tracing_subscriber::filter::LevelFilter;

use super::Failure;
use crate::{
    compactor,
    config::{Config, ConfigError, File, Given},
    coverer,
    data_folder::DataFolderError,
    door::{Door, FormError},
    memory, merger,
    node::Node,
    protocols::{grpc, http},
    repair, scrubber,
    sql::NodeSql,
    telemetry,
};

#[derive(Args)]
pub(super) struct ServerArgs {
    /// Where the node keeps its data
    #[arg(long, env = "GALOO_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the gRPC API; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, env = "GALOO_GRPC")]
    grpc: Option<SocketAddr>,
    /// Address of the Postgres protocol [default: 127.0.0.1:5433]
    #[arg(long, env = "GALOO_PG")]
    pg: Option<SocketAddr>,
    /// Address of metrics and health [default: 127.0.0.1:7480]
    #[arg(long, env = "GALOO_HTTP")]
    http: Option<SocketAddr>,
    /// The node's failure zone
    #[arg(long, env = "GALOO_ZONE")]
    zone: Option<String>,
    /// Form a cluster of the nodes at these gRPC addresses, this one among them, when `galoo cluster init` says so; a
    /// node that belongs to a cluster needs it no more
    #[arg(long, env = "GALOO_JOIN", value_delimiter = ',', value_name = "A1,A2,A3")]
    join: Option<Vec<String>>,
    /// A configuration file (TOML); flags and environment win over it
    #[arg(long, env = "GALOO_CONFIG")]
    config: Option<PathBuf>,
    /// Serve addresses that are not loopback although anybody may then read and write
    #[arg(long)]
    insecure: bool,
    /// Print JSON: the log's lines, and what is said on standard output
    #[arg(long)]
    json: bool,
}

/// Runs a node until SIGINT or SIGTERM.
pub(super) fn run(args: ServerArgs) -> Result<(), Failure> {
    telemetry::check_levels().map_err(|error| Failure::Refused(error.to_string()))?;
    telemetry::start_logs(LevelFilter::INFO, args.json);
    let config = config(&args).map_err(|error| Failure::Refused(error.to_string()))?;
    let runtime = |name: &str| tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build();
    let (gameplay, queries) =
        runtime("galoo").and_then(|one| Ok((one, runtime("sql")?))).map_err(anyhow::Error::from)?;
    let served = gameplay.block_on(serve(config, args.insecure, args.json, queries.handle()));
    queries.shutdown_background();
    served.map_err(|error| {
        if error.is::<DataFolderError>() || error.is::<FormError>() || error.is::<ConfigError>() {
            Failure::Refused(error.to_string())
        } else {
            Failure::Failed(error)
        }
    })
}

fn config(args: &ServerArgs) -> Result<Config, ConfigError> {
    let file = args.config.as_deref().map_or_else(|| Ok(File::default()), File::read)?;
    let given = Given {
        data_dir: args.data_dir.clone(),
        grpc: args.grpc,
        pg: args.pg,
        http: args.http,
        zone: args.zone.clone(),
        join: args.join.clone(),
        insecure: args.insecure,
    };
    Config::new(file, given)
}

async fn bind(front: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot serve {front} on {addr}"))
}

/// Says on standard output what the node does now, and where: supervisors and scripts wait for it.
fn announce(state: &str, config: &Config, json: bool) {
    let Config { grpc, pg, http, .. } = config;
    if json {
        let (grpc, pg, http) = (grpc.to_string(), pg.to_string(), http.to_string());
        println!("{}", serde_json::json!({"state": state, "grpc": grpc, "pg": pg, "http": http}));
    } else {
        println!("galoo {state} grpc={grpc} pg={pg} http={http}");
    }
}

/// Serves until a signal. SQL runs on threads of its own (`queries`), so that no query holds up a write.
async fn serve(mut config: Config, insecure: bool, json: bool, queries: &Handle) -> anyhow::Result<()> {
    // Ports first: a node that cannot be reached must not open its data.
    let grpc_listener = bind("gRPC", config.grpc).await?;
    let pg_listener = bind("the Postgres protocol", config.pg).await?;
    let http_listener = bind("HTTP", config.http).await?;
    config.grpc = grpc_listener.local_addr()?;
    config.pg = pg_listener.local_addr()?;
    config.http = http_listener.local_addr()?;
    if insecure {
        warn!("INSECURE: whoever reaches these addresses may read and write everything");
    }
    let metrics = telemetry::start_metrics()?;
    // Before the first line is printed: whoever read it may send a signal at once.
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let door = Arc::new(Door::open(config.clone(), stopped.clone())?);
    // A node that belongs to a cluster already is found by the others wherever it is.
    if door.identity().is_none() && config.is_among_joined()?.is_none() {
        let (grpc, join) = (config.grpc, config.join.join(","));
        warn!("one of {join} must lead to this node ({grpc}), or it waits forever");
    }
    let mut fronts = tokio::task::JoinSet::new();
    fronts.spawn(grpc::serve(door.clone(), grpc_listener, until_stopped(stopped.clone())));
    let http_stopped = until_stopped(stopped.clone());
    fronts.spawn(async move { Ok(http::serve(http_listener, metrics, http_stopped).await?) });
    let started = async {
        if door.begun().is_none() {
            announce("waiting", &config, json);
        }
        let identity = door.formed().await;
        let found = door.find_peers().await?;
        Node::start(&door, identity, found).await
    };
    let signal = async {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    };
    tokio::pin!(signal);
    let mut failed = Ok(());
    let mut workers = None;
    tokio::select! {
        signal = &mut signal => info!("{signal} before the node ran: stopping"),
        ended = fronts.join_next() => failed = front_ended(ended),
        started = started => match started {
            Err(error) => failed = Err(error),
            Ok(node) => {
                let options = galoo_query::Options { memory_bytes_max: config.query_memory_bytes, ..Default::default() };
                let engine = Arc::new(galoo_query::Engine::new(options)?);
                let sql = Arc::new(NodeSql::new(node.clone(), engine.clone()));
                let pg_stopped = until_stopped(stopped.clone());
                let limits = galoo_pg::PgLimits::default();
                fronts.spawn_on(async move { Ok(galoo_pg::serve(pg_listener, sql, pg_stopped, limits).await?) }, queries);
                let merging = merger::run(node.clone(), stopped.clone());
                let scrubbing = scrubber::run(node.clone(), stopped.clone());
                let repairing = repair::run(node.clone(), stopped.clone());
                let watching = memory::run(node.clone(), engine, stopped.clone());
                let covering = coverer::run(node.clone(), stopped.clone());
                let compacting = compactor::run(node, stopped);
                let all = async { tokio::join!(compacting, covering, merging, scrubbing, repairing, watching) };
                workers = Some(tokio::spawn(all));
                door.serve();
                announce("ready", &config, json);
                tokio::select! {
                    signal = &mut signal => info!("{signal}: stopping"),
                    ended = fronts.join_next() => failed = front_ended(ended),
                }
            }
        },
    }
    let _ = stop.send(true);
    let all_ended = async { while fronts.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_WAIT, all_ended).await.is_err() {
        warn!("calls still run {STOP_WAIT:?} after the stop; they are cut off");
    }
    if let Some(workers) = workers {
        let _ = tokio::time::timeout(STOP_WAIT, workers).await;
    }
    if let Ok(node) = door.starting_node().cloned() {
        tokio::task::spawn_blocking(move || node.stop()).await?;
    }
    info!("stopped");
    failed
}

fn front_ended(ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        _ => Err(anyhow::anyhow!("a front ended by itself")),
    }
}

/// Running calls get so long to end after a stop.
const STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
