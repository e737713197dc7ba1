//! `chorale certs`: certificates for a cluster's trial.

use crate::args::CertsArgs;
use crate::output::Output;
use chorale_wire::tls::make_certificates;
use std::fmt::Write as _;

/// Runs the command.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<()> {
    let names: Vec<&str> = args.names.iter().map(String::as_str).collect();
    make_certificates(&args.dir, &names)?;
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, "{}", args.dir.join(name).display());
    }
    Ok(Output::print(&text)?)
}
