//! HTTP: metrics for Prometheus at `/metrics`, liveness at `/healthz`.

use std::future::Future;

use axum::{Router, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

/// Serves until `stopped` resolves.
pub async fn serve(
    listener: TcpListener,
    metrics: PrometheusHandle,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { metrics.render() }));
    axum::serve(listener, routes).with_graceful_shutdown(stopped).await
}
