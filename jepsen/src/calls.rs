//! What clients of a test ask of a game: events with ids of their own, counters, and what is stored in the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use galoo_client::Client;
use galoo_proto::{
    command::BatchId,
    data::{GetRequest, MutateRequest, ScanGameRequest},
    value::{Event, Mutation, Value, mutation::Change, value::Kind},
};

const FAMILY: &str = "stats";
const QUALIFIER: &str = "count";

/// An event with an id in its properties.
pub fn event(id: &str, player: &str, event_time_ms: i64, event_type: &str, gold: u64) -> Event {
    Event {
        player_id: player.to_owned(),
        event_time_ms,
        event_type: event_type.to_owned(),
        properties: format!(r#"{{"id":"{id}","gold":{gold}}}"#),
        ..Default::default()
    }
}

/// The id of such an event.
///
/// # Errors
/// When it has none.
pub fn id_of(event: &Event) -> Result<String> {
    let properties: serde_json::Value = serde_json::from_str(&event.properties)?;
    Ok(properties["id"].as_str().context("an event without an id")?.to_owned())
}

/// A player's counter, one higher.
pub fn increment(game: &str, player: &str, producer: Option<BatchId>) -> MutateRequest {
    let change = Some(Change::Increment(1));
    let one = Mutation { family: FAMILY.to_owned(), qualifier: QUALIFIER.to_owned(), change, ..Default::default() };
    let (game, player_id) = (game.to_owned(), player.to_owned());
    MutateRequest { game, producer, player_id, mutations: vec![one], ..Default::default() }
}

/// Reads a player's counter.
pub fn count_of(game: &str, player: &str) -> GetRequest {
    let (family, qualifier) = (FAMILY.to_owned(), QUALIFIER.to_owned());
    GetRequest { game: game.to_owned(), player_id: player.to_owned(), family, qualifier, ..Default::default() }
}

/// A counter's value.
///
/// # Errors
/// When it is no count.
pub fn int(value: Option<&Value>) -> Result<u64> {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::Int(value)) => Ok(u64::try_from(*value)?),
        other => bail!("no count: {other:?}"),
    }
}

/// The ids of all stored events, by shard and seq.
///
/// # Errors
/// When the game cannot be read, or a place has two events.
pub async fn stored(client: &Client, game: &str) -> Result<BTreeMap<(u64, u64), String>> {
    let request = ScanGameRequest { game: game.to_owned(), ..Default::default() };
    let mut pages = std::pin::pin!(client.scan_game(request).await?);
    let mut events = BTreeMap::new();
    while let Some(page) = pages.try_next().await? {
        for stored in page.events {
            let id = id_of(&stored.event.context("a place without an event")?)?;
            if let Some(other) = events.insert((stored.shard, stored.seq), id) {
                bail!("s{} has #{} twice, once as {other}", stored.shard, stored.seq);
            }
        }
    }
    Ok(events)
}
