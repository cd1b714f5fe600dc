//! `galoo-workload`: the simulated events as NDJSON on standard output, or only how fast they come.

use std::{
    io::{BufWriter, Write},
    time::Instant,
};

use clap::Parser;
use galoo_workload::{Config, END_MS_DEFAULT, Simulation, Step, ndjson};

/// The events of a simulated game, one JSON object a line.
#[derive(Parser)]
#[command(version, after_help = "Example: galoo-workload --events 20000000 > game.ndjson")]
struct Args {
    /// Events in all
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Where chance comes from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Players [default: one for a hundred events, 50 to 200,000]
    #[arg(long)]
    players: Option<u32>,
    /// Days that the events spread over
    #[arg(long, default_value_t = 14)]
    days: u32,
    /// The end of the last day, in Unix milliseconds
    #[arg(long, default_value_t = END_MS_DEFAULT)]
    end_ms: i64,
    /// Write nothing and report the speed
    #[arg(long)]
    measure: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let sized = Config::new(args.seed, args.events);
    let config =
        Config { players: args.players.unwrap_or(sized.players), days: args.days, end_ms: args.end_ms, ..sized };
    let simulation = Simulation::new(config)?;
    if args.measure {
        let started = Instant::now();
        let (mut events, mut bytes, mut changes) = (0u64, 0u64, 0u64);
        for step in simulation {
            match step {
                Step::Event(event) => {
                    events += 1;
                    bytes += galoo_proto::validate::event_bytes(&event) as u64;
                }
                Step::State(_) => changes += 1,
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (rate, mean) = (events as f64 / seconds, bytes as f64 / events as f64);
        eprintln!("{events} events of {mean:.0} bytes, {changes} changes of state, {seconds:.2} s, {rate:.0} events/s");
        return Ok(());
    }
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    let mut line = String::new();
    for step in simulation {
        if let Step::Event(event) = step {
            line.clear();
            ndjson::push_line(&mut line, &event);
            match out.write_all(line.as_bytes()) {
                // A reader that closes the pipe wants no more.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    }
    Ok(out.flush()?)
}
