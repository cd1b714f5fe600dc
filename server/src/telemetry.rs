//! Logs and metrics: structured lines on standard error, counters for Prometheus.

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Starts logging. `GALOO_LOG` chooses levels (such as `info` or `galoo=debug`); `json` makes each line an object.
pub fn start_logs(default: LevelFilter, json: bool) {
    let filter = EnvFilter::builder().with_default_directive(default.into()).with_env_var("GALOO_LOG").from_env_lossy();
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // A second start in one process keeps the first.
    let _ = if json { lines.json().try_init() } else { lines.try_init() };
}

/// Installs the recorder of metrics.
pub fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let buckets = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
    Ok(PrometheusBuilder::new().set_buckets(&buckets)?.install_recorder()?)
}
