//! One stream of calls to a node, which all callers share: those that wait together travel together.
//!
//! A call is either surely not sent (its stream could not be opened), or answered, or its outcome is unknown because the
//! stream broke under it. Whether to make it again is for the caller to say.

use std::{
    collections::HashMap,
    error::Error as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use futures::Stream;
use galoo_proto::data::{AnswerBatch, Call, CallBatch, call, call_answer, data_client::DataClient};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, transport::Channel};

use crate::{Error, Result};

/// Calls that wait to be sent; beyond it callers wait.
const WAITING_MAX: usize = 1_024;
/// Bytes of calls that travel together, but for the last one.
const BATCH_BYTES_MAX: usize = 1 << 20;

type Reply = oneshot::Sender<Result<call_answer::Result>>;

/// The callers' end of a stream. The stream ends when the last of them is gone, or when it breaks.
#[derive(Clone)]
pub(crate) struct Calls {
    waiting: mpsc::Sender<Waiting>,
}

impl Calls {
    /// Opens a stream to a node; it connects by itself.
    pub(crate) fn open(data: DataClient<Channel>) -> Self {
        let (waiting, received) = mpsc::channel(WAITING_MAX);
        let sent = Sent::default();
        let outgoing = Outgoing { received, sent: sent.clone() };
        tokio::spawn(run(data, outgoing, sent));
        Self { waiting }
    }

    /// Whether the stream has ended.
    pub(crate) fn is_broken(&self) -> bool {
        self.waiting.is_closed()
    }

    /// Makes a call and waits for its answer.
    pub(crate) async fn call(&self, request: call::Request) -> Result<call_answer::Result> {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { request: Some(request), reply: Some(reply) };
        // A call that finds the stream broken is dropped, and answered by that.
        let _ = self.waiting.send(waiting).await;
        match answer.await.unwrap_or(Err(Error::StreamEnded))? {
            call_answer::Result::Error(error) => {
                Err(Error::Status { code: Code::from_i32(error.code), message: error.message })
            }
            answer => Ok(answer),
        }
    }
}

/// A call that was not handed to the connection yet. Dropped, it is answered: it was surely not sent.
struct Waiting {
    request: Option<call::Request>,
    reply: Option<Reply>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let message = "the connection to the node broke before the call was sent".to_owned();
            let _ = reply.send(Err(Error::Status { code: Code::Unavailable, message }));
        }
    }
}

/// Who waits for an answer, by the call's number.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Replies>>);

#[derive(Default)]
struct Replies {
    waiting: HashMap<u64, Reply>,
    last_id: u64,
    /// Nothing is answered any more.
    ended: bool,
}

impl Sent {
    fn lock(&self) -> MutexGuard<'_, Replies> {
        self.0.lock().expect("nobody panics with the replies in hand")
    }

    /// Makes a call of what waited, unless nobody waits for it any more or the stream has ended.
    fn call(&self, mut waiting: Waiting) -> Option<Call> {
        let mut replies = self.lock();
        if replies.ended {
            return None;
        }
        let reply = waiting.reply.take().filter(|reply| !reply.is_closed())?;
        replies.last_id += 1;
        let id = replies.last_id;
        replies.waiting.insert(id, reply);
        Some(Call { id, request: waiting.request.take() })
    }

    fn answer(&self, batch: AnswerBatch) {
        let mut replies = self.lock();
        for answer in batch.answers {
            let Some(reply) = replies.waiting.remove(&answer.id) else { continue };
            let _ = reply.send(answer.result.ok_or(Error::Malformed("an answer without a result")));
        }
    }

    fn end(&self, error: &Error) {
        let mut replies = self.lock();
        replies.ended = true;
        for (_, reply) in replies.waiting.drain() {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// What waits, as batches for the connection.
struct Outgoing {
    received: mpsc::Receiver<Waiting>,
    sent: Sent,
}

impl Stream for Outgoing {
    type Item = CallBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<CallBatch>> {
        let Self { received, sent } = self.get_mut();
        let Some(first) = std::task::ready!(received.poll_recv(context)) else { return Poll::Ready(None) };
        let mut calls = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(waiting) = next {
            if let Some(call) = sent.call(waiting) {
                bytes += call.encoded_len();
                calls.push(call);
            }
            next = if bytes < BATCH_BYTES_MAX { received.try_recv().ok() } else { None };
        }
        Poll::Ready(Some(CallBatch { calls }))
    }
}

async fn run(mut data: DataClient<Channel>, outgoing: Outgoing, sent: Sent) {
    let broken = match data.calls(outgoing).await {
        // A node's own refusal has no cause behind it, and the node has done nothing of the stream. A connection that broke
        // says nothing of the calls that had left on it, although its code may be that of a refusal.
        Err(status) if status.source().is_none() => Error::from(status),
        Err(_) => Error::StreamEnded,
        Ok(answers) => {
            let mut answers = answers.into_inner();
            while let Ok(Some(batch)) = answers.message().await {
                sent.answer(batch);
            }
            Error::StreamEnded
        }
    };
    tracing::debug!(%broken, "a stream of calls ended");
    sent.end(&broken);
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use galoo_proto::data::GetRequest;
    use tokio::{io::AsyncReadExt, net::TcpListener};
    use tonic::transport::Endpoint;

    use super::*;

    const PLAYER: &str = "a player that is found among the bytes";

    async fn fails(addr: SocketAddr) -> Error {
        let channel = Endpoint::from_shared(format!("http://{addr}")).expect("an address").connect_lazy();
        let request = GetRequest { player_id: PLAYER.to_owned(), ..Default::default() };
        Calls::open(DataClient::new(channel)).call(call::Request::Get(request)).await.expect_err("nobody answers")
    }

    #[tokio::test]
    async fn a_call_to_where_nobody_listens_is_surely_not_done() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        drop(listener);
        assert!(fails(addr).await.is_surely_not_done());
    }

    #[tokio::test]
    async fn a_call_that_left_on_a_connection_that_broke_may_be_done() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let breaks = async {
            let (mut connection, _) = listener.accept().await.expect("connects");
            let (mut seen, mut bytes) = (Vec::new(), [0; 4_096]);
            while !seen.windows(PLAYER.len()).any(|window| window == PLAYER.as_bytes()) {
                let count = connection.read(&mut bytes).await.expect("reads");
                assert!(count > 0, "the client left before it called");
                seen.extend_from_slice(&bytes[..count]);
            }
        };
        let (error, ()) = tokio::join!(fails(addr), breaks);
        assert!(!error.is_surely_not_done() && error.is_retryable(), "{error:?}");
    }
}
