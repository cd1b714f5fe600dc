//! `galoo export` and `galoo forget`: everything that is known of a player, and the end of it.

use std::io::Write;

use clap::Args;
use futures::StreamExt;
use galoo_client::Client;
use galoo_proto::{Hlc, data::ExportPlayerRequest};
use serde_json::json;

use super::{
    Connection, Failure,
    data::{cell_json, player_id},
    output,
};

#[derive(Args)]
pub(super) struct ExportArgs {
    /// The player
    #[arg(value_parser = player_id())]
    player: String,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

/// Prints cells and events as NDJSON, each line under what it is.
pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    let request = ExportPlayerRequest { game: args.game, player_id: args.player };
    let mut pages = args.connection.connect().await?.export_player(request).await?.boxed();
    while let Some(page) = pages.next().await {
        let page = page?;
        let mut out = std::io::stdout().lock();
        let cells = page.cells.iter().map(|cell| format!(r#"{{"cell":{}}}"#, cell_json(cell)));
        let events = page.events.iter().map(|event| format!(r#"{{"event":{}}}"#, output::event_json(event)));
        let written = cells.chain(events).try_for_each(|line| writeln!(out, "{line}"));
        output::printed(written.and_then(|()| out.flush()))?;
    }
    Ok(())
}

#[derive(Args)]
pub(super) struct ForgetArgs {
    /// The player
    #[arg(value_parser = player_id(), required_unless_present = "pending")]
    player: Option<String>,
    /// List the players of whom nodes still hold what is hidden
    #[arg(long, conflicts_with = "player")]
    pending: bool,
    #[arg(long)]
    game: String,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn forget(args: ForgetArgs) -> Result<(), Failure> {
    let client = args.connection.connect().await?;
    let Some(player) = args.player else { return pending(&client, &args.game, args.connection.json).await };
    let receipt = client.forget_player(&args.game, &player).await?;
    let list = |rollups: &[String]| if rollups.is_empty() { "none".to_owned() } else { rollups.join(", ") };
    let (cleaned, kept) = (list(&receipt.rollups_cleaned), list(&receipt.rollups_kept));
    let settled = list(&receipt.rollups_settled);
    let places = [
        ("state", "removed".to_owned()),
        (
            "events",
            format!("hidden; removed from files by compaction (see galoo forget --pending --game {})", args.game),
        ),
        ("rollups that name players", format!("removed: {cleaned}")),
        ("rollups that let go", format!("taken out before the events go: {settled}")),
        ("other rollups", format!("kept, they name nobody: {kept}")),
        ("log", "removed when it is cut".to_owned()),
        ("answers kept for retries", "removed when their producers go on".to_owned()),
    ];
    if args.connection.json {
        let places: serde_json::Map<_, _> =
            places.into_iter().map(|(place, what)| (place.to_owned(), what.into())).collect();
        output::line(json!({
            "player_id": player,
            "forgotten_at_ms": Hlc(receipt.hlc).millis(),
            "shard": receipt.shard,
            "through_seq": receipt.through_seq,
            "places": places,
        }))
    } else {
        let at = output::time_text(Hlc(receipt.hlc).millis().cast_signed());
        output::line(format_args!("forgot {player} at {at}, up to #{} of s{}", receipt.through_seq, receipt.shard))?;
        output::table(
            &["place", "what becomes of it"],
            places.into_iter().map(|(place, what)| vec![place.to_owned(), what]),
        )
    }
}

/// Asks every node.
async fn pending(client: &Client, game: &str, json: bool) -> Result<(), Failure> {
    let mut nodes = client.topology().await?.nodes;
    nodes.sort_by_key(|node| node.id);
    let mut told = Vec::new();
    for node in nodes {
        let pending = Client::connect(&node.addr).await?.list_erasures(game).await?;
        told.extend(pending.erasures.into_iter().map(|erasure| (node.id, erasure)));
    }
    if json {
        let object = |(node, erasure): &(u64, galoo_proto::admin::Erasure)| {
            let forgotten_at_ms = Hlc(erasure.hlc).millis();
            json!({"node": node, "shard": erasure.shard, "player_id": erasure.player_id, "forgotten_at_ms": forgotten_at_ms})
        };
        output::line(serde_json::Value::from(told.iter().map(object).collect::<Vec<_>>()))
    } else {
        let row = |(node, erasure): (u64, galoo_proto::admin::Erasure)| {
            let at = output::time_text(Hlc(erasure.hlc).millis().cast_signed());
            vec![format!("n{node}"), format!("s{}", erasure.shard), erasure.player_id, at]
        };
        output::table(&["node", "shard", "player", "forgotten at"], told.into_iter().map(row))
    }
}
