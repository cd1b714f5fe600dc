//! `galoo family`: set, list, drop.

use clap::{Subcommand, ValueEnum};
use galoo_proto::{
    limits::CELL_VERSIONS_MAX,
    value::{FamilyDefinition, ValueKind},
};
use serde_json::json;

use super::{
    Connection, Failure,
    duration::{duration_ms, duration_text},
    output,
};

#[derive(Subcommand)]
pub(super) enum FamilyCommand {
    /// Declare a family of cells, or declare it anew; it holds for what is written from then on
    #[command(after_help = "Example: galoo family set --game rpg inventory --versions 3 --ttl 30d --kind int")]
    Set {
        /// Its name, 1 to 64 bytes
        name: String,
        /// Keep so many newest values of each cell
        #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(CELL_VERSIONS_MAX)))]
        versions: u32,
        /// What is written expires so long after: 500ms, 90s, 15m, 12h, 30d [default: never]
        #[arg(long, value_name = "TIME", value_parser = duration_ms)]
        ttl: Option<u64>,
        /// What its values are: `galoo put` takes text as that
        #[arg(long, default_value = "any")]
        kind: Kind,
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List a game's declared families
    #[command(after_help = "Example: galoo family list --game rpg")]
    List {
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take a declaration back: what is written from then on has one version and does not expire. The cells stay
    #[command(after_help = "Example: galoo family drop --game rpg inventory")]
    Drop {
        /// Its name
        name: String,
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Kind {
    Any,
    Bool,
    Int,
    Float,
    String,
    Bytes,
    Json,
}

impl From<Kind> for ValueKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Any => Self::Any,
            Kind::Bool => Self::Bool,
            Kind::Int => Self::Int,
            Kind::Float => Self::Float,
            Kind::String => Self::String,
            Kind::Bytes => Self::Bytes,
            Kind::Json => Self::Json,
        }
    }
}

fn object(family: &FamilyDefinition) -> serde_json::Value {
    let kind = family.kind().as_str_name().to_lowercase();
    json!({"name": family.name, "versions": family.versions_max, "ttl_ms": family.ttl_ms, "kind": kind})
}

pub(super) async fn run(command: FamilyCommand) -> Result<(), Failure> {
    match command {
        FamilyCommand::Set { name, versions, ttl, kind, game, connection } => {
            let kind = ValueKind::from(kind).into();
            let family =
                FamilyDefinition { name, versions_max: versions, ttl_ms: ttl.unwrap_or(0), kind, ..Default::default() };
            let family = connection.connect().await?.define_family(&game, family).await?;
            if connection.json {
                output::line(object(&family))
            } else {
                let (name, versions, ttl) = (&family.name, family.versions_max, duration_text(family.ttl_ms));
                output::line(format_args!("family {name} of {game} keeps {versions} versions; values expire: {ttl}"))
            }
        }
        FamilyCommand::List { game, connection } => {
            let families = connection.connect().await?.list_families(&game).await?;
            if connection.json {
                output::line(serde_json::Value::from(families.iter().map(object).collect::<Vec<_>>()))
            } else {
                let row = |family: FamilyDefinition| {
                    let kind = family.kind().as_str_name().to_lowercase();
                    let (versions, expires) = (family.versions_max.to_string(), duration_text(family.ttl_ms));
                    vec![family.name, versions, expires, kind]
                };
                output::table(&["family", "versions", "expires", "kind"], families.into_iter().map(row))
            }
        }
        FamilyCommand::Drop { name, game, connection } => {
            connection.connect().await?.drop_family(&game, &name).await?;
            if connection.json {
                output::line(json!({"dropped": name}))
            } else {
                output::line(format_args!("family {name} of {game} is not declared any more; its cells stay"))
            }
        }
    }
}
