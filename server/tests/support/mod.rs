//! Runs real processes for the integration tests: `galoo server`, the `galoo` command line and `psql`.
//!
//! The system chooses every port, every wait has an end, nothing sleeps, and no process outlives its test. What a server
//! wrote to stderr is printed when its test fails. A failure here is a failure of the test: these functions panic.

// Each test file compiles this module for itself and uses a part of it.
#![allow(dead_code)]

use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// A server that serves nothing after this has failed to start; recovery of a test's data is far quicker.
const READY_WAIT_MAX: Duration = Duration::from_secs(120);
/// A server that lives on so long after SIGTERM is killed.
const STOP_WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest command line is the import of two million events on a busy machine.
const GALOO_WAIT_MAX: Duration = Duration::from_secs(1_200);
/// The longest query scans two million events.
const PSQL_WAIT_MAX: Duration = Duration::from_secs(300);
/// The end of a server's stderr that a failed test prints.
const STDERR_SHOWN_BYTES_MAX: usize = 64 << 10;

/// Ends a cell, a row, and stands for null: control characters that no test's text holds.
const FIELD_SEPARATOR: char = '\x1f';
const RECORD_SEPARATOR: char = '\x1e';
const NULL: &str = "\x1d";

/// One row of an answer as psql prints it; a null is `None`.
pub type Row = Vec<Option<String>>;

/// A running `galoo server`; dropping it stops it.
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
        Server::launch(data_dir, grpc, arguments).wait()
    }

    /// Starts a server and does not wait until it serves.
    pub fn launch(data_dir: &Path, grpc: &str, arguments: &[&str]) -> Launched {
        let mut command = Command::new(env!("CARGO_BIN_EXE_galoo"));
        command.arg("server").arg("--data-dir").arg(data_dir);
        command.args(["--grpc", grpc, "--pg", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(arguments);
        let (process, ready) = Process::start(command, data_dir.with_extension("stderr"), "galoo ready ");
        Launched { process, ready, data_dir: data_dir.to_owned() }
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
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal("TERM");
        let status = self.process.wait(STOP_WAIT_MAX);
        status.unwrap_or_else(|| panic!("the server lives {STOP_WAIT_MAX:?} after SIGTERM"))
    }

    /// Ends the server without warning (SIGKILL), as a crash of the process does, and returns when it is gone.
    pub fn kill9(mut self) {
        self.process.signal("KILL");
        self.process.wait(STOP_WAIT_MAX).expect("a killed process ends");
    }
}

/// A server that has been started and may not serve yet; dropping it stops it.
pub struct Launched {
    process: Process,
    ready: Receiver<String>,
    data_dir: PathBuf,
}

impl Launched {
    /// Returns when the server serves.
    pub fn wait(self) -> Server {
        let line = match self.ready.recv_timeout(READY_WAIT_MAX) {
            Ok(line) => line,
            Err(error) => panic!("the server on {} printed no ready line: {error}", self.data_dir.display()),
        };
        let address = |key| address_of(&line, key).unwrap_or_else(|| panic!("no address {key} in '{line}'"));
        Server { grpc: address("grpc="), pg: address("pg="), http: address("http="), process: self.process }
    }

    /// Ends the server without warning (SIGKILL), and returns when it is gone.
    pub fn kill9(mut self) {
        self.process.signal("KILL");
        self.process.wait(STOP_WAIT_MAX).expect("a killed process ends");
    }
}

/// Starts a cluster of so many nodes with their data below `folder`; one node needs nobody to join.
pub fn start_nodes(folder: &Path, count: usize) -> Vec<Server> {
    if count == 1 {
        return vec![Server::start(&folder.join("n1"), &[])];
    }
    let addrs = free_addresses(count);
    let join = addrs.join(",");
    let launch = |(place, addr): (usize, &String)| {
        Server::launch(&folder.join(format!("n{}", place + 1)), addr, &["--join", &join])
    };
    let launched: Vec<_> = addrs.iter().enumerate().map(launch).collect();
    let since = Instant::now();
    while !galoo(&["cluster", "init", "--addr", &addrs[0]]).status.success() {
        assert!(since.elapsed() < READY_WAIT_MAX, "the nodes at {join} do not form a cluster");
    }
    launched.into_iter().map(Launched::wait).collect()
}

/// Takes addresses of this machine that are free at the moment.
///
/// Another process may take one before it is used: a node that others are to join cannot let the system choose.
pub fn free_addresses(count: usize) -> Vec<String> {
    let bind = |_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<_> = (0..count).map(bind).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("an address").to_string()).collect()
}

/// Finds `key` among the words of a ready line and parses the address after it.
fn address_of(line: &str, key: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key))?.parse().ok()
}

/// A child process that a thread waits for, so that this side can wait with a bound.
struct Process {
    pid: u32,
    ended: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` with its stderr appended to the file `stderr`. The receiver gets the first line of stdout
    /// that starts with `awaited`, and hangs up without one when stdout ends; what follows the line is read and dropped.
    fn start(mut command: Command, stderr: PathBuf, awaited: &'static str) -> (Process, Receiver<String>) {
        let file = File::options().create(true).append(true).open(&stderr).expect("the file for stderr opens");
        let mut child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file));
        let pid = child.id();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (line_sender, line) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = stdout.lines().map_while(Result::ok);
            if let Some(line) = lines.find(|line| line.starts_with(awaited)) {
                // Nobody waits for the line any more when the test has given up; stdout is still drained.
                let _ = line_sender.send(line);
            }
            drop(line_sender);
            lines.for_each(drop);
        });
        let (status_sender, ended) = mpsc::channel();
        thread::spawn(move || status_sender.send(child.wait().expect("a child can be waited for")));
        (Process { pid, ended, status: None, stderr }, line)
    }

    /// Sends a signal by name, unless the process is known to have ended.
    fn signal(&mut self, name: &str) {
        if self.wait(Duration::ZERO).is_none() {
            send_signal(self.pid, name);
        }
    }

    /// Returns how the process ended, or `None` if it still runs after `wait_max`.
    fn wait(&mut self, wait_max: Duration) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.ended.recv_timeout(wait_max).ok();
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for name in ["TERM", "KILL"] {
            self.signal(name);
            if self.wait(STOP_WAIT_MAX).is_some() {
                break;
            }
        }
        if thread::panicking() {
            let written = fs::read(&self.stderr).unwrap_or_default();
            let shown = &written[written.len().saturating_sub(STDERR_SHOWN_BYTES_MAX)..];
            eprintln!("--- stderr of process {} ({:?})\n{}", self.pid, self.status, String::from_utf8_lossy(shown));
        }
    }
}

/// Runs the `galoo` command line to its end.
pub fn galoo(arguments: &[&str]) -> Output {
    output(Command::new(env!("CARGO_BIN_EXE_galoo")).args(arguments), GALOO_WAIT_MAX)
}

/// Asks one statement through the real psql. The error is what psql wrote to stderr.
pub fn psql(port: u16, database: &str, sql: &str) -> Result<Vec<Row>, String> {
    let mut command = Command::new("psql");
    command.env("PGCONNECT_TIMEOUT", "30");
    command.arg(format!("host=127.0.0.1 port={port} dbname={database} user=galoo"));
    command.args(["--no-psqlrc", "--no-password", "--quiet", "--no-align", "--tuples-only"]);
    command.arg(format!("--field-separator={FIELD_SEPARATOR}")).arg(format!("--record-separator={RECORD_SEPARATOR}"));
    command.arg(format!("--pset=null={NULL}")).args(["--set=ON_ERROR_STOP=1", "--command", sql]);
    let output = output(&mut command, PSQL_WAIT_MAX);
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
pub fn output(command: &mut Command, wait_max: Duration) -> Output {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let pid = child.id();
    let (sender, done) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match done.recv_timeout(wait_max) {
        Ok(output) => output.expect("a child's output can be read"),
        Err(_) => {
            send_signal(pid, "KILL");
            panic!("{command:?} still ran after {wait_max:?}")
        }
    }
}

fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Sends a signal to one process. That it has just ended is no error.
fn send_signal(pid: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
    sent.expect("the command kill is installed");
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
