//! The program: arguments in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use portcullis::cli::Arguments;

fn main() -> ExitCode {
    // TLS is used from several crates; this makes them agree on one implementation. It can only
    // fail when that has been done already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and version are no errors; and 2, clap's own code, is what a finding ends with.
        Err(other) => {
            let _ = other.print();
            return ExitCode::from(u8::from(other.use_stderr()));
        }
    };
    arguments.run().unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}
