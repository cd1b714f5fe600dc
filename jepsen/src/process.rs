//! The binary under test, and a cluster of it with a configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use galoo_harness::Galoo;
pub use galoo_harness::{Cluster, Replica};

/// Returns the binary under test: what `GALOO_BIN` names, or the `galoo` of the folder that this test was built into.
///
/// # Errors
/// There is none: a test of nothing must not pass.
pub fn binary() -> Result<PathBuf> {
    let named = std::env::var_os("GALOO_BIN").map(PathBuf::from);
    let built = || {
        let test = std::env::current_exe().context("where this test is")?;
        // target/release/deps/NAME
        let profile = test.ancestors().nth(2).context("a test outside of a target folder")?;
        anyhow::Ok(profile.join("galoo"))
    };
    let binary = named.map_or_else(built, Ok)?;
    if !binary.is_file() {
        bail!("no galoo binary at {}: `make build` makes it, GALOO_BIN names another", binary.display());
    }
    Ok(binary)
}

/// Starts `count` nodes in a folder with a configuration file of this text, and makes a cluster of them.
pub async fn start(folder: &Path, count: usize, config: &str) -> Result<Cluster> {
    let file = folder.join("galoo.toml");
    std::fs::write(&file, config)?;
    let file = file.to_str().context("a folder whose name is UTF-8")?;
    let mut cluster = Cluster::new(Galoo::new(binary()?), folder, count)?.with_arguments(&["--config", file]);
    cluster.form().await?;
    Ok(cluster)
}
