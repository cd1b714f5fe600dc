//! Compiles the `.proto` files with protox, so that no system `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const FILES: [&str; 8] = [
    "value.proto",
    "rollup.proto",
    "command.proto",
    "record.proto",
    "data.proto",
    "admin.proto",
    "meta.proto",
    "peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("galoo.descriptors"), descriptors.encode_to_vec())?;
    // What is only handed on shares the memory that it came in.
    tonic_prost_build::configure().bytes(".galoo.peer.v1.RaftMessage.message").compile_fds(descriptors)?;
    Ok(())
}
