//! Exactly-once appends: a producer's numbered batches over one ordered stream.

use std::collections::VecDeque;

use galoo_proto::{
    Hlc,
    command::BatchId,
    data::{AppendPart, AppendRequest, AppendResponse, append_part, part_error::Code},
    value::Event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{Backoff, Client, Error, Repeat, Result};

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Events that were stored now.
    pub stored: u64,
    /// Events that had been stored before.
    pub duplicates: u64,
}

/// Reads the answers of a batch's parts: all stored, or the first error.
pub(crate) fn stored(response: &AppendResponse) -> Result<Stored> {
    if let Some(error) = &response.error {
        let code = tonic::Code::from_i32(error.code);
        return Err(Error::Status { code, message: error.message.clone() });
    }
    let mut all = Stored::default();
    for part in &response.parts {
        match &part.result {
            Some(append_part::Result::Appended(appended)) => {
                let now = if appended.duplicate { 0 } else { u64::from(appended.count) };
                all.stored += now;
                all.duplicates += u64::from(part.events) - now.min(u64::from(part.events));
            }
            Some(append_part::Result::Error(error)) => {
                let (shard, message) = (part.shard, error.message.clone());
                return Err(match error.code() {
                    Code::Retry => Error::PartRetry { shard, message },
                    Code::Rejected => {
                        let rejection = Box::new(error.rejection.clone().unwrap_or_default());
                        Error::Rejected { shard, message, rejection }
                    }
                    Code::OutcomeUnknown | Code::Unspecified => Error::OutcomeUnknown { shard, message },
                });
            }
            None => return Err(Error::Malformed("a part without a result")),
        }
    }
    Ok(all)
}

/// Returns a batch's answer if there is nothing left to try: an error is worth another try, as far as `repeat` allows it.
pub(crate) fn decided(response: AppendResponse, repeat: Repeat) -> Result<AppendResponse> {
    let refused = |part: &AppendPart| matches!(&part.result, Some(append_part::Result::Error(error)) if error.code() == Code::Retry);
    match stored(&response) {
        // Nothing of it is stored.
        Err(Error::PartRetry { message, .. }) if response.parts.iter().all(refused) => {
            Err(Error::Status { code: tonic::Code::Unavailable, message })
        }
        // What was stored is known by its number: the parts that were not, or perhaps not, are worth another try.
        Err(error) if repeat == Repeat::Always && error.is_retryable() => Err(error),
        _ => Ok(response),
    }
}

/// A registered producer of one game.
#[derive(Clone)]
pub struct Producer {
    client: Client,
    game: String,
    producer_id: String,
    registered_at: Hlc,
}

impl Producer {
    /// Registers a producer, or finds it as it first was.
    pub async fn register(client: &Client, game: &str, producer_id: &str) -> Result<Self> {
        let registered_at = client.register_producer(game, producer_id).await?;
        Ok(Self { client: client.clone(), game: game.to_owned(), producer_id: producer_id.to_owned(), registered_at })
    }

    /// Returns what a request of this producer carries. `acked_below` is at most `number`.
    pub fn stamp(&self, number: u64, acked_below: u64) -> BatchId {
        BatchId {
            producer_id: self.producer_id.clone(),
            epoch: 0,
            number,
            acked_below,
            registered_at: self.registered_at.0,
            may_grow: false,
        }
    }

    /// Opens a stream of batches; at most `window` of them are unanswered at a time.
    pub async fn stream(&self, window: usize) -> Result<AppendStream> {
        let window = window.max(1);
        let lane = Lane::open(&self.client, window).await?;
        Ok(AppendStream { producer: self.clone(), lane: Some(lane), waiting: VecDeque::new(), window })
    }
}

/// One stream to one node.
struct Lane {
    addr: String,
    requests: mpsc::Sender<AppendRequest>,
    answers: Streaming<AppendResponse>,
}

impl Lane {
    async fn open(client: &Client, window: usize) -> Result<Self> {
        let addr = client.nodes.any();
        let (requests, receiver) = mpsc::channel(window);
        let opened = client.nodes.data(&addr)?.append_stream(ReceiverStream::new(receiver)).await;
        let answers = opened.inspect_err(|_| client.nodes.failed(&addr))?.into_inner();
        Ok(Self { addr, requests, answers })
    }
}

/// The answer to one batch of a stream.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The batch's number.
    pub number: u64,
    /// What became of it.
    pub stored: Stored,
}

/// Batches on their way, answered in the order in which they were sent.
///
/// When the stream or its node breaks, what is not answered goes to another node under the same numbers.
pub struct AppendStream {
    producer: Producer,
    lane: Option<Lane>,
    waiting: VecDeque<AppendRequest>,
    window: usize,
}

impl AppendStream {
    /// Sends a batch under a number above all sent before, once there is room for it.
    ///
    /// Returns the answers that came in meanwhile. `may_grow` marks a batch that a later run may send again with more
    /// events behind these.
    pub async fn send(&mut self, number: u64, events: Vec<Event>, may_grow: bool) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while self.waiting.len() >= self.window {
            answers.push(self.answer().await?);
        }
        let acked_below =
            self.waiting.front().and_then(|first| first.producer.as_ref()).map_or(number, |first| first.number);
        let stamp = BatchId { may_grow, ..self.producer.stamp(number, acked_below) };
        let request = AppendRequest { game: self.producer.game.clone(), producer: Some(stamp), events };
        if let Some(lane) = &self.lane {
            // A broken stream shows when its answer is awaited; the batch is then sent again with the others.
            let _ = lane.requests.send(request.clone()).await;
        }
        self.waiting.push_back(request);
        Ok(answers)
    }

    /// Waits for the answers to everything that was sent.
    pub async fn finish(mut self) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while !self.waiting.is_empty() {
            answers.push(self.answer().await?);
        }
        Ok(answers)
    }

    /// Awaits the oldest batch's answer; a batch that failed in passing is sent again until it is stored.
    async fn answer(&mut self) -> Result<Answer> {
        let mut backoff = Backoff::new();
        let response = loop {
            let answered = match &mut self.lane {
                Some(lane) => lane.answers.message().await.map_err(Error::from),
                None => Err(Error::StreamEnded),
            };
            let error = match answered {
                Ok(Some(response)) => break response,
                Ok(None) => Error::StreamEnded,
                Err(error) => error,
            };
            if let Some(lane) = self.lane.take() {
                tracing::debug!(%error, addr = lane.addr, "the stream of batches broke");
                self.producer.client.nodes.failed(&lane.addr);
            }
            if !error.is_retryable() || !backoff.wait().await {
                return Err(error);
            }
            self.reopen().await;
        };
        let request = self.waiting.pop_front().ok_or(Error::StreamEnded)?;
        let number = request.producer.as_ref().map_or(0, |stamp| stamp.number);
        let stored_now = match stored(&response) {
            Ok(stored) => stored,
            Err(error) if error.is_retryable() => self.store(&request).await?,
            Err(error) => return Err(error),
        };
        Ok(Answer { number, stored: stored_now })
    }

    /// Opens a stream to another node and sends again what waits for an answer, in order.
    async fn reopen(&mut self) {
        let Ok(lane) = Lane::open(&self.producer.client, self.window).await else { return };
        for request in &self.waiting {
            if lane.requests.send(request.clone()).await.is_err() {
                break;
            }
        }
        self.lane = Some(lane);
    }

    /// Sends one batch by itself until it is stored.
    async fn store(&self, request: &AppendRequest) -> Result<Stored> {
        stored(&self.producer.client.append_batch(request, Repeat::Always).await?)
    }
}

#[cfg(test)]
mod tests {
    use galoo_proto::{command::Appended, data::PartError};

    use super::*;

    fn answer(parts: &[Option<Code>]) -> AppendResponse {
        let part = |failed: &Option<Code>| {
            let result = match failed {
                None => append_part::Result::Appended(Appended { count: 1, ..Default::default() }),
                Some(code) => append_part::Result::Error(PartError { code: (*code).into(), ..Default::default() }),
            };
            AppendPart { shard: 1, events: 1, result: Some(result) }
        };
        AppendResponse { parts: parts.iter().map(part).collect(), ..Default::default() }
    }

    #[test]
    fn a_batch_is_sent_again_until_each_part_is_decided() {
        let (stored, unknown, retry, rejected) =
            (None, Some(Code::OutcomeUnknown), Some(Code::Retry), Some(Code::Rejected));
        // Parts; whether it is sent again with a producer's number, and without one.
        let cases: [(&[_], bool, bool); 7] = [
            (&[stored, stored], false, false),
            (&[stored, unknown], true, false),
            (&[unknown], true, false),
            (&[stored, retry], true, false),
            (&[retry, unknown], true, false),
            (&[retry, retry], true, true),
            (&[stored, rejected], false, false),
        ];
        for (parts, numbered, plain) in cases {
            for (repeat, again) in [(Repeat::Always, numbered), (Repeat::IfNotDone, plain)] {
                let decided = decided(answer(parts), repeat);
                assert_eq!(decided.is_err_and(|error| repeat.allows(&error)), again, "{parts:?}, {again} expected");
            }
        }
    }
}
