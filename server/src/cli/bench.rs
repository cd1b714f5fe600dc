//! `galoo bench`: Galoo's own load, through the harness that its peers are measured with.

use clap::{Args, Subcommand};
use galoo_bench::{Load, Report, closed_loop};
use galoo_client::{Client, Producer};
use galoo_proto::{
    data::{AppendRequest, GetRequest, MutateRequest},
    value::{Event, Mutation, Value, mutation::Change, value::Kind},
};

use super::{Connection, Failure, output};

#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Append batches of events, each with a producer's number
    #[command(after_help = "Example: galoo bench append --game bench --batch 100 --in-flight 64")]
    Append(AppendArgs),
    /// Read a player's state, linearizable
    #[command(after_help = "Example: galoo bench get --game bench --in-flight 1 --connections 1")]
    Get(GetArgs),
}

#[derive(Args)]
pub(super) struct AppendArgs {
    #[command(flatten)]
    connection: Connection,
    /// The game; made with the defaults if it is missing
    #[arg(long, default_value = "bench")]
    game: String,
    /// Events of a call
    #[arg(long, default_value_t = 100)]
    batch: u64,
    /// Bytes of an event: player, type and properties
    #[arg(long, default_value_t = 200)]
    event_bytes: usize,
    #[command(flatten)]
    load: Load,
}

#[derive(Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    connection: Connection,
    /// The game; made with the defaults if it is missing
    #[arg(long, default_value = "bench")]
    game: String,
    /// Players with a state of one cell, written first
    #[arg(long, default_value_t = 1_000)]
    players: u64,
    #[command(flatten)]
    load: Load,
}

/// Runs a load and prints its report.
pub(super) async fn run(command: BenchCommand) -> Result<(), Failure> {
    let (connection, report) = match command {
        BenchCommand::Append(args) => (args.connection.clone(), append(args).await?),
        BenchCommand::Get(args) => (args.connection.clone(), get(args).await?),
    };
    if connection.json {
        return output::line(serde_json::json!(report));
    }
    let Report { calls, seconds, calls_per_second, p50_ms, p99_ms } = report;
    output::line(format_args!(
        "{calls} calls in {seconds} s: {calls_per_second:.0}/s, p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms"
    ))
}

/// Opens the load's connections, of which each client has one to each node, and makes the game.
async fn clients(connection: &Connection, game: &str, load: Load) -> Result<Vec<Client>, Failure> {
    let nodes = connection.addr.split(',').count();
    let mut clients = Vec::new();
    for _ in 0..load.connections.max(1).div_ceil(nodes) {
        clients.push(connection.connect().await?);
    }
    if !clients[0].list_games().await?.iter().any(|known| known.name == game) {
        clients[0].create_game(game, 0, 0).await?;
    }
    Ok(clients)
}

/// Players that a worker appends events of.
const PLAYERS: u64 = 1_000;

async fn append(args: AppendArgs) -> Result<Report, Failure> {
    let clients = clients(&args.connection, &args.game, args.load).await?;
    let run: u64 = rand::random();
    let mut producers = Vec::new();
    for worker in 0..args.load.in_flight {
        let client = &clients[worker % clients.len()];
        producers.push(Producer::register(client, &args.game, &format!("bench:{run:016x}:{worker}")).await?);
    }
    let (game, batch, bytes) = (args.game, args.batch, args.event_bytes);
    let report = closed_loop(args.load, move |worker, number| {
        let client = clients[worker % clients.len()].clone();
        let events = (0..batch).map(|place| event(worker, number * batch + place, bytes)).collect();
        let producer = Some(producers[worker].stamp(number, number));
        let request = AppendRequest { game: game.clone(), producer, events };
        async move {
            client.append(request).await?;
            Ok(())
        }
    });
    Ok(report.await?)
}

fn event(worker: usize, number: u64, bytes: usize) -> Event {
    let player_id = format!("bench-{worker}-{}", number % PLAYERS);
    let mut properties = format!(r#"{{"n":{number},"pad":""#);
    let pad = bytes.saturating_sub(player_id.len() + "bench".len() + properties.len() + 2);
    properties.extend(std::iter::repeat_n('x', pad));
    properties.push_str("\"}");
    let event_time_ms = i64::try_from(crate::node::unix_ms()).unwrap_or(0);
    Event { player_id, event_time_ms, event_type: "bench".to_owned(), properties, ..Default::default() }
}

async fn get(args: GetArgs) -> Result<Report, Failure> {
    let clients = clients(&args.connection, &args.game, args.load).await?;
    let players = args.players.max(1);
    for player in 0..players {
        let value = Value { kind: Some(Kind::Int(player.cast_signed())) };
        let change = Some(Change::Put(value));
        let put = Mutation { family: "bench".into(), qualifier: "n".into(), change, ..Default::default() };
        let (game, player_id) = (args.game.clone(), format!("bench-{player}"));
        let request = MutateRequest { game, player_id, mutations: vec![put], ..Default::default() };
        let done = clients[0].mutate(request).await?;
        done.map_err(|rejection| Failure::Refused(rejection.detail))?;
    }
    let game = args.game;
    let report = closed_loop(args.load, move |worker, number| {
        let (client, game) = (clients[worker % clients.len()].clone(), game.clone());
        // Far apart from call to call, so that no cache of the last row helps.
        let player = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % players;
        async move {
            let player_id = format!("bench-{player}");
            let (family, qualifier) = ("bench".to_owned(), "n".to_owned());
            let request = GetRequest { game, player_id, family, qualifier, ..Default::default() };
            let cells = client.get(request).await?;
            anyhow::ensure!(cells.len() == 1, "bench-{player} has {} cells", cells.len());
            Ok(())
        }
    });
    Ok(report.await?)
}
