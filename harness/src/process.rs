//! One process: started with its error output in a log, listened to, ended.

use std::{
    fs::File,
    io::Write,
    net::{SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

/// A process that says nothing for so long after its start has failed; recovery of a test's data is far quicker.
const SAY_MAX: Duration = Duration::from_secs(120);
/// A process that lives on so long after it was asked to end has failed.
const STOP_MAX: Duration = Duration::from_secs(30);
/// A killed process is gone after this, or never.
const KILL_MAX: Duration = Duration::from_secs(30);
/// A node says two lines; what a process says beyond so many that nobody reads is dropped.
const LINES_MAX: usize = 16;
/// The end of a log that an error shows.
const LOG_SHOWN_BYTES_MAX: usize = 16 << 10;

/// Below the ports that systems give to outgoing connections and to whoever lets them choose: one that is free stays free
/// until it is used.
const PORTS: Range<u32> = 12_000..32_000;

/// Finds addresses of this machine that nobody listens on, all different, also from those of earlier calls.
///
/// Another process may take one before it is used: a node that others are to join cannot let the system choose.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Processes that look at the same time begin at different places.
    let begin = std::process::id().wrapping_mul(997);
    let mut found = Vec::with_capacity(count);
    for _ in PORTS {
        if found.len() == count {
            break;
        }
        let place = begin.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(PORTS.start + place)?));
        if TcpListener::bind(address).is_ok() {
            found.push(address);
        }
    }
    if found.len() < count {
        bail!("{count} free ports are wanted, and {} were found", found.len());
    }
    Ok(found)
}

/// A child process. Dropping it kills it and waits until it is gone; on a panic its log is shown.
pub struct Process {
    child: Child,
    id: u32,
    /// What it says on its standard output.
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// Starts a command; what it writes to its standard error is appended to `log`.
    ///
    /// Its lines are read on the Tokio runtime that this is called in.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log).context("a process's log")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let id = child.id().context("a process without an id")?;
        let stdout = child.stdout.take().context("a process's output")?;
        let (sender, lines) = mpsc::channel(LINES_MAX);
        tokio::spawn(async move {
            let mut from = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = from.next_line().await {
                let _ = sender.try_send(line);
            }
        });
        Ok(Self { child, id, lines, log: log.to_owned() })
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Waits until it says a line that begins so, and returns the line.
    pub async fn says(&mut self, begin: &str) -> Result<String> {
        let said = async {
            while let Some(line) = self.lines.recv().await {
                if line.starts_with(begin) {
                    return Some(line);
                }
            }
            None
        };
        match tokio::time::timeout(SAY_MAX, said).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => {
                let ended = tokio::time::timeout(KILL_MAX, self.child.wait()).await;
                let how = ended.map_or("closed its output".to_owned(), |ended| format!("ended ({ended:?})"));
                bail!("process {} {how} and did not say {begin:?}; {}", self.id, self.end_of_log())
            }
            Err(_) => bail!("process {} did not say {begin:?} in {SAY_MAX:?}; {}", self.id, self.end_of_log()),
        }
    }

    /// Fails when it has ended by itself.
    pub fn runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("process {} ended by itself: {status}; {}", self.id, self.end_of_log()),
            None => Ok(()),
        }
    }

    /// Kills it as `kill -9` does; [`Process::gone`] tells when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.runs()?;
        self.child.start_kill().context("cannot kill a process")
    }

    /// Waits until it has ended.
    pub async fn gone(mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(KILL_MAX, self.child.wait()).await;
        Ok(ended.with_context(|| format!("process {} does not end", self.id))??)
    }

    /// Asks it to end (SIGTERM), and returns how it did.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        self.runs()?;
        // The shell's own command: the standard library sends no signal but SIGKILL, and not every system has a `kill`.
        let mut shell = Command::new("sh");
        let sent = shell.args(["-c", &format!("kill -TERM {}", self.id)]).status().await.context("cannot run sh")?;
        if !sent.success() {
            bail!("kill -TERM {}: {sent}", self.id);
        }
        let ended = tokio::time::timeout(STOP_MAX, self.child.wait()).await;
        Ok(ended.with_context(|| format!("process {} lives {STOP_MAX:?} after SIGTERM", self.id))??)
    }

    /// The end of its log, for a person to read.
    pub fn end_of_log(&self) -> String {
        end_of(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is what is wanted. Its folder may be removed next: it must be gone, and nothing
        // can be awaited here.
        let _ = self.child.start_kill();
        let since = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < KILL_MAX {
            std::thread::sleep(Duration::from_millis(1));
        }
        if std::thread::panicking() {
            // Where nobody hears it, a second panic would abort, and the other processes would live on.
            let _ = writeln!(std::io::stderr(), "--- process {}: {}", self.id, self.end_of_log());
        }
    }
}

/// The end of a log under its name.
pub(crate) fn end_of(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let end = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_SHOWN_BYTES_MAX)..]).into_owned();
    format!("{} ends:\n{end}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, log).expect("starts")
    }

    fn exists(id: u32) -> bool {
        Path::new("/proc").join(id.to_string()).exists()
    }

    #[tokio::test]
    async fn a_process_is_heard_and_ends_with_its_handle() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("log");
        let mut process = shell("echo wrong >&2; echo one; echo two 2; exec sleep 1000", &log);
        assert_eq!(process.says("two").await.expect("says it"), "two 2");
        let id = process.id();
        process.runs().expect("runs");
        assert!(exists(id));
        drop(process);
        assert!(!exists(id));

        let mut ended = shell("echo broken >&2; exit 3", &log);
        let error = ended.says("ready").await.expect_err("says nothing").to_string();
        assert!(error.contains("did not say \"ready\"") && error.contains("broken"), "{error}");
        assert!(ended.gone().await.expect("ends").code() == Some(3));
    }

    /// The test starts itself in a process of its own, where this is set.
    const PANICS: &str = "GALOO_HARNESS_TEST_PANICS";

    #[tokio::test]
    async fn a_panic_that_nobody_hears_ends_every_process() {
        if std::env::var_os(PANICS).is_some() {
            let folder = tempfile::tempdir().expect("folder");
            let log = folder.path().join("log");
            let processes = [(); 2].map(|()| shell("exec sleep 1000", &log));
            println!("process {}\nprocess {}", processes[0].id(), processes[1].id());
            panic!("as it is meant");
        }
        let (unheard, errors) = std::io::pipe().expect("a pipe");
        drop(unheard);
        let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "--nocapture", "process::tests::a_panic_that_nobody_hears_ends_every_process"]);
        let output = command.env(PANICS, "1").stderr(errors).output().expect("runs");
        let printed = String::from_utf8(output.stdout).expect("UTF-8");
        // The code of tests that failed: an abort has none.
        assert_eq!(output.status.code(), Some(101), "{printed}");
        let id = |line: &str| line.rsplit_once("process ")?.1.parse::<u32>().ok();
        let started: Vec<_> = printed.lines().filter_map(id).collect();
        assert!(started.len() == 2 && !started.iter().any(|id| exists(*id)), "{printed}");
    }

    #[tokio::test]
    async fn a_process_is_asked_to_end_or_killed() {
        let folder = tempfile::tempdir().expect("folder");
        let log = folder.path().join("log");
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let mut polite = shell(script, &log);
        polite.says("ready").await.expect("runs");
        assert!(polite.stop().await.expect("ends").success());
        let mut killed = shell(script, &log);
        killed.says("ready").await.expect("runs");
        killed.kill().expect("kills");
        assert!(!killed.gone().await.expect("ends").success());
    }
}
