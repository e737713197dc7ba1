//! Compiles the protos to Rust, in Rust: no `protoc` is needed. It decides
//! nothing about what the messages mean; that is what the conversions are for.

use prost::Message;
use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// Where the protos lie, as imports see it.
const ROOT: &str = "../../proto";

/// The public service, which reflection shows. Other files follow from imports.
const PUBLIC: [&str; 1] = ["chorale/inference/v1/service.proto"];
/// What the parts of a cluster say to each other.
const INTERNAL: [&str; 2] = ["chorale/cluster/v1/service.proto", "chorale/link/v1/service.proto"];

/// Fields that keep the buffer that they came in instead of a copy of it.
const UNCOPIED: [&str; 2] = [".chorale.link.v1.Frame.payload", ".chorale.cluster.v1.TokenMask.words"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let public = protox::compile(PUBLIC, [ROOT])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    // With its comments, which reflection shows to whoever asks.
    fs::write(Path::new(&out).join("inference_v1.bin"), public.encode_to_vec())?;
    for files in [public, protox::compile(INTERNAL, [ROOT])?] {
        let builder = tonic_prost_build::configure().build_transport(false).emit_rerun_if_changed(false);
        UNCOPIED.iter().fold(builder, |builder, field| builder.bytes(field)).compile_fds(files)?;
    }
    Ok(())
}
