//! Runs real processes for the integration tests: `galoo server`, the `galoo` command line and `psql`.
//!
//! What starts and ends them is [`galoo_harness`]; here its tasks are awaited, because tests are threads without a runtime
//! of their own. Nothing sleeps, and no process outlives its test. What a server wrote to stderr is printed when its test
//! fails. A failure here is a failure of the test: these functions panic.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::{
    env,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Output, Stdio},
    sync::LazyLock,
    time::Duration,
};

use galoo_harness::{Cluster, Galoo, Process};
use serde_json::Value;
use tokio::{process::Command, runtime::Runtime};

/// The longest query scans two million events.
const PSQL_WAIT_MAX: Duration = Duration::from_secs(300);

/// Ends a cell, a row, and stands for null: control characters that no test's text holds.
const FIELD_SEPARATOR: char = '\x1f';
const RECORD_SEPARATOR: char = '\x1e';
const NULL: &str = "\x1d";

/// One row of an answer as psql prints it; a null is `None`.
pub type Row = Vec<Option<String>>;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Awaits a task; an error fails the test.
pub fn done<T>(task: impl Future<Output = anyhow::Result<T>>) -> T {
    RUNTIME.block_on(task).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The binary under test.
pub fn binary() -> Galoo {
    Galoo::new(env!("CARGO_BIN_EXE_galoo").into())
}

/// Starts an import of a file into the game `g`; it goes on while the test does other things.
pub fn import(addrs: &str, events: &Path) -> Child {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_galoo"));
    command.args(["import", "--addr", addrs, "--game", "g", "--json"]).arg(events);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("starts")
}

/// Waits for an import that succeeds, and returns its report.
pub fn report(import: Child) -> Value {
    let output = import.wait_with_output().expect("ends");
    assert!(output.status.success(), "the import ended with {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// A running `galoo server`; dropping it kills it.
pub struct Server {
    process: Process,
    grpc: SocketAddr,
    pg: SocketAddr,
    http: SocketAddr,
}

impl Server {
    /// Starts a server on `data_dir` with free ports and `arguments`, and returns when it serves.
    ///
    /// Its stderr is appended to a file beside `data_dir`, so that a restart keeps what went before.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Server {
        Server::start_at(data_dir, "127.0.0.1:0", arguments)
    }

    /// Like [`Server::start`], with gRPC at a given address: a restart where clients look for it.
    pub fn start_at(data_dir: &Path, grpc: &str, arguments: &[&str]) -> Server {
        let mut command = binary().command(&["server", "--grpc", grpc, "--pg", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(data_dir).args(arguments);
        done(async {
            let mut process = Process::start(command, &data_dir.with_extension("stderr"))?;
            let line = process.says("galoo ready ").await?;
            let address = |key| address_of(&line, key).unwrap_or_else(|| panic!("no address {key} in '{line}'"));
            Ok(Server { grpc: address("grpc="), pg: address("pg="), http: address("http="), process })
        })
    }

    /// Returns where the server speaks gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Returns where the server speaks the Postgres protocol.
    pub fn pg(&self) -> SocketAddr {
        self.pg
    }

    /// Returns where the server speaks HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Asks the server to end (SIGTERM) and returns how it did. A server that does not obey fails the test.
    pub fn stop(self) -> ExitStatus {
        done(self.process.stop())
    }

    /// Waits until the server has ended by itself, and returns how it did.
    pub fn gone(self) -> ExitStatus {
        done(self.process.gone())
    }

    /// Ends the server without warning (SIGKILL), as a crash of the process does, and returns when it is gone.
    pub fn kill9(mut self) {
        self.process.kill().expect("runs");
        done(self.process.gone());
    }
}

/// Finds `key` among the words of a ready line and parses the address after it.
fn address_of(line: &str, key: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key))?.parse().ok()
}

/// Chooses the folders and ports of so many nodes below `folder`; starts nothing.
pub fn cluster(folder: &Path, nodes: usize) -> Cluster {
    Cluster::new(binary(), folder, nodes).expect("free ports")
}

/// Runs the `galoo` command line to its end.
pub fn galoo(arguments: &[&str]) -> Output {
    done(binary().output(arguments))
}

/// Asks one statement through the real psql. The error is what psql wrote to stderr.
pub fn psql(port: u16, database: &str, sql: &str) -> Result<Vec<Row>, String> {
    let mut command = Command::new("psql");
    command.env("PGCONNECT_TIMEOUT", "30");
    command.arg(format!("host=127.0.0.1 port={port} dbname={database} user=galoo"));
    command.args(["--no-psqlrc", "--no-password", "--quiet", "--no-align", "--tuples-only"]);
    command.arg(format!("--field-separator={FIELD_SEPARATOR}")).arg(format!("--record-separator={RECORD_SEPARATOR}"));
    command.arg(format!("--pset=null={NULL}")).args(["--set=ON_ERROR_STOP=1", "--command", sql]);
    let output = output(command, PSQL_WAIT_MAX);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let text = String::from_utf8(output.stdout).map_err(|error| format!("the answer is not UTF-8: {error}"))?;
    // psql ends the last record with a line feed instead of a separator, and prints nothing at all for no rows.
    let Some(records) = text.strip_suffix('\n') else { return Ok(Vec::new()) };
    Ok(records.split(RECORD_SEPARATOR).map(cells_of).collect())
}

/// Cuts one of psql's records into its cells.
fn cells_of(record: &str) -> Row {
    record.split(FIELD_SEPARATOR).map(|cell| (cell != NULL).then(|| cell.to_owned())).collect()
}

/// Runs a command to its end and returns what it wrote; one that runs longer than `wait_max` is killed and fails the test.
pub fn output(command: Command, wait_max: Duration) -> Output {
    done(galoo_harness::output(command, wait_max))
}

/// Returns the folder of the shared data sets: `data` in the folder that GALOO_SHARED names, or in `shared` beside the
/// workspace. Only without GALOO_SHARED may it be absent.
pub fn shared_data() -> Option<PathBuf> {
    let named = env::var_os("GALOO_SHARED").map(PathBuf::from);
    let shared = named.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
    let data = shared.join("data");
    assert!(named.is_none() || data.is_dir(), "GALOO_SHARED has no folder {}", data.display());
    data.is_dir().then_some(data)
}

/// Says that a test was skipped, also where the test runner captures what tests print.
pub fn skipped(test: &str, reason: &str) {
    // The runner captures the print macros only.
    writeln!(io::stderr(), "SKIPPED {test}: {reason}").expect("stderr can be written");
}
