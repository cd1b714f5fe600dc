//! Events and state from the command line: append, get, put, scan, tail.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
};

use clap::{
    ArgGroup, Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use futures::StreamExt;
use galoo_proto::{
    data::{AppendRequest, EventFilter, ScanGameRequest, ScanPlayerRequest, TailRequest},
    limits::PLAYER_ID_BYTES_MAX,
    value::{Event, Mutation, Null, StoredEvent, Value, mutation::Change, value::Kind},
};
use serde_json::json;

use super::{Connection, Failure, output};
use crate::node::unix_ms;

/// A player's id: clap itself does not say which argument is not UTF-8.
fn player_id() -> impl TypedValueParser<Value = String> {
    let text = |id: OsString| {
        let said = |id: OsString| format!("player_id is {id:?}; an id is 1 to {PLAYER_ID_BYTES_MAX} bytes of UTF-8");
        id.into_string().map_err(said)
    };
    OsStringValueParser::new().try_map(text)
}

#[derive(Args)]
pub(super) struct AppendArgs {
    /// The player
    #[arg(value_parser = player_id())]
    player: String,
    /// The event's type
    event_type: String,
    /// A JSON object
    #[arg(long, default_value = "{}")]
    properties: String,
    /// Unix milliseconds [default: now]
    #[arg(long, allow_negative_numbers = true)]
    time: Option<i64>,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn append(args: AppendArgs) -> Result<(), Failure> {
    let event = Event {
        player_id: args.player,
        event_time_ms: args.time.unwrap_or_else(|| unix_ms().cast_signed()),
        event_type: args.event_type,
        properties: args.properties,
    };
    let request = AppendRequest { game: args.game, producer: None, events: vec![event] };
    let stored = args.connection.connect().await?.append(request).await?;
    if args.connection.json {
        output::line(json!({"events_stored": stored.stored}))
    } else {
        output::line(format_args!("stored {} event", stored.stored))
    }
}

#[derive(Args)]
pub(super) struct GetArgs {
    /// The player
    #[arg(value_parser = player_id())]
    player: String,
    /// FAMILY or FAMILY:QUALIFIER [default: everything]
    cell: Option<String>,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn get(args: GetArgs) -> Result<(), Failure> {
    let cell = args.cell.unwrap_or_default();
    let (family, qualifier) = cell.split_once(':').unwrap_or((&cell, ""));
    let cells = args.connection.connect().await?.get(&args.game, &args.player, family, qualifier).await?;
    if args.connection.json {
        for cell in cells {
            let value = cell.value.as_ref().map(output::value_json);
            let (family, qualifier, version) = (cell.family, cell.qualifier, cell.version);
            output::line(json!({"family": family, "qualifier": qualifier, "value": value, "version": version}))?;
        }
        Ok(())
    } else {
        let row = |cell: galoo_proto::value::Cell| {
            let value = cell.value.as_ref().map_or_else(String::new, |value| output::value_json(value).to_string());
            vec![cell.family, cell.qualifier, value, cell.version.to_string()]
        };
        output::table(&["family", "qualifier", "value", "version"], cells.into_iter().map(row))
    }
}

#[derive(Args)]
#[command(group(ArgGroup::new("change").required(true).args(["value", "increment", "delete"])))]
pub(super) struct PutArgs {
    /// The player
    #[arg(value_parser = player_id())]
    player: String,
    /// FAMILY:QUALIFIER
    cell: String,
    /// The new value: JSON (a number, true, null, "text", an object); anything else is taken as text
    #[arg(allow_negative_numbers = true)]
    value: Option<String>,
    /// Add to an integer instead
    #[arg(long, allow_negative_numbers = true)]
    increment: Option<i64>,
    /// Delete the cell instead
    #[arg(long)]
    delete: bool,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

/// Reads a value as people type it.
fn parse_value(text: &str) -> Value {
    let kind = match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Null) => Kind::Null(Null::Null.into()),
        Ok(serde_json::Value::Bool(value)) => Kind::Bool(value),
        Ok(serde_json::Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => Kind::Int(int),
            (None, Some(float)) => Kind::Float(float),
            (None, None) => Kind::Json(text.to_owned()),
        },
        Ok(serde_json::Value::String(text)) => Kind::String(text),
        Ok(_) => Kind::Json(text.to_owned()),
        Err(_) => Kind::String(text.to_owned()),
    };
    Value { kind: Some(kind) }
}

pub(super) async fn put(args: PutArgs) -> Result<(), Failure> {
    let Some((family, qualifier)) = args.cell.split_once(':') else {
        return Err(Failure::Refused(format!("cell is {:?}; it must be FAMILY:QUALIFIER", args.cell)));
    };
    let change = match (args.value, args.increment) {
        (Some(value), _) => Change::Put(parse_value(&value)),
        (None, Some(by)) => Change::Increment(by),
        (None, None) => Change::Delete(Null::Null.into()),
    };
    let mutation = Mutation { family: family.to_owned(), qualifier: qualifier.to_owned(), change: Some(change) };
    let client = args.connection.connect().await?;
    match client.mutate(&args.game, &args.player, vec![], vec![mutation], None).await? {
        Err(rejection) => Err(Failure::Refused(rejection.detail)),
        Ok(mutated) => {
            let value = mutated.values.first().map_or(serde_json::Value::Null, output::value_json);
            if args.connection.json {
                output::line(json!({"value": value, "version": mutated.version}))
            } else {
                output::line(value)
            }
        }
    }
}

#[derive(Args)]
pub(super) struct ScanArgs {
    /// Only this player's events, in order of time
    #[arg(long, value_parser = player_id())]
    player: Option<String>,
    /// From this time on (Unix milliseconds)
    #[arg(long, allow_negative_numbers = true)]
    from: Option<i64>,
    /// Before this time (Unix milliseconds)
    #[arg(long, allow_negative_numbers = true)]
    to: Option<i64>,
    /// Only events of this type; may be given several times
    #[arg(long = "type")]
    event_types: Vec<String>,
    /// At most so many events; 0: all
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// A player's newest events first
    #[arg(long, requires = "player")]
    newest_first: bool,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

fn print_events(events: &[StoredEvent], json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for stored in events {
        if json {
            writeln!(out, "{}", output::event_json(stored))?;
        } else {
            let event = stored.event.clone().unwrap_or_default();
            let time = output::time_text(event.event_time_ms);
            writeln!(out, "{time}  {}  {}  {}", event.player_id, event.event_type, event.properties)?;
        }
    }
    out.flush()
}

pub(super) async fn scan(args: ScanArgs) -> Result<(), Failure> {
    let client = args.connection.connect().await?;
    let filter = Some(EventFilter { from_ms: args.from, to_ms: args.to, event_types: args.event_types });
    let mut pages = match args.player {
        Some(player_id) => {
            let request = ScanPlayerRequest {
                game: args.game,
                player_id,
                filter,
                newest_first: args.newest_first,
                limit: args.limit,
                cursor: vec![],
            };
            client.scan_player(request).await?.boxed()
        }
        None => {
            let request = ScanGameRequest { game: args.game, filter, limit: args.limit, cursor: vec![] };
            client.scan_game(request).await?.boxed()
        }
    };
    while let Some(page) = pages.next().await {
        output::printed(print_events(&page?.events, args.connection.json))?;
    }
    Ok(())
}

#[derive(Args)]
pub(super) struct TailArgs {
    /// Begin with the first event instead of the next one
    #[arg(long)]
    from_start: bool,
    /// End after so many events; 0: never
    #[arg(long, default_value_t = 0)]
    limit: usize,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn tail(args: TailArgs) -> Result<(), Failure> {
    let client = args.connection.connect().await?;
    let request = TailRequest { game: args.game, after: vec![], from_start: args.from_start };
    let mut pages = client.tail(request).await?.boxed();
    if std::io::stderr().is_terminal() {
        output::say("following; Ctrl-C ends");
    }
    let mut left = if args.limit == 0 { usize::MAX } else { args.limit };
    while let Some(page) = pages.next().await {
        let mut page = page?;
        page.truncate(left);
        left -= page.len();
        output::printed(print_events(&page, args.connection.json))?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn put(change: &[&str]) -> PutArgs {
        let words = [&["galoo", "put", "--game", "g", "ann", "s:x"], change].concat();
        match Cli::try_parse_from(&words).map(|cli| cli.command) {
            Ok(Command::Put(args)) => args,
            Ok(_) => panic!("{words:?} is no put"),
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    #[test]
    fn numbers_may_be_negative() {
        for value in ["-5", "-2.5", "5"] {
            assert_eq!(put(&[value]).value.as_deref(), Some(value));
        }
        assert_eq!(put(&["--increment", "-5"]).increment, Some(-5));
    }
}
