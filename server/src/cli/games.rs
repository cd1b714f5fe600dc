//! `galoo game`: create, alter, list, drop.

use clap::Subcommand;
use galoo_proto::{
    admin::{AlterGameRequest, Game},
    limits::EVENT_ID_WINDOW_MS_DEFAULT,
};
use serde_json::json;

use super::{
    Connection, Failure,
    duration::{duration_ms, duration_or_never_ms, duration_text},
    output,
};

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
    /// Change how a game is kept. What is dropped does not come back; rollups keep what they hold
    #[command(after_help = "Example: galoo game alter sc2 --retention 90d --event-id-window 2h")]
    Alter {
        /// Its name
        name: String,
        /// Drop events so long after their time: 90s, 15m, 12h, 30d; never
        #[arg(long, value_name = "TIME", value_parser = duration_or_never_ms)]
        #[arg(required_unless_present = "event_id_window")]
        retention: Option<u64>,
        /// Store no event with an id again that was stored so long ago: 15m, 12h, up to 31d [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = duration_ms)]
        event_id_window: Option<u64>,
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

fn object(game: &Game) -> serde_json::Value {
    let Game { name, shards, replicas, events_retention_ms, .. } = game;
    json!({
        "name": name, "shards": shards, "replicas": replicas, "events_retention_ms": events_retention_ms,
        "event_id_window_ms": window_ms(game),
    })
}

/// For how long an event's id is known.
fn window_ms(game: &Game) -> u64 {
    if game.event_id_window_ms == 0 { EVENT_ID_WINDOW_MS_DEFAULT } else { game.event_id_window_ms }
}

pub(super) async fn run(command: GameCommand) -> Result<(), Failure> {
    match command {
        GameCommand::Create { name, shards, replicas, connection } => {
            let game = connection.connect().await?.create_game(&name, shards, replicas).await?;
            if connection.json {
                output::line(object(&game))
            } else {
                let (name, shards, replicas) = (game.name, game.shards, game.replicas);
                output::line(format_args!("created game {name} with {shards} shards, {replicas} replicas each"))
            }
        }
        GameCommand::Alter { name, retention, event_id_window, connection } => {
            let (events_retention_ms, event_id_window_ms) = (retention, event_id_window);
            let alter = AlterGameRequest { name, events_retention_ms, event_id_window_ms };
            let game = connection.connect().await?.alter_game(alter).await?;
            if connection.json {
                output::line(object(&game))
            } else {
                let (after, window) = (duration_text(game.events_retention_ms), duration_text(window_ms(&game)));
                output::line(format_args!(
                    "game {} drops events after: {after}; knows their ids for: {window}",
                    game.name
                ))
            }
        }
        GameCommand::List { connection } => {
            let games = connection.connect().await?.list_games().await?;
            if connection.json {
                output::line(serde_json::Value::from(games.iter().map(object).collect::<Vec<_>>()))
            } else {
                let row = |game: Game| {
                    let (shards, replicas) = (game.shards.to_string(), game.replicas.to_string());
                    let (after, window) = (duration_text(game.events_retention_ms), duration_text(window_ms(&game)));
                    vec![game.name, shards, replicas, after, window]
                };
                let titles = ["game", "shards", "replicas", "drops events after", "knows event ids for"];
                output::table(&titles, games.into_iter().map(row))
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
