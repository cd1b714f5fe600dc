//! `galoo compact`: begins it on every node and waits until all are done.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use galoo_client::Client;
use galoo_proto::admin::CompactResponse;
use serde_json::json;

use super::{Connection, Failure, output};

/// Between two questions how far it is.
const ASK_DELAY: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct CompactArgs {
    #[arg(long)]
    game: String,
    /// Begin, and do not wait
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn compact(args: CompactArgs) -> Result<(), Failure> {
    let mut nodes = args.connection.connect().await?.topology().await?.nodes;
    nodes.sort_by_key(|node| node.id);
    let mut told = Vec::with_capacity(nodes.len());
    let mut clients = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let client = Client::connect(&node.addr).await?;
        told.push(client.compact(&args.game, true).await?);
        clients.push(client);
    }
    let left = |told: &[CompactResponse]| told.iter().map(|told| told.shards_left).sum::<u64>();
    while !args.no_wait && left(&told) > 0 {
        if std::io::stderr().is_terminal() {
            let segments: u64 = told.iter().map(|told| told.segments).sum();
            output::say(format_args!("{} replicas to go, {segments} segments", left(&told)));
        }
        tokio::time::sleep(ASK_DELAY).await;
        for (client, told) in clients.iter().zip(&mut told) {
            *told = client.compact(&args.game, false).await?;
        }
    }
    let failed: u64 = told.iter().map(|told| told.shards_failed).sum();
    if failed > 0 {
        let said = "replicas could not be compacted; their nodes' logs say why";
        return Err(Failure::Failed(anyhow::anyhow!("{failed} {said}")));
    }
    if args.connection.json {
        let object = |(node, told): (&galoo_proto::admin::NodeAddr, &CompactResponse)| {
            json!({
                "node": node.id,
                "shards_left": told.shards_left,
                "segments": told.segments,
                "segment_bytes": told.segment_bytes,
            })
        };
        output::line(serde_json::Value::from(nodes.iter().zip(&told).map(object).collect::<Vec<_>>()))
    } else {
        let row = |(node, told): (&galoo_proto::admin::NodeAddr, &CompactResponse)| {
            let counts = [told.shards_left, told.segments, told.segment_bytes].map(|count| count.to_string());
            [vec![format!("n{}", node.id)], counts.to_vec()].concat()
        };
        output::table(&["node", "shards left", "segments", "segment bytes"], nodes.iter().zip(&told).map(row))
    }
}
