//! The command line of the binary, run to its end.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;

/// The longest command line is the import of two million events on a busy machine.
const COMMAND_MAX: Duration = Duration::from_secs(1_200);

/// Runs a command to its end and returns what it wrote; one that runs longer than `run_max` is killed and an error.
pub async fn output(mut command: Command, run_max: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(run_max, command.output()).await;
    let ended = ended.with_context(|| format!("{:?} still ran after {run_max:?}", command.as_std()))?;
    ended.with_context(|| format!("cannot run {:?}", command.as_std()))
}

/// The binary.
#[derive(Clone, Debug)]
pub struct Galoo {
    binary: PathBuf,
}

impl Galoo {
    /// The binary at a path.
    pub fn new(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// Where it is.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command line that has not been started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments);
        command
    }

    /// Runs a command line to its end, however it ends.
    pub async fn output(&self, arguments: &[&str]) -> Result<Output> {
        output(self.command(arguments), COMMAND_MAX).await
    }

    /// Runs a command line and returns what it printed; the error of one that failed is what it said.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments).await?;
        if !output.status.success() {
            bail!("galoo {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command line with `--json` and returns what it printed; null for nothing.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--json"]].concat()).await?;
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }
}
