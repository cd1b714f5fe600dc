//! `galoo game`: create, list, drop.

use clap::Subcommand;
use serde_json::json;

use super::{Connection, Failure, output};

#[derive(Subcommand)]
pub(super) enum GameCommand {
    /// Make a game
    #[command(after_help = "Example: galoo game create sc2 --shards 8")]
    Create {
        /// Its name: a letter a to z, then letters, digits or _, at most 64 bytes
        name: String,
        /// Token ranges that it is cut into
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
        shards: u32,
        /// Copies of each shard: 1, 3 or 5
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
        replicas: u32,
        #[command(flatten)]
        connection: Connection,
    },
    /// List games
    #[command(after_help = "Example: galoo game list")]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Drop a game with everything in it
    #[command(after_help = "Example: galoo game drop sc2")]
    Drop {
        /// Its name
        name: String,
        #[command(flatten)]
        connection: Connection,
    },
}

pub(super) async fn run(command: GameCommand) -> Result<(), Failure> {
    match command {
        GameCommand::Create { name, shards, replicas, connection } => {
            let game = connection.connect().await?.create_game(&name, shards, replicas).await?;
            if connection.json {
                output::line(json!({"name": game.name, "shards": game.shards, "replicas": game.replicas}))
            } else {
                let (name, shards, replicas) = (game.name, game.shards, game.replicas);
                output::line(format_args!("created game {name} with {shards} shards, {replicas} replicas each"))
            }
        }
        GameCommand::List { connection } => {
            let games = connection.connect().await?.list_games().await?;
            if connection.json {
                let object = |game: &galoo_proto::admin::Game| json!({"name": game.name, "shards": game.shards, "replicas": game.replicas});
                output::line(serde_json::Value::from(games.iter().map(object).collect::<Vec<_>>()))
            } else {
                let row = |game: galoo_proto::admin::Game| {
                    vec![game.name, game.shards.to_string(), game.replicas.to_string()]
                };
                output::table(&["game", "shards", "replicas"], games.into_iter().map(row))
            }
        }
        GameCommand::Drop { name, connection } => {
            connection.connect().await?.drop_game(&name).await?;
            if connection.json {
                output::line(json!({"dropped": name}))
            } else {
                output::line(format_args!("dropped game {name}"))
            }
        }
    }
}
