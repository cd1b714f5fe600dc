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
    Hlc,
    data::{
        AppendRequest, EventFilter, GetRequest, MutateRequest, Projection, PropertyCondition, QualifierRange,
        ScanGameRequest, ScanPlayerRequest, TailRequest, property_condition::Test as Asked,
    },
    limits::PLAYER_ID_BYTES_MAX,
    value::{
        Event, FamilyDefinition, ListAppend, Mutation, Null, Precondition, StoredEvent, Value, ValueKind,
        mutation::Change, precondition::Test, value::Kind,
    },
};
use serde_json::json;

use super::{Connection, Failure, duration::duration_or_never_ms, output};
use crate::node::unix_ms;

/// A player's id: clap itself does not say which argument is not UTF-8.
pub(super) fn player_id() -> impl TypedValueParser<Value = String> {
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
    /// Your name for the event: one of the player's with the same id that was stored within a day is not stored again
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    event_id: String,
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
        event_id: args.event_id,
    };
    let request = AppendRequest { game: args.game, producer: None, events: vec![event] };
    let stored = args.connection.connect().await?.append(request).await?;
    if args.connection.json {
        output::line(json!({"events_stored": stored.stored}))
    } else if stored.stored == 0 {
        output::line("an event with this id was stored before")
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
    /// Of the family, qualifiers that begin so
    #[arg(long, requires = "cell", conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// Of the family, qualifiers from this one on
    #[arg(long, requires = "cell")]
    from: Option<String>,
    /// Of the family, qualifiers before this one
    #[arg(long, requires = "cell")]
    to: Option<String>,
    /// As it was at this time (Unix milliseconds)
    #[arg(long, value_name = "MS")]
    as_of: Option<u64>,
    /// So many values of each cell, the newest first, as far as its family keeps them
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    versions: u32,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

/// A cell as JSON.
pub(super) fn cell_json(cell: &galoo_proto::value::Cell) -> serde_json::Value {
    let value = cell.value.as_ref().map(output::value_json);
    let expires_ms = Some(cell.expires_ms).filter(|expires_ms| *expires_ms > 0);
    json!({
        "family": cell.family,
        "qualifier": cell.qualifier,
        "value": value,
        "version": cell.version,
        "expires_ms": expires_ms,
    })
}

/// Parts FAMILY:QUALIFIER; without a colon it is a family.
fn cell_name(cell: &str) -> (String, String) {
    let (family, qualifier) = cell.split_once(':').unwrap_or((cell, ""));
    (family.to_owned(), qualifier.to_owned())
}

/// The last moment of a millisecond.
fn end_of(ms: u64) -> Result<Hlc, Failure> {
    let next = ms.checked_add(1).filter(|next| *next < 1 << 48);
    let next =
        next.ok_or_else(|| Failure::Refused(format!("--as-of is {ms}; it must be Unix milliseconds below 2^48")))?;
    Ok(Hlc(Hlc::from_millis(next).0 - 1))
}

pub(super) async fn get(args: GetArgs) -> Result<(), Failure> {
    let (family, qualifier) = cell_name(&args.cell.unwrap_or_default());
    let qualifiers = (args.from.is_some() || args.to.is_some())
        .then(|| QualifierRange { from: args.from.unwrap_or_default(), to: args.to.unwrap_or_default() });
    let request = GetRequest {
        game: args.game,
        player_id: args.player,
        family,
        qualifier,
        qualifier_prefix: args.prefix.unwrap_or_default(),
        qualifiers,
        as_of: args.as_of.map_or(Ok(0), |ms| end_of(ms).map(|as_of| as_of.0))?,
        versions: args.versions,
    };
    let cells = args.connection.connect().await?.get(request).await?;
    if args.connection.json {
        cells.iter().try_for_each(|cell| output::line(cell_json(cell)))
    } else {
        let row = |cell: galoo_proto::value::Cell| {
            let value = cell.value.as_ref().map_or_else(String::new, |value| output::value_json(value).to_string());
            let expires = match cell.expires_ms {
                0 => "never".to_owned(),
                ms => output::time_text(ms.cast_signed()),
            };
            vec![cell.family, cell.qualifier, value, cell.version.to_string(), expires]
        };
        output::table(&["family", "qualifier", "value", "version", "expires"], cells.into_iter().map(row))
    }
}

#[derive(Args)]
#[command(group(ArgGroup::new("change").required(true).args(["value", "increment", "append", "add", "remove", "delete"])))]
#[command(group(ArgGroup::new("condition").args(["if_absent", "if_exists", "if_equals", "if_version"])))]
pub(super) struct PutArgs {
    /// The player
    #[arg(value_parser = player_id())]
    player: String,
    /// FAMILY:QUALIFIER
    #[arg(required_unless_present = "delete")]
    cell: Option<String>,
    /// The new value: JSON (a number, true, null, "text", an object); anything else is taken as text. Where the family is
    /// declared with a kind: that
    #[arg(allow_negative_numbers = true)]
    value: Option<String>,
    /// Add to an integer instead
    #[arg(long, value_name = "BY", allow_negative_numbers = true)]
    increment: Option<i64>,
    /// Refuse to go below
    #[arg(long, requires = "increment", allow_negative_numbers = true)]
    floor: Option<i64>,
    /// Refuse to go above
    #[arg(long, requires = "increment", allow_negative_numbers = true)]
    ceiling: Option<i64>,
    /// Add to the end of a list instead
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    append: Option<String>,
    /// Keep so many elements of the list, the newest [default: all]
    #[arg(long, value_name = "COUNT", requires = "append", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Add to a set instead
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    add: Option<String>,
    /// Remove from a set instead
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    remove: Option<String>,
    /// Delete instead: the cell, with FAMILY alone all of the family, with neither all of the player
    #[arg(long)]
    delete: bool,
    /// Only if the cell is not there
    #[arg(long)]
    if_absent: bool,
    /// Only if the cell is there
    #[arg(long)]
    if_exists: bool,
    /// Only if the cell has this value
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    if_equals: Option<String>,
    /// Only if the cell (when all of the player is deleted: the row) was last changed by this version; 0: if it is not there
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// The new value expires so long after: 500ms, 90s, 15m, 12h, 30d; or never [default: as the family says]
    #[arg(long, value_name = "TIME", conflicts_with = "delete", value_parser = duration_or_never_ms)]
    ttl: Option<u64>,
    /// Store an event of this type with the change
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// The event's properties, a JSON object
    #[arg(long, requires = "event", default_value = "{}")]
    properties: String,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

/// Reads a value as people type it, of the kind that its family holds.
fn parse_value(text: &str, kind: ValueKind) -> Result<Value, Failure> {
    let json = || serde_json::from_str::<serde_json::Value>(text).ok();
    let parsed = match kind {
        ValueKind::Any => return Ok(guessed_value(text)),
        ValueKind::Bool => json().and_then(|value| value.as_bool()).map(Kind::Bool),
        ValueKind::Int => text.parse().ok().map(Kind::Int),
        ValueKind::Float => text.parse().ok().map(Kind::Float),
        ValueKind::String => Some(Kind::String(text.to_owned())),
        ValueKind::Bytes => bytes_of_hex(text).map(Kind::Bytes),
        ValueKind::Json => json().map(|_| Kind::Json(text.to_owned())),
    };
    let kind = match kind {
        ValueKind::Bytes => "bytes, in hexadecimal digits".to_owned(),
        kind => kind.as_str_name().to_lowercase(),
    };
    let said = || Failure::Refused(format!("value is {text:?}; its family holds {kind}"));
    parsed.map(|kind| Value { kind: Some(kind) }).ok_or_else(said)
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
}

/// Reads a value of any kind.
fn guessed_value(text: &str) -> Value {
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

/// The change that the arguments ask for, of the cell that they name.
///
/// The elements of a list or set are of any kind.
fn mutation(args: &PutArgs, kind: ValueKind, family: String, qualifier: String) -> Result<Mutation, Failure> {
    let null = i32::from(Null::Null);
    let change = if args.delete {
        match (family.as_str(), qualifier.as_str()) {
            ("", "") => Change::DeleteRow(null),
            (_, "") => Change::DeleteFamily(null),
            _ => Change::Delete(null),
        }
    } else if family.is_empty() || qualifier.is_empty() {
        let cell = args.cell.as_deref().unwrap_or_default();
        return Err(Failure::Refused(format!("cell is {cell:?}; it must be FAMILY:QUALIFIER")));
    } else if let Some(by) = args.increment {
        Change::Increment(by)
    } else if let Some(element) = &args.append {
        Change::Append(ListAppend { value: Some(guessed_value(element)), elements_max: args.keep.unwrap_or(0) })
    } else if let Some(element) = &args.add {
        Change::SetAdd(guessed_value(element))
    } else if let Some(element) = &args.remove {
        Change::SetRemove(guessed_value(element))
    } else {
        Change::Put(parse_value(args.value.as_deref().unwrap_or_default(), kind)?)
    };
    Ok(Mutation { family, qualifier, change: Some(change), floor: args.floor, ceiling: args.ceiling, ttl_ms: args.ttl })
}

pub(super) async fn put(args: PutArgs) -> Result<(), Failure> {
    let (family, qualifier) = cell_name(args.cell.as_deref().unwrap_or_default());
    let null = i32::from(Null::Null);
    let client = args.connection.connect().await?;
    let mut kind = ValueKind::Any;
    if args.value.is_some() || args.if_equals.is_some() {
        let families = client.list_families(&args.game).await?;
        kind = families.iter().find(|declared| declared.name == family).map_or(kind, FamilyDefinition::kind);
    }
    let equals = args.if_equals.as_deref().map(|value| parse_value(value, kind)).transpose()?;
    let test = (args.if_absent.then_some(Test::Absent(null)))
        .or(args.if_exists.then_some(Test::Exists(null)))
        .or(equals.map(Test::Equals))
        .or(args.if_version.map(Test::Version));
    let condition = |test| Precondition { family: family.clone(), qualifier: qualifier.clone(), test: Some(test) };
    let preconditions = test.map(condition).into_iter().collect();
    let event = args.event.as_ref().map(|event_type| Event {
        player_id: args.player.clone(),
        event_time_ms: unix_ms().cast_signed(),
        event_type: event_type.clone(),
        properties: args.properties.clone(),
        event_id: String::new(),
    });
    let mutations = vec![mutation(&args, kind, family.clone(), qualifier.clone())?];
    let request = MutateRequest {
        game: args.game,
        producer: None,
        player_id: args.player,
        preconditions,
        mutations,
        events: event.into_iter().collect(),
    };
    match client.mutate(request).await? {
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
    /// Only events of which this holds: NAME=VALUE, !=, <, <=, >, >=, NAME (it is there) or !NAME (it is not); may be given
    /// several times
    #[arg(long = "where", value_name = "CONDITION", value_parser = condition)]
    conditions: Vec<PropertyCondition>,
    /// Only these properties, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    properties: Option<Vec<String>>,
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

/// Reads a condition of a property.
fn condition(text: &str) -> Result<PropertyCondition, String> {
    let null = i32::from(Null::Null);
    let found = text.find(['=', '!', '<', '>']).filter(|at| *at > 0);
    let Some(at) = found else {
        let (name, test) = match text.strip_prefix('!') {
            Some(name) => (name, Asked::Absent(null)),
            None => (text, Asked::Exists(null)),
        };
        return Ok(PropertyCondition { name: name.to_owned(), test: Some(test) });
    };
    let (name, rest) = text.split_at(at);
    // Longer signs first.
    let signs = ["!=", "<=", ">=", "=", "<", ">"];
    let signed = signs.iter().find_map(|sign| Some((*sign, guessed_value(rest.strip_prefix(sign)?))));
    let asked = signed.map(|(sign, value)| match sign {
        "!=" => Asked::NotEquals(value),
        "<=" => Asked::AtMost(value),
        ">=" => Asked::AtLeast(value),
        "<" => Asked::Less(value),
        ">" => Asked::Greater(value),
        _ => Asked::Equals(value),
    });
    let test = asked.ok_or_else(|| "it must be NAME=VALUE, !=, <, <=, >, >=, NAME or !NAME".to_owned())?;
    Ok(PropertyCondition { name: name.to_owned(), test: Some(test) })
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
    let (from_ms, to_ms) = (args.from, args.to);
    let filter = Some(EventFilter { from_ms, to_ms, event_types: args.event_types, properties: args.conditions });
    let projection = args.properties.map(|properties| Projection { properties });
    let mut pages = match args.player {
        Some(player_id) => {
            let request = ScanPlayerRequest {
                game: args.game,
                player_id,
                filter,
                newest_first: args.newest_first,
                limit: args.limit,
                cursor: vec![],
                projection,
            };
            client.scan_player(request).await?.boxed()
        }
        None => {
            let request = ScanGameRequest { game: args.game, filter, limit: args.limit, cursor: vec![], projection };
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
        assert_eq!(put(&["--increment", "-5", "--floor", "-7"]).increment, Some(-5));
    }

    #[test]
    fn conditions_are_read_as_people_write_them() {
        let int = |value| Value { kind: Some(Kind::Int(value)) };
        let text = |text: &str| Value { kind: Some(Kind::String(text.to_owned())) };
        let null = i32::from(Null::Null);
        for (written, name, test) in [
            ("level=3", "level", Asked::Equals(int(3))),
            ("level!=3", "level", Asked::NotEquals(int(3))),
            ("level<=-3", "level", Asked::AtMost(int(-3))),
            ("map>Dune", "map", Asked::Greater(text("Dune"))),
            ("map=a=b", "map", Asked::Equals(text("a=b"))),
            ("map=", "map", Asked::Equals(text(""))),
            ("map", "map", Asked::Exists(null)),
            ("!map", "map", Asked::Absent(null)),
        ] {
            assert_eq!(condition(written), Ok(PropertyCondition { name: name.into(), test: Some(test) }), "{written}");
        }
        assert!(condition("level!3").is_err());
    }

    #[test]
    fn a_moment_ends_before_the_next_millisecond() {
        assert_eq!(end_of(7).ok(), Some(Hlc((7 << 16) + 0xffff)));
        assert!(end_of(u64::MAX).is_err() && end_of((1 << 48) - 1).is_err());
    }
}
