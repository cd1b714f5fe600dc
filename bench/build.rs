//! Compiles the peers' `.proto` files with protox, so that no system `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().compile_fds(protox::compile(["etcd.proto", "echo.proto"], ["proto"])?)?;
    Ok(())
}
