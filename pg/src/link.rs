//! Waiting: for a message, or for work under cancel, timeout and hang-up.
//!
//! A connection waits in two ways only. Between statements it waits for bytes or for the server's shutdown. Within one it
//! waits for the engine or for the socket to take rows, and at the same time for what may end the statement early: a
//! cancel request, `statement_timeout`, the server's shutdown, or the client hanging up. Bytes that arrive meanwhile
//! (pipelined messages) are kept, up to [`AHEAD_BYTES_MAX`]; over it the client's next bytes wait in the kernel, and a
//! hang-up behind them is seen only after the statement.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::SqlError;
use super::wire::{self, Outbox};

/// Bytes read ahead while a statement runs.
const AHEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes that wait in the outbox before they are written. Rows over it wait until the socket has taken what is there.
const OUTBOX_BYTES_MAX: usize = 64 << 10;

/// Why a statement or a connection ends.
#[derive(Debug)]
pub(super) enum Failure {
    /// The statement failed; its client is told, and the connection goes on.
    Statement(SqlError),
    /// The connection cannot go on; its client is told why.
    Fatal(SqlError),
    /// The client is gone.
    Gone,
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Statement(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// The reading half of a connection, and what may interrupt it.
pub(super) struct Link {
    reader: OwnedReadHalf,
    inbox: BytesMut,
    message_bytes_max: usize,
    cancels: watch::Receiver<u64>,
    shutdown: watch::Receiver<bool>,
    deadline: Option<Instant>,
}

/// The writing half of a connection.
pub(super) struct Sender {
    pub(super) outbox: Outbox,
    writer: OwnedWriteHalf,
}

/// Splits a socket after its startup. `inbox` is what was read beyond the startup.
pub(super) fn split(
    socket: TcpStream,
    inbox: BytesMut,
    message_bytes_max: usize,
    cancels: watch::Receiver<u64>,
    shutdown: watch::Receiver<bool>,
) -> (Link, Sender) {
    let (reader, writer) = socket.into_split();
    (
        Link { reader, inbox, message_bytes_max, cancels, shutdown, deadline: None },
        Sender { outbox: Outbox::default(), writer },
    )
}

impl Link {
    /// Returns the next frame, and ends at shutdown.
    ///
    /// Cancel-safe: a frame is taken only when it is whole.
    pub(super) async fn next_frame(&mut self) -> Result<(u8, Bytes), Failure> {
        loop {
            if *self.shutdown.borrow() {
                return Err(terminated());
            }
            match wire::next_frame(&mut self.inbox, self.message_bytes_max) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(Failure::Fatal(error)),
            }
            tokio::select! {
                changed = self.shutdown.changed() => if changed.is_err() { return Err(Failure::Gone) },
                read = self.reader.read_buf(&mut self.inbox) => if read? == 0 { return Err(Failure::Gone) },
            }
        }
    }

    /// Whether a next frame is already here, so that answers can wait to be written together.
    pub(super) fn is_ahead(&self) -> bool {
        wire::has_frame(&self.inbox)
    }

    /// Marks the beginning of a statement: older cancel requests do not count, and its time starts.
    pub(super) fn begin_statement(&mut self, timeout: Option<Duration>) {
        self.cancels.mark_unchanged();
        self.deadline = timeout.map(|timeout| Instant::now() + timeout);
    }

    /// Waits for `work`, and drops it at a cancel request, at the deadline, at shutdown or when the client hangs up.
    ///
    /// A panic of `work` is an error (XX000) of the statement, not of the server.
    pub(super) async fn guard<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        loop {
            let deadline = self.deadline;
            let timeout = async move {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = self.cancels.changed() => {
                    return Err(if changed.is_ok() { canceled("user request") } else { Failure::Gone });
                }
                stop = self.shutdown.wait_for(|stop| *stop) => {
                    return Err(if stop.is_ok() { terminated() } else { Failure::Gone });
                }
                () = timeout => return Err(canceled("statement timeout")),
                done = &mut work => return done.unwrap_or_else(|panic| Err(panicked(&*panic))),
                read = self.reader.read_buf(&mut self.inbox), if self.inbox.len() < AHEAD_BYTES_MAX => {
                    if read? == 0 {
                        return Err(Failure::Gone);
                    }
                }
            }
        }
    }
}

impl Sender {
    /// Whether rows should wait for the socket.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.bytes.len() >= OUTBOX_BYTES_MAX
    }

    /// Writes all that waits. Cancel-safe: what was written is gone from the outbox, what was not is still in it.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        while !self.outbox.bytes.is_empty() {
            if self.writer.write_buf(&mut self.outbox.bytes).await? == 0 {
                return Err(Failure::Gone);
            }
        }
        Ok(())
    }
}

/// The end of a connection whose server stops.
fn terminated() -> Failure {
    Failure::Fatal(SqlError::new("57P01", "terminating connection due to administrator command"))
}

fn canceled(by: &str) -> Failure {
    Failure::Statement(SqlError::new("57014", format!("canceling statement due to {by}")))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(panic = text, "a statement panicked");
    Failure::Statement(SqlError::new("XX000", format!("internal error: {text}")))
}
