//! `galoo-bench`: the load of Galoo's peers, through the harness that `galoo bench` uses too. Prints a report as JSON.

mod engine;

use std::{net::SocketAddr, time::Instant};

use clap::Parser;
use galoo_bench::{Load, Report, closed_loop, connect};
use serde_json::json;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[allow(missing_docs, clippy::all, reason = "generated; the .proto files hold the docs")]
mod etcd {
    tonic::include_proto!("etcdserverpb");
}
#[allow(missing_docs, clippy::all, reason = "generated; the .proto files hold the docs")]
mod echo {
    tonic::include_proto!("galoo.bench.v1");
}

use etcd::{PutRequest, RequestOp, TxnRequest, kv_client::KvClient, request_op};

/// Measures a peer.
#[derive(Parser)]
#[command(version)]
enum Peer {
    /// Single puts into etcd, or transactions of puts
    Etcd {
        /// Client addresses of the members
        #[arg(long, value_delimiter = ',', required = true)]
        addrs: Vec<String>,
        /// Puts of a transaction; 1: puts without one
        #[arg(long, default_value_t = 1)]
        puts: usize,
        /// Bytes of a value
        #[arg(long, default_value_t = 200)]
        value_bytes: usize,
        #[command(flatten)]
        load: Load,
    },
    /// Calls of a gRPC server in this process that answers what it is sent
    Echo {
        /// Bytes there and back
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        #[command(flatten)]
        load: Load,
    },
    /// One fdatasync of 4 KiB after the other
    Fdatasync {
        /// A file on the disk that is measured; made and removed
        #[arg(long)]
        file: std::path::PathBuf,
        /// How many
        #[arg(long, default_value_t = 300)]
        count: u32,
    },
    /// Galoo's engine by itself, beside bare RocksDB
    Engine {
        #[command(subcommand)]
        measure: engine::Measure,
    },
}

struct EchoService;

#[tonic::async_trait]
impl echo::echo_server::Echo for EchoService {
    async fn echo(&self, request: Request<echo::Payload>) -> Result<Response<echo::Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

async fn etcd(load: Load, addrs: &[String], puts: usize, value_bytes: usize) -> anyhow::Result<Report> {
    let clients: Vec<_> = connect(load, addrs).await?.into_iter().map(KvClient::new).collect();
    closed_loop(load, move |worker, number| {
        let mut client = clients[worker % clients.len()].clone();
        let put = move |place: usize| PutRequest {
            key: format!("bench/{worker:04}/{number:012}/{place:04}").into_bytes(),
            value: vec![b'x'; value_bytes],
        };
        async move {
            if puts == 1 {
                client.put(put(0)).await?;
            } else {
                let op = |place| RequestOp { request: Some(request_op::Request::RequestPut(put(place))) };
                client.txn(TxnRequest { success: (0..puts).map(op).collect() }).await?;
            }
            Ok(())
        }
    })
    .await
}

async fn echo(load: Load, bytes: usize) -> anyhow::Result<Report> {
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let addr = listener.local_addr()?.to_string();
    // On threads of its own, as a server in another process would be.
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let service = echo::echo_server::EchoServer::new(EchoService);
        let (_enter, listener) = (runtime.enter(), listener.into_std()?);
        let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener)?);
        runtime.block_on(
            tonic::transport::Server::builder().tcp_nodelay(true).add_service(service).serve_with_incoming(incoming),
        )?;
        anyhow::Ok(())
    });
    let clients: Vec<_> = connect(load, &[addr]).await?.into_iter().map(echo::echo_client::EchoClient::new).collect();
    let report = closed_loop(load, move |worker, _| {
        let mut client = clients[worker % clients.len()].clone();
        async move {
            client.echo(echo::Payload { bytes: vec![b'x'; bytes] }).await?;
            Ok(())
        }
    })
    .await;
    // The server ends with the process.
    drop(server);
    report
}

fn fdatasync(file: &std::path::Path, count: u32) -> anyhow::Result<Report> {
    use std::os::unix::fs::FileExt;
    let opened = std::fs::File::create(file)?;
    let (block, began) = ([b'x'; 4096], Instant::now());
    let mut micros = Vec::new();
    for place in 0..u64::from(count.max(1)) {
        opened.write_all_at(&block, place * 4096)?;
        let started = Instant::now();
        opened.sync_data()?;
        micros.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    let seconds = began.elapsed().as_secs_f64();
    std::fs::remove_file(file)?;
    micros.sort_unstable();
    let at = |part: usize| f64::from(micros[(micros.len() - 1) * part / 100]) / 1e3;
    let (calls, rate) = (micros.len() as u64, f64::from(count) / seconds);
    Ok(Report { calls, seconds, calls_per_second: rate, p50_ms: at(50), p99_ms: at(99) })
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = match Peer::parse() {
        Peer::Etcd { addrs, puts, value_bytes, load } => {
            json!(runtime.block_on(etcd(load, &addrs, puts, value_bytes))?)
        }
        Peer::Echo { bytes, load } => json!(runtime.block_on(echo(load, bytes))?),
        Peer::Fdatasync { file, count } => json!(fdatasync(&file, count)?),
        Peer::Engine { measure } => engine::run(measure)?,
    };
    println!("{report}");
    Ok(())
}
