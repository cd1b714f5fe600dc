//! The demo's questions, asked in SQL.

use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use serde_json::json;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{
    GAME, ROLLUP,
    tell::{Tell, grouped},
};
use crate::cli::Failure;

/// The longest bar of the picture of a day.
const BAR_MAX: u64 = 40;
/// Properties are cut here.
const SHOWN_CHARACTERS_MAX: usize = 96;

/// Characters of a timestamp up to its day, its minute, its millisecond.
const DAY: usize = 10;
const MINUTE: usize = 16;
const MILLISECOND: usize = 23;

/// A connection to a node's Postgres front.
pub(super) struct Sql(tokio_postgres::Client);

impl Sql {
    pub(super) async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let mut config = tokio_postgres::Config::new();
        config.host(address.ip().to_string()).port(address.port()).dbname(GAME).user("galoo");
        let (client, connection) =
            config.connect(NoTls).await.map_err(|error| Failure::Unreachable(format!("{address}: {error}")))?;
        tokio::spawn(connection);
        Ok(Self(client))
    }

    /// Asks, and returns every row's columns as text; null is empty.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let messages = self.0.simple_query(sql).await.map_err(|error| match error.as_db_error() {
            Some(db) => anyhow!("{sql}: {} ({})", db.message(), db.code().code()),
            None => anyhow!("{sql}: {error}"),
        })?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|place| row.get(place).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// Asks for one number.
    pub(super) async fn number(&mut self, sql: &str) -> Result<u64, Failure> {
        let rows = self.rows(sql).await?;
        let number = rows.first().and_then(|row| row.first()).and_then(|text| text.parse().ok());
        Ok(number.with_context(|| format!("{sql}: no number in {rows:?}"))?)
    }
}

/// Players of each day.
pub(super) const DAILY_ACTIVE: &str = "SELECT date_trunc('day', event_time) AS day, count(DISTINCT player_id) \
                                       FROM events GROUP BY 1 ORDER BY 1";
/// Events by type.
pub(super) const BY_TYPE: &str = "SELECT event_type, count(*) FROM events GROUP BY 1 ORDER BY 2 DESC, 1";
/// The five who did most.
pub(super) const MOST_ACTIVE: &str = "SELECT player_id, count(*) FROM events GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5";

/// The beginning of a text: the day of a timestamp, its minute.
fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

/// Asks everything and shows the answers.
pub(super) async fn all(sql: &mut Sql, tell: &mut Tell) -> Result<(), Failure> {
    let events = sql.number("SELECT count(*) FROM events").await?;
    tell.fact("events", json!(events), &format!("events in all: {}\n", grouped(events)))?;
    let by_type = sql.rows(&format!("{BY_TYPE} LIMIT 20")).await?;
    tell.table("events_by_type", "events by type", &["type", "events"], by_type)?;
    let most = sql.rows(MOST_ACTIVE).await?;
    let player = most.first().and_then(|row| row.first()).context("nobody played")?.clone();
    tell.table("most_active_players", "most active players", &["player", "events"], most)?;
    let mut days = sql.rows(&format!("{DAILY_ACTIVE} DESC LIMIT 7")).await?;
    days.iter_mut().filter_map(|row| row.first_mut()).for_each(|day| *day = cut(day, DAY));
    tell.table("daily_active_players", "daily active players, latest days first", &["day", "players"], days)?;
    let quoted = player.replace('\'', "''");
    let last = format!(
        "SELECT event_time, event_type, properties FROM events WHERE player_id = '{quoted}' \
         ORDER BY event_time DESC, seq DESC LIMIT 10"
    );
    let mut last = sql.rows(&last).await?;
    for row in &mut last {
        for (cell, shown_max) in row.iter_mut().zip([MILLISECOND, usize::MAX, SHOWN_CHARACTERS_MAX]) {
            *cell = cut(cell, shown_max);
        }
    }
    tell.table("last_events", &format!("last ten events of {player}"), &["time", "type", "properties"], last)?;
    let state = format!("SELECT family, qualifier, value FROM state WHERE player_id = '{quoted}' ORDER BY 1, 2");
    let state = sql.rows(&state).await?;
    if state.is_empty() {
        tell.fact("state", json!([]), &format!("state of {player}: none, events alone were loaded\n"))?;
    } else {
        tell.table("state", &format!("state of {player}"), &["family", "qualifier", "value"], state)?;
    }
    let hours = format!("SELECT bucket, sum(events) FROM {ROLLUP} GROUP BY 1 ORDER BY 1 DESC LIMIT 24");
    let hours = sql.rows(&hours).await?;
    let number = |row: &[String]| row.get(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let most = hours.iter().map(|row| number(row)).max().unwrap_or(0).max(1);
    let drawn = hours.iter().map(|row| {
        let events = number(row);
        let bar = usize::try_from((events * BAR_MAX).div_ceil(most)).unwrap_or(0);
        vec![row.first().map(|hour| cut(hour, MINUTE)).unwrap_or_default(), events.to_string(), "█".repeat(bar)]
    });
    let drawn = drawn.collect();
    tell.table(
        "events_per_hour",
        &format!("events of the latest hours, from the rollup {ROLLUP}"),
        &["hour", "events", ""],
        drawn,
    )
}
