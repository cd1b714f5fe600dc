//! Writes: batches of events cut by shard, changes of one player, registrations.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use futures::future::join_all;
use galoo_proto::{
    Hlc, ShardId, Token,
    command::{
        AppendEvents, Appended, BatchId, MutatePlayer, Mutated, PropertyKinds, RegisterProducer, Rejection,
        command::Body, outcome, rejection::Reason,
    },
    data,
    ids::producer_group,
    limits::JSON_DEPTH_MAX,
    validate::{self, Invalid},
    value::{Event, mutation::Change, value::Kind},
};
use galoo_storage::properties::{self, Kinds};
use serde::de::IgnoredAny;

use super::{Game, Node, NodeError, unexpected};

/// The answer of one shard for its part of a batch.
pub struct PartResult {
    /// The shard.
    pub shard: ShardId,
    /// Events of the batch in the part.
    pub events: usize,
    /// What became of them.
    pub result: Result<Result<Appended, Rejection>, NodeError>,
}

/// Text that an error message shows of a value, at most.
const SHOWN_BYTES_MAX: usize = 80;

fn shown(text: &str) -> String {
    let mut end = text.len().min(SHOWN_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

fn check_batch(batch: Option<&BatchId>) -> Result<(), Invalid> {
    let Some(batch) = batch else { return Ok(()) };
    validate::producer_id(&batch.producer_id)?;
    if batch.acked_below > batch.number {
        let value = format!("{} above number {}", batch.acked_below, batch.number);
        return Err(Invalid::Pattern { field: "producer.acked_below", value, pattern: "acked_below <= number" });
    }
    Ok(())
}

/// Checks that what a change calls JSON is JSON.
fn check_json(request: &data::MutateRequest) -> Result<(), Invalid> {
    let put = request.mutations.iter().filter_map(|mutation| match mutation.change.as_ref()? {
        Change::Put(value) | Change::SetAdd(value) | Change::SetRemove(value) => Some(value),
        Change::Append(append) => append.value.as_ref(),
        Change::Increment(_) | Change::Delete(_) | Change::DeleteFamily(_) | Change::DeleteRow(_) => None,
    });
    let texts = put.filter_map(|value| match &value.kind {
        Some(Kind::Json(text)) => Some(text),
        _ => None,
    });
    for text in texts {
        let depth = properties::depth(text);
        let reason = match serde_json::from_str::<IgnoredAny>(text) {
            Err(error) => error.to_string(),
            Ok(_) if depth > JSON_DEPTH_MAX => format!("it nests {depth} deep; the limit is {JSON_DEPTH_MAX}"),
            Ok(_) => continue,
        };
        return Err(Invalid::Json { field: "value", value: shown(text), reason });
    }
    Ok(())
}

/// Names and kinds of one event's properties.
type EventKinds<'a> = Vec<(Cow<'a, str>, Kinds)>;

/// Checks every event of a batch and returns the kinds of each event's properties.
fn check_events(events: &[Event]) -> Result<Vec<EventKinds<'_>>, Invalid> {
    validate::batch(events)?;
    let check = |event| -> Result<EventKinds<'_>, Invalid> {
        let event: &Event = event;
        validate::event(event)?;
        properties::check(&event.properties).map_err(|error| Invalid::Json {
            field: "properties",
            value: shown(&event.properties),
            reason: error.to_string(),
        })
    };
    events.iter().map(check).collect()
}

/// Returns the union of each property's kinds, by name: a command's bytes are a function of its events.
fn all_kinds<'a>(kinds: impl Iterator<Item = &'a (Cow<'a, str>, Kinds)>) -> Vec<PropertyKinds> {
    let mut all: HashMap<&str, Kinds> = HashMap::new();
    for (name, kind) in kinds {
        let known = all.entry(name.as_ref()).or_default();
        *known = known.with(*kind);
    }
    let all = all.into_iter().map(|(name, kinds)| PropertyKinds { name: name.to_owned(), kinds: kinds.0.into() });
    let mut all: Vec<_> = all.collect();
    all.sort_by(|left, right| left.name.cmp(&right.name));
    all
}

/// Checks a batch and cuts it into its shards' commands, each with its number of events.
fn cut(game: &Game, request: data::AppendRequest) -> Result<Vec<(ShardId, usize, Body)>, Invalid> {
    check_batch(request.producer.as_ref())?;
    let parts = {
        let kinds = check_events(&request.events)?;
        let parts = game.cut(&request.events, |event| &event.player_id);
        let with_kinds = parts.into_iter().map(|(shard, range, places)| {
            let all = all_kinds(places.iter().flat_map(|place| &kinds[*place]));
            (shard, range, places, all)
        });
        with_kinds.collect::<Vec<_>>()
    };
    let mut events: Vec<Option<Event>> = request.events.into_iter().map(Some).collect();
    let commands = parts.into_iter().map(|(shard, range, places, properties)| {
        let events: Vec<_> = places.iter().filter_map(|place| events[*place].take()).collect();
        let append = AppendEvents { range: Some(range.into()), batch: request.producer.clone(), events, properties };
        (shard, places.len(), Body::Append(append))
    });
    Ok(commands.collect())
}

impl Node {
    /// Stores a batch: each shard's part is atomic and answered on its own.
    ///
    /// # Errors
    /// An error means that nothing was stored.
    pub async fn append(self: &Arc<Self>, request: data::AppendRequest) -> Result<Vec<PartResult>, NodeError> {
        Ok(self.begin_append(request).await?.await)
    }

    /// Hands a batch over to be stored; the future that comes back ends with the answers of its parts.
    ///
    /// Batches that are handed over one after the other are proposed to each shard in that order.
    ///
    /// # Errors
    /// An error means that nothing was stored.
    pub async fn begin_append(
        self: &Arc<Self>,
        request: data::AppendRequest,
    ) -> Result<impl Future<Output = Vec<PartResult>> + use<>, NodeError> {
        let game = self.game(&request.game).await?;
        let commands = cut(&game, request)?;
        let mut begun = Vec::with_capacity(commands.len());
        for (shard, events, body) in commands {
            begun.push((shard, events, self.begin(shard, body).await));
        }
        Ok(join_all(begun.into_iter().map(|(shard, events, begun)| async move {
            let answered = match begun {
                Ok(answer) => answer.await,
                Err(error) => Err(error),
            };
            let result = answered.and_then(|outcome| match outcome.result {
                Some(outcome::Result::Appended(appended)) => Ok(Ok(appended)),
                Some(outcome::Result::Rejected(rejection)) => Ok(Err(rejection)),
                _ => Err(NodeError::OutcomeUnknown { shard }),
            });
            if let Ok(Ok(Appended { count, duplicate: false, .. })) = &result {
                metrics::counter!("galoo_events_stored_total").increment((*count).into());
            }
            PartResult { shard, events, result }
        })))
    }

    /// Changes one player's state atomically, and stores events of the player with it.
    pub async fn mutate(
        self: &Arc<Self>,
        request: data::MutateRequest,
    ) -> Result<Result<Mutated, Rejection>, NodeError> {
        let game = self.game(&request.game).await?;
        validate::change(&request)?;
        check_json(&request)?;
        check_batch(request.producer.as_ref())?;
        let properties = all_kinds(check_events(&request.events)?.iter().flatten());
        let events = request.events.len() as u64;
        let (shard, range) = game.shards.find(Token::of(&request.player_id));
        let body = Body::Mutate(MutatePlayer {
            range: Some(range.into()),
            batch: request.producer,
            player_id: request.player_id,
            preconditions: request.preconditions,
            mutations: request.mutations,
            events: request.events,
            properties,
        });
        match self.propose(shard, body).await?.result {
            Some(outcome::Result::Mutated(mutated)) => {
                let stored = if mutated.duplicate { 0 } else { events };
                metrics::counter!("galoo_events_stored_total").increment(stored);
                Ok(Ok(mutated))
            }
            Some(outcome::Result::Rejected(rejection)) if rejection.reason() != Reason::Reroute => Ok(Err(rejection)),
            _ => Err(NodeError::OutcomeUnknown { shard }),
        }
    }

    /// Makes a producer known, or tells when it first was.
    pub async fn register_producer(self: &Arc<Self>, game: &str, producer_id: &str) -> Result<Hlc, NodeError> {
        let game = self.game(game).await?;
        validate::producer_id(producer_id)?;
        let (shard, range) = game.shards.find(Token::of(producer_group(producer_id)));
        let register = RegisterProducer { range: Some(range.into()), producer_id: producer_id.to_owned() };
        let outcome = self.propose(shard, Body::RegisterProducer(register)).await?;
        match &outcome.result {
            Some(outcome::Result::Registered(registered)) => Ok(Hlc(registered.registered_at)),
            _ => Err(unexpected(shard, &outcome)),
        }
    }

    /// Moves the time before which a shard's state cannot be read any more.
    pub async fn move_gc_time(self: &Arc<Self>, shard: ShardId, to: Hlc) -> Result<(), NodeError> {
        let outcome = self.propose(shard, Body::MoveGcTime(galoo_proto::command::MoveGcTime { to: to.0 })).await?;
        match &outcome.result {
            Some(outcome::Result::GcTimeMoved(_)) => Ok(()),
            _ => Err(unexpected(shard, &outcome)),
        }
    }

    /// Moves the time before which a shard's events are not read any more.
    pub async fn drop_events_before(self: &Arc<Self>, shard: ShardId, time_ms: i64) -> Result<(), NodeError> {
        let body = Body::DropEventsBefore(galoo_proto::command::DropEventsBefore { time_ms });
        let outcome = self.propose(shard, body).await?;
        match &outcome.result {
            Some(outcome::Result::EventsDropped(_)) => Ok(()),
            _ => Err(unexpected(shard, &outcome)),
        }
    }

    /// Seals a shard's open chunk, if it is still this one.
    pub async fn seal(self: &Arc<Self>, shard: ShardId, chunk: galoo_proto::ChunkId) -> Result<bool, NodeError> {
        let outcome = self.propose(shard, Body::Seal(galoo_proto::command::Seal { chunk: chunk.0 })).await?;
        match &outcome.result {
            Some(outcome::Result::Sealed(sealed)) => Ok(sealed.closed),
            _ => Err(unexpected(shard, &outcome)),
        }
    }
}
