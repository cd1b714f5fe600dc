//! `galoo property`: list, declare, drop.

use clap::{Subcommand, ValueEnum};
use galoo_proto::{
    admin::PropertyStatus,
    value::{PropertyDefinition, ValueKind},
};
use serde_json::json;

use super::{Connection, Failure, output};

#[derive(Subcommand)]
pub(super) enum PropertyCommand {
    /// List the properties of a game's events, with what their values are; reads what the files' footers do not say
    #[command(after_help = "Example: galoo property list --game sc2")]
    List {
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Declare what a property's values are meant to be: its column has that type, whatever comes. A value that is of
    /// another kind stays in its event, is null in the column and is counted
    #[command(after_help = "Example: galoo property declare --game sc2 gold int")]
    Declare {
        /// The property, 1 to 256 bytes
        name: String,
        /// What its values are; `float` takes integers within 2^53 too
        kind: Kind,
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take a declaration back; the events stay as they are
    #[command(after_help = "Example: galoo property drop --game sc2 gold")]
    Drop {
        /// The property
        name: String,
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    Bool,
    Int,
    Float,
    String,
}

impl From<Kind> for ValueKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool,
            Kind::Int => Self::Int,
            Kind::Float => Self::Float,
            Kind::String => Self::String,
        }
    }
}

/// How many values there are of each kind, but for null, by the kind's name.
fn kinds(property: &PropertyStatus) -> Vec<(&'static str, u64)> {
    let PropertyStatus { bools, ints, floats, strings, objects_and_arrays, other_numbers, .. } = *property;
    let all = [
        ("bool", bools),
        ("int", ints),
        ("float", floats),
        ("string", strings),
        ("object or array", objects_and_arrays),
        ("other number", other_numbers),
    ];
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// The share of events without the property, or with null.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn null_share(property: &PropertyStatus, events: u64) -> f64 {
    let values: u64 = kinds(property).iter().map(|(_, count)| count).sum();
    events.saturating_sub(values) as f64 / events.max(1) as f64
}

fn declared(property: &PropertyStatus) -> Option<String> {
    Some(property.declared()).filter(|kind| *kind != ValueKind::Any).map(|kind| kind.as_str_name().to_lowercase())
}

fn object(property: &PropertyStatus, events: u64) -> serde_json::Value {
    let kinds: serde_json::Map<_, _> =
        kinds(property).into_iter().map(|(kind, count)| (kind.replace(' ', "_"), count.into())).collect();
    json!({
        "name": property.name, "declared": declared(property), "column": property.column_type, "values": kinds,
        "nulls": property.nulls, "null_share": null_share(property, events), "misfits": property.misfits,
        "first_seen_ms": property.first_seen_ms, "last_seen_ms": property.last_seen_ms,
    })
}

pub(super) async fn run(command: PropertyCommand) -> Result<(), Failure> {
    match command {
        PropertyCommand::List { game, connection } => list(&game, &connection).await,
        PropertyCommand::Declare { name, kind, game, connection } => {
            let property = PropertyDefinition { name: name.clone(), kind: ValueKind::from(kind).into() };
            connection.connect().await?.declare_property(&game, property).await?;
            let kind = ValueKind::from(kind).as_str_name().to_lowercase();
            if connection.json {
                output::line(json!({"declared": name, "kind": kind}))
            } else {
                output::line(format_args!("property {name} of {game} is declared {kind}"))
            }
        }
        PropertyCommand::Drop { name, game, connection } => {
            let property = PropertyDefinition { name: name.clone(), kind: ValueKind::Any.into() };
            connection.connect().await?.declare_property(&game, property).await?;
            if connection.json {
                output::line(json!({"dropped": name}))
            } else {
                output::line(format_args!("property {name} of {game} is not declared any more; its values stay"))
            }
        }
    }
}

async fn list(game: &str, connection: &Connection) -> Result<(), Failure> {
    let told = connection.connect().await?.list_properties(game).await?;
    if connection.json {
        let properties: Vec<_> = told.properties.iter().map(|one| object(one, told.events)).collect();
        return output::line(json!({"events": told.events, "properties": properties}));
    }
    let time = |ms: u64| if ms == 0 { String::new() } else { output::time_text(ms.cast_signed()) };
    let row = |one: PropertyStatus| {
        let values: Vec<_> = kinds(&one).iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let share = format!("{:.1} %", null_share(&one, told.events) * 100.0);
        let misfits = declared(&one).map(|kind| format!("{} not {kind}", one.misfits)).unwrap_or_default();
        let (first, last) = (time(one.first_seen_ms), time(one.last_seen_ms));
        vec![one.name, one.column_type, values.join(", "), share, misfits, first, last]
    };
    let titles = ["property", "column", "values", "null", "misfits", "first seen", "last seen (hour)"];
    output::table(&titles, told.properties.into_iter().map(row))
}
