//! `galoo cluster`: makes a cluster of nodes that wait for it.

use clap::Subcommand;
use serde_json::json;

use super::{Connection, Failure, output};

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Make a cluster of the nodes that were started with the same --join; asked again, it goes on or changes nothing
    #[command(after_help = "Example: galoo cluster init --addr 127.0.0.1:7400")]
    Init {
        #[command(flatten)]
        connection: Connection,
    },
}

pub(super) async fn run(command: ClusterCommand) -> Result<(), Failure> {
    let ClusterCommand::Init { connection } = command;
    let cluster = connection.connect().await?.init_cluster().await?;
    if connection.json {
        let nodes: Vec<_> = cluster.nodes.iter().map(|node| json!({"id": node.id, "addr": node.addr})).collect();
        output::line(json!({"cluster_id": cluster.cluster_id, "nodes": nodes, "formed": cluster.formed}))
    } else {
        let how = if cluster.formed { "formed" } else { "is formed already:" };
        output::line(format_args!("cluster {} {how} {} nodes", cluster.cluster_id, cluster.nodes.len()))?;
        let row = |node: galoo_proto::admin::NodeAddr| vec![format!("n{}", node.id), node.addr];
        output::table(&["node", "grpc"], cluster.nodes.into_iter().map(row))
    }
}
