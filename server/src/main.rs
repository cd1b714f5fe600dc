//! `galoo`: the server and its command line, one binary.

mod cli;
mod compactor;
mod config;
mod coverer;
mod data_folder;
mod disk;
mod door;
mod driver;
mod memory;
mod merger;
mod node;
mod protocols;
mod repair;
mod room;
mod scrubber;
mod sql;
mod telemetry;
mod transport;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
