//! The command line. Each command has `--help` with an example, `--json`, and one of these exit codes:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; also when whoever reads the output goes away |
//! | 1 | failed: the message says what |
//! | 2 | wrong usage |
//! | 3 | refused: bad input, or the state of things (exists already, does not exist, a precondition) |
//! | 4 | no node answered, or the outcome is unknown: the same command may be tried again |

mod bench;
mod cluster;
mod compact;
mod data;
mod debug;
mod demo;
mod duration;
mod families;
mod games;
mod load;
mod output;
mod privacy;
mod properties;
mod rollups;
mod serve;
mod sql;
mod status;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use galoo_client::Client;
use tonic::Code;
use tracing_subscriber::filter::LevelFilter;

use crate::telemetry;

/// Galoo: a distributed storage engine for game events.
#[derive(Parser)]
#[command(name = "galoo", version, after_help = "Example: galoo demo --once", propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (bad input or the state of things), \
                          4 no node answered or the outcome is unknown (the same command may be tried again)";

#[derive(Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = "Example: galoo server --data-dir /var/lib/galoo")]
    Server(serve::ServerArgs),
    /// Make a cluster
    #[command(subcommand, after_help = "Example: galoo cluster init --addr 127.0.0.1:7400")]
    Cluster(cluster::ClusterCommand),
    /// Make, list and drop games
    #[command(subcommand, after_help = "Example: galoo game create sc2 --shards 8")]
    Game(games::GameCommand),
    /// Declare families of cells: how many versions, how long
    #[command(subcommand, after_help = "Example: galoo family set --game rpg inventory --versions 3 --ttl 30d")]
    Family(families::FamilyCommand),
    /// Show the properties of events, and declare what their values are
    #[command(subcommand, after_help = "Example: galoo property list --game sc2")]
    Property(properties::PropertyCommand),
    /// Load events from NDJSON (plain, gzip or zstd; `-` reads standard input)
    #[command(after_help = "Example: galoo import --game sc2 sc2.ndjson.zst")]
    Import(load::ImportArgs),
    /// Store one event
    #[command(after_help = "Example: galoo append --game rpg ann login --properties '{\"level\":3}'")]
    Append(data::AppendArgs),
    /// Read a player's state
    #[command(after_help = "Example: galoo get --game rpg ann")]
    Get(data::GetArgs),
    /// Change a cell of a player's state
    #[command(after_help = "Example: galoo put --game rpg ann inventory:gold 100")]
    Put(data::PutArgs),
    /// Read events: a player's in order of time, or a game's shard by shard
    #[command(after_help = "Example: galoo scan --game rpg --player ann --newest-first --limit 10")]
    Scan(data::ScanArgs),
    /// Print everything that is known of a player, as NDJSON: cells, then events
    #[command(after_help = "Example: galoo export --game rpg ann > ann.ndjson")]
    Export(privacy::ExportArgs),
    /// Forget a player: state and events, for good; says what becomes of each place
    #[command(after_help = "Example: galoo forget --game rpg ann")]
    Forget(privacy::ForgetArgs),
    /// List a game's rollups, and prove them against the events
    #[command(subcommand, after_help = "Example: galoo rollup verify --game sc2 per_hour")]
    Rollup(rollups::RollupCommand),
    /// Follow events as they are stored
    #[command(after_help = "Example: galoo tail --game rpg --from-start")]
    Tail(data::TailArgs),
    /// Ask SQL: interactively, with -c, or from a pipe, up to the first statement that fails
    #[command(after_help = "Example: galoo sql --game rpg -c 'select event_type, count(*) from events group by 1'")]
    Sql(sql::SqlArgs),
    /// Show nodes, games and shards
    #[command(after_help = "Example: galoo status --json")]
    Status(status::StatusArgs),
    /// Measure this cluster under a load of reads or writes
    #[command(subcommand, after_help = "Example: galoo bench append --game bench --batch 100 --in-flight 64")]
    Bench(bench::BenchCommand),
    /// Show the checksum of each shard of a game
    #[command(after_help = "Example: galoo checksum --game rpg")]
    Checksum(status::ChecksumArgs),
    /// Compact a game on every node: what is stored by now becomes segments, and these as few as can be
    #[command(after_help = "Example: galoo compact --game rpg")]
    Compact(compact::CompactArgs),
    /// Look into the data folder of a node that is stopped; nothing there is changed
    #[command(subcommand, after_help = "Example: galoo debug check /var/lib/galoo")]
    Debug(debug::DebugCommand),
    /// Show what Galoo does: three nodes here, a million events, a node killed on the way, answers and proofs
    #[command(after_help = "Example: galoo demo --once")]
    Demo(demo::DemoArgs),
}

/// What every command that talks to a node takes.
#[derive(Args, Clone)]
struct Connection {
    /// The gRPC address of any node, or of several separated by commas: the first that answers is asked
    #[arg(long, default_value = "127.0.0.1:7400", env = "GALOO_ADDR")]
    addr: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Connection {
    async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.addr).await?)
    }
}

/// Why a command failed, by its exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Exit code 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    /// Exit code 3.
    #[error("{0}")]
    Refused(String),
    /// Exit code 4.
    #[error("{0}")]
    Unreachable(String),
    /// Exit code 0, and nothing is said: whoever read the output wants no more.
    #[error("nobody reads the output")]
    Unread,
}

impl From<galoo_client::Error> for Failure {
    fn from(error: galoo_client::Error) -> Self {
        use galoo_client::Error;
        let message = error.to_string();
        match error {
            Error::Unreachable { .. } | Error::PartRetry { .. } | Error::OutcomeUnknown { .. } | Error::StreamEnded => {
                Self::Unreachable(message)
            }
            Error::Rejected { .. } => Self::Refused(message),
            Error::Status { code, .. } => match code {
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange => Self::Refused(message),
                Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::ResourceExhausted => {
                    Self::Unreachable(message)
                }
                _ => Self::Failed(anyhow::anyhow!(message)),
            },
            Error::Malformed(_) => Self::Failed(error.into()),
        }
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Unread => 0,
        }
    }
}

/// Ends the help of a command, and of all commands below it, with the exit codes.
fn with_exit_codes(command: clap::Command) -> clap::Command {
    let example = command.get_after_help().map(|example| format!("{example}\n\n")).unwrap_or_default();
    command.after_help(format!("{example}{EXIT_CODES}")).mut_subcommands(with_exit_codes)
}

/// Runs the command that the process was given.
pub fn run() -> ExitCode {
    let matches = with_exit_codes(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = match cli.command {
        Command::Server(args) => serve::run(args),
        command => {
            telemetry::start_logs(LevelFilter::WARN, false);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime
                .map_err(|error| Failure::Failed(error.into()))
                .and_then(|runtime| runtime.block_on(client_command(command)))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Unread) {
                output::say(format_args!("galoo: {failure}"));
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn client_command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Server(_) => Ok(()),
        Command::Cluster(command) => cluster::run(command).await,
        Command::Game(command) => games::run(command).await,
        Command::Family(command) => families::run(command).await,
        Command::Property(command) => properties::run(command).await,
        Command::Import(args) => load::run(args).await,
        Command::Append(args) => data::append(args).await,
        Command::Get(args) => data::get(args).await,
        Command::Put(args) => data::put(args).await,
        Command::Scan(args) => data::scan(args).await,
        Command::Export(args) => privacy::export(args).await,
        Command::Forget(args) => privacy::forget(args).await,
        Command::Rollup(command) => rollups::run(command).await,
        Command::Tail(args) => data::tail(args).await,
        Command::Sql(args) => sql::run(args).await,
        Command::Bench(command) => bench::run(command).await,
        Command::Status(args) => status::status(args).await,
        Command::Compact(args) => compact::compact(args).await,
        Command::Checksum(args) => status::checksum(args).await,
        Command::Debug(command) => debug::run(command),
        Command::Demo(args) => demo::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the help of a command and of all commands below it; returns how many they are.
    fn helped(mut command: clap::Command) -> usize {
        for help in [command.render_help(), command.render_long_help()] {
            let help = help.to_string();
            assert!(help.contains("Example: galoo "), "{} has no example: {help}", command.get_name());
            assert!(help.contains(EXIT_CODES), "{} has no exit codes: {help}", command.get_name());
        }
        // Rendering has added clap's own `help`, which is about the others.
        let below = command.get_subcommands().filter(|command| command.get_name() != "help").cloned();
        1 + below.map(helped).sum::<usize>()
    }

    #[test]
    fn every_help_ends_with_an_example_and_the_exit_codes() {
        let commands = helped(with_exit_codes(Cli::command()));
        assert!(commands > 20, "{commands} commands");
    }

    #[test]
    fn the_version_is_that_of_galoo() {
        assert_eq!(Cli::command().render_version(), concat!("galoo ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}
