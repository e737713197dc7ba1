//! Compiles the protos to Rust, in Rust: no `protoc` is needed. It decides
//! nothing about what the messages mean; that is what the conversions are for.

use prost::Message;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// Where the protos lie, as imports see it.
const ROOT: &str = "../../proto";

/// The files that define services; the others follow from their imports.
const SERVICES: [&str; 1] = ["chorale/inference/v1/service.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let files = protox::compile(SERVICES, [ROOT])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    // With its comments, which reflection shows to whoever asks.
    fs::write(Path::new(&out).join("inference_v1.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).emit_rerun_if_changed(false).compile_fds(files)?;
    Ok(())
}
