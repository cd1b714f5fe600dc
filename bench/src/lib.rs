//! The harness: a closed loop of workers, each with one call in flight, for a fixed time; the same for Galoo and its peers.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

/// How much load, and for how long.
#[derive(Args, Clone, Copy, Debug)]
pub struct Load {
    /// Connections that the calls share, over all nodes
    #[arg(long, default_value_t = 9)]
    pub connections: usize,
    /// Calls in flight, over all connections
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,
    /// Calls a second, at most; without, as many as are answered
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seconds that are measured
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds before that, which are not
    #[arg(long, default_value_t = 1.0)]
    pub warm_up_seconds: f64,
}

/// What a load measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Calls that were answered within the measured time.
    pub calls: u64,
    /// The measured time.
    pub seconds: f64,
    /// Calls a second.
    pub calls_per_second: f64,
    /// Half of the calls were answered within so many milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 calls were.
    pub p99_ms: f64,
}

/// Opens the connections of a load to addresses in turn.
///
/// # Errors
/// An address that does not answer.
pub async fn connect(load: Load, addrs: &[String]) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::with_capacity(load.connections);
    for addr in addrs.iter().cycle().take(load.connections.max(1)) {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with_context(|| format!("connect to {addr}"))?);
    }
    Ok(channels)
}

/// Runs a load: worker `i` makes call after call of `call(i, n)`, its `n`th one.
///
/// # Errors
/// The first call that fails ends the load: a figure of a load with failures is none.
pub async fn closed_loop<F>(
    load: Load,
    call: impl Fn(usize, u64) -> F + Clone + Send + 'static,
) -> anyhow::Result<Report>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    if load.in_flight == 0 || load.seconds <= 0.0 {
        bail!("--in-flight and --seconds must be above 0");
    }
    if load.rate.is_some_and(|rate| rate <= 0.0) {
        bail!("--rate must be above 0");
    }
    let start = Instant::now();
    let begin = start + Duration::from_secs_f64(load.warm_up_seconds.max(0.0));
    let end = begin + Duration::from_secs_f64(load.seconds);
    let workers = (0..load.in_flight).map(|worker| {
        let call = call.clone();
        tokio::spawn(async move {
            let mut micros: Vec<u32> = Vec::new();
            for number in 0.. {
                if let Some(rate) = load.rate {
                    let place = number * load.in_flight as u64 + worker as u64;
                    tokio::time::sleep_until((start + Duration::from_secs_f64(place as f64 / rate)).into()).await;
                }
                let started = Instant::now();
                if started >= end {
                    break;
                }
                call(worker, number).await?;
                let now = Instant::now();
                if started >= begin && now <= end {
                    micros.push(u32::try_from((now - started).as_micros()).unwrap_or(u32::MAX));
                }
            }
            anyhow::Ok(micros)
        })
    });
    let mut all = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        all.extend(worker.await??);
    }
    all.sort_unstable();
    let Some(last) = all.len().checked_sub(1) else { bail!("no call was answered in {} s", load.seconds) };
    let at = |part: usize| f64::from(all[last * part / 100]) / 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let calls_per_second = all.len() as f64 / load.seconds;
    let (p50_ms, p99_ms) = (at(50), at(99));
    Ok(Report { calls: all.len() as u64, seconds: load.seconds, calls_per_second, p50_ms, p99_ms })
}
