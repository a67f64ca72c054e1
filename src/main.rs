//! The program: arguments in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use portcullis::cli::Arguments;

fn main() -> ExitCode {
    // TLS is used from several crates; this makes them agree on one implementation. It can only
    // fail when that has been done already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Arguments::parse().run().unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}
