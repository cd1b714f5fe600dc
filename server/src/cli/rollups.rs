//! `galoo rollup`: list, verify.

use clap::Subcommand;
use galoo_proto::admin::VerifyRollupRequest;
use serde_json::json;

use super::{Connection, Failure, output};

#[derive(Subcommand)]
pub(super) enum RollupCommand {
    /// List a game's rollups, and how many of the asked node's events each has in its cells; the others are added when it is
    /// read
    #[command(after_help = "Example: galoo rollup list --game sc2")]
    List {
        #[arg(long)]
        game: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Compare a rollup's table with what the events give: reads all events of that time
    #[command(after_help = "Example: galoo rollup verify --game sc2 per_hour_1d")]
    Verify {
        /// One of its tables
        table: String,
        #[arg(long)]
        game: String,
        /// Buckets from this time on (Unix milliseconds)
        #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
        from: Option<i64>,
        /// Buckets before this time (Unix milliseconds)
        #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
        to: Option<i64>,
        #[command(flatten)]
        connection: Connection,
    },
}

pub(super) async fn run(command: RollupCommand) -> Result<(), Failure> {
    match command {
        RollupCommand::List { game, connection } => list(&game, &connection).await,
        RollupCommand::Verify { table, game, from, to, connection } => {
            verify(VerifyRollupRequest { game, table, from_ms: from, to_ms: to }, &connection).await
        }
    }
}

async fn list(game: &str, connection: &Connection) -> Result<(), Failure> {
    let told = connection.connect().await?.list_rollups(game).await?;
    if connection.json {
        let rollups = told.rollups.iter().map(|rollup| {
            json!({
                "rollup": rollup.name,
                "tables": rollup.tables,
                "covered": rollup.covered,
                "events": rollup.events,
                "statement": rollup.statement,
            })
        });
        return output::line(json!({"node": told.node, "rollups": rollups.collect::<Vec<_>>()}));
    }
    let rows = told.rollups.into_iter().map(|rollup| {
        let covered = format!("{} of {}", rollup.covered, rollup.events);
        vec![rollup.name, rollup.tables.join(", "), covered, rollup.statement]
    });
    output::table(&["rollup", "tables", "events covered", "statement"], rows)
}

async fn verify(request: VerifyRollupRequest, connection: &Connection) -> Result<(), Failure> {
    let table = request.table.clone();
    let told = connection.connect().await?.verify_rollup(request).await?;
    let hash = format!("{:016x}", told.hash);
    if connection.json {
        let from_ms = (told.from_ms > i64::MIN).then_some(told.from_ms);
        let to_ms = (told.to_ms < i64::MAX).then_some(told.to_ms);
        output::line(json!({
            "table": table,
            "from_ms": from_ms,
            "to_ms": to_ms,
            "buckets": told.buckets,
            "events": told.events,
            "hash": hash,
            "different": told.different,
            "different_ms": told.different_ms,
        }))?;
    } else {
        output::line(format_args!("{table}: {} buckets, {} events, hash {hash}", told.buckets, told.events))?;
    }
    if told.different == 0 {
        return Ok(());
    }
    let first: Vec<_> = told.different_ms.iter().take(5).map(|bucket| output::time_text(*bucket)).collect();
    Err(Failure::Failed(anyhow::anyhow!(
        "{} buckets of {table} are not what the events give, from {} on; \
         where it declares no erasure, events of players who were forgotten since it was made count as such",
        told.different,
        first.join(", ")
    )))
}
