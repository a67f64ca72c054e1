//! `portcullis policy`: the rules in other hands.

use super::{Output, Report};
use crate::config::Source;

mod export;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Policy {
    /// Write the rules for the cluster's own admission, ready to be applied
    Export(export::Export),
}

// === impl Policy ===

impl Policy {
    pub(super) fn run(self, source: &Source, output: Output) -> anyhow::Result<Report> {
        match self {
            Policy::Export(export) => export.run(source, output),
        }
    }
}
