//! A client's calls over one stream: many run at once, and each is answered when it is done.

use futures::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use galoo_proto::data::{AnswerBatch, Call, CallAnswer, CallBatch, call, call_answer};
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Status, Streaming};

use super::{DataService, call_error};

/// Calls of one stream that run at once, but for those that came with the last of them; further ones wait in the
/// network's window.
const RUNNING_MAX: usize = 1_024;
/// Bytes of answers that travel together, but for the last one.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Answers calls until the client ends the stream, or the node stops; what runs by then is answered.
///
/// While the connection takes no answers, no further call is looked at.
pub(super) fn serve(
    service: DataService,
    calls: Streaming<CallBatch>,
    mut stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<AnswerBatch, Status>> {
    let stopped = async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let serving = Serving { service, calls, open: true, stopped: stopped.boxed(), running: FuturesUnordered::new() };
    stream::unfold(serving, |mut serving| async move { Some((Ok(serving.answers().await?), serving)) })
}

struct Serving {
    service: DataService,
    calls: Streaming<CallBatch>,
    /// Whether calls may come.
    open: bool,
    stopped: BoxFuture<'static, ()>,
    running: FuturesUnordered<BoxFuture<'static, CallAnswer>>,
}

impl Serving {
    /// The answers that are there next, together; none when no call runs any more and none will come.
    async fn answers(&mut self) -> Option<AnswerBatch> {
        loop {
            tokio::select! {
                Some(first) = self.running.next() => {
                    let mut bytes = first.encoded_len();
                    let mut answers = vec![first];
                    // What is done already goes along.
                    while bytes < BATCH_BYTES_MAX && let Some(Some(next)) = self.running.next().now_or_never() {
                        bytes += next.encoded_len();
                        answers.push(next);
                    }
                    return Some(AnswerBatch { answers });
                }
                batch = self.calls.message(), if self.open && self.running.len() < RUNNING_MAX => match batch {
                    Ok(Some(batch)) => {
                        let begun = batch.calls.into_iter().map(|call| answer(self.service.clone(), call).boxed());
                        self.running.extend(begun);
                    }
                    Ok(None) | Err(_) => self.open = false,
                },
                () = &mut self.stopped, if self.open => self.open = false,
                else => return None,
            }
        }
    }
}

async fn answer(service: DataService, Call { id, request }: Call) -> CallAnswer {
    use call::Request::{Append, Get, Mutate};
    let done = match request {
        Some(Append(request)) => service.append_batch(request).await.map(call_answer::Result::Append),
        Some(Mutate(request)) => service.mutate_player(request).await.map(call_answer::Result::Mutate),
        // In a box: the future of every call would hold the room of one that asks another node.
        Some(Get(request)) => Box::pin(service.get_cells(Request::new(request))).await.map(call_answer::Result::Get),
        None => Err(Status::unimplemented("the call asks for nothing that this version knows")),
    };
    let result = done.unwrap_or_else(|status| call_answer::Result::Error(call_error(&status)));
    CallAnswer { id, result: Some(result) }
}
