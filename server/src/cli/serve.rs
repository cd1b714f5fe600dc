//! `galoo server`: starts a node and its fronts, and stops them in order.

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
    data_folder::DataFolderError,
    node::Node,
    protocols::{grpc, http},
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
    /// A configuration file (TOML); flags and environment win over it
    #[arg(long, env = "GALOO_CONFIG")]
    config: Option<PathBuf>,
    /// Serve addresses that are not loopback although anybody may then read and write
    #[arg(long)]
    insecure: bool,
    /// Log lines as JSON
    #[arg(long)]
    json: bool,
}

/// Runs a node until SIGINT or SIGTERM.
pub(super) fn run(args: ServerArgs) -> Result<(), Failure> {
    telemetry::start_logs(LevelFilter::INFO, args.json);
    let config = config(&args).map_err(|error| Failure::Refused(error.to_string()))?;
    let runtime = |name: &str| tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build();
    let (gameplay, queries) =
        runtime("galoo").and_then(|one| Ok((one, runtime("sql")?))).map_err(anyhow::Error::from)?;
    let served = gameplay.block_on(serve(config, args.insecure, queries.handle()));
    queries.shutdown_background();
    served.map_err(|error| match error.downcast_ref::<DataFolderError>() {
        Some(folder) => Failure::Refused(folder.to_string()),
        None => Failure::Failed(error),
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
        insecure: args.insecure,
    };
    Config::new(file, given)
}

async fn bind(front: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot serve {front} on {addr}"))
}

/// Serves until a signal. SQL runs on threads of its own (`queries`), so that no query holds up a write.
async fn serve(mut config: Config, insecure: bool, queries: &Handle) -> anyhow::Result<()> {
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
    let node = Node::start(config.clone()).await?;
    let (stop, stopped) = watch::channel(false);
    let until_stopped = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let options = galoo_query::Options { memory_bytes_max: config.query_memory_bytes, ..Default::default() };
    let sql = Arc::new(NodeSql::new(node.clone(), galoo_query::Engine::new(options)?));
    let mut fronts = tokio::task::JoinSet::new();
    fronts.spawn(grpc::serve(node.clone(), grpc_listener, until_stopped(stopped.clone())));
    let pg_stopped = until_stopped(stopped.clone());
    let limits = galoo_pg::PgLimits::default();
    fronts.spawn_on(async move { Ok(galoo_pg::serve(pg_listener, sql, pg_stopped, limits).await?) }, queries);
    let http_stopped = until_stopped(stopped.clone());
    fronts.spawn(async move { Ok(http::serve(http_listener, metrics, http_stopped).await?) });
    let compaction = tokio::spawn(compactor::run(node.clone(), stopped));
    // Before the ready line: whoever read it may send a signal at once.
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    println!("galoo ready grpc={} pg={} http={}", config.grpc, config.pg, config.http);
    let mut failed = Ok(());
    tokio::select! {
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        ended = fronts.join_next() => {
            failed = match ended {
                Some(Ok(Err(error))) => Err(error),
                _ => Err(anyhow::anyhow!("a front ended by itself")),
            };
        }
    }
    let _ = stop.send(true);
    let all_ended = async { while fronts.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_WAIT, all_ended).await.is_err() {
        warn!("calls still run {STOP_WAIT:?} after the stop; they are cut off");
    }
    let _ = tokio::time::timeout(STOP_WAIT, compaction).await;
    tokio::task::spawn_blocking(move || node.stop()).await?;
    info!("stopped");
    failed
}

/// Running calls get so long to end after a stop.
const STOP_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
