//! `galoo status` and `galoo checksum`.

use clap::Args;
use galoo_proto::admin::ReplicaStatus;
use serde_json::json;

use super::{Connection, Failure, output};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let status = args.connection.connect().await?.status().await?;
    if args.connection.json {
        let replica = |replica: &ReplicaStatus| json!({"node": replica.node, "applied": replica.applied});
        let shards = status.shards.iter().map(|shard| {
            json!({
                "shard": shard.shard, "game": shard.game, "leader": shard.leader, "term": shard.term,
                "applied": shard.applied, "events": shard.events, "chunks": shard.chunks, "segments": shard.segments,
                "segment_bytes": shard.segment_bytes, "chunk_bytes": shard.chunk_bytes, "voters": shard.voters,
                "replicas": shard.replicas.iter().map(replica).collect::<Vec<_>>(),
            })
        });
        let nodes = status.nodes.iter().map(|node| {
            json!({
                "id": node.id, "grpc": node.grpc_addr, "pg": node.pg_addr, "http": node.http_addr, "zone": node.zone,
                "reachable": node.reachable, "replicas": node.replicas, "leads": node.leads, "lag": node.lag,
            })
        });
        let games: Vec<_> = status.games.iter().map(|game| game.name.clone()).collect();
        return output::line(json!({
            "version": status.version, "cluster_id": status.cluster_id, "node_id": status.node_id,
            "grpc": status.grpc_addr, "pg": status.pg_addr, "http": status.http_addr,
            "damaged": status.damaged, "games": games, "nodes": nodes.collect::<Vec<_>>(), "shards": shards.collect::<Vec<_>>(),
        }));
    }
    output::line(format_args!("galoo {}  cluster {}  node n{}", status.version, status.cluster_id, status.node_id))?;
    output::line(format_args!("grpc {}  pg {}  http {}\n", status.grpc_addr, status.pg_addr, status.http_addr))?;
    let nodes = status.nodes.into_iter().map(|node| {
        let state = if node.reachable { "up" } else { "unreachable" };
        let counts = [node.replicas, node.leads, node.lag].map(|count| count.to_string());
        [vec![format!("n{}", node.id), node.grpc_addr, node.pg_addr, state.to_owned()], counts.to_vec()].concat()
    });
    output::table(&["node", "grpc", "pg", "state", "replicas", "leads", "lag"], nodes)?;
    status.damaged.iter().try_for_each(|damage| output::line(format_args!("\ndamaged here: {damage}")))?;
    output::line("")?;
    let rows = status.shards.into_iter().map(|shard| {
        vec![
            format!("s{}", shard.shard),
            shard.game,
            if shard.leader == 0 { "none".to_owned() } else { format!("n{}", shard.leader) },
            shard.voters.iter().map(|node| format!("n{node}")).collect::<Vec<_>>().join(" "),
            shard.term.to_string(),
            shard.applied.to_string(),
            shard.events.to_string(),
            shard.chunks.to_string(),
            shard.chunk_bytes.to_string(),
            shard.segments.to_string(),
            shard.segment_bytes.to_string(),
        ]
    });
    let header = [
        "shard",
        "game",
        "leader",
        "replicas",
        "term",
        "applied",
        "events",
        "chunks",
        "chunk bytes",
        "segments",
        "segment bytes",
    ];
    output::table(&header, rows)
}

#[derive(Args)]
pub(super) struct ChecksumArgs {
    #[arg(long)]
    game: String,
    /// The replicas of the node at --addr as they are: two are equal at equal applied indexes
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn checksum(args: ChecksumArgs) -> Result<(), Failure> {
    let client = args.connection.connect().await?;
    let shards =
        if args.local { client.local_checksum(&args.game).await? } else { client.checksum(&args.game).await? };
    if args.connection.json {
        let shards = shards.iter().map(|shard| {
            let sum = format!("{:016x}", shard.checksum);
            json!({"shard": shard.shard, "applied": shard.applied, "events": shard.events, "checksum": sum})
        });
        output::line(serde_json::Value::from(shards.collect::<Vec<_>>()))
    } else {
        let rows = shards.into_iter().map(|shard| {
            let sum = format!("{:016x}", shard.checksum);
            vec![format!("s{}", shard.shard), shard.applied.to_string(), shard.events.to_string(), sum]
        });
        output::table(&["shard", "applied", "events", "checksum"], rows)
    }
}
