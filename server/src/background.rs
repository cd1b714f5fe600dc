//! Work that nobody waits for, on threads that give way to those that callers wait for.

use rustix::process::setpriority_process;
use tokio::sync::oneshot;
use tracing::debug;

/// Niceness of a thread that gives way: beside a busy thread it gets a tenth of a core (sched(7): each step is a quarter
/// of the weight more or less).
const NICENESS: i32 = 10;

/// Runs a job on a thread of its own, and returns what it returns; with `gives_way`, below all other threads of the node.
///
/// A thread of its own, because only root may raise a thread's priority again.
///
/// # Errors
/// When the system has no thread left, or the job panicked.
pub async fn run<T: Send + 'static>(gives_way: bool, job: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name("background".to_owned()).spawn(move || {
        // On Linux it is the thread's own priority that "the process" of id 0 stands for: setpriority(2), BUGS.
        if gives_way && let Err(failure) = setpriority_process(None, NICENESS) {
            debug!(%failure, "a background thread keeps its priority");
        }
        let _ = done.send(job());
    })?;
    result.await.map_err(|_| anyhow::anyhow!("a background job panicked"))
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn only_the_thread_that_gives_way_is_nicer() {
        let before = getpriority_process(None).expect("readable");
        let of = async |gives_way| run(gives_way, || getpriority_process(None)).await.expect("runs").expect("readable");
        assert_eq!(of(false).await, before);
        assert_eq!(of(true).await, NICENESS.max(before));
        assert_eq!(getpriority_process(None), Ok(before), "the caller's own is kept");
        let panicked = run::<()>(true, || panic!("on purpose")).await;
        assert!(panicked.expect_err("told").to_string().contains("panicked"));
    }
}
