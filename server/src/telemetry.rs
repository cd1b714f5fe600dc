//! Logs and metrics: structured lines on standard error, counters for Prometheus.

use std::{
    env::{self, VarError},
    io::IsTerminal,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// The environment variable that chooses levels.
const LEVELS: &str = "GALOO_LOG";

/// Why levels do not read.
#[derive(Debug, thiserror::Error)]
#[error("{LEVELS} is {value:?}: {reason}; it must be levels such as info or galoo=debug")]
pub struct LevelsError {
    value: String,
    reason: String,
}

/// Refuses a `GALOO_LOG` that does not read.
pub fn check_levels() -> Result<(), LevelsError> {
    match env::var(LEVELS) {
        Ok(value) => check(&value),
        Err(VarError::NotPresent) => Ok(()),
        Err(VarError::NotUnicode(value)) => {
            Err(LevelsError { value: value.to_string_lossy().into_owned(), reason: "it is not UTF-8".to_owned() })
        }
    }
}

fn check(value: &str) -> Result<(), LevelsError> {
    let wrong = |reason: String| LevelsError { value: value.to_owned(), reason };
    EnvFilter::builder().parse(value).map(drop).map_err(|error| wrong(error.to_string()))
}

/// Starts logging. `GALOO_LOG` chooses levels (such as `info` or `galoo=debug`; parts that do not read are told and passed
/// over); `json` makes each line an object.
pub fn start_logs(default: LevelFilter, json: bool) {
    let filter = EnvFilter::builder().with_default_directive(default.into()).with_env_var(LEVELS).from_env_lossy();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_do_not_read_are_refused() {
        for right in ["", "info", "warn,galoo=debug", "galoo::node=trace"] {
            check(right).expect(right);
        }
        let error = check("galoo=loud").expect_err("refused").to_string();
        assert!(error.contains("GALOO_LOG is \"galoo=loud\"") && error.contains("such as info"), "{error}");
    }
}
