//! Raft messages on their way to one node.
//!
//! While nothing waits, whoever brings messages writes them to the connection at once: no task has to wake for them.
//! What the connection does not take then waits here, and [`Outbox::write_to`] writes it.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::{Buf, Bytes};
use galoo_consensus::GroupId;
use galoo_proto::peer::{RaftBatch, RaftMessage};
use tokio::{net::TcpStream, sync::Notify};

use super::frames::frame;

/// Bytes of Raft messages that wait for one node; further ones are dropped.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// Bytes of Raft messages that travel in one frame, but for the last one.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// What waits to be sent. Closed while there is no connection and none is being made.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    /// The first one may be sent in part.
    frames: VecDeque<Bytes>,
    bytes: usize,
    connection: Option<Arc<TcpStream>>,
    closed: bool,
}

impl Waiting {
    fn put(&mut self, messages: Vec<RaftMessage>) {
        let frame = frame(&RaftBatch { messages });
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Writes as much as the connection takes; `WouldBlock` when that is not all.
    fn write(&mut self) -> io::Result<()> {
        while let Some(frame) = self.frames.front_mut() {
            let connection = self.connection.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            let bytes = connection.try_write(frame)?;
            frame.advance(bytes);
            self.bytes -= bytes;
            if frame.is_empty() {
                self.frames.pop_front();
            }
        }
        Ok(())
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nobody panics with the outbox in hand")
    }

    /// Takes messages that travel together as far as there is room; returns the groups of those that it dropped.
    pub(super) fn push(&self, messages: Vec<RaftMessage>) -> Vec<GroupId> {
        let mut dropped = Vec::new();
        let mut together = Vec::new();
        let mut bytes = 0;
        let mut waiting = self.lock();
        for message in messages {
            let more = message.message.len();
            if waiting.closed || waiting.bytes + bytes + more > WAITING_BYTES_MAX {
                dropped.push(GroupId(message.group));
                continue;
            }
            together.push(message);
            bytes += more;
            if bytes >= BATCH_BYTES_MAX {
                waiting.put(std::mem::take(&mut together));
                bytes = 0;
            }
        }
        if !together.is_empty() {
            waiting.put(together);
        }
        // Whatever stops it, the connection's task finds out.
        if waiting.write().is_err() {
            self.filled.notify_one();
        }
        dropped
    }

    /// Drops what waits, and what comes until it is opened again.
    pub(super) fn close(&self) {
        *self.lock() = Waiting { closed: true, ..Waiting::default() };
    }

    pub(super) fn open(&self) {
        self.lock().closed = false;
    }

    /// Has everything written to a connection until that breaks, and returns why. Whoever drops this closes the outbox:
    /// a frame may be sent in part.
    pub(super) async fn write_to(&self, connection: &Arc<TcpStream>) -> io::Error {
        self.lock().connection = Some(connection.clone());
        loop {
            let written = self.lock().write();
            let waited = match written {
                Ok(()) => {
                    self.filled.notified().await;
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.writable().await,
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                return error;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    fn messages(sizes: &[usize]) -> Vec<RaftMessage> {
        sizes.iter().map(|bytes| RaftMessage { group: 1, message: vec![7; *bytes].into() }).collect()
    }

    #[test]
    fn an_outbox_is_bounded() {
        let outbox = Outbox::default();
        let push = |sizes: &[usize]| outbox.push(messages(sizes));
        assert_eq!(push(&[10, BATCH_BYTES_MAX]), []);
        assert_eq!(push(&[WAITING_BYTES_MAX, 20]), [GroupId(1)], "more than fits is dropped, what fits is not");
        outbox.close();
        assert_eq!(push(&[1, 1]), [GroupId(1), GroupId(1)], "without a connection nothing waits");
        outbox.open();
        assert_eq!(push(&[WAITING_BYTES_MAX]), [], "what waited is gone");
    }

    #[tokio::test]
    async fn what_a_connection_does_not_take_at_once_comes_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let connection = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (mut other, _) = listener.accept().await.expect("accepts");
        let outbox = Arc::new(Outbox::default());
        // Before there is a connection, with nobody who reads, and behind that.
        assert_eq!(outbox.push(messages(&[1])), []);
        let connection = Arc::new(connection);
        let writer = tokio::spawn({
            let (outbox, connection) = (outbox.clone(), connection.clone());
            async move { outbox.write_to(&connection).await }
        });
        let sizes: Vec<usize> = std::iter::once(1).chain((0..40).map(|place| (1 << 20) - place)).chain([2]).collect();
        while outbox.lock().connection.is_none() {
            tokio::task::yield_now().await;
        }
        for size in &sizes[1..] {
            assert_eq!(outbox.push(messages(&[*size])), []);
        }
        assert!(outbox.lock().bytes > 0, "the connection takes everything: the test shows nothing");
        let mut received =
            vec![0; sizes.iter().map(|size| frame(&RaftBatch { messages: messages(&[*size]) }).len()).sum()];
        other.read_exact(&mut received).await.expect("all of it");
        let expected: Vec<u8> =
            sizes.iter().flat_map(|size| frame(&RaftBatch { messages: messages(&[*size]) })).collect();
        assert!(received == expected, "the bytes are others");
        assert_eq!(outbox.lock().bytes, 0, "all room is back");
        drop(other);
        outbox.push(messages(&[1]));
        outbox.push(messages(&[1]));
        writer.await.expect("ends with the connection");
    }
}
