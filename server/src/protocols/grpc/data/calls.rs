//! A client's calls over one stream: many run at once, and each is answered when it is done.

use futures::{FutureExt, Stream, StreamExt, stream::FuturesUnordered};
use galoo_proto::data::{AnswerBatch, Call, CallAnswer, CallBatch, call, call_answer};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use super::{DataService, call_error};

/// Calls of one stream that run at once, but for those that came with the last of them; further ones wait in the
/// network's window.
const RUNNING_MAX: usize = 1_024;
/// Bytes of answers that travel together, but for the last one.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Batches of answers that wait to be sent; beyond it no further call is looked at.
const BATCHES_AHEAD_MAX: usize = 4;

/// Answers calls until the client ends the stream, or the node stops; what runs by then is answered.
pub(super) fn serve(
    service: DataService,
    mut calls: Streaming<CallBatch>,
    mut stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<AnswerBatch, Status>> {
    let (sink, answers) = mpsc::channel(BATCHES_AHEAD_MAX);
    tokio::spawn(async move {
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        tokio::pin!(stopped);
        let mut running = FuturesUnordered::new();
        let mut open = true;
        loop {
            tokio::select! {
                Some(first) = running.next() => {
                    let mut batch = AnswerBatch { answers: vec![first] };
                    // What is done already goes along.
                    while batch.encoded_len() < BATCH_BYTES_MAX
                        && let Some(Some(next)) = running.next().now_or_never()
                    {
                        batch.answers.push(next);
                    }
                    if sink.send(Ok(batch)).await.is_err() {
                        return;
                    }
                }
                batch = calls.message(), if open && running.len() < RUNNING_MAX => match batch {
                    Ok(Some(batch)) => running.extend(batch.calls.into_iter().map(|call| answer(service.clone(), call))),
                    Ok(None) | Err(_) => open = false,
                },
                () = &mut stopped, if open => open = false,
                else => return,
            }
        }
    });
    ReceiverStream::new(answers)
}

async fn answer(service: DataService, Call { id, request }: Call) -> CallAnswer {
    use call::Request::{Append, Get, Mutate};
    let done = match request {
        Some(Append(request)) => service.append_batch(request).await.map(call_answer::Result::Append),
        Some(Mutate(request)) => service.mutate_player(request).await.map(call_answer::Result::Mutate),
        Some(Get(request)) => service.get_cells(Request::new(request)).await.map(call_answer::Result::Get),
        None => Err(Status::unimplemented("the call asks for nothing that this version knows")),
    };
    let result = done.unwrap_or_else(|status| call_answer::Result::Error(call_error(&status)));
    CallAnswer { id, result: Some(result) }
}
