//! What commands print: tables for people, one JSON value a line for programs.

use std::{
    fmt::Display,
    io::{ErrorKind, Write},
};

use comfy_table::{Table, presets::NOTHING};
use galoo_proto::value::{StoredEvent, Value, value::Kind};
use serde_json::json;

use super::Failure;

/// Prints a line; fails with [`Failure::Unread`] when whoever read the output is gone.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    printed(writeln!(std::io::stdout(), "{text}"))
}

/// What writing to standard output came to.
pub(super) fn printed(written: std::io::Result<()>) -> Result<(), Failure> {
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Unread,
        _ => Failure::Failed(anyhow::Error::new(error).context("cannot write to standard output")),
    })
}

/// Says something beside the output; where nobody hears it, nothing is lost.
pub(super) fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints rows under a header, columns aligned; fails as [`line()`] does.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    line(table)
}

/// A cell's value as JSON; bytes as hexadecimal digits.
pub(super) fn value_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::Null(_)) => serde_json::Value::Null,
        Some(Kind::Bool(value)) => json!(value),
        Some(Kind::Int(value)) => json!(value),
        Some(Kind::Float(value)) => json!(value),
        Some(Kind::String(text)) => json!(text),
        Some(Kind::Json(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Some(Kind::Bytes(bytes)) => json!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// An event as one JSON object; the properties' text stays as it is.
pub(super) fn event_json(stored: &StoredEvent) -> String {
    let event = stored.event.clone().unwrap_or_default();
    let properties = if event.properties.is_empty() { "{}" } else { &event.properties };
    format!(
        r#"{{"player_id":{},"event_time_ms":{},"event_type":{},"shard":{},"seq":{},"properties":{properties}}}"#,
        json!(event.player_id),
        event.event_time_ms,
        json!(event.event_type),
        stored.shard,
        stored.seq,
    )
}

/// A time as people read it.
pub(super) fn time_text(unix_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(unix_ms)
        .map_or_else(|| unix_ms.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
}
